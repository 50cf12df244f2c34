"""Calls a network that was compiled from C, in a shared library that the caller hands in: this package knows no compiler and writes no C.

One image at a time on one thread, into memory that is there before; a batch is a loop.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BenchmarkError
from .inputs import Predict, fitting

ALIGNED, PAGE = 64, 4096


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A shared library with ``void function(const void *image, float *outputs, void *arena)``.

    Args:
        taken: name, shape for one image, and type as ONNX Runtime calls it. outputs: names and shapes, which lie one after the other.
        arena: bytes, aligned to 64.
    """

    path: Path
    function: str
    taken: tuple[str, tuple[int, ...], str]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    arena: int


class Loaded:
    """A library with memory of its own: a call reads an image, and leaves what it gives in ``found``, float32 and flat.

    ``place``: where the arena begins within a page, a multiple of 64, as speed may depend on it.
    """

    def __init__(self, library: Compiled, place: int = 0) -> None:
        function = getattr(ctypes.CDLL(str(library.path)), library.function)
        function.argtypes, function.restype = [ctypes.c_void_p] * 3, None
        self.found = np.empty(sum(math.prod(size) for _, size in library.outputs), np.float32)
        memory = np.empty(library.arena + 2 * PAGE, np.uint8)
        self._arena = memory[-memory.ctypes.data % PAGE + place % PAGE // ALIGNED * ALIGNED :]
        self._function = function

    def bound(self, image: np.ndarray) -> Callable[[], Any]:
        """A call that computes ``image``, which has the order and type that the library takes, from what lies in it then.

        Its pointers keep the memory that they point to.
        """
        return partial(self._function, *(one.ctypes.data_as(ctypes.c_void_p) for one in (image, self.found, self._arena)))


def _as_it_is(images: np.ndarray) -> np.ndarray:
    return images


def open_compiled(
    library: Compiled | str | None, shape: tuple[int, ...], probabilities: str, *, whole: bool, **normalised: Any
) -> tuple[Any, Predict | None, bool]:
    """What it gives for images uint8 (B, C, H, W): the first output, or all of them, that called ``probabilities``, if it has it, and
    whether it takes channels last.

    Raises BenchmarkError where there is the reason why there is none in place of a library.
    """
    if not isinstance(library, Compiled):
        raise BenchmarkError(library or "it was not compiled")
    entry = fitting([library.taken], shape, **normalised)
    loaded = Loaded(library)
    image: np.ndarray = np.empty(library.taken[1], entry.dtype)
    fed = entry.fed if entry.last or entry.dtype is not np.uint8 else _as_it_is
    cuts = np.cumsum([math.prod(size) for _, size in library.outputs])[:-1]
    parts = [part.reshape(size) for part, (_, size) in zip(np.split(loaded.found, cuts), library.outputs, strict=True)]
    call = loaded.bound(image)

    def compute(images: np.ndarray) -> None:
        image[...] = fed(images)
        call()

    def giving(part: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        part = part.reshape(1, -1) if part.ndim > 2 and part.size == max(part.shape[1:]) else part  # squeezenet's (1, K, 1, 1) is (1, K)

        first = part[:1]

        def predict(images: np.ndarray) -> np.ndarray:
            if len(images) == 1:  # what is timed: small networks take less than the numpy of a batch
                image[...] = fed(images)
                call()
                copied: np.ndarray = first.copy()
                return copied
            given = np.empty((len(images), *part.shape[1:]), np.float32)
            for at in range(len(images)):
                compute(images[at : at + 1])
                given[at] = part[0]
            return given

        return predict

    def every(images: np.ndarray) -> tuple[np.ndarray, ...]:
        for at in range(len(images)):
            compute(images[at : at + 1])
        return tuple(part.copy() for part in parts)

    if whole:
        return every, None, entry.last
    sure = [part for part, (name, _) in zip(parts[1:], library.outputs[1:], strict=True) if name == probabilities]
    return giving(parts[0]), giving(sure[0]) if sure else None, entry.last
