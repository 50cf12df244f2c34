"""Which variant to ship, in words, from one result. A pure function: no clock, no file, no rounding before comparing.

The choice is among the files that were measured on the CPU, in every runtime in which files ship: ONNX Runtime, OpenVINO, LiteRT, and as C;
not torch, which needs the network's code. A variant keeps its accuracy where that is *proved*: the one-sided 95% bound
of its drop, counted image by image against the baseline (`paired`, or `scored` for a score of the user's own), lies within `max_drop`
points. Where the drop as counted is within the limit and the bound is not, the images cannot tell; such a variant ships only if the caller
accepts that. A test set of 360 images proves next to nothing, and the verdict says so, with the number that would tell.

Of two variants the faster one is told by the ratios of the same rounds (`statistics.speedup`), be one of them the baseline or not: the
whole 95% interval must lie on one side of 1, and the change be at least 1%. Doubts of the two rows stand in the same sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from . import statistics
from .doubts import cure
from .drops import Loss, loss, needed
from .formats import Units, milliseconds, printable, size, times, units
from .limits import Limits as Limits
from .limits import Needs, measure_against
from .paired import Drop
from .results import Measurement, Result
from .runtimes import SHIPPED
from .statistics import Speedup

# Under this a speedup is no reason to ship another file: a 95% interval misses 1 in one of twenty comparisons of a file with itself, and
# those misses are smaller than this.
LEAST_CHANGE = 0.01


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to ship and why. Of several variants whose speedups cannot be told apart, the one with the smallest file ships.

    Args:
        ship: the variant's name, or None where nothing can be recommended. runtime: in which it was measured. path: of its file, where
            that is known.
        decided: whether it is the bound of the drop that keeps the limit, or only the drop as counted. loss: both.
        unproved: what would ship if the drop as counted decided, where that is something else. unproved_path: of its file.
        doubts: of the two rows that the headline compares. cure: what to do about them.
        headline: the verdict in a sentence or two.
        reasons: one sentence for each other variant, why it was not chosen.
        units: of what the loss is a number.
    """

    ship: str | None
    runtime: str | None = None
    path: str | None = None
    decided: Literal["bound", "point estimate"] | None = None
    loss: Loss | None = None
    unproved: str | None = None
    unproved_path: str | None = None
    doubts: tuple[str, ...] = ()
    cure: str | None = None
    headline: str
    reasons: tuple[str, ...] = ()
    units: str = Units().of

    def __str__(self) -> str:
        return self.headline

    @property
    def called(self) -> str | None:
        """What ships and where it runs: ``int8 static in LiteRT``."""
        return None if self.ship is None else self.ship + SHIPPED[self.runtime or "onnxruntime"]

    def ships(self, one: Measurement) -> bool:
        """Whether that is what ships."""
        return one.may_ship and (one.name, one.runtime) == (self.ship, self.runtime)


def decide(result: Result, limits: Limits, needs: Mapping[str, Needs | str] | None = None) -> Verdict:
    """Choose the variant to ship. ``needs``: by their hashes, what each file takes as C, or why it cannot be; for limits of that.

    fp32 at 1.00 ms, int8 at 0.80 ms (speedup 1.25x, 1.20 to 1.30), 30 of 30,000 images lost, so at most 0.14 points: ship int8. The same
    with one of 360 images lost, 0.28 points and at most 1.32: ship fp32, int8 is not proved. At 1.15 ms: ship fp32, int8 is slower here.
    """
    baseline = result.measurements[result.baseline]
    if baseline.reason is not None:
        return Verdict(ship=None, headline=f"No verdict: the baseline, {baseline.called}, was not measured: {baseline.reason}.")
    if not result.scored:
        return Verdict(ship=None, headline="No verdict: without labels only latency and size are known.")
    rows = standings(result, limits, needs)
    if not rows:
        return Verdict(ship=None, headline="No verdict: nothing was measured on the CPU in a runtime in which files ship.")
    within = [row for row in rows if not row.broken]
    chosen = _choose([row for row in within if row.proved or limits.accept_unproved])
    best = _choose(within)
    unproved = best if best is not chosen else None
    headline, compared = _headline(rows, chosen, unproved, limits)
    doubts = tuple(f"{row.name}: {doubt}" for row in compared for doubt in row.one.doubts)
    return Verdict(
        ship=chosen.one.name if chosen else None,
        runtime=chosen.one.runtime if chosen else None,
        path=chosen.one.path if chosen else None,
        decided=None if chosen is None else "bound" if chosen.proved else "point estimate",
        loss=chosen.loss if chosen else None,
        unproved=unproved.name if unproved else None,
        unproved_path=unproved.one.path if unproved else None,
        doubts=doubts,
        cure=cure(doubts) if doubts else None,
        headline=headline,
        reasons=tuple(_reason(row, chosen) for row in rows if row is not chosen),
        units=units(result).score or Units().of,
    )


