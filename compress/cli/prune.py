"""The commands that take something away from a network: prune, remove-channels, sensitivity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..api.network import Network
from ..artifacts.artifact import Artifact
from ..artifacts.payloads import Sensitivity, read_payload
from ..artifacts.records import plain
from ..plots.sensitivity import cell
from ..stages.sensitivity import STAGE, _column, _title
from .options import Switch, command
from .tables import show, show_artifact, table

if TYPE_CHECKING:
    from ..artifacts.artifact import Artifact
    from ..channels.groups import Groups


def show_groups(groups: Groups, as_json: bool) -> None:
    """Which channels go together, and what is left whole."""
    show(as_json, groups.summary, lambda: str(groups))


prune = command(
    Network.prune,
    """compress prune --model k49 --sparsity 0.8
          compress prune --model k49 --sparsity 0.9 --steps 4
          compress prune --model k49 --pattern 2:4""",
)(show_artifact)
remove_channels = command(
    Network.remove_channels,
    """compress remove-channels --model k49 --max-macs 0.35x
          compress remove-channels --model k49 --max-latency 0.5x --bypass auto
          compress remove-channels --model k49 --groups""",
    switch=Switch(
        flag="--groups",
        help="Print which channels go together and what is left whole; remove nothing.",
        method=Network.channel_groups,
        show=show_groups,
    ),
)(show_artifact)


@command(
    Network.sensitivity,
    """compress sensitivity --model k49
          compress sensitivity --model k49 --granularity weight --sparsity 0.5 --sparsity 0.8
          compress sensitivity --model k49 --granularity module""",
)
def sensitivity(artifact: Artifact, as_json: bool) -> None:
    """The table and where the heat map lies, or everything as JSON."""
    from ..artifacts.payloads import Sensitivity

    about = {"artifact": str(artifact.path), **plain(read_payload(artifact, Sensitivity))}
    show(as_json, lambda: about, lambda: sensitivity_text(artifact))


ROWS = {"weight": ("layer", "weights"), "channel": ("group", "width"), "module": ("module", "parameters")}


def sensitivity_text(artifact: Artifact) -> str:
    """A row for each layer, group or module, in the order of the network, with the points of balanced accuracy that it costs."""
    from ..artifacts.payloads import Sensitivity

    result = read_payload(artifact, Sensitivity)
    first, second = ROWS[result.granularity]
    rows = [
        {first: curve.name, second: f"{curve.size:,}"}
        | {_column(result, point): cell(point.points_lost) for point in curve.points}
        | (_module_cells(result, curve.name) if result.granularity == "module" else {})
        for curve in result.curves
    ]
    told = f"{_title(result)}, by {result.images:,} training images and without fine-tuning:"
    return f"{told}\n\n{table(rows)}\n\nheat map  {artifact.path / f'{STAGE}.png'}\nartifact  {artifact.path}"


def _module_cells(result: Sensitivity, name: str) -> dict[str, str]:
    latency = result.latency[name]
    measured = f"{latency.value:.3f}x ({latency.low:.3f} to {latency.high:.3f})"
    return {"rise of cross-entropy": f"{max(result.rises[name].values()):.3f}", "latency without it": measured}
