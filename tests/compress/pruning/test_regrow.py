"""Weights that may come back: the docstring's example by hand, the fading, and a saved training that goes on as it would have."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.pruning.masks import apply_masks, rank, weight_masks
from compress.pruning.regrow import EVERY, FADE, MEMORY, UNTIL, Regrowing
from compress.train.fit import fit, steps_in_epoch
from compress.train.settings import FitConfig

Choose = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]]


def half(weights: Mapping[str, Tensor], squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return rank(weights, 0.5)


def linear() -> nn.Linear:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, -1.0, 2.0, -4.0]])
    return layer


def regrowing(network: nn.Module, steps: int = 1000) -> Regrowing:
    dense = {name: value.detach().clone() for name, value in network.named_parameters() if value.ndim > 1}
    return Regrowing(network, rank(dense, 0.5), dense, half, steps)


def dense_of(layer: nn.Linear) -> Tensor:
    found = dict(layer.named_parameters())["parametrizations.weight.original"]
    return found.data


def test_network_computes_with_the_masked_weights_and_the_gradient_reaches_all() -> None:
    layer = linear()
    regrowing(layer)
    assert layer.weight.tolist() == [[3, 0, 0, -4]]
    layer(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert layer.parametrizations.weight.original.grad.tolist() == [[1, 2, 3, 4]]  # type: ignore[union-attr, index]


def test_weight_that_grows_under_its_mask_comes_back_and_another_goes() -> None:
    layer = linear()
    grow = regrowing(layer)
    for step in range(EVERY):
        dense_of(layer)[0, 2] = 3.5
        assert layer.weight.tolist() == [[3, 0, 0, -4]], step
        grow.after_step()
    assert layer.weight[0].tolist() == pytest.approx([0, 0, 3.5 * (1 - FADE), -4])


def test_running_mean_of_squared_gradients_reaches_the_choice() -> None:
    layer = linear()
    seen: list[Tensor] = []

    def choose(weights: Mapping[str, Tensor], squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen.append(squares["weight"].clone())
        return half(weights, squares)

    grow = Regrowing(layer, {"weight": torch.tensor([[True, False, False, True]])}, {"weight": layer.weight.detach().clone()}, choose, 1000)
    for _ in range(EVERY):
        layer.zero_grad()
        layer(torch.tensor([[1.0, 2.0, 3.0, 0.0]])).sum().backward()
        grow.after_step()
    # The masked weights' gradients count too: it is they that may come back.
    assert seen[0][0].tolist() == pytest.approx([(1 - MEMORY**EVERY) * g for g in (1, 4, 9, 0)])


def test_masked_weights_fade_and_the_others_do_not() -> None:
    layer = linear()
    grow = regrowing(layer)
    for _ in range(5):
        grow.after_step()
    assert dense_of(layer)[0].tolist() == pytest.approx([3, -((1 - FADE) ** 5), 2 * (1 - FADE) ** 5, -4])


def test_last_quarter_of_the_steps_keeps_the_mask() -> None:
    layer = linear()
    steps = 4 * EVERY
    grow = regrowing(layer, steps)
    for _ in range(int(UNTIL * steps)):
        grow.after_step()
    dense_of(layer)[0] = torch.tensor([0.0, 9.0, 9.0, 0.0])
    for _ in range(steps - int(UNTIL * steps)):
        grow.after_step()
    assert layer.weight.tolist() == [[0, 0, 0, 0]]


def test_finished_network_has_plain_parameters_that_are_zero_where_masked() -> None:
    layer = linear()
    names = list(layer.state_dict())
    regrowing(layer).finish()
    assert list(layer.state_dict()) == names
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.tolist() == [[3, 0, 0, -4]]


def test_masked_weight_lies_in_memory_as_the_weight_does() -> None:
    """A convolution is a third slower otherwise: it lays out a weight anew whose strides are not those of the images."""
    network = nn.Conv2d(8, 4, 1, bias=False)
    regrowing(network)
    network.to(memory_format=torch.channels_last)
    original = dict(network.named_parameters())["parametrizations.weight.original"]
    assert network.weight.stride() == original.stride()


def test_weight_of_two_layers_is_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].weight = network[0].weight
    dense = {"0.weight": torch.ones(4, 4)}
    with pytest.raises(CompressError, match=r'regrow: "0.weight" is shared by several layers, .* leave regrow out'):
        Regrowing(network, rank(dense, 0.5), dense, half, 10)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(count)
    labels = generator.integers(0, 3, count)
    pixels = generator.integers(0, 90, (count, 1, 8, 8)) + 60 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels


class Stop(Exception):
    pass


def fisher(weights: Mapping[str, Tensor], squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return rank(weights, 0.5, scope="fisher", squares=squares)


def trained(state_file: Path, stop_after: int = 0, choose: Choose = half) -> nn.Module:
    config = FitConfig(epochs=4, batch=16, lr=0.01, ema=0.9)
    network, training = small(), images(512)
    dense = {name: network.get_parameter(name).detach().clone() for name in weight_masks(network, 0.5)}
    masks = rank(dense, 0.5)
    apply_masks(network, masks)
    grow = Regrowing(network, masks, dense, choose, config.epochs * steps_in_epoch(config, 512))

    def after_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == stop_after:
            raise Stop

    fit(
        network, training, images(64), config, classes=3, prepare=lambda x: x.float() / 255, device=torch.device("cpu"),
        state_file=state_file, key="a", after_step=grow.after_step, after_epoch=after_epoch,
    )  # fmt: skip
    grow.finish()
    return network


@pytest.mark.parametrize("choose", [half, fisher])
def test_training_that_was_interrupted_goes_on_to_the_same_masks_and_weights(tmp_path: Path, choose: Choose) -> None:
    whole = trained(tmp_path / "whole", choose=choose)
    with pytest.raises(Stop):
        trained(tmp_path / "cut", stop_after=2, choose=choose)
    resumed = trained(tmp_path / "cut", choose=choose)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_trained_network_has_exactly_the_zeros_asked_for_and_other_ones_than_at_first(tmp_path: Path) -> None:
    first = weight_masks(small(), 0.5)
    network = trained(tmp_path / "state")
    weights = {name: network.get_parameter(name).detach() for name in first}
    total = sum(weight.numel() for weight in weights.values())
    assert sum(int((weight == 0).sum()) for weight in weights.values()) == round(0.5 * total)
    assert any(not torch.equal(weights[name] != 0, mask) for name, mask in first.items())