def standings(result: Result, limits: Limits, needs: Mapping[str, Needs | str] | None = None) -> list[Standing]:
    """How each file that may ship stands to the limits; the baseline was measured, and there are labels or a score."""
    return [_row(result, one, limits, (needs or {}).get(one.artifact)) for one in result.measurements if one.may_ship]


def between(other: Measurement, one: Measurement) -> Speedup:
    """Latency of ``other`` / latency of ``one``, by the rounds in which both had a turn; above 1 ``one`` is faster."""
    return statistics.speedup(*(np.array(each.samples_ns, np.int64) for each in (other, one)))


def is_faster(one: Measurement) -> bool:
    """Whether the whole interval of the speedup lies above 1, and the speedup is worth the name (`LEAST_CHANGE`)."""
    return one.speedup is not None and surely_faster(one.speedup)


def is_slower(one: Measurement) -> bool:
    """Whether the whole interval of the speedup lies under 1, and by enough to be worth the name (`LEAST_CHANGE`)."""
    return one.speedup is not None and surely_slower(one.speedup)


def surely_faster(found: Speedup) -> bool:
    """Whether the interval says so, and the change is worth the name."""
    return found.low > 1 and found.value >= 1 + LEAST_CHANGE


def surely_slower(found: Speedup) -> bool:
    """The other way round."""
    return found.high < 1 and found.value <= 1 - LEAST_CHANGE


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """A file that was measured beside the baseline, and how it stands to the limits.

    `broken`: the limits that it breaks as counted, as ends of the sentence "it ..."; `excess`: by which factor at most, but for the drop.
    `tells`: images that would bound its drop.
    """

    one: Measurement
    baseline: Measurement
    loss: Loss
    broken: tuple[str, ...]
    excess: float
    proved: bool
    limit: float
    tells: int | None
    units: Units

    @property
    def name(self) -> str:
        return self.one.called

    @property
    def elsewhere(self) -> bool:
        """Whether it needs another runtime than ONNX Runtime."""
        return bool(SHIPPED[self.one.runtime])

    @property
    def is_baseline(self) -> bool:
        return self.one is self.baseline

    @property
    def p50(self) -> float:
        assert self.one.latency is not None
        return self.one.latency.p50

    @property
    def file(self) -> str:
        """Where it lies, as far as that is known."""
        return printable(self.one.path or f"{self.one.file} of {self.one.artifact[:12] or self.name}")

    @property
    def times(self) -> str:
        assert self.one.speedup is not None
        return times(self.one.speedup)

    @property
    def speed(self) -> str:
        """``is faster than fp32 (1.25x, 95% interval 1.20 to 1.30)``."""
        word = "faster than" if is_faster(self.one) else "slower here than" if is_slower(self.one) else "not clearly faster or slower than"
        return f"is {word} {self.baseline.called} ({self.times})"

    @property
    def doubtful_times(self) -> str:
        """The speedup with the doubts of its two rows and what to do about them: a doubt stands where the number stands."""
        told = [
            f"{one.called}: {one.doubts[0]}" + (f" and {len(one.doubts) - 1} more" if len(one.doubts) > 1 else "")
            for one in (self.one, self.baseline)
            if one.doubts
        ]
        if not told:
            return self.times
        return f"{self.times}; doubtful, {', '.join(told)}; {cure([*self.one.doubts, *self.baseline.doubts])}"

    @property
    def change(self) -> str:
        """``loses 0.10 points of balanced accuracy (97.00% to 96.90%, at most ...) and its file has 300 kB instead of 1.00 MB``."""
        lost, told = self.loss.drop.value, self.units
        moved = "loses" if lost > 0 else "gains"
        changed = f"keeps {told.name}" if lost == 0 else f"{moved} {told.drop(abs(lost))} {told.of}"
        before, after = (told.value(told.of_one(one)) for one in (self.baseline, self.one))
        sizes = f"{size(self.one.size_bytes)} instead of {size(self.baseline.size_bytes)}"
        bound = f", {self.bound}" if self.proved else ""  # else a sentence of its own says it
        return f"{changed} ({before} to {after}{bound}) and its file has {sizes}"

    @property
    def bound(self) -> str:
        bound, drop = self.loss.drop.bound, self.units.drop
        told = f"at most {drop(bound)} lost" if bound >= 0 else f"at least {drop(-bound)} gained"
        return f"{told} with 95% confidence"

    @property
    def unproved(self) -> str:
        """``not proved within 0.5 points with 360 images: 0.28 lost as counted, at most 1.32 lost with 95% confidence; ...``."""
        if not self.loss.paired:
            tell = "; this benchmark kept no answers to compare one by one, `compress benchmark --force` does"
        else:
            tell = f"; about {self.tells:,} images would tell" if self.tells else ""
        drop, number = self.loss.drop, self.units.drop
        counted = f"{number(drop.value)} lost" if drop.value >= 0 else f"{number(-drop.value)} gained"
        limit = f"{self.limit:.4g} {self.units.short}"
        return f"not proved within {limit} with {drop.images:,} images: {counted} as counted, {self.bound}{tell}"


