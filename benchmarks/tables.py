"""The numbers of a report as tables for people, as CSV and as JSON for programs. Refuses nothing; what was not found stays empty.

CSV and JSON hold plain numbers in seconds, bytes, joules and fractions; raw samples are in the benchmark's own file.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .drops import loss
from .formats import MISSING, Units, bytes_or_missing, count, factor, milliseconds, percent, size, units
from .results import Measurement, Result
from .statistics import Interval
from .verdict import Verdict

Cell = tuple[str, str]  # the value, and its interval or nothing
RAW = ("samples_ns", "warmup_ns", "turns", "load_ns", "first_ns", "device_ns", "flips", "answers", "shares")
DECIDING_NOTE = (
    "A number followed by (?) is doubtful; the doubt stands under the name. Intervals: 95%; the drop, in {} "
    "against the baseline, is at most so much with 95% confidence."
)
MEAN = "the score of each image, and Student's t of their differences"
SET = "the score without each of some groups of images (a jackknife), and Student's t of the differences that makes"
SCORES = ("balanced_accuracy", "accuracy", "macro_f1", "macro_precision")
OF_SIGMOIDS = "mean_average_precision"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: a cell (column, value, interval or nothing) per column, or the reason why there are none.

    ``ships``: what it is called if it may ship and this is its first line. ``chosen``: it does.
    """

    name: str
    where: str
    chosen: bool
    ships: str
    doubts: tuple[str, ...]
    reason: str | None
    cells: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a remark under its title; the first column, with the variant's name, is not among `columns`."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def tables(result: Result, verdict: Verdict) -> tuple[Table, ...]:
    """What decides, the scores, other ways to run, and the cost."""
    baseline = result.measurements[result.baseline]

    def table(title: str, note: str, cells: Callable[[Measurement], dict[str, Cell]], all_rows: bool = False) -> Table:
        shown = [one for one in result.measurements if one.latency is not None]
        columns = tuple(cells(shown[0])) if shown else ()
        rows = [_row(one, cells(one) if one.latency else {}, verdict, all_rows) for one in (result.measurements if all_rows else shown)]
        return Table(title=title, note=note, columns=("Runtime, device", *columns), rows=tuple(rows))

    chances = (
        "Intervals: 95%, over test sets with as many images per class (bootstrap). McNemar: how often two equally accurate models would "
    )
    scored, note = units(result), chances + "differ on as many images or more."
    if result.scoring is not None:
        by = MEAN if result.scoring.by_image else SET
        note = f"{scored.name}: a score of the user's own, higher is better. Intervals and bounds: 95%, by {by}."
    return (
        table("Variants", DECIDING_NOTE.format(scored.score or scored.of), lambda one: _deciding(one, result), True),
        table("Scores", note, lambda one: _own_score(one, result) if scored.score else _scores(one, baseline, result)),
        table("Other ways to run", _other_note(result), lambda one: _other_ways(one, result)),
        table("Cost", _cost_note(result), _cost),
    )


def _row(one: Measurement, cells: dict[str, Cell], verdict: Verdict, first: bool) -> Row:
    return Row(
        name=one.name,
        where=f"{one.runtime}, {one.device}",
        chosen=first and verdict.ships(one),
        ships=one.called if first and one.may_ship else "",
        doubts=one.doubts if first else (),
        reason=one.reason,
        cells=tuple((column, *cell) for column, cell in {"Runtime, device": (f"{one.runtime}, {one.device}", ""), **cells}.items())
        if one.reason is None
        else (),
    )


def _deciding(one: Measurement, result: Result) -> dict[str, Cell]:
    assert one.latency is not None
    baseline = result.measurements[result.baseline]
    lost = None if one is baseline or baseline.reason else loss(result, baseline, result, one).drop
    told = units(result)
    p50, doubtful = milliseconds(one.latency.p50, unit=False), " (?)" if one.doubts else ""
    return {
        "p50, ms": (p50 + doubtful, _between(Interval(value=0, low=one.latency.low, high=one.latency.high), _ms)),
        "p90, ms": (milliseconds(one.latency.p90, unit=False), ""),
        "p99, ms": (milliseconds(one.latency.p99, unit=False), ""),
        "Speedup": ("baseline", "") if one is baseline else factor(one.speedup) if one.speedup else (MISSING, ""),
        _title(told): _score(one, told.score or "balanced_accuracy", told),
        f"Drop, {told.score or 'points'}": (told.drop(lost.value), f"at most {told.drop(lost.bound)}") if lost else (MISSING, ""),
        "Size": (size(one.size_bytes), ""),
        "Gzipped": (size(one.gzip_bytes), ""),
    }


