"""Surgery on random networks: removed channels that contribute nothing change nothing, and what is left is a whole network.

The truth is torch itself: a channel is silenced by zeroing its own weights, biases and scales, and the silenced network run as it is.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compress.artifacts.cost import count_cost
from compress.channels.choose import macs_after
from compress.channels.cut import cut_to, remove_channels, surgery_error
from compress.channels.find import channel_groups
from compress.channels.groups import Groups
from compress.errors import CompressError, NetworkError
from compress.graphs.export import export_onnx
from compress.models import emnist, k49
from compress.models.layers import CBAM, DepthwiseSeparable, MultiScaleBlock

SIZE = 8


class Residual(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Concat(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(branch(x) for branch in self.branches)], dim=1)


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(torch.relu(self.down(x.mean((2, 3))))).sigmoid()[:, :, None, None]


class Halves(nn.Module):
    """A gated linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=1)
        return value * torch.sigmoid(gate)


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def unit(c_in: int, c_out: int, **options: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, **options), nn.BatchNorm2d(c_out), nn.ReLU())


# Each takes the width and returns a piece and the width after it; widths are multiples of 4.
PIECES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "unit": lambda c: (unit(c, 12), 12),
    "residual": lambda c: (Residual(unit(c, 8), nn.Conv2d(8, c, 1, bias=False), nn.BatchNorm2d(c)), c),
    "concat": lambda c: (Concat(unit(c, 4), unit(c, 8)), c + 12),
    "dense": lambda c: (Concat(nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4, 1))), c + 4),
    "depthwise": lambda c: (DepthwiseSeparable(c, 8, 3, 1), 8),
    "grouped": lambda c: (unit(c, c, groups=c // 4), c),
    "group norm": lambda c: (nn.Sequential(nn.Conv2d(c, 12, 1), nn.GroupNorm(4, 12), nn.ReLU()), 12),
    "squeeze-excite": lambda c: (SqueezeExcite(c), c),
    "cbam": lambda c: (nn.Sequential(nn.ReLU(), CBAM(c, 2)), c),
    "multi-scale": lambda c: (MultiScaleBlock(c, 8), 8),
    "halves": lambda c: (nn.Sequential(unit(c, 16), Halves()), 8),
    "shuffle": lambda c: (Shuffle(), c),
    "layer scale": lambda c: (Residual(unit(c, c), LayerScale(c)), c),
    "prelu": lambda c: (nn.Sequential(nn.Conv2d(c, 8, 1), nn.PReLU(8)), 8),
    "up and down": lambda c: (nn.Sequential(nn.ConvTranspose2d(c, 8, 2, 2), nn.ReLU(), nn.MaxPool2d(2)), 8),
    "pixel shuffle": lambda c: (nn.Sequential(nn.Conv2d(c, 16, 1), nn.PixelShuffle(2), nn.AvgPool2d(2)), 4),
}


class Built(nn.Module):
    """A stem, the named pieces, and a classifier after flattening or pooling."""

    def __init__(self, pieces: list[str], flatten: bool) -> None:
        super().__init__()
        width, layers = 8, [unit(1, 8)]
        for name in pieces:
            piece, width = PIECES[name](width)
            layers.append(piece)
        self.body = nn.Sequential(*layers)
        pool = nn.AvgPool2d(SIZE // 2) if flatten else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(pool, nn.Flatten(), nn.Linear(width * (4 if flatten else 1), 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def build(pieces: list[str], flatten: bool, seed: int = 0) -> Built:
    """With batch norms that do something."""
    torch.manual_seed(seed)
    network = Built(pieces, flatten)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return network.eval()


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def some(groups: Groups, seed: int) -> dict[str, list[int]]:
    """A random choice of units of every group, at least one."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        count = int(torch.randint(1, group.width + 1, (1,), generator=generator))
        keep[group.name] = sorted(torch.randperm(group.width, generator=generator)[:count].tolist())
    return keep


def silence(network: nn.Module, groups: Groups, keep: dict[str, list[int]]) -> None:
    """Zero what removed channels own: the weights and biases that make them, and those that scale or shift them."""
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for group in groups:
            for cut in group.cuts:
                if cut.role != "input" and cut.parameter in parameters:
                    for gone in set(range(group.width)) - set(keep[group.name]):
                        for position in cut.positions[gone]:
                            parameters[cut.parameter].select(cut.dim, position).zero_()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(sorted(PIECES)), min_size=1, max_size=5), st.booleans(), st.integers(0, 99))
def test_a_cut_network_is_a_whole_one_and_removing_silent_channels_changes_nothing(pieces: list[str], flatten: bool, seed: int) -> None:
    """Both of the same groups, as finding them takes longest."""
    network = build(pieces, flatten, seed)
    groups = channel_groups(network, images(2))
    keep = some(groups, seed)
    check_that_it_is_whole(network, groups, keep, lambda: build(pieces, flatten, seed + 1))
    # Four channels in one group of a grouped convolution are one unit: without it the layer that makes them would have none. And groups
    # of normalised channels may fill whole rows of a shuffle, whose number of rows is fixed.
    reasons = {left.reason for left in groups.left_whole if not ("shuffle" in pieces and "a width is written" in left.reason)}
    assert reasons <= {"they are the network's output", "they can only go all together"}
    silence(network, groups, keep)
    pruned = remove_channels(network, groups, keep)
    with torch.no_grad():
        wanted, got = network(images()), pruned(images())
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max().clamp_min(1)))
    assert surgery_error(network, pruned, groups, keep, images()) < 1e-4


def check_that_it_is_whole(network: nn.Module, groups: Groups, keep: dict[str, list[int]], make: Callable[[], nn.Module]) -> None:
    """The contributions are cut exactly, its MACs were foretold, its attributes fit, it trains, and it reloads bit-identical."""
    pruned = remove_channels(network, groups, keep)
    assert surgery_error(network, pruned, groups, keep, images()) < 1e-4
    assert count_cost(pruned, images()).macs == macs_after(groups, {name: tuple(units) for name, units in keep.items()})

    stored = {name: value.clone() for name, value in pruned.state_dict().items()}
    with torch.random.fork_rng():
        rebuilt = cut_to(make(), {name: value.shape for name, value in stored.items()})
    rebuilt.load_state_dict(stored)
    with torch.no_grad():
        assert torch.equal(rebuilt(images()), pruned(images()))
    assert str(rebuilt) == str(pruned)

    optimizer = torch.optim.SGD(pruned.train().parameters(), lr=0.01)
    nn.functional.cross_entropy(pruned(images()), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())
    assert all(value.isfinite().all() for value in pruned.state_dict().values())


def test_a_removed_channel_that_is_not_silent_changes_the_output() -> None:
    """The proof can fail: a channel cut in the wrong place is seen."""
    network = build(["unit", "residual"], True)
    groups = channel_groups(network, images(2))
    keep = {groups[0].name: list(range(1, groups[0].width))}
    wrong = {groups[0].name: list(range(groups[0].width - 1))}
    pruned = remove_channels(network, groups, keep)
    assert surgery_error(network, pruned, groups, keep) < 1e-5
    assert surgery_error(network, pruned, groups, wrong) > 1e-3
    with torch.no_grad():
        assert not torch.allclose(pruned(images()), network(images()), atol=1e-3)


def test_attributes_say_what_the_weights_are() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 16, 3)
    )
    groups = channel_groups(network, images(2))
    pruned = remove_channels(network, groups, {"0": [1, 2, 7], "3": [0, 5]})
    assert (pruned[0].in_channels, pruned[0].out_channels, pruned[0].groups) == (1, 3, 1)
    assert pruned[1].num_features == 3
    assert (pruned[2].in_channels, pruned[2].out_channels, pruned[2].groups) == (3, 3, 3)
    assert (pruned[3].in_channels, pruned[3].out_channels) == (3, 2)
    assert (pruned[5].in_features, pruned[5].out_features) == (32, 3)
    assert torch.equal(pruned[0].weight, network[0].weight[[1, 2, 7]])
    assert torch.equal(pruned[5].weight, network[5].weight.view(3, 6, 16)[:, [0, 5]].flatten(1))


def test_tied_weights_stay_tied_and_frozen_ones_frozen() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 3))
    network[2].weight = network[1].weight
    network[0].weight.requires_grad_(False)
    groups = channel_groups(network, images(2))
    pruned = remove_channels(network, groups, {groups[0].name: [0, 3]})
    assert pruned[2].weight is pruned[1].weight and not pruned[0].weight.requires_grad
    shapes = {name: value.shape for name, value in pruned.state_dict().items()}
    rebuilt = cut_to(network, shapes)
    assert rebuilt[2].weight is rebuilt[1].weight and not rebuilt[0].weight.requires_grad


def test_a_cut_that_only_fails_at_another_width_is_refused() -> None:
    """Half of the channels pass its assertion, a quarter does not: the trial cannot know, the cut does."""

    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1.0 if x.shape[1] in (4, 8) else x.view(-1, 1)

    network = nn.Sequential(nn.Conv2d(1, 8, 3), Picky(), nn.Conv2d(8, 2, 3))
    groups = channel_groups(network, images(2))
    assert remove_channels(network, groups, {"0": [0, 1, 2, 3]})[0].out_channels == 4
    with pytest.raises(NetworkError, match=r"cannot be cut so: view at 1 \(test_cut\.py:\d+\) .*; compute widths from shapes"):
        remove_channels(network, groups, {"0": [0, 1]})


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ({"1": [0]}, '"1" is no channel group of this network; it has 0'),
        ({"0": []}, r'"0" \(=\[\]\) must list units of 0 to 7'),
        ({"0": [1, 0]}, "sorted and each once"),
        ({"0": [0, 0]}, "sorted and each once"),
        ({"0": [8]}, "units of 0 to 7"),
        ({"0": [-1]}, "units of 0 to 7"),
    ],
)
def test_units_that_there_are_not(keep: dict[str, list[int]], told: str) -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 3))
    with pytest.raises(CompressError, match=told):
        remove_channels(network, channel_groups(network, images(2)), keep)


@pytest.mark.parametrize(
    ("shapes", "told"),
    [
        ({"weight": (2, 3)}, "bias is in the network or in the weights, not in both"),
        ({"weight": (2, 3), "bias": (2,), "more": (1,)}, "more is in the network"),
        ({"weight": (5, 3), "bias": (2,)}, r"weight has shape \(5, 3\), which \(4, 3\) cannot be cut to"),
        ({"weight": (2, 3, 1), "bias": (2,)}, "cannot be cut to"),
        ({"weight": (0, 3), "bias": (0,)}, "cannot be cut to"),
    ],
)
def test_shapes_of_another_network_are_refused(shapes: dict[str, tuple[int, ...]], told: str) -> None:
    with pytest.raises(NetworkError, match=told):
        cut_to(nn.Linear(3, 4), shapes)


class AsFloat(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float() / 255


@pytest.mark.parametrize("name", ["k49", "emnist", "pieces"])
def test_built_in_networks_cut_save_reload_and_export(name: str, tmp_path: Path) -> None:
    """Parity of the exported file with torch is within 1e-4; the file has the cut shapes."""

    def make() -> nn.Module:
        if name == "pieces":
            return build(["grouped", "shuffle", "group norm", "concat", "halves"], True)
        return (k49.make(49, widths=(8, 16), depths=(1, 2)) if name == "k49" else emnist.make(47)).eval()

    torch.manual_seed(0)
    network, size = make(), SIZE if name == "pieces" else 28
    groups = channel_groups(network, torch.rand(2, 1, size, size))
    pruned = remove_channels(network, groups, {group.name: range(0, group.width, 2) for group in groups})
    before, after = (count_cost(n, torch.rand(1, 1, size, size)) for n in (network, pruned))
    assert after.macs < 0.6 * before.macs and after.params < 0.6 * before.params

    save_file(pruned.state_dict(), tmp_path / "weights.safetensors")
    stored = load_file(tmp_path / "weights.safetensors")
    rebuilt = cut_to(make(), {key: value.shape for key, value in stored.items()})
    rebuilt.load_state_dict(stored)
    raw = torch.randint(0, 256, (5, 1, size, size), dtype=torch.uint8)
    with torch.no_grad():
        wanted = pruned(raw.float() / 255)
        assert torch.equal(rebuilt(raw.float() / 255), wanted)
    export_onnx(rebuilt, tmp_path / "net.onnx", prepare=AsFloat(), example=raw[:2], metadata={})
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: raw.numpy()})[0]
    assert np.abs(got - wanted.numpy()).max() < 1e-4 * max(1, math.ceil(float(wanted.abs().max())))
