"""What the report's script needs to move the verdict: limits to choose from, and of each file the figures and the words that `decide` uses.

The script (``templates/verdict.js``) chooses and puts sentences together as `verdict` does; a test holds both to the same words at every
limit there is. All numbers are written here, so that the page and ``compress report --max-drop ...`` say the same. Refuses nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..drops import needed
from ..formats import milliseconds, size, units
from ..limits import Limits, Needs
from ..plot import y_of
from ..results import Result
from ..verdict import Standing, as_fast, is_faster, is_slower, standings

# Points that may be lost, or percents of a score of the user's own.
DROPS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)


def question(result: Result, limits: Limits, needs: Mapping[str, Needs | str] | None = None) -> dict[str, Any] | None:
    """The stops of the sliders, where they stand, and a record per file; None where no limit makes a verdict.

    A stop is ``[limit, as it is written]``: of the drop a round number, of latency and size what a file just keeps; the last of those two
    is ``[null, ""]``, no limit. The limits that were given are stops too. ``score``: of the baseline, as the plots have it.
    """
    if result.measurements[result.baseline].reason is not None or not result.scored:
        return None
    rows = standings(result, dataclasses.replace(limits, max_drop=_anything(result), max_latency=None, max_size=None), needs)
    if not rows:
        return None
    drops = sorted({*_drops(result), limits.drop_of(result)})
    latencies = _stops((1e3 * row.p50 for row in rows), limits.max_latency)
    sizes = [one if one is None else round(one) for one in _stops((row.one.size_bytes for row in rows), limits.max_size)]
    return {
        "drop": [[one, f"{one:.4g}"] for one in drops],
        "latency": [[one, "" if one is None else f"{one:g}"] for one in latencies],
        "size": [[one, "" if one is None else size(one)] for one in sizes],
        "start": [drops.index(limits.drop_of(result)), latencies.index(limits.max_latency), sizes.index(limits.max_size)],
        "accept": limits.accept_unproved,
        "short": units(result).short,
        "baseline": result.measurements[result.baseline].called,
        "score": y_of(result.measurements[result.baseline]),
        "rows": [_record(result, row, rows, drops) for row in rows],
    }


def _record(result: Result, row: Standing, rows: list[Standing], drops: list[float]) -> dict[str, Any]:
    lost, told = row.loss.drop.value, row.units

    def unproved(limit: float) -> str:
        if row.loss.drop.bound <= limit:
            return ""
        return dataclasses.replace(row, limit=limit, proved=False, tells=needed(result, row.one, limit)).unproved

    return {
        "name": row.name,
        "isBaseline": row.is_baseline,
        "p50": row.p50,
        "bytes": row.one.size_bytes,
        "elsewhere": row.elsewhere,
        "lost": lost,
        "bound": row.loss.drop.bound,
        "speedup": row.one.speedup.value if row.one.speedup else 0.0,
        "faster": is_faster(row.one),
        "slower": is_slower(row.one),
        "asFastAs": [as_fast(row, other) for other in rows],
        "memory": list(row.broken),
        "excess": row.excess if math.isfinite(row.excess) else 1e300,
        "loses": f"loses {told.drop(lost)} {told.of}",
        "ms": milliseconds(row.p50),
        "size": size(row.one.size_bytes),
        "file": row.file,
        "times": row.times if row.one.speedup else "",
        "doubtful": row.doubtful_times if row.one.speedup else "",
        "speed": row.speed if row.one.speedup else "",
        "change": [dataclasses.replace(row, proved=proved).change for proved in (False, True)],
        "unproved": [unproved(limit) for limit in drops],
    }


def _anything(result: Result) -> float:
    """A drop that nothing exceeds."""
    return 100.0 if result.scoring is None else math.inf


def _drops(result: Result) -> list[float]:
    if result.scoring is None:
        return list(map(float, DROPS))
    has = abs(result.measurements[result.baseline].score or 0.0)
    return [float(f"{share / 100 * has:.3g}") for share in DROPS]


def _stops(values: Iterable[float], given: float | None) -> list[float | None]:
    """What each value just keeps, in three digits, and the limit given, in order; and None, no limit: 0.8012 makes 0.802."""
    found = {_upwards(value) for value in values}
    return [*sorted(found | ({given} if given is not None else set())), None]


def _upwards(value: float) -> float:
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    near = round(value, digits)
    return near if near >= value else round(near + 10.0**-digits, digits)
