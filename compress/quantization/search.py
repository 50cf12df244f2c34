"""Which nodes of a network to compute in int8, and how, by measurement: the fastest file within a given loss of accuracy wins.

Int8 everywhere is the wrong default: a depthwise convolution or an attention gate may pay more for its conversions than it gains
(microsoft/onnxruntime#20052, #17389). So the nodes are taken in groups (``node_groups``), and the search goes in three parts:

1. *Speed.* From two starts (nothing in int8; the fastest of "everything from this group on") the search adds or takes out one group at
   a time, or all that gained alone, as long as the measured latency falls. A step is taken only if a second, longer
   measurement confirms it, as the best of twenty noisy figures looks better than it is. Where an interval does not say whether int8 is
   worth it, more rounds are taken.
2. *Accuracy.* For the fastest set the methods of calibration are tried, then one scale per tensor, equalisation and bias correction, each
   kept only if it helps. If the best loses too much, the next set is tried.
3. *Verdict.* What is left is measured once more in turns with float32, dynamic quantization, and weights that are only stored in fewer
   bits. The fastest within the limit wins; of those that cannot be told apart the smallest. "Do not quantize" is an answer.

Everything that was tried stands in the table. What is measured and how is handed in, so nothing here knows of data or runtimes.

Source: the search is coordinate descent; statistics as in ``latency``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Groups = frozenset[str]
Times = Callable[[Sequence[Path], int], NDArray[np.float64]]  # files, rounds -> seconds per call (rounds, files), taken in turns
Progress = Callable[[str], None]


class Between(Protocol):
    """A figure with its 95% interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


Summary = Callable[[NDArray[np.float64]], Between | None]  # of one ratio per round; None for fewer than two
QUICK, SURE, CLOSE = 3, 12, 48  # rounds to look with, to decide with, and where the interval does not say on which side of FASTER
GAIN = 0.01  # of the latency, below which a step is not taken
FASTER = 0.98  # of float32's latency: what int8 has to reach to be worth it
HELPS = 0.05  # points of accuracy that a further setting must bring
MOST_SETS = 3  # sets of groups whose accuracy is tried, the fastest first
METHODS = ("minmax", "percentile", "entropy", "mse")


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
class Tried:
    """One candidate: what it is, its latency as a fraction of float32's with a 95% interval, and the points of accuracy it loses.

    ``mode``: "float32", "static", "dynamic", "int8-weights" or "fp16-weights". ``groups``: of a static one, those in int8.
    ``drop``: points of balanced accuracy, None where it was not scored. ``size``: bytes.
    """

    mode: str
    groups: tuple[str, ...] = ()
    setting: Setting | None = None
    ratio: float
    low: float
    high: float
    rounds: int
    drop: float | None = None
    size: int

    @property
    def close(self) -> bool:
        """It cannot be told whether it is worth it."""
        return self.mode == "static" and self.low <= FASTER <= self.high


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The winner, the others of the last measurement, everything that was tried before, and why in one or two sentences."""

    best: Tried
    finalists: tuple[Tried, ...]
    tried: tuple[Tried, ...]
    verdict: str


class Maker(Protocol):
    """Makes the files; the same arguments give the same path."""

    @property
    def groups(self) -> Sequence[str]: ...
    @property
    def float32(self) -> Path: ...
    def static(self, groups: Groups, setting: Setting) -> Path: ...
    def others(self) -> dict[str, Path]:
        """Files that keep every node's arithmetic or are dynamic, by mode; what cannot be made is left out."""
        ...


def choose(
    maker: Maker, times: Times, accuracy: Callable[[Path], float], *, interval: Summary, max_drop: float, progress: Progress
) -> Choice:
    """Search as the module says.

    Args:
        maker: makes the candidates.
        times: measures files in turns.
        accuracy: the balanced accuracy of a file, 0 to 1, on images that are not test images.
        interval: summarises ratios of latencies, one per round.
        max_drop: points of it that may be lost.
        progress: told in a few words what is being done.
    """
    search = _Search(maker, times, interval, progress)
    ends = search.ends()
    score = cache(accuracy)

    def drop(path: Path) -> float:
        return 100 * (score(maker.float32) - score(path))

    scored: list[Tried] = []
    for fast in [one for one in ends if one.ratio <= FASTER][:MOST_SETS]:
        settings = search.settings(fast, drop)
        scored += settings
        if min(map(_lost, settings)) <= max_drop:
            break
    finalists = search.finalists(scored, ends, drop, max_drop)
    winner = _winner(finalists, max_drop)
    tried = (*sorted(search.found.values(), key=lambda one: one.ratio), *scored)
    return Choice(best=winner, finalists=tuple(finalists), tried=tried, verdict=_verdict(winner, finalists, ends, max_drop))


