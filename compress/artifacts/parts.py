"""The parts of an ``artifact.json``: model, data, lineage, and what stages say of what they made, ``metrics`` and ``facts``.

What a stage does not say is UNSET, and not written. Loads neither torch nor onnx nor onnxruntime.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType, convert

from ..benchmarks.formats import size
from ..benchmarks.paired import Drop
from ..benchmarks.results import LayerZeros
from ..benchmarks.statistics import Count, Interval, Share
from ..errors import ArtifactError
from ..graphs.records import Parity
from ..quantization.records import Quantized, Stored, Tried
from ..train.data_set import About
from .records import component, plain

# What messages and paths may be made of: one line of text.
MOST_PATH = 4096
_PRINTED = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
Line = Annotated[str, Meta(max_length=MOST_PATH, pattern=_PRINTED)]
Name = Annotated[str, Meta(max_length=255, pattern=_PRINTED)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which network: its reference, the options of its factory and the hash of the user's files; or the name of another tool's ``file``."""

    reference: Line | UnsetType = UNSET
    options: Mapping[str, Any] | UnsetType = UNSET
    source: str | UnsetType | None = UNSET
    file: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        given = [value is not UNSET for value in (self.reference, self.options, self.source, self.file)]
        if given not in ([True, True, True, False], [False, False, False, True]):
            raise ArtifactError("must have reference, options and source, or file alone")
        if self.file is not UNSET:
            component(self.file, "file")


@dataclass(frozen=True, kw_only=True)
class Images:
    """How many images each part has."""

    train: Count
    validation: Count
    test: Count


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which images, and how they were split. ``source``: a name, a folder or four files, or a folder of images without
    labels and the ONNX file whose answers stand for them; ``title``: what messages call shipped data; ``skipped``: pictures that
    were left out, as they cannot be used; ``clipped``: values outside of the range of the input."""

    source: str | tuple[str, ...]
    name: Name
    fingerprint: Name
    seed: Count
    validation: Annotated[float, Meta(gt=0, lt=1)]
    images: Images
    title: Name | UnsetType = UNSET
    skipped: Count | UnsetType = UNSET
    clipped: Count | UnsetType = UNSET

    def __post_init__(self) -> None:
        # Not in the type: msgspec 0.22 corrupts memory over a union of texts and tuples where either has a limit.
        parts = (self.source,) if isinstance(self.source, str) else self.source
        if len(parts) not in (1, 2, 4) or not all(part.isprintable() and len(part) <= MOST_PATH for part in parts):
            raise ArtifactError("source must be a name, a folder, a folder and a file, or four files, each one line of text")

    @classmethod
    def of(cls, about: About, source: str | tuple[str, ...], seed: int, validation: float) -> "Data":
        """What is recorded of a data set that was read."""
        train, held, test = about.counts
        return cls(
            source=source,
            name=about.name,
            fingerprint=about.fingerprint,
            seed=seed,
            validation=validation,
            images=Images(train=train, validation=held, test=test),
            skipped=about.skipped or UNSET,
            clipped=about.clipped or UNSET,
        )


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What later stages look at of the configuration of a step, whatever else that holds."""

    sparsity: float | None = None
    pattern: str = ""
    max_macs: float | None = None
    max_size: float | None = None
    max_latency: float | None = None
    max_ram: int | float | str | None = None
    max_flash: int | float | str | None = None
    bypass: tuple[str, ...] = ()
    mode: str = ""
    groups: tuple[str, ...] = ()
    epochs: int = 0
    fold_constants: bool = False
    target: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of the lineage."""

    stage: Name
    hash: Name
    key: Name
    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        needed = {"prune": self.settings.pattern or self.settings.sparsity, "quantize": self.settings.mode}
        if not needed.get(self.stage, True):
            raise ArtifactError(f"config of {self.stage} does not say {'how much' if self.stage == 'prune' else 'its mode'}")

    @cached_property
    def settings(self) -> StepSettings:
        return convert(plain(self.config), StepSettings)


SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of the images of one part, each from 0 to 1; with the epoch (from 1, or the mean of several) and what else is known of it.

    ``mean_average_precision``: where labels do not exclude each other.
    """

    epoch: int | float | UnsetType = UNSET
    train_loss: float | UnsetType = UNSET
    validation_loss: float | UnsetType = UNSET
    accuracy: Share
    balanced_accuracy: Share
    macro_f1: Share
    macro_precision: Share
    mean_average_precision: Share | UnsetType = UNSET
    images_per_second: float | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class OwnScore:
    """A score of the user's own, higher is better: its ``name``, the hash of its ``source``, and its ``value``; of how many ``images``."""

    name: Name
    source: str
    value: float | UnsetType = UNSET
    images: Count | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How many training images calibrated a graph, and the SHA-256 of their pixels."""

    images: Count
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """How a graph was chosen, and for which runtime, or for which ``target`` without timing it: the artifact of the search, how many
    candidates it tried, and the last of them; the rest as ``Choice``."""

    artifact: str
    hash: str
    tried: Count
    verdict: str
    decided: Literal["bound", "point estimate"]
    complete: bool
    best: Tried
    finalists: Annotated[tuple[Tried, ...], Meta(min_length=1)]
    runtime: Literal["c"] | UnsetType = UNSET  # not said of ONNX Runtime
    target: Name | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a network needs as C for a ``target``, before and now: bytes of RAM for its arena, and of flash for its weights."""

    target: Name
    precision: Literal["int8", "float32"]
    ram: tuple[Count, Count]
    flash: tuple[Count, Count]

    def __str__(self) -> str:
        ram, flash = (f"{size(now)} (before {size(before)})" for before, now in (self.ram, self.flash))
        return f"As C for {self.target} in {self.precision}: {ram} of RAM, {flash} of flash for weights; code besides"


