"""What channel removal does in one step before its fine-tuning: what may go, what goes, and what that gains; kept across a kill."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ...artifacts.artifact import Artifact
from ...artifacts.cost import MULTIPLES, Cost, count_cost
from ...artifacts.load import Prepare, load_to_cut
from ...artifacts.parts import Metrics, Plan, Rounding
from ...artifacts.project import Project
from ...artifacts.records import seconds_of
from ...benchmarks.statistics import Interval
from ...channels.bypass import bypass
from ...channels.choose import Choice, Kept, at_floor, choose, choose_for, macs_after, size_after
from ...channels.curves import Curves, choose_by_curves
from ...channels.cut import remove_channels
from ...channels.find import channel_groups
from ...channels.groups import Groups
from ...channels.scores import both, importance
from ...errors import CompressError
from ...train.data_set import Part
from ...train.split import stratified_sample
from ..finetune import affordable, batch_losses
from ..remove_channels import STAGE, out_of_reach
from ..sensitivity import loss_curves
from .goals import MEMORY
from .latency import MOST, Latencies, reach_latency

if TYPE_CHECKING:
    from ..remove_channels import Job
    from .goals import RemoveConfig

USUAL = 4  # a multiple that is fast more often than not, and leaves a choice


class OutOfTime(Exception):
    """The time limit is over, and what is known by now must do."""


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """One step before its fine-tuning: what may go, what goes, and what that gains."""

    job: "Job"
    parent: Artifact
    config: "RemoveConfig"
    scored: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by importance, found once for all that are made of this one

    @cached_property
    def network(self) -> nn.Module:
        """The parent without what is bypassed in this step."""
        network = load_to_cut(self.parent)
        bypass(network, self.config.bypass)
        return network

    @cached_property
    def example(self) -> Tensor:
        return example_of(self.job.project)

    @cached_property
    def groups(self) -> Groups:
        return channel_groups(self.network, self.example)

    @cached_property
    def until(self) -> float:
        """When the search for what goes is to answer, as ``time.monotonic()`` tells; it begins when this is asked first."""
        limit = self.config.time_limit
        return math.inf if limit is None else time.monotonic() + seconds_of(limit, "time_limit")

    @cached_property
    def curves(self) -> Curves:
        """What each group bears; those that there was no time to measure are taken to bear what the most sensitive of the others does."""
        limit = None if self.until == math.inf else max(0.0, self.until - time.monotonic())
        measured = loss_curves(self.job.project, self.job.recipe, self.parent, limit)
        most = max(measured.values(), key=lambda rises: max(rises.values()))
        return {group.name: measured.get(group.name, most) for group in self.groups}

    @cached_property
    def latencies(self) -> Latencies:
        """Fractions of the teacher's latency; what is not known when the time is over raises OutOfTime."""

        def measure(keep: Kept, rounds: int | None) -> Interval:
            if time.monotonic() >= self.until:
                raise OutOfTime
            return self.job.clock.ratio(self.cut(keep), goal=self.config.max_latency, rounds=rounds)

        return Latencies(self.groups, measure, self.job.table)

    @property
    def importances(self) -> dict[str, Tensor]:
        """The importance of each unit."""
        kind = self.config.importance
        if kind not in self.scored:
            if kind == "bn-fluctuation":
                self.scored[kind] = both(self.by("bn").importances, self.by("fluctuation").importances)
            else:
                project, part = self.job.project, self.job.project.data.train
                count = affordable(self.config.images, project)
                chosen = stratified_sample(part.labels, min(count, len(part.labels)), seed=0)
                sample = Part(part.images[chosen], part.labels[chosen])
                self.scored[kind] = importance(self.network, self.groups, kind, batch_losses(project, self.network, sample))
                self.network.cpu()
        return self.scored[kind]

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """By what units are ranked."""
        if self.config.sparsity is not None or self.config.scope == "group" or not self.config.per_cost:
            return self.importances
        cheap = [self.costs[name] for name in ("max_macs", "max_size") if name in self.limits] or [self.costs["max_macs"]]
        every, scores = self._everything(), {}
        for group in self.groups:
            without = every | {group.name: every[group.name][1:]}
            saved = max(cost(every) - cost(without) for cost in cheap)
            scores[group.name] = self.importances[group.name] / max(saved, torch.finfo(torch.float64).tiny)
        return scores

    @cached_property
    def whole(self) -> Cost:
        return count_cost(load_to_cut(self.job.origin), self.example)

    @cached_property
    def fixed_macs(self) -> int:
        """MACs of what no channel can be removed from, such as products of two activations."""
        return count_cost(self.network, self.example).macs - macs_after(self.groups, self._everything())

    @cached_property
    def costs(self) -> dict[str, Callable[[Kept], float]]:
        """For each goal, the cost of a choice as a fraction of the teacher's; the cheap ones first."""
        return {
            "max_macs": lambda keep: (macs_after(self.groups, keep) + self.fixed_macs) / self.whole.macs,
            "max_size": lambda keep: size_after(self.network, self.groups, keep) / self.whole.params,
            **{name: self._memory(name) for name in MEMORY},
            "max_latency": self.latencies.foretold,
        }

    @property
    def limits(self) -> dict[str, float]:
        """The goals of this step other than sparsity, as fractions of the teacher's cost."""
        return self.job.shares(self.config)

    def _memory(self, name: str) -> Callable[[Kept], float]:
        return lambda keep: self.job.needs(self.cut(keep))[name] / self.job.whole[name]

    @cached_property
    def before(self) -> dict[str, int]:
        """The width of each group before any step."""
        known = self.known.widths or {}
        return {group.name: known.get(group.name, (group.width, 0))[0] for group in self.groups}

    def plan(self) -> Plan:
        """Which units stay, and the rounding with what was measured for it."""
        if self.config.sparsity is None and not self.limits:
            return Plan(keep=self._everything(), rounding=None)
        rounding = self.rounding
        keep = self.choose(rounding.round_to, self.limits) if self.config.max_latency is None else self._fast(rounding.round_to)
        return Plan(keep=keep, rounding=rounding, importance=self.ranking)

    @property
    def ranking(self) -> str:
        """By what units are ranked, in words."""
        divided = self.scores is not self.importances
        return f"{self.config.importance} per cost" if divided else self.config.importance

    @cached_property
    def rounding(self) -> Rounding:
        """The multiple of channels that widths are rounded to: as asked, as measured before, or a usual one until it is measured."""
        _ = self.groups, self.scores, self.until  # the groups first, as they say best why a network cannot be cut
        if self.job.sparsity is not None:
            self._choose_share(self.job.sparsity, self._choice(1))  # refused before the first training, not before the last
        if self.known_rounding is not None:
            return self.known_rounding
        multiples = self.reaching(MULTIPLES, self.job.final)
        return Rounding(round_to=max((one for one in multiples if one <= USUAL), default=multiples[0]))

    @cached_property
    def known_rounding(self) -> Rounding | None:
        """As asked, or as measured in an earlier step; where the latter turns out to be out of reach, the next finer one."""
        _ = self.until  # what is measured here is part of the search
        if self.config.round_to:
            self.reaching([self.config.round_to], self.job.final)
            return Rounding(round_to=self.config.round_to)
        if not isinstance(known := self.known.rounding, Rounding):
            return None
        finer = [known.round_to, *(multiple for multiple in MULTIPLES[::-1] if multiple < known.round_to)]
        taken = next((one for one in finer if self._may_reach(one)), known.round_to)
        if taken != known.round_to:
            say = self.job.project.console.say
            say(f"{STAGE}: widths in multiples of {known.round_to} no longer reach the goal; takes multiples of {taken}")
        return dataclasses.replace(known, round_to=taken)

    def by(self, kind: Literal["l2", "bn", "taylor", "fluctuation", "bn-fluctuation"], *found: str, per_cost: bool = True) -> "Cutter":
        """The same by another importance; the network, its groups and what else is named ``found`` are not found again."""
        other = dataclasses.replace(self, config=dataclasses.replace(self.config, importance=kind, per_cost=per_cost))
        same = "network", "groups", "until", "latencies", "whole", "fixed_macs", *found
        vars(other).update({name: getattr(self, name) for name in same})
        return other

    def in_multiples_of(self, rounding: Rounding) -> "Cutter":
        """The same with another rounding; nothing is found again."""
        other = dataclasses.replace(self)
        vars(other).update(vars(self) | {"rounding": rounding})
        return other

    def roughly(self, more: float = 1.0) -> Kept:
        """What stays where ``more`` times as much goes as was asked for, but for a goal in latency, which is taken as one in MACs."""
        multiple = self.rounding.round_to
        limits = {name: 1 - more * (1 - limit) for name, limit in self.in_macs(self.limits, [multiple]).items()}
        for name, limit in limits.items():
            if limit <= 0:
                raise CompressError(f"{name}: {more:.3g} times as much as was asked for cannot go")
        return self.choose(multiple, limits, more)

    def _choice(self, round_to: int) -> Choice:
        scope = "group" if self.config.scope == "group" else "global"
        return Choice(scope=scope, round_to=round_to, floor=self.config.floor, original=self.before)

    def choose(self, round_to: int, limits: Mapping[str, float], more: float = 1.0) -> Kept:
        how = self._choice(round_to)
        if self.config.sparsity is not None:
            return self._choose_share(more * self.config.sparsity, how)

        def cost(keep: Kept) -> float:
            """The worst of the goals; the cheap ones first, as measuring takes seconds."""
            worst = 0.0
            for name in (name for name in self.costs if name in limits):
                worst = max(worst, self.costs[name](keep) / limits[name])
                if worst > 1:
                    break
            return worst

        if self.config.scope == "sensitivity":
            try:
                return choose_by_curves(self.groups, self.scores, self.curves, cost, 1.0, how)
            except CompressError as error:
                if not self.known.widths:
                    raise
                # Trained for the first steps by now, so the goal is met by another way.
                self.job.project.console.say(f"{STAGE}: ranks all channels together, as by their sensitivity a {error}")
        return choose_for(self.groups, self.scores, cost, 1.0, how)

    def _choose_share(self, sparsity: float, how: Choice) -> Kept:
        """The units that stay at a sparsity that counts channels of the teacher."""
        channels = {group.name: group.channels for group in self.groups}
        whole = sum(width * channels[name] for name, width in self.before.items())
        left = sum(group.width * group.channels for group in self.groups)
        share = 1 - (1 - sparsity) * whole / left if left else sparsity
        if share <= 0:  # rounding took more than its share in an earlier step
            return self._everything()
        return choose(self.groups, self.scores, share, how)

    def _everything(self) -> Kept:
        return {group.name: tuple(range(group.width)) for group in self.groups}

    @property
    def known(self) -> Metrics:
        """What an earlier step towards the same teacher's goals wrote down."""
        metrics = self.parent.manifest.metrics
        return metrics if metrics.teacher == self.job.origin.content else Metrics()

    def reaching(self, multiples: Sequence[int], limits: Mapping[str, float]) -> list[int]:
        """Those multiples with which the floors meet the limits, or may, where that is measured; CompressError where there are none."""
        if not limits:
            return list(multiples)
        worst: dict[int, tuple[float, str, float]] = {}  # by how much the worst of the limits is missed, its name, what is left
        for multiple in multiples:
            floor = at_floor(self.groups, self.scores, self._choice(multiple))
            left = {name: self._left(name, floor) for name in limits}
            worst[multiple] = max((left[name].low / limit, name, left[name].high) for name, limit in limits.items())
        if reaching := [multiple for multiple, (missed, *_) in worst.items() if missed <= 1]:
            return reaching
        best = min(worst, key=lambda multiple: worst[multiple])
        _, name, least = worst[best]
        raise out_of_reach(name, limits[name], least, self.config.floor, best, self.job.whole.get(name, 0))

    def cut(self, keep: Kept) -> nn.Module:
        return remove_channels(self.network, self.groups, keep)

    def in_macs(self, limits: dict[str, float], multiples: Sequence[int]) -> dict[str, float]:
        """The limits, of latency and RAM as one of MACs, of flash as one of size, which at least one of the multiples can meet."""
        for name, cheap in (("max_latency", "max_macs"), ("max_ram", "max_macs"), ("max_flash", "max_size")):
            if (limit := limits.pop(name, None)) is not None:
                scores = {group.name: torch.zeros(group.width) for group in self.groups}
                least = min(self.costs[cheap](at_floor(self.groups, scores, self._choice(one))) for one in multiples)
                limits[cheap] = max(min(limits.get(cheap, 1.0), limit), least)
        return limits

    def _left(self, name: str, floor: Kept) -> Interval:
        """What the floor leaves of the teacher's cost; where there is no time to measure it, anything may."""
        if name != "max_latency":
            return Interval(value=(left := self.costs[name](floor)), low=left, high=left)
        try:
            return self.latencies.of(floor)
        except OutOfTime:
            return Interval(value=1.0, low=0.0, high=1.0)

    def _may_reach(self, multiple: int) -> bool:
        try:
            return bool(self.reaching([multiple], self.job.final))
        except CompressError:
            return False

    def _fast(self, round_to: int) -> Kept:
        """The units that stay towards a goal in latency; the last step's are measured again before they are taken."""
        goal, say = self.config.max_latency, self.job.project.console.say
        assert goal is not None
        say(f"{STAGE}: measures up to some {MOST} networks, at most {MOST * self.job.clock.expected(1) / 60:.1f} min on an idle machine")
        floor = at_floor(self.groups, self.scores, self._choice(round_to))
        last = goal == self.job.final.get("max_latency")
        try:
            return reach_latency(self.latencies, lambda aim: self.choose(round_to, self.limits | {"max_latency": aim}), floor, goal, last)
        except OutOfTime:
            say(f"{STAGE}: the time limit is over; takes the best of {len(self.latencies.measured)} networks so far")
            return self.latencies.best(goal) or floor


def example_of(project: Project) -> Tensor:
    return Prepare(project.spec)(torch.from_numpy(project.data.train.images[:2].copy()))
