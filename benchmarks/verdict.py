"""Which variant to ship, in words, from one result. A pure function: no clock, no file, no rounding before comparing.

The choice is among ONNX Runtime files measured on the CPU. One is allowed where its balanced accuracy lies at most `max_drop` points under
the baseline's and it meets the limits on latency and size. One is faster only where the whole 95% interval of its speedup lies above 1; a
variant that is not, or by less than 1%, is never recommended for speed. Refused: limits that make no sense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from .formats import milliseconds, percent, size, times
from .results import Measurement, Result

# Under this a speedup is no reason to ship another file: a 95% interval misses 1 in one of twenty comparisons of a file with itself, and
# those misses are smaller than this.
LEAST_CHANGE = 0.01


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a variant must keep.

    Args:
        max_drop: points of balanced accuracy that may be lost. max_latency: largest p50 in milliseconds. max_size: largest file in bytes.
    """

    max_drop: Annotated[float, Meta(ge=0, le=100, description="points, 0.5 allows 97.0% to become 96.5%")] = 0.5
    max_latency: Annotated[float, Meta(gt=0, description="milliseconds, leave it out for no limit")] | None = None
    max_size: Annotated[int, Meta(gt=0, description="bytes, leave it out for no limit")] | None = None

    def broken_by(self, one: Measurement, baseline: Measurement) -> list[str]:
        """The limits that a measured candidate breaks, as ends of the sentence "it ..."."""
        assert one.latency is not None
        found = []
        if drop(one, baseline) > self.max_drop:
            found.append(f"loses {drop(one, baseline):.2f} points of balanced accuracy, {self.max_drop:g} are allowed")
        if self.max_latency is not None and one.latency.p50 * 1e3 > self.max_latency:
            found.append(f"takes {milliseconds(one.latency.p50)}, {self.max_latency:g} ms are allowed")
        if self.max_size is not None and one.size_bytes > self.max_size:
            found.append(f"takes {size(one.size_bytes)}, {size(self.max_size)} are allowed")
        return found


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to ship and why. Of several variants whose speedups cannot be told apart, the one with the smallest file ships.

    Args:
        ship: the variant's name, or None where nothing can be recommended.
        headline: the verdict in a sentence or two.
        reasons: one sentence for each other variant, why it was not chosen.
    """

    ship: str | None
    headline: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return self.headline


def decide(result: Result, limits: Limits) -> Verdict:
    """Choose the variant to ship.

    fp32 at 1.00 ms, int8 at 0.80 ms (speedup 1.25x, 1.20 to 1.30), 0.1 points lost: ship int8. The same at 1.15 ms (0.87x, 0.84 to
    0.90): ship fp32, int8 is slower here.
    """
    baseline = result.measurements[result.baseline]
    if baseline.reason is not None:
        return Verdict(ship=None, headline=f"No verdict: the baseline, {baseline.name}, was not measured: {baseline.reason}.", reasons=())
    field = [one for one in result.measurements if one.runtime == "onnxruntime" and one.device == "cpu" and one.reason is None]
    allowed = [one for one in field if not limits.broken_by(one, baseline)]
    faster = [one for one in allowed if one is not baseline and is_faster(one)]
    if not field:
        return Verdict(ship=None, headline="No verdict: no file was measured in ONNX Runtime on the CPU.", reasons=())
    if not allowed:
        return Verdict(ship=None, headline=_nothing(field, baseline, limits), reasons=_reasons(field, None, baseline, limits))
    if faster:
        fastest = min(faster, key=_p50)
        chosen = min((one for one in faster if _as_fast(one, fastest)), key=lambda one: (one.size_bytes, _p50(one)))
        headline = f"Ship {chosen.name}: it is faster than {baseline.name} ({_times(chosen)}), {_change(chosen, baseline)}."
    elif baseline in allowed:
        chosen = baseline
        headline = _keep(allowed, [one for one in field if one is not baseline], baseline, limits)
    else:
        chosen = min(allowed, key=_p50)
        broken = " and ".join(limits.broken_by(baseline, baseline))
        headline = (
            f"Ship {chosen.name} for the limits, not for speed ({_times(chosen)} against {baseline.name}): {baseline.name} {broken}. "
            f"{chosen.name} takes {milliseconds(_p50(chosen))} and {_change(chosen, baseline)}."
        )
    return Verdict(ship=chosen.name, headline=headline, reasons=_reasons(field, chosen, baseline, limits))


def drop(one: Measurement, baseline: Measurement) -> float:
    """Points of balanced accuracy lost against the baseline; negative where something was gained."""
    lost = 100 * (baseline.scores["balanced_accuracy"] - one.scores["balanced_accuracy"])
    return round(lost, 9)  # 97.0 - 96.5 in floats is a hair above 0.5, which a limit of 0.5 is meant to allow


def is_faster(one: Measurement) -> bool:
    """Whether the whole interval of the speedup lies above 1, and the speedup is worth the name (`LEAST_CHANGE`)."""
    return one.speedup is not None and one.speedup.low > 1 and one.speedup.value >= 1 + LEAST_CHANGE


def _as_fast(one: Measurement, other: Measurement) -> bool:
    """Whether the intervals of two speedups over the baseline overlap: then the smaller file is the better one of the two."""
    return one.speedup is not None and other.speedup is not None and one.speedup.high >= other.speedup.low


def is_slower(one: Measurement) -> bool:
    """Whether the whole interval of the speedup lies under 1, and by enough to be worth the name (`LEAST_CHANGE`)."""
    return one.speedup is not None and one.speedup.high < 1 and one.speedup.value <= 1 - LEAST_CHANGE


def _p50(one: Measurement) -> float:
    assert one.latency is not None
    return one.latency.p50


def _times(one: Measurement) -> str:
    assert one.speedup is not None
    return times(one.speedup)


def _change(one: Measurement, baseline: Measurement) -> str:
    lost = drop(one, baseline)
    moved = "keeps" if lost == 0 else f"loses {lost:.2f} points of" if lost > 0 else f"gains {-lost:.2f} points of"
    return (
        f"{moved} balanced accuracy ({percent(baseline.scores['balanced_accuracy'])} to {percent(one.scores['balanced_accuracy'])}) "
        f"and its file has {size(one.size_bytes)} instead of {size(baseline.size_bytes)}"
    )


def _speed(one: Measurement, baseline: Measurement) -> str:
    word = "faster than" if is_faster(one) else "slower here than" if is_slower(one) else "not clearly faster or slower than"
    return f"is {word} {baseline.name} ({_times(one)})"


def _keep(allowed: Sequence[Measurement], others: Sequence[Measurement], baseline: Measurement, limits: Limits) -> str:
    """Why the baseline ships, and the size alternative where there is one."""
    if not others:
        return f"Ship {baseline.name}: nothing else was measured in ONNX Runtime on the CPU."
    best = max(others, key=lambda one: one.speedup.value if one.speedup else 0.0)
    if all(is_slower(one) for one in others):
        said = f"{best.name} is slower here ({_times(best)})" + ("" if len(others) == 1 else ", and the others more so")
    else:
        said = ("" if is_faster(best) else "no variant is clearly faster; ") + f"{best.name} {_speed(best, baseline)}"
        said = " but ".join([said, *limits.broken_by(best, baseline)])
    headline = f"Ship {baseline.name}: {said}."
    smaller = [one for one in allowed if one.size_bytes < baseline.size_bytes and not is_slower(one)]
    if smaller:
        least = min(smaller, key=lambda one: one.size_bytes)
        headline += (
            f" If size counts more, take {least.name}: it {_change(least, baseline)}, and it is not clearly slower ({_times(least)})."
        )
    return headline


def _nothing(field: Sequence[Measurement], baseline: Measurement, limits: Limits) -> str:
    """No variant keeps the limits: say so, and name the one that misses them by the smallest factor."""

    def excess(one: Measurement) -> tuple[bool, float]:
        factors = [_p50(one) * 1e3 / limits.max_latency] if limits.max_latency is not None else []
        factors += [one.size_bytes / limits.max_size] if limits.max_size is not None else []
        return drop(one, baseline) > limits.max_drop, max(factors, default=0.0)

    nearest = min(field, key=excess)
    return (
        f"Ship nothing yet: no variant keeps the limits. Nearest is {nearest.name}: it {' and '.join(limits.broken_by(nearest, baseline))}."
    )


def _reasons(field: Sequence[Measurement], chosen: Measurement | None, baseline: Measurement, limits: Limits) -> tuple[str, ...]:
    sentences = []
    for one in field:
        if one is chosen:
            continue
        broken = limits.broken_by(one, baseline)
        if broken:
            sentences.append(f"{one.name}: not chosen, it {' and '.join(broken)}.")
        elif one is baseline:
            sentences.append(f"{one.name}: the baseline, {milliseconds(_p50(one))}.")
        elif is_faster(one):
            larger = chosen is not None and one.size_bytes > chosen.size_bytes and _as_fast(chosen, one)
            but = (
                f"not clearly faster than {chosen.name}, and larger"
                if chosen and larger
                else f"its {milliseconds(_p50(one))} are not the least"
            )
            sentences.append(f"{one.name}: not chosen, it {_speed(one, baseline)}, but {but}.")
        else:
            sentences.append(f"{one.name}: not chosen, it {_speed(one, baseline)}.")
    return tuple(sentences)
