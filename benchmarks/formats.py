"""How numbers are written in the verdict and the report: the same number looks the same everywhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import BenchmarkError
from .results import Measurement, Result
from .statistics import Speedup

MISSING = "–"  # noqa: RUF001 - an en dash, the sign for an empty cell
CHOOSING = (
    "What compress quantize measured before it chose: one image on one thread, in turns with fp32, and how well it does on validation "
    "images, with what is lost at most (95%) where that was looked at. The rows are the last ones, side by side; choice.json has all."
)
ZEROS = "Zeros make the gzipped file smaller. Dense runtimes run no faster for them, and the file on disk is no smaller."


@dataclass(frozen=True)
class Units:
    """What variants are scored by, and how that is written: balanced accuracy, lost in points, or ``score`` of the user's own."""

    score: str = ""

    @property
    def name(self) -> str:
        return self.score or "balanced accuracy"

    @property
    def of(self) -> str:
        """Of what a drop is a number: ``points of balanced accuracy``, ``of iou``."""
        return f"of {self.score}" if self.score else "points of balanced accuracy"

    @property
    def short(self) -> str:
        """The same where it was said before: ``points``, ``of iou``."""
        return f"of {self.score}" if self.score else "points"

    def value(self, score: float | None) -> str:
        """``98.29%``, ``0.8312``."""
        return percent(score) if not self.score or score is None else f"{score:.4g}"

    def drop(self, lost: float) -> str:
        """``0.10``, ``0.0031``."""
        return f"{lost:z.3g}" if self.score else f"{lost:z.2f}"

    def of_one(self, one: Measurement) -> float | None:
        """What a variant scores."""
        return one.score if self.score else one.scores.get("balanced_accuracy")

    def bounds(self, low: float, high: float) -> str:
        """``97.90 to 98.55``, ``0.8205 to 0.8411``."""
        return f"{low:.4g} to {high:.4g}" if self.score else f"{100 * low:.2f} to {100 * high:.2f}"


def units(result: Result) -> Units:
    """Those of a result."""
    return Units(result.scoring.name if result.scoring else "")


def milliseconds(seconds: float | None, unit: bool = True) -> str:
    """Three significant digits: ``1.19 ms``, ``0.0925 ms``, ``113 ms``."""
    if seconds is None:
        return MISSING
    value = seconds * 1e3
    digits = next((digits for limit, digits in ((100, 0), (10, 1), (1, 2), (0.1, 3)) if value >= limit), 4)
    return f"{value:.{digits}f}" + (" ms" if unit else "")


def size(count: float) -> str:
    """Decimal units: ``812 bytes``, ``56.3 kB``, ``1.05 MB``."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            value = count / unit
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
    return f"{count:.0f} bytes"


def bytes_of(value: int | float | str, name: str) -> int:
    """The bytes that `size` writes so, ``45kB`` or ``0.5 MB``, or a plain number of them; `name` is what messages call it."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:([kmg])(i?)b?|b)?", str(value).strip().lower())
    count = round(float(found[1]) * (1024 if found[3] else 1000) ** " kmg".index(found[2] or " ")) if found else 0
    if count <= 0:
        shown = printable(str(value))[:40]
        raise BenchmarkError(f"{name} (={shown}) must be a size above 0, such as 45kB or 0.5MB; a plain number is bytes")
    return count


def bytes_or_missing(value: int | None) -> str:
    """`size`, or the sign for an empty cell."""
    return MISSING if value is None else size(value)


def count(value: object) -> str:
    """``258 thousand`` as ``258,000``; what is no number stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return MISSING if value is None else str(value)
    return f"{value:,.0f}"


def printable(text: str) -> str:
    """Text from a file on one line, whatever it holds."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def percent(fraction: float | None) -> str:
    """``0.98291`` as ``98.29%``."""
    return MISSING if fraction is None else f"{100 * fraction:.2f}%"


def factor(speedup: Speedup) -> tuple[str, str]:
    """``0.87x`` and ``0.84 to 0.90``; a third decimal where two would hide on which side of 1 an end lies."""
    digits = 3 if any(round(bound, 2) == 1 for bound in (speedup.low, speedup.high)) else 2
    return f"{speedup.value:.{digits}f}x", f"{speedup.low:.{digits}f} to {speedup.high:.{digits}f}"


def times(speedup: Speedup) -> str:
    """``0.87x, 95% interval 0.84 to 0.90``."""
    return ", 95% interval ".join(factor(speedup))


def title(measurement: Measurement) -> str:
    """Name and where it ran: ``int8 static (onnxruntime, cpu)``."""
    return f"{measurement.name} ({measurement.runtime}, {measurement.device})"
