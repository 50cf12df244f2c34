"""What `compress tune` leaves and shows: best.toml, trials.csv, pictures; a table, or JSON."""

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta

from ..artifacts.cost import count_cost
from ..artifacts.model_reference import ModelReference
from ..artifacts.project import Project, data_identity, network_identity
from ..artifacts.recipe import RECIPES, Recipe, training_config
from ..artifacts.records import read_toml, seconds_of, write_csv
from ..errors import CompressError, NetworkError
from ..files import write_whole
from ..models.emnist import EmnistConfig
from ..models.errors import ModelError
from ..models.k49 import K49Config
from ..plots.tune import draw_history, draw_importances, draw_slices
from ..train.errors import TrainError
from ..train.fit import choose_device
from ..train.settings import MOST_AT_ONCE, AugmentConfig, FitConfig, usual_batch
from ..train.space import Dimension, Space, as_plain, parse_space
from ..train.storage import opened
from ..train.tune import Attempt, Hopeless, Summary, Trial, TuneConfig, tune
from .finetune import fit_parts, new_network

SPACES = RECIPES / "spaces"
CONFIGS = {"k49": K49Config, "emnist": EmnistConfig}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What `compress tune` is told besides the project and the recipe.

    ``epochs``: of each trial, instead of the recipe's. ``fraction`` of the training images, drawn evenly from the classes. ``max_params``
    and ``max_macs``: a larger network is given up before it is trained. ``storage``: a URL or a file; ``study``: its name there and of
    the folder of results; ``space``: a TOML file. ``time_limit``: "90s", "5m", "1h" or seconds, after which no trial starts.
    """

    trials: Annotated[int, Meta(ge=1, description="40 is the default")] = 40
    time_limit: str | float | None = None
    epochs: Annotated[int, Meta(ge=1)] | None = None
    fraction: Annotated[float, Meta(gt=0, le=1, description="0.25 trains on a quarter of the training images")] = 1.0
    max_params: Annotated[int, Meta(ge=1, description="leave it out for no limit")] | None = None
    max_macs: Annotated[int, Meta(ge=1, description="leave it out for no limit")] | None = None
    storage: str | None = None
    study: str | None = None
    space: Path | None = None

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            seconds_of(self.time_limit, "time_limit")
        if self.study is not None and not re.fullmatch(r"\w[\w.-]*", self.study):
            raise CompressError(f"study (={self.study}) must be letters, digits, -, _ and dots, as it names a folder; k49-small fits")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What came out: all trials, and the folder of results."""

    study: str
    folder: Path
    space: Space
    summary: Summary


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


def write_results(project: Project, recipe: Recipe, tuning: Tuning, tuned: Tuned) -> None:
    """Write recipe, table and plots, each file whole or not at all, as several workers may do so at once."""
    summary, space = tuned.summary, tuned.space
    rows = [dataclasses.asdict(trial) | dict(trial.notes) | dict(trial.values) for trial in summary.trials]
    write_csv(tuned.folder / "trials.csv", rows, ("number", "state", "score", "epochs", "seconds", "params", "macs", "reason", *space))
    if summary.best is not None:
        write_whole(tuned.folder / "best.toml", best_recipe(project, recipe, tuning, tuned).encode())
        write_whole(tuned.folder / "history.png", draw_history(summary))
        write_whole(tuned.folder / "slices.png", draw_slices(summary, space))
    if summary.importances:
        write_whole(tuned.folder / "importances.png", draw_importances(summary))


