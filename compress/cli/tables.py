"""What commands print: tables for people, JSON for scripts."""

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec import UNSET

from ..artifacts.artifact import Artifact
from ..artifacts.parts import SCORES, Chosen, Folded, Gains, Metrics, Repair, Scores
from ..artifacts.payloads import Folds, read_payload, read_results
from ..artifacts.project import described
from ..artifacts.records import plain
from ..benchmarks.drops import loss
from ..benchmarks.formats import MISSING, ZEROS, Units, milliseconds, percent, size, title, units
from ..benchmarks.results import LayerZeros, Measurement, Result
from ..benchmarks.tables import OF_SIGMOIDS, as_json
from ..benchmarks.verdict import Verdict
from ..graphs.records import Parity
from ..quantization.records import Tried
from ..stages.report import Outcome
from .options import Show
from .terminal import tell

NARROW, ENDS = 9, 5  # characters of a column whose cells are not wrapped; layers shown of the densest, and of the sparsest


def table(rows: Sequence[Mapping[str, str]], spare: Sequence[str] = ()) -> str:
    """Rows of the same keys as a table that fits the terminal, or 80 columns where there is none.

    Long cells are wrapped between words. Of what does not fit even so, the columns in ``spare`` are left out, the first of them first.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, names = Console(), list(rows[0])
    cells = {name: [name, *(row[name] for row in rows)] for name in names}
    least = {
        name: max(len(part) for cell in own for part in (cell.split() or [""] if max(map(len, own)) > NARROW else [cell]))
        for name, own in cells.items()
    }
    for name in filter(names.__contains__, spare):
        if sum(least[one] for one in names) + 3 * len(names) > console.width:
            names.remove(name)
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    left = console.width - 3 * len(names) - sum(least[name] for name in names)
    for name in names:  # rich would take from narrow columns what wide ones need
        more = max(0, min(left, max(map(len, cells[name])) - least[name]))
        made.add_column(Text(name), overflow="fold", width=least[name] + more if left >= 0 else min(least[name], console.width // 3))
        left -= more
    for row in rows:
        marked = any(row[name].endswith(" *") or row[name] == "*" for name in names)
        texts = [Text(row[name], style="red" if row[name].endswith("<- misread") else "") for name in names]
        made.add_row(*texts, style="bold" if marked else "")
    with console.capture() as captured:
        console.print(made)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def shown(text: Callable[[Any], str], about: Callable[[Any], Any], holds: Callable[[Any], bool] = lambda _: True) -> Show:
    """Prints a result: ``text`` for people; ``about``, records and paths in it too, as JSON for scripts; exit code 1 unless it holds."""

    def plainly(value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else dataclasses.asdict(value)

    def show(result: Any, as_json: bool) -> None:
        tell(json.dumps(about(result), indent=1, default=plainly) if as_json else text(result))
        if not holds(result):
            raise click.exceptions.Exit(1)

    return show


def paragraphs(*parts: str) -> str:
    """The parts that say something, with an empty line between them."""
    return "\n\n".join(filter(None, parts))


# What a stage's artifact is for: the commands that start from it, the likeliest first. {} is the artifact's folder.
NEXT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("train", "import"), ("compress remove-channels --from {} --max-macs 0.5x", "compress export-onnx --from {}")),
    **dict.fromkeys(("prune", "remove-channels"), ("compress export-onnx --from {}",)),
    **dict.fromkeys(("export", "remove-channels-onnx", "import-onnx"), ("compress quantize --from {}", "compress verify {}")),
    "quantize": ("compress verify {}", "compress benchmark {}"),
    "benchmark": ("compress report {}/benchmark.json",),
}


def next_commands(artifact: Artifact) -> list[str]:
    unscored = artifact.manifest.kind == "benchmark" and not read_results(artifact.payload).scored
    if unscored or (artifact.manifest.task and artifact.manifest.kind != "benchmark"):  # the functions have to be named again
        return []
    there = " --on BOARD" if artifact.manifest.stage == "quantize" and artifact.manifest.config.get("target") else ""
    path, told = artifact.path, NEXT.get(artifact.manifest.stage, ())
    runs = path.parents[2] if path.parent.name == artifact.manifest.stage and len(path.parts) > 3 else Path("runs")
    kept = f" --runs {shlex.quote(str(runs))}" * (runs != Path("runs"))
    return [one.format(shlex.quote(str(path))) + kept * ("--from" in one) + there * ("benchmark" in one) for one in told]


def _page(artifact: Artifact) -> str:
    lines = [f"{'or' if index else 'next'}: {one}" for index, one in enumerate(next_commands(artifact))]
    return paragraphs(artifact_text(artifact), "\n".join(lines))


def summary(artifact: Artifact) -> dict[str, Any]:
    """What ``--json`` shows of an artifact."""
    about = artifact.manifest
    names = ("kind", "stage", "hash", "config", "metrics", "facts", "files")
    origin = {"path": str(artifact.parent.path), "told": described(artifact.parent)} if artifact.parent else None
    said = {"artifact": str(artifact.path), "from": origin, "next": next_commands(artifact)}
    said |= {name: plain(getattr(about, name)) for name in (*names, "input")}
    if about.kind == "folds":
        return said | {"result": plain(read_payload(artifact, Folds))}
    return said | (as_json(read_results(artifact.payload)) if about.kind == "benchmark" else {})


def payload_summary(cls: type) -> Callable[[Artifact], dict[str, Any]]:
    """What ``--json`` shows of an artifact whose payload, of the type ``cls``, says all."""
    return lambda artifact: {"artifact": str(artifact.path), **plain(read_payload(artifact, cls))}


def artifact_text(artifact: Artifact) -> str:
    """The figures that the stage of ``artifact`` found, one per line."""
    about = artifact.manifest
    if about.kind == "benchmark":
        return f"{result_text(read_results(artifact.payload))}\n\nResult: {artifact.payload}"
    if about.kind == "folds":
        return f"{folds_text(read_payload(artifact, Folds))}\nartifact  {artifact.path}"
    metrics, told = about.metrics, _units(about.metrics)
    rows = ({"from": described(artifact.parent)} if artifact.parent else {}) | {"artifact": str(artifact.path)}
    for part in ("validation", "test"):
        if scores := getattr(metrics, part):
            names = (*SCORES, *["mean_average_precision"] * (scores.mean_average_precision is not UNSET))
            rows |= {f"{part} {name.replace('_', ' ')}": percent(getattr(scores, name)) for name in names}
    if (own := metrics.score) and own.value is not UNSET:
        rows[f"{own.name} of validation images"] = f"{told.value(own.value)}, higher is better ({own.images:,} images)"
    if metrics.score_lost is not UNSET:
        rows[f"{told.score} lost by it"] = told.drop(metrics.score_lost)
    if metrics.one_shot and metrics.best_epoch is not UNSET:  # without training it is that of the validation images above
        rows["balanced accuracy before fine-tuning"] = percent(metrics.one_shot.balanced_accuracy)
    rows |= {f"parity with {'the graph' if about.kind == 'litert' else 'torch'}": _parity_text(metrics.parity)} if metrics.parity else {}
    if metrics.rewrites:
        rows["rewritten"] = ", ".join(metrics.rewrites)
    if metrics.constants:
        rows |= _constant_rows(metrics.constants)
    rows |= {"points lost by it": f"{metrics.points_lost:z.2f}"} if metrics.points_lost is not UNSET else {}
    if about.stage == "quantize" and (target := about.config.get("target")):
        rows["made for"] = f"{target}, where its latency is unknown"
    if metrics.stored:
        rows["stored in fewer bits"] = f"{len(metrics.stored.weights)} weights; they are computed with as float32"
    if quantized := metrics.quantized:
        for name, operators in (("int8", quantized.operators), ("still float", quantized.left)):
            rows[name] = ", ".join(f"{count} {kind}" for kind, count in operators.items()) or "nothing"
        rows |= {f"  {kind}": why for kind, why in quantized.reasons.items()}
    facts = about.facts
    if facts.params and facts.nonzeros is not UNSET:
        rows["parameters"] = f"{facts.params:,}, {100 * (1 - facts.nonzeros / facts.params):.0f}% of them zero"
        rows["MACs per image"] = f"{facts.macs:,}"
    rows["size"] = f"{artifact.payload.stat().st_size:,} bytes"
    return paragraphs(
        "\n".join(f"{name.ljust(max(map(len, rows)))}  {value}" for name, value in rows.items()),
        _choice_text(metrics.choice, told) if metrics.choice else "",
        _removal_text(metrics, metrics.gains) if metrics.gains else "",
        _repair_text(metrics.repair, "as zeroed", told) if metrics.repair and not metrics.gains else "",
        _layers_text(metrics.layers) if metrics.layers else "",
    )


def _parity_text(parity: Parity) -> str:
    probable = parity.probabilities  # files of older versions give none
    return (
        f"largest logit difference {parity.largest_difference:.1e}, "
        + (f"of probabilities {probable:.1e}, " if isinstance(probable, float) else "")
        + f"same label on {100 * parity.agreement:.2f}% of {parity.images} images"
    )


def _constant_rows(folded: Folded) -> dict[str, str]:
    """What was folded, what that saved and cost, and what was left in and why."""
    rows = {"constants folded": ", ".join(one.name for one in folded.tensors) or "none"}
    if folded.tensors:
        before, after = folded.nodes
        rows["  nodes"] = f"{before} before, {after} now"
        rows["  points lost by it"] = f"{folded.drop:z.2f}, at most {folded.bound:.2f} with 95% confidence, on {folded.images:,} images"
    if folded.parity:
        rows["  parity with it"] = _parity_text(folded.parity)
    return rows | ({"  left": folded.left} if folded.left else {})


def _units(metrics: Metrics) -> Units:
    return Units(metrics.score.name if metrics.score else "")


def _choice_text(choice: Chosen, told: Units) -> str:
    """The last candidates of the search, side by side, and why one of them was taken."""
    latency = f"latency of float32's{', as C' if choice.runtime == 'c' else ''} (95%)"
    rows = [
        {"": "*" if one == choice.best else "", "computed in int8": tried_name(one)}
        | {latency: "unknown" if None in (one.ratio, one.low, one.high) else f"{one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f})"}
        | {f"{told.score or 'points'} lost": MISSING if one.drop is None else told.drop(one.drop)}
        | {"at most (95%)": MISSING if one.bound is None else told.drop(one.bound), "size": size(one.size or 0)}
        for one in choice.finalists
    ]
    more = f"{choice.tried} candidates were tried before: {choice.artifact}"
    return f"{table(rows)}\n\n{choice.verdict}\n{more}"


def tried_name(one: Tried) -> str:
    """``pointwise at 7x7 (minmax, per channel)`` for a row of a ``choice.json``."""
    if one.setting is None:
        return {"float32": "nothing", "dynamic": "linear layers, dynamically"}.get(one.mode, f"nothing; {one.mode.replace('-', ' ')}")
    groups = one.groups if len(one.groups) <= 3 else [*one.groups[:2], f"{len(one.groups) - 2} more"]
    return f"{', '.join(groups)} ({one.setting})"


def _repair_text(repair: Repair, bare: str, told: Units) -> str:
    """What made up for what went before any fine-tuning, and what else was tried; the losses are those of training images."""
    names = {"cut": bare, "batch norm": "batch norm re-estimated", "least squares": "least squares", "both": "both"}
    measure = f"{told.score}, negated" if told.score else "cross-entropy"
    rows = [
        {"before fine-tuning": names.get(name, f"importance {name}"), measure: f"{loss:.3g}" if told.score else f"{loss:.3f}"}
        | {"": "taken" if name in (repair.how, repair.importance) else ""}
        for name, loss in (*(repair.importances or {}).items(), *repair.losses.items())
    ]
    left = [f"{name}: not solved, {why}" for name, why in repair.left.items() if not why.startswith("nothing")]
    return "\n".join([*([table(rows)] if rows else []), *left])


def _removal_text(metrics: Metrics, gains: Gains) -> str:
    """What channel removal gained beside the teacher, the width of each group, and what was left whole."""
    measured = f"{gains.latency.value:.2f}x ({gains.latency.low:.2f} to {gains.latency.high:.2f})"
    latency = f"latency{' as C' if gains.runtime == 'c' else ''} on this machine {measured}"
    parts = [f"Of the teacher's: MACs {gains.macs:.2f}x, parameters {gains.size:.2f}x, {latency}"]
    parts += [str(gains.memory)] if gains.memory else []
    if drop := metrics.drop:
        told = _units(metrics)
        lost = f"{told.score} lost: {told.drop(drop.value)}" if told.score else f"Balanced accuracy lost: {drop.value:z.2f} points"
        parts.append(f"{lost}, at most {told.drop(drop.bound)} with 95% confidence ({drop.images:,} images)")
    if repair := metrics.repair:
        parts.append(_repair_text(repair, "as cut", _units(metrics)))
    if metrics.widths:
        parts.append(table([{"group": name, "width": str(was), "now": str(now)} for name, (was, now) in metrics.widths.items()]))
    if (rounding := metrics.rounding) and rounding.measured:
        rows = [
            {"widths in multiples of": str(one.round_to), "latency": f"{one.ratio:.2f}x ({one.low:.2f} to {one.high:.2f})"}
            | {"MACs": f"{one.macs:,}", "": "taken" if one.round_to == rounding.round_to else ""}
            for one in rounding.measured
        ]
        parts.append(f"{table(rows)}\nBefore fine-tuning, each meeting the goal of the last step.")
        if rounding.doubt:
            parts.append(f"Doubtful: {rounding.doubt}; on a quieter machine --force measures again.")
    return paragraphs(*parts, "\n".join(metrics.left_whole or ()))


def _layers_text(layers: Sequence[LayerZeros]) -> str:
    """The layers of a pruned network from the densest to the sparsest; of many only the two ends."""
    rows = [
        {"layer": one.name.removesuffix(".weight"), "weights": f"{one.weights:,}", "nonzeros": f"{one.nonzeros:,}"}
        | {"sparsity": percent(one.sparsity)}
        for one in sorted(layers, key=lambda one: -one.nonzeros / one.weights)
    ]
    if (more := len(rows) - 2 * ENDS) > 1:
        rows[ENDS:-ENDS] = [dict.fromkeys(rows[0], "") | {"layer": f"... {more} more, --json has all"}]
    return f"{table(rows)}\n{ZEROS}"


def folds_text(result: Folds) -> str:
    """A row per fold, mean and spread, and the pairs of classes that were confused most."""

    def row(fold: str, images: str, scores: Scores, best: Scores) -> dict[str, str]:
        cells = {name.replace("_", " "): percent(getattr(scores, name)) for name in SCORES}
        return {"fold": fold, "images": images, **cells, "best epoch's (*)": percent(best.balanced_accuracy)}

    rows = [row(str(one.fold), f"{one.images:,}", one.scores, one.best_epoch) for one in result.folds]
    rows += [row("mean", "", result.mean, result.best_epoch.mean), row("spread", "", result.spread, result.best_epoch.spread)]
    pairs = ", ".join(f"{pair.true} as {pair.read} {pair.images} of {pair.of}" for pair in result.confusions)
    return "\n".join(
        [
            table(rows),
            "",
            f"Scores are those of the last epoch ({result.epochs}): nothing was chosen on the images that a fold holds out.",
            "(*) Balanced accuracy of each fold's best epoch on these very images: it flatters.",
            "spread: standard deviation of the folds.",
            f"misread most: {pairs or 'nothing'}",
        ]
    )


def outcome_text(outcome: Outcome) -> str:
    """For each machine the table of its variants and the verdict; then where the report lies."""
    told = zip(outcome.results, outcome.verdicts, strict=True)
    sections = (part for result, verdict in told for part in (result_text(result, verdict), verdict.headline))
    shipped = f"Shipped: {outcome.shipped}; next: {outcome.next_step}" if outcome.shipped else ""
    return paragraphs(*sections, outcome.across, f"Report: {outcome.folder / 'report.html'}", shipped)


def result_text(result: Result, verdict: Verdict | None = None) -> str:
    """The table of a benchmark, the variant that ships marked, and what was not measured."""
    baseline = result.measurements[result.baseline]
    missing = [f"not measured: {title(one)}: {one.reason}" for one in result.measurements if one.latency is None]
    rows = [_row(one, baseline, verdict, result) for one in result.measurements if one.latency is not None]
    if not result.scored:
        rows = [{name: cell for name, cell in row.items() if name not in ("balanced acc.", "accuracy")} for row in rows]
        missing.append(f"{result.data.get('name')}, without labels: latency and size only, no scores; --data names labelled images")
    return paragraphs(table(rows, spare=("p90", "accuracy", "gzipped")) if rows else "", "\n".join(missing))


def outcome_summary(outcome: Outcome) -> dict[str, Any]:
    """What ``--json`` shows of a report."""
    told = {"report": str(outcome.folder / "report.html"), "across": outcome.across or None}
    told |= {"shipped": str(outcome.shipped) if outcome.shipped else None}
    return told | {"sections": [as_json(result, verdict) for result, verdict in zip(outcome.results, outcome.verdicts, strict=True)]}


def _row(one: Measurement, baseline: Measurement, verdict: Verdict | None, result: Result) -> dict[str, str]:
    chosen = verdict is not None and verdict.ships(one)
    assert one.latency is not None, "only what was measured has a row"
    speedup = f"{one.speedup.value:.2f} ({one.speedup.low:.2f} to {one.speedup.high:.2f})" if one.speedup else MISSING
    return {
        "variant": one.name + (" *" if chosen else ""),
        "runtime": f"{one.runtime} {one.device}",
        "p50": milliseconds(one.latency.p50) + (" (?)" if one.doubts else ""),
        "p90": milliseconds(one.latency.p90) if one.latency.p90 is not None else MISSING,
        "speedup (95%)": "baseline" if one is baseline else speedup,
        **_scores(one, baseline, result),
        "size": size(one.size_bytes),
        "gzipped": size(one.gzip_bytes),
    }


def _scores(one: Measurement, baseline: Measurement, result: Result) -> dict[str, str]:
    """Accuracies, or the user's own score and what is lost of it."""
    if (told := units(result)).score:
        drop = None if one is baseline or baseline.reason else loss(result, baseline, result, one).drop
        lost = f"{told.drop(drop.value)} (at most {told.drop(drop.bound)})" if drop else MISSING
        return {told.score: told.value(one.score), "lost (95%)": lost}
    cells = {"balanced acc.": percent(one.scores.get("balanced_accuracy")), "accuracy": percent(one.scores.get("accuracy"))}
    independent = any(OF_SIGMOIDS in other.scores for other in result.measurements)
    return cells | ({"mean avg. precision": percent(one.scores.get(OF_SIGMOIDS))} if independent else {})


show_artifact = shown(_page, summary)
show_outcome = shown(outcome_text, outcome_summary)
