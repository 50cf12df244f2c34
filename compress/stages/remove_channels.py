"""The stage that removes channels: cut a network towards a goal and fine-tune it, in steps; every step is an artifact.

::

    teacher ── step 1 ── step 2 ── step 3         goals are fractions of the teacher's cost, and all steps learn from it

A killed run goes on with ``--resume``: finished steps are found, and what was chosen for the step in progress lies beside its state.
Latency is measured in ONNX Runtime on this machine, so with such a goal, or with a measured rounding, two machines may choose otherwise.

Refused: a goal that the floors put out of reach (the nearest one is named), a network that cannot be cut (see compress.channels).
"""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..artifacts.artifact import Artifact
from ..artifacts.cost import Cost, count_cost
from ..artifacts.load import Prepare, load_network
from ..artifacts.parts import Gains, Metrics, Plan, Rounding
from ..artifacts.project import Made, Project, data_identity, run_stage, stage_key
from ..artifacts.records import read_record, write_record
from ..channels.bypass import bypass, bypassable, matching
from ..channels.choose import Choice, Kept, at_floor, choose, choose_for, macs_after, size_after
from ..channels.curves import Curves, choose_by_curves
from ..channels.cut import remove_channels
from ..channels.find import channel_groups
from ..channels.groups import Groups
from ..channels.scores import importance
from ..errors import CompressError
from ..pruning.masks import apply_masks
from ..train.distil import Teacher
from ..train.fit import choose_device
from ..train.settings import DistilConfig, FitConfig
from ..train.sources import Part
from ..train.split import stratified_sample
from .finetune import batch_losses, ease_dropout, fit_and_save, save_network, tuning_config, validate, zeros_kept
from .latency import Clock, fastest_rounding


@dataclass(frozen=True, kw_only=True)
class RemoveConfig:
    """Channel removal in ``steps``, each followed by fine-tuning: ``epochs`` after the last, ``between`` after every other.

    Goals: ``sparsity`` (fraction of the removable channels to remove), or any of ``max_macs``, ``max_size`` (of the weights) and
    ``max_latency`` (measured here, one image on one thread), each as a fraction of the teacher's; all that are given must be met.
    ``bypass``: modules to leave out: names, patterns such as ``blocks.*.spatial``, or "auto". ``importance``, ``scope`` and ``floor``: see
    :mod:`compress.importance`; scope "sensitivity" gives each group the sparsity that its own curve bears. ``round_to``: widths are
    multiples of this many channels; 0 measures which multiple is fast. ``images``: how many training images importance looks at.
    """

    sparsity: float | None = None
    max_macs: float | None = None
    max_size: float | None = None
    max_latency: float | None = None
    bypass: tuple[str, ...] = ()
    importance: str = "taylor"
    scope: str = "global"
    round_to: int = 0
    floor: float = 0.1
    images: int = 2048
    steps: int = 3
    between: int = 1
    epochs: int = 6
    lr: float = 0.001

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise CompressError(f"sparsity (={self.sparsity}) must lie in (0, 1); 0.5 removes half of the channels")
        for name, value in self.limits.items():
            if not 0 < value < 1:
                raise CompressError(f"{name} (={value}x) must lie in (0, 1) times that of the teacher; 0.35x leaves about a third")
        if self.sparsity is not None and self.limits:
            raise CompressError(f"sparsity (={self.sparsity}) and {', '.join(self.limits)} exclude each other; name the one that counts")
        if self.importance not in ("l2", "bn", "taylor"):
            raise CompressError(f"importance (={self.importance}) must be l2, bn or taylor")
        if self.scope not in ("global", "group", "sensitivity"):
            raise CompressError(f"scope (={self.scope}) must be global (one ranking), group (one in each) or sensitivity (measured)")
        rules = [
            (self.round_to >= 0, "round_to", "must be 0 (measure what is fast) or a number of channels, such as 8"),
            (0 <= self.floor < 1, "floor", "must lie in [0, 1); 0.1 keeps a tenth of every group"),
            (self.images >= 1, "images", "must be at least 1; 2048 is the default"),
            (1 <= self.steps <= 100, "steps", "must lie in 1 to 100; 3 is the default"),
            (self.between >= 0, "between", "must be zero or a number of epochs"),
            (self.epochs >= 0, "epochs", "must be zero (no fine-tuning) or more"),
            (0 < self.lr < math.inf, "lr", "must be a positive number; a third of the training's is usual"),
        ]
        for holds, name, rule in rules:
            if not holds:
                raise CompressError(f"{name} (={getattr(self, name)}) {rule}")

    @property
    def limits(self) -> dict[str, float]:
        """The goals other than sparsity, those that are given."""
        given = {"max_macs": self.max_macs, "max_size": self.max_size, "max_latency": self.max_latency}
        return {name: value for name, value in given.items() if value is not None}

    def in_steps(self) -> list["RemoveConfig"]:
        """One config per step: what is left shrinks by the same factor in each, and modules are bypassed in the first.

        0.125x in three steps: 0.5x, 0.25x, 0.125x. With scope "sensitivity" a step that only bypasses comes before, as what the groups
        bear is measured without those modules.
        """
        if self.sparsity is None and not self.limits and not self.bypass:
            raise CompressError("a goal is needed: --sparsity 0.5, --max-macs 0.35x, --max-size 0.25x or --max-latency 0.5x, or --bypass")
        none: dict[str, Any] = {"sparsity": None, "max_macs": None, "max_size": None, "max_latency": None}
        first = self.scope == "sensitivity" and bool(self.bypass)
        made = [dataclasses.replace(self, **none, epochs=self.between, steps=1, between=0)] if first else []
        for step in range(1, self.steps + 1):
            share = step / self.steps
            goals: dict[str, Any] = {name: value**share if step < self.steps else value for name, value in self.limits.items()}
            if self.sparsity is not None:
                goals["sparsity"] = 1 - (1 - self.sparsity) ** share if step < self.steps else self.sparsity
            epochs = self.epochs if step == self.steps else self.between
            bypass = self.bypass if step == 1 and not first else ()
            made.append(dataclasses.replace(self, **goals, epochs=epochs, bypass=bypass, steps=1, between=0))
        return made


