"""Draws a tuning study: how the best score rose, how much each setting matters, and the score against each setting.

Made with matplotlib's stable parts alone, as Optuna's own pictures by matplotlib are experimental.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

from ..benchmarks.plot import THEMES
from ..train.space import Choices, Range, Space
from ..train.tune import Summary, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LIGHT = THEMES["light"]
GIVEN_UP = "#8c959f"


def draw_history(summary: Summary) -> bytes:
    """PNG: the score of each trial in order, the best so far as a line, and those given up at the score they had then."""
    figure = _figure(7.0, 3.8)
    axes = figure.add_subplot()
    _style(axes, "trial", "balanced accuracy in %")
    complete = _scored(summary, "complete")
    _scatter(axes, _scored(summary, "pruned"), [trial.number for trial in _scored(summary, "pruned")], GIVEN_UP, "x", "given up")
    _scatter(axes, complete, [trial.number for trial in complete], LIGHT["front"], "o", "complete")
    best: list[float] = []
    for trial in complete:
        best.append(max([100 * (trial.score or 0.0), *best[-1:]]))
    axes.step([trial.number for trial in complete], best, where="post", color=LIGHT["ink"], linewidth=1.2, label="best so far")
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=3)
    _focus(axes, complete, [*complete, *_scored(summary, "pruned")])
    return _png(figure)


def draw_importances(summary: Summary) -> bytes:
    """PNG: each setting's share in the variance of the score, as bars."""
    shares = sorted(summary.importances.items(), key=lambda pair: pair[1])
    figure = _figure(6.0, 0.8 + 0.32 * len(shares))
    axes = figure.add_subplot()
    _style(axes, "share in the variance of the score, % (fANOVA)", "")
    bars = axes.barh([name for name, _ in shares], [100 * share for _, share in shares], color=LIGHT["front"], height=0.6)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8, color=LIGHT["ink"])
    axes.set_xlim(0, 110 * max(summary.importances.values()))
    return _png(figure)


def draw_slices(summary: Summary, space: Space) -> bytes:
    """PNG: the score of complete trials against each setting, the most important first; later trials are darker."""
    from matplotlib.colors import to_rgba

    names = sorted(space, key=lambda name: -summary.importances.get(name, 0.0))
    columns = min(3, math.ceil(len(names) ** 0.5))
    rows = -(-len(names) // columns)
    figure = _figure(3.0 * columns, 2.6 * rows)
    trials = _scored(summary, "complete")
    for index, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, index + 1)
        share = summary.importances.get(name)
        _style(axes, name + (f" ({100 * share:.0f}%)" if share is not None else ""), "balanced acc. in %" if index % columns == 0 else "")
        shown = [trial for trial in trials if name in trial.values]
        one = space[name]
        if isinstance(one, Range):
            axes.set_xscale("log" if one.log else "linear")
            axes.update_datalim([(one.low, 0), (one.high, 0)], updatey=False)  # the whole range: a best trial at its edge is seen
            places: list[float] = [trial.values[name] for trial in shown]
        else:
            places = _choice_axis(axes, one, shown, name)
        shades = [to_rgba(LIGHT["front"], 0.25 + 0.75 * rank / max(1, len(shown) - 1)) for rank in range(len(shown))]
        axes.scatter(places, [100 * (trial.score or 0.0) for trial in shown], s=20, color=shades, linewidths=0)
        _focus(axes, shown, shown)
    return _png(figure)


def _choice_axis(axes: Axes, choices: Choices, shown: list[Trial], name: str) -> list[float]:
    """Choices side by side; points of one choice stand a little apart, in their order."""
    texts = ["-".join(map(str, value)) if isinstance(value, list) else str(value) for value in choices.values]
    slanted = max(map(len, texts)) > 5
    axes.set_xticks(range(len(texts)), texts, rotation=30 if slanted else 0, ha="right" if slanted else "center", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(texts) - 0.4)
    return [choices.values.index(trial.values[name]) + 0.3 * (rank / max(1, len(shown) - 1) - 0.5) for rank, trial in enumerate(shown)]


def _scored(summary: Summary, state: str) -> list[Trial]:
    return [trial for trial in summary.trials if trial.state == state and trial.score is not None]


def _scatter(axes: Axes, trials: list[Trial], places: list[int], colour: str, marker: str, label: str) -> None:
    axes.scatter(places, [100 * (trial.score or 0.0) for trial in trials], s=22, color=colour, marker=marker, label=label, linewidths=1)


def _focus(axes: Axes, trials: list[Trial], shown: list[Trial]) -> None:
    """Cut off the depths under ``trials``, and say how many of ``shown`` lie there: one at chance level would press all others together."""
    scores = sorted(100 * (trial.score or 0.0) for trial in trials)
    if not scores:
        return
    low, high = scores[len(scores) // 10], scores[-1]
    room = max(0.1 * (high - low), 0.2)
    axes.set_ylim(low - 2 * room, high + room)
    if below := sum(100 * (trial.score or 0.0) < low - 2 * room for trial in shown):
        axes.text(0.02, 0.03, f"{below} below", transform=axes.transAxes, fontsize=8, color=GIVEN_UP)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, facecolor=LIGHT["paper"], layout="constrained")


def _style(axes: Axes, across: str, up: str) -> None:
    axes.grid(color=LIGHT["faint"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["ink"], labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(LIGHT["faint"])
    axes.set_xlabel(across, color=LIGHT["ink"], fontsize=9, parse_math=False)
    axes.set_ylabel(up, color=LIGHT["ink"], fontsize=9, parse_math=False)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
