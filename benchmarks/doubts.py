"""What makes a latency doubtful, found in its own samples and in what the system said while they were taken. Refuses nothing.

A doubt takes nothing back: the number stays, and the sentence stands beside it. Each has a threshold under which it would be noise itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from .gauges import Turn
from .statistics import over_launches

DRIFT = 0.02  # of the last round against the first of the same launch
LAUNCHES_APART = 0.10  # of the slowest launch against the fastest
STOLEN, STOLEN_MS, WAITED = 0.01, 30, 0.05  # of the time that the turns took; the kernel counts stolen time in steps of 10 ms or so
FREQUENCY = 0.05  # of the highest clock rate against the lowest
RESOLUTION = 0.01  # of the median latency
# What to do about a doubt, by words that are in it, the first that fits; and about any other.
CURES = (
    ("emulated", "measure on a real one"),
    ("stolen time", "measure again when the host has time, or on a machine of its own"),
    ("for its heat", "let it cool, or cool it, and measure again"),
    ("clock rate", "fix the clock rate (`cpupower frequency-set -g performance`) and measure again"),
    ("the clock's steps", "measure again with more images per call (batch in [benchmark])"),
)
EMULATED = "emulated: another processor imitates this one, and its time says nothing of a real one"
CURE = "measure again with nothing else running"
SEPARATION, SHARE, STEP = 4.0, 0.10, 0.05  # of two heaps of samples, see `heaps`


def doubts(
    samples: np.ndarray, turns: Sequence[Turn], *, unsteady: int, resolution_ns: int, alone: bool, emulated: bool = False
) -> tuple[str, ...]:
    """All doubts, as ends of the sentence "the number is doubtful: ...".

    Args:
        samples: int64 nanoseconds ``(launches, rounds, samples)``. turns: what the system said during each round.
        unsteady: launches whose warm-up never became steady. resolution_ns: the smallest step of the clock.
        alone: whether all work is done by the thread that the turns watched (one thread, on the CPU).
        emulated: whether another processor imitates the one that it is for.
    """
    imitated = [EMULATED] if emulated else []
    return (*imitated, *_found(samples, turns, unsteady, resolution_ns, alone))


def _found(samples: np.ndarray, turns: Sequence[Turn], unsteady: int, resolution_ns: int, alone: bool) -> Iterator[str]:
    launches, middle = np.median(samples, axis=(1, 2)), float(np.median(samples))
    if unsteady:
        yield f"never became steady in {unsteady} of {len(samples)} warm-ups"
    drift = over_launches((np.median(samples[:, -1], axis=1) / np.median(samples[:, 0], axis=1)).tolist())
    if drift and abs(math.log(drift.value)) > math.log1p(DRIFT) and not drift.low <= 1 <= drift.high:
        yield f"drifts: the last round of a launch took {drift.value:.2f}x the first, 95% interval {drift.low:.2f} to {drift.high:.2f}"
    if launches.max() > (1 + LAUNCHES_APART) * launches.min():
        yield f"the launches lie {100 * (launches.max() / launches.min() - 1):.0f}% apart"
    if found := heaps(samples):
        yield f"two heaps of samples: {100 * found[0]:.0f}% of them took {found[1]:.2f}x the others' time"
    wall = sum(turn.wall_ns for turn in turns)
    stolen = sum(turn.stolen_ms or 0 for turn in turns)
    if stolen >= STOLEN_MS and stolen * 1e6 > STOLEN * wall:
        yield f"the host took {stolen * 1e8 / wall:.0f}% of the processor time away (stolen time)"
    waited = 1 - sum(turn.thread_ns for turn in turns) / wall if wall else 0.0
    if alone and waited > WAITED:
        yield f"had to wait for the processor {100 * waited:.0f}% of the time, other programs were running"
    rates = [turn.khz for turn in turns if turn.khz]
    if rates and max(rates) > (1 + FREQUENCY) * min(rates):
        yield f"the clock rate changed between {min(rates) / 1e6:.2f} and {max(rates) / 1e6:.2f} GHz"
    if hot := [turn for turn in turns if turn.throttled]:
        degrees = max((turn.celsius or 0 for turn in hot), default=0)
        at = f", at {degrees:.0f} °C" if degrees else ""
        yield f"the processor was slowed down for its heat in {len(hot)} of {len(turns)} turns{at}"
    if resolution_ns > RESOLUTION * middle:
        yield f"the clock's steps of {resolution_ns} ns are {100 * resolution_ns / middle:.0f}% of a call"


def cure(doubts: Sequence[str]) -> str:
    """What to do so that these doubts do not arise again."""
    told = next((what for words, what in CURES if any(words in doubt for doubt in doubts)), CURE)
    return f"{told}: `compress benchmark --force`"


def heaps(samples: np.ndarray) -> tuple[float, float] | None:
    """Whether the samples lie in two heaps: the share in the slower one, and how many times the time of the faster it takes; else None.

    Half of the samples around 1.0 ms and half around 1.3 ms, each within 1%, give ``(0.5, 1.3)``. Every launch is first divided by its
    median, as launches differ by themselves. The cut is the one with the least variance within the two parts (Otsu). A single heap cut
    like that lies about 2.6 of its parts' standard deviations apart (a normal one) or 3.5 (a flat one), hence a threshold of 4.
    """
    logs = np.sort(np.log(samples / np.median(samples, axis=(1, 2), keepdims=True)).ravel())
    logs = logs[: max(2, round(0.98 * len(logs)))]  # the slowest 2% are interruptions, not a heap
    left = np.arange(1, len(logs))
    right, sums = len(logs) - left, np.cumsum(logs)[:-1]
    squares, total = np.cumsum(logs**2)[:-1], float((logs**2).sum())
    low, high = sums / left, (logs.sum() - sums) / right
    within = squares - left * low**2 + (total - squares) - right * high**2
    cut = int(np.argmin(within))
    apart, spread = float(high[cut] - low[cut]), math.sqrt(max(0.0, float(within[cut])) / len(logs))
    share = float(right[cut]) / len(logs)
    if SHARE <= share <= 1 - SHARE and apart > math.log1p(STEP) and apart > SEPARATION * spread:
        return share, math.exp(apart)
    return None
