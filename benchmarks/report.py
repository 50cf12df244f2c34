"""Writes the report: which variant to ship, the tables, the plots, what is read differently, and how it was measured.

``report.html`` is one file that asks nothing of the network. Its own script, the only one that it lets run, hides, sorts, and moves the
verdict with the limits (`page.asked`); without it everything is there to be read. ``report.md`` has the same numbers, with the plots as PNG
beside it; ``report.csv`` and ``report.json`` have them for programs. Several results become sections, and those of several machines stand
side by side before them (`page.across`); nothing is compared across them, and the report says so. Whatever the user named is escaped.
Without matplotlib the plots are in the page alone. Refused: no results, limits out of range.
"""

from __future__ import annotations

import collections
import importlib.util
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import BenchmarkError
from .formats import CHOOSING, MISSING, ZEROS, Units, count, percent, size, units
from .limits import Limits, Needs
from .machine import differences
from .page.across import across
from .page.asked import question
from .page.chart import chart
from .page.parts import embedded, page_parts
from .plot import AXES, draw
from .results import Finalist, LayerZeros, Measurement, Result, replace
from .tables import Row, as_csv, as_json, p_value, tables
from .verdict import Verdict, decide

MOST_NAMED = 5  # classes and confusions in a sentence
MOST_PICTURES = 700_000  # characters of images whose answer flipped, so that the page stays under 1.5 MB


def write_report(
    results: Sequence[Result], folder: Path, limits: Limits, needs: Sequence[Mapping[str, Needs | str]] = ()
) -> tuple[Verdict, ...]:
    """Write ``report.html``, ``.md``, ``.csv``, ``.json`` and ``report*.png`` into a folder, which is made if need be.

    Args:
        results: one per machine. limits: what a variant must keep to be recommended. needs: of each result, see `decide`.

    Returns:
        One verdict per result.

    Raises:
        BenchmarkError: as the module says.
    """
    import jinja2

    if not results:
        raise BenchmarkError("results (=none) must be at least one; run `compress benchmark` first")
    verdicts = tuple(decide(result, limits, known) for result, known in itertools.zip_longest(results, needs))
    folder.mkdir(parents=True, exist_ok=True)
    sections, room, drawn = [], MOST_PICTURES // len(results), importlib.util.find_spec("matplotlib") is not None
    for number, (result, verdict, known) in enumerate(zip(results, verdicts, [*needs, *[{}] * len(results)], strict=False), start=1):
        section = _section(result, verdict, limits, room)
        section["asked"] = embedded(question(result, limits, known))
        if not drawn:
            section["about"]["Plots"] = "only in report.html, as matplotlib is not installed here"
        told = {f"{row.name} ({row.where})": _drop_in(row) for row in section["tables"][0].rows}
        for axis in AXES if any(one.latency for one in result.measurements) else ():
            name = "report" + (f"-{number}" if len(results) > 1 else "") + ("" if axis == "latency" else f"-{axis}") + ".png"
            if drawn:
                replace(folder / name, draw(result, axis, verdict.called))
            plot = chart(result, limits, verdict.called, axis, told)
            section["plots"].append({"axis": axis, "png": name if drawn else None, "chart": plot})
        sections.append(section)
    replace(folder / "report.csv", as_csv(results).encode())
    plain = [as_json(result, verdict) for result, verdict in zip(results, verdicts, strict=True)]
    side = across(results, verdicts)
    told_all = {"schema": "compress-report", "version": 1, "across": asdict(side) if side else None, "sections": plain}
    replace(folder / "report.json", (json.dumps(told_all, indent=1) + "\n").encode())
    # One environment per format: in HTML everything is escaped for HTML, in Markdown by `markdown`, without exception.
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    for name, autoescape, finalize in (("report.html", True, None), ("report.md", False, markdown)):
        environment = jinja2.Environment(
            loader=loader, autoescape=autoescape, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
        )
        words = {"sections": sections, "side": side, "across": _across(results), "zeros": ZEROS, "choosing": CHOOSING}
        text = environment.get_template(f"{name}.j2").render(**words, **page_parts("verdict.js", "page.js"))
        replace(folder / name, text.encode())
    return verdicts


