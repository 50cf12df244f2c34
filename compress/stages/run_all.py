"""``compress run``: every stage in order, from a network to a report.

Variants: the network as it is, pruned, dynamic int8, static int8 everywhere, quantized as the recipe says (by measurement, if it says
nothing), and pruned with static int8; with a table [remove-channels] in the recipe the network with fewer channels too, as it is and
quantized. A stage whose artifact is there already is not run again, and a training that was cut short goes on, so the same command after a
kill finishes from what is there.
"""

from collections.abc import Mapping
from typing import Any

from ..artifacts.artifact import Artifact
from ..artifacts.context import Options
from ..artifacts.recipe import Recipe, training_config
from ..benchmarks.run import BenchmarkConfig
from ..train.fit import choose_device
from ..train.settings import DistilConfig
from .benchmark import benchmark, candidates_of
from .export import ExportConfig, export
from .import_network import import_weights
from .prune import PruneConfig, prune
from .quantize import QuantizeConfig, quantize
from .remove_channels import RemoveConfig, remove_in_steps
from .report import Outcome, report
from .sensitivity import Sensitivities
from .train import train


def run_all(options: Options, recipe: Recipe, measuring: Mapping[str, Any], limits: Mapping[str, Any]) -> Outcome:
    """Run everything; ``measuring`` and ``limits`` are what the command line says of benchmark and report."""
    # Every setting is checked before the first minute is spent.
    training = training_config(recipe)
    pruning = recipe.stage(PruneConfig, "prune")
    removing = recipe.stage(RemoveConfig, "remove-channels") if recipe.table("remove-channels") else None
    if removing is not None:
        removing.in_steps()
    distil = recipe.stage(DistilConfig, "distil")
    exporting = recipe.stage(ExportConfig, "export")
    quantizing = recipe.stage(QuantizeConfig, "quantize")
    dynamic, static = (QuantizeConfig(mode=mode, images=quantizing.images, seed=quantizing.seed) for mode in ("dynamic", "static"))
    benchmarking = recipe.stage(BenchmarkConfig, "benchmark", **measuring)
    limits = dict(recipe.table("report")) | {name: value for name, value in limits.items() if value is not None}
    choose_device(options.device)

    root: Artifact | None
    if options.pretrained:
        project, _, root = options.child(("train",))
    else:
        project = options.project(recipe)
        root = import_weights(project, options.weights) if options.weights else train(project, training)
    assert root is not None, "only processes that torchrun started get none, and they do not run this"
    pruned = prune(project, root, pruning, training, distil)
    networks = [root, pruned]
    if removing is not None:
        networks.append(
            remove_in_steps(project, root, removing, training, distil, sensitivities=Sensitivities(project=project, recipe=recipe))
        )
    dense, sparse, *small = (export(project, network, exporting) for network in networks)
    wanted = [(dense, dynamic), (dense, static), (dense, quantizing), (sparse, static), *((graph, quantizing) for graph in small)]
    quantized = [quantize(project, graph, config, training, distil) for graph, config in wanted]
    graphs = list({graph.path: graph for graph in (dense, sparse, *small, *quantized)}.values())  # two ways may lead to one file
    measured = benchmark(project, candidates_of([*graphs, root], options.device), benchmarking, root)
    return report([measured.payload], project.folder / "report", limits)
