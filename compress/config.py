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
    """Unstructured pruning, then ``epochs`` of fine-tuning that keeps the mask; a cosine takes ``lr`` down to zero.

    ``sparsity``: 0.8 if none is given. ``scope``: which weights are ranked with which, see :func:`compress.prune.weight_masks`.
    ``steps``: how many times some are zeroed, on the cubic schedule up to ``sparsity``, with ``between`` epochs of fine-tuning after each
    but the last. ``pattern``: "2:4" instead keeps 2 of every 4 weights in a row, at once; ``sparsity`` then follows from it (0.5), and
    ``scope`` is without effect. ``regrow``: zeroed weights may come back while fine-tuning, see :mod:`compress.regrow`; not those
    that were zero before this pruning.
    """

    sparsity: float = None  # type: ignore[assignment]  # set below: only there is it known whether one was given
    scope: str = "fisher"
    pattern: str = ""
    steps: int = 1
    between: int = 1
    epochs: int = 3
    lr: float = 0.0001
    regrow: bool = False

    def __post_init__(self) -> None:
        given: Any = self.sparsity
        follows = 0.8
        if self.pattern:
            from .prune import parse_pattern  # here, as it loads torch

            keep, of = parse_pattern(self.pattern)
            follows = 1 - keep / of
            if given not in (None, follows):
                raise CompressError(
                    f'sparsity (={given}) cannot be chosen beside pattern (="{self.pattern}"), which zeroes {follows:.3g}; leave one out'
                )
            if self.steps != 1:
                raise CompressError(f'steps (={self.steps}) must be 1 with pattern (="{self.pattern}"), which is cut at once')
            if self.regrow:
                raise CompressError(f'regrow needs a sparsity, not pattern (="{self.pattern}"); leave one out')
        if given is None:
            object.__setattr__(self, "sparsity", follows)
        if not 0 < self.sparsity < 1:
            raise CompressError(f"sparsity (={self.sparsity}) must lie in (0, 1); 0.8 zeroes 80% of the weights")
        if self.scope not in ("global", "layer", "lamp", "fisher"):
            raise CompressError(f"scope (={self.scope}) must be global, layer, lamp or fisher")
        if self.steps < 1:
            raise CompressError(f"steps (={self.steps}) must be at least 1; 1 zeroes all weights at once")
        if self.between < 0:
            raise CompressError(f"between (={self.between}) must be zero (no fine-tuning between steps) or more epochs")
        if self.epochs < 0:
            raise CompressError(f"epochs (={self.epochs}) must be zero (no fine-tuning) or more")
        if self.regrow and self.steps != 1:
            raise CompressError(f"steps (={self.steps}) must be 1 with regrow: what was zeroed too early comes back by itself")
        if self.regrow and self.epochs == 0:
            raise CompressError(f"regrow needs fine-tuning, but epochs (={self.epochs}) is zero; 10 and more do well")
        if not 0 < self.lr < math.inf:
            raise CompressError(f"lr (={self.lr}) must be a positive number; a tenth to a half of the training's is usual")


