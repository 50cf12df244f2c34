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
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import CompressError
from .train.settings import AugmentConfig, FitConfig

RECIPES = Path(__file__).parent / "recipes"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Unstructured magnitude pruning, then ``epochs`` of fine-tuning that keeps the mask; a cosine takes ``lr`` down to zero.

    ``scope``: which weights are ranked with which, see :func:`compress.prune.magnitude_masks`.
    """

    sparsity: float = 0.8
    scope: str = "lamp"
    epochs: int = 3
    lr: float = 0.0005

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise CompressError(f"sparsity (={self.sparsity}) must lie in (0, 1); 0.8 zeroes 80% of the weights")
        if self.scope not in ("global", "layer", "lamp"):
            raise CompressError(f"scope (={self.scope}) must be global, layer or lamp")
        if self.epochs < 0:
            raise CompressError(f"epochs (={self.epochs}) must be zero (no fine-tuning) or more")
        if not 0 < self.lr < math.inf:
            raise CompressError(f"lr (={self.lr}) must be a positive number; a tenth to a half of the training's is usual")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """int8: ``mode`` dynamic or static; the rest concerns static, calibrated on ``images`` training images drawn by ``seed``."""

    mode: str = "static"
    method: str = "minmax"
    per_channel: bool = True
    images: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("dynamic", "static"):
            raise CompressError(f"mode (={self.mode}) must be dynamic or static")
        if self.method not in ("minmax", "percentile", "entropy"):
            raise CompressError(f"method (={self.method}) must be minmax, percentile or entropy")
        if self.images < 1:
            raise CompressError(f"images (={self.images}) must be at least 1; 512 is the default")
        if self.seed < 0:
            raise CompressError(f"seed (={self.seed}) must be zero or a positive integer")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """ONNX: ``opset`` of the graph, and how many validation images prove its parity with torch."""

    opset: int = 18
    parity_images: int = 1000

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 23:
            raise CompressError(f"opset (={self.opset}) must lie in 18 to 23; 18 is what older runtimes on boards read too")
        if self.parity_images < 1:
            raise CompressError(f"parity_images (={self.parity_images}) must be at least 1; 1000 is the default")


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
        values = dict(self.table(name)) | {key: value for key, value in given.items() if value is not None}
        if "seed" in {entry.name for entry in dataclasses.fields(cls)}:  # type: ignore[arg-type]
            values.setdefault("seed", self.seed)
        return make_config(cls, values, f"[{name}]")


TABLES = ("model-options", "train", "augment", "prune", "export", "quantize", "benchmark", "report")


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
    tables = {table: {**default.get(table, {}), **own.get(table, {})} for table in TABLES}
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
