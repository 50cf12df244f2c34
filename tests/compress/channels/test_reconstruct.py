"""Reconstruction against what is known exactly: channels that are linear in others, and networks of which nothing goes."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.channels.bypass import bypass
from compress.channels.cut import remove_channels
from compress.channels.find import channel_groups
from compress.channels.reconstruct import reconstruct, repair
from compress.models.k49 import make
from compress.pruning import layerwise as module
from compress.pruning import layerwise as reconstruction
from compress.pruning.passes import held_at_layers
from compress.pruning.repair import reestimate

IMAGES = torch.rand(240, 2, 10, 10, generator=torch.Generator().manual_seed(0))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """With weights, and statistics of batch norms, that are all drawn at random."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build().eval()
        for name, value in network.state_dict().items():
            if "running" in name:
                value.copy_(torch.rand(value.shape) * 0.1 + (0.5 if "var" in name else 0))
    return network


def doubled(network: nn.Module) -> nn.Module:
    """Channel 3 of the first layer is twice channel 1, and what follows each by itself treats both alike."""
    with torch.no_grad():
        first = network[0]  # type: ignore[index]
        first.weight[3], first.bias[3] = 2 * first.weight[1], 2 * first.bias[1]
    return network


def difference(one: nn.Module, other: nn.Module, images: Tensor = IMAGES) -> float:
    with torch.no_grad():
        return float((one(images) - other(images)).abs().max())


def head() -> tuple[nn.Module, ...]:
    return nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)


@pytest.mark.parametrize(
    "reader",
    [
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
        lambda: nn.Conv2d(4, 6, 3, dilation=2, padding="same", padding_mode="reflect", bias=False),
        lambda: nn.Conv2d(4, 6, (1, 3), padding=(0, 1)),
    ],
)
def test_channels_that_are_linear_in_kept_ones_are_made_up_for_exactly(reader: Callable[[], nn.Module]) -> None:
    """By hand: the reader's weights of channel 3, twice over, go to those of channel 1."""
    network = doubled(seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), reader(), *head())))
    groups = channel_groups(network, IMAGES[:2])
    keep = {"0": (0, 1, 2)}
    pruned = remove_channels(network, groups, keep)
    solved = reconstruct(network, pruned, groups, keep, IMAGES)
    assert difference(pruned, network) > 0.01
    assert difference(solved.network, network) < 1e-5
    weight = network[2].weight.detach()  # type: ignore[index]
    wanted = weight[:, :3].clone()
    wanted[:, 1] += 2 * weight[:, 3]
    torch.testing.assert_close(solved.network[2].weight, wanted, rtol=1e-4, atol=1e-4)  # type: ignore[index]
    assert solved.layers["2"][0] > 1e-3 > 1e-6 > solved.layers["2"][1] and "0" not in solved.layers
    assert torch.equal(solved.network[0].weight, pruned[0].weight)  # type: ignore[index]


def test_an_offset_goes_into_the_batch_norm_that_reads_it() -> None:
    """Channel 3 is always 0.7 where it is removed: a convolution without bias can say so nowhere else."""
    network = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), *head()))
    with torch.no_grad():
        network[0].weight[3], network[0].bias[3] = 0, 0.7  # type: ignore[index]
    groups = channel_groups(network, IMAGES[:2])
    keep = {"0": (0, 1, 2)}
    solved = reconstruct(network, remove_channels(network, groups, keep), groups, keep, IMAGES)
    assert difference(solved.network, network) < 1e-5
    moved = network[3].running_mean - 0.7 * network[2].weight[:, 3, 0, 0]  # type: ignore[index]
    torch.testing.assert_close(solved.network[3].running_mean, moved.detach(), rtol=1e-4, atol=1e-4)  # type: ignore[index]


