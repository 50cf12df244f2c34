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

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from ..errors import CompressError
from ..train.settings import AugmentConfig, DistilConfig, FitConfig, usual_batch
from .artifact import Artifact
from .records import checked, read_toml, refuse_unknown

RECIPES = Path(__file__).parents[1] / "recipes"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe: which network, which data, and one table of raw settings per stage, checked when the stage's config is made."""

    model: str = "k49"
    data: str = "digits"
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def table(self, name: str) -> Mapping[str, Any]:
        return self.tables.get(name, {})

    def stage(self, cls: type[T], name: str, **given: Any) -> T:
        """The settings ``cls`` of table ``name``: the recipe's, then whatever of ``given`` (the command line, Python) is not None."""
        values = _over(name, self.table(name), {key: value for key, value in given.items() if value is not None})
        if "seed" in {entry.name for entry in fields(cls)}:  # type: ignore[arg-type]
            values.setdefault("seed", self.seed)
        return checked(cls, values, f"[{name}]")


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


FOREIGN = "any"  # the recipe of networks that are not built in, and of graphs that nobody has the network of


def load_recipe(path: Path | None, model: str | None = None, data: str | None = None, seed: int | None = None) -> Recipe:
    """The recipe in ``path`` on top of the defaults of its network; ``model``, ``data`` and ``seed`` given by hand win over both.

    ``path`` may be the name of a recipe that comes with the toolkit, such as ``emnist-reference``.
    """
    own = _read(_named(path)) if path is not None else {}
    name = model or own.get("model") or Recipe.model
    default_file = RECIPES / f"{name}.toml"
    default = _read(default_file if default_file.is_file() else RECIPES / f"{FOREIGN}.toml")
    given = {key: value for key, value in {"model": name, "data": data, "seed": seed}.items() if value is not None}
    top = {key: value for key, value in (default | own | given).items() if key not in TABLES}
    tables = {table: _over(table, default.get(table, {}), own.get(table, {})) for table in TABLES}
    if seed is not None:
        tables = {table: {key: value for key, value in values.items() if key != "seed"} for table, values in tables.items()}
    return checked(Recipe, top | {"tables": tables}, str(path or "recipe"))


def training_config(recipe: Recipe, shape: tuple[int, int, int] | None = None, **given: Any) -> FitConfig:
    """The settings of training: the recipe's [train] and [augment], then whatever of ``given`` (the command line, Python) is not None.

    Where neither says the batch, it is what is usual for images of ``shape`` (C, H, W); None where that is not known yet.
    """
    if shape is not None and given.get("batch") is None and "batch" not in recipe.table("train"):
        given["batch"] = usual_batch(*shape[1:])
    changes = {entry.name: given.pop(entry.name) for entry in fields(AugmentConfig) if entry.name in given}
    augment = recipe.stage(AugmentConfig, "augment", **changes)
    if augment.trivial_augment and shape is not None and shape[0] not in (1, 3):
        raise CompressError(f"trivial_augment (=True) changes colours, for images of 1 or 3 channels; these have {shape[0]}: leave it out")
    return recipe.stage(FitConfig, "train", **given, augment=augment)


@dataclass(frozen=True, kw_only=True)
class Tutoring:
    """How a network that lost something is fine-tuned: ``training`` gives batch, optimiser, smoothing and distortions; ``distil`` says how
    much is learnt from ``teacher``, which is the parent where it is None.
    """

    training: FitConfig
    distil: DistilConfig
    teacher: Artifact | None = None

    def config(self, epochs: int, lr: float) -> FitConfig:
        """The settings of fine-tuning: those of training, but for a cosine from ``lr`` down to zero over ``epochs``."""
        plain = min(self.training.plain_epochs, max(0, epochs - 1))
        return replace(self.training, epochs=max(1, epochs), lr=lr, schedule="cosine", warmup=0.0, plain_epochs=plain)


def _over(table: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The settings ``above`` on top of those ``below``."""
    goals = ALTERNATIVES.get(table, ())
    replaced = goals if any(name in above for name in goals) else ()
    return {name: value for name, value in below.items() if name not in replaced} | dict(above)


def _named(path: Path) -> Path:
    """``path``, or the recipe of the toolkit that has this name."""
    ours = RECIPES / f"{path}.toml"
    return ours if path.name == str(path) and ours.is_file() and not path.exists() else path


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise CompressError(f"recipe (={path}): there is no such file, and no recipe of the toolkit has this name ({names})")
    raw = read_toml(path, "recipe")
    refuse_unknown(raw, ("model", "data", "seed", *TABLES), str(path))
    for table in TABLES:
        if not isinstance(raw.get(table, {}), dict):
            raise CompressError(f"{table} in {path} must be a table, [{table}]")
    return raw
