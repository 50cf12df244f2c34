"""Scores against sums by hand, choices against rankings by hand, and goals against the cost of the cut network."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.artifacts.cost import count_cost
from compress.channels.choose import Choice, at_floor, choose, choose_for, macs_after, size_after
from compress.channels.cut import remove_channels
from compress.channels.find import channel_groups
from compress.channels.groups import Groups
from compress.channels.scores import importance
from compress.errors import CompressError
from compress.models import k49

IMAGE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def two_groups() -> tuple[nn.Sequential, Groups]:
    """Groups "0" of width 4 and "3" of width 2."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1))
    return network, channel_groups(network, IMAGE)


def scores(**of: list[float]) -> dict[str, Tensor]:
    return {name.strip("_"): torch.tensor(values) for name, values in of.items()}


def test_l2_by_hand() -> None:
    """Rows of the maker and columns of the reader, 3-4-5 triangles, divided by the mean of the group; biases do not count."""
    network, groups = two_groups()
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([3.0, 0.0, 0.0, 6.0]).view(4, 1, 1, 1))
        network[3].weight.copy_(torch.tensor([[4.0, 1.0, 0.0, 8.0], [0.0, 0.0, 0.0, 0.0]]).view(2, 4, 1, 1))
    assert importance(network, groups)["0"].tolist() == pytest.approx([5 / 4, 1 / 4, 0, 10 / 4])


def test_l2_of_matrices_by_hand() -> None:
    """Two units: rows (3, 0) and (0, 5) of one matrix, columns (4, 0, 0) and (0, 12, 0) of the next; norms 5 and 13, their mean 9."""
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
        network[2].weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 12.0], [0.0, 0.0]]))
    [found] = importance(network, channel_groups(network, torch.rand(2, 2))).values()
    assert found.tolist() == pytest.approx([5 / 9, 13 / 9])


