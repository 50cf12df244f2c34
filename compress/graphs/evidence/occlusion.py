"""Which parts of an image speak for a class, of anything that gives logits. Loads numpy only.

It needs no gates and no gradients: cover a patch with background, and see how far the logit of a class falls. It cannot show that
ink is missing: background covered with background changes nothing.

Source: Zeiler and Fergus 2013, arXiv:1311.2901.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
_BATCH = 32  # k49 takes a third of the time per image that it takes in batches of 256, which leave the cache


def occlusion(run: Run, image: NDArray[np.uint8], classes: Sequence[int], *, patch: int) -> NDArray[np.float64]:
    """Evidence of each pixel for each class, float64 (len(classes), H, W), in logits: positive where covering it costs the class.

    What falls is the class's logit less the mean of all logits. A probability, also its logarithm, stands still as long as the network
    remains sure of a class; a logit does not.

    A network that only looks at the upper left pixel, ``patch`` 1: that pixel has the whole logit as its evidence, all others 0.

    Args:
        run: images uint8 (B, C, H, W) to logits (B, K). image: uint8 (C, H, W). classes: indices into the logits.
        patch: side of the square that is covered, in pixels, with the median colour of the image's border.
            From one square to the next it is half a patch, and a pixel's evidence is the mean over the squares that cover it.
    """
    stride = max(1, (patch + 1) // 2)
    _, height, width = image.shape
    border = np.concatenate([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], axis=1)
    background = np.median(border, axis=1).astype(np.uint8)[:, None, None]
    # Squares begin outside of the image, so that a corner is covered as often as the middle.
    tops, lefts = (range(stride - patch, size, stride) for size in (height, width))
    squares = [(slice(max(0, top), top + patch), slice(max(0, left), left + patch)) for top in tops for left in lefts]
    covered = np.repeat(image[None], len(squares) + 1, axis=0)
    for copy, (rows, columns) in zip(covered[1:], squares, strict=True):
        copy[:, rows, columns] = background
    logits = run_batches(run, covered).astype(np.float64)
    scores = (logits - logits.mean(axis=1, keepdims=True))[:, list(classes)]
    total, count = np.zeros((len(classes), height, width)), np.zeros((height, width))
    for drop, (rows, columns) in zip(scores[0] - scores[1:], squares, strict=True):
        total[:, rows, columns] += drop[:, None, None]
        count[rows, columns] += 1
    return total / count


def run_batches(run: Run, images: Any, progress: Callable[[int, int], None] | None = None) -> NDArray[np.float32]:
    """Logits (N, K) of any number of ``images``, indexed as an array is, in batches; ``progress(done, total)`` is told of each."""
    parts = []
    for start in range(0, len(images), _BATCH):
        parts.append(run(images[start : start + _BATCH]))
        if progress is not None:
            progress(min(start + _BATCH, len(images)), len(images))
    return np.concatenate(parts)
