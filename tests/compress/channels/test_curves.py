"""Curves against networks of which it is known which part carries everything, interpolation and choices against values by hand."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from compress.channels.bypass import bypassable
from compress.channels.choose import Choice, Kept, macs_after
from compress.channels.curves import (
    Curve,
    Point,
    Score,
    channel_curves,
    choose_by_curves,
    loss_rises,
    module_curves,
    sparsities_for,
    weight_curves,
)
from compress.channels.find import channel_groups
from compress.channels.groups import Groups
from compress.channels.scores import importance
from compress.errors import CompressError

IMAGE = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Reads the sign of a pixel by the branch ``signal``; ``noise``, whose output is multiplied by zero, adds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.signal, self.noise, self.head = nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False)
        with torch.no_grad():
            self.signal.weight.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]).view(4, 1, 1, 1))
            self.head.weight.zero_()
            self.head.weight[0, :4] = 1.0
            self.head.weight[1, :4] = -1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.signal(x), self.noise(x)], 1)).mean((2, 3))


def strength(network: nn.Module) -> Score:
    """In place of a loss the first logit of an image of ones, negative: 15 channels times pixel for the whole ``Two``."""
    with torch.no_grad():
        return Score(balanced_accuracy=0.0, cross_entropy=-float(network(torch.ones(1, 1, 4, 4))[0, 0]))


class Seen:
    """A progress that is checked for going from 0 up to its total."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, name: str, done: int, total: int) -> None:
        assert done == len(self.calls) < total
        self.calls.append((name, done, total))


def rises(network: nn.Module, curves: list[Curve]) -> dict[str, dict[float, float]]:
    return loss_rises(strength(network), curves)


def test_weights_of_one_layer_alone_and_the_network_stays_as_it_is() -> None:
    """By hand: of 1 2 4 8 the smallest quarter is 1, half is 1 and 2, and so on; the largest always stays; noise costs nothing."""
    network, seen = Two(), Seen()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    curves = list(weight_curves(network, (0.25, 0.5, 0.9), strength, seen))
    assert rises(network, curves)["signal"] == pytest.approx({0.25: 1.0, 0.5: 3.0, 0.75: 7.0})
    assert rises(network, curves)["noise"] == {0.25: 0, 0.5: 0, 0.75: 0}
    assert [(curve.name, curve.size) for curve in curves] == [("signal", 4), ("noise", 4), ("head", 16)]
    assert len(seen.calls) == 9 and seen.calls[-1] == ("head.weight", 8, 9)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_channels_are_removed_not_zeroed_and_equal_widths_are_measured_once() -> None:
    network = Two()
    groups, seen, widths = channel_groups(network, IMAGE), Seen(), []

    def measure(pruned: nn.Module) -> Score:
        assert isinstance(pruned.signal, nn.Conv2d)
        widths.append(len(pruned.signal.weight))
        return strength(pruned)

    scores = {"signal": torch.tensor([1.0, 2, 4, 8]), "noise": torch.ones(4)}
    curves = list(channel_curves(network, groups, scores, (0.1, 0.5, 0.75, 0.9), measure, seen))
    assert rises(network, curves)["signal"] == pytest.approx({0.0: 0.0, 0.5: 3.0, 0.75: 7.0})
    assert rises(network, curves)["noise"] == pytest.approx({0.0: 0, 0.5: 0, 0.75: 0})
    assert [point.removed for point in curves[0].points] == [0, 2, 3, 3]
    assert widths == [4, 2, 1, 4, 4, 4] and len(seen.calls) == 8


def test_modules_are_left_out_one_by_one() -> None:
    """By hand: 1 goes through 2x, 3x, 5x and comes out as 30; without them as 15, 10, 6."""
    layers = [nn.Conv2d(1, 1, 1, bias=False) for _ in range(3)]
    network = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        for layer, value in zip(layers, (2.0, 3.0, 5.0), strict=True):
            layer.weight.fill_(value)
    names = bypassable(network, IMAGE)
    curves = list(module_curves(network, names, strength, Seen()))
    assert rises(network, curves) == {"0": {1.0: 15.0}, "1": {1.0: 20.0}, "2": {1.0: 24.0}}
    assert isinstance(network[0], nn.Conv2d)


CURVES = {"A": {0.5: 0.1, 0.9: 0.5}, "B": {0.25: 0.0, 0.5: -0.3, 0.75: 0.4}, "C": {0.5: 1.0, 0.75: 0.2, 0.9: 2.0}}


