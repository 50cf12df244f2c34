"""Which units of channel groups stay, by their scores.

By hand: a group of the scores ``[3, 1, 2, 4]`` at sparsity 0.5 keeps units 0 and 3.

Refuses: a sparsity outside (0, 1), scores that are missing or not finite, and a goal that cannot be reached; it names the nearest that can.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..errors import CompressError
from .groups import ChannelGroup, Groups

SCOPES = ("global", "group")
Kept = dict[str, tuple[int, ...]]
Way = Callable[[float], Kept]  # a number in (0, 1] to the units that stay, the fewest at 1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How units are chosen.

    ``scope``: "global" ranks the units of all groups together, "group" takes the same fraction of each. ``round_to``: a group keeps a
    multiple of this many channels, or all. ``floor``: the fraction of its units that every group keeps at least, never less than one;
    of its ``original`` width where that is given, for a network that was cut before.
    """

    scope: str = "global"
    round_to: int = 1
    floor: float = 0.1
    original: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise CompressError(f'scope (="{self.scope}") must be "global" (one ranking over all groups) or "group" (one in each)')
        if self.round_to < 1:
            raise CompressError(f"round_to (={self.round_to}) must be at least 1; 8 keeps multiples of 8 channels")
        if not 0 <= self.floor < 1:
            raise CompressError(f"floor (={self.floor}) must lie in [0, 1); 0.1 keeps a tenth of every group")


USUAL = Choice()


def choose(groups: Groups, scores: Mapping[str, Tensor], sparsity: float, how: Choice = USUAL) -> Kept:
    """The units that stay when ``sparsity`` of all removable channels go; rounding may move each group by less than ``round_to``.

    Args:
        scores: of :func:`importance`, or any other: group name to (width,), larger stays longer.
        sparsity: fraction of channels to remove, in (0, 1).

    Returns:
        Group name to the sorted units that stay, as ``channels.cut.remove_channels`` takes it.

    Raises:
        CompressError: sparsity, scores, or a sparsity beyond what the floors leave; the message names the largest that can be reached.
    """
    if not 0 < sparsity < 1:
        raise CompressError(f"sparsity (={sparsity}) must lie in (0, 1); 0.5 removes half of the channels")
    check(groups, scores)
    total = sum(group.width * group.channels for group in groups)
    most = sum((group.width - _least(group, how)) * group.channels for group in groups)
    if sparsity > most / total + 1e-9:
        raise CompressError(
            f"sparsity (={sparsity}) cannot be reached: with floor {how.floor} at most {math.floor(1e4 * most / total) / 1e4} of the "
            f"{total} channels that can be removed go; ask for that or lower the floor"
        )
    return _choose(groups, scores, sparsity, how)


def choose_for(groups: Groups, scores: Mapping[str, Tensor], cost: Callable[[Kept], float], goal: float, how: Choice = USUAL) -> Kept:
    """The units that stay when as few channels go as bring ``cost`` down to ``goal``, by bisection over the sparsity.

    Where rounding took more than the goal asks for, what is left to spend goes back to the groups whose next units score highest.

    Args:
        cost: of the network that keeps these units, e.g. ``lambda keep: macs_after(groups, keep)``; some 12 calls are made, and one or two
            for each group.
        goal: in the unit of ``cost``, positive.

    Raises:
        CompressError: a goal that is not positive, or below what the floors leave; the message names the nearest.
    """
    check(groups, scores)
    ways = [lambda sparsity: _choose(groups, scores, sparsity, how)]
    keep = reach(groups, cost, goal, ways, f"its floor ({how.floor})", " or lower the floor")
    return _filled(groups, scores, cost, goal, how, keep)


def reach(groups: Groups, cost: Callable[[Kept], float], goal: float, ways: Sequence[Way], limit: str, remedy: str) -> Kept:
    """Everything, or what the first of ``ways`` that can meet the goal keeps at the smallest number that does, by bisection.

    Raises CompressError where none can; ``limit`` says where the last way has every group at 1, ``remedy`` what to do about it.
    """
    if not (goal > 0 and math.isfinite(goal)):
        raise CompressError(f"goal (={goal}) must be a positive number, in the unit of the cost")
    if (before := cost(groups.everything)) <= goal:
        return groups.everything
    if (least := cost(ways[-1](1.0))) > goal:
        raise CompressError(
            f"goal (={goal:g}) cannot be reached: with every group at {limit} {least:g} of {before:g} is left, "
            f"{math.ceil(1e3 * least / before) / 1e3}x; ask for that{remedy}"
        )
    way = next((way for way in ways[:-1] if cost(way(1.0)) <= goal), ways[-1])
    met = bisect_left(range(1, 4096), True, key=lambda part: cost(way(part / 4096)) <= goal)
    return way((met + 1) / 4096)


