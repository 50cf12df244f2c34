"""Draws a tuning study: how the best score rose, how much each setting matters, and the score against each setting.

Made with matplotlib's stable parts alone, as Optuna's own pictures by matplotlib are experimental.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ..train.space import Choices, Range, Space
from ..train.tune import Summary, Trial
from .figure import LIGHT, new_figure, png

GIVEN_UP = "#8c959f"


def draw_history(summary: Summary) -> bytes:
    """PNG: the score of each trial in order, the best so far as a line, and those given up at the score they had then."""
    figure = new_figure(7.0, 3.8)
    axes = _styled(figure.add_subplot(), "trial", "balanced accuracy in %")
    complete, given_up = _scored(summary, "complete"), _scored(summary, "pruned")
    for trials, colour, marker, label in ((given_up, GIVEN_UP, "x", "given up"), (complete, LIGHT["front"], "o", "complete")):
        numbers = [trial.number for trial in trials]
        axes.scatter(numbers, _percent(trials), s=22, color=colour, marker=marker, label=label, linewidths=1)
    best = list(itertools.accumulate(_percent(complete), max))
    axes.step([trial.number for trial in complete], best, where="post", color=LIGHT["ink"], linewidth=1.2, label="best so far")
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=3)
    _focus(axes, complete, [*complete, *given_up])
    return png(figure)


def draw_importances(summary: Summary) -> bytes:
    """PNG: each setting's share in the variance of the score, as bars."""
    shares = sorted(summary.importances.items(), key=lambda pair: pair[1])
    figure = new_figure(6.0, 0.8 + 0.32 * len(shares))
    axes = _styled(figure.add_subplot(), "share in the variance of the score, % (fANOVA)", "")
    bars = axes.barh([name for name, _ in shares], [100 * share for _, share in shares], color=LIGHT["front"], height=0.6)
    axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8, color=LIGHT["ink"])
    axes.set_xlim(0, 110 * max(summary.importances.values()))
    return png(figure)


def draw_slices(summary: Summary, space: Space) -> bytes:
    """PNG: the score of complete trials against each setting, the most important first; later trials are darker."""
    from matplotlib.colors import to_rgba

    names = sorted(space, key=lambda name: -summary.importances.get(name, 0.0))
    columns = min(3, math.ceil(len(names) ** 0.5))
    rows = -(-len(names) // columns)
    figure = new_figure(3.0 * columns, 2.6 * rows)
    trials = _scored(summary, "complete")
    for index, name in enumerate(names):
        share = f" ({100 * summary.importances[name]:.0f}%)" if name in summary.importances else ""
        axes = _styled(figure.add_subplot(rows, columns, index + 1), name + share, "balanced acc. in %" if index % columns == 0 else "")
        shown = [trial for trial in trials if name in trial.values]
        one = space[name]
        if isinstance(one, Range):
            axes.set_xscale("log" if one.log else "linear")
            axes.update_datalim([(one.low, 0), (one.high, 0)], updatey=False)  # the whole range: a best trial at its edge is seen
            places: list[float] = [trial.values[name] for trial in shown]
        else:
            places = _choice_axis(axes, one, shown, name)
        shades = [to_rgba(LIGHT["front"], 0.25 + 0.75 * rank / max(1, len(shown) - 1)) for rank in range(len(shown))]
        axes.scatter(places, _percent(shown), s=20, color=shades, linewidths=0)
        _focus(axes, shown, shown)
    return png(figure)


def _choice_axis(axes: Any, choices: Choices, shown: list[Trial], name: str) -> list[float]:
    """Choices side by side; points of one choice stand a little apart, in their order."""
    texts = ["-".join(map(str, value)) if isinstance(value, list) else str(value) for value in choices.values]
    slanted = max(map(len, texts)) > 5
    axes.set_xticks(range(len(texts)), texts, rotation=30 if slanted else 0, ha="right" if slanted else "center", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(texts) - 0.4)
    return [choices.values.index(trial.values[name]) + 0.3 * (rank / max(1, len(shown) - 1) - 0.5) for rank, trial in enumerate(shown)]


def _scored(summary: Summary, state: str) -> list[Trial]:
    return [trial for trial in summary.trials if trial.state == state and trial.score is not None]


def _percent(trials: Sequence[Trial]) -> list[float]:
    return [100 * (trial.score or 0.0) for trial in trials]


def _focus(axes: Any, trials: list[Trial], shown: list[Trial]) -> None:
    """Cut off the depths under ``trials``, and say how many of ``shown`` lie there: one at chance level would press all others together."""
    scores = sorted(_percent(trials))
    if not scores:
        return
    low, high = scores[len(scores) // 10], scores[-1]
    room = max(0.1 * (high - low), 0.2)
    axes.set_ylim(low - 2 * room, high + room)
    if below := sum(score < low - 2 * room for score in _percent(shown)):
        axes.text(0.02, 0.03, f"{below} below", transform=axes.transAxes, fontsize=8, color=GIVEN_UP)


def _styled(axes: Any, across: str, up: str) -> Any:
    axes.grid(color=LIGHT["faint"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=LIGHT["ink"], labelsize=8)
    axes.spines[:].set_color(LIGHT["faint"])
    axes.set_xlabel(across, color=LIGHT["ink"], fontsize=9, parse_math=False)
    axes.set_ylabel(up, color=LIGHT["ink"], fontsize=9, parse_math=False)
    return axes
