"""Draws accuracy against latency or size, with the variants that no other beats in both (the Pareto front) joined by a line.

PNG, for Markdown; the page has its own (`page.chart`). Refuses nothing; a result in which nothing was measured has no plot.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from .formats import Units, title, units
from .results import Measurement, Result

Points = Sequence[tuple[float, float]]  # latency in milliseconds or size in kilobytes; balanced accuracy in %, or the user's own score

SIZE = (8.4, 4.6)  # inches, at 100 pixels each
COLOURS = {"ink": "#1f2328", "faint": "#d0d7de", "front": "#0a5fb4", "paper": "#ffffff"}
MARKERS = {
    ("onnxruntime", "cpu"): "o", ("onnxruntime", "cuda"): "D", ("openvino", "cpu"): "h", ("litert", "cpu"): ">",
    ("torch", "cpu"): "s", ("torch", "cuda"): "^",
    ("torch.compile", "cpu"): "p", ("torch.compile", "cuda"): "P", ("torch.fp16", "cuda"): "v", ("torch.cudagraph", "cuda"): "X",
    ("onnxruntime.fp16", "cuda"): "d", ("c", "cpu"): "*",
}  # fmt: skip
AXES = {"latency": "p50 latency in ms", "size": "size in kB"}


def pareto_front(points: Points) -> list[int]:
    """Indices of the points (latency or size, accuracy) that no other beats, the smallest first.

    ``[(1, 90), (2, 95), (3, 94)]`` gives ``[0, 1]``: the third is slower and less accurate than the second.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def draw(result: Result, axis: str = "latency", ship: str | None = None) -> bytes:
    """The plot as a PNG file's bytes.

    Args:
        result: with at least one measured candidate. axis: of `AXES`. ship: what the variant to ship is called, which is marked.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours, marked = COLOURS, shown(result, axis)
    points = [(x_of(one, axis), y_of(one)) for one in marked]
    ends = [
        (1e3 * one.latency.low, 1e3 * one.latency.high) if one.latency and axis == "latency" else (x, x)
        for one, (x, _) in zip(marked, points, strict=True)
    ]
    buffer = io.BytesIO()
    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=SIZE, dpi=100, facecolor=colours["paper"], layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(facecolor=colours["paper"])
        _style(axes, points, colours, AXES[axis], units(result))
        front = [points[index] for index in pareto_front(points)]
        axes.plot(*zip(*front, strict=True), color=colours["front"], linewidth=1.4, drawstyle="steps-post", zorder=1)
        for kind, marker in MARKERS.items():
            own = [index for index, one in enumerate(marked) if (one.runtime, one.device) == kind]
            if own:
                x, y = zip(*(points[index] for index in own), strict=True)
                reach = [[points[i][0] - ends[i][0] for i in own], [ends[i][1] - points[i][0] for i in own]] if axis == "latency" else None
                axes.errorbar(x, y, xerr=reach, fmt=marker, color=colours["front"], ecolor=colours["ink"], capsize=2, label=", ".join(kind))
        for one, point in zip(marked, points, strict=True):
            if ship in ships_as(one, result, axis):
                axes.plot(*([end] for end in point), "o", markersize=15, markerfacecolor="none", color=colours["front"], label="ship")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=colours["ink"], fontsize=8)
        bars = [(bound, y) for pair, (_, y) in zip(ends, points, strict=True) for bound in pair]
        _label(axes, points, bars, names(marked), front, colours["ink"])
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def shown(result: Result, axis: str) -> list[Measurement]:
    """What was measured; against size each file once, as the runtime does not change it."""
    measured = [one for one in result.measurements if one.latency is not None]
    if axis == "latency":
        return measured
    once: dict[object, Measurement] = {}
    for one in measured:
        once.setdefault(_same_file(one), one)
    return list(once.values())


def ships_as(one: Measurement, result: Result, axis: str) -> list[str]:
    """What a point stands for that may ship, as it is called; against size its file in every runtime."""
    others = result.measurements if axis == "size" else [one]
    return [other.called for other in others if other.may_ship and _same_file(other) == _same_file(one)]


def _same_file(one: Measurement) -> tuple[str, str, int]:
    return one.name, one.file, one.size_bytes


def x_of(one: Measurement, axis: str) -> float:
    """Latency in milliseconds, or size in kilobytes."""
    assert one.latency is not None
    return one.latency.p50 * 1e3 if axis == "latency" else one.size_bytes / 1e3


def y_of(one: Measurement) -> float:
    """What it scores: balanced accuracy in percent, or the user's own score."""
    return 100 * one.scores["balanced_accuracy"] if one.score is None else one.score


def _style(axes: Any, points: Points, colours: Mapping[str, str], title: str, scored: Units) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    widths = [x for x, _ in points]
    log = max(widths) > 8 * min(widths)
    axes.set_xscale("log" if log else "linear")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter(useOffset=False))
    axes.margins(x=0.12, y=0.16)
    axes.grid(color=colours["faint"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["ink"])
    for spine in axes.spines.values():
        spine.set_color(colours["faint"])
    axes.set_xlabel(title + (", log scale" if log else ""), color=colours["ink"])
    axes.set_ylabel(scored.name + ("" if scored.score else " in %"), color=colours["ink"])


def names(measured: Sequence[Measurement]) -> list[str]:
    """A name alone where it is the only one, else with runtime and device; cut where it would fill the plot."""
    plain = [one.name for one in measured]
    told = [one.name if plain.count(one.name) == 1 else title(one) for one in measured]
    return [name if len(name) <= 32 else name[:31] + "…" for name in told]


def _label(axes: Any, points: Points, bars: Points, names: Sequence[str], front: Points, colour: str) -> None:
    """Put each name where it covers neither another name, a point, an end of a bar nor the front.

    The nearest free place wins, joined to its point if far. Where nothing is free the name stays away rather than cover another: the
    table has it.
    """
    from matplotlib.cbook import pts_to_poststep
    from matplotlib.path import Path

    figure = axes.get_figure()
    figure.draw_without_rendering()  # settles the layout: places are compared in pixels
    renderer = figure.canvas.get_renderer()
    frame = axes.get_window_extent(renderer)
    spots = [axes.transData.transform(point) for point in (*points, *bars)]
    # The line as it is drawn: two points only know of the corner between them once the style of the steps is applied.
    path = Path(axes.transData.transform(pts_to_poststep(*zip(*front, strict=True)).T))
    taken: list[Any] = []
    sides = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
    for point, name in sorted(zip(points, names, strict=True)):
        for reach, (right, up) in itertools.product((9, 20, 34, 50, 70, 92, 116), sides):
            offset = {"xy": point, "xytext": (right * reach, up * reach), "textcoords": "offset points", "fontsize": 8}
            place = {"ha": ("right", "center", "left")[right + 1], "va": ("top", "center", "bottom")[up + 1]}
            text = axes.annotate(name, **offset, **place, color=colour, parse_math=False, in_layout=False)
            box = text.get_window_extent(renderer)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            covers = any(map(box.overlaps, taken)) or any(box.padded(4).contains(*spot) for spot in spots)
            if inside and not covers and not path.intersects_bbox(box, filled=False):
                taken.append(box.padded(2))
                if reach > 9:
                    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3}
                    axes.annotate("", **offset, arrowprops=line, in_layout=False)
                break
            text.remove()