def markdown(value: Any) -> Any:
    """Escape what would be markup in a Markdown table or, in most viewers, HTML; line ends become spaces."""
    return (
        re.sub(r"([\\`*_\[\]|~$])", r"\\\1", " ".join(str(value).split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )


def _drop_in(row: Row) -> str:
    """``drop 0.10, at most 0.14``, of a row of the first table."""
    return next((f"drop {value}" + (f", {bound}" if bound else "") for title, value, bound in row.cells if title.startswith("Drop")), "")


def _section(result: Result, verdict: Verdict, limits: Limits, room: int) -> dict[str, Any]:
    baseline, machine, settings = result.measurements[result.baseline], result.machine, result.settings
    allowed = [f"at most {limits.drop_of(result):.4g} {units(result).of} lost"]
    allowed += limits.told()
    measuring = (
        "{launches} launches of a fresh process per variant, {rounds} rounds each, in which the variants took turns in random order (seed "
        "{seed}); {samples} timed calls per turn, {batch} image(s) per call, {threads} thread(s). The clock sees the way from the raw "
        "uint8 image to the logits in host memory. Warm-up: {warm_up}."
    ).format_map(collections.defaultdict(lambda: "an unknown number of", settings))
    about = {
        "Baseline": baseline.name,
        "Limits": "; ".join(allowed),
        "Data": _listed({name: fact for name, fact in result.data.items() if name != "class_names"}),
        "Measured": f"{result.created}. {measuring}",
        "Intervals": "95%, Student's t over the launches. A speedup is the baseline's latency / the variant's, paired by round. A "
        "percentile is given only where the samples carry it (64 for p90, 662 for p99).",
        **{name.replace("_", " ").capitalize(): _listed(fact) for name, fact in machine.items()},
    }
    return {
        "heading": ", ".join(
            str(word)
            for word in (*map(result.data.get, ("network", "name")), machine.get("board"), machine.get("cpu", "an unnamed CPU"))
            if word
        ),
        "verdict": verdict,
        "score": units(result).name,
        "lost": f"{units(result).score} lost" if result.scoring else "Points lost",
        "tables": tables(result, verdict),
        "plots": [],
        "choices": _choices(result),
        "zeros": _zeros(result),
        "differences": _differences(result, room),
        "baseline": baseline.name,
        "lineage": [
            {"name": one.name, "runtime": one.runtime, "device": one.device, "stage": one.stage or MISSING, "file": one.file}
            | {"artifact": one.artifact[:16] or MISSING, "ran": placed(one)}
            for one in result.measurements
            if one.reason is None
        ],
        "about": about,
    }


def placed(one: Measurement) -> str:
    """What computed it: ``CUDA 40 nodes; fell back to the CPU: 3 nodes (QLinearConv 2, Cast 1)``, or the providers alone."""
    counts = {name: sum(operators.values()) for name, operators in one.placement.items()}
    told = []
    for name, operators in one.placement.items():
        short, nodes = name.removesuffix("ExecutionProvider"), f"{counts[name]} node{'s' if counts[name] > 1 else ''}"
        if name == "CPUExecutionProvider" and one.device != "cpu":
            told.append(f"fell back to the CPU: {nodes} ({', '.join(f'{operator} {count}' for operator, count in operators.items())})")
        else:
            told.append(f"{short} {nodes}")
    return "; ".join(sorted(told, key=lambda text: text.startswith("fell"))) or ", ".join(one.providers) or MISSING


def _choices(result: Result) -> list[dict[str, Any]]:
    """How each variant was chosen that was; in several runtimes it is the same."""
    found = {(one.name, one.choice): one.choice for one in result.measurements if one.choice is not None}
    return [
        {
            "name": name,
            "verdict": choice.verdict,
            "tried": choice.tried,
            "rows": [
                (
                    one.what,
                    "unknown" if None in (one.ratio, one.low, one.high) else f"{one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f})",
                    _lost(one, units(result)),
                    size(one.size),
                )
                for one in choice.finalists
            ],
        }
        for (name, _), choice in found.items()
    ]


def _lost(one: Finalist, told: Units) -> str:
    """``0.10 (at most 0.25)``: as counted on validation images, and the bound of it."""
    return MISSING if one.drop is None else told.drop(one.drop) + ("" if one.bound is None else f" (at most {told.drop(one.bound)})")


def _zeros(result: Result) -> list[dict[str, Any]]:
    """The layers of each pruned network, all together first; the variants that were made of it share a table."""
    networks: dict[tuple[LayerZeros, ...], list[str]] = {}
    for one in result.measurements:
        if one.layers and one.name not in (names := networks.setdefault(one.layers, [])):
            names.append(one.name)
    found = []
    for layers, names in networks.items():
        whole = LayerZeros(
            name="all layers", weights=sum(layer.weights for layer in layers), nonzeros=sum(layer.nonzeros for layer in layers)
        )
        rows = [
            (layer.name.removesuffix(".weight"), count(layer.weights), count(layer.nonzeros), percent(layer.sparsity))
            for layer in (whole, *layers)
        ]
        found.append({"names": "; ".join(names), "rows": rows, "sparsity": percent(whole.sparsity)})
    return found


def _differences(result: Result, room: int) -> list[dict[str, Any]]:
    """What each variant reads differently than the baseline; variants of one file with the same answers appear once.

    ``room``: characters that pictures may take, an even share for each variant.
    """
    names, seen = result.data.get("class_names", []), set()
    found: list[dict[str, Any]] = []

    def called(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    for one in result.measurements:
        compared = one.comparison
        if compared is None or not (compared.lost or compared.gained) or (key := (one.name, compared.lost, compared.gained)) in seen:
            continue
        seen.add(key)
        changed = [recall for recall in compared.recalls if recall.change]
        worst = [recall for recall in changed if recall.change < 0][:MOST_NAMED]
        best = [recall for recall in reversed(changed) if recall.change > 0][:MOST_NAMED]
        recalls, confused = (
            [
                f"{called(r.label)} {100 * r.before / r.images:.1f}% to {100 * r.after / r.images:.1f}% of {r.images}"
                for r in (*worst, *best)
            ],
            [
                f"{called(true)} read as {called(said)}: {before} to {after}"
                for true, said, before, after in compared.worse_confusions[:MOST_NAMED]
            ],
        )
        found.append(
            {
                "name": one.name,
                "where": f"{one.runtime}, {one.device}",
                "summary": f"{len(compared.lost)} images lost, {len(compared.gained)} gained of {compared.images}; McNemar's p "
                f"{p_value(compared.p_value)}; answers as the baseline on {percent(one.agreement)}.",
                "recalls": "; ".join(recalls) or "none",
                "confused": "; ".join(confused) or "none",
                "flips": [
                    {"png": flip.png, "number": flip.index} | {of: called(getattr(flip, of)) for of in ("truth", "before", "after")}
                    for flip in one.flips
                ],
            }
        )
    for told in found:
        flips, most = told["flips"], room // len(found)
        lengths = itertools.accumulate(len(flip["png"]) for flip in flips)
        told["flips"] = [flip for flip, length in zip(flips, lengths, strict=True) if length <= most]
        told["left_out"] = f" ({len(told['flips'])} of {len(flips)} fit here)" if len(told["flips"]) < len(flips) else ""
    return found


def _across(results: Sequence[Result]) -> str | None:
    """Why no section is compared with another; None for a single one."""
    if len(results) < 2:
        return None
    apart = sorted({name for one, other in itertools.combinations(results, 2) for name in differences(one.machine, other.machine)})
    told = f"these machines are unlike ({', '.join(apart)})" if apart else "they were not measured side by side"
    return f"No speedup is given from one section to another: {told}. Each speedup is that within its own section."


def _listed(fact: Any) -> str:
    """A fact of any depth as one line: ``numpy 2.4.6, torch 2.15.0``."""
    if isinstance(fact, dict):
        return ", ".join(f"{name} {_listed(value)}" for name, value in fact.items())
    if isinstance(fact, list | tuple):
        return " ".join(_listed(value) for value in fact)
    return str(fact)
