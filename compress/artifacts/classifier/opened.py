"""A classifier from a file: an artifact, an ONNX or .tflite file of this toolkit, or one that another tool wrote. Torch is loaded only for
networks, LiteRT for .tflite files.

A file of this toolkit carries its labels and its input. Of another tool's the classes are numbers, its input is normalised as the options
say, and what makes probabilities of its answers is read from its last node; of a .tflite file, from an answer.

Refused: what the runtime cannot load, and what gives no classes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...benchmarks.boards.known import place_named
from ...benchmarks.errors import BenchmarkError, refuse_odd_name
from ...benchmarks.place import answering
from ...benchmarks.run import scoring_batch
from ...benchmarks.runtimes import Candidate, about_file, open_model
from ...errors import CompressError, first_line, need_file, onnxruntime_errors
from ...quantization.records import TARGET
from ...train.metrics import sigmoid, softmax
from ..artifact import Artifact, Classes, InputSpec
from ..context import Context
from ..records import parse_record
from ..task.classes import sure_from

Run = Callable[[NDArray[np.uint8]], NDArray[Any]]
TFLITE = ".tflite"
ROUNDED = 0.05  # that probabilities in int8 may be off 1 in their sum


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """``run``: images uint8 (N, C, H, W) to what the file gives (N, K), logits as a rule; ``sure``: to probabilities (N, K), of so many
    images at a time that their activations fit.

    A sigmoid's probabilities need not sum to 1.
    """

    run: Run
    sure: Run
    classes: Sequence[str]
    spec: InputSpec
    file: Path


def in_batches(run: Run, shape: tuple[int, int, int]) -> Run:
    """The same, asked for a few images at a time, as many as benchmarks score at once."""
    size = min(64, scoring_batch(math.prod(shape)))
    return lambda images: np.concatenate([run(images[at : at + size]) for at in range(0, len(images), size)])


def numbered(count: int) -> tuple[str, ...]:
    """What classes are called where nobody says it."""
    return tuple(map(str, range(count)))


def open_artifact(artifact: Artifact, context: Context) -> Classifier:
    """The graph or the network of an artifact, which the caller trusts."""
    about = artifact.manifest
    if about.kind in ("graph", "litert"):
        elsewhere = about.stage == "quantize" and bool(about.config.get("target"))
        return _open_own(artifact.payload, about.classes, about.input, context, elsewhere)
    if context.on is not None:
        raise CompressError(f"on (={context.on}) asks files, and {artifact.path} is a network; `compress export-onnx` makes one of it")
    from ..load import load_runner

    run = load_runner(artifact, "cpu", 1)
    sure = in_batches(lambda images: softmax(run(images)), about.input.shape)
    return Classifier(run=run, sure=sure, classes=about.classes, spec=about.input, file=artifact.payload)


def open_file(path: Path, context: Context) -> Classifier:
    """An ONNX or .tflite file; the ``context`` says how another tool's is fed."""
    about = _metadata(path)
    if "compress.classes" not in about or "compress.input" not in about:
        return _open_foreign(path, context)
    again = "export the model again"
    names = parse_record(about["compress.classes"], Classes, where=f"compress.classes in {path}", again=again)
    spec = parse_record(about["compress.input"], InputSpec, where=f"compress.input in {path}", again=again)
    return _open_own(path, names, spec, context, TARGET in about)


