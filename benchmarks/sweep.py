"""Batch sizes and numbers of threads beside those of the main comparison: which points are taken, and what came out of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .machine import usable_cores
from .runtimes import Candidate
from .statistics import Count, Interval, over_launches

BATCHES = (1, 8, 64)
POINT_SECONDS, LONG_CALL_SECONDS, MOST_CALLS, LEAST_CALLS = 0.05, 0.3, 50, 3

Point = tuple[int, int]  # batch, threads


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One point: seconds per call with so many images on so many CPU threads; raw nanoseconds by launch and call."""

    batch: Count
    threads: Count
    latency: Interval
    samples_ns: tuple[tuple[int, ...], ...]

    @property
    def images_per_second(self) -> float:
        return self.batch / self.latency.value


def points_of(candidate: Candidate, threads: int) -> list[Point]:
    """All batch sizes on `threads` threads, then the least and the largest batch on all cores.

    The second only where threads change anything: not on a GPU, in C, or for torch.compile, whose code is compiled anew for each number.
    """
    cores = usable_cores()
    points = [(batch, threads) for batch in BATCHES]
    if candidate.device == "cpu" and candidate.runtime not in ("c", "torch.compile"):
        points += [(batch, count) for count in sorted({1, cores} - {threads}) for batch in (BATCHES[0], BATCHES[-1])]
    return points


def calls_within(nanoseconds: int) -> int:
    """How many calls to time after one that took so long: few where a call takes long, none where it takes very long."""
    if nanoseconds > LONG_CALL_SECONDS * 1e9:
        return 0
    return int(np.clip(POINT_SECONDS * 1e9 / max(1, nanoseconds), LEAST_CALLS, MOST_CALLS))


def summarise(points: Sequence[Point], launches: Sequence[Sequence[np.ndarray]]) -> tuple[Sweep, ...]:
    """The points with what each launch found, int64 nanoseconds ``(calls,)``; those found in fewer than two launches are left out."""
    sweeps = []
    for index, (batch, threads) in enumerate(points):
        samples = [found[index] for found in launches]
        interval = over_launches([float(np.median(calls)) / 1e9 for calls in samples])
        if interval:
            kept = tuple(tuple(calls.tolist()) for calls in samples)
            sweeps.append(Sweep(batch=batch, threads=threads, latency=interval, samples_ns=kept))
    return tuple(sweeps)
