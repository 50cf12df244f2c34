"""The command line: ``compress COMMAND`` or ``python -m compress COMMAND``.

Every command opens a project (network, data, runs folder), calls stages of ``compress.pipeline`` and shows what they made. Torch,
onnxruntime and the other packages of this project are imported inside the commands, so that ``compress --help`` is instant.

A user's mistake ends here: one line on stderr, exit code 2. Ctrl-C says how to go on, exit code 130. With ``--json`` the result is one JSON
object on stdout and nothing else; progress and remarks go to stderr.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import __version__
from .benchmarks.errors import BenchmarkError
from .config import ExportConfig, PruneConfig, QuantizeConfig, load_recipe
from .errors import CompressError
from .models.errors import ModelError
from .options import PATH, benchmark_options, data_options, network_options, out_option, parent_options, report_options, run_options
from .train.errors import TrainError

if TYPE_CHECKING:
    from .artifact import Artifact
    from .measure import Outcome

USER_ERRORS = (CompressError, TrainError, ModelError, BenchmarkError)
# What a board does without: numpy, onnxruntime and click are enough to predict, benchmark, compare and verify.
OPTIONAL = {name: name for name in ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "matplotlib", "jinja2")}
OPTIONAL |= {"sklearn": "scikit-learn", "PIL": "pillow"}
NETWORK_STAGES = ("train", "import", "prune")
GRAPH_STAGES = ("export", "quantize")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="compress")
def cli() -> None:
    """Take a trained vision network to the smallest, fastest file that still reads as well, and prove it.

    \b
    Everything at once:   compress run --model k49 --data digits
    Step by step:         compress train --model k49 --data digits
                          compress prune --model k49 --sparsity 0.8
                          compress export-onnx --model k49
                          compress quantize --model k49 --mode static
                          compress benchmark --model k49
                          compress report --model k49
    """


@cli.command()
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
    from .train.fit import FitConfig

    options = Options(**shared)
    recipe = options.load_recipe()
    config = recipe.stage(FitConfig, "train", epochs=epochs, batch=batch, lr=lr, label_smoothing=label_smoothing, seed=options.seed)
    _show(pipeline.train(options.project(recipe), config, options.out), options.as_json)


@cli.command()
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
    from .train.fit import FitConfig

    options = Options(**shared)
    settings = {"sparsity": sparsity, "scope": scope, "epochs": epochs, "lr": lr}
    options.load_recipe().stage(PruneConfig, "prune", **settings)  # a wrong value should not cost the loading of data first
    project, recipe, parent = options.child(NETWORK_STAGES[:2])
    config = recipe.stage(PruneConfig, "prune", **settings)
    training = recipe.stage(FitConfig, "train", seed=options.seed)
    _show(pipeline.prune(project, parent, config, training, options.out), options.as_json)


@cli.command("export-onnx")
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

    options = Options(**shared)
    project, recipe, parent = options.child(NETWORK_STAGES)
    _show(pipeline.export(project, parent, recipe.stage(ExportConfig, "export", opset=opset), options.out), options.as_json)


@cli.command()
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

    options = Options(**shared)
    settings = {"mode": mode, "method": method, "per_channel": per_channel, "images": images, "seed": options.seed}
    options.load_recipe().stage(QuantizeConfig, "quantize", **settings)  # a wrong value should not cost the loading of data first
    project, recipe, parent = options.child((*NETWORK_STAGES, "export"))
    graph = pipeline.graph_of(project, parent, recipe.stage(ExportConfig, "export"))
    _show(pipeline.quantize(project, graph, recipe.stage(QuantizeConfig, "quantize", **settings), options.out), options.as_json)


@cli.command()
@click.argument("files", nargs=-1, type=PATH)
@network_options
@data_options
@run_options
@out_option
@benchmark_options
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    metavar="NAME",
    help="onnxruntime, openvino, torch, torch.compile, or all.  [default: onnxruntime and torch]",
)
def benchmark(
    files: tuple[Path, ...],
    threads: int | None,
    rounds: int | None,
    samples: int | None,
    quick: bool,
    runtimes: tuple[str, ...],
    **shared: Any,
) -> None:
    """Measure variants side by side: accuracy on the test images, latency, size.

    FILES are .onnx files or folders of artifacts; without any, all variants of the newest network are measured.

    \b
    Example:  compress benchmark --model k49
              compress benchmark old.onnx new.onnx --data path/to/folder
    """
    from .benchmarks.run import BenchmarkConfig
    from .measure import USUAL, measure
    from .opening import Options

    options = Options(**shared)
    settings = {"threads": threads, "rounds": rounds, "samples": samples, "sweeps": False if quick else None, "seed": options.seed}
    config = options.load_recipe().stage(BenchmarkConfig, "benchmark", **settings)
    _show(measure(options, files, config, runtimes or USUAL), options.as_json)


@cli.command()
@click.argument("results", nargs=-1, type=PATH)
@click.option("--model", metavar="NAME", help="Report on the newest benchmark of this network.  [default: k49]")
@click.option("--runs", type=PATH, default=Path("runs"), show_default=True, help="Folder of all artifacts.")
@click.option("--out", type=PATH, metavar="FOLDER", help="Where the report goes.  [default: runs/MODEL/report]")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
@report_options
def report(results: tuple[Path, ...], model: str | None, runs: Path, out: Path | None, as_json: bool, **limits: Any) -> None:
    """Say which variant to ship and why, as HTML, Markdown, CSV and JSON.

    RESULTS are benchmark.json files, also of several machines.

    Example:  compress report --model k49 --max-drop 0.5
    """
    from .measure import newest_result
    from .measure import report as write
    from .reference import ModelReference

    recipe = load_recipe(None, model)
    folder = runs / ModelReference(reference=recipe.model).slug
    files = results or (newest_result(folder),)
    _tell(write(files, out or folder / "report", limits), as_json)


@cli.command()
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
    from .whole import run_all

    options = Options(**shared, resume=True)
    recipe = options.load_recipe()
    settings = {"threads": threads, "rounds": rounds, "samples": samples, "sweeps": False if quick else None}
    limits = {"max_drop": max_drop, "max_latency": max_latency, "max_size": max_size}
    _tell(run_all(options, recipe, settings, limits), options.as_json)


@cli.command()
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
    from .opening import Options
    from .reading import read
    from .show import predictions_text

    picture = grid or Path("predictions.png")
    predictions, drawn = read(Options(**shared), files, onnx, count, invert, picture)
    if shared["as_json"]:
        grid_name = str(picture) if drawn else None
        click.echo(json.dumps({"grid": grid_name, "predictions": [dataclasses.asdict(one) for one in predictions]}, indent=1))
    else:
        click.echo(f"{predictions_text(predictions)}\npicture: {picture if drawn else 'none, matplotlib is not installed here'}")


@cli.command()
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@click.option("--fail-if-slower", metavar="PERCENT", help="Fail where a latency surely grew by more than this, e.g. 5%.")
@click.option("--fail-if-less-accurate", type=float, metavar="POINTS", help="Fail where surely more points of balanced accuracy were lost.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON object.")
def compare(old: Path, new: Path, fail_if_slower: str | None, fail_if_less_accurate: float | None, as_json: bool) -> None:
    """Compare two benchmarks of one machine, for CI: exit code 1 only when an interval lies wholly beyond the limit.

    OLD and NEW are benchmark.json files; candidates are matched by name, runtime and device.

    Example:  compress compare old.json new.json --fail-if-slower 5%
    """
    from .benchmarks import compare as comparing
    from .benchmarks.results import read_results
    from .show import table

    slower = None if fail_if_slower is None else comparing.parse_percentage(fail_if_slower)
    found = comparing.compare(read_results(old), read_results(new), slower=slower, less_accurate=fail_if_less_accurate)
    text = "\n".join([table(comparing.rows(found)), "", *found.remarks])
    click.echo(json.dumps(dataclasses.asdict(found) | {"fails": found.fails}, indent=1) if as_json else text)
    if found.fails:
        raise click.exceptions.Exit(1)


@cli.command()
@click.argument("folder", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the proof as one JSON object.")
def verify(folder: Path, as_json: bool) -> None:
    """Prove again, on any machine, that a model computes what it was made to: its hash, and its logits for the images beside it.

    FOLDER holds model.onnx and vectors.npz, as export-onnx and quantize wrote them. Exit code 1 when the proof fails.

    Example:  compress verify board/k49
    """
    from .verify import proof_text
    from .verify import verify as prove

    proof = prove(folder)
    about = {"folder": str(proof.folder), "holds": proof.holds, "checks": [dataclasses.asdict(check) for check in proof.checks]}
    click.echo(json.dumps(about, indent=1) if as_json else proof_text(proof))
    if not proof.holds:
        raise click.exceptions.Exit(1)


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        return cli.main(standalone_mode=False, prog_name="compress") or 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "compress"
        return _refuse(f"{error.format_message().rstrip('.')}; see {command} --help")
    except USER_ERRORS as error:
        return _refuse(str(error))
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        return _refuse(f"this needs {OPTIONAL[error.name]}, which is not installed here; pip install it, or do this on another machine")
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}; nothing was changed there")
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ncompress: stopped; what is finished is kept, and the same command goes on (train and prune: with --resume)", err=True)
        return 130


def _show(artifact: Artifact, as_json: bool) -> None:
    """What a stage made: a table of its figures, or everything as JSON."""
    from .show import artifact_text, summary

    click.echo(json.dumps(summary(artifact), indent=1) if as_json else artifact_text(artifact))


def _tell(outcome: Outcome, as_json: bool) -> None:
    """What a report says, and where it lies."""
    from .show import outcome_summary, outcome_text

    click.echo(json.dumps(outcome_summary(outcome), indent=1) if as_json else outcome_text(outcome))


def _refuse(message: str) -> int:
    click.echo(f"compress: {' '.join(message.split())}", err=True)
    return 2
