"""Test vectors beside a model, and ``compress verify``: the proof, anywhere, that the file still computes what it was made to compute.

``vectors.npz`` lies beside ``model.onnx``: a few real images, the logits that were expected of them when the file was made (of an export:
torch's; of an int8 file: ONNX Runtime's, on the machine that made it), how far logits may be off, and the SHA-256 of the model. Needs
numpy and onnxruntime only; where OpenVINO is installed, it has to agree as well. It tells accidents and unfit runtimes (a cut copy, a
kernel that computes something else), not forgers: nothing is signed.

Of an ``.onnx`` file without vectors, as of one whose outputs are no classes, less is proved, on random pixels: that it loads and gives
finite numbers, an image alone those that it gets in a batch, and without ONNX Runtime's optimisations the same.

A ``.tflite`` file is asked in LiteRT likewise; one in float32 without vectors also without XNNPACK.

A file that was made for a processor that is not here is asked with sums of 32 bits, as it has them: what this machine's own give is told.

A folder of C, which ``compress export-c`` wrote, is compiled and its own test run, see ``boards.prove``.

Refused: a folder without the two files, and vectors that are damaged. Nothing is pickled.
"""

import importlib.metadata
import importlib.util
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..artifacts.artifact import MANIFEST, MOST_VALUES, PAYLOAD, read_artifact, sha256_of
from ..artifacts.vectors import TOLERANCE, VECTORS, Vectors, read_vectors
from ..benchmarks.boards.known import place_named
from ..benchmarks.boards.remote import CutError
from ..benchmarks.errors import BenchmarkError, MissingError
from ..benchmarks.inputs import Taken
from ..benchmarks.place import answering
from ..benchmarks.runtimes import Candidate, Opened, about_file, check_logits, onnx_session, open_model
from ..errors import CompressError, first_line, onnxruntime_errors, shown
from ..quantization.records import TARGET
from ..train.metrics import sigmoid, softmax
from .boards.record import RECORD

MODELS, TFLITE = (PAYLOAD["graph"], PAYLOAD["litert"]), ".tflite"
OPEN_SIZE = 224  # pixels, where a file leaves its sizes open
ROUNDED = 0.005  # of the largest number, by which sums of floats may be apart, half precision included
PROBABLE_TOLERANCE = 1e-5  # of the file's own logits: float32, also in an int8 file


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


def verify(folder: Path, cc: str | None = None, run: str | None = None, on: str | None = None) -> Proof:
    """Repeat the proof for the ``model.onnx`` in ``folder``, an artifact's or any other with ``vectors.npz`` in it, or for any .onnx file.

    ``cc``, ``run``: of a folder of C, which compiler makes programs, and what runs them. ``on``: the machine that is to compute it.

    Raises:
        CompressError: there is nothing to prove, or nothing to prove it with.
    """
    if on is not None and ((folder / RECORD).is_file() or not _beside(folder).is_file()):
        raise CompressError(f"on (={on}) proves a model with {VECTORS} beside it, which {folder} has not; leave it out, or export again")
    if (folder / RECORD).is_file():
        from .boards.prove import prove

        return prove(folder, cc, run)
    if given := next((f"{name} (={shown(value)})" for name, value in (("cc", cc), ("run", run)) if value is not None), None):
        raise CompressError(f"{given} is for a folder of C, and {folder} has no {RECORD}; leave it out, or name one of export-c")
    if folder.is_file() and (folder.name not in MODELS or not folder.with_name(VECTORS).is_file()):
        return Proof(folder=folder, checks=(*(_in_litert if folder.suffix == TFLITE else _on_noise)(folder),))
    kind: Literal["graph", "litert"] = (
        "litert" if (folder.parent if folder.is_file() else folder).joinpath(MODELS[1]).is_file() else "graph"
    )
    folder = folder.parent if folder.is_file() else folder
    model = folder / PAYLOAD[kind]
    if on is not None and kind == "litert":
        raise CompressError(f"on (={on}) proves .onnx files; leave it out")
    if not folder.is_dir():
        raise CompressError(f"{folder} is no folder; name the one that holds {model.name} and {VECTORS}, or an .onnx file")
    if (folder / MANIFEST).is_file() and read_artifact(folder).manifest.task:  # the hash of every file
        return Proof(folder=folder, checks=(Check(name="hash", passed=True, detail="as it was made"), *_on_noise(model)))
    if not model.is_file():
        raise CompressError(f"{folder} has no {model.name}; name the folder of an exported or quantized model")
    vectors = read_vectors(folder / VECTORS)
    found = sha256_of(model)
    whole = found == vectors.model
    detail = f"SHA-256 {found[:12]}..." + ("" if whole else f", {shown(vectors.model, 12)}... was expected: the file was changed or cut")
    checks = [Check(name="hash", passed=whole, detail=detail)]
    if whole and (folder / MANIFEST).is_file():
        read_artifact(folder, kind)  # the hash of every other file, the vectors included
    return Proof(folder=folder, checks=(*checks, *(_compute(model, vectors) if on is None else _compute_there(model, vectors, on))))


