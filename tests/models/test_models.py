"""The two reference networks: shapes, what is inside, and the CBAM gates against arithmetic by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.models import emnist, k49
from compress.models.errors import ModelError
from compress.models.layers import CBAM, ChannelGate, MultiScaleBlock, SpatialGate

MAKE = {"k49": k49.make, "emnist": emnist.make}
SMALL: dict[str, dict[str, Any]] = {"k49": {"widths": (4, 6), "depths": (1, 2)}, "emnist": {"channels": (4, 6), "hidden": 8}}
BLOCK_INPUT = (2, 4, 8, 8)


def small(name: str, classes: int = 7) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKE[name](classes, **SMALL[name])


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (3, 47), (2, 49)])
def test_images_become_logits_of_as_many_classes_as_the_data_has(name: str, batch: int, classes: int) -> None:
    logits = small(name, classes).eval()(images(batch))
    assert logits.shape == (batch, classes) and logits.dtype == torch.float32 and bool(logits.isfinite().all())
    assert not torch.allclose(logits.sum(dim=1), torch.ones(batch)), "logits, not probabilities"


@pytest.mark.parametrize("name", MAKE)
def test_an_image_is_read_alone_as_in_a_batch(name: str) -> None:
    network, batch = small(name).eval(), images(3)
    torch.testing.assert_close(network(batch)[1:2], network(batch[1:2]))


@pytest.mark.parametrize("name", MAKE)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network = small(name).train()
    nn.functional.cross_entropy(network(images(16)), torch.arange(16) % 7).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@pytest.mark.parametrize("name", MAKE)
def test_the_seed_decides_the_initial_weights(name: str) -> None:
    first, second = small(name).state_dict(), small(name).state_dict()
    assert all(torch.equal(first[entry], second[entry]) for entry in first)


@pytest.mark.parametrize(
    ("make", "given", "told"),
    [
        (k49.make, {"classes": 1}, r"classes \(=1\) must be at least 2; the data set decides it"),
        (k49.make, {"widths": (8, 16)}, r"widths \(=\(8, 16\)\) and depths \(=\(1, 2, 4\)\) must have the same, non-zero length"),
        (k49.make, {"widths": (), "depths": ()}, r"widths \(=\(\)\) and depths \(=\(\)\) must have the same, non-zero length"),
        (k49.make, {"widths": [8, 1, 8]}, r"widths \(=\(8, 1, 8\)\) must be at least 2"),
        (k49.make, {"depths": (1, 0, 1)}, r"depths \(=\(1, 0, 1\)\) at least 1"),
        (k49.make, {"reduction": 0}, r"reduction \(=0\) must be at least 1; 16 is the paper's"),
        (k49.make, {"dropout": 1.0}, r"dropout \(=1\.0\) must lie in \[0, 1\)"),
        (k49.make, {"dropout": float("nan")}, r"dropout \(=nan\) must lie in \[0, 1\)"),
        (emnist.make, {"classes": 0}, r"classes \(=0\) must be at least 2"),
        (emnist.make, {"channels": (32,)}, r"channels \(=\(32,\)\) must be two positive numbers"),
        (emnist.make, {"channels": [32, 0]}, r"channels \(=\(32, 0\)\)"),
        (emnist.make, {"hidden": 0}, r"hidden \(=0\) positive"),
        (emnist.make, {"dropout": -0.1}, r"dropout \(=-0\.1\) must lie in \[0, 1\); the reference has 0\.34"),
    ],
)
def test_an_impossible_configuration_is_refused(make: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        make(**{"classes": 10} | given)


def test_emnist_has_the_layers_of_its_reference_in_order() -> None:
    network = emnist.make(47)
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["Conv2d", "ReLU", "MaxPool2d"] * 2 + ["Dropout", "Flatten", "Linear", "ReLU", "Linear"]
    assert network.dropout.p == 0.34 and network.fc1.out_features == 196 and network.fc2.out_features == 47


def test_channel_gate_by_hand() -> None:
    """The MLP, worked out once on the averages (4, 1) and once on the maxima (7, 4); the sums 1.5 and 0.4 go through the sigmoid.

    Hidden: relu(c0), relu(c1 - 2), relu(c0 - c1), relu(-c0), so (4, 0, 3, 0) and (7, 2, 3, 0).
    Channel 0: 0.1 h0 + 0.2, so 0.6 + 0.9 = 1.5. Channel 1: 0.5 h1 - 0.1 h2 + 9 h3, so -0.3 + 0.7 = 0.4.
    """
    gate = ChannelGate(2, reduction=16)
    with torch.no_grad():
        gate.squeeze.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, -1], [-1, 0]]).view(4, 2, 1, 1))
        gate.squeeze.bias.copy_(torch.tensor([0.0, -2, 0, 0]))
        gate.excite.weight.copy_(torch.tensor([[0.1, 0, 0, 0], [0, 0.5, -0.1, 9]]).view(2, 4, 1, 1))
        gate.excite.bias.copy_(torch.tensor([0.2, 0]))
    x = torch.tensor([[[[1.0, 3], [5, 7]], [[-2, 0], [2, 4]]]])
    torch.testing.assert_close(gate(x), x * torch.tensor([sigmoid(1.5), sigmoid(0.4)]).view(1, 2, 1, 1))


def test_spatial_gate_by_hand() -> None:
    """One tap on the mean of the pixel itself, two on the maximum of its right neighbour, bias -1; beyond the edge lies zero.

    Means -0.5, 1.5, 3.5, 5.5 and maxima 1, 3, 5, 7: the top left pixel gets -0.5 + 2 * 3 - 1 = 4.5.
    """
    gate = SpatialGate()
    assert gate.conv.kernel_size == (7, 7)
    with torch.no_grad():
        gate.conv.weight.zero_()
        gate.conv.weight[0, 0, 3, 3], gate.conv.weight[0, 1, 3, 4] = 1, 2
        gate.conv.bias.fill_(-1)
    x = torch.tensor([[[[1.0, 3], [5, 7]], [[-2, 0], [2, 4]]]])
    expected = torch.tensor([[sigmoid(4.5), sigmoid(0.5)], [sigmoid(16.5), sigmoid(4.5)]])
    torch.testing.assert_close(gate(x), x * expected)


def test_spatial_gate_sees_three_pixels_far_and_no_further() -> None:
    gate, x = SpatialGate(), torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    with torch.no_grad():
        gate.conv.weight.fill_(1)
        gate.conv.bias.zero_()
        seen = gate.conv(torch.cat([x, x], dim=1))[0, 0]
    assert seen.nonzero().tolist() == [[row, column] for row in range(1, 8) for column in range(1, 8)]


def test_cbam_gates_the_channels_first_and_then_the_pixels() -> None:
    cbam, x = CBAM(4, reduction=2), torch.randn(BLOCK_INPUT)
    assert [type(gate) for gate in cbam] == [ChannelGate, SpatialGate]
    torch.testing.assert_close(cbam(x), cbam.spatial(cbam.channel(x)))


@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (6, 1), (7, 2)])
def test_a_block_reads_its_input_at_two_scales_side_by_side(c_out: int, stride: int) -> None:
    block, x = MultiScaleBlock(4, c_out, stride).eval(), torch.randn(BLOCK_INPUT)
    inputs = []
    for branch in (block.branch3, block.branch5):
        assert branch.depthwise.groups == branch.depthwise.in_channels == 4 and branch.depthwise.stride == (stride, stride)
        assert branch.pointwise.kernel_size == (1, 1) and branch.pointwise.groups == 1
        branch.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    assert block.branch3.depthwise.kernel_size == (3, 3) and block.branch5.depthwise.kernel_size == (5, 5)
    assert block(x).shape == (2, c_out, 8 // stride, 8 // stride)
    assert inputs[0] is x and inputs[1] is x


@pytest.mark.parametrize(("c_out", "stride"), [(4, 1), (6, 2)])
def test_a_block_whose_branches_give_zero_is_its_shortcut(c_out: int, stride: int) -> None:
    block, x = MultiScaleBlock(4, c_out, stride).eval(), torch.randn(BLOCK_INPUT)
    with torch.no_grad():
        for branch in (block.branch3, block.branch5):
            branch.norm2.weight.zero_()
            branch.norm2.bias.zero_()
    torch.testing.assert_close(block(x), torch.relu(block.shortcut(x)))
    assert isinstance(block.shortcut, nn.Identity) == (c_out == 4 and stride == 1)


def test_k49_is_made_of_such_blocks_and_halves_the_resolution_between_stages() -> None:
    network, sizes = k49.make(49).eval(), []
    for block in network.blocks:
        assert isinstance(block, MultiScaleBlock) and isinstance(block.cbam, CBAM)
        block.register_forward_hook(lambda _, given, out: sizes.append(tuple(out.shape[1:])))
    network(images(1))
    assert sizes == [(16, 28, 28)] + [(64, 14, 14)] * 2 + [(176, 7, 7)] * 4


def test_k49_takes_other_image_sizes_and_lists_for_its_options() -> None:
    assert k49.make(5, widths=[4, 6], depths=[1, 1])(torch.rand(2, 1, 9, 13)).shape == (2, 5)
