"""``compress predict``: which model reads which images, and what it says. Torch is loaded only if the model is a network; matplotlib
only draws, and may be missing.

The model is ``--onnx FILE``, anybody's, ``--from ARTIFACT``, ``--weights FILE``, or the newest artifact of ``--model``; the images are
files, or random ones of the test images, whose true labels are then known.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.artifact import Artifact, InputSpec
from ..artifacts.classifier.opened import numbered, open_artifact, open_file
from ..artifacts.context import Context
from ..artifacts.project import find_parent
from ..errors import CompressError
from ..plots.predictions import MOST_DRAWN, Prediction, draw_grid
from ..train.arrays import read_images
from ..train.formats import read_image
from ..train.pictures import Reader
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
    known, found = truths if truths is not None else [None] * len(images), sure(images)
    if (odd := ~np.isfinite(found).all(axis=1)).any():
        raise CompressError(f"{names[int(odd.argmax())]}: the model gives NaN or infinity for it; `compress verify` looks at its file")
    return [
        Prediction(name=name, label=classes[row.argmax()], probability=float(row.max()), truth=truth)
        for name, row, truth in zip(names, found, known, strict=True)
    ]


MOST_RANDOM = 400
AT_ONCE = 2**26  # bytes of pixels that are read before a model is asked
READABLE = ("train", "import", "prune", "export", "quantize", "export-litert")


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
    """All answers, and the images that a picture shows; no more are held at once than :data:`AT_ONCE`."""
    model = open_file(onnx, context) if onnx else open_artifact(_chosen(context), context)
    spec = model.spec if context.range is None else dataclasses.replace(model.spec, range=context.range)
    predictions, drawn = list[Prediction](), list[NDArray[np.uint8]]()
    for done, names, given in _in_parts(files, spec):
        images = 255 - given if invert else given
        drawn.append(images[: max(0, MOST_DRAWN - len(predictions))])
        predictions += predict_images(model.sure, images, names, model.classes)
        context.console.progress("predict", done, len(files))
    return predictions, np.concatenate(drawn)


def _in_parts(files: Sequence[Path], spec: InputSpec) -> Iterator[tuple[int, list[str], NDArray[np.uint8]]]:
    """How many files are read, names, and images uint8 (B, C, H, W), in the order of the files."""
    most, waiting = max(1, AT_ONCE // math.prod(spec.shape)), list[tuple[str, NDArray[np.uint8]]]()

    def part(done: int) -> Iterator[tuple[int, list[str], NDArray[np.uint8]]]:
        if waiting:
            names, images = zip(*waiting, strict=True)
            waiting.clear()
            yield done, list(names), np.stack(images)

    for done, path in enumerate(files, 1):
        if path.suffix == ".npz":
            yield from part(done - 1)
            images = read_images(path, Reader(shape=spec.shape, levels=spec.levels))
            for at in range(0, len(images), most):
                some = images[at : at + most]
                yield done, [f"{path}, {index}" for index in range(at, at + len(some))], some
        else:
            waiting.append((str(path), read_image(path, spec.shape, spec.resized, spec.levels)))
            if len(waiting) == most:
                yield from part(done)
    yield from part(len(files))


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
        model = open_file(onnx, context)
        data = context.load(recipe.data, recipe.seed, model.spec)[0]
    else:
        project, _, artifact = start_of(context, READABLE)
        model, data = open_artifact(artifact, context), project.data
    classes = model.classes
    if len(data.classes) != len(classes):
        raise CompressError(f"data (={data.name}) has {len(data.classes)} classes, the model {len(classes)}; name the data it was made for")
    if onnx is not None and classes == numbered(len(classes)):  # it does not say them
        classes = data.classes
    chosen = np.sort(
        np.random.default_rng(context.seed or 0).choice(len(data.test.labels), min(count, len(data.test.labels)), replace=False)
    )
    images = data.test.images[chosen]
    truths = [classes[label] for label in data.test.labels[chosen]]
    return predict_images(model.sure, images, [f"test image {index}" for index in chosen], classes, truths), images
