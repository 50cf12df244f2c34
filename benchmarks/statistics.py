"""Percentiles and intervals of latencies; refuses to give a percentile that the samples cannot carry.

The unit of evidence is the launch, not the sample and not the round: a process keeps for its life a memory layout that makes the same file
about 0.5% faster or slower, so rounds of one process agree with each other more than with the truth. Measured here on a file against
itself, 40 to 80 times each: a bootstrap over the rounds of one launch called it different in 12 to 48% of the trials, a bootstrap over
five launches in 17%, Student's t over five launches in 5%. Hence Student's t, on logarithms because speedups multiply.

Every interval here is `over_launches`: the mean of the logarithms and Student's t around it. A median with the margin of the mean is no
interval of anything: around it, 93.9, 91.8 and 90.0% of lognormal samples of 5, 12 and 30 held the truth. A test simulates it.

Sources: MLPerf LoadGen for the sample counts; Georges et al., "Statistically rigorous Java performance evaluation" (2007) for
intervals over launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

# The 97.5% quantile of Student's t for 1, 2, ... 29 degrees of freedom; here so that a board needs no scipy.
T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
MOST_LAUNCHES = len(T_QUANTILES) + 1
NORMAL = 1.959964  # the same of the normal distribution
LEAST_SAMPLES = {90: 64, 99: 662}
# Rules for what is read from files: a figure that is divided by or put on a logarithmic scale, a bound of one, a fraction, a number of.
Positive = Annotated[float, Meta(gt=0, le=1e15)]
Bound = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds per call. `p50`: the median of a launch, which `low` and `high` bound with 95% confidence; a percentile of all samples is
    None where they are too few."""

    p50: Positive
    low: Bound
    high: Bound
    p90: Positive | None
    p99: Positive | None
    samples: Count


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Baseline latency / candidate latency; above 1 is faster. `low` and `high` bound it with 95% confidence."""

    value: Positive
    low: Bound
    high: Bound


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure taken once per launch: the mean on the scale of ratios, and bounds that hold the true one with 95% confidence."""

    value: Positive
    low: Bound
    high: Bound


def over_launches(values: Sequence[float] | np.ndarray) -> Interval | None:
    """Summarise positive values, one per launch or round, in whatever unit they have; None for fewer than two, which bound nothing.

    1 and 2 give 1.41 (the mean of their logarithms, around which the interval is even), between 0.017 and 116.
    """
    if len(values) < 2:
        return None
    logs = np.log(np.asarray(values, float))
    middle, margin = float(logs.mean()), t_quantile(len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return Interval(value=math.exp(middle), low=math.exp(middle - margin), high=math.exp(middle + margin))


def t_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t for so many degrees of freedom, to three decimals.

    Beyond the table by Fisher's expansion around the normal one (Abramowitz and Stegun 26.7.5), which is exact to 0.0001 there.
    """
    if freedom <= len(T_QUANTILES):
        return T_QUANTILES[freedom - 1]
    z = NORMAL
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def latency(nanoseconds: np.ndarray) -> Latency:
    """Summarise one candidate's samples, int64 nanoseconds ``(launches, rounds, samples)`` of at least two launches."""
    seconds = nanoseconds / 1e9
    found = over_launches(np.median(seconds, axis=(1, 2)))
    assert found is not None, "a benchmark has two launches"
    return Latency(
        p50=found.value, low=found.low, high=found.high,
        p90=percentile(seconds, 90), p99=percentile(seconds, 99), samples=seconds.size,
    )  # fmt: skip


def speedup(baseline: np.ndarray, candidate: np.ndarray) -> Speedup:
    """Compare two candidates whose samples, int64 nanoseconds ``(launches, rounds, samples)``, were taken side by side.

    Each round gives one ratio of medians, each launch the median of its rounds' ratios (a disturbed round then costs nothing), and the
    launches give mean and interval.
    """
    ratios = np.log(np.median(baseline, axis=2) / np.median(candidate, axis=2))
    found = over_launches(np.exp(np.median(ratios, axis=1)))
    assert found is not None, "a benchmark has two launches"
    return Speedup(value=found.value, low=found.low, high=found.high)


def percentile(samples: np.ndarray, rank: int) -> float | None:
    """The `rank`-th percentile (90 or 99), or None where there are fewer samples than `LEAST_SAMPLES` asks for."""
    return float(np.percentile(samples, rank)) if samples.size >= LEAST_SAMPLES[rank] else None
