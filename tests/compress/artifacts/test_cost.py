"""Parameters, nonzeros and MACs, against counts by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.artifacts.cost import Cost, count_cost
from compress.models import emnist, k49


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(2, 4, 3, padding=1), (2, 5, 5), 4 * 2 * 9 * 25),
        (nn.Conv2d(2, 4, 3), (2, 5, 5), 4 * 2 * 9 * 9),
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 5, 5), 4 * 2 * 9 * 9),
        (nn.Conv2d(2, 4, (1, 3), bias=False), (2, 5, 5), 4 * 2 * 3 * 15),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 5, 5), 4 * 1 * 9 * 25),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5), 6 * 2 * 9 * 25),
        (nn.Conv2d(2, 4, 3, padding=2, dilation=2), (2, 5, 5), 4 * 2 * 9 * 25),
        (nn.Conv1d(3, 2, 5), (3, 9), 2 * 3 * 5 * 5),
        (nn.ConvTranspose2d(2, 4, 2, stride=2), (2, 5, 5), 2 * 4 * 4 * 25),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 5, 5), 4 * 3 * 9 * 25),
        (nn.Linear(7, 3), (7,), 7 * 3),
        (nn.Linear(7, 3), (4, 7), 4 * 7 * 3),
        (nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)), (2, 4, 4), 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_one_image_by_hand(layer: nn.Module, shape: tuple[int, ...], macs: int, batch: int) -> None:
    assert count_cost(layer, torch.rand(batch, *shape)).macs == macs


class Functional(nn.Module):
    """A convolution and a linear layer as functions, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.ones(4, 2, 3, 3)), nn.Parameter(torch.ones(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.kernel, padding=1).flatten(2)  # (B, 4, 25)
        return functional.linear((x @ x.transpose(1, 2)).mean(2), self.matrix)


@pytest.mark.parametrize("batch", [1, 3])
def test_what_functions_compute_counts_as_what_modules_do(batch: int) -> None:
    assert count_cost(Functional(), torch.rand(batch, 2, 5, 5)).macs == 4 * 2 * 9 * 25 + 4 * 25 * 4 + 5 * 4


def test_params_and_nonzeros_by_hand() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, -3.0]]))
        layer.bias.fill_(1.0)
    assert count_cost(layer, torch.rand(1, 3)) == Cost(params=8, nonzeros=5, macs=6)


def test_a_shared_layer_counts_once_in_params_and_each_time_in_macs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    assert count_cost(Twice(), torch.rand(1, 4)) == Cost(params=16, nonzeros=16, macs=32)


def test_counting_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_cost(network, torch.rand(2, 1, 5, 5))
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_counting_leaves_the_pixels_as_they_were() -> None:
    pixels = torch.ones(1, 4)
    assert count_cost(nn.Sequential(nn.Threshold(2, 0, inplace=True), nn.Linear(4, 2)), pixels).macs == 8
    assert torch.equal(pixels, torch.ones(1, 4))


def test_a_module_that_is_given_a_parameter_is_counted() -> None:
    """As the token of a class is, in some vision transformers."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.frozen, self.last = nn.Parameter(torch.ones(1, 4)), nn.Parameter(torch.ones(1), False), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x) + self.last(self.token)

    network = Net()
    assert count_cost(network, torch.rand(2, 4)).macs == 8 + 4  # the token is read once for both images
    assert [value.requires_grad for value in network.parameters()] == [True, False, True, True]


def test_a_failing_network_keeps_no_hooks() -> None:
    network = nn.Sequential(nn.Linear(3, 2)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        count_cost(network, torch.rand(1, 4))
    assert network.training and not network[0]._forward_hooks


def test_k49_stays_within_its_budget() -> None:
    """300 thousand parameters and 10 million MACs for one 28x28 image."""
    cost = count_cost(k49.make(49), torch.zeros(1, 1, 28, 28))
    assert cost.params <= 300_000 and cost.macs <= 10_000_000


def test_emnist_by_hand() -> None:
    """Convolutions 28 -> 26 -> pool 13 -> 11 -> pool 5, then 64 * 25 = 1600 inputs."""
    cost = count_cost(emnist.make(47), torch.zeros(1, 1, 28, 28))
    assert cost.params == (9 * 32 + 32) + (32 * 64 * 9 + 64) + (1600 * 196 + 196) + (196 * 47 + 47)
    assert cost.macs == 32 * 9 * 26**2 + 64 * 32 * 9 * 11**2 + 1600 * 196 + 196 * 47