@dataclass(frozen=True, kw_only=True)
class Gains:
    """MACs, parameters and latency, in ``runtime``, of a cut network as fractions of its teacher's; ``memory`` where it was a goal."""

    macs: float
    size: float
    latency: Interval
    runtime: Literal["c"] | UnsetType = UNSET  # not said of ONNX Runtime
    memory: Memory | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """A network whose widths are multiples of ``round_to``: its latency as a fraction of the baseline's, and its MACs per image."""

    round_to: Count
    ratio: float
    low: float
    high: float
    macs: Count


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """``round_to``: the multiple to take. ``measured``: one row per multiple that meets the goal. ``doubt``: why it may be another."""

    round_to: Annotated[int, Meta(ge=1)]
    measured: tuple[Rounded, ...] | UnsetType = UNSET
    doubt: Line | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which units of each channel group stay, the rounding that was chosen, and the importance, with the loss of each that was tried."""

    keep: Mapping[str, tuple[Count, ...]]
    rounding: Rounding | None
    importance: Name | UnsetType = UNSET
    importances: Mapping[str, float] | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What was made of a network before any fine-tuning, when its channels were cut or its weights zeroed.

    ``how``: "cut" (as it was), "batch norm" (re-estimated), "least squares" (layer by layer) or "both", and the ``losses`` of each, of
    training images that were not solved on. ``importance``: which channels went, and those that were tried, likewise. ``left``: layers
    that were not solved, and why.
    """

    how: Literal["cut", "batch norm", "least squares", "both"]
    losses: Mapping[str, float]
    importance: Name | UnsetType = UNSET
    importances: Mapping[str, float] | UnsetType = UNSET
    left: Mapping[str, Line]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a network scores before anything is cut; the cross-entropy is in nats."""

    balanced_accuracy: Share
    cross_entropy: float


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A tensor of a graph that a constant of this ``shape`` took the place of; ``varies``: see ``graphs.probe.Steady``."""

    name: Line
    shape: tuple[Count, ...]
    varies: float


@dataclass(frozen=True, kw_only=True)
class Folded:
    """The tensors that were folded away as constants, and why no others: ``left``.

    ``nodes``: of the graph before and after. ``moved``: points of probability that go to another class, on average over training images.
    ``drop``: points of balanced accuracy lost on so many validation ``images``, at most ``bound`` with 95% confidence. ``parity``: of the
    folded graph with the network; that of the graph before stands beside it.
    """

    tensors: tuple[Constant, ...] = ()
    nodes: tuple[Count, Count]
    moved: float = 0.0
    drop: float = 0.0
    bound: float = 0.0
    images: Count = 0
    parity: Parity | UnsetType = UNSET
    left: Line = ""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Scores are those of validation images, but for ``test``.

    ``score``: by a score of the user's own; ``score_lost``: of that, by quantization, and ``units``, its name, are then those of ``drop``
    and of the drops in ``choice`` too. ``one_shot``: before fine-tuning. ``fine_tuned``: of the best epoch. ``points_lost``: of balanced
    accuracy, by quantization. ``teacher`` (its content) to ``features`` (the inputs of the last layer that are left): of channel removal.
    ``widths``: of each group before all steps and now. ``repair``: what made up for them before fine-tuning. ``drop``: beside the teacher,
    where no validation image chose anything. ``folds``, ``mean``, ``spread``: of cross-validation. ``images``, ``baseline``: sensitivity.
    """

    score: OwnScore | UnsetType = UNSET
    score_lost: float | UnsetType = UNSET
    units: Name | UnsetType = UNSET
    one_shot: Scores | UnsetType = UNSET
    validation: Scores | UnsetType = UNSET
    best_epoch: Count | UnsetType = UNSET
    test: Scores | UnsetType = UNSET
    layers: tuple[LayerZeros, ...] | UnsetType = UNSET
    parity: Parity | UnsetType = UNSET
    rewrites: tuple[str, ...] | UnsetType = UNSET
    constants: Folded | UnsetType = UNSET
    quantized: Quantized | UnsetType = UNSET
    stored: Stored | UnsetType = UNSET
    calibration: Calibration | UnsetType = UNSET
    fine_tuned: Scores | UnsetType = UNSET
    points_lost: float | UnsetType = UNSET
    choice: Chosen | UnsetType = UNSET
    teacher: str | UnsetType = UNSET
    gains: Gains | UnsetType = UNSET
    widths: Mapping[str, tuple[Count, Count]] | UnsetType = UNSET
    left_whole: tuple[str, ...] | UnsetType = UNSET
    rounding: Rounding | UnsetType | None = UNSET
    features: Mapping[str, tuple[Count, ...]] | UnsetType = UNSET
    repair: Repair | UnsetType = UNSET
    drop: Drop | UnsetType = UNSET
    folds: Count | UnsetType = UNSET
    mean: Scores | UnsetType = UNSET
    spread: Scores | UnsetType = UNSET
    verdict: str | UnsetType = UNSET
    images: Count | UnsetType = UNSET
    baseline: Baseline | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a network costs, and the zeros in its layers if it was pruned; this goes on to what is made of it."""

    params: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    nonzeros: Count | UnsetType = UNSET
    macs: Count | UnsetType = UNSET
    layers: tuple[LayerZeros, ...] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if len({value is UNSET for value in (self.params, self.nonzeros, self.macs)}) > 1:
            raise ArtifactError("must have params, nonzeros and macs, or none of them")
