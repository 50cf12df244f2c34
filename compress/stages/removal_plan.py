"""What channel removal does in one step before its fine-tuning: what may go, what goes, and what that gains; kept across a kill."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..artifacts.artifact import Artifact
from ..artifacts.cost import Clock, Cost, count_cost, fastest_rounding
from ..artifacts.load import Prepare, load_network
from ..artifacts.parts import Gains, Metrics, Plan, Rounding
from ..artifacts.project import Project
from ..artifacts.records import read_record
from ..channels.bypass import bypass
from ..channels.choose import Choice, Kept, at_floor, choose, choose_for, macs_after, size_after
from ..channels.curves import choose_by_curves
from ..channels.cut import remove_channels
from ..channels.find import channel_groups
from ..channels.groups import Groups
from ..channels.scores import importance
from ..errors import CompressError
from ..train.data_set import Part
from ..train.split import stratified_sample
from .finetune import batch_losses
from .sensitivity import loss_curves

if TYPE_CHECKING:
    from .remove_channels import Job, RemoveConfig


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """One step before its fine-tuning: what may go, what goes, and what that gains."""

    job: "Job"
    parent: Artifact
    config: "RemoveConfig"
    place: Path

    @cached_property
    def network(self) -> nn.Module:
        """The parent without what is bypassed in this step."""
        network = load_network(self.parent)
        bypass(network, self.config.bypass)
        return network

    @cached_property
    def example(self) -> Tensor:
        return example_of(self.job.project)

    @cached_property
    def groups(self) -> Groups:
        return channel_groups(self.network, self.example)

    @cached_property
    def clock(self) -> Clock:
        return Clock(load_network(self.job.origin), self.job.project.spec, self.place)

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """The importance of each unit; towards a goal in MACs or size, per what its removal saves of it."""
        project, part = self.job.project, self.job.project.data.train
        chosen = stratified_sample(part.labels, min(self.config.images, len(part.labels)), seed=0)
        sample = Part(part.images[chosen], part.labels[chosen])
        scores = importance(self.network, self.groups, self.config.importance, batch_losses(project, self.network, sample))
        self.network.cpu()
        if self.config.sparsity is not None or self.config.scope == "group":
            return scores
        cheap = [self.costs[name] for name in ("max_macs", "max_size") if name in self.config.limits] or [self.costs["max_macs"]]
        every = self._everything()
        for group in self.groups:
            without = every | {group.name: every[group.name][1:]}
            saved = max(cost(every) - cost(without) for cost in cheap)
            scores[group.name] = scores[group.name] / max(saved, torch.finfo(torch.float64).tiny)
        return scores

    @cached_property
    def whole(self) -> Cost:
        return count_cost(load_network(self.job.origin), self.example)

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
            "max_latency": lambda keep: self.clock.ratio(self._cut(keep)).value,
        }

    @cached_property
    def before(self) -> dict[str, int]:
        """The width of each group before any step."""
        known = self.known.widths or {}
        return {group.name: known.get(group.name, (group.width, 0))[0] for group in self.groups}

    def plan(self) -> Plan:
        """Which units stay, and the rounding with what was measured for it."""
        if self.config.sparsity is None and not self.config.limits:
            return Plan(keep=self._everything(), rounding=None)
        _ = self.groups  # first, as it says best why a network cannot be cut
        rounding = self._rounding()
        self._refuse_unreachable(self._choice(rounding.round_to))
        return Plan(keep=self._choose(rounding.round_to, self.config.limits), rounding=rounding)

    def features(self, keep: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The last layer that reads removable channels, with those of the teacher's inputs that it still has; none if that is not known."""
        places = {name: place for place, (name, _) in enumerate(self.network.named_modules())}
        reads = [cut.layer for group in self.groups for cut in group.cuts if cut.role == "input" and cut.dim == 1 and cut.layer in places]
        if not reads:
            return {}
        weight = f"{max(reads, key=places.__getitem__)}.weight"
        layer, width = weight.removesuffix(".weight"), self.network.get_parameter(weight).shape[1]
        known = self.known.features or {}
        before = known.get(layer, range(width))
        if layer not in known and self.parent.content != self.job.origin.content:
            return {}
        gone = self.groups.removed(keep).get((weight, 1), set())
        return {layer: tuple(index for at, index in enumerate(before) if at not in gone)}

    def gains(self, network: nn.Module, plan: Plan) -> dict[str, Any]:
        """The metrics about its size and speed beside the teacher's."""
        whole, now, ratio = self.whole, count_cost(network, self.example), self.clock.ratio(network)
        return {
            "teacher": self.job.origin.content,
            "gains": Gains(macs=now.macs / whole.macs, size=now.params / whole.params, latency=ratio),
            "widths": {name: (self.before[name], len(units)) for name, units in plan.keep.items()},
            "left_whole": tuple(str(one) for one in self.groups.left_whole),
            "rounding": plan.rounding,
            "features": self.features(plan.keep),
        }

    def _choice(self, round_to: int) -> Choice:
        scope = "group" if self.config.scope == "group" else "global"
        return Choice(scope=scope, round_to=round_to, floor=self.config.floor, original=self.before)

    def _choose(self, round_to: int, limits: Mapping[str, float]) -> Kept:
        how = self._choice(round_to)
        if self.config.sparsity is not None:
            channels = {group.name: group.channels for group in self.groups}
            whole = sum(width * channels[name] for name, width in self.before.items())
            left = sum(group.width * group.channels for group in self.groups)
            sparsity = 1 - (1 - self.config.sparsity) * whole / left
            if sparsity <= 0:  # rounding took more than its share in an earlier step
                return self._everything()
            return choose(self.groups, self.scores, sparsity, how)

        def cost(keep: Kept) -> float:
            """The worst of the goals; the cheap ones first, as measuring takes seconds."""
            worst = 0.0
            for name in (name for name in self.costs if name in limits):
                worst = max(worst, self.costs[name](keep) / limits[name])
                if worst > 1:
                    break
            return worst

        if self.config.scope == "sensitivity":
            curves = loss_curves(self.job.project, self.job.recipe, self.parent)
            return choose_by_curves(self.groups, self.scores, curves, cost, 1.0, how)
        return choose_for(self.groups, self.scores, cost, 1.0, how)

    def _everything(self) -> Kept:
        return {group.name: tuple(range(group.width)) for group in self.groups}

    @property
    def known(self) -> Metrics:
        """What an earlier step towards the same teacher's goals wrote down."""
        metrics = self.parent.manifest.metrics
        return metrics if metrics.teacher == self.job.origin.content else Metrics()

    def _refuse_unreachable(self, how: Choice) -> None:
        """Before the first training, not after it: the limits of the last step count."""
        floor = at_floor(self.groups, self.scores, how)
        for name, limit in self.job.final.items():
            if (least := self.costs[name](floor)) > limit:
                nearest = math.ceil(1000 * least) / 1000
                rounded = f" in multiples of {how.round_to}" if how.round_to > 1 else ""
                raise CompressError(
                    f"{name} (={limit:.4g}x) cannot be reached: with every channel group at its floor (={how.floor}){rounded} "
                    f"{nearest}x is left; ask for that, lower the floor, or leave modules out (--bypass auto)"
                )

    def _cut(self, keep: Kept) -> nn.Module:
        return remove_channels(self.network, self.groups, keep)

    def _rounding(self) -> Rounding:
        """The multiple of channels that widths are rounded to: as asked, as measured in an earlier step, or measured now.

        A limit of latency is taken as one of MACs for this: at the same latency no rounding would be the faster one.
        """
        self._refuse_unreachable(self._choice(max(1, self.config.round_to)))
        if self.config.round_to:
            return Rounding(round_to=self.config.round_to)
        if isinstance(known := self.known.rounding, Rounding):
            return known
        self.job.project.console.say("remove-channels: measures which widths are fast here")
        limits = dict(self.config.limits)
        if (latency := limits.pop("max_latency", None)) is not None:
            least = self.costs["max_macs"](at_floor(self.groups, self.scores, self._choice(1)))
            limits["max_macs"] = max(min(limits.get("max_macs", 1.0), latency), least)

        def cut_for(round_to: int) -> nn.Module | None:
            try:
                return self._cut(self._choose(round_to, limits))
            except CompressError:
                if round_to == 1:
                    raise
                return None

        return fastest_rounding(cut_for, self.clock)


def example_of(project: Project) -> Tensor:
    return Prepare(project.spec)(torch.from_numpy(project.data.train.images[:2].copy()))


def taken_up(project: Project, plan_file: Path, groups: Groups) -> Plan | None:
    """What was chosen before the run was killed, if it is to go on; where that is damaged, it is said, and nothing."""
    if project.fresh or not plan_file.is_file():
        return None
    try:
        found = read_record(plan_file, Plan, again="what stays is chosen anew")
    except CompressError as error:
        project.console.say(str(error))
        return None
    widths = {group.name: group.width for group in groups}
    if found.keep.keys() != widths.keys() or any(not set(kept) <= set(range(widths[name])) for name, kept in found.keep.items()):
        project.console.say(f"{plan_file} is damaged: keep must name units of every channel group; what stays is chosen anew")
        return None
    return found
