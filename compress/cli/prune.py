"""The commands that take something away from a network: prune, remove-channels, sensitivity."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..artifacts.artifact import Artifact
from ..artifacts.payloads import Sensitivity, read_payload
from ..artifacts.project import NETWORK_STAGES, TRAINED_STAGES
from ..artifacts.recipe import training_config
from ..artifacts.records import plain
from ..errors import CompressError
from ..plots.sensitivity import cell
from ..stages.prune import PruneConfig
from ..stages.remove_channels import RemoveConfig
from ..stages.sensitivity import FILE, Sensitivities, SensitivityConfig, _column, _title, measure_sensitivity
from ..train.settings import DistilConfig
from .options import data_options, network_options, out_option, parent_options, run_options, tuning_options
from .tables import table

if TYPE_CHECKING:
    from ..artifacts.artifact import Artifact


class Share(click.ParamType):
    """``0.35x``: a fraction of what the teacher costs."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(str(value).removesuffix("x"))
        except ValueError:
            told = param.opts[0] if param is not None else "value"
            raise CompressError(f"{told[2:]} (={value}) must be a share of what the unpruned network costs, such as 0.35x") from None


@click.command()
@click.option("--sparsity", type=float, help="Fraction of the weights to zero, in (0, 1).  [default: 0.7 for k49, else 0.8]")
@click.option("--pattern", help="2:4 keeps two of every four weights in a row, instead of a sparsity.")
@click.option(
    "--scope",
    help="How weights are ranked: fisher (by how much the loss would rise without each), or by magnitude: global, layer, or lamp "
    "(global, each layer to its scale).  [default: fisher]",
)
@click.option("--regrow", is_flag=True, default=None, help="Weights that were zeroed may come back while fine-tuning; long ones gain.")
@tuning_options
@network_options
@data_options
@run_options
@parent_options
@out_option
def prune(**given: Any) -> None:
    """Zero the weights that matter least, and fine-tune the rest with the mask kept; with --steps gradually, on the cubic schedule.

    Zeros alone make no dense runtime faster and no file smaller on disk; they make it smaller when compressed. What makes a network
    smaller and faster is `compress remove-channels`.

    \b
    Example:  compress prune --model k49 --sparsity 0.8
              compress prune --model k49 --sparsity 0.9 --steps 4
              compress prune --model k49 --pattern 2:4
    """
    from ..artifacts.context import Options
    from ..stages.prune import prune as prune_stage
    from .tables import show_artifact

    teacher, distil, settings, options = _split(given, PruneConfig, Options)
    first = options.load_recipe()  # a wrong value should not cost the loading of data first
    first.stage(PruneConfig, "prune", **settings)
    first.stage(DistilConfig, "distil", **distil)
    project, recipe, parent = options.child(TRAINED_STAGES, NETWORK_STAGES)
    made = prune_stage(
        project,
        parent,
        recipe.stage(PruneConfig, "prune", **settings),
        training_config(recipe, seed=options.seed),
        recipe.stage(DistilConfig, "distil", **distil),
        teacher=_teacher(teacher, parent),
        out=options.out,
    )
    show_artifact(made, options.as_json)