def at_floor(groups: Groups, scores: Mapping[str, Tensor], how: Choice) -> Kept:
    """The least that can be left: every group at its floor, rounded."""
    check(groups, scores)
    return _choose(groups, scores, 1.0, how)


def size_after(network: nn.Module, groups: Groups, keep: Mapping[str, tuple[int, ...]]) -> int:
    """Parameters of the network that keeps these units, found without cutting it."""
    return sum(groups.sizes_left(keep, ((name, value.shape) for name, value in network.named_parameters())))


def macs_after(groups: Groups, keep: Mapping[str, tuple[int, ...]]) -> int:
    """MACs of one image in the network that keeps these units, found without cutting it: what ``count_cost`` would count."""
    left = groups.sizes_left(keep, ((name, shape) for name, shape, _ in groups.uses))
    return round(sum(each * size for size, (_, _, each) in zip(left, groups.uses, strict=True)))


def _choose(groups: Groups, scores: Mapping[str, Tensor], sparsity: float, how: Choice) -> Kept:
    if how.scope == "group":
        return {g.name: best_units(g, scores[g.name], round((1 - sparsity) * g.width), how) for g in groups}
    ranked = sorted((score, number) for number, g in enumerate(groups) for score in scores[g.name].tolist())
    left, least = {number: g.width for number, g in enumerate(groups)}, [_least(g, how) for g in groups]
    away, wanted = 0, sparsity * sum(group.width * group.channels for group in groups)
    for _, number in ranked:
        group = groups[number]
        if away + group.channels / 2 > wanted:
            break
        if left[number] > least[number]:
            left[number] -= 1
            away += group.channels
    return {g.name: best_units(g, scores[g.name], left[number], how) for number, g in enumerate(groups)}


def _filled(groups: Groups, scores: Mapping[str, Tensor], cost: Callable[[Kept], float], goal: float, how: Choice, keep: Kept) -> Kept:
    """``keep`` with the next units of groups put back, the best first, as long as the goal is still met."""
    open_groups = [group for group in groups if len(keep[group.name]) < group.width]
    while open_groups:
        wider = {g.name: best_units(g, scores[g.name], len(keep[g.name]) + _step(g, how), how) for g in open_groups}
        gain = {name: float(scores[name][list(set(units) - set(keep[name]))].mean()) for name, units in wider.items()}
        group = max(open_groups, key=lambda g: gain[g.name])
        tried = keep | {group.name: wider[group.name]}
        if cost(tried) <= goal:
            keep = tried
        if keep is not tried or len(keep[group.name]) == group.width:
            open_groups.remove(group)
    return keep


def best_units(group: ChannelGroup, scores: Tensor, count: int, how: Choice) -> tuple[int, ...]:
    """The best ``count`` units, of equal ones the later; rounded, and not below the floor."""
    step = _step(group, how)
    least = math.ceil(_least(group, how) / step) * step
    count = min(max(round(count / step) * step, least), group.width)
    return tuple(sorted(scores.argsort(stable=True)[group.width - count :].tolist()))


def _step(group: ChannelGroup, how: Choice) -> int:
    """The units that rounding takes at once."""
    return math.lcm(how.round_to, group.channels) // group.channels


def _least(group: ChannelGroup, how: Choice) -> int:
    return min(group.width, max(1, math.ceil(how.floor * how.original.get(group.name, group.width) - 1e-9)))


def check(groups: Groups, scores: Mapping[str, Tensor]) -> None:
    """Raise CompressError where there is nothing to choose from, or a group has no finite score for each of its units."""
    if not groups.groups:
        raise CompressError("network has no channels that can be removed; what was left whole says why")
    for group in groups:
        score = scores.get(group.name)
        if score is None or tuple(score.shape) != (group.width,) or not score.isfinite().all():
            raise CompressError(f'scores: "{group.name}" needs {group.width} finite numbers, one for each of its units')
