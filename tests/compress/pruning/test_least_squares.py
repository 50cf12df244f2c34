"""Ridge least squares against values by hand, torch.linalg.lstsq and torch's own layers."""

import pytest
import torch
from torch import Tensor, nn

from compress.pruning.least_squares import Moments, best_ridge, inputs_of, positions_of, ridge, weights_of

GENERATOR = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def moments(inputs: Tensor, targets: Tensor) -> Moments:
    found = Moments()
    found.add(inputs, targets)
    return found


def test_by_hand() -> None:
    """From 1, 2, 3 to 2, 4, 6 the weight is 2, the error 0; with the weight 1 it is 14 of 8 about the mean."""
    found = moments(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[[2.0], [4.0], [6.0]]]))
    none, one = torch.zeros(1, 2, 1, dtype=torch.float64), torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    solved = ridge(found, none, 1e-12, free=False)
    assert solved.flatten().tolist() == pytest.approx([2, 0])
    assert float(found.error(solved)) == pytest.approx(0, abs=1e-9) and float(found.error(one)) == pytest.approx(14 / 8)


@pytest.mark.parametrize("free", [True, False])
def test_it_is_least_squares_where_the_ridge_is_small_and_nothing_changes_where_it_is_large(free: bool) -> None:
    inputs, targets = drawn(1, 50, 4), drawn(1, 50, 3)
    before = drawn(1, 5, 3).double()
    found = moments(inputs, targets)
    full = torch.cat([inputs, torch.ones(1, 50, 1)], 2)[0].double() if free else inputs[0].double()
    wanted = torch.linalg.lstsq(full, targets[0].double() - (0 if free else before[0, -1])).solution
    torch.testing.assert_close(ridge(found, before, 1e-12, free=free)[0, : len(wanted)], wanted)
    large = ridge(found, before, 1e12, free=free)
    torch.testing.assert_close(large[:, :-1], before[:, :-1])


def test_places_in_several_calls_and_groups_of_their_own() -> None:
    inputs, targets = drawn(3, 40, 2), drawn(3, 40, 2)
    whole, parts = moments(inputs, targets), moments(inputs[:, :10], targets[:, :10])
    parts.add(inputs[:, 10:], targets[:, 10:])
    none = torch.zeros(3, 3, 2, dtype=torch.float64)
    together = ridge(whole, none, 1e-3, free=True)
    torch.testing.assert_close(ridge(parts, none, 1e-3, free=True), together)
    for group in range(3):
        alone = ridge(moments(inputs[group : group + 1], targets[group : group + 1]), none[:1], 1e-3, free=True)
        torch.testing.assert_close(alone, together[group : group + 1])


def test_where_nothing_is_better_on_other_places_the_weights_stay() -> None:
    """The first group is exactly as before on the places that judge, and noise on those that are solved on; the second gains."""
    before = torch.tensor([[[1.0], [0.0]], [[0.0], [0.0]]], dtype=torch.float64)
    fit, judge = drawn(2, 6, 1), drawn(2, 60, 1)
    noise = torch.stack([drawn(6, 1), 3 * fit[1]])
    found, errors = best_ridge(moments(fit, noise), moments(judge, torch.stack([judge[0], 3 * judge[1]])), before, free=True)
    assert torch.equal(found[0], before[0]) and float(errors[0]) < 1e-12
    assert found[1].flatten().tolist() == pytest.approx([3, 0], abs=1e-5)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    before = torch.ones(1, 3, 1, dtype=torch.float64)
    found = ridge(moments(torch.zeros(1, 9, 2), drawn(1, 9, 1)), before, 1e-6, free=False)
    assert torch.equal(found, before)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 4), (3, 5)),
        (nn.Linear(5, 4, bias=False), (3, 7, 5)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (3, 4, 9)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(1, 2)), (3, 4, 8, 9)),
        (nn.Conv2d(4, 8, 3, groups=4, padding="same", padding_mode="circular"), (3, 4, 6, 7)),
        (nn.Conv2d(6, 4, 3, groups=2, bias=False), (3, 6, 5, 5)),
        (nn.Conv2d(4, 6, 1, stride=(2, 1)), (3, 4, 6, 3)),
        (nn.Conv2d(4, 6, 1, padding=1), (3, 4, 3, 3)),
        (nn.Conv3d(2, 3, 2, padding=1, padding_mode="replicate"), (2, 2, 3, 4, 5)),
    ],
)
def test_what_a_layer_reads_times_its_weights_is_what_it_gives(layer: nn.Module, shape: tuple[int, ...]) -> None:
    came = drawn(*shape)
    gives = positions_of(layer, layer(came))
    places = torch.randperm(gives.shape[2], generator=GENERATOR)[:5]
    inputs = inputs_of(layer, came, lambda count: places[places < count])
    weights = weights_of(layer)
    product = inputs.double() @ weights[:, :-1] + weights[:, -1:]
    wanted = gives[:, :, places].transpose(1, 2).flatten(0, 1).double()
    torch.testing.assert_close(product.transpose(0, 1).flatten(1), wanted, rtol=1e-5, atol=1e-5)
