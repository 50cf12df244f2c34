"""The last two stages: benchmark every variant side by side, and report which one to ship. Loads no torch.

What is measured: ONNX graphs in ONNX Runtime, and the network they came from in torch, on the CPU; both once more on CUDA where
there is a device, else a row says why not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .artifact import PAYLOAD, Artifact, find_artifacts, read_artifact, sha256_of
from .benchmarks.report import write_report
from .benchmarks.results import Result, read_results, write_results
from .benchmarks.run import BenchmarkConfig, run_benchmark
from .benchmarks.runtimes import Candidate
from .benchmarks.verdict import Limits, Verdict
from .config import make_config
from .errors import CompressError
from .opening import Options
from .project import Made, Project, data_identity, run_stage, stage_key, variant_name, variants_of
from .train.metrics import score


def candidates_of(artifacts: Sequence[Artifact], device: str) -> list[Candidate]:
    """One candidate per artifact on the CPU, and on CUDA unless ``device`` is "cpu".

    Variants of the same name get a piece of their key.
    """
    names = [variant_name(artifact) for artifact in artifacts]
    kinds = [(name, artifact.manifest.kind) for name, artifact in zip(names, artifacts, strict=True)]
    made = []
    for artifact, name, kind in zip(artifacts, names, kinds, strict=True):
        about = artifact.manifest
        # Where nothing can run on CUDA, one row for torch and one for onnxruntime say so; the same for every variant would only be noise.
        on_cuda = device != "cpu" and (_has_cuda(about.kind) or len(about.lineage) <= (about.kind == "graph"))
        for place in ("cpu", "cuda") if on_cuda else ("cpu",):
            common: dict[str, Any] = {
                "name": name if kinds.count(kind) == 1 else f"{name} ({about.key[:6]})",
                "device": place,
                "stage": about.stage,
                "artifact": about.hash,
                "facts": about.facts,
            }
            if about.kind == "graph":
                made.append(Candidate(path=artifact.payload, runtime="onnxruntime", **common))
            else:
                from .networks import load_runner

                made.append(Candidate(path=artifact.path, runtime="torch", load=load_runner, **common))
    return made


def _has_cuda(kind: str) -> bool:
    if kind == "graph":
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    import torch

    return torch.cuda.is_available()


def candidate_of_file(path: Path) -> Candidate:
    """An ONNX file that no stage of this toolkit wrote."""
    if not path.is_file():
        raise CompressError(f"{path}: there is no such file; name an .onnx file or the folder of an artifact")
    return Candidate(name=path.stem, path=path, stage="file", artifact=sha256_of(path))


def benchmark(
    project: Project, candidates: Sequence[Candidate], config: BenchmarkConfig, root: Artifact | None, out: Path | None = None
) -> Artifact:
    """Measure ``candidates`` on the test images; the first ONNX candidate is the baseline."""
    baseline = next((c.name for c in candidates if c.runtime == "onnxruntime"), candidates[0].name)
    seen = [{"name": c.name, "runtime": c.runtime, "device": c.device, "artifact": c.artifact} for c in candidates]
    key = stage_key("benchmark", config, candidates=seen, data=data_identity(project))
    test = project.data.test

    def make(folder: Path) -> Made:
        result = run_benchmark(
            candidates,
            test.images,
            test.labels,
            project.classes,
            score,
            config,
            baseline=baseline,
            data={"name": project.data.name, "fingerprint": project.data.fingerprint, "part": "test"},
            progress=project.console.progress,
        )
        write_results(result, folder / PAYLOAD["benchmark"])
        return {}, {}

    return run_stage(project, "benchmark", "benchmark", key, config, root, out, make)


def measure(options: Options, files: Sequence[Path], config: BenchmarkConfig) -> Artifact:
    """``compress benchmark``: ``files`` (.onnx files, folders of artifacts), or every variant of the newest network."""
    if not files:
        project, _, root = options.child(("train", "import"))
        variants = variants_of(project, root)
        return benchmark(project, candidates_of([*variants, root], project.device), config, root, options.out)
    artifacts = {path: read_artifact(path) for path in files if path.is_dir()}
    if odd := [path for path, artifact in artifacts.items() if artifact.manifest.kind == "benchmark"]:
        raise CompressError(
            f"{odd[0]} is a benchmark's result; name networks or graphs, or take `compress report {odd[0] / PAYLOAD['benchmark']}`"
        )
    project = options.project_of_files(next(iter(artifacts.values()), None), files[0])
    candidates = candidates_of(list(artifacts.values()), project.device)
    candidates += [candidate_of_file(path) for path in files if path not in artifacts]
    return benchmark(project, candidates, config, None, options.out)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a report says: one result and one verdict per machine, and where its files lie."""

    folder: Path
    results: tuple[Result, ...]
    verdicts: tuple[Verdict, ...]


def report(files: Sequence[Path], folder: Path, limits: Mapping[str, Any]) -> Outcome:
    """Write the report of benchmark results into ``folder``; ``limits`` are those fields of :class:`Limits` that were given."""
    checked = make_config(Limits, {name: value for name, value in limits.items() if value is not None}, "[report]")
    results = tuple(read_results(path) for path in files)
    return Outcome(folder=folder, results=results, verdicts=write_report(results, folder, checked))


def newest_result(folder: Path) -> Path:
    """The newest benchmark in ``folder`` (``runs/<model>``)."""
    found = find_artifacts(folder / "benchmark")
    if not found:
        raise CompressError(f"{folder} has no benchmark yet; run `compress benchmark` first, or name a benchmark.json")
    return found[0].payload
