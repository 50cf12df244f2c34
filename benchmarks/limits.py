"""What a variant must keep to be recommended, and which of it a file breaks; the drop of its accuracy apart, see `verdict`.

RAM and flash are those of the file as C for a processor, which only a caller can plan that writes C: so they are handed in.

Refused: limits that make no sense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from .errors import BenchmarkError
from .formats import bytes_of, milliseconds, size
from .results import Measurement, Result

USUAL_DROP = 0.5  # points, or percent of a score of the user's own


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a variant must keep.

    Args:
        max_drop: points of balanced accuracy that may be lost, 0.5 if none is given; by a score of the user's own so much of that, or
            half a percent of what the baseline has. accept_unproved: whether it is enough that no more are lost as counted.
        max_latency: largest p50 in milliseconds. max_size: largest file in bytes.
        max_ram, max_flash: most bytes, such as 45kB, of arena and of weights as C for ``target``, see ``compress export-c``.
    """

    max_drop: Annotated[float, Meta(ge=0, description="points, 0.5 allows 97.0% to become 96.5%")] | None = None
    accept_unproved: bool = False
    max_latency: Annotated[float, Meta(gt=0, description="milliseconds, leave it out for no limit")] | None = None
    max_size: Annotated[int, Meta(gt=0, description="bytes, leave it out for no limit")] | None = None
    max_ram: int | float | str | None = None
    max_flash: int | float | str | None = None
    target: str = "native"

    def __post_init__(self) -> None:
        _ = self.memory  # refuses what is no size

    @property
    def memory(self) -> dict[str, int]:
        """Those in bytes of a board, the ones that are given."""
        given = {"max_ram": self.max_ram, "max_flash": self.max_flash}
        return {name: bytes_of(value, name) for name, value in given.items() if value is not None}

    def drop_of(self, result: Result) -> float:
        """`max_drop`, or what stands for it in a result; raises BenchmarkError where more points are given than there are."""
        if self.max_drop is not None:
            if result.scoring is None and self.max_drop > 100:
                raise BenchmarkError(f"max_drop (={self.max_drop}) must lie in [0, 100]; points, 0.5 allows 97.0% to become 96.5%")
            return self.max_drop
        baseline = result.measurements[result.baseline]
        return USUAL_DROP if result.scoring is None else USUAL_DROP / 100 * abs(baseline.score or 0.0)

    def told(self) -> list[str]:
        """All but the drop, in words."""
        told = [f"at most {self.max_latency:g} ms"] if self.max_latency is not None else []
        told += [f"at most {size(self.max_size)}"] if self.max_size is not None else []
        words = {"max_ram": "of RAM", "max_flash": "of flash for weights"}
        return told + [f"at most {size(most)} {words[name]} as C for {self.target}" for name, most in self.memory.items()]


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that a file takes as C: RAM for its arena, flash for its weights."""

    ram: int
    flash: int


@dataclass(frozen=True, kw_only=True)
class Excess:
    """By which factor a file is beyond a limit, at most 1 where it is within, and what to say then, as the end of "it ..."."""

    factor: float
    told: str


def measure_against(limits: Limits, one: Measurement, needs: Needs | str | None = None) -> list[Excess]:
    """How a measured file stands to each limit but the drop; ``needs``: what it takes as C, or why it cannot be."""
    assert one.latency is not None, "it was measured"
    found = []
    if limits.max_latency is not None:
        told = f"takes {milliseconds(one.latency.p50)}, {limits.max_latency:g} ms are allowed"
        found.append(Excess(factor=one.latency.p50 * 1e3 / limits.max_latency, told=told))
    if limits.max_size is not None:
        found.append(
            Excess(factor=one.size_bytes / limits.max_size, told=f"takes {size(one.size_bytes)}, {size(limits.max_size)} are allowed")
        )
    memory = limits.memory
    if memory and not isinstance(needs, Needs):
        return [*found, Excess(factor=float("inf"), told=f"cannot be C for {limits.target} ({needs or 'it was not tried'})")]
    for name, most in memory.items():
        assert isinstance(needs, Needs)
        takes, what = (needs.ram, "RAM") if name == "max_ram" else (needs.flash, "flash")
        told = f"takes {size(takes)} of {what} as C for {limits.target}, {size(most)} are allowed"
        found.append(Excess(factor=takes / most, told=told))
    return found