def _scores(one: Measurement, baseline: Measurement, result: Result) -> dict[str, Cell]:
    names = (*SCORES, *[OF_SIGMOIDS] * any(OF_SIGMOIDS in other.scores for other in result.measurements))
    cells = {name.replace("_", " ").capitalize().replace("f1", "F1"): _score(one, name) for name in names}
    differs, chance = MISSING, ""
    if one.comparison:
        differs = f"-{len(one.comparison.lost)} +{len(one.comparison.gained)}"
        chance = p_value(one.comparison.p_value)
    return cells | {
        "Answers as the baseline": ("baseline" if one is baseline else percent(one.agreement), ""),
        "Images lost and gained": (differs, ""),
        "McNemar's p": (chance or MISSING, ""),
    }


def _own_score(one: Measurement, result: Result) -> dict[str, Cell]:
    """By the user's own score: what it has, and on how many images, or groups of them, it has more or less than the baseline."""
    told, baseline = units(result), result.measurements[result.baseline]
    more = less = 0
    if baseline.reason is None:
        more, less = (sum(sign * (now - was) > 0 for was, now in zip(baseline.shares, one.shares, strict=True)) for sign in (1, -1))
    where = "images" if result.scoring and result.scoring.by_image else "groups of images"
    return {_title(told): _score(one, told.score, told), f"{where.capitalize()} with less and more": (f"-{less} +{more}", "")}


def _title(told: Units) -> str:
    return told.score or told.name.capitalize()


def _other_ways(one: Measurement, result: Result) -> dict[str, Cell]:
    points = sorted({(sweep.threads, sweep.batch) for other in result.measurements for sweep in other.sweeps})
    found = {(sweep.threads, sweep.batch): sweep for sweep in one.sweeps}
    cells = {"Load, ms": _time(one.load), "First call, ms": _time(one.first)}
    if any(other.on_device for other in result.measurements):
        cells["On the GPU alone, ms"] = _time(one.on_device)
    for threads, batch in points:
        sweep = found.get((threads, batch))
        cells[f"{batch} image{'s' if batch > 1 else ''}, {threads} thread{'s' if threads > 1 else ''}, ms"] = _time(
            sweep.latency if sweep else None
        )
    if points:
        best = one.throughput
        told = f"batch {best.batch}, {best.threads} thread{'s' if best.threads > 1 else ''}" if best else ""
        cells["Most images/s"] = (count(best.images_per_second), told) if best else (MISSING, one.sweep_reason or "")
    return cells


def _cost(one: Measurement) -> dict[str, Cell]:
    facts = {name.capitalize().replace("Macs", "MACs"): (count(one.facts.get(name)), "") for name in ("params", "nonzeros", "macs")}
    return facts | {
        "Activation memory": (bytes_or_missing(one.activation_bytes), ""),
        "Peak memory of the process": (bytes_or_missing(one.memory_bytes), ""),
        "Share of the fp32 peak": (MISSING if one.peak_share is None else f"{100 * one.peak_share:.0f}%", ""),
        "Energy per image": ("not available" if one.energy is None else f"{one.energy * 1e3:.3g} mJ", ""),
    }


def _other_note(result: Result) -> str:
    swept = "" if result.settings.get("sweeps", True) else " Other batch sizes and numbers of threads were left out (--quick)."
    return (
        "Loading: from a file in the system's cache to a model that can be called, the library being imported already. A time is that of a "
        f"whole call, however many images it reads.{swept}"
    )


def _cost_note(result: Result) -> str:
    peak = "could not be measured" if result.peak is None else f"is {result.peak / 1e9:.3g} GMAC/s"
    return (
        "Activation memory: inputs and outputs of the largest node, one image. Peak memory: a process that only timed calls, its "
        "interpreter and runtime included. The fp32 peak of this machine, by a matrix product on as many threads, "
        f"{peak}; int8 has a higher one of its own. Energy: {result.energy}."
    )


