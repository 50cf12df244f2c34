"""Coupled channel groups: what must be removed together, written so that it can be read.

By hand: ``nn.Sequential(Conv2d(1, 4, 3), BatchNorm2d(4), ReLU(), Conv2d(4, 2, 3))``, its layers called A, bn, relu and B. Channel 3 of A
is row 3 of A's weight (4, 1, 3, 3) and element 3 of its bias; it passes through element 3 of bn's weight, bias, running mean and running
variance, and is read by column 3 of B's weight (2, 4, 3, 3). Remove one of these and all must go, so they are one unit. The four units
of A touch the same parameters in the same way: they are one group of width 4. B's outputs leave the network: they are left whole.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..errors import CompressError
from .trace import Operation, Trace


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a group takes of one dimension of a parameter or buffer: ``positions[u]`` are the indices of unit ``u``."""

    parameter: str
    dim: int
    role: str  # "output" and "input" of a layer, or "each": one value per channel
    positions: tuple[tuple[int, ...], ...]

    @property
    def layer(self) -> str:
        return _layer(self.parameter)


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Units that can be removed one by one, each with everything that goes with it; ``width`` is how many there are.

    ``name`` is that of the layer which makes the channels; ``str(group)`` says what removing one of them removes.
    """

    name: str
    cuts: tuple[Cut, ...]

    @property
    def width(self) -> int:
        return len(self.cuts[0].positions)

    @cached_property
    def channels(self) -> int:
        """How many channels of its first layer one unit takes: 1, or those of one group of a grouped convolution."""
        return len(self.made.positions[0])

    @cached_property
    def made(self) -> Cut:
        """The outputs of the layer that makes the channels."""
        return next(cut for cut in self.cuts if cut.role == "output")

    def describe(self, unit: int) -> str:
        """``removing channel 3 of A removes channel 3 of bn, input 3 of B and input 19 of C``."""
        words = {"input": "input", "output": "channel", "each": "channel"}
        said = dict.fromkeys(f"{_ranges(words[cut.role], cut.positions[unit])} of {cut.layer}" for cut in self.cuts)
        first = f"{_ranges('channel', self.made.positions[unit])} of {self.made.layer}"
        return f"removing {first} removes {_listed([part for part in said if part != first])}"

    def __str__(self) -> str:
        return self.describe(min(3, self.width - 1))


@dataclass(frozen=True, kw_only=True)
class LeftWhole:
    """Channels that are not removed, and why; ``channels`` is 0 for a module in which something was not understood."""

    name: str
    channels: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {f'{self.channels} channels ' if self.channels else ''}left whole: {self.reason}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Mean:
    """One input of a layer that is the mean over channels; with some of them gone its weights shrink by kept/all, so the sum stays."""

    parameter: str
    dim: int
    index: int
    units: Tensor  # of every channel that it is the mean over


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Groups(Sequence[ChannelGroup]):
    """The channel groups of one network, what was left whole, and what surgery needs to know to prove itself."""

    groups: tuple[ChannelGroup, ...]
    left_whole: tuple[LeftWhole, ...]
    means: tuple[Mean, ...]
    uses: tuple[tuple[str, tuple[int, ...], float], ...]  # each use of a weight: name, shape, MACs of each of its elements per image
    operations: tuple[Operation, ...]
    example: Tensor
    unit_of: Tensor  # identity to unit, counted over all groups; -1 for what stays

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.groups[index]

    def __str__(self) -> str:
        lines = [f"{g.name}: {g.width} {'channels' if g.channels == 1 else f'times {g.channels} channels'}; {g}" for g in self.groups]
        return "\n".join([*lines, *map(str, self.left_whole)])

    def summary(self) -> dict[str, list[dict[str, Any]]]:
        """Name, width and an example of every group, and what was left whole and why; for JSON."""
        found = [{"name": g.name, "width": g.width, "channels": g.channels, "example": str(g)} for g in self.groups]
        return {"groups": found, "left_whole": [asdict(one) for one in self.left_whole]}

    @cached_property
    def by_name(self) -> dict[str, ChannelGroup]:
        return {group.name: group for group in self.groups}

    @property
    def everything(self) -> dict[str, tuple[int, ...]]:
        """Group name to all of its units."""
        return {group.name: tuple(range(group.width)) for group in self.groups}

    def units(self, labels: Tensor) -> Tensor:
        """The unit of each label, -1 for what stays."""
        return torch.where(labels >= 0, self.unit_of[labels.clamp_min(0)], -1)

    def kept(self, keep: Mapping[str, Sequence[int]]) -> Tensor:
        """Which units stay, bool (units + 1,); the last one is for -1, what always stays.

        Raises:
            CompressError: a name is no group's, or the indices are not sorted ones of at least one of its units.
        """
        for name, chosen in keep.items():
            if (group := self.by_name.get(name)) is None:
                raise CompressError(f'keep: "{name}" is no channel group of this network; it has {", ".join(self.by_name) or "none"}')
            if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= group.width:
                raise CompressError(
                    f'keep: "{name}" (={list(chosen)[:8]}) must list units of 0 to {group.width - 1}, at least one, sorted and each once'
                )
        stay = {**self.everything, **keep}
        rows = [torch.isin(torch.arange(group.width), torch.tensor(stay[group.name])) for group in self.groups]
        return torch.cat([*rows, torch.ones(1, dtype=torch.bool)])

    def sizes_left(self, keep: Mapping[str, Sequence[int]], shapes: Iterable[tuple[str, Sequence[int]]]) -> Iterator[int]:
        """How many elements are left of parameters, or of what is computed by them, of these names and shapes."""
        gone = Counter[tuple[str, int]]()
        for group in self.groups:
            away = group.width - len(keep.get(group.name, range(group.width)))
            for cut in group.cuts if away else ():
                gone[cut.parameter, cut.dim] += away * len(cut.positions[0])
        for name, shape in shapes:
            yield math.prod(size - gone[name, dim] for dim, size in enumerate(shape))

    def removed(self, keep: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], set[int]]:
        """Parameter and dimension to the indices that go."""
        self.kept(keep)
        gone: dict[tuple[str, int], set[int]] = {}
        for group in self.groups:
            away = set(range(group.width)) - set(keep.get(group.name, range(group.width)))
            for cut in group.cuts if away else ():
                gone.setdefault((cut.parameter, cut.dim), set()).update(i for unit in away for i in cut.positions[unit])
        return gone


def assemble(trace: Trace, example: Tensor) -> Groups:
    """Sort the identities of a finished trace into groups and what stays."""
    ids = trace.identities
    frozen = ids.frozen_roots()
    read = set(torch.unique(ids.roots(torch.cat([torch.empty(0, dtype=torch.int64), *trace.mixed]))).tolist())
    found: dict[int, dict[tuple[str, int], list[int]]] = {}
    for key, slot in trace.slots.items():
        for index, root in enumerate(ids.roots(slot.labels).tolist()):
            if root >= 0:
                found.setdefault(root, {}).setdefault(key, []).append(index)
    alike: dict[tuple[tuple[str, int, int], ...], list[int]] = {}
    whole: Counter[tuple[str, str]] = Counter()
    for root, uses in found.items():
        output = next((key for key in uses if trace.slots[key].role == "output"), None)
        if output and (root in frozen or root not in read):
            whole[_layer(output[0]), frozen.get(root, "nothing that was seen reads them")] += len(uses[output])
        elif output:
            alike.setdefault(tuple((name, dim, len(at)) for (name, dim), at in uses.items()), []).append(root)
    groups: list[ChannelGroup] = []
    units: dict[int, int] = {}
    names: Counter[str] = Counter()
    for signature, roots in alike.items():
        cuts = tuple(
            Cut(parameter=name, dim=dim, role=trace.slots[name, dim].role, positions=tuple(tuple(found[r][name, dim]) for r in roots))
            for name, dim, _ in signature
        )
        made = next(cut for cut in cuts if cut.role == "output")
        if len(roots) == 1:
            whole[made.layer, "they can only go all together"] += len(made.positions[0])
            continue
        names[made.layer] += 1
        units.update({root: len(units) + i for i, root in enumerate(roots)})
        groups.append(ChannelGroup(name=made.layer if names[made.layer] == 1 else f"{made.layer}#{names[made.layer]}", cuts=cuts))
    every = ids.roots(torch.arange(ids.count))
    unit_of = torch.tensor([units.get(root, -1) for root in every.tolist()], dtype=torch.int64)
    left = [LeftWhole(name=name, channels=count, reason=reason) for (name, reason), count in whole.items() if count > 1]
    left += [LeftWhole(name=name, channels=0, reason=reason) for name, reason in trace.unknown.items()]
    means = [
        Mean(parameter=name, dim=dim, index=index, units=unit_of[ids.means[label].clamp_min(0)].where(ids.means[label] >= 0, -1))
        for (name, dim), slot in trace.slots.items()
        for index, label in enumerate(slot.labels.tolist())
        if label in ids.means
    ]
    return Groups(
        groups=tuple(groups),
        left_whole=tuple(left),
        means=tuple(means),
        uses=tuple(trace.uses),
        operations=tuple(trace.operations),
        example=example,
        unit_of=unit_of,
    )


def _layer(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter


def _ranges(word: str, positions: Sequence[int]) -> str:
    """``channel 3``, ``inputs 75 to 99``, ``inputs 3 and 19``."""
    runs = [[position for _, position in run] for _, run in groupby(enumerate(positions), lambda at: at[1] - at[0])]
    said = [str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"{word}{'s' if len(positions) > 1 else ''} {_listed(said if len(said) <= 4 else [*said[:3], f'{len(said) - 3} more'])}"


def _listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
