"""The picture of ``compress explain``: per image a block, in it a row per network, in the same colours before and after compression.

::

    input   fp32         spatial gates, an image each   channel gates, a strip each   evidence: true class   class that was read
            int8         ...

Colours mean the same all over a column: a spatial gate's from its lowest to its highest value in any row, channel gates' from 0 to 1,
evidence's from -m to m, m the strongest evidence within the block. Channels stand in the order of the first network (of those with the most
gates), from closed to open, so that a strip below a smooth one shows which channels moved. Ink is outlined.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_whole
from ..graphs.evidence.gates import Gate
from .figure import INK, WRONG, new_figure, png, show_image
from .predictions import fonts_for, spelled

FAINT, RULE, RIGHT = "#6b7280", "#d0d7de", "#1b6e3c"
GATES, EVIDENCE = "viridis", "RdBu_r"
Scale = tuple[str, float, float]  # one of these, and the values at its ends
LETTERS = 17  # that the column of names holds
# Inches.
MARGIN, CELL, GAP, TEXT, STRIPS, HEADING, PITCH, LEGEND = 0.25, 1.0, 0.14, 1.55, 1.7, 0.5, 1.22, 0.62


@dataclass(frozen=True, kw_only=True)
class View:
    """What one network makes of one image: ``label`` with ``probability`` in 0..1, its gates for this image, without a batch axis, and the
    evidence, float64 (H, W), for the true class and for the class that was read."""

    network: str
    label: str
    probability: float
    gates: tuple[Gate, ...]
    for_truth: NDArray[np.float64]
    for_label: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One test image, uint8 (C, H, W), its true class, and what each network makes of it."""

    index: int
    image: NDArray[np.uint8]
    truth: str
    views: tuple[View, ...]


def shown_gates(seen: Sequence[Seen], every: bool) -> list[int]:
    """Which gates get a column: every spatial one, or of each size the one that varies most within an image.

    The last one, say, may let everything through.
    """
    gates = [one.views[_lead(seen)].gates for one in seen]
    spatial = [place for place, gate in enumerate(gates[0]) if gate.kind == "spatial"]
    spread = {place: float(np.mean([image[place].values.std() for image in gates])) for place in spatial}
    if every:
        return spatial
    liveliest = {gates[0][place].values.shape: place for place in sorted(spread, key=spread.__getitem__)}
    return sorted(liveliest.values())


def gate_names(gates: Sequence[Gate]) -> list[str]:
    """``channel 1``, ``spatial 1``, ``channel 2``, ...: counted by kind, in the order of computation."""
    kinds = [gate.kind for gate in gates]
    return [f"{kind} {kinds[: place + 1].count(kind)}" for place, kind in enumerate(kinds)]


def draw_maps(seen: Sequence[Seen], target: Path, *, every: bool = False) -> None:
    """Draw ``seen`` into the PNG ``target``; ``every``: a column for each spatial gate, else as :func:`shown_gates` chooses."""
    sheet = _Sheet(seen, shown_gates(seen, every))
    sheet.draw_legend()
    for number, one in enumerate(seen):
        sheet.draw_block(one, LEGEND + number * sheet.block)
    write_whole(target, png(sheet.figure))


