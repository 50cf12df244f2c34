"""The commands that make something: train, prune, export-onnx, quantize, run.

Each opens a project (network, data, runs folder), calls a stage of ``compress.pipeline`` and shows what it made. Loads click and the
settings only; everything else is imported inside the commands.
"""

from __future__ import annotations

from typing import Any

import click

from .config import ExportConfig, PruneConfig, QuantizeConfig
from .options import PATH, benchmark_options, data_options, network_options, out_option, parent_options, report_options, run_options

NETWORK_STAGES = ("train", "import", "prune")


@click.command()
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--batch", type=int, help="Images per step.")
@click.option("--lr", type=float, help="Largest learning rate.")
@click.option("--label-smoothing", type=float, help="0 for none; 0.1 is usual.")
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted.")
@network_options
@data_options
@run_options
@out_option
def train(epochs: int | None, batch: int | None, lr: float | None, label_smoothing: float | None, **shared: Any) -> None:
    """Train a network; the best epoch on the validation images is kept.

    Example:  compress train --model k49 --data path/to/folder --epochs 12
    """
    from . import pipeline
    from .opening import Options
    from .show import show_artifact
    from .train.fit import FitConfig

    options = Options(**shared)
    recipe = options.load_recipe()
    config = recipe.stage(FitConfig, "train", epochs=epochs, batch=batch, lr=lr, label_smoothing=label_smoothing, seed=options.seed)
    show_artifact(pipeline.train(options.project(recipe), config, options.out), options.as_json)


@click.command()
@click.option("--sparsity", type=float, help="Fraction of the weights to zero, in (0, 1).  [default: 0.7 for k49, else 0.8]")
@click.option("--scope", help="How weights are ranked: global, layer, or lamp (global, each layer to its scale).  [default: lamp]")
@click.option("--epochs", type=int, help="Fine-tuning with the mask kept; 0 for none.")
@click.option("--lr", type=float, help="Learning rate at the start of fine-tuning.")
@click.option("--resume", is_flag=True, help="Go on with a fine-tuning that was interrupted.")
@network_options
@data_options
@run_options
@parent_options
@out_option
def prune(sparsity: float | None, scope: str | None, epochs: int | None, lr: float | None, **shared: Any) -> None:
    """Zero the smallest weights, and fine-tune the rest.

    Zeros alone make no dense runtime faster and no file smaller on disk; they make it smaller when compressed.

    Example:  compress prune --model k49 --sparsity 0.8
    """
    from . import pipeline
    from .opening import Options
    from .show import show_artifact
    from .train.fit import FitConfig

    options = Options(**shared)
    settings = {"sparsity": sparsity, "scope": scope, "epochs": epochs, "lr": lr}
    options.load_recipe().stage(PruneConfig, "prune", **settings)  # a wrong value should not cost the loading of data first
    project, recipe, parent = options.child(NETWORK_STAGES[:2])
    config = recipe.stage(PruneConfig, "prune", **settings)
    training = recipe.stage(FitConfig, "train", seed=options.seed)
    show_artifact(pipeline.prune(project, parent, config, training, options.out), options.as_json)


@click.command("export-onnx")
@click.option("--opset", type=int, help="Version of the ONNX operators.  [default: 18]")
@network_options
@data_options
@run_options
@parent_options
@out_option
def export_onnx(opset: int | None, **shared: Any) -> None:
    """Export to one ONNX file: raw uint8 images in, logits out, labels inside, proved equal to torch.

    Example:  compress export-onnx --model k49 --out board/k49
    """
    from . import pipeline
    from .opening import Options
    from .show import show_artifact

    options = Options(**shared)
    project, recipe, parent = options.child(NETWORK_STAGES)
    show_artifact(pipeline.export(project, parent, recipe.stage(ExportConfig, "export", opset=opset), options.out), options.as_json)


@click.command()
@click.option("--mode", help="static: weights and activations, calibrated; dynamic: weights of linear layers.  [default: static]")
@click.option("--method", help="How static finds the range of activations: minmax, percentile or entropy.  [default: minmax]")
@click.option("--per-channel/--per-tensor", default=None, help="One weight scale per output channel or per tensor.  [default: per channel]")
@click.option("--images", type=int, help="Calibration images, drawn evenly from the classes.  [default: 512]")
@network_options
@data_options
@run_options
@parent_options
@out_option
def quantize(mode: str | None, method: str | None, per_channel: bool | None, images: int | None, **shared: Any) -> None:
    """Make an int8 ONNX file. Whether it is faster here, `compress benchmark` tells.

    Example:  compress quantize --model k49 --mode static
    """
    from . import pipeline
    from .opening import Options
    from .show import show_artifact

    options = Options(**shared)
    settings = {"mode": mode, "method": method, "per_channel": per_channel, "images": images, "seed": options.seed}
    options.load_recipe().stage(QuantizeConfig, "quantize", **settings)  # a wrong value should not cost the loading of data first
    project, recipe, parent = options.child((*NETWORK_STAGES, "export"))
    graph = pipeline.graph_of(project, parent, recipe.stage(ExportConfig, "export"))
    show_artifact(pipeline.quantize(project, graph, recipe.stage(QuantizeConfig, "quantize", **settings), options.out), options.as_json)


@click.command()
@click.option("--weights", type=PATH, metavar="FILE", help="Take this network, trained elsewhere, instead of training one.")
@network_options
@data_options
@run_options
@benchmark_options
@report_options
def run(
    threads: int | None,
    rounds: int | None,
    samples: int | None,
    quick: bool,
    max_drop: float | None,
    max_latency: float | None,
    max_size: int | None,
    **shared: Any,
) -> None:
    """Everything: train, prune, export, quantize, benchmark, report. A second run, or one after a kill, does only what is missing.

    \b
    Example:  compress run --model k49 --data digits
              compress run --recipe recipe.toml
    """
    from .opening import Options
    from .show import show_outcome
    from .whole import run_all

    options = Options(**shared, resume=True)
    recipe = options.load_recipe()
    settings = {"threads": threads, "rounds": rounds, "samples": samples, "sweeps": False if quick else None}
    limits = {"max_drop": max_drop, "max_latency": max_latency, "max_size": max_size}
    show_outcome(run_all(options, recipe, settings, limits), options.as_json)
