"""Which nodes of a network to compute in int8, and how, by measurement: the fastest file within a given loss of accuracy wins.

Int8 everywhere is the wrong default: a depthwise convolution or an attention gate may pay more for its conversions than it gains
(microsoft/onnxruntime#20052, #17389). So the nodes are taken in groups (``node_groups``), and the search goes in four parts:

1. *Speed.* Each group alone, and "everything from this group on" for some, are measured a little; what they say of all other sets
   (``latency_model``) names the next ones to measure, until none is foretold to gain. The most promising of them are measured again, and
   longer, as the best of thirty noisy figures looks better than it is. Where an interval does not say whether int8 is worth it, more
   rounds are taken until it does.
2. *Settings.* For the fastest set the methods of calibration are tried, then one scale per tensor, equalisation and bias correction, each
   kept only if the answers move less by it. That needs no labels, and no image that is asked later.
3. *Speed again.* The fastest sets with these settings are measured once more in turns with float32, dynamic quantization, and weights that
   are only stored in fewer bits.
4. *Proof.* From the most wanted on, the fastest and of those that cannot be told apart the smallest, each is asked whether it keeps the
   limit: by a one-sided bound of its drop on validation images, which have chosen nothing so far. The 5% by which a bound may be wrong are
   divided among all that may be asked (Bonferroni), so that a whole search takes a file that loses more than is allowed in 5% of searches
   at most. By the drop as counted on the images that choose among 21 files, it did in 53 of 60 with twice the limit lost.

"Do not quantize" is an answer, and so is "these images cannot tell": then the float32 file stays, unless the drop as counted may decide.
Everything that was tried stands in the table. What is measured and how is handed in, so nothing here knows of data or runtimes.

Source: statistics as in ``latency``.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..records import FASTER, METHODS, POINTS, Certified, Choice, Lost, Setting, Tried, verdict_on
from .latency_model import Groups, LatencyModel

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
GAIN = 0.01  # of the latency, which a set must be foretold to gain to be measured
BATCH, BATCHES = 4, 8  # sets that are measured before the next ones are foretold, and how often that is done at most
DEAR = 16  # sets that are measured at most where each costs seconds before it can be
NOISE = 0.005  # of the latency, the standard deviation of a measurement at best
HELPS = 0.9  # of what moves with minmax, or with what was kept so far: a further setting must bring it to this
MOST_SETS = 3  # sets of groups that may be asked for proof, the fastest first
ERROR = 0.05  # how often a whole search may take a file that loses more than is allowed


class Maker(Protocol):
    """Makes the files; the same arguments give the same path. ``sketch``: as fast as the static one, to be timed; of none, float32."""

    @property
    def groups(self) -> Sequence[str]: ...
    @property
    def borders(self) -> Collection[tuple[str, str]]: ...
    @property
    def float32(self) -> Path: ...
    def sketch(self, groups: Groups) -> Path: ...
    def static(self, groups: Groups, setting: Setting) -> Path: ...
    def others(self) -> dict[Any, Path]:
        """Files that keep every node's arithmetic or are dynamic, by mode; what cannot be made is left out."""
        ...


@dataclass(frozen=True, kw_only=True)
class Readers:
    """What a search is handed to judge answers by.

    ``moved``: how far a file's answers are from float32's, without labels, on images that ``certify`` does not see. ``certify``: what
    validation images say of a file, with a bound that is wrong with the given probability at most. ``late``: whether time is up.
    """

    moved: Callable[[Path], float]
    certify: Callable[[Path, float], Certified]
    progress: Progress
    late: Callable[[], bool] = lambda: False


@dataclass(frozen=True, kw_only=True)
class Judges(Readers):
    """And latencies: ``times`` measures files in turns, ``interval`` summarises ratios of latencies, one per round.

    ``dear``: a set costs seconds before it can be timed, so at most :data:`DEAR` are, no group alone, and the rest is foretold.
    """

    times: Times
    interval: Summary
    dear: bool = False


