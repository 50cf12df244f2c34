"""The commands that make something: train, export-onnx, quantize, run, tune.

Each opens a project (network, data, runs folder), calls a stage of ``compress.pipeline`` and shows what it made. Loads click and the
settings only; everything else is imported inside the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..artifacts.project import NETWORK_STAGES, TRAINED_STAGES
from ..artifacts.recipe import training_config
from ..errors import CompressError
from ..stages.export import ExportConfig
from .options import (
    PATH,
    benchmark_options,
    data_options,
    network_options,
    out_option,
    parent_options,
    pretrained_option,
    refuse_torchrun,
    report_options,
    run_options,
)


@click.command()
@click.option("--epochs", type=int, help="Passes over the training images.")
@click.option("--batch", type=int, help="Images per step.")
@click.option("--lr", type=float, help="Largest learning rate.")
@click.option("--label-smoothing", type=float, help="0 for none; 0.1 is usual.")
@click.option("--folds", type=int, help="Cross-validate instead: train this many networks, each scored on the images it did not see.")
@click.option("--resume", is_flag=True, help="Go on with a training that was interrupted.")
@network_options
@data_options
@run_options
@parent_options
@out_option
def train(epochs: int | None, batch: int | None, lr: float | None, label_smoothing: float | None, folds: int | None, **shared: Any) -> None:
    """Train a new network, or with --from, --weights or --pretrained that one further; the best epoch on the validation images is kept.

    \b
    Example:  compress train --model k49 --data path/to/folder --epochs 12
              compress train --model k49 --data path/to/folder --folds 5
              compress train --from runs/k49/train/3f9a0c51be27 --recipe stronger.toml
    """
    from ..artifacts.context import Options
    from ..stages.cross_validate import cross_validate
    from ..stages.train import train as train_stage
    from ..train.folds import check_folds
    from .tables import show_artifact

    options = Options(**shared)
    recipe, start = options.load_recipe(), None
    settings = {"epochs": epochs, "batch": batch, "lr": lr, "label_smoothing": label_smoothing, "seed": options.seed}
    config = training_config(recipe, **settings)  # a wrong value should not cost the loading of data first
    if options.starts_from_parent:
        if folds is not None:
            raise CompressError(f"folds (={folds}) start from new networks; leave --from, --weights and --pretrained out")
        if options.weights is not None:
            file = options.weights
            refuse_torchrun(
                f"weights (={file}) are taken in by one process; `compress export-onnx --weights {file}` first, then train --from"
            )
        project, recipe, start = options.child(TRAINED_STAGES, (*TRAINED_STAGES, "remove-channels"))
        config = training_config(recipe, **settings)
    if folds is None:
        made = train_stage(project if start else options.project(recipe), config, options.out, start)
    else:
        check_folds(folds)
        made = cross_validate(options.project(recipe), config, folds, options.out)
    if made is not None:
        show_artifact(made, options.as_json)


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


@click.command()
@click.option("--weights", type=PATH, metavar="FILE", help="Take this network, trained elsewhere, instead of training one.")
@pretrained_option
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
    from ..artifacts.context import Options
    from ..stages.run_all import run_all
    from .tables import show_outcome

    options = Options(**shared, resume=True)
    recipe = options.load_recipe()
    settings = {"threads": threads, "rounds": rounds, "samples": samples, "sweeps": False if quick else None}
    limits = {"max_drop": max_drop, "max_latency": max_latency, "max_size": max_size}
    show_outcome(run_all(options, recipe, settings, limits), options.as_json)


@click.command()
@click.option("--trials", type=int, default=40, show_default=True, help="Finished trials in the study, by whichever worker.")
@click.option("--timeout", type=float, metavar="MIN", help="No trial starts after so many minutes.")
@click.option("--storage", metavar="URL|FILE", help="Journal file, or a database for Optuna.  [default: runs/MODEL/tune/STUDY.journal]")
@click.option("--study", metavar="NAME", help="Name of the study, and of the folder of its results.  [default: the name of the data]")
@click.option("--space", type=PATH, metavar="FILE", help="TOML of what to tune.  [default: the one built in for the model]")
@click.option("--epochs", type=int, help="Epochs of each trial.  [default: the recipe's]")
@click.option("--fraction", type=float, default=1.0, show_default=True, help="Train on this part of the training images, evenly drawn.")
@click.option("--max-params", type=int, help="Give up larger networks before they are trained.")
@click.option("--max-macs", type=int, help="Likewise, multiply-accumulates for one image.")
@network_options
@data_options
@run_options
def tune(
    trials: int,
    timeout: float | None,
    storage: str | None,
    study: str | None,
    space: Path | None,
    epochs: int | None,
    fraction: float,
    max_params: int | None,
    max_macs: int | None,
    **shared: Any,
) -> None:
    """Search for better settings; the best are written as a recipe for `compress train`.

    After a kill the same command goes on. Run at the same time in other terminals, or on other hosts with the same --storage, it shares
    the work. --force forgets the study first.

    \b
    Example:  compress tune --model emnist --data path/to/folder --trials 40 --epochs 5 --fraction 0.25
              compress train --recipe runs/emnist/tune/folder/best.toml
    """
    from ..artifacts.context import Options
    from ..artifacts.model_reference import ModelReference
    from ..stages.tune import Tuning, read_space, show_tuned, tune_project

    tuning = Tuning(
        trials=trials,
        timeout=timeout,
        epochs=epochs,
        fraction=fraction,
        max_params=max_params,
        max_macs=max_macs,
        storage=storage,
        study=study,
        space=space,
    )
    options = Options(**shared)
    recipe = options.load_recipe()
    read_space(ModelReference(reference=recipe.model), recipe, tuning)  # a wrong space should not cost the loading of data first
    show_tuned(tune_project(options.project(recipe), recipe, tuning), options.as_json)
