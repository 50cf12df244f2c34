"""The commands that measure: benchmark, report, compare, throughput."""

from typing import TYPE_CHECKING

from ..api.network import Network
from ..api.network import compare as comparing
from ..benchmarks.compare import Changes, rows
from .options import command
from .tables import show_artifact, show_outcome, shown, table

if TYPE_CHECKING:
    from ..stages.throughput import Throughput


def changes_text(found: Changes) -> str:
    """A row per candidate, and what a reader should know besides."""
    return "\n".join([table(rows(found)), "", *found.remarks])


def throughput_text(found: "list[Throughput]") -> str:
    """A row per variant of the training loop."""
    from ..stages.throughput import table_rows

    return table(table_rows(found))


benchmark = command(
    Network.benchmark,
    """compress benchmark --model k49
          compress benchmark old.onnx new.onnx --data path/to/folder""",
)(lambda measured, as_json: show_artifact(measured.artifact, as_json))
report = command(Network.report, "compress report --model k49 --max-drop 0.5")(show_outcome)
compare = command(comparing, "compress compare old.json new.json --fail-if-slower 5%")(
    shown(changes_text, lambda found: vars(found) | {"fails": found.fails}, holds=lambda found: not found.fails)
)
throughput = command(
    Network.throughput,
    """compress throughput --model k49 --data digits
          compress throughput --variant torch.compile --variant "compress train\"""",
)(shown(throughput_text, list))