def test_images_in_chunks_give_what_they_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = doubled(seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), *head())))
    groups = channel_groups(network, IMAGES[:2])
    keep = {"0": (0, 1, 2), "2": (0, 2, 3, 5)}
    pruned = remove_channels(network, groups, keep)
    monkeypatch.setattr(module, "PLACES", 10**6)  # all of them, so that it does not matter which are drawn
    whole = reconstruct(network, pruned, groups, keep, IMAGES).network
    seen: list[int] = []
    monkeypatch.setattr(module, "ROOM", 8 * 4 * 4 * 64 * 40)  # of forty images

    def prepare(images: Tensor) -> Tensor:
        seen.append(len(images))
        return images

    chunked = reconstruct(network, pruned, groups, keep, IMAGES, prepare=prepare).network
    assert max(seen) == 40 and difference(whole, network) > 0.001
    assert difference(chunked, whole) < 0.05 * difference(whole, pruned)
    through = [count for count in seen if count > 2]  # two images are looked at first
    assert through.count(40) == 6, "each of six chunks goes once through the cut network, side by side"
    assert sum(through) == 2 * 240, "and once through the other, a few parts at a time"


def test_targets_of_a_few_layers_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few, the weights are the same. By hand: of six convolutions each gives 3 channels at 64 places of 240 images, 184,320 bytes,
    and the linear layer 3 numbers of each: in two parts of 554,400 bytes on average these are four and three layers."""
    network = seeded(
        lambda: nn.Sequential(*(nn.Conv2d(4 if at else 2, 4, 3, padding=1) for at in range(6)), nn.Flatten(), nn.Linear(400, 3))
    )
    groups = channel_groups(network, IMAGES[:2])
    keep = {group.name: (0, 1, 2) for group in groups}
    pruned, most = remove_channels(network, groups, keep), list[int]()
    monkeypatch.setattr(module, "PLACES", 240 * 64)
    monkeypatch.setattr(module, "ROOM", 8 * 4 * 4 * 100 * 40)  # six chunks
    note = module._Run._note_targets

    def noted(run: Any, *how: Any) -> None:
        note(run, *how)
        held = sum(part.nbytes for layer in run.pending.values() for [rows] in filter(None, layer.targets.values()) for part in rows)
        most[-1] = max(most[-1], held)

    monkeypatch.setattr(module._Run, "_note_targets", noted)
    found, one, last = [], 240 * 64 * 3 * 4, 240 * 3 * 4
    for ahead in (1, 3.5 * one, math.inf):
        monkeypatch.setattr(module, "AHEAD", ahead)
        most.append(0)
        found.append(reconstruct(network, pruned, groups, keep, IMAGES).network)
    assert most == [one, 4 * one, 6 * one + last]
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0].state_dict().values(), other.state_dict().values(), strict=True))


def test_so_many_images_wait_side_by_side_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: where the second convolution begins, (2, 10, 10) images and (4, 8, 8) maps are held, 456 numbers for each image; at most
    256 are made at once."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3))
    assert held_at_layers(network, IMAGES[:2]) == 2 * 4 * 456
    monkeypatch.setattr(module, "ROOM", 8 * 4 * 256 * 40)  # forty images at once, and 179 that wait
    assert [module.most_images(network, IMAGES[:2], chunks) for chunks in (1, 4, 8)] == [40, 160, 179]


def test_a_layer_whose_groups_have_few_inputs_each_is_solved_on_fewer_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 inputs: 1,800 places are wanted, eight of each of 240 images, of which a quarter judges."""
    network = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3, padding=1, groups=6), *head()))
    groups = channel_groups(network, IMAGES[:2])
    keep = {group.name: (0, 2) for group in groups}
    counts: list[int] = []
    best = module.best_ridge
    monkeypatch.setattr(module, "best_ridge", lambda fit, *rest, **how: counts.append(fit.count) or best(fit, *rest, **how))
    reconstruct(network, remove_channels(network, groups, keep), groups, keep, IMAGES)
    assert counts[:2] == [180 * 36, 180 * 8]