def _row(result: Result, one: Measurement, limits: Limits, needs: Needs | str | None) -> Standing:
    baseline = result.measurements[result.baseline]
    found = loss(result, baseline, result, one)
    if one is baseline:
        found = Loss(drop=Drop(value=0.0, low=0.0, high=0.0, bound=0.0, images=found.drop.images), paired=found.paired)
    broken, told, limit = [], units(result), limits.drop_of(result)
    if found.drop.value > limit:
        broken.append(f"loses {told.drop(found.drop.value)} {told.of}, {limit:.4g} are allowed")
    others = measure_against(limits, one, needs)
    broken += [other.told for other in others if other.factor > 1]
    proved = found.drop.bound <= limit
    tells = None if proved else needed(result, one, limit)
    excess = max((other.factor for other in others), default=0.0)
    return Standing(
        one=one, baseline=baseline, loss=found, broken=tuple(broken), excess=excess, proved=proved, limit=limit, tells=tells, units=told
    )  # fmt: skip


def _choose(allowed: Sequence[Standing]) -> Standing | None:
    """The smallest of those that are as fast as the fastest, of the same size ONNX Runtime's; the baseline where none is faster; else the
    fastest that there is.
    """
    faster = [row for row in allowed if not row.is_baseline and is_faster(row.one)]
    if faster:
        fastest = min(faster, key=lambda row: row.p50)
        return min((row for row in faster if as_fast(row, fastest)), key=lambda row: (row.one.size_bytes, row.elsewhere, row.p50))
    return next((row for row in allowed if row.is_baseline), min(allowed, key=lambda row: row.p50, default=None))


def as_fast(row: Standing, fastest: Standing) -> bool:
    """Whether it is not surely slower, round by round: then the smaller file is the better one of the two."""
    return row is fastest or not surely_slower(between(fastest.one, row.one))


