"""How pictures come to a size: the truth is torchvision's transforms and Pillow's own pad, to the last bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision import transforms

from compress.train.errors import TrainError
from compress.train.formats import read_image
from compress.train.resize import Resize
from compress.train.sources import load_data

METHODS = {"nearest": "NEAREST", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS"}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("interpolation", METHODS)
@pytest.mark.parametrize("size", [(320, 240), (241, 333), (57, 40), (224, 224), (100, 1000)])
def test_crop_is_what_networks_of_imagenet_were_trained_with(size: tuple[int, int], interpolation: str) -> None:
    """torchvision.models' own preparation, 224 of 256."""
    method = transforms.InterpolationMode[METHODS[interpolation]]
    theirs = transforms.Compose([transforms.Resize(256, method), transforms.CenterCrop(224)])(picture(*size))
    ours = Resize(way="crop", crop=0.875, interpolation=interpolation).apply(picture(*size), 224, 224)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), strict=True)


@pytest.mark.parametrize("size", [(320, 240), (240, 321), (7, 5)])
def test_crop_to_another_shape_takes_the_middle_that_has_it(size: tuple[int, int]) -> None:
    found = Resize(way="crop").apply(picture(*size), 64, 32)
    assert found.size == (64, 32)
    np.testing.assert_array_equal(np.asarray(Resize(way="crop").apply(picture(64, 32), 64, 32)), np.asarray(picture(64, 32)))


def test_pad_keeps_all_of_it_between_black_bars() -> None:
    found = np.asarray(Resize(way="pad", interpolation="bicubic").apply(picture(320, 240), 64, 64))
    np.testing.assert_array_equal(found, np.asarray(ImageOps.pad(picture(320, 240), (64, 64), Image.Resampling.BICUBIC)))
    assert not found[:8].any() and not found[56:].any() and found[8:56].any(axis=2).all()


def test_a_picture_and_a_set_of_them_are_read_alike(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        picture(40 + index, 30).save(tmp_path / "ab"[index % 2] / f"{index:02}.png")
    prints = set()
    for how in (Resize(), Resize(way="crop", crop=0.8), Resize(way="pad"), Resize(interpolation="nearest")):
        data = load_data(str(tmp_path), shape=(3, 16, 16), resize=how)
        alone = [read_image(path, (3, 16, 16), how) for path in sorted(tmp_path.glob("*/*.png"))]
        np.testing.assert_array_equal(data.pool().images, alone)
        prints.add(data.fingerprint)
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"way": "squash"}, r"resize \(=squash\) must be one of stretch, crop, pad"),
        ({"interpolation": "cubic"}, r"interpolation \(=cubic\) must be one of nearest, bilinear, bicubic, lanczos"),
        ({"way": "crop", "crop": 0.0}, r"crop \(=0\.0\) must lie in \(0, 1\]; 0\.875 takes the middle 224 of 256"),
        ({"way": "crop", "crop": float("nan")}, r"crop \(=nan\) must lie in"),
        ({"crop": 0.5}, r"crop \(=0\.5\) is for pictures that are cropped; add --resize crop"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict, line: str) -> None:
    with pytest.raises(TrainError, match=line):
        Resize(**settings)
