"""Draws a sensitivity as a heat map: a row per layer, group or module, a column per sparsity, in each cell the points that were lost."""

from __future__ import annotations

from collections.abc import Sequence

from .figure import LIGHT, new_figure, png

# The exponent of the colours: 0.5 points and 1 must look different, and so must 20 and 60.
GAMMA, TICKS = 0.4, (0, 1, 5, 20, 50, 100)


def draw_heat_map(names: Sequence[str], columns: Sequence[str], lost: Sequence[Sequence[float]], title: str) -> bytes:
    """PNG, taller with every row; the rows have ``names``, from the top.

    ``lost``: for each row a value per column, in points of balanced accuracy (0 to 100, a gain is negative); colours are the same in every
    picture. ``title``: what was measured, and of how much.
    """
    from matplotlib.colors import PowerNorm

    figure = new_figure(1.9 + 0.08 * max(map(len, names)) + 0.62 * len(columns), 1.1 + 0.23 * len(names))
    axes = figure.add_subplot()
    image = axes.imshow(lost, cmap="YlOrRd", norm=PowerNorm(GAMMA, 0, 100, clip=True), aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(colors=LIGHT["ink"], labelsize=8, length=0)
    axes.spines[:].set_visible(False)
    for y, row in enumerate(lost):
        for x, value in enumerate(row):
            shade = LIGHT["paper"] if (max(value, 0) / 100) ** GAMMA > 0.6 else LIGHT["ink"]
            axes.text(x, y, cell(value), ha="center", va="center", fontsize=7.5, color=shade)
    figure.suptitle(title, fontsize=9, color=LIGHT["ink"], parse_math=False)
    bar = figure.colorbar(image, ax=axes, ticks=TICKS, format="%d", fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=LIGHT["ink"], labelsize=7, length=0)
    return png(figure)


def cell(points: float) -> str:
    """Points that were lost, no longer than they need to be: ``0.04``, ``3.1``, ``57``; a gain is ``-0.10``."""
    return f"{points:.{2 if abs(points) < 1 else 1 if abs(points) < 9.95 else 0}f}".replace("-0.00", "0.00")
