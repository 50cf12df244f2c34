"""Sensitivity: what a network loses when one layer is pruned, one channel group made smaller or one module bypassed, all else untouched.

Nothing is fine-tuned, at most reconstructed, so the losses are larger than those of a network that is; their order is what counts. By hand:
a layer whose cross-entropy rises by 0.1 at sparsity 0.5 and by 0.5 at 0.9 bears sparsity 0.7 if it may rise by 0.3, half way between.

Channels are really removed, never zeroed. Refuses: curves that do not fit the groups, and a goal that cannot be reached; it names the
nearest that can.

Source: Li et al. 2017, arXiv:1608.08710 (sensitivity of each layer, section 4); its use for a choice under one common loss is ours.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import CompressError
from ..pruning.masks import apply_masks, sparsity_by_layer, weight_masks
from .bypass import bypass
from .choose import USUAL, Choice, Kept, best_units, check, reach
from .cut import remove_channels
from .groups import Groups

DROPS = 1e6  # the largest drop over the smallest that is told apart when a goal is sought
Curves = Mapping[str, Mapping[float, float]]  # name to sparsity to rise of the loss, by rising sparsity


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a network scores: balanced accuracy in 0..1, and mean cross-entropy in nats."""

    balanced_accuracy: float
    cross_entropy: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A score at one ``sparsity``; ``removed`` is what that came to in weights, units of channels, or parameters."""

    sparsity: float
    removed: int
    score: Score


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The points of one layer, group or module, by rising sparsity; ``size``: its weights, units of channels, or parameters."""

    name: str
    size: int
    points: tuple[Point, ...]


Measure = Callable[[nn.Module], Score]
Progress = Callable[[str, int, int], None]
Repair = Callable[[nn.Module, Kept], nn.Module]
Cut = Callable[[str, float], tuple[int, nn.Module]]  # a name and a sparsity to what that comes to, and the network without it


def weight_curves(network: nn.Module, sparsities: Sequence[float], measure: Measure, progress: Progress) -> Iterator[Curve]:
    """Zero the smallest weights of one layer after the other, at each sparsity.

    Args:
        network: any module; it is not changed.
        sparsities: in (0, 1), rising.
        measure: scores a network; called once for each layer and sparsity that zeroes another number of its weights.
        progress: gets a name, how many measurements are done, and how many there are.

    Raises:
        CompressError: the network has nothing to prune, see ``pruning.masks``.
    """
    masks = {sparsity: weight_masks(network, sparsity, scope="layer") for sparsity in sparsities}

    def cut(name: str, sparsity: float) -> tuple[int, nn.Module]:
        pruned, mask = copy.deepcopy(network), masks[sparsity][name]
        apply_masks(pruned, {name: mask})
        return int((~mask).sum()), pruned

    return _curves({layer.name: layer.weights for layer in sparsity_by_layer(network)}, sparsities, cut, measure, progress)


def channel_curves(
    network: nn.Module,
    groups: Groups,
    scores: Mapping[str, Tensor],
    sparsities: Sequence[float],
    measure: Measure,
    progress: Progress,
    repair: Repair = lambda pruned, keep: pruned,
) -> Iterator[Curve]:
    """Remove the least important units of one channel group after the other, at each sparsity; one unit always stays.

    Args:
        groups, scores: of ``channels.find.channel_groups`` and ``channels.scores.importance`` for this network. The rest
            is as for :func:`weight_curves`.
        repair: makes the network that is measured of one that was cut to what it keeps, as ``channels.reconstruct`` does.

    Raises:
        CompressError: the network has no channels that can be removed, or they cannot be cut.
    """
    check(groups, scores)

    def cut(name: str, sparsity: float) -> tuple[int, nn.Module]:
        width = groups.by_name[name].width
        keep = best_units(groups.by_name[name], scores[name], round((1 - sparsity) * width), Choice(floor=0))
        return width - len(keep), repair(remove_channels(network, groups, {name: keep}), {name: keep})

    return _curves({group.name: group.width for group in groups}, sparsities, cut, measure, progress)


