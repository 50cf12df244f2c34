"""From a call to what a stage needs: the options checked by name, the context, the recipe, the parent, the settings. Loads no torch."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from ..errors import CompressError, nearest, shown
from .options import File

if TYPE_CHECKING:
    from ..artifacts.artifact import Artifact
    from ..artifacts.context import Context
    from ..artifacts.recipe import Recipe
    from ..stages.finetune import Tutoring

    Start = Artifact | Path | str | None
else:
    Start = Any

P = ParamSpec("P")
R = TypeVar("R")
LIMITS = ("max_drop", "accept_unproved", "max_latency", "max_size")
SHARED = ("weights", "pretrained", "out", "force", "resume")  # options that say where to start and what becomes of what is made


def takes(kind: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The method's keywords are those of ``kind``: others are refused with the nearest known name, and ``help()`` shows them."""
    hints = typing.get_type_hints(kind)

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        own = [one for one in inspect.signature(method).parameters.values() if one.kind is not one.VAR_KEYWORD]
        known = {*hints, *(one.name for one in own)}

        @functools.wraps(method)
        def checked(*positional: P.args, **given: P.kwargs) -> R:
            for name in given:
                if name not in known:
                    raise CompressError(f"{method.__name__} takes no option {name}; {nearest(name, hints)}")
            said = {name: value for name, value in given.items() if value is not None}
            fitting = {name: _fitting(name, value, hints.get(name), method.__name__) for name, value in said.items()}
            return method(*positional, **fitting)

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
    """What a stage with a parent starts from, and its settings."""

    context: "Context"
    project: Any
    recipe: "Recipe"
    parent: Any
    config: Any

    def tutoring(self, options: Mapping[str, Any]) -> "Tutoring":
        """How what was cut is fine-tuned: as the recipe says, and the options."""
        from ..artifacts.recipe import training_config
        from ..stages.finetune import Tutoring, teacher_for
        from ..train.settings import DistilConfig

        given = {name: options.get(option) for name, option in (("weight", "distil"), ("temperature",) * 2, ("features",) * 2)}
        return Tutoring(
            training=training_config(self.recipe, seed=self.context.seed),
            distil=self.recipe.stage(DistilConfig, "distil", **given),
            teacher=teacher_for(self.parent, options["teacher"]) if self.parent and "teacher" in options else None,
        )


def opened(context: "Context", start: Start, options: Mapping[str, Any], **more: Any) -> "tuple[Context, Recipe]":
    """What was said in this call besides what :func:`open` was told, and the recipe, so that a wrong value costs no loading of data."""
    context = dataclasses.replace(context, start=start, **some(options, *SHARED), **more)
    return context, context.load_recipe()


def begin(
    context: "Context",
    start: Start,
    options: Mapping[str, Any],
    cls: type,
    table: str,
    stages: tuple[str, ...],
    allowed: tuple[str, ...] | None = None,
) -> "Begun":
    """Everything that a stage with a parent needs; its settings are checked before data are loaded, and again under their recipe."""
    context, recipe = opened(context, start, options)
    settings = fields_of(cls, options) | ({"seed": context.seed} if "seed" in {one.name for one in dataclasses.fields(cls)} else {})
    Begun(context, None, recipe, None, recipe.stage(cls, table, **settings)).tutoring(options)
    from ..stages.import_network import start_of

    project, recipe, parent = start_of(context, stages, allowed)
    return Begun(context, project, recipe, parent, recipe.stage(cls, table, **settings))


def begin_graph(context: "Context", start: Start, options: Mapping[str, Any]) -> "Begun":
    """As :func:`begin`, with the graph to quantize as parent: one given, one from elsewhere, or the export of a network."""
    from ..artifacts.project import NETWORK_STAGES
    from ..stages.export import ExportConfig, graph_of
    from ..stages.import_network import import_onnx
    from ..stages.quantize import QuantizeConfig

    if "onnx" not in options:
        begun = begin(
            context, start, options, QuantizeConfig, "quantize", (*NETWORK_STAGES, "export"), (*NETWORK_STAGES, "export", "import-onnx")
        )
        return dataclasses.replace(begun, parent=graph_of(begun.project, begun.parent, begun.recipe.stage(ExportConfig, "export")))
    context, recipe = opened(context, start, options)
    config = recipe.stage(QuantizeConfig, "quantize", **fields_of(QuantizeConfig, options), seed=context.seed)
    project = context.project_of_onnx(Path(options["onnx"]))
    return Begun(context, project, recipe, import_onnx(project, Path(options["onnx"])), config)


def some(options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def fields_of(cls: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are settings of ``cls``; sequences as tuples, empty ones left out."""
    found = some(options, *(entry.name for entry in dataclasses.fields(cls)))
    plain = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in found.items()}
    return {name: value for name, value in plain.items() if value != ()}


def measuring(options: Mapping[str, Any]) -> dict[str, Any]:
    return some(options, "threads", "rounds", "samples") | ({"sweeps": False} if options.get("quick") else {})
