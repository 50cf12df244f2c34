"""What quantization says of the files it makes and of those that it tried, as artifacts keep it, and in words.

Loads neither torch nor onnx, so that a board can read it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import CompressError

FASTER = 0.98  # of float32's latency: what int8 has to reach to be worth it
METHODS = ("minmax", "percentile", "entropy", "mse")
TARGET = "quantization.target"  # what the metadata of a file call the processor that it was made for where that was not here


@dataclass(frozen=True, kw_only=True)
class Types:
    """Type of activations; weights are int8, with ``reduce_range`` of 7 bits. ``target``: the processor that was named, if one was."""

    activations: Literal["uint8", "int8"]
    reduce_range: bool
    target: str = ""

    @property
    def notes(self) -> dict[str, str]:
        """What a file says of a processor that it was made for and not timed on."""
        return {TARGET.rpartition(".")[2]: self.target, "latency": f"unknown on {self.target}"} if self.target else {}


def types_for(machine: str, flags: Collection[str]) -> Types:
    """What the 8-bit kernels of a CPU compute fast, and without overflow.

    x86: uint8 activations, as its instructions multiply unsigned by signed, and ONNX Runtime has no fast depthwise kernel for int8
    (measured: 2.6 times slower). With VNNI they add up in 32 bits. Without, or where the flags are unknown, two products are added in 16
    bits, where 2 * 255 * 127 does not fit; weights of 7 bits do (microsoft/onnxruntime#12072). ARM, of 64 bits and of 32: int8 for both,
    which its kernels prefer, added up in 32 bits. What is neither is taken for an old x86. ``machine``: as ``platform.machine()`` says it;
    ``flags``: as /proc/cpuinfo does, none where unknown.
    """
    if machine.lower().startswith(("aarch64", "arm")):
        return Types(activations="int8", reduce_range=False)
    return Types(activations="uint8", reduce_range=not any("vnni" in flag for flag in flags))


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What became int8 and what stayed float: operator type to number of nodes; ``reasons`` says for a type why it stayed, where known."""

    operators: Mapping[str, int]
    left: Mapping[str, int]
    reasons: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What was stored small.

    ``weights``: by name, the signal to quantization noise ratio in dB, 10 log10 of the mean square of the weight over that of its error;
    None where nothing was lost. ``bytes_before``, ``bytes_after``: size of the file, external data included.
    """

    bits: str
    weights: Mapping[str, float | None]
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How static quantization finds its scales.

    ``method``: one of METHODS, see ``calibration``. ``per_channel``: one scale per output channel of a weight, else one per weight; neither
    is always better (microsoft/onnxruntime#11415). ``equalise``, ``correct_bias``: as the modules of these names do.
    """

    method: str = "minmax"
    per_channel: bool = True
    equalise: bool = False
    correct_bias: bool = False

    def __str__(self) -> str:
        extras = [name for name, on in (("equalised", self.equalise), ("bias corrected", self.correct_bias)) if on]
        return ", ".join([self.method, "per channel" if self.per_channel else "per tensor", *extras])


@dataclass(frozen=True, kw_only=True)
class Certified:
    """What images that chose nothing say of a file beside float32: points of balanced accuracy lost as counted, and what bounds them.

    ``tells``: how many images of the kind would bring the bound within the limit; None where none would, or it is within it.
    """

    drop: float
    bound: float
    images: int
    tells: int | None = None


class Ratio(NamedTuple):
    """A latency as a fraction of float32's, with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One candidate: what it is, its latency as a fraction of float32's with a 95% interval, and what is known of its answers.

    ``ratio``, ``low``, ``high``: None where nothing was timed, in no ``rounds``.

    ``groups``: of a static one, those in int8. ``moved``: points of probability that move to another class, on training images without
    their labels; this chose among settings. ``drop``: points of balanced accuracy lost on so many validation ``images``, as counted;
    ``bound``: at most so many, with 95% confidence in the whole search; ``proved``: whether that is within the limit; ``tells``: so many
    images would prove it. ``size``: bytes. None where it was not looked at.
    """

    mode: Literal["float32", "static", "dynamic", "int8-weights", "fp16-weights"]
    groups: tuple[str, ...] = ()
    setting: Setting | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    moved: float | None = None
    drop: float | None = None
    bound: float | None = None
    images: int | None = None
    proved: bool | None = None
    tells: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if len({one is None for one in (self.ratio, self.low, self.high)}) > 1:
            raise CompressError("ratio, low and high must be known together")

    @property
    def timed(self) -> Ratio:
        """Its latency, of one that was timed."""
        assert self.ratio is not None and self.low is not None and self.high is not None, "timed"
        return Ratio(self.ratio, self.low, self.high)

    @property
    def computes_int8(self) -> bool:
        """Whether it is more than weights in fewer bits."""
        return self.mode in ("static", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The winner, the others of the last measurement, everything that was tried before, and why in a few sentences.

    ``decided``: whether it is the bound of its drop that keeps the limit, or only the drop as counted. ``complete``: whether the search
    came to its end, and was not cut short.
    """

    best: Tried
    finalists: tuple[Tried, ...]
    tried: tuple[Tried, ...]
    verdict: str
    decided: Literal["bound", "point estimate"]
    complete: bool


@dataclass(frozen=True)
class Lost:
    """Of what a loss is a number, and how it is written: points of balanced accuracy, or ``score`` of the user's own."""

    score: str = ""

    def told(self, drop: float) -> str:
        """``0.10``, ``0.0031``."""
        return f"{drop:.3g}" if self.score else f"{drop:.2f}"

    @property
    def units(self) -> str:
        """``points``, ``of iou``."""
        return f"of {self.score}" if self.score else "points"


POINTS = Lost()


def described(finalists: Sequence[Tried]) -> list[str]:
    """Each of the finalists in words: ``fp32``, ``int8 weights``, ``static int8 of last layer; minmax, per channel``.

    One of them has int8 everywhere, as ``search`` sees to.
    """
    everywhere = max(len(one.groups) for one in finalists)
    told = []
    for one in finalists:
        if one.mode == "static":
            where = "everywhere" if len(one.groups) == everywhere else f"of {listed(one.groups)}"
            told.append(f"static int8 {where}; {one.setting or Setting()}")
        else:
            told.append({"float32": "fp32", "dynamic": "dynamic int8"}.get(one.mode, one.mode.replace("-", " ")))
    return told


def what(one: Tried) -> str:
    """``first layer, last layer in int8 (minmax, per channel)``, ``dynamic quantization``, ``weights stored as int8``."""
    if one.mode == "static":
        return f"{listed(one.groups)} in int8 ({one.setting or Setting()})"
    return {"float32": "float32", "dynamic": "dynamic quantization"}.get(one.mode, f"weights stored as {one.mode.removesuffix('-weights')}")


def listed(names: Sequence[str]) -> str:
    """At most four names, or three and how many more."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more groups"


def verdict_on(
    winner: Tried, waiting: Tried | None, finalists: Sequence[Tried], ends: Sequence[Tried], max_drop: float, units: Lost = POINTS
) -> str:
    """What to do and why, in a few sentences.

    Args:
        winner: what is taken. waiting: what was wanted more, but keeps ``max_drop`` (in ``units``) only as counted.
        finalists: float32 first. ends: the fastest sets of groups, int8 everywhere among them, the fastest first.
    """
    size = (winner.size or 0) / (finalists[0].size or 1)
    own = f"{winner.timed.value:.2f}x of float32's latency, {_lost(winner, units)}, {size:.2f}x of its size"
    waits = f" {_capital(what(waiting))} is {_doubt(waiting, max_drop, units)}; --accept-unproved takes it." if waiting else ""
    accepted = "" if winner.proved else f" It is {_doubt(winner, max_drop, units)}; that was accepted."
    if winner.computes_int8:
        told = f"Compute {what(winner)}" if winner.mode == "static" else "Quantize dynamically"
        return f"{told}: {own}.{accepted}{waits}"
    store = f"Store the weights as {winner.mode.removesuffix('-weights')} and compute in float32: {own}."
    keep = "Keep the float32 file." if winner.mode == "float32" else store
    if waiting is not None and waiting.computes_int8:
        faster = f"{what(waiting)} takes {waiting.timed.value:.2f}x of float32's latency, but is {_doubt(waiting, max_drop, units)}"
        return f"Nothing in int8 is proved: {faster}. {keep}{accepted} --accept-unproved computes it in int8."
    return f"Do not compute in int8 on this machine: {_why_not(finalists, ends, max_drop, units)}. {keep}{accepted}{waits}"


def verdict_untimed(winner: Tried, waiting: Tried | None, finalists: Sequence[Tried], max_drop: float, units: Lost, target: str) -> str:
    """As :func:`verdict_on`, for a ``target`` on which nothing was timed."""
    size = (winner.size or 0) / (finalists[0].size or 1)
    told = {"static": f"compute {what(winner)}", "dynamic": "quantize dynamically", "float32": "keep the float32 file"}
    how = told.get(winner.mode, f"store the weights as {winner.mode.removesuffix('-weights')} and compute in float32")
    accepted = "" if winner.proved else f" It is {_doubt(winner, max_drop, units)}; that was accepted."
    waits = f" {_capital(what(waiting))} is {_doubt(waiting, max_drop, units)}; --accept-unproved takes it." if waiting else ""
    slower = ", and int8 is slower than float32 on some processors" if winner.computes_int8 else ""
    return (
        f"For {target}: {how}: {_lost(winner, units)}, {size:.2f}x of float32's size.{accepted}{waits} "
        f"Latency is unknown on {target}{slower}: this was chosen by size and accuracy alone, so measure it there."
    )


def _lost(one: Tried, units: Lost) -> str:
    drop, bound = one.drop or 0.0, one.bound or 0.0
    return f"{units.told(drop)} {units.units} lost" + (
        f" (at most {units.told(bound)} with 95% confidence)" if one.proved and one.mode != "float32" else ""
    )


def _doubt(one: Tried, max_drop: float, units: Lost) -> str:
    """``not proved within 0.3 points with 1,000 images: 0.10 lost as counted, at most 0.55 with 95% ...; about 4,000 would tell``."""
    tells = f"; about {one.tells:,} would tell" if one.tells else ""
    counted = f"{units.told(one.drop or 0.0)} lost as counted, at most {units.told(one.bound or 0.0)} with 95% confidence"
    return f"not proved within {max_drop:.4g} {units.units} with {one.images:,} images: {counted}{tells}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _why_not(finalists: Sequence[Tried], ends: Sequence[Tried], max_drop: float, units: Lost) -> str:
    fast = [one for one in finalists if one.mode == "static" and one.drop is not None and one.drop > max_drop]
    if fast:
        least = min(fast, key=lambda one: one.drop or 0.0)
        lost = f"{units.told(least.drop or 0.0)} {units.units}"
        return (
            f"what is faster ({listed(least.groups)}, {least.timed.value:.2f}x) loses {lost}, and {max_drop:.4g} are "
            f"allowed{'' if units.score else '; fine-tuning may bring them back (--epochs)'}"
        )
    everything = max(ends, key=lambda one: len(one.groups))
    if not ends[0].groups or ends[0] is everything:
        return f"int8 everywhere takes {everything.timed.value:.2f}x of float32's latency, and no set of nodes is faster than float32"
    best = next((one for one in finalists if one.mode == "static" and one.groups == ends[0].groups), ends[0])  # as measured last
    return (
        f"int8 everywhere takes {everything.timed.value:.2f}x of float32's latency, and the best set of nodes ({listed(best.groups)}) "
        f"{best.timed.value:.3f}x; at most {FASTER:g}x it would be worth it"
    )
