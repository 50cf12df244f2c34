"""Draws the noise of quantization per layer, and beside it the time that the layer takes in float32 and in int8.

A layer is what has weights; each bears the name of its weights. A bar is the ratio at its output with all errors from before, the mark on
it what storing the exact output in 8 bits would give alone: far apart, the noise comes from before.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..quantization.noise import LayerNoise
from .figure import LIGHT, new_figure, png

INT8 = "#d1730b"
Times = Mapping[str, float]  # microseconds by name of the node, as node_times gives them


def draw_noise(rows: Sequence[LayerNoise], title: str, times: tuple[Times, Times] | None = None) -> bytes:
    """PNG, taller with every layer; of ``rows`` those without weights are left out, but for the logits.

    ``title``: what was quantized, and how. ``times``: of the float32 and of the int8 file.
    """
    layers = [row for row in rows if row.weights is not None]
    shown = [*layers, *(row for row in rows[-1:] if row.weights is None)]
    names = layer_names(shown)
    columns = 2 if times else 1
    width = 1.2 + 0.068 * max(map(len, names)) + 3.9 * columns
    figure = new_figure(width, 1.25 + 0.215 * len(shown), dpi=110)
    left, *right = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    _draw_ratios(left, shown)
    left.set_yticks(range(len(names)), names, parse_math=False)
    left.set_ylim(len(names) - 0.4, -0.6)
    if times:
        _draw_times(right[0], layers, *times)
    for axes in (left, *right):
        axes.tick_params(colors=LIGHT["ink"], labelsize=8, length=0)
        axes.spines[:].set_visible(False)
        axes.grid(axis="x", color=LIGHT["faint"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.label.set(color=LIGHT["ink"], fontsize=8)
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, fontsize=8, frameon=False, labelcolor=LIGHT["ink"], borderaxespad=0.2
        )
    figure.suptitle(textwrap.fill(title, int(13 * width)), fontsize=9, color=LIGHT["ink"], parse_math=False)
    return png(figure)


def layer_names(rows: Sequence[LayerNoise]) -> list[str]:
    """The names of the weights without what all have in common; weights that several layers share are numbered.

    By hand: "net.a.weight", "net.b.weight" and "net.b.weight" are "a", "b" and "b (2)".
    """
    full = [(row.weights or row.name).removesuffix(".weight") for row in rows]
    parts = [name.split(".")[:-1] for name, row in zip(full, rows, strict=True) if row.weights is not None]
    same = itertools.takewhile(lambda part: len(set(part)) == 1, zip(*parts, strict=False))
    prefix = "".join(f"{part[0]}." for part in same)
    counts = [full[: place + 1].count(name) for place, name in enumerate(full)]
    return [name.removeprefix(prefix) + (f" ({count})" if count > 1 else "") for name, count in zip(full, counts, strict=True)]


def _draw_ratios(axes: Any, rows: Sequence[LayerNoise]) -> None:
    finite = [value for row in rows for value in (row.output_db, row.own_db) if value is not None and math.isfinite(value)]
    low, high = min([0.0, *finite]), max([10.0, *finite])
    lengths = {y: min(row.output_db, high) for y, row in enumerate(rows) if row.output_db > -math.inf}
    exact = [y for y in lengths if rows[y].output_db == math.inf]
    noisy = [y for y in lengths if y not in exact]
    for found, colour, name in ((noisy, LIGHT["front"], "with the noise from before"), (exact, LIGHT["faint"], None)):
        axes.barh(found, [lengths[y] for y in found], height=0.66, color=colour, label=name)
    own = [(row.own_db, y) for y, row in enumerate(rows) if row.own_db is not None and math.isfinite(row.own_db)]
    if own:
        axes.scatter(*zip(*own, strict=True), marker="|", s=70, linewidths=2, color=LIGHT["ink"], zorder=3, label="of its own output alone")
    for y, row in enumerate(rows):
        text = f"{row.output_db:.0f}" if math.isfinite(row.output_db) else "exact" if row.output_db > 0 else "nothing left"
        length = lengths.get(y, 0.0)
        inside = length > 0.1 * (high - low)
        shade = LIGHT["paper" if inside and row.output_db < math.inf else "ink"]
        x = max(length, 0.0) + (-0.01 if inside else 0.01) * (high - low)
        axes.text(x, y, text, ha="right" if inside else "left", va="center", fontsize=7, color=shade)
    axes.set_xlim(low, high + 0.03 * (high - low))
    axes.set_xlabel("signal to quantization noise in dB (6 dB are 1 bit)")


def _draw_times(axes: Any, layers: Sequence[LayerNoise], exact: Times, int8: Times) -> None:
    """Two bars per layer, and below them what the other nodes take, which would hide the layers if it had bars."""
    for times, offset, colour, name in ((exact, -0.18, LIGHT["front"], "float32"), (int8, 0.18, INT8, "int8")):
        axes.barh(
            [y + offset for y in range(len(layers))], [times.get(row.name, 0.0) for row in layers], height=0.34, color=colour, label=name
        )
    axes.set_xlim(0, 1.03 * axes.get_xlim()[1])
    first, second = (sum(times.get(name, 0.0) for name in {row.name for row in layers}) for times in (exact, int8))
    axes.set_xlabel(
        f"microseconds, profiled; these layers {first:.0f} and {second:.0f},\n"
        f"all other nodes {sum(exact.values()) - first:.0f} and {sum(int8.values()) - second:.0f}"
    )