class _Search:
    """The three parts of the search; ``found`` has every set of groups that was measured, with its last measurement."""

    def __init__(self, maker: Maker, times: Times, interval: Summary, progress: Progress) -> None:
        self.maker, self.times, self.interval, self.progress = maker, times, interval, progress
        self.found: dict[Groups, Tried] = {}

    def ends(self) -> list[Tried]:
        """Where the two ways end and int8 everywhere, the fastest first, measured once more side by side."""
        groups = self.maker.groups
        later = [frozenset(groups[start:]) for start in range(len(groups))]
        self.measure([frozenset(), *later], QUICK)
        ends = {self._climb(frozenset()), self._climb(min(later, key=lambda one: self.found[one].ratio))}
        sets = [one for one in {*ends, frozenset(groups)} if one]
        sets.sort(key=lambda one: [name in one for name in groups])  # not the order of a hash, which differs from run to run
        self.measure([frozenset(), *sets], SURE)
        if close := [one for one in sets if self.found[one].close]:
            self.measure([frozenset(), *close], CLOSE)
        return sorted((self.found[one] for one in sets), key=lambda one: one.ratio)

    def _climb(self, current: Groups) -> Groups:
        for _ in range(2 * len(self.maker.groups)):
            gains = self._against(current, [current ^ {name} for name in self.maker.groups], QUICK)
            good = [flip for flip, gain in gains.items() if gain < 1 - GAIN]
            if not good:
                break
            together = current
            for flip in good:
                together ^= flip ^ current
            sure = self._against(current, dict.fromkeys([min(good, key=gains.__getitem__), together]), SURE)
            best = min(sure, key=sure.__getitem__)
            if sure[best] >= 1 - GAIN:
                break
            current = best
        return current

    def _against(self, current: Groups, others: Iterable[Groups], rounds: int) -> dict[Groups, float]:
        """Latency of other sets as a fraction of that of the current one."""
        sets = [frozenset(), current, *others]
        seconds = self.measure(sets, rounds)
        return {one: self._ratio(seconds, index, base=1)["ratio"] for index, one in enumerate(sets) if index > 1}

    def measure(self, sets: Sequence[Groups], rounds: int) -> NDArray[np.float64]:
        """Seconds (rounds, sets); ``sets`` begins with the empty one, which is float32."""
        fastest = min(self.found.values(), key=lambda one: one.ratio, default=None)
        told = f", fastest so far {fastest.ratio:.2f}x" if fastest else ""
        self.progress(f"{len(self.found)} sets of nodes timed{told}")
        files = [self.maker.static(one, Setting()) if one else self.maker.float32 for one in sets]
        seconds = self.times(files, rounds)
        for index, (one, file) in enumerate(zip(sets, files, strict=True)):
            if one and (one not in self.found or self.found[one].rounds <= rounds):
                names = tuple(name for name in self.maker.groups if name in one)
                self.found[one] = self._tried(seconds, index, file, mode="static", groups=names, setting=Setting())
        return seconds

    def _tried(self, seconds: NDArray[np.float64], index: int, file: Path, **about: Any) -> Tried:
        return Tried(rounds=len(seconds), size=file.stat().st_size, **self._ratio(seconds, index), **about)

    def _ratio(self, seconds: NDArray[np.float64], index: int, base: int = 0) -> dict[str, Any]:
        """Latency of a file as a fraction of that of ``base``, one ratio per round; by the names that ``Tried`` has for it."""
        found = self.interval(seconds[:, index] / seconds[:, base])
        assert found is not None, "files are timed in two rounds and more"
        return {"ratio": found.value, "low": found.low, "high": found.high}

    def settings(self, fast: Tried, drop: Callable[[Path], float]) -> list[Tried]:
        """``fast`` with every setting tried for its groups and the points that it loses, the best first."""
        scored: dict[Setting, Tried] = {}

        def lost(setting: Setting) -> float:
            if setting not in scored:
                self.progress(f"accuracy with {setting}")
                path = self.maker.static(frozenset(fast.groups), setting)
                scored[setting] = replace(fast, setting=setting, drop=drop(path), size=path.stat().st_size)
            return _lost(scored[setting])

        best = min((Setting(method=method) for method in METHODS), key=lambda one: lost(one) - HELPS * (one.method == "minmax"))
        changes: list[dict[str, Any]] = [{"per_channel": False}, {"equalise": True}, {"correct_bias": True}]
        for change in changes:
            other = replace(best, **change)
            if lost(other) < lost(best) - HELPS:
                best = other
        return [scored.pop(best), *sorted(scored.values(), key=_lost)]

    def finalists(self, scored: Sequence[Tried], ends: Sequence[Tried], drop: Callable[[Path], float], max_drop: float) -> list[Tried]:
        """Float32, what stores or computes otherwise, and the most promising static ones, measured side by side."""
        self.progress("the last ones, side by side")
        static = [one for one in scored if one.drop is not None and one.drop <= max_drop]
        # One with a scale per channel and one per tensor: the latter is often a little faster.
        chosen = {one.setting.per_channel: one for one in reversed(static) if one.setting}
        plain = next(one for one in ends if len(one.groups) == len(self.maker.groups))
        shown = [plain, *chosen.values()]
        if not static and ends[0].ratio <= FASTER:  # faster but less accurate: shown with what it loses
            shown.append(ends[0])
        candidates: dict[Path, dict[str, Any]] = {self.maker.float32: {"mode": "float32"}}
        candidates |= {path: {"mode": mode} for mode, path in self.maker.others().items()}
        for one in shown:
            path = self.maker.static(frozenset(one.groups), one.setting or Setting())
            candidates[path] = {"mode": "static", "groups": one.groups, "setting": one.setting}

        def measured(rounds: int) -> list[Tried]:
            seconds = self.times(list(candidates), rounds)
            return [self._tried(seconds, index, path, drop=drop(path), **about) for index, (path, about) in enumerate(candidates.items())]

        found = measured(SURE)
        return measured(CLOSE) if any(one.close for one in found) else found


