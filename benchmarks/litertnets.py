"""Opens a ``.tflite`` file in LiteRT (XNNPACK where it takes a node): one image at a time, a batch is a loop.

A file that takes uint8 gets the pixels. One that takes int8 gets numbers by its own scale and zero point: images are normalised first and
then rounded, 256 numbers for each channel; where nobody says how they are normalised, and the integers reach far beyond 1, the pixels
themselves. By hand: of int8 with a scale of 1 and a zero of -128 pixel 255 is 127, as of int8 with a scale of 1/255.

Refused: what LiteRT cannot load, an input that ``inputs`` refuses, and integers quantized per channel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchmarkError
from .inputs import UINT8, Predict, Taken, fitting, taken
from .runtimes import PROBABILITIES, Candidate, import_runtime

SUFFIX = ".tflite"
FAR = 16.0  # numbers beyond which an input is no normalised image
Port = dict[str, Any]  # LiteRT's own description of a tensor


@dataclass(frozen=True, kw_only=True)
class Integers(Taken):
    """An input of int8 that stand for ``(q - zero) * scale``."""

    scale: float
    zero: int

    @cached_property
    def table(self) -> np.ndarray:
        """What the 256 pixels become, (C, 256)."""
        pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 1, 256)
        if self.scale * 255 > FAR and not any(self.mean) and set(self.std) == {1.0}:
            return self.rounded(np.repeat(pixels, self.shape[0], axis=1).astype(np.float32))[0, :, 0]
        floats = Taken(name=self.name, batch=1, shape=self.shape, dtype=np.float32, last=False, mean=self.mean, std=self.std)
        return self.rounded(floats.fed(np.repeat(pixels, self.shape[0], axis=1)))[0, :, 0]

    def rounded(self, numbers: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(numbers / np.float32(self.scale)) + self.zero, -128, 127).astype(np.int8)

    @cached_property
    def alike(self) -> bool:
        """All channels become the same numbers."""
        return bool((self.table == self.table[0]).all())

    def fed(self, images: np.ndarray) -> np.ndarray:
        if images.dtype == UINT8 and self.alike:  # an array of their numbers lies in the order in which they were asked for
            return self.table[0].take(images.transpose(0, 2, 3, 1) if self.last else images)
        images = self.table[np.arange(images.shape[1])[:, None, None], images] if images.dtype == UINT8 else self.rounded(images)
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if self.last else images


def open_file(
    candidate: Candidate, shape: tuple[int, int, int], threads: int, *, plain: bool = False
) -> tuple[Predict, Predict | None, bool]:
    """What it gives for images, its probabilities where it has some, and whether it takes channels last; ``plain``: without XNNPACK."""
    interpreter = _interpreter(candidate.path, threads, plain=plain)
    found = fitting(_inputs(interpreter), shape, mean=candidate.mean, std=candidate.std)
    [port, *_], outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if not outputs:
        raise BenchmarkError("it gives nothing; export it again")
    entry = entry_of(port, found)

    place = port["index"]

    def compute(images: np.ndarray) -> None:
        try:
            interpreter.set_tensor(place, images)
            interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            raise BenchmarkError(f"LiteRT cannot compute it: {first_line_of(error)}") from error

    def giving(output: Port) -> Predict:
        given, read = output["index"], reader_of(output)

        def run(images: np.ndarray) -> np.ndarray:
            compute(images)
            return read(interpreter.get_tensor(given))

        return entry.adapted(run)

    if candidate.whole:
        readers = [(one["index"], reader_of(one)) for one in outputs]

        def every(images: np.ndarray) -> tuple[np.ndarray, ...]:
            compute(images)
            return tuple(read(interpreter.get_tensor(given)) for given, read in readers)

        return entry.one_by_one(every), None, entry.last
    sure = [one for one in outputs[1:] if PROBABILITIES in one["name"]]
    return giving(outputs[0]), giving(sure[0]) if sure else None, entry.last


def taken_by(path: Path) -> Taken:
    """What a file takes. Raises BenchmarkError where LiteRT is missing or cannot load it."""
    import_runtime(Candidate(name=path.stem, path=path, runtime="litert"))
    return taken(_inputs(_interpreter(path, 1, plain=True)))


def holds_int8(path: Path) -> bool:
    """Whether something is computed in int8, so that other kernels may round otherwise."""
    return any(one["dtype"] is np.int8 for one in _interpreter(path, 1, plain=True).get_tensor_details())


def entry_of(port: Port, entry: Taken) -> Taken:
    """The same, of integers with what they stand for."""
    if not _is_quantized(port) or port["dtype"] is np.uint8:
        return entry
    (scale, zero), known = port["quantization"], {name: getattr(entry, name) for name in Taken.__dataclass_fields__}
    return Integers(**known, scale=float(scale), zero=int(zero))


@contextmanager
def _silently() -> Iterator[None]:
    """Without the line that LiteRT's library writes to the standard error of every program; errors are raised."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _interpreter(path: Path, threads: int, *, plain: bool) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else OpResolverType.AUTO

    try:
        with _silently():
            interpreter = Interpreter(model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise BenchmarkError(f"it is no whole .tflite file that LiteRT can load: {first_line_of(error)}") from error
    return interpreter


def _inputs(interpreter: Any) -> list[tuple[str, list[int], str]]:
    kinds = {np.uint8: "tensor(uint8)", np.float32: "tensor(float)", np.float16: "tensor(float16)"}

    def kind(port: Port) -> str:
        return "tensor(float)" if _is_quantized(port) and port["dtype"] is np.int8 else kinds.get(port["dtype"], port["dtype"].__name__)

    try:
        ports = interpreter.get_input_details()
        interpreter.get_output_details()
    except UnicodeDecodeError as error:
        raise BenchmarkError("an input or output has a name that is no UTF-8") from error
    return [(one["name"], [int(size) for size in one["shape"]], kind(one)) for one in ports]


def _is_quantized(port: Port) -> bool:
    scales = port["quantization_parameters"]["scales"]
    if len(scales) > 1:
        raise BenchmarkError(f"{port['name']} has {len(scales)} scales, images and answers need one; quantize it per tensor")
    return len(scales) == 1 and np.issubdtype(port["dtype"], np.integer)


def reader_of(port: Port) -> Predict:
    """Makes numbers of the integers that a file gives; floats are what they are."""
    if not _is_quantized(port):
        return lambda found: found
    scale, zero = port["quantization"]

    def numbers_of(found: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = (found.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return numbers

    if np.dtype(port["dtype"]).itemsize > 1:
        return numbers_of
    table = numbers_of(np.arange(256, dtype=np.uint8).view(port["dtype"]))
    return lambda found: table.take(found.view(np.uint8))


def first_line_of(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
