"""Writes the report: which variant to ship, the table, the plot, and how it was measured.

``report.html`` is one file that asks nothing of the network and runs no script; ``report.md`` has the same numbers, with the plot as a PNG
beside it. Several results (of several machines, say) become sections; nothing is compared across them. Whatever the user named is escaped.
Refused: no results, a result file that `read_results` refuses, limits out of range.
"""

from __future__ import annotations

import base64
import collections
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BenchmarkError
from .formats import MISSING, count, factor, milliseconds, percent, size
from .plot import SIZES, THEMES, draw
from .results import Measurement, Result, read_results
from .verdict import Limits, Verdict, decide, drop

COLUMNS = (
    "Runtime, device", "p50, ms", "p90, ms", "Speedup", "Balanced accuracy", "Drop, points", "Accuracy", "Size", "Gzipped", "Params",
    "Nonzeros", "MACs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: either cells (column, value, interval or nothing), or the reason why there are none."""

    name: str
    chosen: bool
    baseline: bool
    where: str
    cells: tuple[tuple[str, str, str], ...]
    reason: str | None
    doubts: tuple[str, ...]


def write_report(results: Sequence[Path | Result], folder: Path, limits: Limits) -> tuple[Verdict, ...]:
    """Write ``report.html``, ``report.md`` and ``report*.png`` into a folder, which is made if need be.

    Args:
        results: results, or paths of their files. limits: what a variant must keep to be recommended.

    Returns:
        One verdict per result.

    Raises:
        BenchmarkError: as the module says.
    """
    import jinja2

    if not results:
        raise BenchmarkError("results (=none) must be at least one; run `compress benchmark` first")
    read = [one if isinstance(one, Result) else read_results(one) for one in results]
    verdicts = tuple(decide(result, limits) for result in read)
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, (result, verdict) in enumerate(zip(read, verdicts, strict=True), start=1):
        section = _section(result, verdict, limits)
        if any(one.latency for one in result.measurements):
            section["png"] = "report.png" if len(read) == 1 else f"report-{number}.png"
            _replace(folder / section["png"], draw(result, "png", "wide", "light"))
            section["plots"] = {
                f"{shape}_{theme}": base64.b64encode(draw(result, "svg", shape, theme)).decode() for shape in SIZES for theme in THEMES
            }
        sections.append(section)
    # One environment per format: in HTML everything is escaped for HTML, in Markdown by `markdown`, without exception.
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    for name, autoescape, finalize in (("report.html", True, None), ("report.md", False, markdown)):
        environment = jinja2.Environment(
            loader=loader, autoescape=autoescape, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
        )
        text = environment.get_template(f"{name}.j2").render(sections=sections, columns=COLUMNS)
        _replace(folder / name, text.encode())
    return verdicts


def markdown(value: Any) -> Any:
    """Escape what would be markup in a Markdown table or, in most viewers, HTML; line ends become spaces."""
    return (
        re.sub(r"([\\`*_\[\]|~$])", r"\\\1", " ".join(str(value).split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def _section(result: Result, verdict: Verdict, limits: Limits) -> dict[str, Any]:
    baseline, machine, settings = result.measurements[result.baseline], result.machine, result.settings
    allowed = [f"at most {limits.max_drop:g} points of balanced accuracy lost"]
    allowed += [f"at most {limits.max_latency:g} ms"] if limits.max_latency is not None else []
    allowed += [f"at most {size(limits.max_size)}"] if limits.max_size is not None else []
    measuring = (
        "{launches} launches of a fresh process per variant, {rounds} rounds each, in which the variants took turns in random order (seed "
        "{seed}); {samples} timed calls per turn, {batch} image(s) per call, {threads} thread(s). The clock sees the way from the raw "
        "uint8 image to the logits in host memory. Warm-up: {warm_up}."
    ).format_map(collections.defaultdict(lambda: "an unknown number of", settings))
    about = {
        "Baseline": baseline.name,
        "Limits": "; ".join(allowed),
        "Data": _listed(result.data),
        "Measured": f"{result.created}. {measuring}",
        "Intervals": "95%, Student's t over the launches. A speedup is the baseline's latency / the variant's, paired by round. A "
        "percentile is given only where the samples carry it (64 for p90).",
        **{name.replace("_", " ").capitalize(): _listed(fact) for name, fact in machine.items()},
    }
    return {
        "heading": f"{result.data.get('name', 'data')} on {machine.get('cpu', 'an unnamed CPU')}",
        "verdict": verdict,
        "rows": [_row(one, baseline, verdict) for one in result.measurements],
        "lineage": [
            {"name": one.name, "runtime": one.runtime, "device": one.device, "stage": one.stage or MISSING, "file": one.file}
            | {"artifact": one.artifact[:16] or MISSING, "providers": ", ".join(one.providers) or MISSING}
            | {"agreement": percent(one.agreement)}
            for one in result.measurements
            if one.reason is None
        ],
        "about": about,
        "png": None,
        "plots": None,
    }


def _row(one: Measurement, baseline: Measurement, verdict: Verdict) -> Row:
    where, scores = f"{one.runtime}, {one.device}", one.scores
    cells: list[tuple[str, str]] = []
    if one.latency is not None:
        low, high = (milliseconds(bound, unit=False) for bound in (one.latency.low, one.latency.high))
        speedup = ("baseline", "") if one is baseline else factor(one.speedup) if one.speedup else (MISSING, "")
        plain = [
            percent(scores["balanced_accuracy"]),
            MISSING if one is baseline or baseline.reason else f"{drop(one, baseline):.2f}",
            percent(scores.get("accuracy")),
            size(one.size_bytes),
            size(one.gzip_bytes),
            *(count(one.facts.get(name)) for name in ("params", "nonzeros", "macs")),
        ]
        cells = [(where, ""), (milliseconds(one.latency.p50, unit=False), f"{low} to {high}")]
        cells += [(milliseconds(one.latency.p90, unit=False), ""), speedup, *((value, "") for value in plain)]
    return Row(
        name=one.name,
        chosen=one.name == verdict.ship and (one.runtime, one.device) == ("onnxruntime", "cpu"),
        baseline=one is baseline,
        where=where,
        cells=tuple((column, *cell) for column, cell in zip(COLUMNS, cells, strict=True)) if cells else (),
        reason=one.reason,
        doubts=one.doubts,
    )


def _listed(fact: Any) -> str:
    """A fact of any depth as one line: ``numpy 2.4.6, torch 2.15.0``."""
    if isinstance(fact, dict):
        return ", ".join(f"{name} {_listed(value)}" for name, value in fact.items())
    if isinstance(fact, list | tuple):
        return " ".join(_listed(value) for value in fact)
    return str(fact)