STAGE = "remove-channels"
AUTO = "auto"


class Sensitivities(Protocol):
    """What is measured of a network where it is asked for; the real one is in compress.sensitivity_stage."""

    def curves(self, parent: Artifact) -> Curves: ...
    def cheap_modules(self, parent: Artifact) -> list[str]: ...


def remove_in_steps(
    project: Project,
    parent: Artifact,
    config: RemoveConfig,
    training: FitConfig,
    distil: DistilConfig,
    *,
    teacher: Artifact | None = None,
    sensitivities: Sensitivities | None = None,
    out: Path | None = None,
) -> Artifact:
    """Take ``parent`` to the goals of ``config``; returns the artifact of the last step.

    ``teacher``: the unpruned network that is learnt from and that goals are fractions of; ``parent`` itself if not given. ``training``
    gives batch, optimiser, smoothing and distortions of fine-tuning. ``sensitivities``: for scope "sensitivity" and bypass "auto".
    Raises CompressError for what the module refuses.
    """
    if AUTO in config.bypass:
        assert sensitivities is not None, "the command line hands them in"
        cheap = sensitivities.cheap_modules(parent)
        project.console.say(f"{STAGE}: leaves out {', '.join(cheap) or 'no module, as each costs more than it saves'}")
        config = dataclasses.replace(config, bypass=(*cheap, *(name for name in config.bypass if name != AUTO)))
    config = dataclasses.replace(config, bypass=_names(project, parent, config.bypass))
    steps = config.in_steps()
    job = _Job(
        project=project, origin=teacher or parent, final=steps[-1].limits, training=training, distil=distil, sensitivities=sensitivities
    )
    for number, step in enumerate(steps, 1):
        parent = _step(job, parent, step, out if number == len(steps) else None)
    return parent


