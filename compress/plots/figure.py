"""What pictures share: a figure in the benchmark's colours, an image in it, and the file's bytes."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..benchmarks.plot import COLOURS as LIGHT

INK, WRONG = "#1a1a1a", "#b3261e"


def new_figure(width: float, height: float, *, dpi: int = 120, layout: Any = "constrained") -> Any:
    """``width`` and ``height`` in inches; ``layout``: None where all places are given."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, facecolor=LIGHT["paper"], layout=layout)


def show_image(axes: Any, image: NDArray[np.uint8]) -> None:
    """``image``: (C, H, W), of one channel, three (RGB), or others, of which the mean is drawn."""
    axes.imshow(image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0), cmap="gray", vmin=0, vmax=255)
    axes.axis("off")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
