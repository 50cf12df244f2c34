"""What the system says of itself while a candidate computes: processor time, stolen time, clock rate, energy, memory.

Read from ``/proc`` and ``/sys`` of Linux. What cannot be read is None, and energy says why; nothing is estimated.

Sources: proc(5), the columns of ``/proc/stat``; the kernel's documentation of powercap for RAPL, and of thermal. RAPL counts the whole
package: what other programs use in the meantime is in it.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from .machine import read_text

POWERCAP = Path("/sys/class/powercap")
PROCESSORS = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of timed calls: how long it took by the clock, and how much of it the timing thread had the processor.

    Args:
        stolen_ms: taken by the host of a virtual machine, over all cores, in steps of a clock tick (10 ms as a rule).
        khz: clock rate of the fastest core at the end. energy_uj: of all processor packages.
        celsius: of the hottest sensor at the end. throttled: whether the kernel slows processors down for their heat.
    """

    wall_ns: int
    thread_ns: int
    stolen_ms: int | None
    khz: int | None
    energy_uj: int | None
    celsius: float | None = None
    throttled: bool | None = None


class Watch:
    """Watches one turn: made when it begins, `stop` gives what happened since."""

    def __init__(self) -> None:
        self._energy, self._stolen = _energy(), _stolen_ticks()
        self._wall, self._thread = time.perf_counter_ns(), time.thread_time_ns()

    def stop(self) -> Turn:
        thread, wall = time.thread_time_ns() - self._thread, time.perf_counter_ns() - self._wall
        stolen, energy = _stolen_ticks(), _energy()
        return Turn(
            wall_ns=wall,
            thread_ns=thread,
            stolen_ms=None if stolen is None or self._stolen is None else (stolen - self._stolen) * 1000 // os.sysconf("SC_CLK_TCK"),
            khz=_khz(),
            energy_uj=_used(self._energy, energy),
            celsius=_celsius(),
            throttled=_throttled(),
        )


def energy_source() -> str:
    """Where the energy comes from, or why there is none: ``"RAPL, packages: 1"``, ``"not available: ..."``."""
    packages = _packages()
    if not packages:
        return "not available: this kernel shows no RAPL counters"
    if _energy() is None:
        return "not available: the RAPL counters can be read by root only"
    return f"RAPL, packages: {len(packages)}"


def peak_memory() -> int | None:
    """Bytes: the most that this process ever held in memory at once, the interpreter and libraries included."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", read_text(Path("/proc/self/status")), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def clock_step() -> int:
    """Nanoseconds: the smallest step that the clock was seen to make, which holds the cost of reading it."""
    clock = time.perf_counter_ns
    steps = []
    for _ in range(50):
        begin = end = clock()
        while end == begin:
            end = clock()
        steps.append(end - begin)
    return min(steps)


def _packages() -> list[Path]:
    """``intel-rapl:0``, ``intel-rapl:1``: whole packages; ``intel-rapl:0:0`` is a part of one and would count twice."""
    return sorted(path for path in POWERCAP.glob("*rapl:*") if re.fullmatch(r"[\w-]+:\d+", path.name))


def _energy() -> dict[Path, int] | None:
    texts = {path: read_text(path / "energy_uj").strip() for path in _packages()}
    return {path: int(text) for path, text in texts.items()} if texts and all(map(str.isdecimal, texts.values())) else None


def _used(before: dict[Path, int] | None, after: dict[Path, int] | None) -> int | None:
    """Microjoules between two readings; a counter that began anew in between has wrapped at its documented range."""
    if not before or not after:
        return None
    used = 0
    for path, end in after.items():
        wrap = int(read_text(path / "max_energy_range_uj").strip() or 0) if end < before[path] else 0
        used += end - before[path] + wrap
    return used


def _stolen_ticks() -> int | None:
    """The eighth column of all cores together."""
    columns = read_text(Path("/proc/stat")).partition("\n")[0].split()
    return int(columns[8]) if len(columns) > 8 and columns[0] == "cpu" else None


def _khz() -> int | None:
    rates = [read_text(path).strip() for path in PROCESSORS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    return max((int(rate) for rate in rates if rate.isdecimal()), default=None)


def _celsius() -> float | None:
    """Sensors tell thousandths of a degree."""
    told = [read_text(path).strip() for path in THERMAL.glob("thermal_zone*/temp")]
    return max((int(one) / 1000 for one in told if one.isdecimal()), default=None)


def _throttled() -> bool | None:
    """Whether a cooling device that is a processor's clock does anything."""
    devices = [path for path in THERMAL.glob("cooling_device*") if re.match("cpufreq|processor", read_text(path / "type").strip().lower())]
    return any(read_text(path / "cur_state").strip() not in ("", "0") for path in devices) if devices else None
