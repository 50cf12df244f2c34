"""A goal in latency, on networks whose latency is known by hand: what is foretold, what is measured, and what is taken."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from compress.benchmarks.statistics import Interval
from compress.channels.choose import Choice, Kept, choose_for
from compress.channels.find import channel_groups
from compress.channels.groups import Groups
from compress.stages.boards.latency_table import LatencyTable, Timed
from compress.stages.boards.layer_kinds import weighted
from compress.stages.removal.latency import MOST, Latencies, WidthModel, reach_latency


def exactly(value: float, off: float = 0.0) -> Interval:
    return Interval(value=value, low=value * (1 - off), high=value * (1 + off))


@pytest.fixture(scope="module")
def groups() -> Groups:
    """Convolutions of 3 to 16 to 32 to 64 channels and a linear layer: three groups."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return channel_groups(nn.Sequential(*layers, nn.Linear(64, 10)), torch.rand(2, 3, 12, 12))


def units(*widths: int) -> Kept:
    return {name: tuple(range(width)) for name, width in zip(("0", "2", "4"), widths, strict=True)}


def machine(*parts: float) -> Callable[[Kept], float]:
    """A machine that takes these parts of the time for what stays and for each of the four layers."""

    def takes(keep: Kept) -> float:
        a, b, c = (len(keep[name]) / width for name, width in (("0", 16), ("2", 32), ("4", 64)))
        return float(np.dot(parts, [1, a, a * b, b * c, c]))

    return takes


def test_what_the_layers_take_is_found_from_as_many_networks(groups: Groups) -> None:
    """By hand: halves of all widths leave 0.3 + 0.2 / 2 + 0.1 / 4 + 0.3 / 4 + 0.1 / 2 = 0.55."""
    takes, model = machine(0.3, 0.2, 0.1, 0.3, 0.1), WidthModel(groups, 1.0)
    known = [units(16, 32, 64), units(8, 32, 64), units(16, 16, 64), units(16, 32, 32), units(4, 8, 8), units(1, 32, 1)]
    for keep in known:
        model.learn(keep, exactly(takes(keep)))
    assert takes(units(8, 16, 32)) == pytest.approx(0.55)
    assert model.foretold(units(8, 16, 32)) == pytest.approx(0.55, abs=0.01)


def test_before_anything_is_known_it_shrinks_with_the_network(groups: Groups) -> None:
    model = WidthModel(groups, 0.8)
    assert model.foretold(groups.everything) == pytest.approx(0.8)
    assert 0.08 < model.foretold(units(1, 1, 1)) < 0.15 and 0.25 < model.foretold(units(8, 16, 32)) < 0.4


def test_the_machines_table_says_what_layers_share_before_anything_is_known(groups: Groups) -> None:
    """A table in which a matrix product costs ten times what all convolutions do: half of its inputs are half of nearly everything."""
    costs = {"conv": 1e-12, "matmul": 1e-6}
    timed = [Timed(kind=layer.kind, weight=layer.weight, positions=layer.positions, seconds=costs[layer.kind] * 2 * layer.macs)
             for layer in (weighted((8, 8, 3, 3), 4), weighted((16, 16, 3, 3), 9), weighted((8, 8), 1), weighted((24, 16), 1))]  # fmt: skip
    table = LatencyTable(created="2026-01-02T03:04:05+00:00", machine={}, overhead=1e-6, layers=tuple(timed))
    model = WidthModel(groups, 1.0, table)
    assert model.foretold(groups.everything) == pytest.approx(1.0)
    assert model.foretold(units(8, 32, 64)) == pytest.approx(1.0, abs=0.01)
    assert model.foretold(units(16, 32, 32)) == pytest.approx(0.1 + 0.9 / 2, abs=0.02)


