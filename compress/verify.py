"""Test vectors beside a model, and ``compress verify``: the proof, anywhere, that the file still computes what it was made to compute.

``vectors.npz`` lies beside ``model.onnx``: a few real images, the logits that were expected of them when the file was made (of an export:
torch's; of an int8 file: ONNX Runtime's, on the machine that made it), how far logits may be off, and the SHA-256 of the model. Needs
numpy and onnxruntime only; where OpenVINO is installed, it has to agree as well. It tells accidents and unfit runtimes (a cut copy, a
kernel that computes something else), not forgers: nothing is signed.

Refused: a folder without the two files, and vectors that are damaged. Nothing is pickled.
"""

import importlib.util
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .artifact import MANIFEST, PAYLOAD, read_artifact, sha256_of
from .benchmarks.errors import BenchmarkError
from .benchmarks.runtimes import Candidate, Opened, check_logits, open_model
from .errors import CompressError, first_line, onnxruntime_errors

VECTORS = "vectors.npz"
MOST_VECTORS, SEEN_IMAGES = 8, 256
# Of the largest logit. fp32: sums in another order move logits by about 1e-6 of it. int8: other kernels round otherwise
# (microsoft/onnxruntime#32132); with and without fused kernels, static int8 of the reference networks differed by up to 1.7% on 500
# images, dynamic by 0.15%.
TOLERANCE = {"export": 1e-4, "quantize": 0.05}
SOFTMAX_TOLERANCE = 1e-5  # of the file's own logits: float32, also in an int8 file
_DAMAGE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What ``vectors.npz`` holds: uint8 (N, C, H, W), float32 (N, K), the largest difference allowed, and the model's SHA-256 in hex."""

    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    tolerance: float
    model: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """One part of the proof, with what was found in words."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Proof:
    """All parts of the proof for the model in ``folder``; what could not be tried is left out."""

    folder: Path
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        return all(check.passed for check in self.checks)


def write_vectors(
    folder: Path, run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], images: NDArray[np.uint8], tolerance: float
) -> None:
    """Write ``vectors.npz`` beside the ``model.onnx`` in ``folder``; the same inputs give the same bytes.

    Chosen among the first images is the surest one of each class that is answered, at most 8: rounding turns no answer of theirs.

    Args:
        run: what is expected of the model, images uint8 (B, C, H, W) to logits float32 (B, K).
        images: uint8 (N, C, H, W), at least one. tolerance: as a fraction of the largest absolute logit.
    """
    seen = np.ascontiguousarray(images[:SEEN_IMAGES])
    logits = run(seen)
    margins = np.diff(np.sort(logits, axis=1)[:, -2:], axis=1).sum(axis=1)
    surest_first = np.argsort(-margins, kind="stable")
    _, first_of_class = np.unique(logits.argmax(axis=1)[surest_first], return_index=True)
    chosen = surest_first[np.sort(first_of_class)[:MOST_VECTORS]]
    expected = logits[chosen].astype(np.float32)
    allowed = np.float64(tolerance * np.abs(expected).max())
    np.savez(
        folder / VECTORS, images=seen[chosen], logits=expected, tolerance=allowed, model=np.array(sha256_of(folder / PAYLOAD["graph"]))
    )


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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            images, logits, tolerance, model = (stored[name] for name in ("images", "logits", "tolerance", "model"))
    except (*_DAMAGE, TypeError, AttributeError) as error:  # the last two: a bare array, which is no archive
        raise CompressError(f"{path} is damaged, or holds no test vectors ({first_line(error)}); {again}") from error
    fits = images.dtype == np.uint8 and images.ndim == 4 and images.size > 0
    fits &= logits.dtype == np.float32 and logits.ndim == 2 and logits.size > 0 and len(logits) == len(images)
    if not fits or tolerance.dtype != np.float64 or tolerance.shape != () or model.shape != () or model.dtype.kind != "U":
        raise CompressError(
            f"{path} holds no test vectors: images {images.dtype} {images.shape}, logits {logits.dtype} {logits.shape}; {again}"
        )
    return Vectors(images=images, logits=logits, tolerance=float(tolerance), model=str(model))


def verify(folder: Path) -> Proof:
    """Repeat the proof for the ``model.onnx`` in ``folder``, an artifact's or any other with ``vectors.npz`` in it.

    Raises:
        CompressError: there is nothing to prove, or nothing to prove it with.
    """
    model = folder / PAYLOAD["graph"]
    if not folder.is_dir():
        raise CompressError(f"{folder} is no folder; name the one that holds {model.name} and {VECTORS}")
    if not model.is_file():
        raise CompressError(f"{folder} has no {model.name}; name the folder of an exported or quantized model")
    vectors = read_vectors(folder / VECTORS)
    found = sha256_of(model)
    whole = found == vectors.model
    detail = f"SHA-256 {found[:12]}..." + ("" if whole else f", {vectors.model[:12]}... was expected: the file was changed or cut")
    checks = [Check(name="hash", passed=whole, detail=detail)]
    if whole and (folder / MANIFEST).is_file():
        read_artifact(folder, "graph")  # the hash of every other file, the vectors included
    return Proof(folder=folder, checks=(*checks, *_compute(model, vectors)))


def _compute(model: Path, vectors: Vectors) -> list[Check]:
    import onnxruntime

    try:
        opened, logits = _answer(model, vectors, "onnxruntime")
    except (BenchmarkError, *onnxruntime_errors()) as error:
        return [Check(name="loads", passed=False, detail=f"not in onnxruntime {onnxruntime.__version__}: {_said(error)}")]
    difference, same, count = *_agreement(logits, vectors), len(logits)
    checks = [
        Check(name="loads", passed=True, detail=f"onnxruntime {onnxruntime.__version__}, {', '.join(opened.providers)}"),
        Check(
            name="logits",
            passed=difference <= vectors.tolerance,
            detail=f"largest difference {difference:.2g} on {count} images, {vectors.tolerance:.2g} is allowed",
        ),
        Check(name="answers", passed=same == count, detail=f"{same} of {count} images have the expected answer"),
    ]
    if opened.probabilities is not None:
        checks.append(_check_probabilities(opened.probabilities(vectors.images), logits))
    if importlib.util.find_spec("openvino") is not None:
        checks.append(_check_openvino(model, vectors))
    return checks


def _answer(model: Path, vectors: Vectors, runtime: str) -> tuple[Opened, NDArray[np.float32]]:
    count, classes = vectors.logits.shape
    opened = open_model(Candidate(name=model.stem, path=model, runtime=runtime), vectors.images.shape[1:], classes, threads=1)
    return opened, check_logits(opened.predict(vectors.images), count, classes)


def _agreement(logits: NDArray[np.float32], vectors: Vectors) -> tuple[float, int]:
    """The largest difference from the expected logits, and how many images have the expected answer."""
    expected = vectors.logits
    return float(np.abs(logits - expected).max()), int((logits.argmax(axis=1) == expected.argmax(axis=1)).sum())


def _check_probabilities(found: NDArray[np.float32], logits: NDArray[np.float32]) -> Check:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else np.inf
    return Check(
        name="probabilities",
        passed=difference <= SOFTMAX_TOLERANCE,
        detail=f"largest difference {difference:.2g} from the softmax of the logits, {SOFTMAX_TOLERANCE:g} is allowed",
    )


def _check_openvino(model: Path, vectors: Vectors) -> Check:
    try:
        from openvino import __version__ as version

        logits = _answer(model, vectors, "openvino")[1]
    except (BenchmarkError, ImportError, RuntimeError) as error:  # OpenVINO's own errors are the last
        return Check(name="openvino", passed=False, detail=f"does not load or run: {_said(error)}")
    difference, same, count = *_agreement(logits, vectors), len(logits)
    return Check(
        name="openvino",
        passed=difference <= vectors.tolerance and same == count,
        detail=f"{version.partition('-')[0]}: largest difference {difference:.2g}, {same} of {count} images have the expected answer",
    )


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, BenchmarkError) else first_line(error)


def proof_text(proof: Proof) -> str:
    """One line per check, and the outcome."""
    lines = [f"{'ok  ' if check.passed else 'FAIL'}  {check.name:<13} {check.detail}" for check in proof.checks]
    return "\n".join([*lines, f"{proof.folder}: {'proved' if proof.holds else 'NOT proved; copy or export the model again'}"])