def test_a_batch_norm_of_pixels_counts_as_much_as_one_of_channels() -> None:
    """Scales 1 and 3 of two channels, then 2 and 3 on average of the four pixels of each: (1 + 2) / 2 and (3 + 3) / 2, mean 2.25."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, 3.0]))
        network[4].weight.copy_(torch.tensor([1.0, 3, 2, 2, 2, 3, 3, 4]))
    [found] = importance(network, channel_groups(network, torch.rand(2, 1, 2, 2)), "bn").values()
    assert found.tolist() == pytest.approx([1.5 / 2.25, 3 / 2.25])


def test_one_score_that_is_not_finite_is_enough_to_refuse() -> None:
    network, groups = two_groups()
    factor = torch.ones_like(network[3].weight)
    factor[0, 2] = math.inf
    with pytest.raises(CompressError, match=r'importance \(="taylor"\) of "0" is not finite'):
        importance(network, groups, "taylor", [(network[3].weight * factor).sum()])


def test_bn_by_hand_and_l2_where_there_is_none() -> None:
    network, groups = two_groups()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([1.0, -2.0, 3.0, 2.0]))
    found = importance(network, groups, "bn")
    assert found["0"].tolist() == pytest.approx([0.5, 1, 1.5, 1])
    assert torch.equal(found["3"], importance(network, groups)["3"])


def test_fluctuation_by_hand() -> None:
    """Over all places of both batches, of 1 and 2 images, channel 0 gives 0 to 3, channel 1 twice that; read by 4 and 1, a constant by 5.

    Variances 1.25 and 5 and 0: the roots of 16 * 1.25, 1 * 5 and 25 * 0, that is twice the root of 5, the root of 5 and nothing.
    """
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 1, 1)).requires_grad_(False)
    network[0].weight[:, 0, 0, 0], network[0].bias[:] = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 7.0])
    network[2].weight[0, :, 0, 0] = torch.tensor([4.0, 1.0, 5.0])
    images = torch.tensor([[0.0, 1, 2, 3], [0, 0, 1, 1], [2, 2, 3, 3]]).view(3, 1, 2, 2)
    groups = channel_groups(network, images)
    [found] = importance(network, groups, "fluctuation", (network(batch).mean() for batch in (images[:1], images[1:]))).values()
    assert found.tolist() == pytest.approx([2, 1, 0], abs=1e-5)
    assert not any(module._forward_pre_hooks for module in network)


def test_bn_fluctuation_is_the_geometric_mean_of_both() -> None:
    network, groups = two_groups()
    bn, both = importance(network, groups, "bn"), importance(network, groups, "bn-fluctuation", iter([network(IMAGE).sum()]))
    fluctuation = importance(network, groups, "fluctuation", iter([network(IMAGE).sum()]))
    assert both.keys() == {"0", "3"}
    for name, scores in both.items():
        assert scores.square().tolist() == pytest.approx((bn[name] * fluctuation[name]).tolist())


def test_fluctuation_is_l2_where_no_module_reads_the_channels() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A, self.weight = nn.Conv2d(1, 4, 1), nn.Parameter(torch.randn(2, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return functional.conv2d(self.A(x).relu(), self.weight).mean((2, 3))

    network = Net()
    groups = channel_groups(network, IMAGE)
    assert torch.equal(
        importance(network, groups, "fluctuation", iter([network(IMAGE).sum()]))["A"], importance(network, groups, "l2")["A"]
    )


def test_taylor_is_the_derivative_of_the_loss_by_the_contribution() -> None:
    """Truth: a factor on each channel before the layer that reads it, differentiated by torch; squared and summed over batches."""
    network, groups = two_groups()
    network.eval()
    batches = [torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4)]
    wanted = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        factor = torch.ones(1, 4, 1, 1, requires_grad=True)
        network[3:](factor * network[:3](batch)).square().sum().backward()
        assert factor.grad is not None
        wanted += factor.grad.flatten().double().square()
    network.zero_grad()
    network[0].weight.grad = (mine := torch.ones(4, 1, 1, 1))
    found = importance(network, groups, "taylor", (network(batch).square().sum() for batch in batches))
    assert torch.allclose(found["0"], wanted, rtol=1e-4)
    assert network[0].weight.grad is mine and network[3].weight.grad is None


@pytest.mark.parametrize(
    ("sparsity", "how", "kept"),
    [
        (0.5, Choice(), {"0": (2, 3), "3": (1,)}),
        (1 / 3, Choice(), {"0": (2, 3), "3": (0, 1)}),
        (0.5, Choice(floor=0.75), {"0": (1, 2, 3), "3": (0, 1)}),
        (0.5, Choice(scope="group"), {"0": (2, 3), "3": (1,)}),
        (0.25, Choice(scope="group"), {"0": (1, 2, 3), "3": (0, 1)}),
        (1 / 3, Choice(round_to=4), {"0": (0, 1, 2, 3), "3": (0, 1)}),
        (0.5, Choice(round_to=2), {"0": (2, 3), "3": (0, 1)}),
        (0.01, Choice(), {"0": (0, 1, 2, 3), "3": (0, 1)}),
    ],
)
def test_choices_by_hand(sparsity: float, how: Choice, kept: dict[str, tuple[int, ...]]) -> None:
    """Scores 1 2 4 6 and 3 5: the lowest go first, down to the floor, and what is left is rounded."""
    if how.floor == 0.75:
        sparsity = 1 / 6
    _, groups = two_groups()
    assert choose(groups, scores(_0=[1, 2, 4, 6], _3=[3, 5]), sparsity, how) == kept


def test_equal_scores_go_in_order() -> None:
    _, groups = two_groups()
    assert choose(groups, scores(_0=[1, 1, 1, 1], _3=[1, 1]), 0.34) == {"0": (2, 3), "3": (0, 1)}


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (Choice(floor=0.5), {"0": (2, 3), "3": (1,)}),
        (Choice(floor=0), {"0": (3,), "3": (1,)}),
        (Choice(floor=0.5, round_to=4), {"0": (0, 1, 2, 3), "3": (0, 1)}),
        (Choice(floor=0.375, original={"0": 8}), {"0": (1, 2, 3), "3": (1,)}),
    ],
)
def test_floors_by_hand(how: Choice, kept: dict[str, tuple[int, ...]]) -> None:
    """Of 4 and 2 units: half, never less than one, rounded, and 3 of the 8 that there were before earlier steps."""
    _, groups = two_groups()
    assert at_floor(groups, scores(_0=[1, 2, 4, 6], _3=[3, 5]), how) == kept
    with pytest.raises(CompressError, match='scores: "0" needs 4 finite numbers'):
        at_floor(groups, {}, how)


def test_size_after_by_hand() -> None:
    """Convolutions of 2 + 2, 2 + 1 and 3 + 3 weights and biases, a batch norm of 2 + 2; of 8, 10, 9 and 8."""
    network, groups = two_groups()
    keep = {"0": (2, 3), "3": (1,)}
    assert (size_after(network, groups, keep), size_after(network, groups, groups.everything)) == (17, 35)
    assert sum(parameter.numel() for parameter in remove_channels(network, groups, keep).parameters()) == 17


@pytest.mark.parametrize("sparsity", [0, 1, 1.2, -0.5, math.nan, math.inf])
def test_a_sparsity_outside_is_refused(sparsity: float) -> None:
    _, groups = two_groups()
    with pytest.raises(CompressError, match=rf"sparsity \(={sparsity}\) must lie in \(0, 1\); 0\.5 removes half of the channels"):
        choose(groups, scores(_0=[1, 1, 1, 1], _3=[1, 1]), sparsity)


def test_a_sparsity_that_cannot_be_reached_names_the_nearest() -> None:
    _, groups = two_groups()
    ranked = scores(_0=[1, 2, 4, 6], _3=[3, 5])
    with pytest.raises(CompressError, match=r"sparsity \(=0\.9\) cannot be reached: with floor 0\.1 at most 0\.6666 of the 6 channels"):
        choose(groups, ranked, 0.9)
    assert choose(groups, ranked, 0.6666) == {"0": (3,), "3": (1,)}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scope": "all"}, r'scope \(="all"\) must be "global"'),
        ({"round_to": 0}, r"round_to \(=0\) must be at least 1"),
        ({"floor": 1.0}, r"floor \(=1\.0\) must lie in \[0, 1\)"),
        ({"floor": math.nan}, r"floor \(=nan\) must lie"),
    ],
)
def test_bad_choices_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(CompressError, match=told):
        Choice(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [{}, {"0": torch.ones(3)}, {"0": torch.tensor([1.0, 1, 1, math.nan])}])
def test_bad_scores_are_refused(given: dict[str, Tensor]) -> None:
    _, groups = two_groups()
    with pytest.raises(CompressError, match='scores: "0" needs 4 finite numbers'):
        choose(groups, given, 0.5)


def test_bad_importance_is_refused() -> None:
    network, groups = two_groups()
    with pytest.raises(CompressError, match=r'importance \(="size"\) must be one of l2, bn, taylor'):
        importance(network, groups, "size")
    with pytest.raises(CompressError, match="needs losses"):
        importance(network, groups, "taylor")
    with pytest.raises(CompressError, match="needs losses"):
        importance(network, groups, "fluctuation")
    with torch.no_grad():
        network[0].weight[2] = math.nan
    with pytest.raises(CompressError, match='of "0" is not finite'):
        importance(network, groups)


def test_a_network_without_removable_channels_is_told() -> None:
    groups = channel_groups(nn.Sequential(nn.Conv2d(1, 4, 3)), IMAGE)
    with pytest.raises(CompressError, match="no channels that can be removed"):
        choose(groups, {}, 0.5)


@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_a_goal_in_macs_is_met_closely(scope: str, round_to: int) -> None:
    """Truth: the MACs of the network that was cut, counted while it runs."""
    torch.manual_seed(0)
    network = k49.make(10, widths=(16, 32), depths=(1, 1))
    image = torch.rand(2, 1, 16, 16)
    groups = channel_groups(network, image)
    ranked, before = importance(network, groups), count_cost(network, image).macs
    keep = choose_for(groups, ranked, lambda k: macs_after(groups, k), 0.5 * before, Choice(scope=scope, round_to=round_to))
    pruned = remove_channels(network, groups, keep)
    after = count_cost(pruned, image).macs
    assert after == macs_after(groups, keep)
    assert (0.45 if round_to == 1 else 0.3) * before < after <= 0.5 * before
    for group in groups:  # what rounding left to spend was spent
        wider = keep[group.name] + tuple(unit for unit in range(group.width) if unit not in keep[group.name])[:round_to]
        assert len(keep[group.name]) == group.width or macs_after(groups, keep | {group.name: tuple(sorted(wider))}) > 0.5 * before
    assert all(len(units) % round_to == 0 or len(units) == groups.by_name[name].width for name, units in keep.items())


def test_what_rounding_left_to_spend_goes_to_the_best_next_units_first() -> None:
    """A unit costs one, and 13 may stay. Four of each group do, both being rounded alike; what is left buys four more of one of them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 12, 1), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU(), nn.Conv2d(12, 3, 1))
    groups = channel_groups(network, IMAGE)
    ranked = {"0": torch.arange(12.0), "2": torch.arange(12.0) + 0.5}
    how = Choice(scope="group", round_to=4, floor=0)
    for best, other in (("0", "2"), ("2", "0")):
        bonus = ranked | {best: ranked[best] + 100}
        keep = choose_for(groups, bonus, lambda kept: sum(map(len, kept.values())), 13, how)
        assert {name: len(units) for name, units in keep.items()} == {best: 8, other: 4}


