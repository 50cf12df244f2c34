"""cli.run"""

from __future__ import annotations

from typing import Any

import click

from .options import (
    PATH,
    benchmark_options,
    data_options,
    network_options,
    pretrained_option,
    report_options,
    run_options,
)


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
