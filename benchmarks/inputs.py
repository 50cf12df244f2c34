"""What a file takes, and raw images as it takes them: uint8, or floats normalised as its maker did; channels first or last.

Images that are floats already are as its maker made them, and go in as they are.

Refused: several inputs, another shape than (B, C, H, W) or (B, H, W, C) of the images at hand, other types, a fixed batch above one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BenchmarkError

Predict = Callable[[np.ndarray], np.ndarray]
UINT8 = np.dtype(np.uint8)
TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The one input of a file.

    Args:
        batch: a number where it is fixed. shape: (C, H, W), 0 for what is open. dtype: of the pixels. last: it has the channels last.
        mean, std: what floats are normalised with, in units of [0, 1], per channel or one for all.
    """

    name: str
    batch: int | str | None
    shape: tuple[int, ...]
    dtype: type
    last: bool
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)

    def fed(self, images: np.ndarray) -> np.ndarray:
        """Images uint8, or the floats made of them, (B, C, H, W), as the file takes them."""
        if images.dtype != UINT8:
            images = images.astype(self.dtype, copy=False)
        elif self.dtype is not np.uint8:
            images = images.astype(np.float32) / np.float32(255)
            if any(self.mean) or set(self.std) != {1.0}:
                mean, std = (np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
                images = (images - mean) / std
            images = images.astype(self.dtype, copy=False)
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if self.last else images

    def adapted(self, run: Predict) -> Predict:
        """A runtime's own call as one that takes uint8 images in batches of any size."""

        def flat(images: np.ndarray) -> np.ndarray:
            found = run(self.fed(images))  # squeezenet's (B, K, 1, 1) is (B, K)
            return found.reshape(len(found), -1) if found.ndim > 2 and found.size == len(found) * max(found.shape[1:]) else found

        if not isinstance(self.batch, int):
            return flat

        def one_after_the_other(images: np.ndarray) -> np.ndarray:
            if len(images) == 1:  # what is timed
                return flat(images)
            return np.concatenate([flat(images[i : i + 1]) for i in range(len(images))])

        return one_after_the_other

    def one_by_one(self, run: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], Any]:
        """The same for a call that gives several outputs; of a file that takes one image at a time, what it gives for the last."""
        if not isinstance(self.batch, int):
            return lambda images: run(self.fed(images))
        return lambda images: [run(self.fed(images[at : at + 1])) for at in range(len(images))][-1]


def taken(inputs: Sequence[tuple[str, Sequence[Any], str]], **normalised: Sequence[float]) -> Taken:
    """That of a file with these inputs, each a name, a shape and a type; ``normalised``: ``mean`` and ``std``."""
    if len(inputs) != 1:
        names = ", ".join(name for name, _, _ in inputs)
        raise BenchmarkError(f"inputs (={names}) must be one batch of images; export the network with one input")
    name, expected, kind = inputs[0]
    if len(expected) != 4:
        raise BenchmarkError(f"input shape (={tuple(expected)}) must be one of images, (B, C, H, W); name a network that reads images")
    if kind not in TYPES:
        raise BenchmarkError(f"input type (={kind}) must be tensor(uint8), or tensor(float) in [0, 1]; export with `compress export-onnx`")
    if isinstance(expected[0], int) and expected[0] > 1:
        raise BenchmarkError(f"input batch (={expected[0]}) must be free or 1; export with a dynamic batch dimension")
    batch, *sizes = [size if isinstance(size, int) and size > 0 else None for size in expected]
    first, *_, last = sizes
    is_last = last in (1, 3) and first not in (1, 3)
    shape = tuple(size or 0 for size in ((last, *sizes[:2]) if is_last else sizes))
    return Taken(name=name, batch=batch, shape=shape, dtype=TYPES[kind], last=is_last, **normalised)


def fitting(inputs: Sequence[tuple[str, Sequence[Any], str]], shape: tuple[int, ...], **normalised: Sequence[float]) -> Taken:
    """As :func:`taken`, for images of the ``shape`` (C, H, W)."""
    found = taken(inputs, **normalised)
    if any(size not in (0, want) for size, want in zip(found.shape, shape, strict=True)):
        raise BenchmarkError(f"input shape (={tuple(inputs[0][1])}) does not fit images of shape {shape}; take the data it was made for")
    return found
