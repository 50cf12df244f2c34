"""The commands that look at what was made: predict, explain, verify."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..api.network import Network
from ..api.network import verify as verifying
from ..stages.predict import Predictions
from ..stages.verify import Proof
from .options import command
from .tables import paragraphs, shown, table

if TYPE_CHECKING:
    from ..plots.explain import View
    from ..stages.explain import Explanation


def predictions_text(read: Predictions) -> str:
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
    rows = []
    for number, gate in enumerate(max(figures[0], key=lambda one: len(one["gates"]))["gates"]):
        row = {"gate": gate["gate"]}
        for place, one in enumerate(figures[0]):
            gates = [image[place]["gates"][number] for image in figures if number < len(image[place]["gates"])]
            row[one["network"]] = _cell(gates, place > 0)
        rows.append(row)
    return rows


def _cell(gates: Sequence[dict[str, Any]], compared: bool) -> str:
    if not gates:  # the network has fewer
        return "-"
    mean, low, high = np.mean([one["mean"] for one in gates]), min(one["min"] for one in gates), max(one["max"] for one in gates)
    text = f"{mean:.2f} ({low:.2f} to {high:.2f})"
    known = [one["rank_correlation"] for one in gates if one["rank_correlation"] is not None]
    return f"{text}  r {_number(float(np.mean(known)) if known else None)}" if compared else text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def proof_text(proof: Proof) -> str:
    """One line per check, and the outcome."""
    lines = [f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<13} {check.detail}" for check in proof.checks]
    return "\n".join([*lines, f"{proof.folder}: {'proved' if proof.holds else 'NOT proved; copy or export the model again'}"])


predict = command(
    Network.predict,
    """compress predict --model k49 --random 16
          compress predict --onnx model.onnx letter.png""",
)(shown(predictions_text, lambda read: {"grid": read.picture, "predictions": read.images}))
explain = command(
    Network.explain,
    """compress explain --model k49 --index 3 --index 17
          compress explain --model k49 --misread 4""",
)(shown(explanation_text, explanation_summary))
verify = command(verifying, "compress verify board/k49")(
    shown(proof_text, lambda proof: {"folder": proof.folder, "holds": proof.holds, "checks": proof.checks}, lambda proof: proof.holds)
)