def _beside(folder: Path) -> Path:
    """Where the test vectors of a folder, or of the file that was named, would lie."""
    return folder.with_name(VECTORS) if folder.is_file() else folder / VECTORS


def _compute_there(model: Path, vectors: Vectors, on: str) -> list[Check]:
    place = place_named(on)
    facts, (count, classes) = place.machine(), vectors.logits.shape
    where = f"onnxruntime {facts['libraries'].get('onnxruntime', 'of its own')} on {place.name}, {facts.get('cpu', 'an unnamed CPU')}"
    try:
        with answering(place, Candidate(name=model.stem, path=model), vectors.images.shape[1:], classes) as told:
            logits, probabilities = told(vectors.images)
        check_logits(logits, count, classes)
    except CutError:
        raise
    except BenchmarkError as error:
        return [Check(name="loads", passed=False, detail=f"not in {where}: {error}")]
    return [Check(name="loads", passed=True, detail=where), *_checks(vectors, logits, probabilities)]


def _on_noise(model: Path) -> Iterator[Check]:
    import onnxruntime

    try:
        entry, notes = about_file(model)
    except onnxruntime_errors() as error:
        yield Check(name="loads", passed=False, detail=f"not in onnxruntime {onnxruntime.__version__}: {_said(error)}")
        return
    try:
        candidate = Candidate(name=model.stem, path=model, precise=TARGET in notes)
        sessions = [onnx_session(candidate, 1, optimised=how) for how in (True, False)]
        shape = tuple(size or OPEN_SIZE for size in entry.shape)
        if math.prod(shape) > MOST_VALUES:
            raise BenchmarkError(f"images {shape} have more than {MOST_VALUES:,} values")
        images = np.random.default_rng(0).integers(0, 256, (1 if isinstance(entry.batch, int) else 4, *shape), np.uint8)
        usual, plain = (_outputs(session, entry, images) for session in sessions)
        parts = [_outputs(sessions[0], entry, image[None]) for image in images]
    except (BenchmarkError, *onnxruntime_errors()) as error:
        yield Check(name="loads", passed=False, detail=f"not in onnxruntime {onnxruntime.__version__}: {_said(error)}")
        return
    told = f"onnxruntime {onnxruntime.__version__}; no {VECTORS} beside it, so the rest is of {len(images)} random images {shape}"
    yield Check(name="loads", passed=True, detail=told)
    wrong = [one for one in usual if not np.isfinite(one).all()]
    yield Check(name="finite", passed=not wrong, detail=f"{len(wrong)} of {len(usual)} outputs hold NaN or infinity")
    alone = [np.concatenate(one) for one in zip(*parts, strict=True)]
    # Without optimisations dynamic sums stay those of this machine.
    dynamic = TARGET in notes and notes.get("quantization.mode") == "dynamic"
    allowed = TOLERANCE["quantize"] if _has_integers(model) else ROUNDED
    for name, others in (("alone", alone), ("plain", plain))[: 1 if dynamic else 2]:
        far = max((_apart(one, other) for one, other in zip(usual, others, strict=True)), default=0.0)
        how = "an image alone and in a batch" if name == "alone" else "with and without optimisations"
        detail = f"{how}: largest difference {far:.2g} of the largest number, {allowed:g} is allowed"
        yield Check(name=name, passed=far <= allowed, detail=detail)


def _has_integers(model: Path) -> bool:
    """Whether a file has nodes of int8, whose sums may be rounded otherwise; looked for by their names, as a board has no onnx."""
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(word) >= 0 for word in (b"QuantizeLinear", b"QLinear", b"Integer"))


def _in_litert(model: Path) -> Iterator[Check]:
    from ..benchmarks.litertnets import holds_int8, open_file

    try:
        entry, _ = about_file(model)
        if not all(entry.shape) or math.prod(entry.shape) > MOST_VALUES:
            raise BenchmarkError(f"images {entry.shape} must be of a fixed size, of at most {MOST_VALUES:,} values")
        images = np.random.default_rng(0).integers(0, 256, (4, *entry.shape), np.uint8)
        candidate = Candidate(name=model.stem, path=model, runtime="litert")
        usual, plain = (open_file(candidate, entry.shape, 1, plain=how)[0](images) for how in (False, True))  # type: ignore[arg-type]
    except MissingError:
        raise
    except BenchmarkError as error:
        yield Check(name="loads", passed=False, detail=f"not in LiteRT: {error}")
        return
    told = f"{_litert()}; no {VECTORS} beside it, so the rest is of {len(images)} random images {entry.shape}"
    yield Check(name="loads", passed=True, detail=told)
    yield Check(name="finite", passed=bool(np.isfinite(usual).all()), detail="what it gives holds no NaN or infinity")
    if holds_int8(model):
        return
    far = _apart(usual, plain)
    detail = f"with XNNPACK and without: largest difference {far:.2g} of the largest number, {ROUNDED:g} is allowed"
    yield Check(name="plain", passed=far <= ROUNDED, detail=detail)


def _litert() -> str:
    return f"LiteRT {importlib.metadata.version('ai-edge-litert')}"