def best_recipe(project: Project, recipe: Recipe, tuning: Tuning, tuned: Tuned) -> str:
    """The best trial as TOML for `compress train --recipe`: every setting of training by its value, defaults too."""
    best = tuned.summary.best
    assert best is not None and project.model is not None
    config = dataclasses.asdict(training_config(with_values(recipe, best.values), project.spec.shape))
    tables = {"model-options": options_with(project, best.values), "augment": config.pop("augment"), "train": config}
    source = project.source.source
    spec = {name: value for name, value in dataclasses.asdict(project.spec).items() if value != getattr(type(project.spec)(), name)}
    lines = [
        f"# Best of {tuned.summary.finished} trials of `compress tune`, study {tuned.study}, trial {best.number}:",
        f"# balanced accuracy {percent(best)} on the validation images of {project.data.name} ({project.data.fingerprint[:12]}...),",
        f"# after at most {tuning.epochs or config['epochs']} epochs on {100 * tuning.fraction:g}% of the training images. Use:",
        "#   compress train --recipe best.toml",
        *([f"# with the network's input as it was tuned: {spec}"] if spec else []),
        *(["# and the four files of the data set by hand"] if isinstance(source, tuple) else []),
        f"model = {_toml(recipe.model)}",
        *([] if isinstance(source, tuple) else [f"data = {_toml(source)}"]),
        f"seed = {_toml(config.pop('seed'))}",
    ]
    for name in ("model-options", "train", "augment"):
        lines += ["", f"[{name}]", *(f"{setting} = {_toml(value)}" for setting, value in tables[name].items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A value of a recipe as TOML: JSON's texts, numbers and lists are TOML's too."""
    return json.dumps(value, ensure_ascii=False)


def percent(trial: Trial | None) -> str:
    return f"{100 * trial.score:.2f}%" if trial is not None and trial.score is not None else "-"


def tune_project(project: Project, recipe: Recipe, tuning: Tuning) -> Tuned:
    """Run the trials that are missing, and write what all of them say. Raises CompressError when none was completed."""
    assert project.model is not None, "only files are measured without a model"
    space = read_space(project.model, recipe, tuning)
    if tuning.space is None and usual_batch(*project.spec.shape[1:]) < MOST_AT_ONCE:  # what is built in is for small images
        space.pop("train.batch", None)
    choose_device(project.device)
    study = tuning.study or re.sub(r"[^\w.-]+", "-", project.data.name).lstrip("-.") or "study"
    storage = tuning.storage or str(project.folder / "tune" / f"{study}.journal")
    limit = None if tuning.time_limit is None else seconds_of(tuning.time_limit, "time_limit")
    config = TuneConfig(trials=tuning.trials, time_limit=limit, seed=recipe.seed)

    def told(trial: Trial, summary: Summary) -> None:
        result = f"{100 * trial.score:.2f}%" if trial.state == "complete" and trial.score is not None else f"given up: {trial.reason}"
        best = f"; best {percent(summary.best)} (trial {summary.best.number})" if summary.best else ""
        project.log.figures("tune", trial.number, {"balanced_accuracy": trial.score} | dict(trial.notes) | dict(trial.values))
        project.console.say(f"tune: trial {trial.number}: {result}{best}; {summary.finished} of {tuning.trials} done")

    def waits(busy: int) -> None:
        project.console.say(f"tune: waits for {busy} trials of {study} that other workers run")

    project.console.say(f"tune: study {study} in {re.sub(r'//.*@', '//', storage)}")
    # What the scores of a study depend on: trials under anything else are not to be compared with them.
    identity: dict[str, Any] = {"space": {name: json.dumps(one) for name, one in as_plain(space).items()}, "data": data_identity(project)}
    training = training_config(recipe, project.spec.shape, epochs=tuning.epochs)
    identity |= {"network": network_identity(project), "training": dataclasses.asdict(training)}
    identity |= {name: getattr(tuning, name) for name in ("fraction", "max_params", "max_macs")}
    with opened(storage) as store:
        objective = _objective(project, recipe, tuning)
        summary = tune(objective, space, config, store, f"{project.folder.name}-{study}", identity, told, project.force, waits)
    tuned = Tuned(study=study, folder=project.folder / "tune" / study, space=space, summary=summary)
    write_results(project, recipe, tuning, tuned)
    if running := sum(trial.state == "running" for trial in summary.trials):
        project.console.say(f"tune: other workers still run {running} trials of {study}; the results are written again when those end")
    if summary.best is None:
        reasons = [trial.reason for trial in summary.trials if trial.reason]
        why = f"the last because: {reasons[-1]}" if reasons else "none was finished in time"
        raise CompressError(f"study {study}: no trial of {len(summary.trials)} was completed, {why}; give it more room, or another --space")
    return tuned


def read_space(model: ModelReference, recipe: Recipe, tuning: Tuning) -> dict[str, Dimension]:
    """The search space for ``model``, of --space or built in; names, and the ends of each range, are tried on the settings they are for."""
    path = tuning.space or SPACES / f"{model.reference if model.is_built_in else 'any'}.toml"
    raw = read_toml(path, "space")
    if set(raw) != {"space"} or not isinstance(raw["space"], dict):
        raise CompressError(f"space (={path}) must have one table, [space]; it has {', '.join(raw) or 'nothing'}")
    options, any_option = _options_of(model)
    known = {f"train.{name}": kind for name, kind in _fields(FitConfig).items() if name not in ("seed", "augment")}
    known |= {f"augment.{name}": kind for name, kind in _fields(AugmentConfig).items()}
    known |= {f"model-options.{name}": kind for name, kind in options.items()}
    space = parse_space(raw["space"], known, str(path), ("model-options",) if any_option else ())
    if "train.epochs" in space and tuning.epochs is not None:
        raise CompressError(f"epochs (={tuning.epochs}) is tuned by {path} already; leave one of them out")
    for name, dimension in space.items():
        for value in dimension.extremes:
            _try_setting(model, recipe, name, value, path)
    return space


def _try_setting(model: ModelReference, recipe: Recipe, name: str, value: Any, path: Path) -> None:
    table, _, setting = name.partition(".")
    try:
        if table != "model-options":
            training_config(with_values(recipe, {name: value}))
        # Lists, such as widths and depths, may fit only together: those are tried as they are drawn.
        elif model.reference in CONFIGS and not isinstance(value, list):
            CONFIGS[model.reference](classes=2, **{setting: value})
    except (CompressError, TrainError, ModelError) as error:
        raise CompressError(f"{name} in {path}: {error}") from error


def _options_of(model: ModelReference) -> tuple[dict[str, Any], bool]:
    """The options of the network's factory with their types (None: not known), and whether it takes any other too."""
    if model.reference in CONFIGS:
        return {name: kind for name, kind in _fields(CONFIGS[model.reference]).items() if name != "classes"}, False
    takes = inspect.signature(model.factory()).parameters.values()
    named = [one for one in takes if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and one.name != "classes"]
    kinds = {one.name: type(one.default) if isinstance(one.default, bool | int | float | str) else None for one in named}
    return kinds, any(one.kind is one.VAR_KEYWORD for one in takes)


def _fields(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {entry.name: typing.get_origin(hints[entry.name]) or hints[entry.name] for entry in dataclasses.fields(cls)}


def _objective(project: Project, recipe: Recipe, tuning: Tuning) -> Callable[[Attempt], float]:
    """Trains one network with the settings of an attempt; returns the balanced accuracy on the validation images."""
    train = project.data.train
    training = train if tuning.fraction == 1 else train.sample(max(1, round(tuning.fraction * len(train.labels))), recipe.seed)

    def trained(attempt: Attempt) -> float:
        assert project.model is not None
        config = training_config(with_values(recipe, attempt.values), project.spec.shape, epochs=tuning.epochs)
        model = dataclasses.replace(project.model, options=options_with(project, attempt.values))
        try:
            # As `compress train` does it, so that the same settings give the same weights.
            network = new_network(dataclasses.replace(project, model=model), config.seed)
            _refuse_large(network, project, tuning, attempt)
            fitted = fit_parts(
                project,
                network,
                config,
                (training, project.data.validation),
                f"trial {attempt.number}",
                after_step=attempt.beat,
                after_epoch=lambda row: attempt.report(int(row["epoch"]), row["balanced_accuracy"]),
            )
        except (TrainError, ModelError, NetworkError) as error:  # a loss that is no longer finite, widths that do not fit the depths
            raise Hopeless(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise Hopeless("out of memory on the device") from error
        return fitted.best["balanced_accuracy"]

    return trained


def _refuse_large(network: torch.nn.Module, project: Project, tuning: Tuning, attempt: Attempt) -> None:
    cost = count_cost(network, torch.zeros(2, *project.spec.shape))
    attempt.note(params=cost.params, macs=cost.macs)
    for name, value, most in (("params", cost.params, tuning.max_params), ("macs", cost.macs, tuning.max_macs)):
        if most is not None and value > most:
            raise Hopeless(f"{value:,} {name}, more than {most:,}")
