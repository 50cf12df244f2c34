import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.artifacts.recipe import Recipe, load_recipe
from compress.artifacts.records import checked
from compress.errors import CompressError
from compress.pruning.masks import (
    SCOPES,
    LayerSparsity,
    apply_masks,
    outside_pattern,
    pattern_masks,
    rank,
    sparsity_by_layer,
    squared_gradients,
    weight_masks,
)
from compress.pruning.schedule import cubic_sparsities, parse_pattern
from compress.stages.prune import PruneConfig


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
    masks = weight_masks(linear([[3, -1], [2, -4]]), 0.5)
    assert masks["weight"].tolist() == [[True, False], [False, True]]


def test_global_scope_ranks_over_layers_and_layer_scope_within() -> None:
    network = nn.Sequential(linear([[1, 2], [3, 4]]), linear([[10, 20], [30, 40]]))
    by_network = weight_masks(network, 0.5, scope="global")
    assert by_network["0.weight"].tolist() == [[False, False], [False, True]]
    assert by_network["1.weight"].tolist() == [[False, True], [True, True]]
    by_layer = weight_masks(network, 0.5, scope="layer")
    assert by_layer["0.weight"].tolist() == by_layer["1.weight"].tolist() == [[False, False], [True, True]]


def test_lamp_ranks_by_share_of_what_is_no_smaller_in_the_layer() -> None:
    # 1/30 4/29 9/25 16/16 in both layers, whatever their scale; the third has 25/50 25/25.
    network = nn.Sequential(linear([[1, 2], [3, 4]]), linear([[10, 20], [30, 40]]), linear([[5, -5]]))
    masks = weight_masks(network, 0.4, scope="lamp")
    assert masks["0.weight"].tolist() == masks["1.weight"].tolist() == [[False, False], [True, True]]
    assert masks["2.weight"].tolist() == [[True, True]]
    assert weight_masks(network, 0.7, scope="lamp")["2.weight"].tolist() == [[False, True]]


def test_lamp_does_not_empty_a_layer_of_small_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    with torch.no_grad():
        network[1].weight.mul_(0.01)
    kept = {scope: int(weight_masks(network, 0.5, scope=scope)["1.weight"].sum()) for scope in ("global", "lamp")}
    assert kept["global"] < 60
    assert 1200 < kept["lamp"] < 1300


def test_fisher_ranks_by_weight_times_gradient_over_all_layers() -> None:
    network = nn.Sequential(linear([[3, -1], [2, -4]]), linear([[10, 20], [30, 40]]))
    squares = {"0.weight": torch.tensor([[0.01, 16.0], [1.0, 1.0]]), "1.weight": torch.full((2, 2), 0.01)}
    # 0.3 4 2 4, as in the module's docstring, and 1 2 3 4.
    masks = weight_masks(network, 0.5, scope="fisher", squares=squares)
    assert masks["0.weight"].tolist() == [[False, True], [False, True]]
    assert masks["1.weight"].tolist() == [[False, False], [True, True]]