@click.command("remove-channels")
@click.option("--sparsity", type=float, help="Fraction of the removable channels to remove, in (0, 1).")
@click.option("--max-macs", type=Share(), metavar="0.35x", help="MACs to be left, as a share of the teacher's.")
@click.option("--max-size", type=Share(), metavar="0.25x", help="Weights to be left, as a share of the teacher's.")
@click.option("--max-latency", type=Share(), metavar="0.5x", help="Latency to be left, measured here: one image, one thread, ONNX Runtime.")
@click.option("--bypass", multiple=True, metavar="MODULE", help="Leave a module out: a name, a pattern, or auto (what is found cheap).")
@click.option("--importance", help="How channels are scored: l2, bn or taylor.  [default: taylor]")
@click.option("--scope", help="How channels are ranked: global, group, or sensitivity (measured per group).  [default: global]")
@click.option("--round-to", type=int, help="Widths are multiples of this; 0 measures which are fast here.  [default: 0]")
@click.option("--floor", type=float, help="Fraction of every group that stays at least.  [default: 0.1]")
@tuning_options
@click.option("--groups", "only_groups", is_flag=True, help="Print which channels go together and what is left whole; remove nothing.")
@network_options
@data_options
@run_options
@parent_options
@out_option
def remove_channels(only_groups: bool, **given: Any) -> None:
    """Remove channels, so that the file gets smaller and the network faster, and fine-tune with the unpruned network as teacher.

    Goals are shares of what the teacher costs; with several, all are met. Layers that are tied together (residuals, depthwise
    convolutions, attention gates, concatenations) lose the same channels; what is not understood stays whole and is named.

    \b
    Example:  compress remove-channels --model k49 --max-macs 0.35x
              compress remove-channels --model k49 --max-latency 0.5x --bypass auto
              compress remove-channels --model k49 --groups
    """
    from ..artifacts.context import Options
    from ..stages.remove_channels import groups_of, remove_in_steps
    from .tables import show_artifact

    given["bypass"] = given["bypass"] or None
    teacher, distil, settings, options = _split(given, RemoveConfig, Options)
    first = options.load_recipe()  # a wrong value or a missing goal should not cost the loading of data first
    config = first.stage(RemoveConfig, "remove-channels", **settings)
    first.stage(DistilConfig, "distil", **distil)
    if not only_groups:
        config.in_steps()
    project, recipe, parent = options.child(TRAINED_STAGES, NETWORK_STAGES)
    if only_groups:
        groups = groups_of(project, parent)
        click.echo(json.dumps(groups.summary(), indent=1) if options.as_json else str(groups))
        return
    made = remove_in_steps(
        project,
        parent,
        recipe.stage(RemoveConfig, "remove-channels", **settings),
        training_config(recipe, seed=options.seed),
        recipe.stage(DistilConfig, "distil", **distil),
        teacher=_teacher(teacher, parent),
        sensitivities=Sensitivities(project=project, recipe=recipe),
        out=options.out,
    )
    show_artifact(made, options.as_json)


@click.command()
@click.option("--granularity", help="What is cut: weight (per layer), channel (per group) or module (left out).  [default: channel]")
@click.option("--sparsity", type=float, multiple=True, help="Measure at this; may be given often.  [default: 0.25, 0.5, 0.75, 0.9]")
@click.option("--importance", help="Which channels go first: l2, bn or taylor.  [default: l2]")
@click.option("--images", type=int, help="Training images that are scored, drawn evenly from the classes.  [default: 2048]")
@network_options
@data_options
@run_options
@parent_options
@out_option
def sensitivity(sparsity: tuple[float, ...], **given: Any) -> None:
    """How much accuracy each layer, channel group or module is worth: a table and a heat map.

    Each is cut alone, the rest of the network stays as it is, and nothing is fine-tuned. Scored are training images, so that the
    validation images have no part in what is chosen by it.

    \b
    Example:  compress sensitivity --model k49
              compress sensitivity --model k49 --granularity weight --sparsity 0.5 --sparsity 0.8
              compress sensitivity --model k49 --granularity module
    """
    from ..artifacts.context import Options

    settings = {name: given.pop(name) for name in ("granularity", "importance", "images")} | {"sparsities": sparsity or None}
    options = Options(**given)
    settings["seed"] = options.seed
    options.load_recipe().stage(SensitivityConfig, "sensitivity", **settings)  # a wrong value should not cost the loading of data first
    project, recipe, parent = options.child(NETWORK_STAGES)
    made = measure_sensitivity(project, parent, recipe.stage(SensitivityConfig, "sensitivity", **settings), options.out)
    show_sensitivity(made, options.as_json)


def _split(given: dict[str, Any], config: type, options: Any) -> tuple[Path | None, dict[str, Any], dict[str, Any], Any]:
    """Sort what the command line gave: the teacher, settings of distillation, settings of ``config``, and the shared options."""
    teacher = given.pop("teacher")
    distil = {"weight": given.pop("distil"), "temperature": given.pop("temperature"), "features": given.pop("features")}
    settings = {field.name: given.pop(field.name) for field in dataclasses.fields(config) if field.name in given and field.name != "seed"}
    return teacher, distil, settings, options(**given)


def _teacher(path: Path | None, parent: Artifact) -> Artifact | None:
    if path is None:
        return None
    from ..artifacts.artifact import read_artifact

    teacher = read_artifact(path, "network")
    if (teacher.manifest.classes, teacher.manifest.input) != (parent.manifest.classes, parent.manifest.input):
        raise CompressError(f"teacher (={path}) reads other images or classes than {parent.path}; name the network it was pruned from")
    return teacher


ROWS = {"weight": ("layer", "weights"), "channel": ("group", "width"), "module": ("module", "parameters")}


def show_sensitivity(artifact: Artifact, as_json: bool) -> None:
    """Print the table and where the heat map lies, or everything as one JSON object."""
    text = (
        json.dumps({"artifact": str(artifact.path), **plain(read_payload(artifact, Sensitivity))}, indent=1)
        if as_json
        else sensitivity_text(artifact)
    )
    click.echo(text)


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
