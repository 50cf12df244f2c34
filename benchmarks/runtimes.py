"""Opens a model file in the runtime that a candidate names, as one function from raw images to logits.

What every runtime gives back is the same: ``predict(images)`` with uint8 ``(B, C, H, W)`` in, float32 ``(B, K)`` out, both in host
memory. So a call is over when it returns, also on a GPU, and what the clock sees is the whole way from raw pixels to logits.

Refused: CUDA where there is none, an ONNX file with several inputs, with another image shape or number of classes than the data, or
with a fixed batch above one. Torch networks are built by a function that the caller hands in, since this package knows no networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchmarkError

Predict = Callable[[np.ndarray], np.ndarray]
Load = Callable[[Path, str, int], Predict]

RUNTIMES = ("onnxruntime", "torch")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One file to measure in one runtime on one device.

    Args:
        name: what the variant is called, e.g. ``"int8 static"``; name, runtime and device together are unique in a benchmark.
        path: an ``.onnx`` file, or for torch an artifact's folder.
        runtime: ``"onnxruntime"`` or ``"torch"``.
        device: ``"cpu"`` or ``"cuda"``.
        stage: the stage that wrote the file, e.g. ``"quantize"``.
        artifact: the artifact's hash.
        facts: what its maker knows of it, e.g. ``params``, ``nonzeros``, ``macs``; passed through to the report.
        load: for torch, a module-level function ``load(path, device, threads)`` that returns the predict function.

    Raises:
        BenchmarkError: an unknown runtime or device, or torch without ``load``.
    """

    name: str
    path: Path
    runtime: str = "onnxruntime"
    device: str = "cpu"
    stage: str = ""
    artifact: str = ""
    facts: Mapping[str, float | int | str] = field(default_factory=dict)
    load: Load | None = None

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise BenchmarkError(f"runtime (={self.runtime}) of '{self.name}' is unknown; choose one of {', '.join(RUNTIMES)}")
        if self.device not in DEVICES:
            raise BenchmarkError(f"device (={self.device}) of '{self.name}' is unknown; choose one of {', '.join(DEVICES)}")
        if self.runtime == "torch" and self.load is None:
            raise BenchmarkError(f"load (=None) of '{self.name}' must be a function for torch; hand in one that builds the network")


def open_model(candidate: Candidate, shape: tuple[int, int, int], classes: int, threads: int) -> tuple[Predict, list[str]]:
    """Open a candidate's file.

    Args:
        shape: ``(C, H, W)`` of the images it will get.
        classes: K, the number of logits it must give per image.
        threads: CPU threads of the runtime.

    Returns:
        The predict function and the execution providers that the runtime really uses.

    Raises:
        BenchmarkError: as the module says. Errors of the runtime itself, e.g. on a truncated file, pass through.
    """
    if not candidate.path.exists():
        raise BenchmarkError(f"path (={candidate.path}) does not exist; export the model first")
    if candidate.runtime == "onnxruntime":
        predict, providers = _open_onnx(candidate, shape, threads)
    else:
        predict, providers = _open_torch(candidate, threads), [candidate.device]

    check_logits(predict(np.zeros((2, *shape), np.uint8)), 2, classes)
    return predict, providers


def check_logits(logits: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Give back the logits of `count` images as they are; refuse any shape but ``(count, classes)``, and NaN or infinity."""
    if logits.shape != (count, classes):
        raise BenchmarkError(f"output shape (={logits.shape}) must be ({count}, {classes}): {count} images, {classes} classes in the data")
    if not np.isfinite(logits).all():
        raise BenchmarkError("output holds NaN or infinity on the test images; check this variant's training or calibration")
    return logits


def _open_torch(candidate: Candidate, threads: int) -> Predict:
    if candidate.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BenchmarkError("no CUDA device")
    assert candidate.load is not None
    return candidate.load(candidate.path, candidate.device, threads)


def _open_onnx(candidate: Candidate, shape: tuple[int, int, int], threads: int) -> tuple[Predict, list[str]]:
    import onnxruntime

    wanted = "CUDAExecutionProvider" if candidate.device == "cuda" else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise BenchmarkError(f"onnxruntime build without {wanted}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: warnings about the graph would be mistaken for the reason of a failure
    session = onnxruntime.InferenceSession(str(candidate.path), options, providers=list(dict.fromkeys([wanted, "CPUExecutionProvider"])))
    if wanted not in session.get_providers():  # onnxruntime falls back to the CPU without an error
        raise BenchmarkError("no CUDA device")
    return _onnx_predict(session, shape), session.get_providers()


def _onnx_predict(session: Any, shape: tuple[int, int, int]) -> Predict:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise BenchmarkError(
            f"inputs (={', '.join(i.name for i in inputs)}) must be one batch of images; export the network with one input"
        )
    name, expected, kind = inputs[0].name, inputs[0].shape, inputs[0].type
    if len(expected) != 4 or any(isinstance(e, int) and e != s for e, s in zip(expected[1:], shape, strict=True)):
        raise BenchmarkError(
            f"input shape (={tuple(expected)}) does not fit images of shape {shape}; measure with the data it was made for"
        )
    if kind not in ("tensor(uint8)", "tensor(float)"):
        raise BenchmarkError(f"input type (={kind}) must be tensor(uint8), or tensor(float) in [0, 1]; export with `compress export-onnx`")

    def run(images: np.ndarray) -> np.ndarray:
        if kind == "tensor(float)":
            images = images.astype(np.float32) / np.float32(255)
        return session.run(None, {name: images})[0]

    if not isinstance(expected[0], int):
        return run
    if expected[0] != 1:
        raise BenchmarkError(f"input batch (={expected[0]}) must be free or 1; export with a dynamic batch dimension")
    return lambda images: np.concatenate([run(images[i : i + 1]) for i in range(len(images))])
