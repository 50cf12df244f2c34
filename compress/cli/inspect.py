"""The commands that look at what was made: predict, explain, verify."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..api.network import Network
from ..api.network import verify as verifying
from .options import command
from .tables import show, table

if TYPE_CHECKING:
    from ..plots.explain import View
    from ..stages.explain import Explanation
    from ..stages.predict import Predictions
    from ..stages.verify import Proof


@command(
    Network.predict,
    """compress predict --model k49 --random 16
          compress predict --onnx model.onnx letter.png""",
    arguments=("files...",),
    defaults={"grid": Path("predictions.png")},
)
def predict(read: "Predictions", as_json: bool) -> None:
    """A line per image, and where the picture lies."""
    about = {"grid": str(read.picture) if read.picture else None, "predictions": [dataclasses.asdict(one) for one in read.images]}
    show(as_json, lambda: about, lambda: predictions_text(read))


@command(
    Network.explain,
    """compress explain --model k49 --index 3 --index 17
          compress explain --model k49 --misread 4""",
    arguments=("files...",),
)
def explain(found: "Explanation", as_json: bool) -> None:
    """The answers, the gates, and where the picture lies."""
    show(as_json, lambda: summary(found), lambda: explanation_text(found))


@command(verifying, "compress verify board/k49", arguments=("folder",), closed=True)
def verify(proof: "Proof", as_json: bool) -> None:
    """One line per check; exit code 1 when the proof fails."""
    about = {"folder": str(proof.folder), "holds": proof.holds, "checks": [dataclasses.asdict(check) for check in proof.checks]}
    show(as_json, lambda: about, lambda: proof_text(proof))
    if not proof.holds:
        raise click.exceptions.Exit(1)


def predictions_text(read: "Predictions") -> str:
    """One line per image, and how many were right where the truth is known."""
    rows = [
        {"image": p.name, "label": p.label, "probability": f"{100 * p.probability:.1f}%"}
        | ({"true": p.truth + ("" if p.truth == p.label else "   <- misread")} if p.truth is not None else {})
        for p in read.images
    ]
    known = [p for p in read.images if p.truth is not None]
    right = sum(p.truth == p.label for p in known)
    told = [f"{right} of {len(known)} read correctly"] if known else []
    picture = read.picture or "none, matplotlib is not installed here"
    return "\n".join([table(rows), *told, f"picture: {picture}"])


def summary(explanation: "Explanation") -> dict[str, Any]:
    """What ``--json`` shows: per image and network the answer, each gate in figures, and how both compare with the first network."""
    return {
        "picture": str(explanation.picture),
        "remarks": list(explanation.remarks),
        "images": [
            {"index": one.index, "truth": one.truth, "networks": [_figures(view, one.views[0]) for view in one.views]}
            for one in explanation.seen
        ],
    }


def explanation_text(explanation: "Explanation") -> str:
    """A table of the answers, one of the gates over all images, and the remarks."""
    seen = explanation.seen
    figures = [[_figures(view, one.views[0]) for view in one.views] for one in seen]
    first, *others = [view.network for view in seen[0].views]
    answers = [
        {
            "image": str(one.index),
            "true": one.truth,
            "network": view.network,
            "read as": view.label + ("" if view.label == one.truth else "   <- misread"),
            "probability": f"{100 * view.probability:.1f}%",
        }
        | ({f"evidence: correlation with {first}": _number(of["evidence"]["correlation"])} if others else {})
        for one, row in zip(seen, figures, strict=True)
        for view, of in zip(one.views, row, strict=True)
    ]
    parts = [table(answers)]
    if gates := _gates_over_images(figures):
        compared = f"; r: rank correlation with {first}, mean over the images" if others else ""
        parts.append(f"Gates: mean (lowest to highest){compared}\n\n{table(gates)}")
    return "\n\n".join([*parts, "\n".join([*explanation.remarks, f"picture: {explanation.picture}"])])


def _figures(view: "View", first: "View") -> dict[str, Any]:
    from ..graphs.gates import correlation, rank_correlation
    from ..plots.explain import gate_names

    gates = []
    for place, (gate, name) in enumerate(zip(view.gates, gate_names(view.gates), strict=True)):
        other = first.gates[place].values if place < len(first.gates) and first.gates[place].kind == gate.kind else np.zeros(0)
        gates.append(
            {
                "gate": name,
                "shape": list(gate.values.shape),
                "mean": float(gate.values.mean()),
                "min": float(gate.values.min()),
                "max": float(gate.values.max()),
                "rank_correlation": rank_correlation(gate.values, other),
                "mean_difference": float(np.abs(gate.values - other).mean()) if gate.values.shape == other.shape else None,
            }
        )
    evidence = {"correlation": correlation(view.for_truth, first.for_truth), "strongest": float(view.for_truth.max())}
    return {"network": view.network, "label": view.label, "probability": view.probability, "gates": gates, "evidence": evidence}


def _gates_over_images(figures: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
    """A row per gate, a column per network. ``figures``: per image, per network."""
    most = max(figures[0], key=lambda one: len(one["gates"]))["gates"]
    return [
        {"gate": gate["gate"]}
        | {
            one["network"]: _cell([row[place]["gates"][number : number + 1] for row in figures], place > 0)
            for place, one in enumerate(figures[0])
        }
        for number, gate in enumerate(most)
    ]


def _cell(found: Sequence[Sequence[dict[str, Any]]], compared: bool) -> str:
    """One gate of one network, from a list per image that holds it, or nothing where the network has fewer gates."""
    gates = [gate for one in found for gate in one]
    if not gates:
        return "-"
    mean, low, high = np.mean([one["mean"] for one in gates]), min(one["min"] for one in gates), max(one["max"] for one in gates)
    text = f"{mean:.2f} ({low:.2f} to {high:.2f})"
    known = [one["rank_correlation"] for one in gates if one["rank_correlation"] is not None]
    return f"{text}  r {_number(float(np.mean(known)) if known else None)}" if compared else text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def proof_text(proof: "Proof") -> str:
    """One line per check, and the outcome."""
    lines = [f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<13} {check.detail}" for check in proof.checks]
    return "\n".join([*lines, f"{proof.folder}: {'proved' if proof.holds else 'NOT proved; copy or export the model again'}"])
