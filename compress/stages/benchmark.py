"""The stage ``benchmark``: every variant side by side. Loads no torch.

What is measured: ONNX graphs in ONNX Runtime, and the network they came from in torch, on the CPU; both once more on CUDA where
there is a device, else a row says why not. On request graphs as C too, compiled here for this machine.
"""

import dataclasses
import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ..artifacts.artifact import PAYLOAD, Artifact, InputSpec, Manifest, read_artifact, sha256_of
from ..artifacts.classifier.opened import shape_of
from ..artifacts.context import Context
from ..artifacts.payloads import read_results
from ..artifacts.project import TRAINED_STAGES, Project, data_identity, making, place_identity, stage_key, variant_name, variants_of
from ..artifacts.recipe import Recipe
from ..benchmarks.boards.known import place_named
from ..benchmarks.formats import title
from ..benchmarks.limits import Limits
from ..benchmarks.machine import has_cuda_driver
from ..benchmarks.results import Choice, Data, Finalist, Result, write_results
from ..benchmarks.results import Facts as Known
from ..benchmarks.run import BenchmarkConfig, run_benchmark
from ..benchmarks.runtimes import Candidate
from ..benchmarks.tables import plain
from ..benchmarks.verdict import Verdict, decide
from ..codegen.target import TARGETS, target_of
from ..errors import CompressError, need_file
from ..quantization.records import described, types_for
from ..train.metrics import mean_average_precision, score
from .boards.compilers import toolchain
from .boards.library import compiled
from .report import needs_of_files

