"""Compares two results of the same machine, measured at different times: for CI, which must fail only when the interval says so.

The two come from different runs, so their launches are not paired. The interval of a speedup is Welch's, on the logarithms of the launches'
medians, two variances and all. It cannot know what else changed on the machine between the runs: in 36 pairs of neighbouring runs of the
same file it held the truth 31 times, not 34, and of a slower one 24 times: launches of one run agree more than runs do. None called the
same file slower by more than 5%. One benchmark of both files is sharper.

For accuracy the images are the same both times, so those that are lost and gained decide (see `drops`): of 14,100 images 200 lost and 60
gained are 0.77 to 1.23 points. A result that keeps no answers, of a version before this one, leaves two intervals to put together as if the
images were others: 0.35 to 1.62 points, and a loss that a limit should find may pass.

Refused: results of unlike machines, data, threads or batch, a candidate that was measured before and is not now, limits below zero.

Source: Welch, "The generalization of Student's problem", Biometrika 34 (1947).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .drops import Loss, loss
from .errors import BenchmarkError
from .formats import Units, factor, milliseconds, title, units
from .paired import Drop
from .results import Measurement, Result
from .statistics import Speedup, t_quantile

SAME_MACHINE = ("cpu", "architecture", "flags", "cores", "governor", "gpu")
SAME_SETTINGS = ("threads", "batch")
SAME_DATA = ("fingerprint", "part", "images")
UNPAIRED = (
    "Intervals are unpaired: two runs at different times, Welch's t over their launches. They know nothing of what else changed on the "
    "machine in between; `compress benchmark OLD.onnx NEW.onnx` measures both side by side and is sharper."
)


UNPAIRED_SCORES = "Balanced accuracy by two intervals as if the images were others, which is too wide: {} kept no answers; measure again."


@dataclass(frozen=True, kw_only=True)
class Change:
    """One candidate, then and now.

    Args:
        speedup: old latency / new latency; under 1 it became slower. drop: points of balanced accuracy lost, with a 95% interval, or of
            the user's own ``score``, which then stands in place of balanced accuracy; ``units``: which of the two.
        paired: whether the drop is counted image by image.
        too_slow, too_inaccurate: the whole interval lies beyond the limit.
    """

    name: str
    p50: tuple[float, float]
    balanced_accuracy: tuple[float, float] | None
    score: tuple[float, float] | None
    units: str
    speedup: Speedup
    drop: Drop
    paired: bool
    too_slow: bool
    too_inaccurate: bool


@dataclass(frozen=True, kw_only=True)
class Changes:
    """All candidates that were measured both times, and what a reader should know besides."""

    changes: tuple[Change, ...]
    remarks: tuple[str, ...]

    @property
    def fails(self) -> bool:
        return any(one.too_slow or one.too_inaccurate for one in self.changes)


def compare(old: Result, new: Result, *, slower: float | None = None, less_accurate: float | None = None) -> Changes:
    """Compare every candidate of the same name, runtime and device.

    Args:
        slower: percent by which a latency may grow; None for no limit. 5 fails only if the whole interval lies above 1.05x the old latency.
        less_accurate: points of balanced accuracy, or of the user's own score, that may be lost; None for no limit.

    Raises:
        BenchmarkError: as the module says.
    """
    for name, limit in {"slower": slower, "less accurate": less_accurate}.items():
        if limit is not None and not 0 <= limit < math.inf:
            raise BenchmarkError(f"fail if {name} (={limit:g}) must be 0 or more; 0 fails at whatever the interval is sure of")
    _check_alike(old, new)
    before, after = ({title(one): one for one in result.measurements} for result in (old, new))
    changes, remarks = [], [UNPAIRED]
    lacking = [f"the {when} result" for when, one in (("old", old), ("new", new)) if one.labels is None and one.scoring is None]
    remarks += [UNPAIRED_SCORES.format(" and ".join(lacking))] if lacking else []
    for name, was in before.items():
        if was.reason is not None:
            remarks.append(f"{name}: was not measured before: {was.reason}")
            continue
        if name not in after:
            raise BenchmarkError(f"candidate (={name}) of the old result is missing in the new one; measure it again, under the same name")
        now = after[name]
        if now.reason is not None:
            raise BenchmarkError(f"candidate (={name}) was measured before and is not now: {now.reason}; mend it, and measure it again")
        changes.append(_change(was, now, loss(old, was, new, now), units(old), slower, less_accurate))
        remarks += [f"{name}, {when}: {doubt}" for when, one in (("old", was), ("new", now)) for doubt in one.doubts]
    remarks += [f"{name}: new, nothing to compare it with" for name in after.keys() - before.keys()]
    if not changes:
        raise BenchmarkError("old result (=nothing measured) has no candidate to compare with; run `compress benchmark` again")
    was_installed, is_installed = (result.machine.get("libraries", {}) for result in (old, new))
    names = sorted(was_installed.keys() | is_installed.keys())
    remarks += [f"libraries differ: {difference}" for difference in _differences(was_installed, is_installed, names)]
    return Changes(changes=tuple(changes), remarks=tuple(remarks))


def unpaired_speedup(old: np.ndarray, new: np.ndarray) -> Speedup:
    """Old latency / new latency of samples int64 nanoseconds ``(launches, rounds, samples)`` that were not taken side by side.

    Medians of two launches each, 1 and 1 ms, then 2 and 2 ms: 0.5x, with an interval of no width.
    """
    logs = [np.log(np.median(one, axis=(1, 2))) for one in (old, new)]
    shares = [float(one.var(ddof=1)) / len(one) for one in logs]
    value = float(logs[0].mean() - logs[1].mean())
    margin = 0.0
    if sum(shares) > 0:
        freedom = sum(shares) ** 2 / sum(share**2 / (len(one) - 1) for share, one in zip(shares, logs, strict=True))
        # The next lower whole number of degrees of freedom: a little too wide.
        margin = t_quantile(max(1, int(freedom + 1e-9))) * math.sqrt(sum(shares))
    return Speedup(value=math.exp(value), low=math.exp(value - margin), high=math.exp(value + margin))


def rows(found: Changes) -> list[dict[str, str]]:
    """The table: one row per candidate."""
    return [_row(one) for one in found.changes]


def _row(one: Change) -> dict[str, str]:
    told = Units(one.units if one.score else "")
    before, after = one.score or one.balanced_accuracy or (None, None)
    lost, *ends = map(told.drop, (one.drop.value, one.drop.low, one.drop.high))
    return {
        "candidate": one.name,
        "p50 old": milliseconds(one.p50[0]),
        "p50 new": milliseconds(one.p50[1]),
        "speedup (95%)": "{} ({})".format(*factor(one.speedup)),
        f"{told.score or 'balanced acc.'} old": told.value(before),
        "new": told.value(after),
        f"{told.score or 'points'} lost (95%)": f"{lost} ({' to '.join(ends)})",
        "verdict": _words(one),
    }


def _words(one: Change) -> str:
    found = ["too slow"] * one.too_slow + ["too inaccurate"] * one.too_inaccurate
    if not found:
        found = ["faster"] if one.speedup.low > 1 else ["slower"] if one.speedup.high < 1 else ["no clear change"]
    return ", ".join(found)


def _change(was: Measurement, now: Measurement, found: Loss, told: Units, slower: float | None, less_accurate: float | None) -> Change:
    assert was.latency is not None and now.latency is not None, "what has no reason has a latency"
    for one in (was, now):
        if len(one.samples_ns) < 2 or not all(launch and all(launch) for launch in one.samples_ns):
            raise BenchmarkError(
                f"samples (of {title(one)}) must be of at least 2 launches for an interval; run `compress benchmark` again"
            )
        if not (found.paired or told.score) and "balanced_accuracy" not in one.intervals:
            raise BenchmarkError(f"balanced_accuracy (of {title(one)}) has no interval to compare by; run `compress benchmark` again")
    speedup = unpaired_speedup(*(np.array(one.samples_ns, np.int64) for one in (was, now)))
    return Change(
        name=title(was),
        p50=(was.latency.p50, now.latency.p50),
        balanced_accuracy=None if told.score else (was.scores["balanced_accuracy"], now.scores["balanced_accuracy"]),
        score=(was.score or 0.0, now.score or 0.0) if told.score else None,
        units=told.score or told.of,
        speedup=speedup,
        drop=found.drop,
        paired=found.paired,
        too_slow=slower is not None and speedup.high < 1 / (1 + slower / 100),
        too_inaccurate=less_accurate is not None and found.drop.low > less_accurate,
    )


def _check_alike(old: Result, new: Result) -> None:
    for what, one, other, names, advice in (
        ("machines", old.machine, new.machine, SAME_MACHINE, "measure both results on one machine"),
        ("settings", old.settings, new.settings, SAME_SETTINGS, "measure both with the same ones"),
        ("data", old.data, new.data, SAME_DATA, "measure both on the same test images"),
        ("scores", _scoring(old), _scoring(new), ("score", "source", "mean"), "score both by the same function"),
    ):
        if differences := _differences(one, other, names):
            raise BenchmarkError(f"{what} of the two results differ: {'; '.join(differences)}; {advice}")
    if None not in (old.labels, new.labels) and old.labels != new.labels:
        raise BenchmarkError("labels of the two results differ although their data have one name; measure both on the same test images")


def _scoring(result: Result) -> dict[str, Any]:
    found = result.scoring
    return {"score": "balanced accuracy"} if found is None else {"score": found.name, "source": found.source[:12], "mean": found.by_image}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], names: tuple[str, ...] | list[str]) -> list[str]:
    """``cpu was A, is B``; of lists, what only one of them has."""
    found = []
    for name in names:
        was, now = old.get(name), new.get(name)
        if isinstance(was, list) and isinstance(now, list):
            gone, come = sorted(set(was) - set(now)), sorted(set(now) - set(was))
            found += [f"{name} lost {' '.join(gone) or 'none'}, gained {' '.join(come) or 'none'}"] if gone or come else []
        elif was != now:
            found.append(f"{name} was {_said(was)}, is {_said(now)}")
    return found


def _said(fact: Any) -> str:
    return "not known" if fact is None else str(fact)
