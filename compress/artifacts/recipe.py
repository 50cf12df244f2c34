"""Settings of the stages, and recipes: TOML files that hold them.

A recipe says what ``compress run`` does, table by table; whatever it leaves out keeps the default of the reference network (the files in
``compress/recipes``). Unknown tables and keys are refused with the nearest known name, wrong types with the right one.

::

    model = "k49"
    data = "digits"
    [train]
    epochs = 12
    [prune]
    sparsity = 0.7
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CompressError
from ..train.settings import AugmentConfig, FitConfig

RECIPES = Path(__file__).parents[1] / "recipes"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe: which network, which data, and one table of raw settings per stage, checked when the stage's config is made."""

    model: str = "k49"
    data: str = "digits"
    seed: int = 0
    tables: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def table(self, name: str) -> Mapping[str, Any]:
        return self.tables.get(name, {})

    def stage(self, cls: type[T], name: str, **given: Any) -> T:
        """The frozen config ``cls`` of stage ``name``: recipe, then whatever of ``given`` (the command line) is not None."""
        values = _over(name, self.table(name), {key: value for key, value in given.items() if value is not None})
        if "seed" in {entry.name for entry in dataclasses.fields(cls)}:  # type: ignore[arg-type]
            values.setdefault("seed", self.seed)
        return make_config(cls, values, f"[{name}]")


TABLES = (
    "model-options",
    "train",
    "augment",
    "distil",
    "sensitivity",
    "prune",
    "remove-channels",
    "export",
    "quantize",
    "benchmark",
    "report",
)
# Settings that stand for one another: whoever gives some of them replaces all of the recipe below.
ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "prune": ("sparsity", "pattern"),
    "remove-channels": ("sparsity", "max_macs", "max_size", "max_latency"),
}


def load_recipe(path: Path | None, model: str | None = None, data: str | None = None, seed: int | None = None) -> Recipe:
    """The recipe in ``path`` on top of the defaults of its network; ``model``, ``data`` and ``seed`` given by hand win over both.

    ``path`` may be the name of a recipe that comes with the toolkit, such as ``emnist-reference``.
    """
    own = _read_toml(_named(path)) if path is not None else {}
    name = model or own.get("model") or Recipe.model
    default_file = RECIPES / f"{name}.toml"
    default = _read_toml(default_file if default_file.is_file() else RECIPES / "any.toml")
    top = {key: own.get(key, default.get(key)) for key in ("data", "seed")} | {"model": name}
    given = {key: value for key, value in {"data": data, "seed": seed}.items() if value is not None}
    tables = {table: _over(table, default.get(table, {}), own.get(table, {})) for table in TABLES}
    return make_config(
        Recipe, {key: value for key, value in (top | given).items() if value is not None} | {"tables": tables}, str(path or "recipe")
    )


def training_config(recipe: Recipe, **given: Any) -> FitConfig:
    """The settings of training: the recipe's [train] and [augment], then whatever of ``given`` (the command line) is not None."""
    return recipe.stage(FitConfig, "train", **given, augment=recipe.stage(AugmentConfig, "augment"))


def make_config(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """``cls(**values)`` for a dataclass, with unknown names and wrong types refused; TOML's lists become tuples, its integers floats."""
    hints = typing.get_type_hints(cls)
    known = [entry.name for entry in dataclasses.fields(cls)]  # type: ignore[arg-type]
    _refuse_unknown(values, known, where)
    return cls(**{name: _fitting(value, hints[name], f"{name} (={value!r}) in {where}") for name, value in values.items()})


def _over(table: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings ``above`` on top of those ``below``."""
    goals = ALTERNATIVES.get(table, ())
    replaced = goals if any(name in above for name in goals) else ()
    return {name: value for name, value in below.items() if name not in replaced} | dict(above)


def _fitting(value: Any, hint: Any, told: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None and type(None) in hint.__args__:
            return None
        hint = next(part for part in hint.__args__ if part is not type(None))
    kind = typing.get_origin(hint) or hint
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(value)
    if kind is Mapping or not isinstance(kind, type):
        return value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CompressError(f"{told} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _named(path: Path) -> Path:
    """``path``, or the recipe of the toolkit that has this name."""
    ours = RECIPES / f"{path}.toml"
    return ours if path.name == str(path) and ours.is_file() and not path.exists() else path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise CompressError(f"recipe (={path}): there is no such file, and no recipe of the toolkit has this name ({names})") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CompressError(f"recipe (={path}) is not readable as TOML: {error}") from error
    _refuse_unknown(raw, ("model", "data", "seed", *TABLES), str(path))
    for table in TABLES:
        if not isinstance(raw.get(table, {}), dict):
            raise CompressError(f"{table} in {path} must be a table, [{table}]")
    return raw


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    for name in given:
        if name not in (names := list(known)):
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
            raise CompressError(f"{name} in {where} is unknown; {hint}")