@pytest.mark.parametrize("start", [0, 1])
def test_through_gates_depthwise_concatenation_and_sums_the_loss_shrinks(start: int) -> None:
    """A k49 with random weights without half of all channels: outputs come nearer; channel gates, called twice, are solved too."""
    network = seeded(lambda: make(5, widths=(16, 24), depths=(1, 1), reduction=4))
    images = torch.rand(160, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    groups = channel_groups(network, images[:2])
    keep = {group.name: tuple(range(start, group.width, 2)) for group in groups}
    pruned = remove_channels(network, groups, keep)
    solved = reconstruct(network, pruned, groups, keep, images)
    fresh = torch.rand(64, 1, 12, 12, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        errors = [float((one(fresh) - network(fresh)).square().mean()) for one in (pruned, solved.network)]
    assert errors[1] < 0.5 * errors[0]
    assert any("cbam.channel.squeeze" in name for name in solved.layers)
    assert all(after < before for before, after in solved.layers.values())


def test_a_network_of_which_nothing_is_removed_comes_back_bit_for_bit() -> None:
    network = seeded(lambda: make(5, widths=(8, 16), depths=(1, 1), reduction=4))
    images = torch.rand(40, 1, 12, 12)
    groups = channel_groups(network, images[:2])
    for keep in ({}, groups.everything):
        pruned = remove_channels(network, groups, keep)
        repaired = repair(network, pruned, groups, keep, images, score=lambda _: pytest.fail("nothing is to be scored"))
        assert repaired.how == "cut"
        for one in (repaired.network, reconstruct(network, pruned, groups, keep, images).network):
            assert all(torch.equal(value, network.state_dict()[name]) for name, value in one.state_dict().items())


class Shared(nn.Module):
    """Two layers of one weight, a third with a computed one, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.right.weight = self.left.weight
        self.up, self.head = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.up(torch.relu(self.left(x) + self.right(x).flip(-1)))
        return self.head(x.mean((2, 3)))


def test_what_cannot_be_solved_stays_and_is_named() -> None:
    network = seeded(Shared)
    groups = channel_groups(network, IMAGES[:2])
    keep = {"first": (0, 1, 2)}
    pruned = remove_channels(network, groups, keep)
    left = reconstruct(network, pruned, groups, keep, IMAGES).left
    assert left["left"] == left["right"] == "it shares its weight" and left["up"] == "it is a transposed convolution"
    fixed = reconstruct(network, pruned, groups, keep, IMAGES, fixed=["head.weight"])
    assert fixed.left["head"] == "it is to stay as it is"
    assert torch.equal(fixed.network.head.weight, pruned.head.weight)  # type: ignore[union-attr, arg-type]
    few = reconstruct(network, pruned, groups, keep, IMAGES[:4])
    assert few.left["head"] == "3 places are too few for 5 unknowns; give more images"


def test_zeros_that_were_pruned_before_stay_and_the_weights_beside_them_make_up() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), *head()))
    with torch.no_grad():
        network[2].weight[::2, 0] = 0  # type: ignore[index]
    groups = channel_groups(network, IMAGES[:2])
    keep = {"0": (0, 1, 2)}
    pruned = remove_channels(network, groups, keep)
    solved = reconstruct(network, pruned, groups, keep, IMAGES, zeros="stay")
    assert "2" in solved.layers and solved.layers["2"][1] < solved.layers["2"][0]
    weight, before = (one[2].weight.detach() for one in (solved.network, pruned))  # type: ignore[index]
    assert torch.equal(weight == 0, before == 0) and not torch.equal(weight, before)
    assert difference(solved.network, network) < difference(pruned, network)


def test_a_layer_of_too_many_inputs_is_left_and_a_large_one_sees_fewer_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first linear layer of VGG has 25,088 inputs: 5 GB for one square matrix."""
    network = doubled(seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), *head())))
    groups = channel_groups(network, IMAGES[:2])
    keep = {"0": (0, 1, 2)}
    pruned = remove_channels(network, groups, keep)
    seen: list[tuple[int, int]] = []
    whole = reconstruct(network, pruned, groups, keep, IMAGES, progress=lambda *one: seen.append(one))
    assert "2" in whole.layers and seen[-1] == (3, 3)
    counts: list[int] = []
    monkeypatch.setattr(
        reconstruction, "best_ridge", lambda fit, judge, before, free, stay: counts.append(fit.count) or (before, judge.error(before))
    )
    monkeypatch.setattr(reconstruction, "WORK", 27**2 * 480)  # 480 places, two of each image, of which a quarter judges
    reconstruct(network, pruned, groups, keep, IMAGES)
    assert counts[0] == 360
    monkeypatch.setattr(reconstruction, "MOST", 8 * 27**2 - 1)
    assert reconstruct(network, pruned, groups, keep, IMAGES).left["2"] == "its 27 inputs are too many"


