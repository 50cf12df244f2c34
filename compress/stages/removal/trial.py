"""How a network is cut best: by which importance its channels are ranked, and to which multiple its widths are rounded.

Every importance ranks units as it is, and per what their removal saves. On k49 the plain ranking was better at every goal, on ResNet-8 the
other one was at two goals of three; which importance was best differed too. So each network is cut as each of them says, reconstructed,
and scored on training images that it was not solved on.

Likewise a multiple of widths that is fast must pay for what it leaves no choice of. By hand: at half of the MACs multiples of 16 take 0.4x
of the latency and multiples of 8 take 0.5x. For 0.4x these must lose a fifth more, 0.6 instead of half of the MACs, and are then as fast;
where they still lose less, they are taken, at half of the MACs as was asked for.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...artifacts.cost import MULTIPLES, fastest_rounding
from ...artifacts.load import load_to_cut
from ...artifacts.parts import Plan, Rounding
from ...artifacts.project import Project
from ...artifacts.records import read_kept
from ...channels.choose import Kept
from ...channels.cut import remove_channels
from ...channels.groups import Groups
from ...errors import CompressError
from ..finetune import Bench, zeros_kept
from ..remove_channels import AUTO, STAGE
from .plan import Cutter

CLEARLY = 1.1  # times the loss of "l2" ranked the other way: what is so much worse is not tried by further importances
TRIED_ON = 256  # training images that a network is reconstructed on for the trial, as more change the losses and not their order; as many
# large ones judge it at least


@dataclass(frozen=True)
class _Jury:
    """Cuts, reconstructs and scores."""

    bench: Bench
    whole: nn.Module

    def loss(self, trial: Cutter, keep: Kept) -> float:
        """The cross-entropy on the images that judge; infinite where it is no number."""
        cut = remove_channels(trial.network, trial.groups, keep)
        zeros = zeros_kept(trial.parent, cut)
        loss = self.bench.score(self.bench.reconstructed(self.whole, cut, trial.groups, keep, zeros="stay" if zeros else ""))
        return loss if math.isfinite(loss) else math.inf


def planned(cutter: Cutter) -> Plan:
    """The plan: importance "auto", and a rounding that was measured now, are those whose networks are best when they are reconstructed."""
    if cutter.config.sparsity is None and not cutter.limits:
        return cutter.plan()
    bench = Bench(project=cutter.job.project, solved_on=min(cutter.config.images, TRIED_ON), least=TRIED_ON)
    jury = _Jury(bench, load_to_cut(cutter.parent))
    losses: dict[str, float] = {}
    if cutter.config.importance == AUTO:
        cutter, losses = _best_importance(cutter.by("l2"), jury)
    if cutter.known_rounding is None:
        cutter = cutter.in_multiples_of(_rounding_that_pays(cutter.in_multiples_of(_fast_rounding(cutter)), jury))
    plan = cutter.plan()
    return dataclasses.replace(plan, importances={name: loss for name, loss in losses.items() if math.isfinite(loss)}) if losses else plan


def _best_importance(first: Cutter, jury: _Jury) -> tuple[Cutter, dict[str, float]]:
    """The cutter whose importance is the best, and the losses of all that were tried, ``first`` before all others."""
    losses: dict[str, float] = {}
    tried: dict[str, Kept] = {}
    for trial in _trials(first, losses):
        keep = trial.roughly()
        if keep in tried.values():  # another one says the same
            continue
        if losses and time.monotonic() >= trial.until:
            first.job.project.console.say(f"{STAGE}: the time limit is over; takes the best importance of {len(losses)} tried so far")
            break
        tried[trial.ranking] = keep
        loss = jury.loss(trial, keep)
        if not losses or loss < min(losses.values()):
            best = trial
        losses[trial.ranking] = loss
    return best, losses


def _fast_rounding(cutter: Cutter) -> Rounding:
    """The multiple of channels that is fast on this machine.

    Those with which the last goals are out of reach are left out, before anything is trained. A limit of latency is taken as one of MACs
    for this: at the same latency no rounding would be the faster one.
    """
    say, limits = cutter.job.project.console.say, dict(cutter.job.final)
    multiples = cutter.reaching(MULTIPLES, limits)
    if left_out := [str(one) for one in MULTIPLES if one not in multiples]:
        say(f"{STAGE}: leaves out widths in multiples of {' and '.join(left_out)}, with which the goal is out of reach")
    if len(multiples) == 1:
        return Rounding(round_to=multiples[0])
    limits = cutter.in_macs(limits, multiples)
    networks, refusals = {}, []
    for multiple in multiples:
        try:
            networks[multiple] = cutter.cut(cutter.choose(multiple, limits))
        except CompressError as error:
            refusals.append(error)
    if not networks:
        raise refusals[0]
    clock = cutter.job.clock
    say(f"{STAGE}: measures which widths are fast here, at most {clock.expected(len(networks)):.0f} s on an idle machine")
    found = fastest_rounding(networks, clock, cutter.until)
    if found.doubt:
        say(f"{STAGE}: takes multiples of {found.round_to}; {found.doubt}")
    return found


def _rounding_that_pays(cutter: Cutter, jury: _Jury) -> Rounding:
    """The rounding that was measured to be fast, or the finer one that loses least at the same latency."""
    taken, say = cutter.rounding, cutter.job.project.console.say
    if not taken.measured:
        return taken
    fast = next(row for row in taken.measured if row.round_to == taken.round_to)
    losses: dict[int, float] = {}
    for row in taken.measured:
        if row.round_to >= fast.round_to or row.ratio >= 1:  # no cut makes what is slower than before as fast
            continue
        if time.monotonic() >= cutter.until:
            say(f"{STAGE}: the time limit is over; what multiples of {fast.round_to} lose was not compared with all others")
            break
        finer = cutter.in_multiples_of(dataclasses.replace(taken, round_to=row.round_to))
        try:
            keep = finer.roughly(more=(1 - fast.ratio) / (1 - row.ratio))
        except CompressError:  # so much cannot go
            continue
        losses[row.round_to] = jury.loss(finer, keep)
    if not losses or losses[best := min(losses, key=losses.__getitem__)] >= (loss := jury.loss(cutter, cutter.roughly())):
        return taken
    times = fast.ratio / next(row.ratio for row in taken.measured if row.round_to == best)
    say(
        f"{STAGE}: takes multiples of {best}, although multiples of {fast.round_to} take {times:.2g} of their time: "
        f"cut until they are as fast, they lose less ({jury.bench.measure} {losses[best]:.3g} against {loss:.3g})"
    )
    return dataclasses.replace(taken, round_to=best)


def _trials(first: Cutter, losses: Mapping[str, float]) -> Iterator[Cutter]:
    """Every importance per cost and as it is, by what was lost so far; "taylor" as it is was the worst of all on k49 and on ResNet-8.

    Where "l2" is clearly worse in one of the two ways, so were the others (k49, and MobileNetV3-S): they are not tried in that way.
    """
    yield first
    for kind in ("l2", "bn", "fluctuation", "bn-fluctuation", "taylor"):
        plain, apart = first.by(kind, "rounding", per_cost=False), losses.get("l2 per cost", math.nan) / losses.get("l2", math.nan)
        if kind != "taylor" and not apart < 1 / CLEARLY:
            yield plain
        if kind == "taylor" or (kind != "l2" and not apart > CLEARLY):
            yield plain.by(kind, "rounding")


def taken_up(project: Project, plan_file: Path, groups: Groups) -> Plan | None:
    """What was chosen before the run was killed, if it is to go on; where that is damaged, it is said, and nothing."""
    if project.fresh or (found := read_kept(plan_file, Plan, project.console.say)) is None:
        return None
    widths = {group.name: group.width for group in groups}
    if found.keep.keys() != widths.keys() or any(not set(kept) <= set(range(widths[name])) for name, kept in found.keep.items()):
        project.console.say(f"{plan_file} is damaged: keep must name units of every channel group; what stays is chosen anew")
        return None
    return found
