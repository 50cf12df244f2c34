"""Test vectors beside a model: a few real images and the logits that were expected of them.

Refused before memory is taken: an archive whose members, as they are declared, do not fit into ``MOST_BYTES``, that is encrypted or packed
otherwise than by zlib; an array that is not as large as its header says; Python objects, as nothing is pickled.
"""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..benchmarks.run import scoring_batch
from ..errors import CompressError, first_line, shown
from ..train.stored import Images
from .artifact import PAYLOAD, sha256_of

VECTORS = "vectors.npz"
MOST_VECTORS, SEEN_IMAGES = 8, 256
# Of the largest logit. fp32: sums in another order move logits by about 1e-6 of it. int8: other kernels round otherwise
# (microsoft/onnxruntime#32132); with and without fused kernels, static int8 of the reference networks differed by up to 1.7% on 500
# images, dynamic by 0.15%.
TOLERANCE = {"export": 1e-4, "quantize": 0.05}
MOST_BYTES = 2**27  # of one array: eight images of 2**24 values
_HEADER = (SyntaxError, MemoryError, RecursionError, TypeError, tokenize.TokenError)  # what numpy raises of one that is not plain
_DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, *_HEADER)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What ``vectors.npz`` holds: uint8 (N, C, H, W), float32 (N, K), the largest difference allowed, and the model's SHA-256 in hex."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    tolerance: float
    model: str


def write_vectors(
    folder: Path, run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images: Images, tolerance: float, model: str = PAYLOAD["graph"]
) -> None:
    """Write ``vectors.npz`` beside the ``model`` in ``folder``; the same inputs give the same bytes.

    Chosen among the first images is the surest one of each class that is answered, at most 8: rounding turns no answer of theirs.

    Args:
        run: what is expected of the model, images uint8 (B, C, H, W) to logits float32 (B, K).
        images: uint8 (N, C, H, W), at least one. tolerance: as a fraction of the largest absolute logit.
    """
    seen = np.ascontiguousarray(images[:SEEN_IMAGES])
    size = scoring_batch(seen[0].nbytes)
    logits = np.concatenate([run(seen[start : start + size]) for start in range(0, len(seen), size)])
    margins = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1).sum(axis=1)
    surest_first = np.argsort(-margins, kind="stable")
    _, first_of_class = np.unique(logits.argmax(axis=1)[surest_first], return_index=True)
    chosen = surest_first[np.sort(first_of_class)[:MOST_VECTORS]]
    expected = logits[chosen].astype(np.float32)
    allowed = np.float64(tolerance * np.abs(expected).max())
    np.savez(folder / VECTORS, images=seen[chosen], logits=expected, tolerance=allowed, model=np.array(sha256_of(folder / model)))


def read_vectors(path: Path) -> Vectors:
    """Read test vectors back.

    Raises:
        CompressError: the file is missing, damaged or not one of test vectors.
    """
    again = "copy it anew, or export the model again"
    if not path.is_file():
        raise CompressError(
            f"{path.parent} has no {path.name}; `compress export-onnx` and `compress quantize` write it beside {PAYLOAD['graph']}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            images, logits, tolerance, model = (_array(archive, name) for name in ("images", "logits", "tolerance", "model"))
    except _DAMAGE as error:
        told = shown(first_line(error), 120)
        raise CompressError(f"{path} is damaged, or holds no test vectors ({told}); {again}") from error
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.size > 0
    fits = fits and logits.dtype == np.float32 and logits.ndim == 2 and logits.size > 0 and len(logits) == len(images)
    if not fits or tolerance.dtype != np.float64 or tolerance.shape != () or model.shape != () or model.dtype.kind != "U":
        found = f"images {images.dtype} {images.shape}, logits {logits.dtype} {logits.shape}"
        raise CompressError(f"{path} holds no test vectors: {shown(found, 120)}; {again}")
    return Vectors(images=images, logits=logits, tolerance=float(tolerance), model=str(model))


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """The member ``name`` of the archive; its header is read first, and no more than that promises."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is encrypted, or packed otherwise than numpy does")
    if entry.file_size > MOST_BYTES:
        raise ValueError(f"{name} has {entry.file_size:,} bytes, at most {MOST_BYTES:,} are read")
    with archive.open(entry) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError(f"{name} is not of version 1.0 of the format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - stream.tell():
            raise ValueError(f"{name} holds Python objects, or is not of the {shape} values that it declares")
        return np.frombuffer(bytearray(stream.read()), dtype).reshape(shape, order="F" if fortran else "C")