def choose(maker: Maker, judges: Judges, *, max_drop: float, accept_unproved: bool = False, units: Lost = POINTS) -> Choice:
    """Search as the module says.

    Args:
        maker: makes the candidates.
        judges: measure and judge them.
        max_drop: points of balanced accuracy that may be lost.
        accept_unproved: whether it is enough that no more are lost as counted.
        units: of ``max_drop``, where it is not of balanced accuracy.
    """
    search = _Search(maker, judges)
    ends = search.ends()
    fast = [one for one in ends if one.timed.value <= FASTER][:MOST_SETS]
    scored = settings(maker, judges, fast[0], search.late) if fast else []
    files, finalists = search.finalists(ends, [*scored[:1], *(replace(one, setting=scored[0].setting) for one in fast[1:])])
    pool = [index for index, one in enumerate(finalists) if _is_worth_asking(one, finalists)]
    finalists, winner, waiting = decide(finalists, files, pool, _preferred, judges, max_drop, accept_unproved)
    tried = (*sorted(search.found.values(), key=lambda one: one.timed.value), *scored)
    verdict = verdict_on(winner, waiting, finalists, ends, max_drop, units)
    if search.cut:
        verdict += " The search was cut short; with more time it may find a faster file."
    decided: Any = "bound" if winner.proved else "point estimate"
    return Choice(best=winner, finalists=tuple(finalists), tried=tried, verdict=verdict, decided=decided, complete=not search.cut)


