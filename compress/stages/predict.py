"""``compress predict``: which model reads which images, and what it says. Torch is loaded only if the model is a network; matplotlib
only draws, and may be missing.

The model is ``--onnx FILE``, anybody's, ``--from ARTIFACT``, ``--weights FILE``, or the newest artifact of ``--model``; the images are
files, or random ones of the test images, whose true labels are then known.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.artifact import Artifact, Classes, InputSpec
from ..artifacts.context import Context
from ..artifacts.project import find_parent
from ..artifacts.records import parse_record
from ..benchmarks.errors import refuse_odd_name
from ..benchmarks.runtimes import Candidate, open_model
from ..errors import CompressError, first_line, need_file, onnxruntime_errors
from ..plots.predictions import Prediction, draw_grid
from ..train.arrays import read_images
from ..train.formats import read_image
from ..train.metrics import sigmoid, softmax
from ..train.pictures import Reader
from .benchmark import shape_of
from .import_network import start_of

Sure = Callable[[NDArray[np.uint8]], NDArray[Any]]  # images uint8 (N, C, H, W) to probabilities (N, K)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The answer for each image, and where the picture of them lies, if one was drawn."""

    images: tuple[Prediction, ...]
    picture: Path | None


def predict_images(
    sure: Sure, images: NDArray[np.uint8], names: Sequence[str], classes: Sequence[str], truths: Sequence[str] | None = None
) -> list[Prediction]:
    """Read ``images``, uint8 (N, C, H, W), called ``names``: the likeliest class of each; a sigmoid's probabilities need not sum to 1."""
    known = truths if truths is not None else [None] * len(images)
    return [
        Prediction(name=name, label=classes[row.argmax()], probability=float(row.max()), truth=truth)
        for name, row, truth in zip(names, sure(images), known, strict=True)
    ]


MOST_RANDOM = 400
READABLE = ("train", "import", "prune", "export", "quantize")


def read(
    context: Context,
    files: Sequence[Path],
    *,
    onnx: Path | None = None,
    random: int | None = None,
    invert: bool = False,
    grid: Path | None = None,
) -> Predictions:
    """Read image ``files``, ``.npz`` files of arrays of images among them, or ``random`` test images, drawn by the seed; the picture goes
    to ``grid``, if matplotlib is there.

    Raises :class:`CompressError` where there is nothing to read, or two kinds of images.
    """
    if random is not None and not 1 <= random <= MOST_RANDOM:
        raise CompressError(f"random (={random}) must lie in 1 to {MOST_RANDOM}; 16 fill a picture")
    if bool(files) == bool(random):
        raise CompressError("name image files, or take --random 16 for test images; one of the two is needed")
    predictions, images = _read_test_images(context, onnx, random) if random else _read_files(context, files, onnx, invert)
    drawn = grid is not None and importlib.util.find_spec("matplotlib") is not None
    if grid is not None and drawn:
        draw_grid(images, predictions, grid)
    return Predictions(images=tuple(predictions), picture=grid if drawn else None)


def _read_files(context: Context, files: Sequence[Path], onnx: Path | None, invert: bool) -> tuple[list[Prediction], NDArray[np.uint8]]:
    sure, classes, spec = _open_file(onnx, context) if onnx else _open_artifact(_chosen(context))
    names, parts = list[str](), list[NDArray[np.uint8]]()
    for path in files:
        if path.suffix == ".npz":
            parts.append(read_images(path, Reader(shape=spec.shape, levels=spec.levels))[:])
            names += [f"{path}, {index}" for index in range(len(parts[-1]))]
        else:
            parts.append(read_image(path, spec.shape, spec.resized, spec.levels)[None])
            names.append(str(path))
    images = np.concatenate(parts)
    images = 255 - images if invert else images
    return predict_images(sure, images, names, classes), images


def _chosen(context: Context) -> Artifact:
    """The model for image files; its data set is needed only where weights are to be taken in."""
    if (named := context.named_parent()) is not None:
        return named
    if context.weights:
        return start_of(context, READABLE)[2]
    return context.trusted(find_parent(context.folder(context.load_recipe()), READABLE))


def _read_test_images(context: Context, onnx: Path | None, count: int) -> tuple[list[Prediction], NDArray[np.uint8]]:
    if onnx is not None:
        recipe = context.load_recipe()
        sure, classes, spec = _open_file(onnx, context)
        data = context.load(recipe.data, recipe.seed, spec)[0]
    else:
        project, _, artifact = start_of(context, READABLE)
        (sure, classes, spec), data = _open_artifact(artifact), project.data
    if len(data.classes) != len(classes):
        raise CompressError(f"data (={data.name}) has {len(data.classes)} classes, the model {len(classes)}; name the data it was made for")
    if onnx is not None and classes == numbered(len(classes)):  # it does not say them
        classes = data.classes
    chosen = np.sort(
        np.random.default_rng(context.seed or 0).choice(len(data.test.labels), min(count, len(data.test.labels)), replace=False)
    )
    images = data.test.images[chosen]
    truths = [classes[label] for label in data.test.labels[chosen]]
    return predict_images(sure, images, [f"test image {index}" for index in chosen], classes, truths), images


def _open_artifact(artifact: Artifact) -> tuple[Sure, Sequence[str], InputSpec]:
    about = artifact.manifest
    if about.kind == "graph":
        candidate = Candidate(name=about.stage, path=artifact.payload)
        return open_model(candidate, about.input.shape, len(about.classes), threads=1).sure, about.classes, about.input
    from ..artifacts.load import load_runner

    run = load_runner(artifact, "cpu", 1)
    return lambda images: softmax(run(images)), about.classes, about.input


def numbered(count: int) -> tuple[str, ...]:
    """What classes are called where nobody says it."""
    return tuple(map(str, range(count)))


def _open_file(path: Path, context: Context) -> tuple[Sure, Sequence[str], InputSpec]:
    """An ONNX file of this toolkit, which carries its labels and its input, or one that another tool wrote, whose classes are numbers.

    That is read as it is; its input is normalised as the options say.
    """
    about = _metadata(path)
    if "compress.classes" not in about or "compress.input" not in about:
        return _open_foreign(path, context)
    again = "export the model again"
    names = parse_record(about["compress.classes"], Classes, where=f"compress.classes in {path}", again=again)
    spec = parse_record(about["compress.input"], InputSpec, where=f"compress.input in {path}", again=again)
    return open_model(Candidate(name=path.stem, path=path), spec.shape, len(names), threads=1).sure, names, spec


def _open_foreign(path: Path, context: Context) -> tuple[Sure, Sequence[str], InputSpec]:
    from ..graphs.adopt import own_answers

    spec = dataclasses.replace(context, image_shape=shape_of([path], context.image_shape)).spec_of(None)

    def sure(images: NDArray[np.uint8]) -> NDArray[Any]:
        found, kind = own_answers(path, spec.mean, spec.std, images)
        return found if kind == "probabilities" else softmax(found) if kind == "Softmax" else sigmoid(found)

    return sure, numbered(sure(np.zeros((1, *spec.shape), np.uint8)).shape[1]), spec


def _metadata(path: Path) -> dict[str, str]:
    import onnxruntime

    need_file(path, f"onnx (={path})")
    refuse_odd_name(path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return dict(session.get_modelmeta().custom_metadata_map)
    except (*onnxruntime_errors(), UnicodeDecodeError) as error:
        raise CompressError(f"onnx (={path}) is no whole ONNX file that onnxruntime can load: {first_line(error)}") from error
