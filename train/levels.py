"""How values that are no bytes become pixels: linearly over a range, in 256 steps.

::

    uint8                             as they are
    uint16, grey pictures of 16 bits  0 to 65535 unless a range is said: value / 257, rounded
    floats, all other whole numbers   low to high, which must be said: 255 * (value - low) / (high - low), rounded

What lies outside of the range, by more than half a step, becomes 0 or 255, and is counted. It is done once, when data are read, so that
all that follows takes the same bytes: the cache, the fingerprint, calibration, test vectors, files on a board. Of the network's input an
int8 file keeps no more than 256 steps anyway. Who feeds a file by hand does the same first; its metadata say the range.

Refused with one line: a range that is none, one for bytes, values without one, and values that are no finite numbers.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import TrainError

Range = tuple[float, float]
SIXTEEN_BITS: Range = (0.0, 65535.0)
MOST_CHANNELS = 16


@dataclass(frozen=True)
class Levels:
    """``range``: the values that become 0 and 255; None where it follows from the type of the values, or must be said."""

    range: Range | None = None

    def __post_init__(self) -> None:
        if self.range is not None and not (len(self.range) == 2 and all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]):
            raise TrainError(
                f"range (={_text(self.range)}) must be LOW,HIGH, two finite numbers of which the first is smaller, such as -80,0"
            )

    def told(self, clipped: int) -> str:
        """In words, where a range was said; ``clipped``: how many values lay outside."""
        if self.range is None:
            return ""
        beyond = f", {clipped:,} beyond them clipped" if clipped else ""
        return f", values of {self.range[0]:g} to {self.range[1]:g} in 256 steps{beyond}"

    def of(self, dtype: np.dtype[Any], name: str, pieces: Callable[[], Iterable[NDArray[Any]]]) -> Range | None:
        """The range of values of ``dtype``; None for bytes. ``pieces``: gives the values of ``name``, to say what a range could be."""
        if dtype == np.uint8:
            if self.range is not None:
                raise TrainError(f"{name}: images are uint8, which are taken as they are; leave range (={_text(self.range)}) out")
            return None
        if self.range is not None or (dtype.kind, dtype.itemsize) == ("u", 2):  # in either order of bytes
            return self.range or SIXTEEN_BITS
        low, high = math.inf, -math.inf
        for piece in pieces():
            refuse_odd(piece, name)
            low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        told = f"{name}: images are {dtype.name}, of {low:.6g} to {high:.6g}; say which values become black and white"
        raise TrainError(f"{told}, and stay so for what is read later: --range {_outward(low, high)}")


def as_pixels(values: NDArray[Any], span: Range, name: str) -> tuple[NDArray[np.uint8], int]:
    """Values of any shape as uint8, and how many were clipped; raises TrainError that begins with ``name`` where one is no number."""
    refuse_odd(values, name)
    low, high = span
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    clipped = int(np.count_nonzero((scaled < -0.5) | (scaled > 255.5)))
    return np.rint(scaled).clip(0, 255).astype(np.uint8), clipped


def refuse_odd(values: NDArray[Any], name: str) -> None:
    """Raise TrainError where a value is no finite number."""
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        odd = values[~finite]
        raise TrainError(f"{name} holds {odd.size:,} values that are no finite numbers, such as {odd[0]}; mend them or leave them out")


def _text(span: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in span)


def _outward(low: float, high: float) -> str:
    """A range of at most six digits that holds both."""
    if low == high:
        return f"{math.floor(low)},{math.floor(low) + 1}"
    unit = 10.0 ** (math.floor(math.log10(high - low)) - 2)
    return ",".join(f"{end * unit:.6g}" for end in (math.floor(low / unit), math.ceil(high / unit)))
