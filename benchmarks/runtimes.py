"""Opens a model file in the runtime that a candidate names, as one function from raw images to logits.

What every runtime gives back is the same: ``predict(images)`` with uint8 ``(B, C, H, W)`` in, float ``(B, K)`` out, both in host
memory. So a call is over when it returns, also on a GPU, and what the clock sees is the whole way from raw pixels to logits. Of a file with
several outputs the first one is the logits.

======================  =========  ==================================================================================
onnxruntime             cpu, cuda  an ``.onnx`` file
onnxruntime.fp16        cuda       the same, converted to half precision
openvino                cpu        an ``.onnx`` file, in float32 where the file is (OpenVINO's own default may be bf16)
litert                  cpu        a ``.tflite`` file, anybody's; one image at a time, a batch is a loop
c                       cpu        an ``.onnx`` file as C, in a shared library; one thread, a batch is a loop
torch                   cpu, cuda  a network, eager, float32
torch.compile           cpu, cuda  the same, compiled for the batch of one and once more for all others
torch.fp16              cuda       the same in half precision
torch.cudagraph         cuda       float32, recorded once per batch size and replayed
======================  =========  ==================================================================================

Refused: CUDA where there is none, an ONNX file that ``inputs`` refuses or that has another number of classes than the data, and what
mixes the images of a batch. Torch networks are built by a function that the caller hands in, since this package knows no networks, and what
was compiled from C is handed in too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .compiled import Compiled, open_compiled
from .errors import BenchmarkError, MissingError, refuse_odd_name
from .inputs import Predict, Taken, fitting, taken
from .machine import has_cuda_driver

OnDevice = Callable[[np.ndarray, int], np.ndarray]
Load = Callable[[Path], tuple[Any, Any]]

BOTH = ("cpu", "cuda")
PROBABILITIES = "probabilities"
ALIKE = 0.1  # of the largest logit; dynamic int8, whose scales are those of a batch, is off by 0.5% of it
RUNTIMES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": BOTH,
    "onnxruntime.fp16": ("cuda",),
    "openvino": ("cpu",),
    "litert": ("cpu",),
    "c": ("cpu",),
    "torch": BOTH,
    "torch.compile": BOTH,
    "torch.fp16": ("cuda",),
    "torch.cudagraph": ("cuda",),
}
# Where a file ships, on the CPU, and how a variant is called that runs there; torch needs the network's code.
SHIPPED = {"onnxruntime": "", "openvino": " in OpenVINO", "litert": " in LiteRT", "c": " as C"}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file to measure in one runtime on one device.

    Args:
        name: what the variant is called, e.g. ``"int8 static"``; name, runtime and device together are unique in a benchmark.
        path: an ``.onnx`` file, for litert a ``.tflite`` file, or for torch an artifact's folder.
        runtime, device: as the module's table has them.
        stage: the stage that wrote the file, e.g. ``"quantize"``.
        artifact: the artifact's hash.
        facts: what its maker knows of it, see `results.Facts`; passed through to the report.
        mean, std: what a file that takes floats was normalised with.
        whole: all outputs are asked for, as a tuple of arrays, and none of them is looked at.
        precise: ONNX Runtime on an x86 CPU without VNNI adds products of 8 bits in 32 bits too, by slower kernels.
        load: for torch, a module-level function ``load(path)`` that returns two modules on the CPU: one from uint8 images to the network's
            float32 input, and the network, to logits.
        compiled: for c, what was made of the file, or why there is nothing.

    Raises:
        BenchmarkError: an unknown runtime, a device it does not run on, or torch without ``load``.
    """

    name: str
    path: Path
    runtime: str = "onnxruntime"
    device: str = "cpu"
    stage: str = ""
    artifact: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    whole: bool = False
    precise: bool = False
    load: Load | None = None
    compiled: Compiled | str | None = None

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise BenchmarkError(f"runtime (={self.runtime}) of '{self.name}' is unknown; choose one of {', '.join(RUNTIMES)}")
        if self.device not in RUNTIMES[self.runtime]:
            known = " or ".join(RUNTIMES[self.runtime])
            raise BenchmarkError(f"device (={self.device}) of '{self.name}' must be {known} for {self.runtime}; choose that")
        if self.library == "torch" and self.load is None:
            raise BenchmarkError(f"load (=None) of '{self.name}' must be a function for torch; hand in one that builds the network")

    @property
    def decides(self) -> bool:
        """Whether a verdict may choose it."""
        return self.runtime in SHIPPED and self.device == "cpu"

    @property
    def weighed(self) -> Path:
        """The file or folder whose size counts."""
        return self.compiled.path if isinstance(self.compiled, Compiled) else self.path

    @property
    def library(self) -> str:
        """The Python package that the runtime is part of."""
        return self.runtime.partition(".")[0]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that is ready.

    Args:
        providers: what the runtime really computes with.
        load_ns: from the file to a model that can be called. first_ns: the first call, of one image.
        on_device: on a GPU, ``on_device(images, calls)`` gives int64 nanoseconds per call, one figure for every few of them, without the
            way to and from host memory.
        probabilities: as ``predict``, but for the output of that name; None where the file has none.
        last: the file takes channels last; images (B, C, H, W) that lie so in memory need not be moved.
        release: gives the memory of large batches back to the system; None where the runtime keeps none.
    """

    predict: Predict
    providers: tuple[str, ...]
    load_ns: int
    first_ns: int
    on_device: OnDevice | None = None
    probabilities: Predict | None = None
    last: bool = False
    release: Callable[[], None] | None = None

    def sure(self, images: np.ndarray) -> np.ndarray:
        """Probabilities (B, K): what the file gives as such, a sigmoid's too, else the softmax of its logits."""
        if self.probabilities is not None:
            return self.probabilities(images)
        logits = self.predict(images).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
        return found