def p_value(value: float) -> str:
    """``0.031``; under 0.001 no digits that nobody needs."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _ms(seconds: float) -> str:
    return milliseconds(seconds, unit=False)


def _time(interval: Interval | None) -> Cell:
    return (_ms(interval.value), _between(interval, _ms)) if interval else (MISSING, "")


def _score(one: Measurement, name: str, told: Units = Units()) -> Cell:  # noqa: B008 - it never changes
    interval = one.intervals.get(name)
    return told.value(one.score if told.score else one.scores.get(name)), told.bounds(interval.low, interval.high) if interval else ""


def _between(interval: Interval, tell: Callable[[float], str]) -> str:
    return f"{tell(interval.low)} to {tell(interval.high)}"


def plain(result: Result, one: Measurement) -> dict[str, Any]:
    """One variant of a result as flat columns."""
    latency, best, compared = one.latency, one.throughput, one.comparison
    columns: dict[str, Any] = {name: getattr(one, name) for name in ("name", "runtime", "device", "stage", "artifact", "file", "reason")}
    for name in ("p50", "low", "high", "p90", "p99"):
        columns[f"latency_{name}_s"] = getattr(latency, name, None)
    for name in ("value", "low", "high"):
        columns[f"speedup_{name}"] = getattr(one.speedup, name, None)
    columns[OF_SIGMOIDS] = one.scores.get(OF_SIGMOIDS)
    for name in SCORES:
        interval = one.intervals.get(name)
        columns |= {
            name: one.scores.get(name),
            f"{name}_low": getattr(interval, "low", None),
            f"{name}_high": getattr(interval, "high", None),
        }
    own = one.intervals.get(result.scoring.name) if result.scoring else None
    columns |= {"score_name": result.scoring and result.scoring.name, "score": one.score}
    columns |= {f"score_{end}": getattr(own, end, None) for end in ("low", "high")}
    baseline = result.measurements[result.baseline]
    lost = None if one.reason or baseline.reason or not result.scored else loss(result, baseline, result, one).drop
    ends = {name: getattr(lost, name.strip("_") or "value", None) for name in ("", "_low", "_high", "_bound")}
    columns |= {
        f"drop{name}_{kind}": value if (kind == "score") == bool(result.scoring) else None
        for kind in ("points", "score")
        for name, value in ends.items()
    }
    columns |= {"agreement": one.agreement, "lost": compared and len(compared.lost), "gained": compared and len(compared.gained)}
    columns |= {"mcnemar_p": compared and compared.p_value, "size_bytes": one.size_bytes, "gzip_bytes": one.gzip_bytes}
    columns |= {name: one.facts.get(name) for name in ("params", "nonzeros", "macs")}
    columns |= {name: getattr(one, name) for name in ("activation_bytes", "memory_bytes", "peak_share")} | {"energy_j": one.energy}
    columns |= {"load_s": getattr(one.load, "value", None), "first_s": getattr(one.first, "value", None)}
    columns |= {"on_device_s": getattr(one.on_device, "value", None), "images_per_s": best and best.images_per_second}
    return columns | {"doubts": "; ".join(one.doubts)}


def as_csv(results: Sequence[Result]) -> str:
    """One line per variant of every result, with when and on which machine it was measured."""
    lines = [
        {
            "created": result.created,
            "board": result.machine.get("board"),
            "cpu": result.machine.get("cpu"),
            "gpu": result.machine.get("gpu"),
            "data": result.data.get("name"),
        }
        | plain(result, one)
        for result in results
        for one in result.measurements
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: no_formula(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def no_formula(value: Any) -> Any:
    """A cell of a CSV file: a text that a spreadsheet would compute, such as the class ``=1+1``, begins with an apostrophe.

    Source: OWASP, "CSV Injection".
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def as_json(result: Result, verdict: Verdict | None = None) -> dict[str, Any]:
    """A section of the report without raw samples and pictures."""
    variants = [{name: value for name, value in dataclasses.asdict(one).items() if name not in RAW} for one in result.measurements]
    for variant in variants:
        variant["sweeps"] = [{name: value for name, value in sweep.items() if name != "samples_ns"} for sweep in variant["sweeps"]]
    about = {name: getattr(result, name) for name in ("created", "machine", "data", "settings", "peak", "energy", "baseline")}
    about |= {"scoring": dataclasses.asdict(result.scoring)} if result.scoring else {}
    return about | ({"verdict": dataclasses.asdict(verdict)} if verdict else {}) | {"variants": variants}