def _outputs(session: Any, entry: Taken, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
    found = session.run(None, {entry.name: entry.fed(images)})
    return [np.atleast_1d(one) for one in found if isinstance(one, np.ndarray) and one.dtype.kind in "fiu"]


def _apart(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest difference as a fraction of the largest number; infinity for another shape."""
    if one.shape != other.shape:
        return np.inf
    with np.errstate(invalid="ignore"):  # NaN, which is as far
        apart = np.abs(one.astype(np.float64) - other).max(initial=0) / max(np.abs(one.astype(np.float64)).max(initial=0), 1e-30)
    return float(np.nan_to_num(apart, nan=np.inf))


def _compute(model: Path, vectors: Vectors) -> list[Check]:
    if model.suffix == TFLITE:
        try:
            opened, logits, _, _ = _answer(model, vectors, "litert")
        except MissingError:
            raise
        except BenchmarkError as error:
            return [Check(name="loads", passed=False, detail=f"not in LiteRT: {error}")]
        return [Check(name="loads", passed=True, detail=_litert()), *_checks(vectors, logits, None)]
    import onnxruntime

    try:
        target = about_file(model)[1].get(TARGET)
        opened, logits, _, _ = _answer(model, vectors, "onnxruntime", precise=target is not None)
        made = "" if target is None else _made_for(target, _answer(model, vectors, "onnxruntime")[2], vectors)
    except (BenchmarkError, *onnxruntime_errors()) as error:
        return [Check(name="loads", passed=False, detail=f"not in onnxruntime {onnxruntime.__version__}: {_said(error)}")]
    checks = [Check(name="loads", passed=True, detail=f"onnxruntime {onnxruntime.__version__}, {', '.join(opened.providers)}{made}")]
    checks += _checks(vectors, logits, opened.probabilities(vectors.images) if opened.probabilities is not None else None)
    if target is None and importlib.util.find_spec("openvino") is not None:
        checks.append(_check_openvino(model, vectors))
    return checks


def _made_for(target: str, far: float, vectors: Vectors) -> str:
    """For which processor, and whether this one computes something else; ``far``: the largest difference that its own sums make."""
    told = f"; made for {shown(target, 40)}, so asked with sums of 32 bits"
    return told + (f"; do not run it here, as this machine's own sums are off by {far:.2g}" if far > vectors.tolerance else "")


def _checks(vectors: Vectors, logits: NDArray[np.float32], probabilities: NDArray[np.float32] | None) -> list[Check]:
    count, (difference, same) = len(logits), _apart_from(vectors, logits)
    far = f"largest difference {difference:.2g} on {count} images, {vectors.tolerance:.2g} is allowed"
    checks = [
        Check(name="logits", passed=difference <= vectors.tolerance, detail=far),
        Check(name="answers", passed=same == count, detail=f"{same} of {count} images have the expected answer"),
    ]
    return checks if probabilities is None else [*checks, _check_probabilities(probabilities, logits)]


def _apart_from(vectors: Vectors, logits: NDArray[np.float32]) -> tuple[float, int]:
    """The largest difference from the logits expected, and how many images have the expected answer."""
    expected = vectors.logits
    return float(np.abs(logits - expected).max()), int((logits.argmax(axis=1) == expected.argmax(axis=1)).sum())


def _answer(model: Path, vectors: Vectors, runtime: str, precise: bool = False) -> tuple[Opened, NDArray[np.float32], float, int]:
    """The model, its logits, the largest difference from those expected, and how many images have the expected answer."""
    count, classes = vectors.logits.shape
    candidate = Candidate(name=model.stem, path=model, runtime=runtime, precise=precise)
    opened = open_model(candidate, vectors.images.shape[1:], classes, threads=1)
    logits = check_logits(opened.predict(vectors.images), count, classes)
    return opened, logits, *_apart_from(vectors, logits)


def _check_probabilities(found: NDArray[np.float32], logits: NDArray[np.float32]) -> Check:
    """They are the softmax of the logits, or of a file for labels that do not exclude each other their sigmoid."""
    known = {"softmax": softmax(logits), "sigmoid": sigmoid(logits)}
    far = {name: float(np.abs(found - one).max()) if found.shape == one.shape else np.inf for name, one in known.items()}
    name = min(far, key=lambda name: far[name])
    told = f"largest difference {far[name]:.2g} from the {name} of the logits, {PROBABLE_TOLERANCE:g} is allowed"
    return Check(name="probabilities", passed=far[name] <= PROBABLE_TOLERANCE, detail=told)


def _check_openvino(model: Path, vectors: Vectors) -> Check:
    try:
        from openvino import __version__ as version

        _, logits, difference, same = _answer(model, vectors, "openvino")
    except (BenchmarkError, ImportError, RuntimeError) as error:  # OpenVINO's own errors are the last
        return Check(name="openvino", passed=False, detail=f"does not load or run: {_said(error)}")
    told = f"{version.partition('-')[0]}: largest difference {difference:.2g}, {same} of {len(logits)} images have the expected answer"
    return Check(name="openvino", passed=difference <= vectors.tolerance and same == len(logits), detail=told)


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, BenchmarkError) else first_line(error)