def import_runtime(candidate: Candidate) -> None:
    """Import the library, so that loading a model is timed alone; MissingError without it, BenchmarkError without a CUDA driver."""
    if (candidate.library, candidate.device) == ("torch", "cuda") and not has_cuda_driver():
        raise BenchmarkError("no CUDA device")
    if candidate.runtime == "c":
        return
    package, told = {"litert": ("ai_edge_litert", "ai-edge-litert")}.get(candidate.library, (candidate.library,) * 2)
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        extra = f"; `pip install 'compress-edge[{candidate.library}]'`" if candidate.library in ("litert", "openvino") else ""
        raise MissingError(f"{told} is not installed{extra}") from None


def open_model(candidate: Candidate, shape: tuple[int, int, int], classes: int | None, threads: int) -> Opened:
    """Open a candidate's file and check what it gives.

    Args:
        shape: ``(C, H, W)`` of the images it will get.
        classes: K, the number of logits it must give per image; None where nobody looks at what it gives.
        threads: CPU threads of the runtime.

    Raises:
        BenchmarkError: as the module says. Errors of the runtime itself, e.g. on a truncated file, pass through.
    """
    refuse_odd_name(candidate.path)
    if not candidate.path.exists():
        raise BenchmarkError(f"path (={candidate.path}) does not exist; export the model first")
    import_runtime(candidate)
    on_device, probabilities, last, release, begin = None, None, False, None, time.perf_counter_ns()
    if candidate.library == "onnxruntime":
        predict, probabilities, last, release, providers, on_device = _open_onnx(candidate, shape, threads)
    elif candidate.library == "openvino":
        from . import openvinonets

        (predict, probabilities, last), providers = openvinonets.open_file(candidate, shape, threads), ("OpenVINO CPU",)
    elif candidate.library == "litert":
        from . import litertnets

        (predict, probabilities, last), providers = litertnets.open_file(candidate, shape, threads), ("LiteRT CPU",)
    elif candidate.library == "c":
        how: dict[str, Any] = {"whole": candidate.whole, "mean": candidate.mean, "std": candidate.std}
        (predict, probabilities, last), providers = open_compiled(candidate.compiled, shape, PROBABILITIES, **how), ("C, one thread",)
    else:
        from .torchnets import open_network

        (predict, on_device), providers = open_network(candidate, threads), (candidate.device,)
    pair, opened = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8), time.perf_counter_ns()
    alone = predict(pair[:1])
    first_ns = time.perf_counter_ns() - opened
    if classes is not None:
        check_logits(alone, 1, classes)
        together = check_logits(predict(pair), 2, classes)
        if np.abs(np.concatenate([alone, predict(pair[1:])]) - together).max() > ALIKE * np.abs(together).max():
            raise BenchmarkError("an image gets other logits alone than in a batch, so no score is its own; keep running statistics")
    return Opened(
        predict=predict,
        providers=providers,
        load_ns=opened - begin,
        first_ns=first_ns,
        on_device=on_device,
        probabilities=probabilities,
        last=last,
        release=release,
    )


