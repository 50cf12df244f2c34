"""From a call to what a stage needs: the options checked by name, the context, the recipe, the parent, the settings. Loads no torch."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

from ..errors import CompressError, nearest, shown
from .logs import logged
from .options import File

if TYPE_CHECKING:
    from ..artifacts.artifact import Artifact
    from ..artifacts.context import Context
    from ..artifacts.recipe import Recipe, Tutoring

Start: TypeAlias = "Artifact | Path | str | None"
Options = Mapping[str, Any]
Stages = tuple[str, ...]
P = ParamSpec("P")
R = TypeVar("R")
LIMITS = ("max_drop", "accept_unproved", "max_latency", "max_size", "max_ram", "max_flash", "target")
SHARED = (
    "weights",
    "pretrained",
    "out",
    "force",
    "fresh",
    "calibrate",
    "score",
    "on",
)  # options that say where to start and what becomes of what is made


@contextmanager
def _of_one_kind() -> Iterator[None]:
    """Whatever a user can get wrong comes as a CompressError, which it is besides what the packages that stand alone call it."""
    try:
        yield
    except ValueError as error:
        from ..benchmarks.errors import BenchmarkError
        from ..models.errors import ModelError
        from ..train.errors import TrainError

        kind = type(error)
        if isinstance(error, CompressError) or not isinstance(error, BenchmarkError | ModelError | TrainError):
            raise
        both = type(kind.__name__, (CompressError, kind), {"__doc__": kind.__doc__, "__module__": kind.__module__})
        made = both.__new__(both, *error.args)  # without its own way to put the words together, which they are by now
        vars(made).update(vars(error))
        raise made from error


def takes(kind: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The method's keywords are those of ``kind``: others are refused with the nearest known name, and ``help()`` shows them."""
    hints = typing.get_type_hints(kind)

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        own = [one for one in inspect.signature(method).parameters.values() if one.kind is not one.VAR_KEYWORD]
        known = {*hints, *(one.name for one in own)}

        @functools.wraps(method)
        def checked(*positional: P.args, **given: P.kwargs) -> R:
            if unknown := [name for name in given if name not in known]:
                raise CompressError(f"{method.__name__} takes no option {unknown[0]}; {nearest(unknown[0], hints)}")
            said = {name: value for name, value in given.items() if value is not None}
            options = {name: _fitting(name, value, hints.get(name), method.__name__) for name, value in said.items()}
            with _of_one_kind():
                if "log" not in options:
                    return method(*positional, **options)
                network: Any = positional[0]
                with logged(network._context, options.pop("log"), method.__name__.replace("_", "-"), options) as context:
                    positional = (type(network)(context), *positional[1:])  # type: ignore[assignment]
                    return method(*positional, **options)

        keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()]
        checked.__signature__ = inspect.Signature([*own, *keywords])  # type: ignore[attr-defined]
        checked.options = kind  # type: ignore[attr-defined]
        return checked

    return decorate


def _fitting(name: str, value: Any, hint: Any, where: str) -> Any:
    """The value of an option in its type: what was said in Python was checked by nobody yet."""
    if hint is None:  # an argument of the method itself
        return value
    if hint == File:
        if not isinstance(value, str | Path):
            raise CompressError(f"{name} (={shown(value)}) in {where} must be of type str or Path, not {type(value).__name__}")
        return value if name in ("data", "recipe") else Path(value)
    from ..artifacts.records import setting

    return setting(value, hint, name, where, finite=False)  # that is a rule of the stage's own settings, said there


@dataclasses.dataclass(frozen=True)
class Begun:
    """What a stage with a parent starts from, its settings, and how what it cuts is fine-tuned."""

    context: "Context"
    project: Any
    recipe: "Recipe"
    parent: Any
    config: Any
    tutoring: "Tutoring"


def opened(context: "Context", start: Start, options: Options) -> "tuple[Context, Recipe]":
    """What was said in this call besides what :func:`open` was told, and the recipe, so that a wrong value costs no loading of data."""
    if options.get("fresh") and options.get("resume"):
        raise CompressError("fresh and resume exclude each other; leave one of them out")
    context = dataclasses.replace(context, start=start, **some(options, *SHARED))
    return context, context.load_recipe()


def begin(context: "Context", start: Start, options: Options, cls: type, table: str, stages: Stages, allowed: Stages = ()) -> Begun:
    """Everything that a stage with a parent needs; its settings are checked before data are loaded, and again under their recipe."""
    from ..artifacts.recipe import FOREIGN, Tutoring, training_config
    from ..stages.export import ExportConfig
    from ..stages.import_network import import_onnx, start_of
    from ..train.settings import DistilConfig

    context, recipe = opened(context, start, options)
    recipe = context.load_recipe(FOREIGN) if "onnx" in options else recipe

    def begun(project: Any, recipe: "Recipe", parent: "Artifact | None") -> Begun:
        config: Any = recipe.stage(cls, table, **fields_of(cls, {"seed": context.seed, **options}))
        tutoring = Tutoring(
            training=training_config(recipe, project.spec.shape if project else None, seed=context.seed),
            distil=recipe.stage(DistilConfig, "distil", **fields_of(DistilConfig, {"weight": options.get("distil"), **options})),
            teacher=context.teacher(options["teacher"], parent) if parent and "teacher" in options else None,
        )
        return Begun(context, project, recipe, parent, config, tutoring)

    begun(None, recipe, None)
    if context.calibrate is not None and "onnx" not in options:
        raise CompressError(f"calibrate (={context.calibrate}) is of images for an ONNX file; name that with --onnx")
    if onnx := options.get("onnx"):
        project, exporting = context.project_of_onnx(onnx), recipe.stage(ExportConfig, "export", **some(options, "fold_constants"))
        return begun(project, recipe, import_onnx(project, onnx, fold=exporting.fold_constants))
    return begun(*start_of(context, stages, allowed))


def begin_graph(context: "Context", start: Start, options: Options) -> Begun:
    """As :func:`begin`, with the graph to quantize as parent: one given, one from elsewhere, or the export of a network."""
    from ..artifacts.project import FOREIGN_STAGES, NETWORK_STAGES
    from ..stages.export import ExportConfig, graph_of
    from ..stages.quantize import QuantizeConfig

    said, recipe = opened(context, start, options)
    target = recipe.stage(QuantizeConfig, "quantize", **fields_of(QuantizeConfig, options)).target
    if target and said.on is not None:
        told = f"target (={target}) and on (={said.on}) exclude each other"
        raise CompressError(f"{told}: there files are timed, and have the types of its own processor; leave target out")
    stages = (*NETWORK_STAGES, "export")
    begun = begin(context, start, options, QuantizeConfig, "quantize", stages, (*stages, *FOREIGN_STAGES))
    about = begun.parent.manifest
    if options.get("fold_constants") and about.kind == "graph" and not about.metrics.constants:
        raise CompressError(
            f"fold_constants (=True): {begun.parent.path} was exported without it; name the network that it came from, --from NETWORK"
        )
    exporting = begun.recipe.stage(ExportConfig, "export", **some(options, "fold_constants"))
    return dataclasses.replace(begun, parent=graph_of(begun.project, begun.parent, exporting))


def some(options: Options, *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def fields_of(cls: type, options: Options) -> dict[str, Any]:
    """Those of the options that are settings of ``cls``; sequences as tuples, empty ones left out."""
    found = some(options, *(entry.name for entry in dataclasses.fields(cls)))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value not in ([], ())}


def measuring(options: Options) -> dict[str, Any]:
    return some(options, "threads", "rounds", "samples") | ({"sweeps": False, "time_limit": 0} if options.get("quick") else {})