class _Sheet:
    """Where everything stands, in inches from the upper left corner."""

    def __init__(self, seen: Sequence[Seen], columns: Sequence[int]) -> None:
        self.lead = _lead(seen)
        gates, views = seen[0].views[self.lead].gates, [view for one in seen for view in one.views]
        self.headings = [f"{name}, {'x'.join(map(str, gate.values.shape))}" for name, gate in zip(gate_names(gates), gates, strict=True)]
        self.strips = sum(gate.kind == "channel" for gate in gates)
        self.ranges = {
            place: _range([gate.values for view in views for gate in view.gates[place : place + 1] if gate.kind == "spatial"])
            for place in columns
        }
        self.block = HEADING + PITCH * len(seen[0].views)
        self.first = MARGIN + CELL + GAP + TEXT
        self.columns = {place: self.first + column * (CELL + GAP) for column, place in enumerate(columns)}
        self.strips_left = self.first + len(columns) * (CELL + GAP)
        self.evidence_left = self.strips_left + (STRIPS + GAP if self.strips else 0)
        self.answer_left = self.evidence_left + CELL + GAP
        self.width = self.evidence_left + 2 * (CELL + GAP) + MARGIN
        self.height = LEGEND + len(seen) * self.block
        self.figure = new_figure(self.width, self.height, dpi=110, layout=None)
        words = [name for one in seen for name in (one.truth, *(view.label for view in one.views), *(view.network for view in one.views))]
        self.families, self.drawable = fonts_for("".join(words))

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        return self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height), xticks=[], yticks=[]
        )

    def write(self, left: float, top: float, text: str, *, size: float = 8, colour: str = INK, **more: Any) -> None:
        drawn = spelled(text, self.drawable)
        place = (left / self.width, 1 - top / self.height)
        self.figure.text(*place, drawn, fontsize=size, color=colour, family=self.families, va="top", parse_math=False, **more)

    def draw_legend(self) -> None:
        bars = [(self.evidence_left, "against", "for the class", EVIDENCE, 2 * CELL + GAP)]
        bars += [(self.strips_left, "0", "1, open", GATES, STRIPS)] if self.strips else []
        bars += [(self.first, "low", "high, open", GATES, len(self.columns) * (CELL + GAP) - GAP)] if self.columns else []
        for left, low, high, colours, width in bars:
            axes = self.axes(left, 0.2, width, 0.09)
            axes.imshow(np.linspace(0, 1, 128)[None], cmap=colours, aspect="auto")
            axes.axis("off")
            self.write(left, 0.33, low, size=7, colour=FAINT)
            self.write(left + width, 0.33, high, size=7, colour=FAINT, ha="right")

    def draw_block(self, seen: Seen, top: float) -> None:
        line = self.axes(MARGIN, top, self.width - 2 * MARGIN, 0)
        line.spines["top"].set_color(RULE)
        self.write(MARGIN, top + 0.1, f"test image {seen.index}", size=9, fontweight="bold")
        self.write(MARGIN, top + 0.27, f"true: {seen.truth}", size=9)
        names = [(at, "{}\n{:.2f} to {:.2f}".format(self.headings[place], *self.ranges[place])) for place, at in self.columns.items()]
        names += [(self.strips_left, f"channel 1 to {self.strips}, a strip each:\nits channels, closed to open")] if self.strips else []
        names += [(self.evidence_left, "evidence for\nthe true class"), (self.answer_left, "evidence for\nits answer")]
        for left, name in names:
            self.write(left, top + 0.12, name, size=7, colour=FAINT)
        middle = top + HEADING + (PITCH * len(seen.views) - (PITCH - CELL)) / 2 - CELL / 2
        show_image(self.axes(MARGIN, middle, CELL, CELL), seen.image)
        strongest = max(float(np.abs(evidence).max()) for view in seen.views for evidence in (view.for_truth, view.for_label))
        for row, view in enumerate(seen.views):
            self._row(seen, view, top + HEADING + PITCH * row, strongest)

    def _row(self, seen: Seen, view: View, top: float, strongest: float) -> None:
        right, left = view.label == seen.truth, MARGIN + CELL + GAP
        name = textwrap.wrap(view.network, LETTERS, max_lines=3, placeholder="...")
        self.write(left, top + 0.24, "\n".join(name), size=9, fontweight="bold")
        label = view.label if len(view.label) <= LETTERS // 2 else view.label[: LETTERS // 2] + "..."
        answer = f"{label}  {view.probability:.0%}" + ("" if right else "  misread")
        self.write(left, top + 0.3 + 0.16 * len(name), answer, size=10, colour=RIGHT if right else WRONG)
        for place, at in self.columns.items():
            values = view.gates[place].values if place < len(view.gates) and view.gates[place].kind == "spatial" else None
            self._map(at, top, values, "none", seen.image, (GATES, *self.ranges[place]))
        self._channels(seen, view, top)
        scale = (EVIDENCE, -strongest, strongest)
        self._map(self.evidence_left, top, view.for_truth, "", seen.image, scale)
        self._map(self.answer_left, top, None if right else view.for_label, "the same", seen.image, scale)

    def _channels(self, seen: Seen, view: View, top: float) -> None:
        """A strip for each channel gate; its channels in the order of the first network where both have as many, else in their own."""
        own, first = ([gate.values for gate in one.gates if gate.kind == "channel"] for one in (view, seen.views[self.lead]))
        height = CELL / max(1, self.strips)
        for place, values in enumerate(own[: self.strips]):
            by = first[place] if first[place].shape == values.shape else values
            axes = self.axes(self.strips_left, top + place * height, STRIPS, 0.84 * height)
            axes.imshow(values[np.argsort(by, kind="stable")][None], cmap=GATES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.axis("off")

    def _map(self, left: float, top: float, values: NDArray[Any] | None, without: str, image: NDArray[np.uint8], scale: Scale) -> None:
        """Values over the outlines of the image; a cell that says ``without`` where there are none."""
        from matplotlib.patheffects import withStroke

        axes = self.axes(left, top, CELL, CELL)
        if values is None:
            axes.set_facecolor("#f6f8fa")
            axes.spines[:].set_color(RULE)
            axes.text(0.5, 0.5, without, ha="center", va="center", fontsize=7, color=FAINT, transform=axes.transAxes)
            return
        (_, height, width), (colours, lowest, highest) = image.shape, scale
        reach = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(values, cmap=colours, vmin=lowest, vmax=highest, extent=reach, interpolation="nearest")
        low, high = float(image.min()), float(image.max())
        if len(image) == 1 and low < high and min(height, width) > 1:  # a photograph has no ink
            outline = axes.contour(image[0], levels=[(low + high) / 2], colors=INK, linewidths=0.8)
            outline.set_path_effects([withStroke(linewidth=1.8, foreground="white")] if colours == GATES else [])
        axes.axis("off")


def _lead(seen: Sequence[Seen]) -> int:
    """The first of the networks with the most gates."""
    counts = [len(view.gates) for view in seen[0].views]
    return counts.index(max(counts))


def _range(values: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """From the lowest to the highest value, at least 0.1 apart: a gate that is the same everywhere should look so."""
    low, high = min(float(one.min()) for one in values), max(float(one.max()) for one in values)
    return (low, high) if high - low >= 0.1 else (high - 0.1, high)