@pytest.mark.parametrize(
    ("drop", "wanted"),
    [
        (0.0, {"A": 0.0, "B": 0.5, "C": 0.0}),
        (0.05, {"A": 0.25, "B": 0.5 + 0.25 / 8, "C": 0.025}),
        (0.3, {"A": 0.7, "B": 0.6875, "C": 0.15}),
        (1.0, {"A": 0.9, "B": 0.75, "C": 0.75}),
        (1.5, {"A": 0.9, "B": 0.75, "C": 0.825}),
        (9.0, {"A": 0.9, "B": 0.75, "C": 0.9}),
    ],
)
def test_sparsities_between_the_points_by_hand(drop: float, wanted: dict[str, float]) -> None:
    """A at 0.3: half way from (0.5, 0.1) to (0.9, 0.5). C does not fall from 1.0 to 0.2: it counts as 1.0 up to 0.75."""
    assert sparsities_for(CURVES, drop) == pytest.approx(wanted)


def test_rise_is_that_over_the_baseline_by_what_was_removed() -> None:
    base, worse = Score(balanced_accuracy=0.9, cross_entropy=0.5), Score(balanced_accuracy=0.8, cross_entropy=0.75)
    curve = Curve(name="a", size=3, points=(Point(sparsity=0.25, removed=1, score=worse), Point(sparsity=0.3, removed=1, score=worse)))
    assert loss_rises(base, [curve]) == {"a": {1 / 3: 0.25}}


def two_groups() -> tuple[Groups, Mapping[str, Tensor]]:
    """Groups "0" and "1" of width 8 in a row: at widths a and b they take a + a b + 2 b MACs for each of 16 pixels."""
    network = nn.Sequential(nn.Conv2d(1, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False))
    groups = channel_groups(network, IMAGE)
    return groups, importance(network, groups)


def test_the_group_that_bears_more_gives_more() -> None:
    """By hand: "0" loses nothing up to 3/4, "1" as much as its sparsity; 2 + 16 + 16 = 34 MACs a pixel at widths 2 and 8."""
    groups, scores = two_groups()
    curves = {"0": {0.75: 0.0}, "1": {0.75: 0.75}}

    def cost(keep: Kept) -> int:
        return macs_after(groups, keep)

    free = choose_by_curves(groups, scores, curves, cost, 34 * 16, Choice(floor=0.1))
    assert (len(free["0"]), len(free["1"])) == (2, 8)
    more = choose_by_curves(groups, scores, curves, cost, 30 * 16, Choice(floor=0.1))
    assert (len(more["0"]), len(more["1"])) == (2, 7)
    assert more["1"] == tuple(sorted(scores["1"].argsort()[1:].tolist()))


def test_a_loss_of_nothing_is_shared_and_no_more_goes_than_is_asked_for() -> None:
    groups, scores = two_groups()
    curves = {"0": {0.75: -0.1}, "1": {0.75: 0.0}}
    keep = choose_by_curves(groups, scores, curves, lambda keep: macs_after(groups, keep), 60 * 16)
    assert (len(keep["0"]), len(keep["1"])) == (6, 6)  # 54 MACs a pixel; 7 and 7 have 70
    whole = choose_by_curves(groups, scores, curves, lambda keep: macs_after(groups, keep), 88 * 16)
    assert whole == {"0": tuple(range(8)), "1": tuple(range(8))}


def test_floor_and_rounding_hold() -> None:
    groups, scores = two_groups()
    curves = {"0": {0.9: 0.0}, "1": {0.9: 0.0}}
    keep = choose_by_curves(groups, scores, curves, lambda keep: macs_after(groups, keep), 32 * 16, Choice(floor=0.5, round_to=4))
    assert (len(keep["0"]), len(keep["1"])) == (4, 4)


@pytest.mark.parametrize(
    ("curves", "goal", "floor", "told"),
    [
        (
            {"0": {0.75: 0.0}, "1": {0.75: 0.5}},
            9.0,
            0.1,
            r"^goal \(=9\) cannot be reached: .* floor \(0\.1\) 10 of 88 is left, 0\.114x",
        ),
        ({"0": {0.9: 0.0}, "1": {0.9: 0.5}}, 9.0, 0.5, r"floor \(0\.5\) 28 of 88 is left, 0\.319x; ask for that, measure larger"),
        ({"0": {0.9: 0.0}}, 60.0, 0.1, r'^curves: "1" was not measured; run `compress sensitivity --granularity channel`'),
        ({"0": {0.9: 0.0}, "1": {0.9: 0.5}}, math.nan, 0.1, r"^goal \(=nan\) must be a positive number, in the unit of the cost$"),
        ({"0": {0.9: 0.0}, "1": {0.9: 0.5}}, 0.0, 0.1, r"^goal \(=0\.0\) must be a positive number"),
    ],
)
def test_what_cannot_be_chosen(curves: dict[str, dict[float, float]], goal: float, floor: float, told: str) -> None:
    groups, scores = two_groups()
    with pytest.raises(CompressError, match=told):
        choose_by_curves(groups, scores, curves, lambda keep: macs_after(groups, keep) / 16, goal, Choice(floor=floor))


def test_a_network_without_groups_is_told() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(CompressError, match=r"^network has no channels that can be removed"):
        next(channel_curves(network, channel_groups(network, IMAGE), {}, (0.5,), strength, Seen()))