def check_logits(logits: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Give back the logits of `count` images as they are; refuse any shape but ``(count, classes)``, and NaN or infinity."""
    if logits.shape != (count, classes):
        raise BenchmarkError(f"output shape (={logits.shape}) must be ({count}, {classes}): {count} images, {classes} classes in the data")
    if not np.isfinite(logits).all():
        raise BenchmarkError("output holds NaN or infinity on the test images; check this variant's training or calibration")
    return logits


def about_file(path: Path) -> tuple[Taken, dict[str, str]]:
    """What an ``.onnx`` or a ``.tflite`` file takes, and an ``.onnx`` file's metadata; onnxruntime's own errors pass through."""
    refuse_odd_name(path)
    if path.suffix == ".tflite":
        from .litertnets import taken_by

        return taken_by(path), {}
    try:
        session = onnx_session(Candidate(name=path.stem, path=path), 1)
        return taken(_ports(session.get_inputs)), dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise BenchmarkError("it has a name or a note that is no UTF-8") from error


def _ports(read: Callable[[], Any]) -> list[tuple[str, Sequence[Any], str]]:
    try:
        return [(one.name, one.shape, one.type) for one in read()]
    except UnicodeDecodeError as error:
        raise BenchmarkError("an input or output has a name that is no UTF-8") from error


def onnx_session(candidate: Candidate, threads: int, profile: Path | None = None, optimised: bool = True) -> Any:
    """A session of ONNX Runtime on the candidate's device; with `profile`, one that writes its profile under that name."""
    import onnxruntime

    wanted = "CUDAExecutionProvider" if candidate.device == "cuda" else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        if len([name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]) == 2:
            raise BenchmarkError(
                "onnxruntime and onnxruntime-gpu are both installed and hide each other; `pip uninstall` both, then install onnxruntime-gpu"
            )
        raise BenchmarkError(f"onnxruntime build without {wanted}")
    how: dict[str, str] = {}
    if candidate.device == "cuda":
        onnxruntime.preload_dlls()  # CUDA and cuDNN as pip has installed them for torch
        how = {"use_tf32": "0"}  # float32 means float32, as in torch
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Else an idle worker's threads spin for some 35 ms after their last call, into the next candidate's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if candidate.precise:  # else two products are added in 16 bits, and saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 3  # errors only: warnings about the graph would be mistaken for the reason of a failure
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers: dict[str, dict[str, str]] = {wanted: how, "CPUExecutionProvider": {}}
    model = _halved(candidate.path) if candidate.runtime == "onnxruntime.fp16" else str(candidate.path)
    session = onnxruntime.InferenceSession(model, options, providers=list(providers.items()))
    if wanted not in session.get_providers():  # onnxruntime falls back to the CPU without an error
        raise BenchmarkError("no CUDA device")
    return session


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _halved(path: Path) -> bytes:
    """The file in half precision, but for its inputs and outputs, by ONNX Runtime's own converter."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half: bytes = convert_float_to_float16(onnx.load(path), keep_io_types=True).SerializeToString()
    return half


def _open_onnx(
    candidate: Candidate, shape: tuple[int, int, int], threads: int
) -> tuple[Predict, Predict | None, bool, Callable[[], None] | None, tuple[str, ...], OnDevice | None]:
    session = onnx_session(candidate, threads)
    entry = fitting(_ports(session.get_inputs), shape, mean=candidate.mean, std=candidate.std)
    outputs = [name for name, *_ in _ports(session.get_outputs)]
    if not outputs:
        raise BenchmarkError("it gives nothing; export it again")

    def giving(output: str) -> Predict:
        return entry.adapted(lambda images: session.run([output], {entry.name: images})[0])

    def release() -> None:
        """One call at whose end the arena shrinks to what that call takes; of itself it keeps what the largest batch took."""
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        session.run([outputs[0]], {entry.name: entry.fed(np.zeros((1, *shape), np.uint8))}, options)

    probabilities = giving(PROBABILITIES) if PROBABILITIES in outputs[1:] else None
    predict = entry.one_by_one(lambda images: tuple(session.run(None, {entry.name: images}))) if candidate.whole else giving(outputs[0])
    on_device = _bound(session, entry, outputs[0]) if candidate.device == "cuda" and not isinstance(entry.batch, int) else None
    given_back = release if candidate.device == "cpu" else None
    return predict, probabilities, entry.last, given_back, tuple(session.get_providers()), on_device


def _bound(session: Any, entry: Taken, output: str) -> OnDevice:
    """Times calls on images that are on the device already and logits that stay there; a call returns when the device is done."""
    import onnxruntime

    from .torchnets import until_awake

    def time_calls(images: np.ndarray, calls: int) -> np.ndarray:
        binding = session.io_binding()
        held = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(entry.fed(images)), "cuda", 0)
        binding.bind_ortvalue_input(entry.name, held)
        binding.bind_output(output, "cuda")
        until_awake(lambda: session.run_with_iobinding(binding))
        nanoseconds = np.empty(calls, np.int64)
        for call in range(calls):
            begin = time.perf_counter_ns()
            session.run_with_iobinding(binding)
            nanoseconds[call] = time.perf_counter_ns() - begin
        return nanoseconds

    return time_calls
