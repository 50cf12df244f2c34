"""The commands that measure: benchmark, report, compare, throughput."""

import dataclasses
from typing import TYPE_CHECKING

import click

from ..api.network import Network
from ..api.network import compare as comparing
from .options import command
from .tables import show, show_artifact, show_outcome, table

if TYPE_CHECKING:
    from ..benchmarks.compare import Changes
    from ..stages.benchmark import Benchmark
    from ..stages.throughput import Throughput


@command(
    Network.benchmark,
    """compress benchmark --model k49
          compress benchmark old.onnx new.onnx --data path/to/folder""",
    arguments=("files...",),
)
def benchmark(measured: "Benchmark", as_json: bool) -> None:
    """The table of all candidates, or everything as JSON."""
    show_artifact(measured.artifact, as_json)


report = command(Network.report, "compress report --model k49 --max-drop 0.5", arguments=("results...",))(show_outcome)


@command(comparing, "compress compare old.json new.json --fail-if-slower 5%", arguments=("old", "new"), closed=True)
def compare(found: "Changes", as_json: bool) -> None:
    """A row per candidate, and the verdict as exit code."""
    from ..benchmarks.compare import rows

    about = dataclasses.asdict(found) | {"fails": found.fails}
    show(as_json, lambda: about, lambda: "\n".join([table(rows(found)), "", *found.remarks]))
    if found.fails:
        raise click.exceptions.Exit(1)


@command(
    Network.throughput,
    """compress throughput --model k49 --data digits
          compress throughput --variant torch.compile --variant "compress train\"""",
)
def throughput(found: "list[Throughput]", as_json: bool) -> None:
    """A row per variant of the training loop."""
    from ..stages.throughput import table_rows

    show(as_json, lambda: [dataclasses.asdict(one) for one in found], lambda: table(table_rows(found)))
