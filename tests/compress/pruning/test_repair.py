"""Zeroed weights that are made up for, against what is known exactly: inputs that are linear in others, and zeros that must stay."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.models.k49 import make
from compress.pruning import layerwise
from compress.pruning.layerwise import Solved, Zeros, solve
from compress.pruning.masks import apply_masks, nonzero_masks, pattern_masks, weight_masks
from compress.pruning.repair import make_up

IMAGES = torch.randn(240, 6, 5, 5, generator=torch.Generator().manual_seed(0))
IMAGES[:, 5] = 2 * IMAGES[:, 0]
SMOOTH = nn.functional.avg_pool2d(IMAGES, 3, 1, 1)  # neighbours say much of each other
ZEROS: tuple[Zeros, ...] = ("stay", "move")


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build().eval()


def zeroed(network: nn.Module, sparsity: float) -> nn.Module:
    """A copy, by magnitude and layer by layer."""
    pruned = copy.deepcopy(network)
    apply_masks(pruned, weight_masks(pruned, sparsity, scope="layer"))
    return pruned


def without(network: nn.Module, column: int) -> nn.Module:
    """A copy whose first layer reads one input less."""
    pruned = copy.deepcopy(network)
    with torch.no_grad():
        pruned[0].weight[:, column] = 0  # type: ignore[index]
    return pruned


def difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float((one(images) - other(images)).abs().max())


def zeros_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: ~mask for name, mask in nonzero_masks(network).items()}


@pytest.mark.parametrize(
    ("layer", "images"),
    [(lambda: nn.Linear(6, 4), IMAGES[:, :, 0, 0]), (lambda: nn.Conv2d(6, 4, 3, padding=1), IMAGES)],
)
def test_an_input_that_is_a_multiple_of_one_that_stays_is_made_up_for_exactly(layer: Callable[[], nn.Module], images: Tensor) -> None:
    """By hand: input 5 is twice input 0, so its weights, twice over, go to those of input 0."""
    network = seeded(lambda: nn.Sequential(layer()))
    pruned = without(network, 5)
    solved = solve(network, pruned, images, zeros="stay").network
    assert difference(pruned, network, images) > 0.1 > 1e-4 > difference(solved, network, images)
    weight = network[0].weight.detach()  # type: ignore[index]
    torch.testing.assert_close(solved[0].weight[:, 0].detach(), weight[:, 0] + 2 * weight[:, 5], rtol=1e-4, atol=1e-4)  # type: ignore[index]
    assert not solved[0].weight[:, 5].any()  # type: ignore[index]


def test_zeros_move_to_where_others_make_up_for_them() -> None:
    """Input 3 is needed, and zeroed in two rows; of inputs 0 and 5 one is enough, so the zeros go there and nothing is missed."""
    network = seeded(lambda: nn.Sequential(nn.Linear(6, 2)))
    pruned, images = without(network, 3), IMAGES[:, :, 0, 0]
    moved = solve(network, pruned, images, zeros="move").network
    assert int((moved[0].weight == 0).sum()) == 2 and bool((moved[0].weight[:, [0, 5]] == 0).any(1).all())  # type: ignore[index]
    assert difference(moved, network, images) < 1e-4 < difference(solve(network, pruned, images, zeros="stay").network, network, images)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Conv2d(6, 6, 3, groups=6),
        lambda: nn.Conv2d(6, 12, 3, groups=3, bias=False),
        lambda: nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)),
        lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)),
    ],
)
def test_layers_of_all_kinds_come_nearer_with_as_many_zeros(layer: Callable[[], nn.Module], zeros: Zeros) -> None:
    network = seeded(lambda: nn.Sequential(layer()))
    pruned = zeroed(network, 0.6)
    solved = solve(network, pruned, SMOOTH[:160], zeros=zeros)
    with torch.no_grad():
        errors = [float((one(SMOOTH[160:]) - network(SMOOTH[160:])).square().mean()) for one in (pruned, solved.network)]
    assert errors[1] < 0.9 * errors[0] and not solved.left
    for (name, was), now in zip(zeros_of(pruned).items(), zeros_of(solved.network).values(), strict=True):
        assert int(was.sum()) == int(now.sum()), name
        assert zeros == "move" or torch.equal(was, now), name


@pytest.mark.parametrize("zeros", ZEROS)
def test_zeros_that_were_there_before_stay_zero(zeros: Zeros) -> None:
    network = zeroed(seeded(lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))), 0.4)
    solved = solve(network, zeroed(network, 0.7), IMAGES, zeros=zeros).network
    assert all(bool((now | ~was).all()) for was, now in zip(zeros_of(network).values(), zeros_of(solved).values(), strict=True))
    assert difference(solved, network, IMAGES) > 0


def test_a_pattern_stays_as_it_is() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    pruned = zeroed(network, 0.0)
    apply_masks(pruned, pattern_masks(pruned))
    solved = make_up(network, pruned, IMAGES, lambda one: difference(one, network, IMAGES), zeros="stay")
    assert solved.how == "least squares"
    assert all(torch.equal(was, now) for was, now in zip(zeros_of(pruned).values(), zeros_of(solved.network).values(), strict=True))


def test_what_is_not_pruned_comes_back_bit_for_bit_and_twice_the_same() -> None:
    network = seeded(lambda: make(5, widths=(8, 16), depths=(1, 1), reduction=4))
    images = torch.rand(80, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    same = zeroed(network, 0.0)
    assert make_up(network, same, images, lambda _: pytest.fail("nothing is to be scored")).how == "cut"
    unchanged = solve(network, same, images, zeros="move").network.state_dict()
    assert all(torch.equal(value, unchanged[name]) for name, value in network.state_dict().items())
    pruned = zeroed(network, 0.5)
    before = {name: value.clone() for one in (network, pruned) for name, value in one.state_dict(prefix=str(id(one))).items()}
    first, second = (solve(network, pruned, images, zeros="move").network.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for one in (network, pruned):
        assert all(torch.equal(value, before[name]) for name, value in one.state_dict(prefix=str(id(one))).items())


def test_the_best_by_score_is_kept() -> None:
    network = seeded(lambda: make(5, widths=(8, 16), depths=(1, 1), reduction=4))
    images = torch.rand(80, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    pruned = zeroed(network, 0.5)
    for wanted in ("cut", "batch norm", "least squares", "both"):
        scores = dict.fromkeys(("cut", "batch norm", "least squares", "both"), float("nan")) | {wanted: 3.0}
        told = iter(scores.values())
        found = make_up(network, pruned, images, lambda _, told=told: next(told))  # type: ignore[misc]
        assert found.how == wanted and found.losses[wanted] == 3.0


class Shared(nn.Module):
    """Two layers of one weight, and a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(150, 2)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) + self.right(x).flip(-1)).flatten(1))