def module_curves(
    network: nn.Module,
    names: Sequence[str],
    measure: Measure,
    progress: Progress,
    repair: Callable[[nn.Module], nn.Module] = lambda bypassed: bypassed,
) -> Iterator[Curve]:
    """Bypass one module after the other: curves of one point, at sparsity 1.

    ``names``: see ``channels.bypass.bypassable``. ``repair``: makes the network that is measured of one without a module.
    """
    sizes = {name: sum(parameter.numel() for parameter in network.get_submodule(name).parameters()) for name in names}

    def cut(name: str, _: float) -> tuple[int, nn.Module]:
        pruned = copy.deepcopy(network)
        bypass(pruned, [name])
        return sizes[name], repair(pruned)

    return _curves(sizes, (1.0,), cut, measure, progress)


def _curves(sizes: Mapping[str, int], sparsities: Sequence[float], cut: Cut, measure: Measure, progress: Progress) -> Iterator[Curve]:
    for index, (name, size) in enumerate(sizes.items()):
        points, known = [], dict[int, Score]()  # few units: several sparsities come to the same
        for done, sparsity in enumerate(sparsities, index * len(sparsities)):
            progress(name, done, len(sizes) * len(sparsities))
            removed, pruned = cut(name, sparsity)
            if removed not in known:
                known[removed] = measure(pruned)
            points.append(Point(sparsity=sparsity, removed=removed, score=known[removed]))
        yield Curve(name=name.removesuffix(".weight"), size=size, points=tuple(points))


def loss_rises(baseline: Score, curves: Iterable[Curve]) -> dict[str, dict[float, float]]:
    """Of each curve the rise of the cross-entropy above the baseline's by sparsity, as it came out in whole weights or channels."""
    return {c.name: {p.removed / c.size: p.score.cross_entropy - baseline.cross_entropy for p in c.points} for c in curves}


def sparsities_for(curves: Curves, drop: float) -> dict[str, float]:
    """For each group the largest sparsity at which the loss rises by ``drop`` at most, and no larger one than was measured.

    Between the points, and from (0, 0) to the first, the loss is taken to rise in a straight line; it never falls: a point that lies
    lower than one before it counts as that one.

    Args:
        curves: name to sparsity in [0, 1] to rise of the loss, by rising sparsity.
        drop: at least 0, in the unit of the rise.
    """
    found = {}
    for name, rises in curves.items():
        x, y = 0.0, 0.0
        for sparsity, rise in rises.items():
            if rise > drop:
                x += (sparsity - x) * (drop - y) / (rise - y)
                break
            x, y = sparsity, max(y, rise)
        found[name] = x
    return found


def choose_by_curves(
    groups: Groups, scores: Mapping[str, Tensor], curves: Curves, cost: Callable[[Kept], float], goal: float, how: Choice = USUAL
) -> Kept:
    """The units that stay when every group gives what it bears: the loss that each may cost alone is the same for all.

    The smallest such loss that brings ``cost`` down to ``goal`` is found by bisection. Where even a loss of nothing removes more than is
    asked for, every group gives the same share of that.

    Args:
        scores: of ``channels.scores.importance``, which say what goes first in each group.
        curves: of :func:`loss_rises`, with each of the groups.
        cost: of the network that keeps these units, e.g. ``lambda keep: macs_after(groups, keep)``; some 14 calls are made.
        goal: in the unit of ``cost``, positive.
        how: its ``floor`` and ``round_to`` hold; its ``scope`` is without effect.

    Returns:
        Group name to the sorted units that stay, as ``channels.cut.remove_channels`` takes it.

    Raises:
        CompressError: curves that are missing, a goal that is not positive, or one beyond what was measured or the floors
            leave; it names the nearest.
    """
    check(groups, scores)
    if missing := [group.name for group in groups if not curves.get(group.name)]:
        raise CompressError(f'curves: "{missing[0]}" was not measured; run `compress sensitivity --granularity channel` on this network')

    def kept(drop: float, share: float = 1.0) -> Kept:
        sparsities = sparsities_for(curves, drop)
        return {g.name: best_units(g, scores[g.name], round((1 - share * sparsities[g.name]) * g.width), how) for g in groups}

    most = max(0.0, *(rise for group in groups for rise in curves[group.name].values()))
    ways = [lambda share: kept(0, share=share), lambda step: kept(most * DROPS ** (step - 1))]
    limit = f"the largest sparsity measured or its floor ({how.floor})"
    return reach(groups, cost, goal, ways, limit, ", measure larger sparsities or lower the floor")
