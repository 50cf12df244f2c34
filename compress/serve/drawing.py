"""How pictures were drawn that a network was trained on, so that strokes on a page become such pictures.

Measured on the images beside the model, ``vectors.npz``, where they are there and look drawn: ink of one brightness on a plain
background. Else it is what is usual, MNIST's way: light on dark, 20 of 28 pixels, its mass in the middle.

Example: white pixels in rows 4 to 23 of 28 on black are light ink of extent 20 / 28 = 0.714.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..artifacts.vectors import VECTORS, read_vectors
from ..errors import CompressError
from .frames import Habits

USUAL = Habits(ink="light", extent=20 / 28, thickness=2.2 / 28, centred="mass", known=False)
LEAST = 3  # images
_SLANTED = 1.1
_PLAIN = 0.5  # of a border that is all background: this share of its pixels is within 16 of its median


@dataclass(frozen=True)
class _Ink:
    extent: float
    thickness: float
    off_mass: float
    off_box: float


def habits_beside(model: Path, channels: int) -> Habits:
    """Those of the network in the file ``model``."""
    if channels != 1 or not (vectors := model.with_name(VECTORS)).is_file():
        return USUAL
    try:
        return habits_of(read_vectors(vectors).images)
    except CompressError:  # `compress verify` says what is wrong with them; a page can do without
        return USUAL


def habits_of(images: NDArray[np.uint8]) -> Habits:
    """Those of images uint8 (N, 1, H, W)."""
    grey = images[:, 0].astype(np.float64)
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], axis=1)
    background = float(np.median(border))
    if len(grey) < LEAST or np.mean(np.abs(border - background) <= 16) < _PLAIN:
        return USUAL
    inks = list(_inks(grey, background))
    if len(inks) < LEAST:
        return USUAL
    off_mass, off_box = (float(np.mean([getattr(one, name) for one in inks])) for name in ("off_mass", "off_box"))
    return Habits(
        ink="light" if background < 128 else "dark",
        extent=min(1.0, float(np.median([one.extent for one in inks]))),
        thickness=float(np.median([one.thickness for one in inks])),
        centred="mass" if off_mass <= off_box else "box",
        known=True,
    )


def _inks(grey: NDArray[np.float64], background: float) -> Iterator[_Ink]:
    span = max(background, 255 - background)
    _, height, width = grey.shape
    for image in np.abs(grey - background) / span:
        ink = image > 0.4
        if not 0 < ink.mean() < 0.6:
            continue
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        sides = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        # A stroke of length L and width w covers L w pixels, with an edge of about 2 L. Counted in sides of pixels that is as much where
        # strokes are upright, and 4/pi times as much where they go in all directions; writing is between.
        padded = np.pad(ink, 1)
        edge = (padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum()
        where = np.indices(image.shape)
        mass = [(image * axis).sum() / image.sum() for axis in where]
        box = [(side[0] + side[-1]) / 2 for side in (rows, columns)]
        middle = (height - 1) / 2, (width - 1) / 2
        off = [float(np.hypot(*(np.subtract(one, middle) / (height, width)))) for one in (mass, box)]
        extent, thickness = max(sides[0] / height, sides[1] / width), 2 * ink.sum() / (edge / _SLANTED) / min(height, width)
        yield _Ink(float(extent), float(thickness), *off)
