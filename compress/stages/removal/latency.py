"""A goal in latency: the widest network that meets it, found by timing few.

The latency of a network with some of its channels gone, as a fraction of the teacher's, is foretold from those that were measured. It is
taken to be a part that stays, and a part of each use of a weight that shrinks as its elements do. By hand: two layers of half of the time
each, of which the first has lost half of its outputs, so the second half of its inputs: 0.25 + 0.25. What each part is, is found by least
squares, and none is negative: more channels never take less time, whatever the noise says. Before anything is measured the layers share
nine tenths, as the machine's latency table says (``boards.latency_table``), else half of it by MACs and half alike, each with a doubt as
large as its share. What a multiple of channels gains is no part of it: all networks of one search have the same.

The network that is foretold to meet the goal is measured, which the next one is foretold by, until one meets it closely. Latency is noisy,
and whoever takes the largest network that was once measured below a goal takes the one that was lucky. So that one is measured again,
longer, and taken where the whole interval meets the goal; else the search goes on, and knows better.

Source: scipy.optimize.nnls (Lawson and Hanson 1974); the prior as rows of the least squares, as in ridge regression.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from ...benchmarks.statistics import MOST_LAUNCHES, Interval
from ...channels.choose import Kept
from ...channels.groups import Groups
from ..boards.latency_table import LatencyTable
from ..boards.layer_kinds import weighted

Array = NDArray[np.float64]

STAYS = 0.1  # of the latency, before anything is known
LEAST = 1e-4  # of it, what a layer takes
NOISE = 0.005  # standard deviation of a measurement at best, as a fraction
MOST = 16  # networks that are measured towards one goal
CLOSE = 0.98  # of the goal; what takes as long is not made wider


class WidthModel:
    """Foretells latencies; ``whole``: that of the network whose ``groups`` these are, in the unit of all others."""

    def __init__(self, groups: Groups, whole: float, table: LatencyTable | None = None) -> None:
        self._groups = groups
        self._before = self._left(groups.everything)
        macs = np.array([each for _, _, each in groups.uses]) * self._before
        shares = (macs / macs.sum() + 1 / len(macs)) / 2
        if table is not None:
            seconds = np.array([table.seconds(weighted(shape, max(1, round(each)))) for _, shape, each in groups.uses])
            shares = seconds / seconds.sum()
        self._parts = whole * np.array([STAYS, *(1 - STAYS) * np.maximum(shares, LEAST)])
        # Each row, a part of the prior or a measurement, in units of its standard deviation.
        self._rows, self._values = np.diag(1 / self._parts), np.ones(len(self._parts))

    def learn(self, keep: Mapping[str, tuple[int, ...]], latency: Interval) -> None:
        """Take in what was measured of the network that keeps these units."""
        deviation = max((latency.high - latency.low) / 4, NOISE * latency.value)
        self._rows = np.vstack([self._rows, self._shares(keep) / deviation])
        self._values = np.append(self._values, latency.value / deviation)
        self._parts = nnls(self._rows, self._values)[0]

    def foretold(self, keep: Mapping[str, tuple[int, ...]]) -> float:
        return float(self._shares(keep) @ self._parts)

    def _shares(self, keep: Mapping[str, tuple[int, ...]]) -> Array:
        """What is left of each part, 1 of the one that stays."""
        return np.append(1.0, self._left(keep) / self._before)

    def _left(self, keep: Mapping[str, tuple[int, ...]]) -> Array:
        shapes = ((name, shape) for name, shape, _ in self._groups.uses)
        return np.array(list(self._groups.sizes_left(keep, shapes)), float)


class Latencies:
    """What networks with these ``groups`` take: measured once for the same widths, so that nothing is tried until it is lucky.

    ``measure``: of what is kept, in so many rounds, or in its own number. ``table``: of the machine, where there is one.
    """

    def __init__(self, groups: Groups, measure: Callable[[Kept, int | None], Interval], table: LatencyTable | None = None) -> None:
        self._groups, self._measure, self._table = groups, measure, table
        self.measured: dict[tuple[int, ...], tuple[Kept, Interval]] = {}
        self._model: WidthModel | None = None

    def of(self, keep: Kept) -> Interval:
        return self.measured[_widths(keep)][1] if self.knows(keep) else self.again(keep)

    def again(self, keep: Kept, rounds: int | None = None) -> Interval:
        """Measured anew, which counts from now on."""
        found = self._measure(keep, rounds)
        self.measured[_widths(keep)] = keep, found
        if self._model:
            self._model.learn(keep, found)
        return found

    def knows(self, keep: Kept) -> bool:
        return _widths(keep) in self.measured

    def foretold(self, keep: Kept) -> float:
        """What it probably takes, from all that was measured; the network as it is, is measured before anything is foretold."""
        if self._model is None:
            model = WidthModel(self._groups, self.of(self._groups.everything).value, self._table)
            for known, found in self.measured.values():
                model.learn(known, found)
            self._model = model
        return self._model.foretold(keep)

    def best(self, goal: float) -> Kept | None:
        """Of what was measured the network that takes longest and meets the goal, by what all measurements say together, not by its own."""
        model = self._model
        met = [(takes, keep) for keep, _ in self.measured.values() if model and (takes := model.foretold(keep)) <= goal]
        return max(met, key=lambda one: one[0])[1] if met else None


def reach_latency(latencies: Latencies, choose: Callable[[float], Kept], floor: Kept, goal: float, sure: bool) -> Kept:
    """The units of the widest network that meets ``goal``; where no measurement says so surely, of one that probably does; else ``floor``.

    Args:
        choose: what stays at a foretold latency. floor: the least that can stay.
        sure: whether the network that is taken is to meet the goal when it is measured again, in as many rounds as there may be.
    """
    if latencies.of(floor).high > goal:
        return floor
    aim = goal
    for _ in range(MOST):
        keep = choose(aim) if latencies.foretold(floor) < aim else floor
        known, found = latencies.knows(keep), latencies.of(keep)
        if found.high > goal:
            aim *= goal / found.high if known else 1.0
        elif (known or found.high > CLOSE * goal) and (not sure or latencies.again(keep, MOST_LAUNCHES).high <= goal):
            return keep
    return latencies.best(goal) or floor


def _widths(keep: Kept) -> tuple[int, ...]:
    return tuple(map(len, keep.values()))
