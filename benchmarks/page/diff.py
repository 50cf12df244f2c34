"""Two results as one page: what became slower, larger or less accurate, with intervals drawn, and what else differs between the runs.

One file like the report's (`parts`): nothing is asked of the network, its own script only sorts, filters and copies. Refuses nothing that
`compare` let through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..compare import Changes, rows
from ..formats import MISSING, size, title
from ..report import markdown
from ..results import Measurement, Result, replace
from .parts import page_parts

WIDTH, HEIGHT = 160, 16  # pixels of an interval as it is drawn


def write_diff(
    old: Result, new: Result, found: Changes, path: Path, *, slower: float | None = None, less_accurate: float | None = None
) -> None:
    """Write the page of `compare.compare`, which was given these limits: percent of latency, points or units of the score."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    told = [f"at most {slower:g}% slower"] if slower is not None else []
    told += [f"at most {less_accurate:g} {'lost' if found.changes[0].score else 'points lost'}"] if less_accurate is not None else []
    text = environment.get_template("compare.html.j2").render(
        heading=", ".join(str(word) for word in (new.data.get("network"), new.data.get("name"), new.machine.get("cpu")) if word),
        headline=headline(found),
        limits=", ".join(told) or "none were given",
        columns=list(rows(found)[0]),
        rows=_rows(old, new, found, slower, less_accurate),
        remarks=found.remarks,
        facts=_facts(old, new),
        **page_parts("page.js"),
    )
    replace(path, text.encode())


def headline(found: Changes) -> str:
    """``2 of 5 fail: int8 (onnxruntime, cpu) is too slow; ...``, or what is surely faster or slower, or that nothing is."""
    failing = [one for one in found.changes if one.too_slow or one.too_inaccurate]
    if failing:
        told = "; ".join(
            f"{one.name} is {' and '.join(['too slow'] * one.too_slow + ['too inaccurate'] * one.too_inaccurate)}" for one in failing
        )
        return f"{len(failing)} of {len(found.changes)} fail: {told}."
    faster = sum(one.speedup.low > 1 for one in found.changes)
    slower = sum(one.speedup.high < 1 for one in found.changes)
    moved = [f"{count} surely {word}" for count, word in ((faster, "faster"), (slower, "slower")) if count]
    return f"Nothing fails: of {len(found.changes)} candidates {' and '.join(moved) or 'none is surely faster or slower'}."


def as_markdown(found: Changes) -> str:
    """The table for Markdown, as the summary of a job in CI shows it, with the headline above and the remarks folded below."""
    table = rows(found)
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    body = "\n".join(f"| {' | '.join(cell if number == 1 else markdown(cell) for cell in line)} |" for number, line in enumerate(lines))
    remarks = "\n".join(f"- {markdown(remark)}" for remark in found.remarks)
    return f"**{markdown(headline(found))}**\n\n{body}\n\n<details><summary>Remarks</summary>\n\n{remarks}\n\n</details>\n"


def _rows(old: Result, new: Result, found: Changes, slower: float | None, less_accurate: float | None) -> list[dict[str, Any]]:
    before, after = ({title(one): one for one in result.measurements} for result in (old, new))
    speed = [-math.log1p(slower / 100)] if slower is not None else []
    drops = [less_accurate] if less_accurate is not None else []
    speeds = [[math.log(end) for end in (one.speedup.low, one.speedup.value, one.speedup.high)] for one in found.changes]
    lost = [[one.drop.low, one.drop.value, one.drop.high] for one in found.changes]
    return [
        {
            "cells": list(cells.items()),
            "fails": one.too_slow or one.too_inaccurate,
            "speedup": _interval(speeds[at], speeds, speed),
            "lost": _interval(lost[at], lost, drops),
            "more": _more(before[one.name], after[one.name], old, new),
        }
        for at, (one, cells) in enumerate(zip(found.changes, rows(found), strict=True))
    ]


def _interval(own: Sequence[float], every: Sequence[Sequence[float]], limits: Sequence[float]) -> str:
    """An interval on the scale that all of a column share, with a line at no change and one at the limit, as SVG."""
    low, high = min(0.0, *limits, *map(min, every)), max(0.0, *limits, *map(max, every))
    pad = 0.05 * (high - low) or 1.0

    def x(value: float) -> float:
        return round(WIDTH * (value - low + pad) / (high - low + 2 * pad), 1)

    lines = f'<path class="grid" d="M{x(0)},0V{HEIGHT}"/>' + "".join(f'<path class="limit" d="M{x(one)},0V{HEIGHT}"/>' for one in limits)
    bar = f'<path class="bar" d="M{x(own[0])},5v6m0,-3H{x(own[2])}m0,-3v6"/><circle class="sign" cx="{x(own[1])}" cy="8" r="3.5"/>'
    return f'<svg class="range" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">{lines}{bar}</svg>'


def _more(was: Measurement, now: Measurement, old: Result, new: Result) -> list[tuple[str, str]]:
    """What the table has no column for, where it changed: ``("size", "1.00 MB to 1.20 MB")``."""
    found = [("size", size(was.size_bytes), size(now.size_bytes)), ("file", was.artifact[:12] or MISSING, now.artifact[:12] or MISSING)]
    told = [(name, f"{before} to {after}") for name, before, after in found if before != after]
    labels, before, after = old.true_labels, old.answers_of(was), new.answers_of(now)
    if labels is not None and before is not None and after is not None:
        lost, gained = int(((before == labels) & (after != labels)).sum()), int(((before != labels) & (after == labels)).sum())
        told.append(("images", f"{lost} lost, {gained} gained of {len(labels):,}"))
    return told


def _facts(old: Result, new: Result) -> list[tuple[str, str, str]]:
    """When both were measured, and every fact of machine, settings and data in which they differ."""
    found = [("measured", old.created, new.created)]
    for name in ("machine", "settings", "data"):
        was, now = _flat(getattr(old, name)), _flat(getattr(new, name))
        found += [
            (f"{name}: {key}", was.get(key, MISSING), now.get(key, MISSING)) for key in {**was, **now} if was.get(key) != now.get(key)
        ]
    return found


def _flat(facts: Any) -> dict[str, str]:
    """``{"libraries": {"numpy": "2.4"}}`` as ``{"libraries numpy": "2.4"}``."""
    found: dict[str, str] = {}
    for name, fact in facts.items():
        if isinstance(fact, dict):
            found |= {f"{name} {key}": str(value) for key, value in fact.items()}
        else:
            found[name] = " ".join(map(str, fact)) if isinstance(fact, list | tuple) else str(fact)
    return found
