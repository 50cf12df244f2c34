"""Which importance ranks the channels of a network best: each is tried, and the one that costs least is taken.

Every importance ranks units as it is, and per what their removal saves. On k49 the plain ranking was better at every goal, on ResNet-8 the
other one was at two goals of three; which importance was best differed too. So each network is cut as each of them says, reconstructed,
and scored on training images that it was not solved on.
"""

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path

from ...artifacts.load import load_network
from ...artifacts.parts import Plan
from ...artifacts.project import Project
from ...artifacts.records import read_kept
from ...channels.choose import Kept
from ...channels.cut import remove_channels
from ...channels.groups import Groups
from ...pruning.layerwise import Zeros
from ..finetune import Bench, zeros_kept
from ..remove_channels import AUTO, STAGE
from .plan import Cutter

TRIED_ON = 512  # training images that a network is reconstructed on for the trial


def planned(cutter: Cutter) -> Plan:
    """The plan, with importance "auto" by the one whose cut network is best when it is reconstructed."""
    if cutter.config.importance != AUTO or (cutter.config.sparsity is None and not cutter.config.limits):
        return cutter.plan()
    bench, whole = Bench(project=cutter.job.project, solved_on=min(cutter.config.images, TRIED_ON)), load_network(cutter.parent)
    losses: dict[str, float] = {}
    tried: dict[str, Kept] = {}
    for trial in _trials(cutter):
        keep = trial.roughly()
        if keep in tried.values():  # another one says the same
            continue
        if losses and time.monotonic() >= trial.until:
            cutter.job.project.console.say(f"{STAGE}: the time limit is over; takes the best importance of {len(losses)} tried so far")
            break
        tried[trial.ranking] = keep
        cut = remove_channels(trial.network, trial.groups, keep)
        zeros: Zeros = "stay" if zeros_kept(trial.parent, cut) else ""
        loss = bench.score(bench.reconstructed(whole, cut, trial.groups, keep, zeros=zeros))
        if not losses or loss < min(losses.values()):
            best = trial
        losses[trial.ranking] = loss if math.isfinite(loss) else math.inf
    return dataclasses.replace(best.plan(), importances={name: loss for name, loss in losses.items() if math.isfinite(loss)})


def _trials(cutter: Cutter) -> Iterator[Cutter]:
    first = cutter.by("l2")
    yield first
    for kind in ("l2", "bn", "taylor"):
        known = ("rounding", "importances") if kind == "l2" else ("rounding",)
        plain = first.by(kind, *known, per_cost=False)
        yield plain
        if kind != "l2":
            yield plain.by(kind, "rounding", "importances")


def taken_up(project: Project, plan_file: Path, groups: Groups) -> Plan | None:
    """What was chosen before the run was killed, if it is to go on; where that is damaged, it is said, and nothing."""
    if project.fresh or (found := read_kept(plan_file, Plan, project.console.say)) is None:
        return None
    widths = {group.name: group.width for group in groups}
    if found.keep.keys() != widths.keys() or any(not set(kept) <= set(range(widths[name])) for name, kept in found.keep.items()):
        project.console.say(f"{plan_file} is damaged: keep must name units of every channel group; what stays is chosen anew")
        return None
    return found
