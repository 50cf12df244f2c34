"""Sensitivity: what a network loses when one layer is pruned, one channel group made smaller or one module bypassed, all else untouched.

Nothing is fine-tuned, so the losses are larger than those of a network that is; their order is what counts. By hand: a layer whose
cross-entropy rises by 0.1 at sparsity 0.5 and by 0.5 at 0.9 bears sparsity 0.7 if it may rise by 0.3, half way between.

Channels are really removed, never zeroed. Refuses: curves that do not fit the groups, and a goal that cannot be reached; it names the
nearest that can.

Source: Li et al. 2017, arXiv:1608.08710 (sensitivity of each layer, section 4); its use for a choice under one common loss is ours.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import CompressError
from ..pruning.masks import apply_masks, sparsity_by_layer, weight_masks
from .bypass import bypass
from .choose import Choice, Kept, best_units
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


def weight_curves(network: nn.Module, sparsities: Sequence[float], measure: Measure, progress: Progress) -> Iterator[Curve]:
    """Zero the smallest weights of one layer after the other, at each sparsity.

    Args:
        network: any module; it is not changed.
        sparsities: in (0, 1), rising.
        measure: scores a network; called once for each layer and sparsity.
        progress: gets a name, how many measurements are done, and how many there are.

    Raises:
        CompressError: the network has nothing to prune, see ``pruning.masks``.
    """
    layers = sparsity_by_layer(network)
    masks = [weight_masks(network, sparsity, scope="layer") for sparsity in sparsities]
    for index, layer in enumerate(layers):
        points = []
        for done, (sparsity, mask) in enumerate(zip(sparsities, masks, strict=True), index * len(masks)):
            progress(layer.name, done, len(layers) * len(masks))
            pruned = copy.deepcopy(network)
            apply_masks(pruned, {layer.name: mask[layer.name]})
            points.append(Point(sparsity=sparsity, removed=int((~mask[layer.name]).sum()), score=measure(pruned)))
        yield Curve(name=layer.name.removesuffix(".weight"), size=layer.weights, points=tuple(points))


def channel_curves(
    network: nn.Module, groups: Groups, scores: Mapping[str, Tensor], sparsities: Sequence[float], measure: Measure, progress: Progress
) -> Iterator[Curve]:
    """Remove the least important units of one channel group after the other, at each sparsity; one unit always stays.

    Args:
        groups, scores: of ``channels.find.channel_groups`` and ``channels.scores.importance`` for this network. The rest
            is as for :func:`weight_curves`.

    Raises:
        CompressError: the network has no channels that can be removed, or they cannot be cut.
    """
    _need(groups)
    for index, group in enumerate(groups):
        points: list[Point] = []
        for done, sparsity in enumerate(sparsities, index * len(sparsities)):
            progress(group.name, done, len(groups) * len(sparsities))
            keep = best_units(group, scores[group.name], round((1 - sparsity) * group.width), Choice(floor=0))
            removed = group.width - len(keep)
            known = [point.score for point in points if point.removed == removed]  # few units: several sparsities come to the same
            score = known[0] if known else measure(remove_channels(network, groups, {group.name: keep}))
            points.append(Point(sparsity=sparsity, removed=removed, score=score))
        yield Curve(name=group.name, size=group.width, points=tuple(points))


def module_curves(network: nn.Module, names: Sequence[str], measure: Measure, progress: Progress) -> Iterator[Curve]:
    """Bypass one module after the other: curves of one point, at sparsity 1. ``names``: see ``channels.bypass.bypassable``."""
    for index, name in enumerate(names):
        progress(name, index, len(names))
        pruned = copy.deepcopy(network)
        bypass(pruned, [name])
        size = sum(parameter.numel() for parameter in network.get_submodule(name).parameters())
        yield Curve(name=name, size=size, points=(Point(sparsity=1.0, removed=size, score=measure(pruned)),))


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
    return {name: _sparsity_for(points, drop) for name, points in curves.items()}


def _sparsity_for(rises: Mapping[float, float], drop: float) -> float:
    x, y = 0.0, 0.0
    for sparsity, rise in rises.items():
        if rise > drop:
            return x + (sparsity - x) * (drop - y) / (rise - y)
        x, y = sparsity, max(y, rise)
    return x


def choose_by_curves(
    groups: Groups, scores: Mapping[str, Tensor], curves: Curves, cost: Callable[[Kept], float], goal: float, how: Choice | None = None
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
    how = how or Choice()
    _need(groups)
    if not (goal > 0 and math.isfinite(goal)):
        raise CompressError(f"goal (={goal}) must be a positive number, in the unit of the cost")
    if missing := [group.name for group in groups if not curves.get(group.name)]:
        raise CompressError(f'curves: "{missing[0]}" was not measured; run `compress sensitivity --granularity channel` on this network')

    keep: Kept = {group.name: tuple(range(group.width)) for group in groups}
    before = cost(keep)
    if before <= goal:
        return keep

    def kept(drop: float, share: float = 1.0) -> Kept:
        sparsities = sparsities_for(curves, drop)
        return {g.name: best_units(g, scores[g.name], round((1 - share * sparsities[g.name]) * g.width), how) for g in groups}

    most = max(0.0, *(rise for group in groups for rise in curves[group.name].values()))
    if (least := cost(kept(most))) > goal:
        raise CompressError(
            f"goal (={goal:g}) cannot be reached: with every group at the largest sparsity measured or its floor ({how.floor}) {least:g} "
            f"of {before:g} is left, {math.ceil(1e3 * least / before) / 1e3}x; ask for that, measure larger sparsities or lower the floor"
        )
    if cost(kept(0)) <= goal:
        return _first(lambda share: kept(0, share=share), cost, goal)
    return _first(lambda step: kept(most * DROPS ** (step - 1)), cost, goal)


def _first(at: Callable[[float], Kept], cost: Callable[[Kept], float], goal: float) -> Kept:
    """``at`` the smallest number in (0, 1] that meets the goal, which ``at(1)`` does."""
    low, high, keep = 0.0, 1.0, at(1.0)
    while high - low > 1 / 4096:
        middle = (low + high) / 2
        tried = at(middle)
        if cost(tried) <= goal:
            high, keep = middle, tried
        else:
            low = middle
    return keep


def _need(groups: Groups) -> None:
    if not groups.groups:
        raise CompressError("network has no channels that can be removed; what was left whole says why")
