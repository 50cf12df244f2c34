"""What quantization says of the files it makes and of those that it tried, as artifacts keep it, and in words.

Loads neither torch nor onnx, so that a board can read it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

METHODS = ("minmax", "percentile", "entropy", "mse")


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


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One candidate: what it is, its latency as a fraction of float32's with a 95% interval, and what is known of its answers.

    ``groups``: of a static one, those in int8. ``moved``: points of probability that move to another class, on training images without
    their labels; this chose among settings. ``drop``: points of balanced accuracy lost on so many validation ``images``, as counted;
    ``bound``: at most so many, with 95% confidence in the whole search; ``proved``: whether that is within the limit; ``tells``: so many
    images would prove it. None where it was not looked at. ``size``: bytes.
    """

    mode: Literal["float32", "static", "dynamic", "int8-weights", "fp16-weights"]
    groups: tuple[str, ...] = ()
    setting: Setting | None = None
    ratio: float
    low: float
    high: float
    rounds: int
    moved: float | None = None
    drop: float | None = None
    bound: float | None = None
    images: int | None = None
    proved: bool | None = None
    tells: int | None = None
    size: int

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