def _winner(finalists: Sequence[Tried], max_drop: float) -> Tried:
    """The fastest within the limit; int8 arithmetic must gain 2%. Of what is as fast the smallest file wins, a scale per channel first."""
    allowed = [one for one in finalists if _lost(one) <= max_drop and (one.mode not in ("static", "dynamic") or one.ratio <= FASTER)]
    fastest = min(one.ratio for one in allowed)
    as_fast = [one for one in allowed if one.ratio <= fastest / FASTER]
    return min(as_fast, key=lambda one: (one.setting is not None and not one.setting.per_channel, one.size, one.ratio))


def _lost(one: Tried) -> float:
    return 0.0 if one.drop is None else one.drop


def _verdict(winner: Tried, finalists: Sequence[Tried], ends: Sequence[Tried], max_drop: float) -> str:
    own = f"{winner.ratio:.2f}x of float32's latency, {_lost(winner):.2f} points lost, {winner.size / finalists[0].size:.2f}x of its size"
    if winner.mode in ("static", "dynamic"):
        what = f"Compute {_names(winner.groups)} in int8" if winner.mode == "static" else "Quantize dynamically"
        return f"{what} ({winner.setting}): {own}." if winner.setting else f"{what}: {own}."
    reason = _why_not(finalists, ends, max_drop)
    store = f"Store the weights as {winner.mode.removesuffix('-weights')} and compute in float32: {own}."
    keep = "Keep the float32 file." if winner.mode == "float32" else store
    return f"Do not compute in int8 on this machine: {reason}. {keep}"


def _why_not(finalists: Sequence[Tried], ends: Sequence[Tried], max_drop: float) -> str:
    fast = [one for one in finalists if one.mode == "static" and one.ratio <= FASTER]
    if fast:
        least = min(fast, key=_lost)
        return (
            f"what is faster ({_names(least.groups)}, {least.ratio:.2f}x) loses {_lost(least):.2f} points, and {max_drop:g} are allowed; "
            "fine-tuning may bring them back (--epochs)"
        )
    everything = max(ends, key=lambda one: len(one.groups))
    if not ends[0].groups or ends[0] is everything:
        return f"int8 everywhere takes {everything.ratio:.2f}x of float32's latency, and no set of nodes is faster than float32"
    return (
        f"int8 everywhere takes {everything.ratio:.2f}x of float32's latency, and the best set of nodes ({_names(ends[0].groups)}) "
        f"{ends[0].ratio:.3f}x; at most {FASTER:g}x it would be worth it"
    )


def described(finalists: Sequence[Tried]) -> list[str]:
    """Each of the finalists in words: ``fp32``, ``int8 weights``, ``static int8 of last layer; minmax, per channel``.

    One of them has int8 everywhere, as ``choose`` sees to.
    """
    everywhere = max(len(one.groups) for one in finalists)
    told = []
    for one in finalists:
        if one.mode == "static":
            where = "everywhere" if len(one.groups) == everywhere else f"of {_names(one.groups)}"
            told.append(f"static int8 {where}; {one.setting or Setting()}")
        else:
            told.append({"float32": "fp32", "dynamic": "dynamic int8"}.get(one.mode, one.mode.replace("-", " ")))
    return told


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more groups"
