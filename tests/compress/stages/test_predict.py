"""Predictions and their picture, against softmax by hand and the pixels of the file."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from served import write_model

from compress.artifacts.artifact import InputSpec
from compress.artifacts.classifier.opened import in_batches
from compress.artifacts.context import Context
from compress.errors import CompressError
from compress.plots.predictions import Prediction, draw_grid
from compress.stages import predict
from compress.stages.predict import predict_images
from compress.train.errors import TrainError
from compress.train.metrics import softmax

IMAGES = np.zeros((2, 1, 4, 4), dtype=np.uint8)


def predicted(*labels: str, truth: str | None = None) -> list[Prediction]:
    return [Prediction(name=f"image {index}", label=label, probability=0.75, truth=truth) for index, label in enumerate(labels)]


def test_softmax_by_hand() -> None:
    """Logits 0, ln 2, ln 5 are in the ratio 1 : 2 : 5, so 1/8, 2/8 and 5/8."""
    logits = np.array([[0, math.log(2), math.log(5)], [math.log(6), 0, 0]], dtype=np.float32)
    first, second = predict_images(lambda images: softmax(logits), IMAGES, ["a.png", "b.png"], ["x", "y", "z"], ["z", "y"])
    assert (first.name, first.label, first.truth) == ("a.png", "z", "z") and first.probability == pytest.approx(5 / 8)
    assert (second.name, second.label, second.truth) == ("b.png", "x", "y") and second.probability == pytest.approx(6 / 8)


def test_large_logits_do_not_overflow_and_unknown_truths_stay_unknown() -> None:
    logits = np.array([[1000, 999], [-1000, -1000]], dtype=np.float32)
    first, second = predict_images(lambda images: softmax(logits), IMAGES, ["a", "b"], ["x", "y"])
    assert first.probability == pytest.approx(1 / (1 + math.exp(-1))) and second.probability == pytest.approx(0.5)
    assert first.truth is None and second.truth is None


def test_the_model_gets_the_images_as_they_are() -> None:
    seen = []
    predict_images(lambda images: seen.append(images) or np.zeros((2, 2), np.float32), IMAGES, ["a", "b"], ["x", "y"])
    assert seen[0] is IMAGES


@pytest.mark.parametrize(("count", "channels", "size"), [(1, 1, (180, 210)), (5, 3, (360, 630)), (9, 1, (540, 630)), (73, 1, (1440, 2100))])
def test_the_grid_is_a_png_of_180_by_210_pixels_an_image(count: int, channels: int, size: tuple[int, int], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)
    target = tmp_path / "new folder" / "grid"
    draw_grid(images, predicted(*"A" * count), target)
    with Image.open(target) as picture:
        assert picture.format == "PNG" and picture.size == size


@pytest.mark.parametrize(("size", "most"), [(28, 64), (224, 41)])
def test_a_model_is_asked_of_a_few_images_at_a_time(size: int, most: int) -> None:
    asked: list[int] = []
    images = np.arange(130 * size * size, dtype=np.uint32).astype(np.uint8).reshape(130, 1, size, size)
    sure = in_batches(lambda part: asked.append(len(part)) or part.reshape(len(part), -1)[:, :2], (1, size, size))
    assert np.array_equal(sure(images), images.reshape(130, -1)[:, :2])
    assert max(asked) <= most and sum(asked) == 130


def test_of_many_images_the_first_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.plots.predictions.MOST_DRAWN", 9)
    draw_grid(np.zeros((20, 1, 8, 8), np.uint8), predicted(*"A" * 20), tmp_path / "grid")
    with Image.open(tmp_path / "grid") as picture:
        assert picture.size == (540, 630)


@pytest.fixture
def titles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is written above the images, with its colour."""
    written: list[tuple[str, Any]] = []
    original = Axes.set_title

    def record(self: Axes, label: str, *arguments: Any, **options: Any) -> Any:
        written.append((label, options["color"]))
        return original(self, label, *arguments, **options)

    monkeypatch.setattr(Axes, "set_title", record)
    return written


def test_a_misread_image_is_marked_with_its_true_class(titles: list[tuple[str, Any]], tmp_path: Path) -> None:
    draw_grid(np.zeros((3, 1, 4, 4), np.uint8), [*predicted("A", "B", truth="A"), *predicted("C")], tmp_path / "grid.png")
    right, wrong, unknown = titles
    assert [right[0], wrong[0], unknown[0]] == ["A  75%", "B  75%\ntrue: A", "C  75%"]
    assert right[1] == unknown[1] != wrong[1]
    with Image.open(tmp_path / "grid.png") as picture:
        red = np.asarray(picture.convert("RGB")).astype(int)
    assert (red[..., 0] > red[..., 1] + 80).any()


def test_kana_are_drawn_or_spelled_without_a_warning(titles: list[tuple[str, Any]], tmp_path: Path) -> None:
    """A glyph that no font has is a warning of matplotlib's, which the tests turn into an error."""
    draw_grid(IMAGES, predicted("か", "ゐ", truth="か"), tmp_path / "grid.png")
    assert titles[0][0] in ("か  75%", "ka  75%")
    assert titles[1][0] in ("ゐ  75%\ntrue: か", "wi  75%\ntrue: ka")


@pytest.mark.parametrize("label", ["$x_1", "\\alpha$", "a_b", "É", "\U0001f600", "\ue000"])
def test_any_class_name_can_be_drawn(label: str, tmp_path: Path) -> None:
    draw_grid(IMAGES[:1], predicted(label), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_files_are_read_in_parts_and_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: images of 16 pixels, 40 bytes at once: two; an array of three in between comes in two parts of its own."""
    monkeypatch.setattr(predict, "AT_ONCE", 40)
    files = []
    for number in (1, 2, 3, 7):
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    np.savez(tmp_path / "more.npz", np.repeat(np.array([4, 5, 6], np.uint8), 16).reshape(3, 4, 4))
    parts = [*predict._in_parts([*files[:3], tmp_path / "more.npz", files[3]], InputSpec(shape=(1, 4, 4)))]
    assert [(done, images[:, 0, 0, 0].tolist()) for done, _, images in parts] == [(2, [1, 2]), (3, [3]), (4, [4, 5]), (4, [6]), (5, [7])]
    assert [Path(name).name for _, names, _ in parts for name in names] == [
        *("1.png", "2.png", "3.png", "more.npz, 0", "more.npz, 1", "more.npz, 2", "7.png")
    ]


def test_an_answer_that_is_no_number_is_no_label() -> None:
    with pytest.raises(CompressError, match=r"^b\.png: the model gives NaN or infinity for it; `compress verify` looks at its file$"):
        predict_images(lambda images: np.array([[0, 1], [np.nan, 1]]), IMAGES, ["a.png", "b.png"], ["x", "y"])


def test_values_that_are_no_bytes_are_read_in_the_range_that_is_said(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4), np.float32)
    images[[0, 1], [0, 0], [2, 1]] = 0.9  # the third pixel, and the second
    np.savez(tmp_path / "floats.npz", images)
    model = write_model(tmp_path / "model.onnx")
    with pytest.raises(TrainError, match=r"say which values become black and white, .*: --range 0,"):
        predict.read(Context(), [tmp_path / "floats.npz"], onnx=model)
    found = predict.read(Context(range=(0.0, 1.0)), [tmp_path / "floats.npz"], onnx=model)
    assert [one.label for one in found.images] == ["c", "b"]