class _Search:
    """The parts of the search but the last; ``found`` has every set of groups that was measured, with its last measurement."""

    def __init__(self, maker: Maker, judges: Judges) -> None:
        self.maker, self.judges = maker, judges
        self.found: dict[Groups, Tried] = {}
        self.model = LatencyModel(maker.groups, maker.borders)
        self.cut = False

    def late(self) -> bool:
        """Whether time is up where something is left to do."""
        self.cut = self.cut or self.judges.late()
        return self.cut

    def ends(self) -> list[Tried]:
        """The most promising sets and int8 everywhere, the fastest first, measured once more side by side."""
        groups = self.maker.groups
        self._explore()
        best = self._best(2)
        sets = [frozenset(groups), *(one for one, ratio in zip(best, self.model.promised(best), strict=True) if ratio < 1)]
        sets = sorted(set(sets), key=lambda one: [name in one for name in groups])  # not the order of a hash, which differs from run to run
        files = [self.maker.float32, *(self.maker.static(one, Setting()) for one in sets)]
        seconds = self.judges.times(files, SURE)
        self._note([frozenset(), *sets], seconds)
        close = [at for at, one in enumerate(sets, 1) if _is_close(self.found[one])]
        if close and not self.late():
            self._note([frozenset(), *(sets[at - 1] for at in close)], self._until_clear([files[0], *(files[at] for at in close)]))
        return sorted((self.found[one] for one in sets), key=lambda one: one.timed.value)

    def _explore(self) -> None:
        """Measure what tells most of all sets, then what is foretold to be fast, until nothing is."""
        groups = self.maker.groups
        starts = [frozenset(groups[start:]) for start in range(0, len(groups), round(len(groups) ** 0.5))]
        alone = [] if self.judges.dear else [frozenset([name]) for name in groups]
        wanted = list(dict.fromkeys([*starts, *alone]))
        for _ in range(BATCHES + 1):
            self.measure([frozenset(), *wanted], QUICK)
            best = self._best(MOST_SETS)
            below = (1 - GAIN) * min(1.0, float(self.model.foretold(best[:1])[0]))
            most = min(BATCH, max(0, DEAR - len(self.found))) if self.judges.dear else BATCH
            wanted = self.model.promising([*best, frozenset()], self.found, most, below)
            if not wanted or self.late():
                break

    def _best(self, count: int) -> list[Groups]:
        """At most so many of the measured sets, none of them much like another, the fastest first by what all measurements say together."""
        found = list(self.found)
        ratios = dict(zip(found, self.model.foretold(found), strict=True))
        taken: list[Groups] = []
        for one in sorted(found, key=ratios.__getitem__):
            if len(taken) < count and all(len(one ^ other) > len(self.maker.groups) // 8 for other in taken):
                taken.append(one)
        return taken

    def measure(self, sets: Sequence[Groups], rounds: int) -> None:
        """``sets`` begins with the empty one, which is float32. When time is up no more files are made."""
        fastest = min(self.found.values(), key=lambda one: one.timed.value, default=None)
        told = f", fastest so far {fastest.timed.value:.2f}x" if fastest else ""
        files: list[Path] = []
        for one in sets:
            if one not in self.found and len(files) > 1 and self.late():
                break
            self.judges.progress(f"{len(self.found)} sets of nodes timed{told}")
            files.append(self.maker.sketch(one))
        seconds = self.judges.times(files, rounds)
        self._note(sets[: len(files)], seconds)
        ratios = seconds[:, 1:] / seconds[:, :1]
        noise = max(NOISE, float(np.median(ratios.std(axis=0, ddof=1))) / rounds**0.5)
        # The median: one disturbed round leads nowhere.
        self.model.learn(sets[1 : len(files)], np.median(ratios, axis=0), noise)

    def _note(self, sets: Sequence[Groups], seconds: NDArray[np.float64]) -> None:
        for index, one in enumerate(sets):
            if one and (one not in self.found or self.found[one].rounds <= len(seconds)):
                names = tuple(name for name in self.maker.groups if name in one)
                self.found[one] = self._tried(seconds, index, mode="static", groups=names, setting=Setting())

    def _until_clear(self, files: Sequence[Path]) -> NDArray[np.float64]:
        """Seconds of the first file, float32, and of those of which a first look does not say whether they are worth it, until it does."""
        seconds = np.empty((0, len(files)))
        while len(files) > 1 and len(seconds) < CLOSE and not (len(seconds) and self.late()):
            seconds = np.concatenate([seconds, self.judges.times(files, SURE)])
            ratios = [self._ratio(seconds, index) for index in range(1, len(files))]
            if not any(one["low"] <= FASTER <= one["high"] for one in ratios):
                break
        return seconds

    def _tried(self, seconds: NDArray[np.float64], index: int, **about: Any) -> Tried:
        return Tried(rounds=len(seconds), **self._ratio(seconds, index), **about)

    def _ratio(self, seconds: NDArray[np.float64], index: int) -> dict[str, Any]:
        """Latency of a file as a fraction of that of the first, one ratio per round; by the names that ``Tried`` has for it."""
        found = self.judges.interval(seconds[:, index] / seconds[:, 0])
        assert found is not None, "files are timed in two rounds and more"
        return {"ratio": found.value, "low": found.low, "high": found.high}

    def finalists(self, ends: Sequence[Tried], fast: Sequence[Tried]) -> tuple[list[Path], list[Tried]]:
        """Float32 first, what stores or computes otherwise, and the most promising static ones, measured side by side, with their files."""
        self.judges.progress("the last ones, side by side")
        plain = next(one for one in ends if len(one.groups) == len(self.maker.groups))
        shown = [*fast] if plain.groups in (one.groups for one in fast) else [plain, *fast]
        if fast and fast[0].setting is not None and fast[0].setting.per_channel:  # one scale per tensor is often a little faster
            shown.append(replace(fast[0], setting=replace(fast[0].setting, per_channel=False), moved=None))
        candidates: dict[Path, dict[str, Any]] = {self.maker.float32: {"mode": "float32"}}
        candidates |= {path: {"mode": mode} for mode, path in self.maker.others().items()}
        for one in shown:
            path = self.maker.static(frozenset(one.groups), one.setting or Setting())
            candidates[path] = {"mode": "static", "groups": one.groups, "setting": one.setting, "moved": one.moved}

        files, about = list(candidates), list(candidates.values())
        seconds = self.judges.times(files, SURE)
        found = [self._tried(seconds, index, size=file.stat().st_size, **about[index]) for index, file in enumerate(files)]
        close = [index for index, one in enumerate(found) if _is_close(one)]
        if close and not self.late():
            seconds = self._until_clear([files[0], *(files[index] for index in close)])
            for column, index in enumerate(close, 1):
                found[index] = replace(found[index], rounds=len(seconds), **self._ratio(seconds, column))
        found[0] = replace(found[0], moved=0.0, drop=0.0, bound=0.0, proved=True)
        return files, found


def settings(maker: Maker, readers: Readers, fast: Tried, late: Callable[[], bool]) -> list[Tried]:
    """``fast`` with every setting tried for its groups and how far the answers move, the best first; none more once it is ``late``."""
    scored: dict[Setting, Tried] = {}

    def moved(setting: Setting) -> float:
        if setting not in scored:
            if scored and late():
                return np.inf
            readers.progress(f"answers with {setting}")
            path = maker.static(frozenset(fast.groups), setting)
            scored[setting] = replace(fast, setting=setting, moved=readers.moved(path), size=path.stat().st_size)
        return scored[setting].moved or 0.0

    best = min((Setting(method=method) for method in METHODS), key=lambda one: moved(one) * (HELPS if one.method == "minmax" else 1))
    changes: list[dict[str, Any]] = [{"per_channel": False}, {"equalise": True}, {"correct_bias": True}]
    for change in changes:
        other = replace(best, **change)
        if moved(other) < HELPS * moved(best):
            best = other
    return [scored.pop(best), *sorted(scored.values(), key=lambda one: one.moved or 0.0)]


def _is_close(one: Tried) -> bool:
    """Whether it cannot be told if it is worth it."""
    return one.mode == "static" and one.timed.low <= FASTER <= one.timed.high


def decide(
    finalists: Sequence[Tried],
    files: Sequence[Path],
    pool: Sequence[int],
    preferred: Callable[[Sequence[Tried], Sequence[int]], int],
    readers: Readers,
    max_drop: float,
    accept_unproved: bool,
) -> tuple[list[Tried], Tried, Tried | None]:
    """The finalists with what was found of them, the winner, and what was wanted more and keeps the limit only as counted.

    ``pool``: which of them may be asked for proof, float32 among them, which needs none; ``preferred``: the most wanted of these.
    """
    known, left, waiting = list(finalists), list(pool), None
    error = ERROR / max(1, len(left) - 1)
    while True:
        index = preferred(known, left)
        if known[index].proved is None:
            readers.progress("proof on validation images")
            found = readers.certify(files[index], error)
            known[index] = replace(known[index], **vars(found), proved=found.bound <= max_drop)
        one = known[index]
        within = one.drop is not None and one.drop <= max_drop
        if one.proved or (accept_unproved and within):
            return known, one, waiting
        waiting = waiting or (one if within else None)
        left.remove(index)


def _is_worth_asking(one: Tried, others: Sequence[Tried]) -> bool:
    """Int8 arithmetic must gain 2%, and one scale per tensor as much over one per channel."""
    same = [other for other in others if other.groups == one.groups and one.setting and other.setting and other.setting.per_channel]
    coarse = one.setting is not None and not one.setting.per_channel
    slower = any(one.timed.value > FASTER * other.timed.value for other in same) if coarse else False
    return not one.computes_int8 or (one.timed.value <= FASTER and not slower)


def _preferred(finalists: Sequence[Tried], pool: Sequence[int]) -> int:
    """The fastest; of what is as fast the smallest file, a scale per channel first."""
    fastest = min(finalists[index].timed.value for index in pool)
    as_fast = [index for index in pool if finalists[index].timed.value <= fastest / FASTER]

    def rank(index: int) -> tuple[bool, int, float]:
        one = finalists[index]
        return one.setting is not None and not one.setting.per_channel, one.size or 0, one.timed.value

    return min(as_fast, key=rank)