def _headline(rows: Sequence[Standing], chosen: Standing | None, unproved: Standing | None, limits: Limits) -> tuple[str, list[Standing]]:
    """The sentences, and the rows whose latencies they compare."""
    waits = ""
    if unproved is not None:
        waits = f" `compress report --accept-unproved` ships {unproved.name}: {unproved.file}."
    if chosen is None:
        if unproved is None:
            nearest = _nearest(rows)
            return f"Ship nothing yet: no variant keeps the limits. Nearest is {nearest.name}: it {' and '.join(nearest.broken)}.", []
        return f"Ship nothing yet: no variant is proved to keep the limits. {unproved.name} is {unproved.unproved}.{waits}", []
    baseline, file = chosen.baseline, f" The file: {chosen.file}."
    accepted = "" if chosen.proved else f" It is {chosen.unproved}; that was accepted."
    compared = [row for row in rows if row is chosen or row.is_baseline]
    if not chosen.is_baseline:
        if is_faster(chosen.one):
            told = f"Ship {chosen.name}: it is faster than {baseline.called} ({chosen.doubtful_times}), {chosen.change}."
        else:
            broken = " and ".join(next((row.broken for row in rows if row.is_baseline), ("runs where no file ships",)))
            told = (
                f"Ship {chosen.name} for the limits, not for speed ({chosen.doubtful_times} against {baseline.called}): {baseline.called} "
                f"{broken}. {chosen.name} takes {milliseconds(chosen.p50)} and {chosen.change}."
            )
        if unproved is not None:
            waits = f" {unproved.name} {unproved.speed}, but {unproved.unproved}.{waits}"
        return told + accepted + file + waits, compared
    if unproved is not None:
        told = f"Ship {baseline.called}: nothing faster is proved. {unproved.name} is faster ({unproved.doubtful_times}), but "
        return f"{told}{unproved.unproved}.{waits} The file of {baseline.called}: {chosen.file}.", [unproved, chosen]
    others = [row for row in rows if not row.is_baseline]
    if not others:
        return f"Ship {baseline.called}: nothing else was measured that ships.{file}", []
    best = max(others, key=lambda row: row.one.speedup.value if row.one.speedup else 0.0)
    return _keep(others, best, limits) + file, [best, chosen]


def _keep(others: Sequence[Standing], best: Standing, limits: Limits) -> str:
    """Why the baseline ships, and the size alternative where there is one."""
    if all(is_slower(row.one) for row in others):
        said = f"{best.name} is slower here ({best.doubtful_times})" + ("" if len(others) == 1 else ", and the others more so")
    else:
        speed = best.speed.replace(best.times, best.doubtful_times)
        said = ("" if is_faster(best.one) else "no variant is clearly faster; ") + f"{best.name} {speed}"
        said = " but ".join([said, *best.broken])
    told = f"Ship {best.baseline.called}: {said}."
    smaller = [row for row in others if not row.broken and row.one.size_bytes < best.baseline.size_bytes and not is_slower(row.one)]
    if smaller:
        least = min(smaller, key=lambda row: row.one.size_bytes)
        told += f" If size counts more, take {least.name}: it {least.change}, and it is not clearly slower ({least.times})"
        told += f": {least.file}." if least.proved else f", but it is {least.unproved}: {least.file}."
    return told


def _nearest(rows: Sequence[Standing]) -> Standing:
    """Of those that break a limit, the one that misses the limits but that of the drop by the smallest factor."""
    return min(rows, key=lambda row: (row.loss.drop.value > row.limit, row.excess))


def _reason(row: Standing, chosen: Standing | None) -> str:
    """Why it was not chosen."""
    if row.broken:
        return f"{row.name}: not chosen, it {' and '.join(row.broken)}."
    if row.is_baseline:
        return f"{row.name}: the baseline, {milliseconds(row.p50)}."
    if is_faster(row.one) and not row.proved and (chosen is None or chosen.proved):
        return f"{row.name}: not chosen, it {row.speed} and {row.unproved}."
    if is_faster(row.one):
        larger = chosen is not None and row.one.size_bytes > chosen.one.size_bytes and as_fast(chosen, row)
        but = (
            f"not clearly faster than {chosen.name}, and larger" if chosen and larger else f"its {milliseconds(row.p50)} are not the least"
        )
        return f"{row.name}: not chosen, it {row.speed}, but {but}."
    return f"{row.name}: not chosen, it {row.speed}."
