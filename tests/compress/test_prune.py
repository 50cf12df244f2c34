import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.prune import LayerSparsity, apply_masks, magnitude_masks, sparsity_by_layer


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 4, 5)
    )


def zeros(masks: dict[str, torch.Tensor]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def test_the_smallest_magnitudes_go_by_hand() -> None:
    masks = magnitude_masks(linear([[3, -1], [2, -4]]), 0.5)
    assert masks["weight"].tolist() == [[True, False], [False, True]]


def test_global_scope_ranks_over_layers_and_layer_scope_within() -> None:
    network = nn.Sequential(linear([[1, 2], [3, 4]]), linear([[10, 20], [30, 40]]))
    by_network = magnitude_masks(network, 0.5, scope="global")
    assert by_network["0.weight"].tolist() == [[False, False], [False, True]]
    assert by_network["1.weight"].tolist() == [[False, True], [True, True]]
    by_layer = magnitude_masks(network, 0.5, scope="layer")
    assert by_layer["0.weight"].tolist() == by_layer["1.weight"].tolist() == [[False, False], [True, True]]


def test_lamp_ranks_by_share_of_what_is_no_smaller_in_the_layer() -> None:
    # 1/30 4/29 9/25 16/16 in both layers, whatever their scale; the third has 25/50 25/25.
    network = nn.Sequential(linear([[1, 2], [3, 4]]), linear([[10, 20], [30, 40]]), linear([[5, -5]]))
    masks = magnitude_masks(network, 0.4, scope="lamp")
    assert masks["0.weight"].tolist() == masks["1.weight"].tolist() == [[False, False], [True, True]]
    assert masks["2.weight"].tolist() == [[True, True]]
    assert magnitude_masks(network, 0.7, scope="lamp")["2.weight"].tolist() == [[False, True]]


def test_lamp_does_not_empty_a_layer_of_small_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    with torch.no_grad():
        network[1].weight.mul_(0.01)
    kept = {scope: int(magnitude_masks(network, 0.5, scope=scope)["1.weight"].sum()) for scope in ("global", "lamp")}
    assert kept["global"] < 60
    assert 1200 < kept["lamp"] < 1300


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.333, 0.5, 0.8, 0.95])
def test_global_count_is_exact(sparsity: float) -> None:
    network = small_network()
    total = 4 * 9 + 6 * 2 * 9 + 24 * 5
    assert zeros(magnitude_masks(network, sparsity)) == round(sparsity * total)


@pytest.mark.parametrize("scope", ["global", "layer", "lamp"])
def test_count_is_exact_with_ties_and_the_choice_is_the_same_each_time(scope: str) -> None:
    network = linear([[1.0] * 10] * 10)
    first, second = (magnitude_masks(network, 0.37, scope=scope)["weight"] for _ in range(2))
    assert int((~first).sum()) == 37
    assert torch.equal(first, second)


def test_layer_scope_counts_each_layer() -> None:
    masks = magnitude_masks(small_network(), 0.75, scope="layer")
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {"0.weight": 27, "3.weight": 81, "5.weight": 90}


def test_biases_and_normalisation_are_not_pruned() -> None:
    assert set(magnitude_masks(small_network(), 0.5)) == {"0.weight", "3.weight", "5.weight"}


def test_no_layer_becomes_all_zero_under_global_scope() -> None:
    network = nn.Sequential(linear([[1e-6, 2e-6], [1e-6, 1e-6]]), linear([[10, 20], [30, 40]]))
    masks = magnitude_masks(network, 0.5)
    assert masks["0.weight"].tolist() == [[False, True], [False, False]]
    assert zeros(masks) == 4


def test_layer_scope_keeps_the_only_weight_of_a_tiny_layer() -> None:
    assert magnitude_masks(linear([[0.1]]), 0.9, scope="layer")["weight"].tolist() == [[True]]


def test_more_zeros_than_layers_allow_are_refused() -> None:
    with pytest.raises(
        CompressError, match=r"sparsity \(=0\.9\) leaves 1 of 8 weights, but each of the 2 layers must keep 1; choose at most 0\.75"
    ):
        magnitude_masks(nn.Sequential(linear([[1, 2], [3, 4]]), linear([[1, 2], [3, 4]])), 0.9)