def test_a_goal_that_is_met_already_keeps_everything() -> None:
    network, groups = two_groups()
    keep = choose_for(groups, importance(network, groups), lambda k: macs_after(groups, k), 1e9)
    assert keep == {"0": (0, 1, 2, 3), "3": (0, 1)}


def test_a_goal_may_be_a_fraction() -> None:
    network, groups = two_groups()
    ranked = importance(network, groups)
    whole = choose_for(groups, ranked, lambda k: macs_after(groups, k), 576)
    assert choose_for(groups, ranked, lambda k: macs_after(groups, k) / 1152, 0.5) == whole != groups.everything


@pytest.mark.parametrize("goal", [0, -1, math.nan, math.inf])
def test_a_goal_that_is_no_amount_is_refused(goal: float) -> None:
    network, groups = two_groups()
    with pytest.raises(CompressError, match=rf"goal \(={goal}\) must be a positive number"):
        choose_for(groups, importance(network, groups), lambda k: macs_after(groups, k), goal)


def test_a_goal_that_cannot_be_reached_names_the_nearest() -> None:
    """One channel in each layer: 64 pixels of 1 + 1 + 3 MACs, of 64 * (4 + 8 + 6)."""
    network, groups = two_groups()
    with pytest.raises(
        CompressError,
        match=r"goal \(=64\) cannot be reached: with every group at its floor \(0\.1\) 320 of 1152 is left, 0\.278x; ask for that",
    ):
        choose_for(groups, importance(network, groups), lambda k: macs_after(groups, k), 64)
    assert choose_for(groups, importance(network, groups), lambda k: macs_after(groups, k), 320)


def test_what_no_layer_reads_is_not_differentiated_and_gradients_are_as_before() -> None:
    """The scores are those of plain gradients: w times its gradient, over the weights that read a unit, squared."""
    network, groups = two_groups()
    network[0].bias.requires_grad_(False)
    seen: list[list[bool]] = []

    def losses() -> Iterator[Tensor]:
        for _ in range(2):
            seen.append([one.requires_grad for one in network.parameters()])
            yield network(IMAGE).square().mean()

    found = importance(network, groups, "taylor", losses())
    assert seen == [[name in ("3.weight", "5.weight") for name, _ in network.named_parameters()]] * 2
    assert [one.requires_grad for one in network.parameters()] == [name != "0.bias" for name, _ in network.named_parameters()]
    assert all(one.grad is None for one in network.parameters())
    network(IMAGE).square().mean().backward()
    gradient = network[3].weight.grad
    assert gradient is not None
    by_hand = 2 * (network[3].weight * gradient).detach().double().sum((0, 2, 3)).square()
    assert torch.allclose(found["0"], by_hand)
