"""The commands that take something away from a network: prune, remove-channels, sensitivity."""

from ..api.network import Network
from ..artifacts.artifact import Artifact
from ..artifacts.payloads import Sensitivity, read_payload
from ..plots.sensitivity import cell
from ..stages.sensitivity import FILE, _column, _title
from .options import Switch, command
from .tables import payload_summary, show_artifact, shown, table

ROWS = {"weight": ("layer", "weights"), "channel": ("group", "width"), "module": ("module", "parameters")}


def sensitivity_text(artifact: Artifact) -> str:
    """A row for each layer, group or module, in the order of the network, with the points of balanced accuracy that it costs."""
    result = read_payload(artifact, Sensitivity)
    first, second = ROWS[result.granularity]
    rows = [
        {first: curve.name, second: f"{curve.size:,}"}
        | {_column(result, point): cell(point.points_lost) for point in curve.points}
        | (_module_cells(result, curve.name) if result.granularity == "module" else {})
        for curve in result.curves
    ]
    told = f"{_title(result)}, by {result.images:,} training images and without fine-tuning:"
    return f"{told}\n\n{table(rows)}\n\nheat map  {artifact.path / f'{FILE}.png'}\nartifact  {artifact.path}"


def _module_cells(result: Sensitivity, name: str) -> dict[str, str]:
    latency = result.latency[name]
    measured = f"{latency.value:.3f}x ({latency.low:.3f} to {latency.high:.3f})"
    return {"rise of cross-entropy": f"{max(result.rises[name].values()):.3f}", "latency without it": measured}


prune = command(
    Network.prune,
    """compress prune --model k49 --sparsity 0.8
          compress prune --model k49 --sparsity 0.9 --steps 4
          compress prune --model k49 --pattern 2:4""",
)(show_artifact)
show_groups = shown(str, lambda groups: groups.summary())
remove_channels = command(
    Network.remove_channels,
    """compress remove-channels --model k49 --max-macs 0.35x
          compress remove-channels --model k49 --max-latency 0.5x --bypass auto
          compress remove-channels --model k49 --groups""",
    switch=Switch(
        "--groups", "Print which channels go together and what is left whole; remove nothing.", Network.channel_groups, show_groups
    ),
)(show_artifact)
sensitivity = command(
    Network.sensitivity,
    """compress sensitivity --model k49
          compress sensitivity --model k49 --granularity weight --sparsity 0.5 --sparsity 0.8
          compress sensitivity --model k49 --granularity module""",
)(shown(sensitivity_text, payload_summary(Sensitivity)))