@pytest.mark.parametrize("seed", range(8))
def test_a_goal_is_met_closely_by_timing_few(groups: Groups, seed: int) -> None:
    """Machines whose layers take anything, not what their MACs say; 0.5% of noise, and the truth of what comes out is asked."""
    generator = np.random.default_rng(seed)
    takes, goal = machine(*generator.dirichlet([1, 1, 1, 1, 1])), 0.6
    latencies = Latencies(groups, lambda keep, rounds: exactly(takes(keep) * (1 + 0.005 * generator.standard_normal()), 0.01))
    scores = {group.name: torch.from_numpy(generator.random(group.width)) for group in groups}
    kept = reach_latency(
        latencies, lambda aim: choose_for(groups, scores, latencies.foretold, aim, Choice(floor=0.05)), units(1, 2, 4), goal, True
    )
    least = takes(units(1, 2, 4))
    if least < 0.98 * goal:
        assert 0.93 * goal < takes(kept) <= goal, "a channel of the first layer is up to a sixteenth"
    else:
        assert kept == units(1, 2, 4)
    assert len(latencies.measured) <= 10, "two dozen, were every step of the bisection measured"


def test_what_was_measured_is_measured_again_only_to_be_sure(groups: Groups) -> None:
    takes, asked = machine(0.2, 0.2, 0.2, 0.2, 0.2), list[tuple[int, int | None]]()

    def measure(keep: Kept, rounds: int | None) -> Interval:
        asked.append((sum(map(len, keep.values())), rounds))
        return exactly(takes(keep))

    scores = {group.name: torch.arange(group.width, dtype=torch.float64) for group in groups}
    for sure in (False, True):
        asked.clear()
        latencies = Latencies(groups, measure)
        kept = reach_latency(latencies, lambda aim: choose_for(groups, scores, latencies.foretold, aim), units(2, 4, 7), 0.7, sure)  # noqa: B023
        assert takes(kept) <= 0.7 and [rounds for _, rounds in asked if rounds] == [30] * sure
        assert len({size for size, rounds in asked if rounds is None}) == len([size for size, rounds in asked if rounds is None])


def test_a_goal_below_the_floor_leaves_the_floor_and_measures_nothing_else(groups: Groups) -> None:
    latencies = Latencies(groups, lambda keep, rounds: exactly(1.0))
    assert reach_latency(latencies, pytest.fail, units(2, 4, 7), 0.5, True) == units(2, 4, 7)
    assert list(latencies.measured) == [(2, 4, 7)]


def test_the_search_ends_where_no_measurement_agrees_with_another(groups: Groups) -> None:
    """A machine that takes anything: what once met the goal is what is left."""
    generator = np.random.default_rng(0)
    latencies = Latencies(groups, lambda keep, rounds: exactly(generator.uniform(0.2, 1.2), 0.3))
    scores = {group.name: torch.arange(group.width, dtype=torch.float64) for group in groups}
    kept = reach_latency(latencies, lambda aim: choose_for(groups, scores, latencies.foretold, max(aim, 0.3)), units(2, 4, 7), 0.5, True)
    assert len(latencies.measured) <= MOST + 2 and kept in [units(2, 4, 7), latencies.best(0.5)]


def test_where_no_interval_is_narrow_enough_the_one_that_probably_meets_the_goal_is_left_not_the_floor(groups: Groups) -> None:
    """Half of the time is noise, so that no upper end lies below the goal: a network near it all the same."""
    generator, takes = np.random.default_rng(1), machine(0.1, 0.2, 0.3, 0.3, 0.1)
    latencies = Latencies(groups, lambda keep, rounds: exactly(takes(keep) * (1 + 0.02 * generator.standard_normal()), 0.6))
    scores = {group.name: torch.arange(group.width, dtype=torch.float64) for group in groups}
    kept = reach_latency(latencies, lambda aim: choose_for(groups, scores, latencies.foretold, max(aim, 0.2)), units(2, 4, 7), 0.5, True)
    assert 0.3 < takes(kept) <= 0.52