def test_numbers_that_are_not_finite_leave_a_layer_as_it_is() -> None:
    network = doubled(seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), *head())))
    groups = channel_groups(network, IMAGES[:2])
    keep = {"0": (0, 1, 2)}
    images = IMAGES.clone()
    images[7] = torch.inf
    pruned = remove_channels(network, groups, keep)
    solved = reconstruct(network, pruned, groups, keep, images)
    assert set(solved.left.values()) == {"what it reads, or gives, is not finite"}
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in solved.network.state_dict().items())


def test_batch_norm_has_the_statistics_of_the_images() -> None:
    """By hand: mean and unbiased variance of what a convolution with weight one lets through; momentum and count stay."""
    network = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2, bias=False), nn.BatchNorm2d(2))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
    fresh = reestimate(network, IMAGES)
    assert fresh is not None
    values = IMAGES.movedim(1, 0).flatten(1)
    torch.testing.assert_close(fresh[1].running_mean, values.mean(1))  # type: ignore[index]
    torch.testing.assert_close(fresh[1].running_var, values.var(1), rtol=1e-4, atol=1e-6)  # type: ignore[index]
    assert (fresh[1].momentum, int(fresh[1].num_batches_tracked), fresh.training) == (0.1, 0, False)  # type: ignore[index]
    assert reestimate(nn.Sequential(nn.Conv2d(2, 2, 1)), IMAGES) is None


def test_the_best_by_score_is_kept_and_a_score_that_is_not_finite_is_the_worst() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), *head()))
    groups = channel_groups(network, IMAGES[:2])
    keep = {"0": (0, 1, 2)}
    pruned = remove_channels(network, groups, keep)
    for wanted in ("cut", "batch norm", "least squares", "both"):
        scores = dict.fromkeys(("cut", "batch norm", "least squares", "both"), float("nan")) | {wanted: 3.0}
        told = iter(scores.values())
        found = repair(network, pruned, groups, keep, IMAGES, score=lambda _, told=told: next(told))  # type: ignore[misc]
        assert found.how == wanted and found.losses[wanted] == 3.0
    solved = reconstruct(network, pruned, groups, keep, IMAGES).network
    best = repair(network, pruned, groups, keep, IMAGES, score=lambda one: difference(one, network))
    assert best.losses["least squares"] == difference(solved, network) < best.losses["cut"]


class Offset(nn.Module):
    """x times a weight of each channel, plus another."""

    def __init__(self) -> None:
        super().__init__()
        self.by, self.plus = nn.Parameter(torch.randn(4, 1, 1)), nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by + self.plus


