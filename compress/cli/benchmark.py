"""The commands that look at what was made: benchmark, report, predict, explain, compare, verify.

Loads click and the settings only; everything else is imported inside the commands.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from ..artifacts.recipe import load_recipe, training_config
from .options import (
    PATH,
    benchmark_options,
    data_options,
    network_options,
    out_option,
    pretrained_option,
    report_options,
    run_options,
)


@click.command()
@click.argument("files", nargs=-1, type=PATH)
@network_options
@data_options
@run_options
@pretrained_option
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
    from ..artifacts.context import Options
    from ..benchmarks.run import BenchmarkConfig
    from ..stages.benchmark import USUAL, measure
    from .tables import show_artifact

    options = Options(**shared)
    settings = {"threads": threads, "rounds": rounds, "samples": samples, "sweeps": False if quick else None, "seed": options.seed}
    config = options.load_recipe().stage(BenchmarkConfig, "benchmark", **settings)
    show_artifact(measure(options, files, config, runtimes or USUAL), options.as_json)


@click.command()
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
    from ..artifacts.model_reference import ModelReference
    from ..stages.report import newest_result
    from ..stages.report import report as write
    from .tables import show_outcome

    recipe = load_recipe(None, model)
    folder = runs / ModelReference(reference=recipe.model).slug
    files = results or (newest_result(folder),)
    show_outcome(write(files, out or folder / "report", limits), as_json)


@click.command()
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
    from ..artifacts.payloads import read_results
    from ..benchmarks import compare as comparing
    from .tables import table

    slower = None if fail_if_slower is None else comparing.parse_percentage(fail_if_slower)
    found = comparing.compare(read_results(old), read_results(new), slower=slower, less_accurate=fail_if_less_accurate)
    text = "\n".join([table(comparing.rows(found)), "", *found.remarks])
    click.echo(json.dumps(dataclasses.asdict(found) | {"fails": found.fails}, indent=1) if as_json else text)
    if found.fails:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--rounds", type=int, default=5, show_default=True, help="Rounds in which all variants take a turn, in random order.")
@click.option("--variant", "variants", multiple=True, metavar="NAME", help="Measure this one.  [default: all but torch.compile]")
@network_options
@data_options
@run_options
def throughput(rounds: int, variants: tuple[str, ...], **shared: Any) -> None:
    """How many images a second training takes in here, from the plain loop to the one of `compress train`.

    \b
    Example:  compress throughput --model k49 --data digits
              compress throughput --variant torch.compile --variant "compress train"
    """
    from ..artifacts.context import Options
    from ..stages.throughput import measure_throughput, table_rows
    from .tables import table

    options = Options(**shared)
    recipe = options.load_recipe()
    config = training_config(recipe, seed=options.seed)
    found = measure_throughput(options.project(recipe), config, rounds=rounds, variants=variants)
    click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=1) if options.as_json else table(table_rows(found)))
