"""The Python face: an object per network, with the stages as methods. What the command line does, it does by calling these::

    k49 = compress.open("k49", data="digits")
    trained = k49.train(epochs=12)
    small = k49.remove_channels(trained, max_macs=0.35)
    print(k49.benchmark().verdict)

Nothing is loaded before a stage needs it, torch least of all, and nothing is printed. ``start`` is an artifact or its folder; None takes
the newest fitting one. The options of each method are a class of :mod:`compress.api.options`.

Raises: whatever a user can put right is one of the errors drawn in :mod:`compress.errors`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..errors import CompressError, refuse_torchrun
from . import options as of
from .calls import LIMITS, Start, begin, begin_graph, fields_of, measuring, opened, some, takes

if TYPE_CHECKING:
    from ..artifacts.artifact import Artifact
    from ..artifacts.context import Context
    from ..artifacts.project import Console
    from ..channels.groups import Groups
    from ..stages.benchmark import Benchmark
    from ..stages.boards.export_c import ExportedC
    from ..stages.explain import Explanation
    from ..stages.predict import Predictions
    from ..stages.report import Outcome
    from ..stages.throughput import Throughput
    from ..stages.tune import Tuned


@takes(of.OpenOptions)
def open(model: of.Model | None = None, *, console: "Console | None" = None, **options: Unpack[of.OpenOptions]) -> "Network":
    """A network with its data and the folder of what is made of it; loads nothing yet. ``console`` is told how far long work is."""
    from ..artifacts.context import Context

    said: dict[str, Any] = {**options, "console": console} if console is not None else {**options}
    return Network(Context(model=model, **said))


class Network:
    """One network with its data and its folder ``runs/<model>``, as :func:`open` gives it."""

    def __init__(self, context: "Context") -> None:
        self._context = context

    @takes(of.TrainOptions)
    def train(self, start: Start = None, **options: Unpack[of.TrainOptions]) -> "Artifact":
        """Train a new network, or the one of ``start`` further; the best epoch on the validation images is kept.

        Of several processes that torchrun started the first returns, and the others end here.
        """
        from ..artifacts.project import TRAINED_STAGES
        from ..artifacts.recipe import training_config
        from ..stages.import_network import start_of
        from ..stages.train import train

        context, recipe = opened(self._context, start, options)
        settings = some(options, "epochs", "batch", "lr", "label_smoothing", "hflip", "resized_crop", "trivial_augment") | {
            "seed": context.seed
        }
        training_config(recipe, **settings)
        if "folds" in options:
            from ..stages.cross_validate import cross_validate
            from ..train.folds import check_folds

            if context.starts_from_parent:
                raise CompressError(f"folds (={options['folds']}) start from new networks; leave --from, --weights and --pretrained out")
            refuse_torchrun(f"folds (={options['folds']}) are trained by one process; start `compress train` without torchrun")
            check_folds(options["folds"])
            project = context.project(recipe)
            return cross_validate(project, training_config(recipe, project.spec.shape, **settings), options["folds"], context.out)
        if file := context.weights:
            refuse_torchrun(
                f"weights (={file}) are taken in by one process; `compress export-onnx --weights {file}` first, then train --from"
            )
        if context.starts_from_parent:
            project, recipe, parent = start_of(context, TRAINED_STAGES, (*TRAINED_STAGES, "remove-channels"), new_head=True)
        else:
            project, parent = context.project(recipe), None
        made = train(project, training_config(recipe, project.spec.shape, **settings), context.out, parent)
        if made is None:
            raise SystemExit
        return made

    @takes(of.TuneOptions)
    def tune(self, **options: Unpack[of.TuneOptions]) -> "Tuned":
        """Search for better settings; the best are written as a recipe for `compress train`.

        After a kill the same call goes on. Run at the same time in other processes, or on other hosts with the same storage, it shares
        the work. ``force`` forgets the study first.
        """
        from ..artifacts.model_reference import ModelReference
        from ..artifacts.records import checked
        from ..stages.tune import Tuning, read_space, tune_project

        context, recipe = opened(self._context, None, options)
        tuning = checked(Tuning, fields_of(Tuning, options), "tune")
        read_space(ModelReference(reference=recipe.model), recipe, tuning)  # a wrong space should not cost the loading of data first
        return tune_project(context.project(recipe), recipe, tuning)

    @takes(of.SensitivityOptions)
    def sensitivity(self, start: Start = None, **options: Unpack[of.SensitivityOptions]) -> "Artifact":
        """How much accuracy each layer, channel group or module is worth: a table and a heat map.

        Each is cut alone, the rest of the network stays as it is, and nothing is fine-tuned. Scored are training images, so that the
        validation images have no part in what is chosen by it.
        """
        from ..artifacts.project import NETWORK_STAGES
        from ..stages.sensitivity import SensitivityConfig, measure_sensitivity

        begun = begin(self._context, start, options, SensitivityConfig, "sensitivity", NETWORK_STAGES)
        return measure_sensitivity(begun.project, begun.parent, begun.config, begun.context.out)

    @takes(of.PruneOptions)
    def prune(self, start: Start = None, **options: Unpack[of.PruneOptions]) -> "Artifact":
        """Zero the weights that matter least, and fine-tune the rest with the mask kept; with ``steps`` gradually, on the cubic schedule.

        Zeros alone make no dense runtime faster and no file smaller on disk; they make it smaller when compressed. What makes a network
        smaller and faster is `compress remove-channels`.
        """
        from ..artifacts.project import NETWORK_STAGES, TRAINED_STAGES
        from ..stages.prune import PruneConfig, prune

        begun = begin(self._context, start, options, PruneConfig, "prune", TRAINED_STAGES, NETWORK_STAGES)
        return prune(begun.project, begun.parent, begun.config, begun.tutoring, begun.context.out)

    @takes(of.RemoveOptions)
    def remove_channels(self, start: Start = None, **options: Unpack[of.RemoveOptions]) -> "Artifact":
        """Remove channels, so that the file gets smaller and the network faster, and fine-tune with the unpruned network as teacher.

        With ``onnx`` those of a graph that nobody has the network of; with ``epochs`` 0 nothing is trained, and what goes is made up for by
        least squares alone. Goals are shares of what the teacher costs; with several, all are met. Layers that are tied together
        (residuals, depthwise convolutions, attention gates, concatenations) lose the same channels; what is not understood stays whole
        and is named.
        """
        from ..artifacts.project import FOREIGN_STAGES, NETWORK_STAGES, TRAINED_STAGES
        from ..stages.remove_channels import RemoveConfig, remove_in_steps

        allowed = (*NETWORK_STAGES, *FOREIGN_STAGES)
        begun = begin(self._context, start, options, RemoveConfig, "remove-channels", TRAINED_STAGES, allowed)
        return remove_in_steps(begun.project, begun.parent, begun.config, begun.tutoring, begun.recipe, begun.context.out)

    @takes(of.GroupsOptions)
    def channel_groups(self, start: Start = None, **options: Unpack[of.GroupsOptions]) -> "Groups":
        """Which channels go together, and what is left whole and why; removes nothing."""
        from ..artifacts.project import FOREIGN_STAGES, NETWORK_STAGES, TRAINED_STAGES
        from ..stages.remove_channels import RemoveConfig, groups_of

        allowed = (*NETWORK_STAGES, *FOREIGN_STAGES)
        begun = begin(self._context, start, options, RemoveConfig, "remove-channels", TRAINED_STAGES, allowed)
        return groups_of(begun.project, begun.parent)

    @takes(of.ExportOptions)
    def export_onnx(self, start: Start = None, **options: Unpack[of.ExportOptions]) -> "Artifact":
        """Export to one ONNX file: raw uint8 images in, logits and probabilities out, labels inside, proved equal to torch."""
        from ..artifacts.project import NETWORK_STAGES
        from ..stages.export import ExportConfig, export

        begun = begin(self._context, start, options, ExportConfig, "export", NETWORK_STAGES)
        return export(begun.project, begun.parent, begun.config, begun.context.out)

    @takes(of.ExportCOptions)
    def export_c(self, start: Start = None, **options: Unpack[of.ExportCOptions]) -> "ExportedC":
        """Write a graph as C that needs nothing, for boards: a folder with its test, an example, and makefiles.

        ``start`` is a graph, or a network, of which the newest export is taken; without any, the newest graph of the model is. What no
        C is known for is refused by the name of the node. `compress verify` compiles the folder and runs its test.
        """
        from ..artifacts.records import checked
        from ..stages.boards.export_c import ExportCConfig, export_c

        context, recipe = opened(self._context, start, options)
        config = checked(ExportCConfig, fields_of(ExportCConfig, options), "export-c")
        return export_c(context, recipe, config, Path(options["onnx"]) if "onnx" in options else None)

    @takes(of.ExportLitertOptions)
    def export_litert(self, start: Start = None, **options: Unpack[of.ExportLitertOptions]) -> "Artifact":
        """Write a graph as a .tflite file for LiteRT and phones: raw uint8 image in, channels last, labels inside, proved equal.

        ``start`` is a graph, or a network, which is exported first; without any, the newest graph of the model is. int8 stays int8 where
        LiteRT can compute it so. What LiteRT has no operator for is refused by the name of the node. Needs the extra compress-edge[litert].
        """
        from ..artifacts.project import GRAPH_STAGES, NETWORK_STAGES
        from ..stages.boards.export_litert import STAGE, ExportLitertConfig, export_litert
        from ..stages.export import ExportConfig, graph_of

        begun = begin(self._context, start, options, ExportLitertConfig, STAGE, GRAPH_STAGES, (*NETWORK_STAGES, *GRAPH_STAGES))
        graph = graph_of(begun.project, begun.parent, begun.recipe.stage(ExportConfig, "export"))
        return export_litert(begun.project, graph, begun.config, begun.context.out)

    @takes(of.QuantizeOptions)
    def quantize(self, start: Start = None, **options: Unpack[of.QuantizeOptions]) -> "Artifact":
        """Find the fastest file that still reads as well, by measurement on this machine, and say why; or make one by hand.

        Tried are groups of nodes in int8, ways to calibrate, dynamic quantization, and weights that are only stored in fewer bits. The
        table of everything that was tried is kept, and the same command takes the same choice again. "Do not quantize" is an answer. For a
        ``target`` that is not here nothing is timed: the smallest file that still reads as well is taken, with that processor's types.
        """
        from ..stages.quantize import quantize

        begun = begin_graph(self._context, start, options)
        return quantize(begun.project, begun.parent, begun.config, begun.tutoring, begun.context.out)

    @takes(of.QuantizeOptions)
    def explain_int8(self, start: Start = None, **options: Unpack[of.QuantizeOptions]) -> "Artifact":
        """What int8 costs each layer and each group of nodes, in accuracy and in time; makes no file."""
        from ..stages.quantize import explain_quantization

        begun = begin_graph(self._context, start, options)
        return explain_quantization(begun.project, begun.parent, begun.config)

    @takes(of.BenchmarkOptions)
    def benchmark(self, *files: Path | str, **options: Unpack[of.BenchmarkOptions]) -> "Benchmark":
        """Measure variants side by side: accuracy on the test images, latency, size.

        FILES are .onnx files, anybody's, or folders of artifacts; without any, all variants of the newest network are measured. Of .onnx
        files without data only latency and size are, on random pixels.
        """
        from ..benchmarks.run import BenchmarkConfig
        from ..stages.benchmark import USUAL, measure

        context, recipe = opened(self._context, None, options)
        config = recipe.stage(BenchmarkConfig, "benchmark", **measuring(options), seed=context.seed)
        return measure(context, recipe, [Path(one) for one in files], config, tuple(options.get("runtimes", ())) or USUAL)

    @takes(of.ReportOptions)
    def report(self, *results: Path | str, **options: Unpack[of.ReportOptions]) -> "Outcome":
        """Say which variant to ship and why, as HTML, Markdown, CSV and JSON.

        RESULTS are benchmark.json files, also of several machines, which then stand side by side; without any, the newest benchmark of the
        network on each machine that measured it. What loses less than is allowed as counted, but not surely so with the images that there
        are, does not ship unless that is accepted.
        """
        from ..stages.report import newest_results, report

        context, recipe = opened(self._context, None, options)
        folder = context.folder(recipe)
        files = [Path(one) for one in results] or newest_results(folder)
        limits = {**recipe.table("report"), **some(options, *LIMITS)}
        return report(files, context.out or folder / "report", limits, Path(options["ship"]) if "ship" in options else None)

    @takes(of.RunOptions)
    def run(self, **options: Unpack[of.RunOptions]) -> "Outcome":
        """Everything: train, prune, export, quantize, benchmark, report. A second run, or one after a kill, does only what is missing."""
        from ..stages.run_all import run_all

        context, recipe = opened(self._context, None, options)
        return run_all(context, recipe, measuring(options), some(options, *LIMITS))

    @takes(of.PredictOptions)
    def predict(self, *files: Path | str, start: Start = None, **options: Unpack[of.PredictOptions]) -> "Predictions":
        """Read image files, arrays of images in .npz files, or random test images: label, probability, and a picture of them."""
        from ..stages.predict import read

        context, _ = opened(self._context, start, options)
        return read(context, [Path(one) for one in files], **some(options, "onnx", "random", "invert", "grid"))

    @takes(of.ExplainOptions)
    def explain(self, *files: Path | str, start: Start = None, **options: Unpack[of.ExplainOptions]) -> "Explanation":
        """Draw what networks look at, before and after compression: attention gates, and evidence for the true class and for the answer.

        FILES are .onnx files or folders of artifacts; without any, the newest trained network, its newest pruned descendant and int8 graph.
        """
        from ..stages.explain import explain

        context, _ = opened(self._context, start, options)
        return explain(context, [Path(one) for one in files], **some(options, "index", "misread", "blocks", "out"))

    @takes(of.ThroughputOptions)
    def throughput(self, **options: Unpack[of.ThroughputOptions]) -> "list[Throughput]":
        """How many images a second training takes in here, from the plain loop to the one of `compress train`."""
        from ..artifacts.recipe import training_config
        from ..stages.throughput import measure_throughput

        context, recipe = opened(self._context, None, options)
        training_config(recipe, seed=context.seed)
        project = context.project(recipe)
        return measure_throughput(project, training_config(recipe, project.spec.shape, seed=context.seed), **options)
