"""What lies beside ``artifact.json`` as JSON, typed, and how it is read: ``benchmark.json``, ``choice.json``, ``noise.json``,
``sensitivity.json``, ``folds.json``. What is missing, unknown, or of another type is refused in one line that names the file and the place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import UNSET, Meta, UnsetType

from ..benchmarks.errors import BenchmarkError
from ..benchmarks.results import SCHEMA, VERSION, Result, damage, upgraded
from ..benchmarks.statistics import Count, Interval, Share
from ..errors import ArtifactError, shown
from ..quantization.records import Tried
from .artifact import AGAIN, Artifact
from .parts import Baseline, OwnScore, Scores
from .records import read_record

T = TypeVar("T")
READ_VERSIONS = (2, 3, 4, 5, VERSION)
Some = Annotated[tuple[T, ...], Meta(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class Search:
    """``choice.json``: the verdict, the groups of nodes, a row for everything that was tried, and what decides of the machine.

    ``decided``, ``complete``: as ``Choice``. ``before``, ``after``: what the float32 file scores on the validation images, and the best
    one, whose graph has the hash ``graph``; ``own``: both by a score of the user's own, in whose units ``max_drop`` is then. ``runtime``:
    in which files were timed and asked. ``target``: the processor that they were chosen for without timing any; then of no machine.
    """

    verdict: str
    decided: Literal["bound", "point estimate"]
    complete: bool
    max_drop: float
    before: Scores | None
    after: Scores | None
    own: tuple[OwnScore, OwnScore] | UnsetType = UNSET
    graph: str
    groups: Mapping[str, tuple[str, ...]]
    best: Tried
    finalists: Some[Tried]
    tried: tuple[Tried, ...]
    machine: Mapping[str, str | int | tuple[str, ...] | None]
    runtime: Literal["c"] | UnsetType = UNSET  # not said of ONNX Runtime
    target: str | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class NoisyLayer:
    """A ``noise.LayerNoise`` with its label, where None is a ratio that is infinite, and the microseconds in float32 and int8."""

    label: str
    name: str
    kind: str
    weights: str | None
    output_db: float | None
    own_db: float | None
    weight_db: float | None
    clipped: Share | None
    microseconds: tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class NoisyGroup:
    """A ``noise.GroupCost`` with its name, the number of its nodes, and the latency as a fraction of float32's."""

    name: str
    nodes: Count
    logits_db: float | None
    changed: Share
    latency: Interval


@dataclass(frozen=True, kw_only=True)
class Noise:
    """``noise.json``: what int8 costs each layer and each group of nodes, over so many images."""

    images: Count
    setting: str
    layers: tuple[NoisyLayer, ...]
    groups: tuple[NoisyGroup, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """What one layer, group or module costs at one sparsity."""

    sparsity: Share
    removed: Count
    balanced_accuracy: Share
    cross_entropy: float
    points_lost: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one layer, group or module; ``size``: its weights, units of channels, or parameters."""

    name: str
    size: Count
    points: Some[Point]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """``sensitivity.json``. ``rises``: of the cross-entropy by name and sparsity as it came out. ``latency``: without each module."""

    granularity: Literal["weight", "channel", "module"]
    images: Count
    baseline: Baseline
    curves: Some[Curve]
    rises: Mapping[str, Mapping[float, float]]
    latency: Mapping[str, Interval]

    def __post_init__(self) -> None:
        names = {curve.name for curve in self.curves}
        if names != self.rises.keys() or self.latency.keys() != (names if self.granularity == "module" else set()):
            raise ArtifactError("rises and latency must be those of the curves")
        if len({tuple(point.sparsity for point in curve.points) for curve in self.curves}) > 1 or not all(self.rises.values()):
            raise ArtifactError("curves must have the same sparsities, and each of them rises")


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One fold, from 1: the scores of its last epoch, and of the best one, which flatters."""

    fold: Count
    images: Count
    scores: Scores
    best_epoch: Scores


@dataclass(frozen=True, kw_only=True)
class OverFolds:
    """Mean and standard deviation."""

    mean: Scores
    spread: Scores


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How many images ``of`` a class were read as another."""

    true: str
    read: str
    images: Count
    of: Count


@dataclass(frozen=True, kw_only=True)
class Folds:
    """``folds.json``: the scores of each fold, what they say together, and the pairs of classes that were confused most."""

    images: Count
    epochs: Count
    folds: tuple[Fold, ...]
    mean: Scores
    spread: Scores
    best_epoch: OverFolds
    confusions: tuple[Confusion, ...]


def read_payload(artifact: Artifact, cls: type[T]) -> T:
    """The JSON of an artifact as ``cls``; raises ArtifactError."""
    return read_record(artifact.payload, cls, again=AGAIN, error=ArtifactError)


def read_scored(path: Path) -> Result:
    """As :func:`read_results`, but one that has scores."""
    result = read_results(path)
    if not result.scored:
        raise BenchmarkError(f"results (={path}) have no scores, as there were no labels; run `compress benchmark` with --data")
    return result


def read_results(path: Path) -> Result:
    """A ``benchmark.json``; raises BenchmarkError, in one line that names the file."""
    again, where = "write it anew with `compress benchmark`", f"results (={path})"

    def look(found: Any) -> Any:
        if not isinstance(found, dict) or found.pop("schema", None) != SCHEMA:
            raise BenchmarkError(f"{where} is not a benchmark's result; {again}")
        if (version := found.pop("version", None)) not in READ_VERSIONS:
            raise BenchmarkError(f"{where} has schema version {shown(version)}, this program reads version {VERSION}; {again}")
        return upgraded(found, version)

    result = read_record(path, Result, where=where, again=again, error=BenchmarkError, look=look)
    if wrong := damage(result):
        raise BenchmarkError(f"{where} is damaged: {shown(wrong, 160)}; {again}")
    return result