@dataclass(frozen=True, kw_only=True)
class RemoveConfig:
    """Channel removal in ``steps``, each followed by fine-tuning: ``epochs`` after the last, ``between`` after every other.

    Goals: ``sparsity`` (fraction of the removable channels to remove), or any of ``max_macs``, ``max_size`` (of the weights) and
    ``max_latency`` (measured here, one image on one thread), each as a fraction of the teacher's; all that are given must be met.
    ``bypass``: modules to leave out: names, patterns such as ``blocks.*.spatial``, or "auto". ``importance``, ``scope`` and ``floor``: see
    :mod:`compress.importance`; scope "sensitivity" gives each group the sparsity that its own curve bears. ``round_to``: widths are
    multiples of this many channels; 0 measures which multiple is fast. ``images``: how many training images importance looks at.
    """

    sparsity: float | None = None
    max_macs: float | None = None
    max_size: float | None = None
    max_latency: float | None = None
    bypass: tuple[str, ...] = ()
    importance: str = "taylor"
    scope: str = "global"
    round_to: int = 0
    floor: float = 0.1
    images: int = 2048
    steps: int = 3
    between: int = 1
    epochs: int = 6
    lr: float = 0.001

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise CompressError(f"sparsity (={self.sparsity}) must lie in (0, 1); 0.5 removes half of the channels")
        for name, value in self.limits.items():
            if not 0 < value < 1:
                raise CompressError(f"{name} (={value}x) must lie in (0, 1) times that of the teacher; 0.35x leaves about a third")
        if self.sparsity is not None and self.limits:
            raise CompressError(f"sparsity (={self.sparsity}) and {', '.join(self.limits)} exclude each other; name the one that counts")
        if self.importance not in ("l2", "bn", "taylor"):
            raise CompressError(f"importance (={self.importance}) must be l2, bn or taylor")
        if self.scope not in ("global", "group", "sensitivity"):
            raise CompressError(f"scope (={self.scope}) must be global (one ranking), group (one in each) or sensitivity (measured)")
        rules = [
            (self.round_to >= 0, "round_to", "must be 0 (measure what is fast) or a number of channels, such as 8"),
            (0 <= self.floor < 1, "floor", "must lie in [0, 1); 0.1 keeps a tenth of every group"),
            (self.images >= 1, "images", "must be at least 1; 2048 is the default"),
            (1 <= self.steps <= 100, "steps", "must lie in 1 to 100; 3 is the default"),
            (self.between >= 0, "between", "must be zero or a number of epochs"),
            (self.epochs >= 0, "epochs", "must be zero (no fine-tuning) or more"),
            (0 < self.lr < math.inf, "lr", "must be a positive number; a third of the training's is usual"),
        ]
        for holds, name, rule in rules:
            if not holds:
                raise CompressError(f"{name} (={getattr(self, name)}) {rule}")

    @property
    def limits(self) -> dict[str, float]:
        """The goals other than sparsity, those that are given."""
        given = {"max_macs": self.max_macs, "max_size": self.max_size, "max_latency": self.max_latency}
        return {name: value for name, value in given.items() if value is not None}

    def in_steps(self) -> list["RemoveConfig"]:
        """One config per step: what is left shrinks by the same factor in each, and modules are bypassed in the first.

        0.125x in three steps: 0.5x, 0.25x, 0.125x. With scope "sensitivity" a step that only bypasses comes before, as what the groups
        bear is measured without those modules.
        """
        if self.sparsity is None and not self.limits and not self.bypass:
            raise CompressError("a goal is needed: --sparsity 0.5, --max-macs 0.35x, --max-size 0.25x or --max-latency 0.5x, or --bypass")
        none: dict[str, Any] = {"sparsity": None, "max_macs": None, "max_size": None, "max_latency": None}
        first = self.scope == "sensitivity" and bool(self.bypass)
        made = [dataclasses.replace(self, **none, epochs=self.between, steps=1, between=0)] if first else []
        for step in range(1, self.steps + 1):
            share = step / self.steps
            goals: dict[str, Any] = {name: value**share if step < self.steps else value for name, value in self.limits.items()}
            if self.sparsity is not None:
                goals["sparsity"] = 1 - (1 - self.sparsity) ** share if step < self.steps else self.sparsity
            epochs = self.epochs if step == self.steps else self.between
            bypass = self.bypass if step == 1 and not first else ()
            made.append(dataclasses.replace(self, **goals, epochs=epochs, bypass=bypass, steps=1, between=0))
        return made


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig:
    """How much each part of a network bears: ``granularity`` weight (zeroed, per layer), channel (removed, per group) or module (bypassed).

    ``sparsities``: those that are measured; modules know none. ``importance``: which channels go first, see :mod:`compress.importance`.
    ``images``: how many training images are scored, drawn by ``seed``.
    """

    granularity: str = "channel"
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    importance: str = "l2"
    images: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if self.granularity not in ("weight", "channel", "module"):
            raise CompressError(f"granularity (={self.granularity}) must be weight, channel or module")
        for value in self.sparsities:
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise CompressError(f"sparsities (={value}) must lie in (0, 1); 0.5 removes half of one layer or group")
        if not self.sparsities:
            raise CompressError("sparsities (=()) must name one at least; 0.25, 0.5, 0.75 and 0.9 are the default")
        object.__setattr__(self, "sparsities", tuple(sorted(set(self.sparsities))))
        if self.importance not in ("l2", "bn", "taylor"):
            raise CompressError(f"importance (={self.importance}) must be l2, bn or taylor")
        if self.images < 1:
            raise CompressError(f"images (={self.images}) must be at least 1; 2048 is the default")
        if self.seed < 0:
            raise CompressError(f"seed (={self.seed}) must be zero or a positive integer")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """int8. ``mode``: auto searches by measurement for the fastest file that loses at most ``max_drop`` points of balanced accuracy;
    static, dynamic, int8-weights and fp16-weights (stored so, computed in float32) make one by hand; float32 is a copy.

    The rest concerns static, and but for ``images`` and ``seed`` (calibration images drawn by it) auto finds it: ``method`` and
    ``per_channel`` as ``StaticConfig`` has them, ``groups`` of nodes to take (none: all), see ``node_groups``, ``equalise`` and
    ``correct_bias``. ``epochs`` of fine-tuning from ``lr`` follow, with what int8 does to every tensor in the forward pass.
    """

    mode: str = "auto"
    method: str = "minmax"
    per_channel: bool = True
    groups: tuple[str, ...] = ()
    equalise: bool = False
    correct_bias: bool = False
    images: int = 512
    seed: int = 0
    max_drop: float = 0.3
    epochs: int = 0
    lr: float = 0.0001

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if self.mode not in QUANTIZE_MODES:
            raise CompressError(f"mode (={self.mode}) must be {', '.join(QUANTIZE_MODES[:-1])} or {QUANTIZE_MODES[-1]}")
        if self.method not in ("minmax", "percentile", "entropy", "mse"):
            raise CompressError(f"method (={self.method}) must be minmax, percentile, entropy or mse")
        by_hand = {"method": "minmax", "per_channel": True, "groups": (), "equalise": False, "correct_bias": False}
        if self.mode != "static" and (given := [name for name, usual in by_hand.items() if getattr(self, name) != usual]):
            how = "auto tries them all" if self.mode == "auto" else f"{self.mode} has none"
            raise CompressError(f"{given[0]} (={getattr(self, given[0])}) is a setting of --mode static; {how}")
        if self.images < 1:
            raise CompressError(f"images (={self.images}) must be at least 1; 512 is the default")
        if self.seed < 0:
            raise CompressError(f"seed (={self.seed}) must be zero or a positive integer")
        if not 0 <= self.max_drop <= 100:
            raise CompressError(f"max_drop (={self.max_drop}) must lie in [0, 100] points of balanced accuracy; 0.3 is the default")
        if self.epochs < 0:
            raise CompressError(f"epochs (={self.epochs}) must be zero or a positive integer; 0 does no fine-tuning")
        if self.epochs and self.mode not in ("auto", "static"):
            raise CompressError(f"epochs (={self.epochs}) of fine-tuning need --mode auto or static; {self.mode} has nothing to train")
        if not 0 < self.lr < math.inf:
            raise CompressError(f"lr (={self.lr}) must be a positive number; 0.0001 is the default")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """ONNX: ``opset`` of the graph, its ``input``, uint8 or float32 in [0, 1], and how many real images prove its parity with torch."""

    opset: int = 18
    input: str = "uint8"
    parity_images: int = 1000

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 23:
            raise CompressError(f"opset (={self.opset}) must lie in 18 to 23; 18 is what older runtimes on boards read too")
        if self.input not in ("uint8", "float32"):
            raise CompressError(f"input (={self.input}) must be uint8 or float32; uint8 takes the pixels as a camera or file has them")
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
QUANTIZE_MODES = ("auto", "static", "dynamic", "int8-weights", "fp16-weights", "float32")
# Stages that make networks; those of the first kind are what pruning starts from where no parent is named.
TRAINED_STAGES = ("train", "import")
NETWORK_STAGES = (*TRAINED_STAGES, "prune", "remove-channels")


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
