"""What `compress tune` leaves and shows: best.toml, trials.csv, pictures; a table, or JSON."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from .config import Recipe, training_config
from .project import Project
from .show import table
from .train.space import Space
from .train.tune import Summary, Trial
from .tune_plots import draw_history, draw_importances, draw_slices


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came out: all trials, the folder of results, and how the trials were trained (``epochs`` None: as the recipe says)."""

    study: str
    folder: Path
    space: Space
    summary: Summary
    epochs: int | None
    fraction: float


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with the drawn values, of dotted names, in its tables."""
    tables = {name: dict(table) for name, table in recipe.tables.items()}
    for name, value in values.items():
        table, _, setting = name.partition(".")
        tables.setdefault(table, {})[setting] = value
    return dataclasses.replace(recipe, tables=tables)


def options_with(project: Project, values: Mapping[str, Any]) -> dict[str, Any]:
    assert project.model is not None
    drawn = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("model-options.")}
    return {**project.model.options, **drawn}


def write_results(project: Project, recipe: Recipe, tuned: Tuned) -> None:
    """Write recipe, table and plots, each file whole or not at all, as several workers may do so at once."""
    summary, space = tuned.summary, tuned.space
    tuned.folder.mkdir(parents=True, exist_ok=True)
    _replace(tuned.folder / "trials.csv", _csv(summary, space).encode())
    if summary.best is not None:
        _replace(tuned.folder / "best.toml", best_recipe(project, recipe, tuned).encode())
        _replace(tuned.folder / "history.png", draw_history(summary))
        _replace(tuned.folder / "slices.png", draw_slices(summary, space))
    if summary.importances:
        _replace(tuned.folder / "importances.png", draw_importances(summary))


def best_recipe(project: Project, recipe: Recipe, tuned: Tuned) -> str:
    """The best trial as TOML for `compress train --recipe`: every setting of training by its value, defaults too."""
    best = tuned.summary.best
    assert best is not None and project.model is not None
    config = dataclasses.asdict(training_config(with_values(recipe, best.values)))
    tables = {"model-options": options_with(project, best.values), "augment": config.pop("augment"), "train": config}
    source = project.source["source"]
    spec = {name: value for name, value in dataclasses.asdict(project.spec).items() if value != getattr(type(project.spec)(), name)}
    lines = [
        f"# Best of {tuned.summary.finished} trials of `compress tune`, study {tuned.study}, trial {best.number}:",
        f"# balanced accuracy {percent(best)} on the validation images of {project.data.name} ({project.data.fingerprint[:12]}...),",
        f"# after at most {tuned.epochs or config['epochs']} epochs on {100 * tuned.fraction:g}% of the training images. Use:",
        "#   compress train --recipe best.toml",
        *([f"# with the network's input as it was tuned: {spec}"] if spec else []),
        *(["# and the four files of the data set by hand"] if isinstance(source, list) else []),
        f"model = {_toml(recipe.model)}",
        *([] if isinstance(source, list) else [f"data = {_toml(source)}"]),
        f"seed = {_toml(config.pop('seed'))}",
    ]
    for name in ("model-options", "train", "augment"):
        lines += ["", f"[{name}]", *(f"{setting} = {_toml(value)}" for setting, value in tables[name].items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value of a recipe as TOML: JSON's texts, numbers and lists are TOML's too."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _csv(summary: Summary, space: Space) -> str:
    names = ("number", "state", "score", "epochs", "seconds", "params", "macs", "reason")
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow([*names, *space])
    for trial in summary.trials:
        about = dataclasses.asdict(trial) | dict(trial.notes)
        writer.writerow([*(about.get(name) for name in names), *(trial.values.get(name) for name in space)])
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def percent(trial: Trial | None) -> str:
    return f"{100 * trial.score:.2f}%" if trial is not None and trial.score is not None else "-"


def tuned_summary(tuned: Tuned) -> dict[str, Any]:
    """What ``--json`` shows."""
    summary, best = tuned.summary, tuned.summary.best
    return {
        "study": tuned.study,
        "folder": str(tuned.folder),
        "recipe": str(tuned.folder / "best.toml"),
        "best": dataclasses.asdict(best) if best else None,
        "importances": dict(summary.importances),
        "trials": [dataclasses.asdict(trial) for trial in summary.trials],
    }


def show_tuned(tuned: Tuned, as_json: bool) -> None:
    """Print the trials, the best first, or everything as JSON."""
    click.echo(json.dumps(tuned_summary(tuned), indent=1) if as_json else tuned_text(tuned))


def tuned_text(tuned: Tuned, most: int = 20) -> str:
    """A row per trial, the best first and those given up last with the reason; then what mattered, and where the recipe lies."""
    trials = sorted(tuned.summary.trials, key=lambda t: (t.state != "complete", t.state, -(t.score or 0.0)))
    parts = [table([_row(trial, tuned.space) for trial in trials[:most]])]
    if len(trials) > most:
        parts.append(f"and {len(trials) - most} more in {tuned.folder / 'trials.csv'}")
    if shares := tuned.summary.importances:
        told = ", ".join(f"{name} {100 * share:.0f}%" for name, share in sorted(shares.items(), key=lambda pair: -pair[1]))
        parts.append(f"share in the variance of the score: {told}")
    parts.append(f"pictures: {tuned.folder}\nbest: compress train --recipe {tuned.folder / 'best.toml'}")
    return "\n\n".join(parts)


def _row(trial: Trial, space: Space) -> dict[str, str]:
    about = {"trial": str(trial.number), "balanced acc.": percent(trial)}
    about |= {title: f"{trial.notes[name]:,}" if name in trial.notes else "" for name, title in (("params", "params"), ("macs", "MACs"))}
    about |= {name.partition(".")[2]: _cell(trial.values.get(name, "")) for name in space}
    return about | {"": trial.reason or ("" if trial.state == "complete" else trial.state)}


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
