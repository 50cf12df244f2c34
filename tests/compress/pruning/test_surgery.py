"""Which weights go, against values by hand and against all choices there are."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from compress.pruning import surgery
from compress.pruning.least_squares import Moments, ridge
from compress.pruning.surgery import affordable, staying


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def seen(inputs: Tensor, weights: Tensor) -> Moments:
    """With the outputs of ``weights``, (G, n + 1, k)."""
    found = Moments()
    found.add(inputs, inputs.double() @ weights[:, :-1] + weights[:, -1:])
    return found


def missed(found: Moments, weights: Tensor, stay: Tensor) -> float:
    """The squared error of the weights that stay, once they have made up for the others."""
    solved = ridge(found, torch.cat([weights[:, :-1] * stay, weights[:, -1:]], 1), 1e-9, free=True, stay=stay)
    return float((found.error(solved) * found.power).sum())


def test_by_hand_of_two_inputs_that_are_equal_one_goes_though_the_third_weight_is_smaller() -> None:
    inputs = drawn(1, 200, 2)[:, :, [0, 0, 1]]
    weights = torch.tensor([[[1.0], [1.0], [0.5], [0.0]]], dtype=torch.float64)
    stay = staying(seen(inputs, weights), weights, torch.ones(1, 3, 1, dtype=torch.bool), 1, free=True)
    assert stay.flatten().tolist() in ([False, True, True], [True, False, True])
    two = staying(seen(inputs, weights), weights, torch.ones(1, 3, 1, dtype=torch.bool), 2, free=True)
    assert two.flatten().tolist() in ([False, True, False], [True, False, False]), "what is left weighs 2, the third 0.5"


@pytest.mark.parametrize("zeros", [1, 2])
def test_one_row_loses_what_the_best_of_all_choices_loses(zeros: int) -> None:
    """The first step is exact, and here the second too: of six inputs that hang together."""
    inputs = drawn(1, 300, 6) @ (torch.eye(6) + 0.3 * drawn(6, 6))
    weights = torch.cat([drawn(1, 6, 1), torch.ones(1, 1, 1)], 1).double()
    found = seen(inputs, weights)
    stay = staying(found, weights, torch.ones(1, 6, 1, dtype=torch.bool), zeros, free=True)
    options = []
    for gone in combinations(range(6), zeros):
        option = torch.ones(1, 6, 1, dtype=torch.bool)
        option[0, list(gone)] = False
        options.append((missed(found, weights, option), option))
    assert torch.equal(stay, min(options, key=lambda one: one[0])[1])


def test_rows_share_the_zeros_of_their_layer_and_what_may_not_stay_goes_besides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of two rows; a row of small weights gives more of them, and rows that are looked at one by one give the same."""
    inputs, weights = drawn(2, 300, 5), torch.cat([drawn(2, 5, 2), torch.zeros(2, 1, 2)], 1).double()
    weights[0, :, 0] *= 0.01
    may = torch.ones(2, 5, 2, dtype=torch.bool)
    may[1, 3, 1] = may[1, 0, 1] = False
    weights[:, :-1] *= may
    found = seen(inputs, weights)
    stay = staying(found, weights, may, 8, free=False)
    assert int(stay.sum()) == 18 - 8 and not (stay & ~may).any()
    assert not stay[0, :, 0].any(), "what it gives hardly counts beside the others"
    least = (weights[:, :-1].abs() + ~may).flatten().argsort()[:8]
    by_size = may.flatten().index_fill(0, least, False).view_as(may)
    assert int(by_size.sum()) == 10 and missed(found, weights, stay) <= missed(found, weights, by_size)
    monkeypatch.setattr(surgery, "AT_ONCE", 1)
    assert torch.equal(staying(found, weights, may, 8, free=False), stay)
    assert torch.equal(staying(found, weights, may, 0, free=False), may) and not staying(found, weights, may, 18, free=False).any()


def test_inputs_that_never_vary_do_no_harm() -> None:
    inputs = drawn(1, 50, 4)
    inputs[:, :, 1:3] = 0
    weights = torch.cat([drawn(1, 4, 1), torch.zeros(1, 1, 1)], 1).double()
    stay = staying(seen(inputs, weights), weights, torch.ones(1, 4, 1, dtype=torch.bool), 2, free=True)
    assert stay.flatten().tolist() == [True, False, False, True]


def test_a_layer_is_within_the_limit_by_the_cube_of_its_inputs() -> None:
    """The second layer of ``emnist`` is, its third is not."""
    assert affordable(torch.ones(1, 288, 64)) and not affordable(torch.ones(1, 1600, 196))
