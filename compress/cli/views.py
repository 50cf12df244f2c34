"""What commands tell of a result that is no artifact, or has a payload of its own: as text, and as the parts of its JSON.

Loads neither torch nor matplotlib before a result of theirs is shown.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifacts.artifact import Artifact
from ..artifacts.payloads import Noise, Sensitivity, read_payload
from ..artifacts.records import plain
from ..benchmarks import compare
from ..benchmarks.formats import size
from ..benchmarks.statistics import Interval
from .tables import paragraphs, table

if TYPE_CHECKING:
    from ..plots.explain import View
    from ..serve.page.folder import Paged
    from ..serve.service import Served
    from ..stages.boards.export_c import ExportedC
    from ..stages.explain import Explanation
    from ..stages.predict import Predictions
    from ..stages.throughput import Throughput
    from ..stages.tune import Tuned
    from ..stages.verify import Proof
    from ..train.space import Space
    from ..train.tune import Trial


def tuned_summary(tuned: "Tuned") -> dict[str, Any]:
    """What ``--json`` shows."""
    about = {"study": tuned.study, "folder": tuned.folder, "recipe": tuned.folder / "best.toml"}
    return about | {"best": tuned.summary.best, "importances": dict(tuned.summary.importances), "trials": tuned.summary.trials}


def tuned_text(tuned: "Tuned", most: int = 20) -> str:
    """A row per trial, the best first and those given up last with the reason; then what mattered, and where the recipe lies."""
    trials = sorted(tuned.summary.trials, key=lambda t: (t.state != "complete", t.state, -(t.score or 0.0)))
    shares = sorted(tuned.summary.importances.items(), key=lambda pair: -pair[1])
    told = ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares)
    return paragraphs(
        table([_trial_row(trial, tuned.space) for trial in trials[:most]]),
        f"and {len(trials) - most} more in {tuned.folder / 'trials.csv'}" if len(trials) > most else "",
        f"share in the variance of the score: {told}" if told else "",
        f"pictures: {tuned.folder}\nbest: compress train --recipe {tuned.folder / 'best.toml'}",
    )


def _trial_row(trial: "Trial", space: "Space") -> dict[str, str]:
    from ..stages.tune import percent

    about = {"trial": str(trial.number), "balanced acc.": percent(trial)}
    about |= {title: f"{trial.notes[name]:,}" if name in trial.notes else "" for name, title in (("params", "params"), ("macs", "MACs"))}
    about |= {name.partition(".")[2]: _setting(trial.values.get(name, "")) for name in space}
    return about | {"": trial.reason or ("" if trial.state == "complete" else trial.state)}


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return "-".join(map(str, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


ROWS = {"weight": ("layer", "weights"), "channel": ("group", "width"), "module": ("module", "parameters")}


def sensitivity_text(artifact: Artifact) -> str:
    """A row for each layer, group or module, in the order of the network, with the points of balanced accuracy that it costs."""
    from ..plots.sensitivity import cell
    from ..stages.sensitivity import STAGE, _column, _title

    result = read_payload(artifact, Sensitivity)
    first, second = ROWS[result.granularity]
    rows = [
        {first: curve.name, second: f"{curve.size:,}"}
        | {_column(result, point): cell(point.points_lost) for point in curve.points}
        | ({"rise of cross-entropy": f"{max(result.rises[curve.name].values()):.3f}"} if result.latency else {})
        | ({"latency without it": _ratio(result.latency[curve.name])} if result.latency else {})
        for curve in result.curves
    ]
    told = f"{_title(result)}, by {result.images:,} training images and without fine-tuning:"
    return f"{told}\n\n{table(rows)}\n\nheat map  {artifact.path / f'{STAGE}.png'}\nartifact  {artifact.path}"


def noise_text(artifact: Artifact) -> str:
    """Both tables: layers in the order of the graph, groups from the one that gains most time to the one that loses most."""
    folder, result = artifact.path, read_payload(artifact, Noise)
    figures = {"with all before (dB)": "output_db", "its own (dB)": "own_db", "its weights (dB)": "weight_db"}
    layers = [
        {"layer": one.label, "kind": one.kind}
        | {title: _number(getattr(one, name), 1, "") for title, name in figures.items()}
        | {"clipped": "" if one.clipped is None else f"{100 * one.clipped:.3f}%"}
        | {f"{what} (us)": _number(time, 1, "") for what, time in zip(("float32", "int8"), one.microseconds, strict=True)}
        for one in result.layers
    ]
    groups = [
        {"alone in int8": one.name, "nodes": str(one.nodes), "logits (dB)": _number(one.logits_db, 1, "")}
        | {"answers changed": f"{100 * one.changed:.2f}%"}
        | {"latency": _ratio(one.latency)}
        for one in sorted(result.groups, key=lambda one: one.latency.value)
    ]
    told = f"Signal to quantization noise of each layer on {result.images:,} validation images, all in int8 ({result.setting}):"
    second = "What each group costs alone, as a fraction of float32's latency; below 1x it gains time:"
    return f"{told}\n\n{table(layers)}\n\n{second}\n\n{table(groups)}\n\npicture   {folder / 'noise.png'}\nartifact  {folder}"


def _ratio(one: Interval) -> str:
    return f"{one.value:.3f}x ({one.low:.3f} to {one.high:.3f})"


def _number(value: float | None, digits: int = 2, missing: str = "-") -> str:
    return missing if value is None else f"{value:.{digits}f}"


def changes_text(found: compare.Changes) -> str:
    """A row per candidate, and what a reader should know besides."""
    return "\n".join([table(compare.rows(found)), "", *found.remarks])


def throughput_text(found: "list[Throughput]") -> str:
    """A row per variant of the training loop."""
    rows = [
        {"variant": one.variant, "images/s": f"{np.median(one.images_per_second):,.0f}"}
        | {"ratio (95% interval)": f"{one.ratio.value:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})" if one.ratio else "baseline"}
        for one in found
    ]
    return table(rows)


def predictions_text(read: "Predictions") -> str:
    """One line per image, and how many were right where the truth is known."""
    from ..plots.predictions import MOST_DRAWN

    rows = [
        {"image": p.name, "label": p.label, "probability": f"{100 * p.probability:.1f}%"}
        | ({"true": p.truth + ("" if p.truth == p.label else "   <- misread")} if p.truth is not None else {})
        for p in read.images
    ]
    right = [p.truth == p.label for p in read.images if p.truth is not None]
    told = [f"{sum(right)} of {len(right)} read correctly"] if right else []
    picture = read.picture or "none, matplotlib is not installed here"
    part = f", of the first {MOST_DRAWN}" if read.picture and len(read.images) > MOST_DRAWN else ""
    return "\n".join([table(rows), *told, f"picture: {picture}{part}"])


def explanation_summary(explanation: "Explanation") -> dict[str, Any]:
    """What ``--json`` shows: per image and network the answer, each gate in figures, and how both compare with the first network."""
    images = [
        {"index": one.index, "truth": one.truth, "networks": [_figures(view, one.views[0]) for view in one.views]}
        for one in explanation.seen
    ]
    return {"picture": explanation.picture, "remarks": explanation.remarks, "images": images}


def explanation_text(explanation: "Explanation") -> str:
    """A table of the answers, one of the gates over all images, and the remarks."""
    images = explanation_summary(explanation)["images"]
    first, *others = [of["network"] for of in images[0]["networks"]]
    answers = [
        {"image": str(one["index"]), "true": one["truth"], "network": of["network"]}
        | {"read as": of["label"] + ("" if of["label"] == one["truth"] else "   <- misread")}
        | {"probability": f"{100 * of['probability']:.1f}%"}
        | ({f"evidence: correlation with {first}": _number(of["evidence"]["correlation"])} if others else {})
        for one in images
        for of in one["networks"]
    ]
    gates = _gates_over_images([one["networks"] for one in images])
    compared = f"; r: rank correlation with {first}, mean over the images" if others else ""
    return paragraphs(
        table(answers),
        f"Gates: mean (lowest to highest){compared}\n\n{table(gates)}" if gates else "",
        "\n".join([*explanation.remarks, f"picture: {explanation.picture}"]),
    )


def _figures(view: "View", first: "View") -> dict[str, Any]:
    from ..graphs.evidence.gates import correlation, rank_correlation
    from ..plots.explain import gate_names

    gates = []
    for place, (gate, name) in enumerate(zip(view.gates, gate_names(view.gates), strict=True)):
        other = first.gates[place].values if place < len(first.gates) and first.gates[place].kind == gate.kind else np.zeros(0)
        gates.append(
            {"gate": name, "shape": list(gate.values.shape)}
            | {figure: float(getattr(gate.values, figure)()) for figure in ("mean", "min", "max")}
            | {"rank_correlation": rank_correlation(gate.values, other)}
            | {"mean_difference": float(np.abs(gate.values - other).mean()) if gate.values.shape == other.shape else None}
        )
    evidence = {"correlation": correlation(view.for_truth, first.for_truth), "strongest": float(view.for_truth.max())}
    return {"network": view.network, "label": view.label, "probability": view.probability, "gates": gates, "evidence": evidence}


def _gates_over_images(figures: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
    """A row per gate, a column per network. ``figures``: per image, per network."""
    rows = []
    for number, gate in enumerate(max(figures[0], key=lambda one: len(one["gates"]))["gates"]):
        row = {"gate": gate["gate"]}
        for place, one in enumerate(figures[0]):
            gates = [image[place]["gates"][number] for image in figures if number < len(image[place]["gates"])]
            row[one["network"]] = _cell(gates, place > 0) if gates else "-"  # the network has fewer
        rows.append(row)
    return rows


def _cell(gates: Sequence[dict[str, Any]], compared: bool) -> str:
    mean, low, high = np.mean([one["mean"] for one in gates]), min(one["min"] for one in gates), max(one["max"] for one in gates)
    text = f"{mean:.2f} ({low:.2f} to {high:.2f})"
    known = [one["rank_correlation"] for one in gates if one["rank_correlation"] is not None]
    return f"{text}  r {_number(float(np.mean(known)) if known else None)}" if compared else text


def proof_text(proof: "Proof") -> str:
    """One line per check, and the outcome."""
    lines = [f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<13} {check.detail}" for check in proof.checks]
    return "\n".join([*lines, f"{proof.folder}: {'proved' if proof.holds else 'NOT proved; copy or export the model again'}"])


def c_text(exported: "ExportedC") -> str:
    """A row per layer, then flash and arena of all of it."""
    made = exported.made
    rows = [
        {"layer": one.name, "kind": one.kind, "MACs": f"{one.macs:,}", "flash": f"{one.weights:,}", "arena": f"{one.arena:,}"}
        for one in made.layers
    ]
    told = [
        f"C for {made.target}: {made.flash_bytes:,} bytes of weights in flash, code besides; arena {made.arena_bytes:,} bytes"
        f" (one layer alone needs {max((one.arena for one in made.layers), default=0):,})",
        f"in {exported.folder}: {', '.join(sorted(made.files))}",
        f"next: compress verify {exported.folder}",
    ]
    return paragraphs(table(rows, spare=("MACs", "kind")), "\n".join(told))


def c_summary(exported: "ExportedC") -> dict[str, Any]:
    """What ``--json`` shows: the record, and where the folder lies."""
    return {"folder": exported.folder, **plain(exported.made), "flags": exported.made.processor.flags}


def paged_text(paged: "Paged") -> str:
    """Where it lies, and how it is seen."""
    told = f"{paged.folder}: {', '.join(paged.models)}, {size(paged.size)} in all; any static host can serve it"
    return f"{told}\nto see it here: python -m http.server --directory {paged.folder}"


def served_text(served: "Served") -> str:
    """What was done until it was told to end."""
    return f"{served.address}: {served.answered:,} requests answered, {served.images:,} images read, {served.refused:,} requests refused"
