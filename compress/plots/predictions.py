"""Labels for images: what a model reads, with which probability, and a picture of it.

Works on anything that maps images uint8 (B, C, H, W) to logits (B, K), so that a torch network and an ONNX file are read by the same code.
"""

import unicodedata
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import write_whole
from .figure import INK, WRONG, new_figure, png, show_image

MOST_DRAWN = 400  # images in a picture
JAPANESE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAGothic",
    "TakaoGothic",
    "VL Gothic",
    "Hiragino Sans",
    "Yu Gothic",
    "MS Gothic",
)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One image's answer. ``truth`` is the name of its true class where that is known; ``probability`` lies in 0..1."""

    name: str
    label: str
    probability: float
    truth: str | None = None


def draw_grid(images: NDArray[np.uint8], predictions: Sequence[Prediction], target: Path) -> None:
    """Draw the images, uint8 (N, C, H, W), with their labels into the PNG ``target``; misread ones in red with the true class.

    At most :data:`MOST_DRAWN`, the first ones: 2,000 took minutes, and 1.8 GB.
    """
    images, predictions = images[:MOST_DRAWN], predictions[:MOST_DRAWN]
    columns = min(8, max(1, round(len(images) ** 0.5)))
    rows = -(-len(images) // columns)
    wrong = [one.truth not in (None, one.label) for one in predictions]
    texts = [
        f"{one.label}  {one.probability:.0%}" + (f"\ntrue: {one.truth}" if misread else "")
        for one, misread in zip(predictions, wrong, strict=True)
    ]
    families, drawable = fonts_for("".join(texts))
    figure = new_figure(1.5 * columns, 1.75 * rows)
    for index, (image, text, misread) in enumerate(zip(images, texts, wrong, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        show_image(axes, image)
        colour = WRONG if misread else INK
        axes.set_title(spelled(text, drawable), fontsize=9, color=colour, fontfamily=families, parse_math=False)
    write_whole(target, png(figure))


def fonts_for(text: str) -> tuple[list[str], Set[int]]:
    """Font families for ``text``, matplotlib's own and then the Japanese ones of this machine, and the characters they have."""
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    if not text.isascii():
        installed = {entry.name for entry in font_manager.fontManager.ttflist}
        families += [name for name in JAPANESE_FONTS if name in installed]
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    return families, {code for font in fonts for code in font.get_charmap()}


def spelled(text: str, drawable: Set[int]) -> str:
    """``text`` with characters that no font here has as the last word of their Unicode name: hiragana か becomes ``ka``."""
    return "".join(c if ord(c) in drawable or c == "\n" else unicodedata.name(c, f"U+{ord(c):04X}").split()[-1].lower() for c in text)