@pytest.mark.parametrize("affine", [lambda: nn.Conv2d(4, 4, 1), lambda: nn.BatchNorm2d(4), Offset])
@pytest.mark.parametrize("keep", [{}, {"0": (0, 1, 2)}])
def test_a_bypassed_module_that_is_affine_is_made_up_for_exactly_by_the_layer_that_reads_it(
    affine: Callable[[], nn.Module], keep: dict[str, tuple[int, ...]]
) -> None:
    """By hand: W (A x + a) + b is (W A) x + (W a + b). Channels that are removed besides, linear in kept ones, are made up for too."""
    network = seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), affine(), nn.Conv2d(4, 6, 3), *head()))
    network = doubled(network) if keep else network  # else no weights are the only right ones
    bypassed = copy.deepcopy(network)
    bypass(bypassed, ["2"], IMAGES[:2])
    groups = channel_groups(bypassed, IMAGES[:2])
    pruned = remove_channels(bypassed, groups, keep)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    solved = reconstruct(network, pruned, groups, keep, IMAGES)
    assert difference(pruned, network) > 0.005 > 1e-5 > difference(solved.network, network)
    assert "3" in solved.layers and isinstance(solved.network[2], nn.Identity)  # type: ignore[index]
    if affine().state_dict().keys() == {"weight", "bias"}:
        weight, offset = network[2].weight[:, :, 0, 0].detach(), network[2].bias.detach()  # type: ignore[index]
        wanted = torch.einsum("oihw,ij->ojhw", network[3].weight.detach(), weight)  # type: ignore[index]
        if keep:
            wanted = torch.cat([wanted[:, :1], wanted[:, 1:2] + 2 * wanted[:, 3:], wanted[:, 2:3]], 1)
        torch.testing.assert_close(solved.network[3].weight, wanted, rtol=1e-3, atol=1e-3)  # type: ignore[index]
        bias = network[3].bias.detach() + network[3].weight.detach().sum((2, 3)) @ offset  # type: ignore[index]
        torch.testing.assert_close(solved.network[3].bias, bias, rtol=1e-3, atol=1e-3)  # type: ignore[index]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "the network itself stays"
    repaired = repair(network, pruned, groups, keep, IMAGES, score=lambda one: difference(one, network))
    assert repaired.how == "least squares"


def test_a_batch_norm_behind_a_bypassed_module_takes_the_offset_of_the_layer_before_it() -> None:
    """What reads a layer is seen in the bypassed network, where nothing stands between the convolution and its norm any more."""
    first, second, gate = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 6, 1)
    network = seeded(lambda: nn.Sequential(first, nn.Conv2d(4, 4, 1), second, gate, nn.BatchNorm2d(6), *head()))
    bypassed = copy.deepcopy(network)
    bypass(bypassed, ["1", "3"], IMAGES[:2])
    groups = channel_groups(bypassed, IMAGES[:2])
    solved = reconstruct(network, bypassed, groups, {}, IMAGES)
    assert "2" in solved.layers
    with torch.no_grad():
        wanted, found = network[:3](IMAGES), solved.network[:3](IMAGES)  # type: ignore[index]
        moved = bypassed[4].running_mean - solved.network[4].running_mean  # type: ignore[index, operator]
    torch.testing.assert_close(found + moved[:, None, None], wanted, rtol=1e-3, atol=1e-3)


class Inside(nn.Module):
    """Calls a layer of its owner's, besides the owner itself: without it that layer is called less often."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.by, self.borrowed = nn.Parameter(torch.ones(1)), [layer]

    def forward(self, x: Tensor) -> Tensor:
        return self.by * self.borrowed[0](x)


def test_a_layer_that_a_bypassed_module_called_too_is_left_as_it_is() -> None:
    layer = nn.Conv2d(2, 2, 1)
    network = seeded(lambda: nn.Sequential(Inside(layer), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)))
    bypassed = nn.Sequential(nn.Identity(), *copy.deepcopy(network)[1:])
    solved = reconstruct(network, bypassed, channel_groups(bypassed, IMAGES[:2]), {}, IMAGES)
    assert torch.equal(solved.network[1].weight, layer.weight) and list(solved.layers) == ["4"]  # type: ignore[index]