def test_fisher_zeroes_large_weights_that_the_loss_does_not_feel() -> None:
    """A branch that is scaled down afterwards has the largest weights; by magnitude, scaled by layer or not, it keeps its share."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.felt, self.faint = nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False)
            self.last = nn.Linear(20, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last((self.felt(x) + 1e-3 * self.faint(x)).relu())

    torch.manual_seed(0)
    network = Branches()
    with torch.no_grad():
        network.faint.weight.mul_(10)
    images, labels = torch.randn(64, 20), torch.randint(0, 3, (64,))
    losses = (nn.functional.cross_entropy(network(images[i : i + 4]), labels[i : i + 4]) for i in range(0, 64, 4))
    squares = squared_gradients(network, losses)
    kept = {scope: weight_masks(network, 0.5, scope=scope, squares=squares)["faint.weight"].sum() for scope in ("lamp", "global", "fisher")}
    assert kept["fisher"] <= 10 < 150 < kept["lamp"] < kept["global"]


def test_squared_gradients_by_hand_and_gradients_are_as_before() -> None:
    layer = linear([[3, -1]])
    layer.weight.grad = torch.tensor([[7.0, 7.0]])
    squares = squared_gradients(layer, (layer(torch.tensor(x)).sum() for x in ([1.0, 2.0], [3.0, -1.0])))
    assert squares["weight"].tolist() == [[1 + 9, 4 + 1]]
    assert layer.weight.grad.tolist() == [[7, 7]]
    assert layer.bias.grad is None


def test_squared_gradients_are_zero_where_no_loss_depends_on_a_weight() -> None:
    network = nn.Sequential(linear([[1, 2]]), linear([[1], [2]]))
    assert squared_gradients(network, [network[0](torch.ones(2)).sum()])["1.weight"].tolist() == [[0], [0]]


def test_weights_that_are_zero_go_before_those_that_the_loss_does_not_feel() -> None:
    masks = weight_masks(linear([[2, 1, 0, 3]]), 0.25, scope="fisher", squares={"weight": torch.tensor([[0.0, 0.0, 9.0, 1.0]])})
    assert masks["weight"].tolist() == [[True, True, False, True]]


def test_fisher_without_gradients_is_refused() -> None:
    with pytest.raises(CompressError, match=r'scope \(="fisher"\) needs squares: the squared gradients of the weights'):
        weight_masks(small_network(), 0.5, scope="fisher")


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.333, 0.5, 0.8, 0.95])
def test_global_count_is_exact(sparsity: float) -> None:
    network = small_network()
    total = 4 * 9 + 6 * 2 * 9 + 24 * 5
    assert zeros(weight_masks(network, sparsity)) == round(sparsity * total)


@pytest.mark.parametrize("scope", SCOPES)
def test_count_is_exact_with_ties_and_the_choice_is_the_same_each_time(scope: str) -> None:
    network = linear([[1.0] * 10] * 10)
    squares = {"weight": torch.ones(10, 10)}
    first, second = (weight_masks(network, 0.37, scope=scope, squares=squares)["weight"] for _ in range(2))
    assert int((~first).sum()) == 37
    assert torch.equal(first, second)


@pytest.mark.parametrize("values", [2, 5, 1_000_000])
@pytest.mark.parametrize("scope", ["global", "layer", "fisher"])
def test_masks_are_those_of_a_stable_sort_ties_too(scope: str, values: int) -> None:
    """Few different values make many ties, within a layer and between layers."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randint(-values, values, shape, generator=generator) / 8 for name, shape in (("a", (7, 11)), ("b", (301,)))}
    squares = {name: torch.ones_like(weight) for name, weight in weights.items()}
    for sparsity in (0, 0.003, 0.2, 0.5, 0.77, 0.99):
        keep = {name: torch.ones(weight.numel(), dtype=torch.bool) for name, weight in weights.items()}
        if scope == "layer":
            for name, weight in weights.items():
                keep[name][weight.abs().flatten().argsort(stable=True)[: round(sparsity * weight.numel())]] = False
        else:
            joined = torch.cat([weight.abs().flatten() for weight in weights.values()])
            joined[[int(weights["a"].abs().argmax()), 77 + int(weights["b"].abs().argmax())]] = torch.inf  # each layer keeps its largest
            gone = joined.argsort(stable=True)[: round(sparsity * 378)]
            keep["a"][gone[gone < 77]], keep["b"][gone[gone >= 77] - 77] = False, False
        found = rank(weights, sparsity, scope=scope, squares=squares)
        assert all(torch.equal(found[name].flatten(), mask) for name, mask in keep.items()), sparsity


def test_layer_scope_counts_each_layer() -> None:
    masks = weight_masks(small_network(), 0.75, scope="layer")
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {"0.weight": 27, "3.weight": 81, "5.weight": 90}


def test_biases_and_normalisation_are_not_pruned() -> None:
    assert set(weight_masks(small_network(), 0.5)) == {"0.weight", "3.weight", "5.weight"}


def test_no_layer_becomes_all_zero_under_global_scope() -> None:
    network = nn.Sequential(linear([[1e-6, 2e-6], [1e-6, 1e-6]]), linear([[10, 20], [30, 40]]))
    masks = weight_masks(network, 0.5)
    assert masks["0.weight"].tolist() == [[False, True], [False, False]]
    assert zeros(masks) == 4


def test_layer_scope_keeps_the_only_weight_of_a_tiny_layer() -> None:
    assert weight_masks(linear([[0.1]]), 0.9, scope="layer")["weight"].tolist() == [[True]]


def test_more_zeros_than_layers_allow_are_refused() -> None:
    with pytest.raises(
        CompressError, match=r"sparsity \(=0\.9\) leaves 1 of 8 weights, but each of the 2 layers must keep 1; choose at most 0\.75"
    ):
        weight_masks(nn.Sequential(linear([[1, 2], [3, 4]]), linear([[1, 2], [3, 4]])), 0.9)


