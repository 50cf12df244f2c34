import base64
import io

import numpy as np
import pytest
from PIL import Image

from compress.benchmarks.accuracy import compare_predictions
from compress.benchmarks.pictures import flips, png


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 7)])
def test_another_library_reads_the_same_pixels_back(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    read = np.asarray(Image.open(io.BytesIO(png(image))))
    np.testing.assert_array_equal(read, image[0] if shape[0] == 1 else image.transpose(1, 2, 0))


def test_flips_show_some_lost_and_gained_images_with_their_answers() -> None:
    labels = np.zeros(100, int)
    before, after = labels.copy(), labels.copy()
    after[:50], before[50:53] = 1, 2
    images = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)
    found = flips(compare_predictions(labels, before, after, 3), images, labels, before, after)
    assert [flip.index for flip in found] == [0, 4, 8, 12, 16, 20, 25, 29, 33, 37, 41, 45, 50, 51, 52]
    assert {(flip.truth, flip.before, flip.after) for flip in found} == {(0, 0, 1), (0, 2, 0)}
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(found[3].png)))).tolist() == [[12, 12], [12, 12]]


def test_images_of_other_channels_have_no_picture() -> None:
    labels = np.array([0, 0])
    compared = compare_predictions(labels, labels, 1 - labels, 2)
    assert flips(compared, np.zeros((2, 4, 2, 2), np.uint8), labels, labels, 1 - labels) == ()
