"""The command ``quantize``. Loads click only, until it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..artifacts.artifact import Artifact
from ..artifacts.payloads import Noise, read_payload
from ..artifacts.project import NETWORK_STAGES
from ..artifacts.recipe import training_config
from ..artifacts.records import plain
from ..stages.export import ExportConfig
from ..stages.quantize import QuantizeConfig
from ..train.settings import DistilConfig
from .options import (
    PATH,
    data_options,
    network_options,
    out_option,
    parent_options,
    run_options,
)
from .tables import table

SETTINGS = ("mode", "method", "per_channel", "equalise", "correct_bias", "images", "max_drop", "epochs", "lr")


@click.command()
@click.option("--mode", help="auto (by measurement), static, dynamic, int8-weights, fp16-weights, or float32 (a copy).  [default: auto]")
@click.option("--max-drop", type=float, help="Balanced accuracy that auto may lose on validation images, in points.  [default: 0.3]")
@click.option("--onnx", type=PATH, metavar="FILE", help="Quantize this ONNX classifier, which another tool wrote; needs --data.")
@click.option("--explain", "only_explain", is_flag=True, help="Show what int8 costs each layer, in accuracy and in time; make no file.")
@click.option("--images", type=int, help="Calibration images, drawn evenly from the classes.  [default: 512]")
@click.option("--epochs", type=int, help="Fine-tune the quantized graph for so many epochs.  [default: 0]")
@click.option("--lr", type=float, help="Learning rate at the start of fine-tuning.  [default: 0.0001]")
@click.option("--resume", is_flag=True, help="Go on with a fine-tuning that was interrupted.")
@click.option("--method", help="Static: range of activations by minmax, percentile, entropy or mse.  [default: minmax]")
@click.option("--per-channel/--per-tensor", default=None, help="Static: one weight scale per channel or tensor.  [default: per channel]")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Static: only these groups of nodes; auto names them.")
@click.option("--equalise", is_flag=True, default=None, help="Static: even out the ranges of channels between layers first.")
@click.option("--correct-bias", is_flag=True, default=None, help="Static: take the mean error of rounded weights off the biases.")
@network_options
@data_options
@run_options
@parent_options
@out_option
def quantize(onnx: Path | None, only_explain: bool, groups: tuple[str, ...], **given: Any) -> None:
    """Find the fastest file that still reads as well, by measurement on this machine, and say why; or make one by hand.

    Tried are groups of nodes in int8, ways to calibrate, dynamic quantization, and weights that are only stored in fewer bits. The table of
    everything that was tried is kept, and the same command takes the same choice again. "Do not quantize" is an answer.

    \b
    Example:  compress quantize --model k49
              compress quantize --model k49 --explain
              compress quantize --onnx net.onnx --data path/to/folder --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
              compress quantize --model emnist --mode static --method mse --epochs 3
    """
    from ..artifacts.context import Options
    from ..stages.quantize import quantize as make
    from .tables import show_artifact

    settings = {name: given.pop(name) for name in SETTINGS} | {"groups": groups or None}
    options = Options(**given)
    settings["seed"] = options.seed
    first = options.load_recipe()  # a wrong value should not cost the loading of data first
    first.stage(QuantizeConfig, "quantize", **settings)
    if onnx is not None:
        from ..stages.import_network import import_onnx

        project, recipe = options.project_of_onnx(onnx), first
        graph = import_onnx(project, onnx)
    else:
        from ..stages.export import graph_of

        project, recipe, parent = options.child((*NETWORK_STAGES, "export"), (*NETWORK_STAGES, "export", "import-onnx"))
        graph = graph_of(project, parent, recipe.stage(ExportConfig, "export"))
    config = recipe.stage(QuantizeConfig, "quantize", **settings)
    if only_explain:
        from ..stages.explain_int8 import explain_quantization

        show_noise(explain_quantization(project, graph, config), options.as_json)
        return
    training, distil = training_config(recipe, seed=options.seed), recipe.stage(DistilConfig, "distil")
    show_artifact(make(project, graph, config, training, distil, options.out), options.as_json)


def show_noise(artifact: Artifact, as_json: bool) -> None:
    """Print the two tables and where the picture lies, or everything as one JSON object."""
    result = read_payload(artifact, Noise)
    click.echo(json.dumps({"artifact": str(artifact.path), **plain(result)}, indent=1) if as_json else noise_text(artifact.path, result))


def noise_text(folder: Path, result: Noise) -> str:
    """Both tables: layers in the order of the graph, groups from the one that gains most time to the one that loses most."""
    layers = [
        {"layer": one.label, "kind": one.kind, "with all before (dB)": _db(one.output_db), "its own (dB)": _db(one.own_db)}
        | {"its weights (dB)": _db(one.weight_db), "clipped": "" if one.clipped is None else f"{100 * one.clipped:.3f}%"}
        | {f"{what} (us)": "" if time is None else f"{time:.1f}" for what, time in zip(("float32", "int8"), one.microseconds, strict=True)}
        for one in result.layers
    ]
    groups = [
        {"alone in int8": one.name, "nodes": str(one.nodes), "logits (dB)": _db(one.logits_db)}
        | {"answers changed": f"{100 * one.changed:.2f}%"}
        | {"latency": f"{one.latency.value:.3f}x ({one.latency.low:.3f} to {one.latency.high:.3f})"}
        for one in sorted(result.groups, key=lambda one: one.latency.value)
    ]
    told = f"Signal to quantization noise of each layer on {result.images:,} validation images, all in int8 ({result.setting}):"
    second = "What each group costs alone, as a fraction of float32's latency; below 1x it gains time:"
    return f"{told}\n\n{table(layers)}\n\n{second}\n\n{table(groups)}\n\npicture   {folder / 'noise.png'}\nartifact  {folder}"


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


@click.command("export-onnx")
@click.option("--opset", type=int, help="Version of the ONNX operators.  [default: 18]")
@click.option("--input", metavar="TYPE", help="Pixels that the graph takes: uint8, or float32 in [0, 1].  [default: uint8]")
@network_options
@data_options
@run_options
@parent_options
@out_option
def export_onnx(opset: int | None, input: str | None, **shared: Any) -> None:
    """Export to one ONNX file: raw uint8 images in, logits and probabilities out, labels inside, proved equal to torch.

    Example:  compress export-onnx --model k49 --out board/k49
    """
    from ..artifacts.context import Options
    from ..stages.export import export
    from .tables import show_artifact

    options = Options(**shared)
    options.load_recipe().stage(ExportConfig, "export", opset=opset, input=input)  # a wrong value should not cost the loading of data first
    project, recipe, parent = options.child(NETWORK_STAGES)
    config = recipe.stage(ExportConfig, "export", opset=opset, input=input)
    show_artifact(export(project, parent, config, options.out), options.as_json)
