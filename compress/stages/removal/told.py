"""What an artifact says of a cut network: what was gained and lost beside its teacher, and what made up for what went."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...artifacts.cost import count_cost
from ...artifacts.parts import Gains, Memory, Plan, Repair
from ...artifacts.project import Project
from ...benchmarks.paired import Drop, paired_drop
from ...channels.reconstruct import Repaired
from ...pruning.repair import to_six_digits
from ..finetune import read_logits
from ..own_task import lost_in_torch
from .plan import Cutter


def features_of(cutter: Cutter, keep: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The last layer that reads removable channels, with those of the teacher's inputs that it still has; none if that is not known."""
    places = {name: place for place, (name, _) in enumerate(cutter.network.named_modules())}
    reads = [cut.layer for group in cutter.groups for cut in group.cuts if cut.role == "input" and cut.dim == 1 and cut.layer in places]
    if not reads:
        return {}
    weight = f"{max(reads, key=places.__getitem__)}.weight"
    layer, width = weight.removesuffix(".weight"), cutter.network.get_parameter(weight).shape[1]
    known = cutter.known.features or {}
    before = known.get(layer, range(width))
    if layer not in known and cutter.parent.content != cutter.job.origin.content:
        return {}
    gone = cutter.groups.removed(keep).get((weight, 1), set())
    return {layer: tuple(index for at, index in enumerate(before) if at not in gone)}


def gains_of(cutter: Cutter, network: nn.Module, plan: Plan) -> dict[str, Any]:
    """The metrics about its size and speed beside the teacher's."""
    whole, now, ratio = cutter.whole, count_cost(network, cutter.example), cutter.job.clock.ratio(network)
    goals = cutter.job.goals
    measured: dict[str, Any] = {"runtime": "c"} if goals.runtime == "c" else {}
    if goals.memory:
        pairs = {name: (cutter.job.whole[name], value) for name, value in cutter.job.needs(network).items()}
        measured["memory"] = Memory(target=goals.target, precision=goals.precision, ram=pairs["max_ram"], flash=pairs["max_flash"])
    return {
        "teacher": cutter.job.origin.content,
        "gains": Gains(macs=now.macs / whole.macs, size=now.params / whole.params, latency=ratio, **measured),
        "widths": {name: (cutter.before[name], len(units)) for name, units in plan.keep.items()},
        "left_whole": tuple(str(one) for one in cutter.groups.left_whole),
        "rounding": plan.rounding,
        "features": features_of(cutter, plan.keep),
    }


def repair_of(plan: Plan, repaired: Repaired) -> Repair:
    """What made up for what went."""
    losses = to_six_digits(repaired.losses)
    return Repair(how=repaired.how, losses=losses, importance=plan.importance, importances=plan.importances, left=repaired.left)


def drop_of(project: Project, teacher: nn.Module, network: nn.Module) -> Drop:
    """What the network loses beside its teacher on the validation images: points of balanced accuracy, or of the user's own score."""
    if project.score is not None:
        return lost_in_torch(project, teacher, network)
    part = project.data.validation
    before, after = (read_logits(project, one, part.images).argmax(axis=1) for one in (teacher, network))
    return paired_drop(part.labels, before, after)