def test_what_cannot_be_solved_stays_and_is_named() -> None:
    network = seeded(Shared)
    pruned = zeroed(network, 0.5)
    solved = solve(network, pruned, IMAGES[:40], zeros="move")
    assert solved.left["left"] == solved.left["right"] == "it shares its weight"
    assert solved.left["head"] == "31 places are too few for 76 unknowns; give more images", "75 of 150 weights of a row, and the offset"
    assert torch.equal(solved.network.head.weight, pruned.head.weight)  # type: ignore[union-attr, arg-type]
    images = IMAGES.clone()
    images[7] = torch.inf
    assert (
        "head" in (left := solve(network, pruned, images, zeros="stay").left) and left["head"] == "what it reads, or gives, is not finite"
    )


class Odd(nn.Module):
    """``late`` reads only the brighter images, ``again`` is called when the mean of all is, ``named`` by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.named, self.late, self.again = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.named(input=self.first(x))
        if x.mean() > 0:
            x = self.again(x)
        y = self.late(x[x.mean((1, 2, 3)) > x.mean()])
        return x.mean((2, 3)) + y.mean()


@pytest.mark.parametrize("room", [512e6, 8 * 4 * 6 * 25 * 16])
def test_networks_that_compute_by_their_data_are_pruned_too(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one chunk and in several, of which each may be computed by other layers."""
    monkeypatch.setattr(layerwise, "ROOM", room)
    network = seeded(Odd)
    solved = solve(network, zeroed(network, 0.5), IMAGES, zeros="move")
    assert "first" in solved.layers
    assert solved.left["named"] == solved.left["late"] == "what it reads is given by name, or at other places than before"
    assert solved.network.training is False


def test_progress_is_told_to_the_end() -> None:
    network, told = seeded(lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))), []
    found: Solved = solve(network, zeroed(network, 0.5), IMAGES, zeros="move", progress=lambda *one: told.append(one))
    assert told == [(1, 2), (2, 2)] and set(found.layers) == {"0", "2"}