def test_masks_have_shape_and_device_of_the_weights_and_leave_the_network_alone() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for name, mask in weight_masks(network, 0.5).items():
        assert mask.shape == network.get_parameter(name).shape
        assert mask.dtype == torch.bool
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_shared_weight_appears_once() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    masks = weight_masks(network, 0.5)
    assert list(masks) == ["0.weight"]
    assert zeros(masks) == 8
    assert [layer.name for layer in sparsity_by_layer(network)] == ["0.weight"]


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.2, float("nan"), float("inf")])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(CompressError, match=r"sparsity \(=.*\) must lie in \[0, 1\); 0.8 zeroes 80% of the weights"):
        weight_masks(small_network(), sparsity)


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(CompressError, match=r'scope \(="channel"\) must be "global"'):
        weight_masks(small_network(), 0.5, scope="channel")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    network = small_network()
    with torch.no_grad():
        network[3].weight[0, 0, 0, 0] = value
    with pytest.raises(CompressError, match=r'"3\.weight" holds values that are not finite'):
        weight_masks(network, 0.5)


def test_a_network_with_nothing_to_prune_is_refused() -> None:
    with pytest.raises(CompressError, match="no convolution or linear layer"):
        weight_masks(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), 0.5)


def test_a_computed_weight_is_refused_by_name() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrizations.weight_norm(network[0])
    with pytest.raises(CompressError, match=r'"0\.weight" is computed from other tensors'):
        weight_masks(network, 0.5)


def test_a_lazy_layer_is_refused_by_name() -> None:
    with pytest.raises(CompressError, match=r'"0\.weight" is empty; run one batch'):
        weight_masks(nn.Sequential(nn.LazyLinear(4)), 0.5)


def test_apply_zeroes_what_the_mask_says_and_nothing_else() -> None:
    network = linear([[3, -1], [2, -4]])
    apply_masks(network, weight_masks(network, 0.5))
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
    masks = weight_masks(network, 0.6)
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


def test_cubic_schedule_by_hand() -> None:
    # 1 - (3/4)^3 = 37/64, 1 - (1/2)^3 = 7/8, 1 - (1/4)^3 = 63/64, 1; times 0.8
    assert cubic_sparsities(0.8, 4) == pytest.approx((0.4625, 0.7, 0.7875, 0.8))
    assert cubic_sparsities(0.8, 1) == (0.8,)


@pytest.mark.parametrize("sparsity", [0.1, 1 / 3, 0.7, 0.999])
@pytest.mark.parametrize("steps", [1, 3, 7, 100])
def test_cubic_schedule_rises_and_ends_exactly(sparsity: float, steps: int) -> None:
    schedule = cubic_sparsities(sparsity, steps)
    assert len(schedule) == steps
    assert schedule[-1] == sparsity
    assert all(before < after for before, after in zip((0.0, *schedule), schedule, strict=False))