def groups_of(project: Project, parent: Artifact) -> Groups:
    """The channel groups of the network in ``parent``."""
    return channel_groups(load_network(parent), _example(project))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What all steps share. ``origin``: the teacher; ``final``: the limits after the last step."""

    project: Project
    origin: Artifact
    final: Mapping[str, float]
    training: FitConfig
    distil: DistilConfig
    sensitivities: Sensitivities | None


def _step(job: _Job, parent: Artifact, config: RemoveConfig, out: Path | None) -> Artifact:
    project, origin = job.project, job.origin
    tuning = tuning_config(job.training, config.epochs, config.lr)
    inputs = {"training": dataclasses.asdict(tuning), "distil": dataclasses.asdict(job.distil), "data": data_identity(project)}
    key = stage_key(STAGE, config, parent=parent.content, teacher=origin.content, **inputs)
    plan_file = project.folder / STAGE / f".{key[:12]}.plan.json"

    def make(folder: Path) -> Made:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            cutter = _Cutter(job=job, parent=parent, config=config, place=Path(place))
            plan = _taken_up(project, plan_file, cutter.groups) or _kept(cutter.plan(), plan_file)
            network = remove_channels(cutter.network, cutter.groups, plan.keep)
            before = validate(project, network)
            if config.epochs == 0:
                metrics, facts = save_network(project, network, folder, Metrics(validation=before))
            else:
                features = {name: torch.tensor(index) for name, index in cutter.features(plan.keep).items()}
                lessons = Teacher(network=load_network(origin), config=job.distil, features=features)
                ease_dropout(network, lessons.network)
                zeros = {name: mask.to(choose_device(project.device)) for name, mask in zeros_kept(parent, network).items()}
                keep_zeros = (lambda: apply_masks(network, zeros)) if zeros else None
                metrics, facts = fit_and_save(project, network, tuning, key, STAGE, folder, teacher=lessons, after_step=keep_zeros)
            metrics = dataclasses.replace(metrics, one_shot=before, **cutter.gains(network, plan))
        plan_file.unlink(missing_ok=True)
        return metrics, facts

    return run_stage(project, "network", STAGE, key, config, parent, out, make)


@dataclass(frozen=True, kw_only=True)
class _Cutter:
    """One step before its fine-tuning: what may go, what goes, and what that gains."""

    job: _Job
    parent: Artifact
    config: RemoveConfig
    place: Path

    @cached_property
    def network(self) -> nn.Module:
        """The parent without what is bypassed in this step."""
        network = load_network(self.parent)
        bypass(network, self.config.bypass)
        return network

    @cached_property
    def example(self) -> Tensor:
        return _example(self.job.project)

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
    def costs(self) -> dict[str, Callable[[Kept], float]]:
        """For each goal, the cost of a choice as a fraction of the teacher's; the cheap ones first."""
        return {
            "max_macs": lambda keep: macs_after(self.groups, keep) / self.whole.macs,
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
            assert self.job.sensitivities is not None, "the command line hands them in"
            return choose_by_curves(self.groups, self.scores, self.job.sensitivities.curves(self.parent), cost, 1.0, how)
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
        self.job.project.console.say(f"{STAGE}: measures which widths are fast here")
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


def _names(project: Project, parent: Artifact, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that the patterns mean, of those that can be left out."""
    if not patterns:
        return ()
    network = load_network(parent)
    return tuple(matching(bypassable(network, _example(project)), patterns))


def _example(project: Project) -> Tensor:
    return Prepare(project.spec)(torch.from_numpy(project.data.train.images[:2].copy()))


def _kept(plan: Plan, plan_file: Path) -> Plan:
    """Write the plan down, all or nothing."""
    plan_file.parent.mkdir(parents=True, exist_ok=True)
    beside = plan_file.with_suffix(".partial")
    write_record(beside, plan)
    beside.replace(plan_file)
    return plan


def _taken_up(project: Project, plan_file: Path, groups: Groups) -> Plan | None:
    """What was chosen before the run was killed, if it is to go on; raises CompressError where that is damaged."""
    if not project.resume or not plan_file.is_file():
        return None
    again = "delete it, and what stays is chosen anew"
    found = read_record(plan_file, Plan, again=again)
    widths = {group.name: group.width for group in groups}
    if found.keep.keys() != widths.keys() or any(not set(kept) <= set(range(widths[name])) for name, kept in found.keep.items()):
        raise CompressError(f"{plan_file} is damaged: keep must name units of every channel group; {again}")
    return found