def shape_of(files: Sequence[Path], given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The (C, H, W) that the first of the files takes which can be read; ``given`` stands for what it leaves open."""
    refused = None
    for path in files:
        need_file(path, str(path), "; name an .onnx file or the folder of an artifact")
        try:
            shape = about_file(path)[0].shape
        except (BenchmarkError, *onnxruntime_errors()) as error:
            told = f": {error}" if isinstance(error, BenchmarkError) else f" is no ONNX file that onnxruntime can load: {first_line(error)}"
            refused = refused or CompressError(f"{path}{told}")
            continue
        if given is None and not all(shape):
            raise CompressError(f"{path} leaves the size of its images open, {shape}; name it with --image-shape CxHxW")
        channels, height, width = given or shape
        return channels, height, width
    assert refused is not None, "there is a file"
    raise refused


def _open_own(path: Path, classes: Sequence[str], spec: InputSpec, context: Context, elsewhere: bool) -> Classifier:
    """Here, or on the machine that ``--on`` names; what was made for a processor ``elsewhere`` is asked with its sums."""
    runtime = runtime_of(path)
    candidate = Candidate(name=path.stem, path=path, runtime=runtime, precise=elsewhere and runtime == "onnxruntime")
    if context.on is None:
        opened = open_model(candidate, spec.shape, len(classes), threads=1)
        return Classifier(run=opened.predict, sure=in_batches(opened.sure, spec.shape), classes=classes, spec=spec, file=path)
    place = place_named(context.on, context.console.progress)

    def run(images: NDArray[np.uint8]) -> NDArray[Any]:
        with answering(place, candidate, spec.shape, len(classes)) as told:
            return told(images)[0]

    def sure(images: NDArray[np.uint8]) -> NDArray[Any]:
        with answering(place, candidate, spec.shape, len(classes)) as told:
            return in_batches(lambda part: sure_from(*told(part)), spec.shape)(images)

    return Classifier(run=run, sure=sure, classes=classes, spec=spec, file=path)


def runtime_of(path: Path) -> str:
    """The one that opens a file by itself."""
    return "litert" if path.suffix == TFLITE else "onnxruntime"


def _open_foreign(path: Path, context: Context) -> Classifier:
    if context.on is not None:
        raise CompressError(f"on (={context.on}) asks files of this toolkit; take {path} in with `compress quantize --onnx` first")
    from ...graphs.adopt import own_answers

    spec = dataclasses.replace(context, image_shape=shape_of([path], context.image_shape)).spec_of(None)
    image = np.random.default_rng(0).integers(0, 256, (1, *spec.shape), np.uint8)
    how: dict[str, Any] = {"mean": spec.mean, "std": spec.std, "runtime": runtime_of(path)}
    first, kind = (None, "") if path.suffix == TFLITE else own_answers(path, spec.mean, spec.std, image)
    opened = open_model(Candidate(name=path.stem, path=path, **how), spec.shape, None, threads=1)

    def run(images: NDArray[np.uint8]) -> NDArray[Any]:
        return opened.predict(images).astype(np.float32)

    if first is None:
        return _of_litert(path, spec, run, run(image))

    def asked(images: NDArray[np.uint8]) -> NDArray[Any]:  # where its classes are not its first output
        return own_answers(path, spec.mean, spec.std, images)[0]

    found = run(image)
    chosen = run if found.shape == first.shape and np.allclose(found, first, rtol=1e-4, atol=1e-5) else asked
    certain = {"probabilities": lambda answers: answers, "Softmax": softmax}.get(kind, sigmoid)
    sure = in_batches(lambda images: certain(chosen(images)), spec.shape)
    return Classifier(run=chosen, sure=sure, classes=numbered(first.shape[1]), spec=spec, file=path)


def _of_litert(path: Path, spec: InputSpec, run: Run, answer: NDArray[Any]) -> Classifier:
    if answer.ndim != 2 or answer.shape[1] < 2:
        raise CompressError(f"onnx (={path}) gives {answer.shape[1:]} for an image, which are no classes; name a classifier")
    probable = answer.min() >= 0 and abs(answer.sum() - 1) < ROUNDED
    sure = in_batches(run if probable else lambda images: softmax(run(images)), spec.shape)
    return Classifier(run=run, sure=sure, classes=numbered(answer.shape[1]), spec=spec, file=path)


def _metadata(path: Path) -> dict[str, str]:
    import onnxruntime

    need_file(path, f"onnx (={path})")
    refuse_odd_name(path)
    if path.suffix == TFLITE:
        from ...litert.file import notes_of

        try:
            about_file(path)  # which refuses what is none
            return {name: note.decode(errors="replace") for name, note in notes_of(path.read_bytes()).items()}
        except (BenchmarkError, CompressError) as error:
            raise CompressError(f"onnx (={path}): {error}") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return dict(session.get_modelmeta().custom_metadata_map)
    except (*onnxruntime_errors(), UnicodeDecodeError) as error:
        raise CompressError(f"onnx (={path}) is no whole ONNX file that onnxruntime can load: {first_line(error)}") from error