@pytest.mark.parametrize(
    ("sparsity", "steps", "told"),
    [
        *((value, 3, r"sparsity \(=.*\) must lie in \(0, 1\); 0\.8 zeroes 80%") for value in (0, 1, 1.2, -0.5, float("nan"))),
        (0.8, 0, r"steps \(=0\) must be at least 1; 1 zeroes all at once"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(sparsity: float, steps: int, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        cubic_sparsities(sparsity, steps)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seed", range(5))
def test_zeros_of_one_step_stay_zeros_in_the_next(scope: str, seed: int) -> None:
    network = small_network()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # scales apart, and many equal magnitudes
        for number, layer in enumerate((network[0], network[3], network[5])):
            layer.weight.copy_(torch.randint(1, 4, layer.weight.shape, generator=generator) * 10.0**-number)
    first = weight_masks(network, 0)
    zeroed: dict[str, torch.Tensor] = {}
    for sparsity in cubic_sparsities(0.95, 4):
        # Gradients are others after each step; many weights get none.
        squares = {name: torch.randint(0, 3, zero.shape, generator=generator).float() for name, zero in first.items()}
        masks = weight_masks(network, sparsity, scope=scope, squares=squares)
        assert not any((masks[name] & zero).any() for name, zero in zeroed.items())
        apply_masks(network, masks)
        zeroed = {name: ~mask for name, mask in masks.items()}
        with torch.no_grad():  # what fine-tuning between the steps does
            for name in masks:
                network.get_parameter(name).mul_(1 + torch.rand(masks[name].shape, generator=generator))


def test_pattern_of_a_linear_layer_by_hand() -> None:
    masks = pattern_masks(linear([[1, -4, 3, 2, 0, 0, 0, 5], [1, -1, 1, 1, 2, 3, -4, 1]]))
    # Of equal magnitudes the earlier stays.
    assert masks["weight"].tolist() == [
        [False, True, True, False, True, False, False, True],
        [True, True, False, False, False, True, True, False],
    ]


def test_pattern_of_a_convolution_runs_along_its_inputs_at_each_kernel_position_by_hand() -> None:
    layer = nn.Conv2d(8, 1, (1, 2))
    with torch.no_grad():
        layer.weight[0, :, 0, 0] = torch.tensor([1.0, 2, 3, 4, -8, 7, 6, 5])
        layer.weight[0, :, 0, 1] = torch.tensor([9.0, 1, 1, 8, 1, 5, 1, -6])
    mask = pattern_masks(layer)["weight"]
    assert mask.shape == layer.weight.shape
    assert mask[0, :, 0, 0].tolist() == [False, False, True, True, True, True, False, False]
    assert mask[0, :, 0, 1].tolist() == [True, False, False, True, False, True, False, True]


def test_another_pattern_keeps_as_many() -> None:
    assert pattern_masks(linear([[1, 2, 3, 6, 5, 4]]), keep=1, of=3)["weight"].tolist() == [[False, False, True, True, False, False]]


def test_layers_whose_inputs_do_not_divide_stay_whole_and_are_named() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3),  # one input channel
        nn.Conv2d(8, 8, 3, groups=8),  # depthwise
        nn.Conv2d(8, 12, 3, groups=2),  # 4 inputs in each group
        nn.Conv2d(12, 6, 1),
        nn.ConvTranspose2d(6, 8, 2),  # 6 inputs, 8 outputs
        nn.ConvTranspose2d(8, 6, 2),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    assert outside_pattern(network) == ("0.weight", "1.weight", "4.weight", "7.weight")
    masks = pattern_masks(network)
    assert list(masks) == ["2.weight", "3.weight", "5.weight"]
    apply_masks(network, masks)
    assert [layer.sparsity for layer in sparsity_by_layer(network)] == [0, 0, 0.5, 0.5, 0, 0.5, 0]
    of_outputs = {name: mask.movedim(0, 1) if name == "5.weight" else mask for name, mask in masks.items()}
    assert all((mask.unflatten(1, (-1, 4)).sum(2) == 2).all() for mask in of_outputs.values())


def test_a_pattern_that_fits_no_layer_is_refused() -> None:
    with pytest.raises(CompressError, match=r'pattern \(="2:4"\) fits no layer: none has a multiple of 4 inputs; choose'):
        pattern_masks(nn.Linear(6, 4))


def test_pattern_is_read() -> None:
    assert parse_pattern("2:4") == (2, 4)
    assert parse_pattern("1:16") == (1, 16)


@pytest.mark.parametrize("text", ["4:2", "2-4", "0:4", "4:4", "", "2:4:8", "-2:4", "2: 4", "2:4\n", "1e0:4", "\u0662:4"])
def test_a_pattern_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CompressError, match=r'pattern \(=".*\n?"\) must be two numbers KEEP:OF with 0 < KEEP < OF; "2:4" keeps'):
        parse_pattern(text)


def test_a_pattern_gives_the_sparsity() -> None:
    config = PruneConfig(pattern="2:4")
    assert config.sparsity == 0.5
    assert PruneConfig(**dataclasses.asdict(config)) == config  # as an artifact stores it
    assert PruneConfig().sparsity == 0.8


def test_a_goal_given_replaces_the_other_one_of_the_recipe_below(tmp_path: Path) -> None:
    recipe = Recipe(tables={"prune": {"sparsity": 0.7, "epochs": 2}})
    assert recipe.stage(PruneConfig, "prune", pattern="2:4") == PruneConfig(pattern="2:4", epochs=2)
    (tmp_path / "own.toml").write_text('model = "k49"\n[prune]\npattern = "1:4"\n')
    assert load_recipe(tmp_path / "own.toml").stage(PruneConfig, "prune").sparsity == 0.75
    assert load_recipe(tmp_path / "own.toml").stage(PruneConfig, "prune", sparsity=0.6).pattern == ""


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pattern": "4:2"}, r'pattern \(="4:2"\) must be two numbers'),
        (
            {"pattern": "2:4", "sparsity": 0.8},
            r'sparsity \(=0\.8\) cannot be chosen beside pattern \(="2:4"\), which zeroes 0\.5; leave',
        ),
        ({"pattern": "2:4", "steps": 3}, r'steps \(=3\) must be 1 with pattern \(="2:4"\), which is cut at once'),
        ({"steps": 0}, r"steps \(=0\) must be at least 1; 1 zeroes all weights at once"),
        ({"between": -1}, r"between \(=-1\) must be at least 0; epochs, 0 for no fine-tuning between steps"),
    ],
)
def test_settings_that_contradict_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(CompressError, match=told) as refused:
        checked(PruneConfig, given, "[prune]")
    assert "\n" not in str(refused.value)
