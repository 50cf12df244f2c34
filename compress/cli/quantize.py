"""The command ``quantize``. Loads click only, until it runs."""

from pathlib import Path
from typing import Any

import click

from ..artifacts.project import NETWORK_STAGES
from ..artifacts.recipe import training_config
from ..stages.export import ExportConfig
from ..stages.quantize import QuantizeConfig
from ..train.settings import DistilConfig
from .options import PATH, data_options, network_options, out_option, parent_options, run_options

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
        from ..stages.explain_int8 import explain_quantization, show_noise

        show_noise(explain_quantization(project, graph, config), options.as_json)
        return
    training, distil = training_config(recipe, seed=options.seed), recipe.stage(DistilConfig, "distil")
    show_artifact(make(project, graph, config, training, distil, options.out), options.as_json)
