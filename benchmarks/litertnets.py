"""Opens a ``.tflite`` file in LiteRT (XNNPACK where it takes a node): one image at a time, a batch is a loop.

Integers that a file takes or gives are numbers by its own scale and zero point, so images are normalised first and then rounded.

Refused: what LiteRT cannot load, an input that ``inputs`` refuses, and integers quantized per channel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchmarkError
from .inputs import Predict, Taken, fitting, taken
from .runtimes import PROBABILITIES, Candidate, import_runtime

SUFFIX = ".tflite"
Port = dict[str, Any]  # LiteRT's own description of a tensor


def open_file(candidate: Candidate, shape: tuple[int, int, int], threads: int) -> tuple[Predict, Predict | None]:
    """What it gives for images, and its probabilities where it has some."""
    interpreter = _interpreter(candidate.path, threads)
    [port, *_], outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if not outputs:
        raise BenchmarkError("it gives nothing; export it again")
    entry, rounded = fitting(_inputs(interpreter), shape, mean=candidate.mean, std=candidate.std), _rounding(port)

    def every(images: np.ndarray, *some: Port) -> tuple[np.ndarray, ...]:
        interpreter.set_tensor(port["index"], rounded(images))
        interpreter.invoke()
        return tuple(_numbers(interpreter.get_tensor(one["index"]), one) for one in some)

    if candidate.whole:
        return entry.one_by_one(lambda images: every(images, *outputs)), None
    sure = [one for one in outputs[1:] if PROBABILITIES in one["name"]]
    return entry.adapted(lambda images: every(images, outputs[0])[0]), entry.adapted(
        lambda images: every(images, sure[0])[0]
    ) if sure else None


def taken_by(path: Path) -> Taken:
    """What a file takes. Raises BenchmarkError where LiteRT is missing or cannot load it."""
    import_runtime(Candidate(name=path.stem, path=path, runtime="litert"))
    return taken(_inputs(_interpreter(path, 1)))


def _interpreter(path: Path, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        said = str(error).strip() or type(error).__name__
        raise BenchmarkError(f"it is no whole .tflite file that LiteRT can load: {said.splitlines()[0]}") from error
    return interpreter


def _inputs(interpreter: Any) -> list[tuple[str, list[int], str]]:
    kinds = {np.uint8: "tensor(uint8)", np.float32: "tensor(float)", np.float16: "tensor(float16)"}

    def kind(port: Port) -> str:
        return "tensor(float)" if _is_quantized(port) else kinds.get(port["dtype"], port["dtype"].__name__)

    return [(one["name"], [int(size) for size in one["shape"]], kind(one)) for one in interpreter.get_input_details()]


def _is_quantized(port: Port) -> bool:
    scales = port["quantization_parameters"]["scales"]
    if len(scales) > 1:
        raise BenchmarkError(f"{port['name']} has {len(scales)} scales, images and answers need one; quantize it per tensor")
    return len(scales) == 1 and np.issubdtype(port["dtype"], np.integer)


def _rounding(port: Port) -> Callable[[np.ndarray], np.ndarray]:
    """From float32 to the integers that stand for them there; nothing where it takes pixels or floats."""
    if not _is_quantized(port):
        return lambda images: images
    (scale, zero), bounds = port["quantization"], np.iinfo(port["dtype"])
    return lambda images: np.clip(np.rint(images / np.float32(scale)) + zero, bounds.min, bounds.max).astype(port["dtype"])


def _numbers(found: np.ndarray, port: Port) -> np.ndarray:
    if not _is_quantized(port):
        return found
    scale, zero = port["quantization"]
    return (found.astype(np.float32) - np.float32(zero)) * np.float32(scale)
