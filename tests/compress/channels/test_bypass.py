"""Bypassing against networks of which it is known by hand what keeps its shape, and what the network computes without it."""

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.channels.bypass import bypass, bypassable, matching
from compress.errors import NetworkError
from compress.models.emnist import make as make_emnist
from compress.models.k49 import make as make_k49

IMAGE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    """A gate of one weight."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class Odd(nn.Module):
    """Modules that cannot be bypassed, each for another reason, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.idle, self.good, self.read = Scale(1.0), Scale(1.0), Scale(2.0), nn.Conv2d(1, 1, 1)
        self.pair, self.wide = nn.Bilinear(8, 8, 8), nn.Linear(8, 8).double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.good(self.twice(self.twice(x)))
        x = self.read(x.to(self.read.weight.dtype))  # an identity has no weight
        return self.pair(x, x) + self.wide(x.double()).float()


def three() -> nn.Sequential:
    """Doubles, triples, multiplies by five."""
    return nn.Sequential(Scale(2.0), nn.ReLU(), Scale(3.0), nn.Dropout(0.5), Scale(5.0)).eval()


def test_k49_gates_and_residual_blocks_but_no_halving_one() -> None:
    """By hand: stages of 1, 2 and 4 blocks; only those keep the shape that are not the first of stages 2 and 3."""
    found = bypassable(make_k49(47).eval(), torch.rand(2, 1, 28, 28))
    blocks = [name for name in found if name.count(".") == 1 and name.startswith("blocks.")]
    assert blocks == [f"blocks.{index}" for index in (0, 2, 4, 5, 6)]
    assert matching(found, ["*.spatial"]) == [f"blocks.{index}.cbam.spatial" for index in range(7)]
    assert not [name for name in found if name.startswith("stem.")], "a batch norm is folded anyway"
    assert not any(name.endswith(("act1", "dropout", "shortcut", "squeeze")) for name in found)


def test_emnist_has_nothing_to_bypass() -> None:
    assert bypassable(make_emnist(10), torch.rand(2, 1, 28, 28)) == []


def test_what_is_left_out_by_hand() -> None:
    assert bypassable(three(), IMAGE) == ["0", "2", "4"]
    assert bypassable(Odd(), IMAGE) == ["good", "wide"]


def test_a_container_that_only_renames_is_left_out_and_one_that_does_more_is_not() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Sequential(nn.Identity(), Scale(2.0))),
        nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(inplace=True)),
        nn.Sequential(Scale(3.0), Scale(4.0)),
    )
    assert bypassable(network, IMAGE) == ["0.0.1", "1", "2", "2.0", "2.1"]


def test_bypassed_network_computes_what_is_left() -> None:
    network = three()
    bypass(network, ["2"], IMAGE)
    assert torch.equal(network(IMAGE), 10 * IMAGE)
    assert list(network.state_dict()) == ["0.by", "4.by"]


def test_bypass_is_the_same_with_and_without_an_example_and_takes_outer_and_inner() -> None:
    first = make_k49(47, widths=(4, 8), depths=(1, 2)).eval()
    second = copy.deepcopy(first)
    names = ["blocks.2.cbam", "blocks.2", "blocks.0.cbam.spatial"]
    bypass(first, names, torch.rand(2, 1, 28, 28))
    bypass(second, reversed(names))
    assert first.state_dict().keys() == second.state_dict().keys()
    assert isinstance(first.blocks[2], nn.Identity) and isinstance(first.blocks[0].cbam.spatial, nn.Identity)


def test_an_example_that_the_network_writes_over_stays_as_it_was() -> None:
    pixels, network = IMAGE.clone(), nn.Sequential(nn.Threshold(2, 0, inplace=True), three())
    assert bypassable(network, IMAGE)
    bypass(network, ["1.2"], IMAGE)
    assert torch.equal(IMAGE, pixels)


def test_a_module_of_two_names_goes_under_both() -> None:
    network = nn.Sequential(Scale(2.0), nn.ReLU())
    network.alias = network[0]
    network.forward = lambda x: network[1](network[0](x))  # type: ignore[method-assign]
    bypass(network, ["alias"], IMAGE)
    assert list(network.parameters()) == [] and torch.equal(network(IMAGE), IMAGE)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", r'^bypass \(=""\) is the network as a whole; name a module inside it$'),
        ("god", r"^bypass \(=god\) is no module of this network; did you mean good\?$"),
        ("twice", r"^bypass \(=twice\) is called 2 times in a forward pass; only what is called once"),
        ("idle", r"^bypass \(=idle\) is called 0 times"),
        ("pair", r"^bypass \(=pair\) takes or returns something else than one tensor"),
        ("read", r"^bypass \(=good, read\): the network fails without \(AttributeError: .*weight.*\); leave some of them in$"),
    ],
)
def test_what_cannot_be_bypassed_is_told_and_nothing_changes(name: str, told: str) -> None:
    network = Odd()
    with pytest.raises(NetworkError, match=told):
        bypass(network, ["good", name], IMAGE)
    assert isinstance(network.good, Scale) and bypassable(network, IMAGE) == ["good", "wide"]


def test_another_shape_is_told() -> None:
    with pytest.raises(NetworkError, match=r"^bypass \(=0\) makes torch.float32 \(2, 3, 8, 8\) of torch.float32 \(2, 1, 8, 8\); only"):
        bypass(nn.Sequential(nn.Conv2d(1, 3, 1)), ["0"], IMAGE)


def test_patterns() -> None:
    names = ["a.gate", "a.norm", "b.gate", "c"]
    assert matching(names, ["*.gate", "c", "a.*"]) == names
    assert matching(names, ["?.norm"]) == ["a.norm"]
    assert matching(names, []) == []
    with pytest.raises(NetworkError, match=r"^bypass \(=a\.nrom\) matches no module that can be bypassed; did you mean a\.norm\?$"):
        matching(names, ["c", "a.nrom"])
    with pytest.raises(NetworkError, match=r"it has none$"):
        matching([], ["*"])


def test_an_example_that_the_network_does_not_take() -> None:
    with pytest.raises(NetworkError, match=r"^network fails on an example of shape \(2, 1, 8, 8\): RuntimeError: .*; give one"):
        bypassable(nn.Sequential(nn.Conv2d(3, 3, 1)), IMAGE)


def test_modes_and_hooks_are_as_before() -> None:
    network = three().train()
    network[2].eval()
    bypassable(network, IMAGE)
    assert [module.training for module in network] == [True, True, False, True, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