CALLED = 2  # of how C and LiteRT are called, which is part of what is timed
OF_GRAPHS = ("onnxruntime", "openvino", "c")
CHOICES = (*OF_GRAPHS, "litert", "torch", "torch.compile")
USUAL = ("onnxruntime", "litert", "torch")  # others on request: OpenVINO is an extra, and torch.compile takes a minute to start


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What was measured, where it lies, and which variant to ship by the limits of the recipe."""

    artifact: Artifact
    result: Result
    verdict: Verdict


def candidates_of(artifacts: Sequence[Artifact], device: str, runtimes: Sequence[str] = USUAL) -> list[Candidate]:
    """One candidate per artifact and runtime that fits it, on the CPU, and on CUDA unless ``device`` is "cpu".

    Variants of the same name get a piece of their key.
    """
    names = [(variant_name(artifact), artifact.manifest.kind) for artifact in artifacts]
    made = []
    for artifact, (name, kind) in zip(artifacts, names, strict=True):
        about = artifact.manifest
        name = name if names.count((name, kind)) == 1 else f"{name} ({about.key[:6]})"
        file: dict[str, Any] = (
            {"path": artifact.payload} if kind in ("graph", "litert") else {"path": artifact.path, "load": partial(_load_parts, artifact)}
        )
        common = {"name": name, "stage": about.stage, "artifact": about.hash, "facts": _facts(about), **file}
        # Where nothing can run on CUDA, one row for torch and one for onnxruntime say so; the same for every variant would only be noise.
        first = len(about.lineage) <= (kind == "graph")
        places = [place for runtime in _chosen(runtimes) for place in _places(kind, runtime, device != "cpu", first)]
        made += [Candidate(runtime=runtime, device=place, **common) for runtime, place in places]
    return made


def _load_parts(artifact: Artifact, _: Path) -> Any:
    """As ``artifacts.load.load_parts``, in the process that measures: nothing here loads torch."""
    from ..artifacts.load import load_parts

    return load_parts(artifact)


def _facts(about: Manifest) -> Known:
    """What the benchmark tells of an artifact: its cost, its zeros, and how it was chosen, where `compress quantize` did so."""
    known = Known(**{name: value for name, value in vars(about.facts).items() if value is not UNSET})  # type: ignore[typeddict-item]
    if (found := about.metrics.choice) is not UNSET:
        rows = zip(described(found.finalists), found.finalists, strict=True)
        finalists = tuple(
            Finalist(what=what, ratio=one.ratio, low=one.low, high=one.high, drop=one.drop, bound=one.bound, size=one.size or 0)
            for what, one in rows
        )
        known["choice"] = Choice(verdict=found.verdict, tried=found.tried, finalists=finalists)
    return known


def _saturates(context: Context, artifact: Artifact) -> bool:
    """Whether a graph was made for sums of 32 bits, on a processor that is not here, and this machine or that of ``--on`` has only 16."""
    about = artifact.steps[-1].settings if artifact.manifest.stage == "quantize" else None
    if about is None or about.mode not in ("static", "dynamic") or about.target not in TARGETS or TARGETS[about.target].reduce_range:
        return False
    facts = place_named(context.on, context.console.progress).machine()
    return types_for(facts.get("architecture", ""), facts.get("flags", [])).reduce_range


def _chosen(runtimes: Sequence[str]) -> Sequence[str]:
    """The runtimes that words of the command line stand for, in the order of `CHOICES`."""
    if unknown := [name for name in runtimes if name not in (*CHOICES, "all")]:
        raise CompressError(f"runtime (={unknown[0]}) is unknown; choose of {', '.join(CHOICES)}, or all")
    return [name for name in CHOICES if name in runtimes or "all" in runtimes]


def _there(runtimes: Sequence[str]) -> Sequence[str]:
    """Those that another machine may have: files are timed there, and nothing is compiled."""
    if not (left := [name for name in ("onnxruntime", "openvino") if name in runtimes or "all" in runtimes]):
        told = f"runtime (={', '.join(runtimes)}) is not timed on another machine"
        raise CompressError(f"{told}; take onnxruntime or openvino, or leave --on out")
    return left


def _places(kind: str, runtime: str, on_cuda: bool, first: bool) -> list[tuple[str, str]]:
    """Where an artifact of this kind is measured for a choice of runtime: pairs of runtime and device."""
    if (kind == "litert") != (runtime == "litert") or (kind == "graph") != (runtime in OF_GRAPHS):
        return []
    if runtime in ("openvino", "c", "litert", "torch.compile"):
        return [(runtime, "cpu")]
    there = on_cuda and _has_cuda(kind)
    ways = {"torch": ("torch", "torch.fp16", "torch.cudagraph"), "onnxruntime": ("onnxruntime", "onnxruntime.fp16")}
    cuda = [(name, "cuda") for name in (ways[runtime] if there else (runtime,))]
    return [(runtime, "cpu"), *(cuda if there or (on_cuda and first) else [])]


def _has_cuda(kind: str) -> bool:
    if not has_cuda_driver():
        return False
    if kind == "graph":
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    import torch

    return torch.cuda.is_available()


def candidates_of_file(path: Path, runtimes: Sequence[str] = USUAL, spec: InputSpec | None = None) -> list[Candidate]:
    """A file that no stage of this toolkit wrote, ONNX in each runtime that takes it, a ``.tflite`` file in LiteRT; floats are normalised
    as ``spec`` says.
    """
    need_file(path, str(path), "; name an .onnx file or the folder of an artifact")
    kind, fit = (".tflite", ("litert",)) if path.suffix == ".tflite" else (".onnx", OF_GRAPHS)
    takes = [runtime for runtime in _chosen(runtimes) if runtime in fit]
    if not takes:
        raise CompressError(f"runtime (={', '.join(runtimes)}) takes no {kind} file such as {path}; add --runtime {fit[0]}")
    # Artifacts' files are all called model.onnx: such a one goes by its folder.
    name = path.resolve().parent.name if path.name == PAYLOAD["graph"] else path.stem
    about: dict[str, Any] = {"name": name, "path": path, "stage": "file", "artifact": sha256_of(path)}
    about |= {"mean": spec.mean, "std": spec.std} if spec else {}
    return [Candidate(runtime=runtime, **about) for runtime in takes]


def benchmark(
    project: Project, candidates: Sequence[Candidate], config: BenchmarkConfig, root: Artifact | None, out: Path | None = None
) -> Artifact:
    """Measure ``candidates`` on the test images; the first ONNX candidate is the baseline. Without labels there are no scores, but those of
    the user's own where there are targets.
    """
    baseline = next((c.name for c in candidates if c.runtime == "onnxruntime"), candidates[0].name)
    seen = [{"name": c.name, "runtime": c.runtime, "device": c.device, "artifact": c.artifact} for c in candidates]
    runtimes = {one.runtime for one in candidates}
    built: dict[str, Any] = {"toolchain": toolchain()} if "c" in runtimes else {}  # an upgrade measures again
    built |= {"called": CALLED} if runtimes & {"c", "litert"} else {}
    key = stage_key("benchmark", config, candidates=seen, data=data_identity(project), **built, **place_identity(project))

    with making(project, "benchmark", "benchmark", key, config, root, out) as new:
        if not new.wanted:
            return new.artifact
        test, about, task = project.data.test, project.data.about, project.task
        labelled = about.labelled
        if task is not None:
            candidates = [dataclasses.replace(one, whole=True) for one in candidates]
        names = list(about.classes) if labelled else []
        data = Data(name=about.name, network=project.folder.name, fingerprint=about.fingerprint, part="test", class_names=names)
        with tempfile.TemporaryDirectory() as scratch:
            result = run_benchmark(
                compiled(candidates, Path(scratch), project.console.progress),
                test.images,
                test.labels if labelled else None,
                project.classes if labelled else None,
                score,
                config,
                baseline=baseline,
                data=data,
                progress=project.console.progress,
                precision=mean_average_precision if importlib.util.find_spec("sklearn") else None,
                place=project.place,
                own=(task.judge(test), task.identity) if task is not None else None,
            )
        failed = [f"{title(one)}: {one.reason}" for one in result.measurements if one.reason is not None]
        if len(failed) == len(candidates):
            raise CompressError(f"nothing could be measured: {failed[0]}")
        write_results(result, new.folder / PAYLOAD["benchmark"])
    return new.artifact


def measure(context: Context, recipe: Recipe, files: Sequence[Path], config: BenchmarkConfig, runtimes: Sequence[str]) -> Benchmark:
    """Measure ``files`` (.onnx files, folders of artifacts), or every variant of the newest network."""
    _chosen(runtimes)  # a wrong name should not cost the loading of data first
    if context.on is not None:
        context, runtimes = dataclasses.replace(context, device="cpu"), _there(runtimes)
    limits = recipe.stage(Limits, "report")
    target_of(limits.target)
    root = None
    if files:
        artifacts = {path: context.trusted(read_artifact(path)) for path in files if path.is_dir()}
        if folds := [path for path, artifact in artifacts.items() if artifact.manifest.kind == "folds"]:
            raise CompressError(f"{folds[0]} is a cross-validation's result, which keeps no network; name networks or graphs")
        if odd := [path for path, artifact in artifacts.items() if artifact.manifest.kind == "benchmark"]:
            raise CompressError(
                f"{odd[0]} is a benchmark's result; name networks or graphs, or take `compress report {odd[0] / PAYLOAD['benchmark']}`"
            )
        if odd := [path for path, artifact in artifacts.items() if _saturates(context, artifact)]:
            target = artifacts[odd[0]].steps[-1].settings.target
            told = f"{odd[0]} was made for {target}, and sums of 8-bit products saturate on {context.on or 'this machine'}"
            raise CompressError(f"{told}, so it computes something else there; measure it on such a board with --on")
        first = next(iter(artifacts.values()), None)
        if context.calibrate is not None and (first is not None or context.names_data):
            raise CompressError(
                f"calibrate (={context.calibrate}) is of images for files of which no labels are known; leave it or --data out"
            )
        shape = None if first or context.score else shape_of(files, context.image_shape)
        project = context.project_of_files(first, files[0], shape)
        candidates = candidates_of(list(artifacts.values()), project.device, runtimes)
        candidates += [one for path in files if path not in artifacts for one in candidates_of_file(path, runtimes, project.spec)]
    else:
        project, _, root = context.child(TRAINED_STAGES)
        graphs = variants_of(project, root)
        for graph in (left := [one for one in graphs if _saturates(context, one)]):
            told = f"sums of 8-bit products saturate on {context.on or 'this machine'}"
            project.console.say(f"benchmark: {graph.path} ({variant_name(graph)}) left out, as {told}")
        candidates = candidates_of([*(one for one in graphs if one not in left), root], project.device, runtimes)
    if not candidates:
        raise CompressError("there is no file to time there; `compress export-onnx` makes one")
    artifact = benchmark(project, candidates, config, root, context.out)
    result = read_results(artifact.payload)
    for one in result.measurements:
        if one.reason is None:
            project.log.figures(f"benchmark/{title(one)}", 0, plain(result, one))
    return Benchmark(artifact=artifact, result=result, verdict=decide(result, limits, needs_of_files(artifact.payload, result, limits)))
