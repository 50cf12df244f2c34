"""How pictures are drawn, against pictures drawn by hand."""

from pathlib import Path

import numpy as np
import pytest

from compress.serve.drawing import USUAL, habits_beside, habits_of


def bars(*, width: int = 3, top: int = 4, bottom: int = 24, left: int = 12, dark: bool = False) -> np.ndarray:
    """Five pictures of 28x28 with one upright bar of ink."""
    images = np.zeros((5, 1, 28, 28), np.uint8)
    images[:, :, top:bottom, left : left + width] = 255
    return 255 - images if dark else images


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [2, 3, 5])
def test_a_bar_is_as_long_and_thick_as_it_was_drawn(width: int, dark: bool) -> None:
    found = habits_of(bars(width=width, dark=dark))
    assert found.known and found.ink == ("dark" if dark else "light")
    assert found.extent == pytest.approx(20 / 28)
    assert 0.75 * width < found.thickness * 28 < 1.35 * width


def test_ink_is_centred_by_what_lies_nearer_to_the_middle() -> None:
    """A foot of 20 columns below a bar of 12 rows: its box is in the middle, its mass is lower, or the other way round."""
    images = bars(width=2, left=13, top=8, bottom=20)
    images[:, :, 16:20, 4:24] = 255
    assert habits_of(images).centred == "box"
    rows, columns = np.indices((28, 28))
    mass = [(images[0, 0] * axis).sum() / images[0, 0].sum() for axis in (rows, columns)]
    shifted = np.roll(images, (round(13.5 - mass[0]), round(13.5 - mass[1])), axis=(2, 3))
    assert habits_of(shifted).centred == "mass"


@pytest.mark.parametrize(
    "images", [bars()[:2], np.zeros((9, 1, 28, 28), np.uint8), np.random.default_rng(0).integers(0, 256, (9, 1, 28, 28), np.uint8)]
)
def test_of_too_few_empty_or_noisy_pictures_the_usual_is_said(images: np.ndarray) -> None:
    assert habits_of(images) == USUAL


def test_without_images_beside_the_model_the_usual_is_said(tmp_path: Path) -> None:
    assert habits_beside(tmp_path / "model.onnx", 1) == USUAL
    (tmp_path / "vectors.npz").write_bytes(b"no archive")
    assert habits_beside(tmp_path / "model.onnx", 1) == USUAL
