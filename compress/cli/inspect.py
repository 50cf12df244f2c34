"""cli.inspect"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..artifacts.context import Options
from ..graphs.gates import correlation, rank_correlation
from ..plots.explain import View, gate_names
from ..stages.explain import Explanation
from ..stages.verify import Proof
from .options import (
    PATH,
    data_options,
    network_options,
    parent_options,
    run_options,
)
from .tables import table


@click.command()
@click.argument("files", nargs=-1, type=PATH)
@click.option("--onnx", type=PATH, metavar="FILE", help="Read with this ONNX file.")
@click.option("--random", "count", type=click.IntRange(1, 400), help="Read this many random test images, and show their true labels.")
@click.option("--invert", is_flag=True, help="Turn dark ink on light paper into light on dark, as the data sets have it.")
@click.option("--grid", type=PATH, metavar="PNG", help="Where the picture goes.  [default: predictions.png]")
@network_options
@data_options
@run_options
@parent_options
def predict(files: tuple[Path, ...], onnx: Path | None, count: int | None, invert: bool, grid: Path | None, **shared: Any) -> None:
    """Read image files, or random test images: label, probability, and a picture of them.

    \b
    Example:  compress predict --model k49 --random 16
              compress predict --onnx model.onnx letter.png
    """
    from ..stages.predict import read
    from .tables import predictions_text

    picture = grid or Path("predictions.png")
    predictions, drawn = read(Options(**shared), files, onnx, count, invert, picture)
    if shared["as_json"]:
        grid_name = str(picture) if drawn else None
        click.echo(json.dumps({"grid": grid_name, "predictions": [dataclasses.asdict(one) for one in predictions]}, indent=1))
    else:
        click.echo(f"{predictions_text(predictions)}\npicture: {picture if drawn else 'none, matplotlib is not installed here'}")


@click.command()
@click.argument("files", nargs=-1, type=PATH)
@click.option("--index", "indices", type=int, multiple=True, metavar="I", help="Draw this test image, counted from 0; repeat for more.")
@click.option(
    "--misread", type=click.IntRange(1, 240), metavar="N", help="Draw the N most confidently misread.  [default: 8, without --index]"
)
@click.option(
    "--blocks",
    type=click.Choice(["some", "all"]),
    default="some",
    show_default=True,
    help="Spatial gates to draw: of each size the one that varies most, or all.",
)
@click.option("--out", type=PATH, metavar="PNG", default=Path("explain.png"), show_default=True, help="Where the picture goes.")
@network_options
@data_options
@run_options
@parent_options
def explain(
    files: tuple[Path, ...], indices: tuple[int, ...], misread: int | None, blocks: str, out: Path, as_json: bool, **shared: Any
) -> None:
    """Draw what networks look at, before and after compression: attention gates, and evidence for the true class and for the answer.

    FILES are .onnx files or folders of artifacts; without any, the newest trained network, its newest pruned descendant and int8 graph.

    \b
    Example:  compress explain --model k49 --index 3 --index 17
              compress explain --model k49 --misread 4
    """
    from ..stages.explain import explain as look

    found = look(Options(**shared), files, indices, misread, blocks == "all", out)
    click.echo(json.dumps(summary(found, out), indent=1) if as_json else explanation_text(found, out))


@click.command()
@click.argument("folder", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the proof as one JSON object.")
def verify(folder: Path, as_json: bool) -> None:
    """Prove again, on any machine, that a model computes what it was made to: its hash, and its logits for the images beside it.

    FOLDER holds model.onnx and vectors.npz, as export-onnx and quantize wrote them. Exit code 1 when the proof fails.

    Example:  compress verify board/k49
    """
    from ..stages.verify import verify as prove

    proof = prove(folder)
    about = {"folder": str(proof.folder), "holds": proof.holds, "checks": [dataclasses.asdict(check) for check in proof.checks]}
    click.echo(json.dumps(about, indent=1) if as_json else proof_text(proof))
    if not proof.holds:
        raise click.exceptions.Exit(1)


def summary(explanation: Explanation, picture: Path) -> dict[str, Any]:
    """What ``--json`` shows: per image and network the answer, each gate in figures, and how both compare with the first network."""
    return {
        "picture": str(picture),
        "remarks": list(explanation.remarks),
        "images": [
            {"index": one.index, "truth": one.truth, "networks": [_figures(view, one.views[0]) for view in one.views]}
            for one in explanation.seen
        ],
    }


def explanation_text(explanation: Explanation, picture: Path) -> str:
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
    return "\n\n".join([*parts, "\n".join([*explanation.remarks, f"picture: {picture}"])])


def _figures(view: View, first: View) -> dict[str, Any]:
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


def proof_text(proof: Proof) -> str:
    """One line per check, and the outcome."""
    lines = [f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<13} {check.detail}" for check in proof.checks]
    return "\n".join([*lines, f"{proof.folder}: {'proved' if proof.holds else 'NOT proved; copy or export the model again'}"])
