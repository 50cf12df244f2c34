"""``compress run``: every stage in order, from a network to a report.

Variants: the network as it is, pruned, dynamic int8, static int8 everywhere, quantized as the recipe says (by measurement, if it says
nothing), and pruned with static int8; with a table [remove-channels] in the recipe the network with fewer channels too, as it is and
quantized. A stage whose artifact is there already is not run again, and a training that was cut short goes on, so the same command after a
kill finishes from what is there.
"""

import importlib.util
from collections.abc import Mapping
from inspect import cleandoc
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from ..artifacts.context import Context
from ..artifacts.project import TRAINED_STAGES, Project, is_made, place_of
from ..artifacts.recipe import Recipe, Tutoring, training_config
from ..benchmarks.limits import Limits
from ..benchmarks.run import BenchmarkConfig
from ..codegen.target import target_of
from ..errors import CompressError
from ..train.settings import AugmentConfig, DistilConfig, FitConfig
from .benchmark import benchmark, candidates_of
from .boards.export_litert import ExportLitertConfig
from .export import ExportConfig, export
from .import_network import start_of
from .prune import PruneConfig, prune
from .quantize import QuantizeConfig, quantize
from .remove_channels import RemoveConfig, refuse_unreachable, remove_in_steps
from .report import Outcome, report
from .sensitivity import SensitivityConfig
from .train import train, training_key

# The tables of a recipe, each with the settings that it holds.
SETTINGS: Mapping[str, type] = {
    "train": FitConfig,
    "augment": AugmentConfig,
    "distil": DistilConfig,
    "sensitivity": SensitivityConfig,
    "prune": PruneConfig,
    "remove-channels": RemoveConfig,
    "export": ExportConfig,
    "quantize": QuantizeConfig,
    "export-litert": ExportLitertConfig,
    "benchmark": BenchmarkConfig,
    "report": Limits,
}


def run_all(context: Context, recipe: Recipe, measuring: Mapping[str, Any], limits: Mapping[str, Any]) -> Outcome:
    """Run everything; ``measuring`` and ``limits`` are what the caller says of benchmark and report."""
    # Every setting is checked before the first minute is spent, and what the last minutes need.
    if missing := [name for name in ("onnx", "onnxscript", "matplotlib") if importlib.util.find_spec(name) is None]:
        raise ModuleNotFoundError(f"No module named {missing[0]!r}", name=missing[0])
    pruning = recipe.stage(PruneConfig, "prune")
    removing = recipe.stage(RemoveConfig, "remove-channels") if recipe.table("remove-channels") else None
    if removing is not None:
        removing.in_steps()
    training_config(recipe)
    distil = recipe.stage(DistilConfig, "distil")
    exporting = recipe.stage(ExportConfig, "export")
    quantizing = recipe.stage(QuantizeConfig, "quantize", accept_unproved=limits.get("accept_unproved"))
    if quantizing.target:
        told = "`compress run` measures on this machine; leave it out of [quantize], and make that file with `compress quantize`"
        raise CompressError(f"target (={quantizing.target}): {told}")
    dynamic, static = (QuantizeConfig(mode=mode, images=quantizing.images, seed=quantizing.seed) for mode in ("dynamic", "static"))
    benchmarking = recipe.stage(BenchmarkConfig, "benchmark", **measuring)
    target_of(recipe.stage(Limits, "report", **limits).target)
    if context.device == "cuda":
        from ..train.fit import choose_device

        choose_device("cuda")

    if context.starts_from_parent:
        project, _, root = start_of(context, TRAINED_STAGES)
        tutoring = Tutoring(training=training_config(recipe, project.spec.shape), distil=distil)
    else:
        project = context.project(recipe)
        tutoring = Tutoring(training=training_config(recipe, project.spec.shape), distil=distil)
        if removing is not None:
            _refuse_unreachable(project, tutoring.training, removing)
        trained = train(project, tutoring.training)
        assert trained is not None, "only processes that torchrun started get none, and they do not run this"
        root = trained
    networks = [root, prune(project, root, pruning, tutoring)]
    if removing is not None:
        networks.append(remove_in_steps(project, root, removing, tutoring, recipe))
    dense, sparse, *small = (export(project, network, exporting) for network in networks)
    wanted = [(dense, dynamic), (dense, static), (dense, quantizing), (sparse, static), *((graph, quantizing) for graph in small)]
    quantized = [quantize(project, graph, config, tutoring) for graph, config in wanted]
    # Two ways may lead to one file, such as the float32 one that a search keeps: the last of them knows how it was chosen.
    graphs = list({graph.content: graph for graph in (dense, sparse, *small, *quantized)}.values())
    measured = benchmark(project, candidates_of([*graphs, root], context.device), benchmarking, root)
    return report([measured.payload], project.folder / "report", {**recipe.table("report"), **limits})


def _refuse_unreachable(project: Project, training: FitConfig, removing: RemoveConfig) -> None:
    """Before minutes of training, unless they are over already."""
    if not is_made(project, place_of(project, "train", training_key(project, training), None)):
        from .finetune import new_network

        refuse_unreachable(project, new_network(project, training.seed), removing)


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, as editors use it to complete and check: every table with its settings, their ranges and what is usual."""
    tables = [(name.replace("-", "_"), cls | UnsetType, UNSET) for name, cls in {"model-options": dict[str, Any], **SETTINGS}.items()]
    top = [("model", str | UnsetType, UNSET), ("data", str | UnsetType, UNSET), ("seed", int | UnsetType, UNSET)]
    shape = msgspec.defstruct("Recipe", [*top, *tables], rename=lambda name: name.replace("_", "-"), forbid_unknown_fields=True)
    schema = msgspec.json.schema(shape)
    for one in schema["$defs"].values():
        one |= {"additionalProperties": False} | ({"description": cleandoc(one["description"])} if "description" in one else {})
    del schema["$defs"]["FitConfig"]["properties"]["augment"]  # a table of its own
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