def test_masks_have_shape_and_device_of_the_weights_and_leave_the_network_alone() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for name, mask in magnitude_masks(network, 0.5).items():
        assert mask.shape == network.get_parameter(name).shape
        assert mask.dtype == torch.bool
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_shared_weight_appears_once() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    masks = magnitude_masks(network, 0.5)
    assert list(masks) == ["0.weight"]
    assert zeros(masks) == 8
    assert [layer.name for layer in sparsity_by_layer(network)] == ["0.weight"]


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.2, float("nan"), float("inf")])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(CompressError, match=r"sparsity \(=.*\) must lie in \[0, 1\); 0.8 zeroes 80% of the weights"):
        magnitude_masks(small_network(), sparsity)


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(CompressError, match=r'scope \(="channel"\) must be "global"'):
        magnitude_masks(small_network(), 0.5, scope="channel")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    network = small_network()
    with torch.no_grad():
        network[3].weight[0, 0, 0, 0] = value
    with pytest.raises(CompressError, match=r'"3\.weight" holds values that are not finite'):
        magnitude_masks(network, 0.5)


def test_a_network_with_nothing_to_prune_is_refused() -> None:
    with pytest.raises(CompressError, match="no convolution or linear layer"):
        magnitude_masks(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), 0.5)


def test_a_computed_weight_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(network[0])
    with pytest.raises(CompressError, match=r'"0\.weight" is computed from other tensors'):
        magnitude_masks(network, 0.5)


def test_a_lazy_layer_is_refused_by_name() -> None:
    with pytest.raises(CompressError, match=r'"0\.weight" is empty; run one batch'):
        magnitude_masks(nn.Sequential(nn.LazyLinear(4)), 0.5)


def test_apply_zeroes_what_the_mask_says_and_nothing_else() -> None:
    network = linear([[3, -1], [2, -4]])
    apply_masks(network, magnitude_masks(network, 0.5))
    assert network.weight.tolist() == [[3, 0], [0, -4]]
    assert not torch.signbit(network.weight[0, 1])  # 0.0, not -0.0, so that a saved file compresses to one byte pattern


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"7.weight": torch.ones(5, 24, dtype=torch.bool)}, r'"7\.weight" is no parameter of this network'),
        ({"5.weight": torch.ones(5, 23, dtype=torch.bool)}, r'"5\.weight" is torch\.bool \(5, 23\), but must be torch\.bool \(5, 24\)'),
        ({"5.weight": torch.ones(5, 24)}, r'"5\.weight" is torch\.float32 \(5, 24\), but must be torch\.bool \(5, 24\)'),
    ],
)
def test_masks_that_do_not_fit_are_refused_before_anything_is_zeroed(masks: dict[str, torch.Tensor], message: str) -> None:
    network = small_network()
    before = network[0].weight.detach().clone()
    with pytest.raises(CompressError, match=message):
        apply_masks(network, {"0.weight": torch.zeros(4, 1, 3, 3, dtype=torch.bool), **masks})
    assert torch.equal(network[0].weight, before)


def test_zeros_stay_zero_through_fine_tuning_with_momentum() -> None:
    network = small_network()
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    images, labels = torch.rand(16, 1, 4, 4), torch.arange(16) % 5

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimiser.step()

    step()  # momentum is there before the mask is
    masks = magnitude_masks(network, 0.6)
    apply_masks(network, masks)
    kept = network[5].weight.detach().clone()
    for _ in range(5):
        step()
        assert any(network.get_parameter(name)[~mask].count_nonzero() for name, mask in masks.items())  # what apply_masks is for
        apply_masks(network, masks)
    assert all(network.get_parameter(name)[~mask].count_nonzero() == 0 for name, mask in masks.items())
    assert not torch.equal(kept, network[5].weight)


def test_counts_by_layer_and_in_total() -> None:
    network = nn.Sequential(linear([[0, 2], [0, 4]]), nn.BatchNorm1d(2), linear([[0, 0], [0, 1]]))
    layers = sparsity_by_layer(network)
    assert layers == (LayerSparsity(name="0.weight", weights=4, nonzeros=2), LayerSparsity(name="2.weight", weights=4, nonzeros=1))
    assert [layer.sparsity for layer in layers] == [0.5, 0.75]
