"""The commands that make something: train, export-onnx, quantize, run, tune.

Each opens a project (network, data, runs folder), calls a stage of ``compress.pipeline`` and shows what it made. Loads click and the
settings only; everything else is imported inside the commands.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from ..artifacts.model_reference import ModelReference
from ..artifacts.project import TRAINED_STAGES
from ..artifacts.recipe import training_config
from ..errors import CompressError
from ..stages.tune import (
    Tuned,
    Tuning,
    percent,
    read_space,
    tune_project,
)
from ..train.space import Space
from ..train.tune import Trial
from .options import (
    PATH,
    data_options,
    network_options,
    out_option,
    parent_options,
    refuse_torchrun,
    run_options,
)
from .tables import table


@click.command()
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--batch", type=int, help="Images per step.")
@click.option("--lr", type=float, help="Largest learning rate.")
@click.option("--label-smoothing", type=float, help="0 for none; 0.1 is usual.")
@click.option("--folds", type=int, help="Cross-validate instead: train this many networks, each scored on the images it did not see.")
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted.")
@network_options
@data_options
@run_options
@parent_options
@out_option
def train(epochs: int | None, batch: int | None, lr: float | None, label_smoothing: float | None, folds: int | None, **shared: Any) -> None:
    """Train a new network, or with --from, --weights or --pretrained that one further; the best epoch on the validation images is kept.

    \b
    Example:  compress train --model k49 --data path/to/folder --epochs 12
              compress train --model k49 --data path/to/folder --folds 5
              compress train --from runs/k49/train/3f9a0c51be27 --recipe stronger.toml
    """
    from ..artifacts.context import Options
    from ..stages.cross_validate import cross_validate
    from ..stages.train import train as train_stage
    from ..train.folds import check_folds
    from .tables import show_artifact

    options = Options(**shared)
    recipe, start = options.load_recipe(), None
    settings = {"epochs": epochs, "batch": batch, "lr": lr, "label_smoothing": label_smoothing, "seed": options.seed}
    config = training_config(recipe, **settings)  # a wrong value should not cost the loading of data first
    if options.starts_from_parent:
        if folds is not None:
            raise CompressError(f"folds (={folds}) start from new networks; leave --from, --weights and --pretrained out")
        if options.weights is not None:
            file = options.weights
            refuse_torchrun(
                f"weights (={file}) are taken in by one process; `compress export-onnx --weights {file}` first, then train --from"
            )
        project, recipe, start = options.child(TRAINED_STAGES, (*TRAINED_STAGES, "remove-channels"))
        config = training_config(recipe, **settings)
    if folds is None:
        made = train_stage(project if start else options.project(recipe), config, options.out, start)
    else:
        check_folds(folds)
        made = cross_validate(options.project(recipe), config, folds, options.out)
    if made is not None:
        show_artifact(made, options.as_json)


@click.command()
@click.option("--trials", type=int, default=40, show_default=True, help="Finished trials in the study, by whichever worker.")
@click.option("--timeout", type=float, metavar="MIN", help="No trial starts after so many minutes.")
@click.option("--storage", metavar="URL|FILE", help="Journal file, or a database for Optuna.  [default: runs/MODEL/tune/STUDY.journal]")
@click.option("--study", metavar="NAME", help="Name of the study, and of the folder of its results.  [default: the name of the data]")
@click.option("--space", type=PATH, metavar="FILE", help="TOML of what to tune.  [default: the one built in for the model]")
@click.option("--epochs", type=int, help="Epochs of each trial.  [default: the recipe's]")
@click.option("--fraction", type=float, default=1.0, show_default=True, help="Train on this part of the training images, evenly drawn.")
@click.option("--max-params", type=int, help="Give up larger networks before they are trained.")
@click.option("--max-macs", type=int, help="Likewise, multiply-accumulates for one image.")
@network_options
@data_options
@run_options
def tune(
    trials: int,
    timeout: float | None,
    storage: str | None,
    study: str | None,
    space: Path | None,
    epochs: int | None,
    fraction: float,
    max_params: int | None,
    max_macs: int | None,
    **shared: Any,
) -> None:
    """Search for better settings; the best are written as a recipe for `compress train`.

    After a kill the same command goes on. Run at the same time in other terminals, or on other hosts with the same --storage, it shares
    the work. --force forgets the study first.

    \b
    Example:  compress tune --model emnist --data path/to/folder --trials 40 --epochs 5 --fraction 0.25
              compress train --recipe runs/emnist/tune/folder/best.toml
    """
    from ..artifacts.context import Options

    tuning = Tuning(
        trials=trials,
        timeout=timeout,
        epochs=epochs,
        fraction=fraction,
        max_params=max_params,
        max_macs=max_macs,
        storage=storage,
        study=study,
        space=space,
    )
    options = Options(**shared)
    recipe = options.load_recipe()
    read_space(ModelReference(reference=recipe.model), recipe, tuning)  # a wrong space should not cost the loading of data first
    show_tuned(tune_project(options.project(recipe), recipe, tuning), options.as_json)


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
