"""The stage that removes channels: cut a network towards a goal and fine-tune it, in steps; every step is an artifact.

::

    teacher ── step 1 ── step 2 ── step 3         goals are fractions of the teacher's cost, and all steps learn from it

A killed run goes on with ``--resume``: finished steps are found, and what was chosen for the step in progress lies beside its state.
Latency is measured in ONNX Runtime on this machine, so with such a goal, or with a measured rounding, two machines may choose otherwise.

Refused: a goal that the floors put out of reach (the nearest one is named), a network that cannot be cut (see compress.channels).
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .artifact import Artifact
from .bypass import bypass, bypassable, matching
from .channels import channel_groups
from .config import RemoveConfig
from .cost import Cost, count_cost
from .errors import CompressError
from .groups import Groups
from .importance import Choice, Kept, at_floor, choose, choose_for, importance, macs_after, size_after
from .latency import Clock, Rounding, fastest_rounding
from .networks import Prepare, load_network
from .pipeline import fit_and_save, save_network, stratified_sample, tuning_config, validate
from .project import Made, Project, data_identity, run_stage, stage_key
from .surgery import remove_channels
from .train.distil import Teacher
from .train.fit import choose_device
from .train.settings import DistilConfig, FitConfig

STAGE = "remove-channels"
BATCH = 64
Curves = Mapping[str, Mapping[float, float]]


def remove_in_steps(
    project: Project,
    parent: Artifact,
    config: RemoveConfig,
    training: FitConfig,
    distil: DistilConfig,
    *,
    teacher: Artifact | None = None,
    curves: Callable[[Artifact], Curves] | None = None,
    out: Path | None = None,
) -> Artifact:
    """Take ``parent`` to the goals of ``config``; returns the artifact of the last step.

    ``teacher``: the unpruned network that is learnt from and that goals are fractions of; ``parent`` itself if not given. ``training``
    gives batch, optimiser, smoothing and distortions of fine-tuning. ``curves`` measures the sensitivity of an artifact's groups.
    Raises CompressError for what the module refuses.
    """
    config = dataclasses.replace(config, bypass=_names(project, parent, config.bypass))
    steps, origin = config.in_steps(), teacher or parent
    for number, step in enumerate(steps, 1):
        last = number == len(steps)
        parent = _step(project, parent, origin, step, training, distil, curves, out if last else None)
    return parent


def groups_of(project: Project, parent: Artifact) -> Groups:
    """The channel groups of the network in ``parent``."""
    return channel_groups(load_network(parent), _example(project))


def _step(
    project: Project,
    parent: Artifact,
    origin: Artifact,
    config: RemoveConfig,
    training: FitConfig,
    distil: DistilConfig,
    curves: Callable[[Artifact], Curves] | None,
    out: Path | None,
) -> Artifact:
    tuning = tuning_config(training, config.epochs, config.lr)
    inputs = {"training": dataclasses.asdict(tuning), "distil": dataclasses.asdict(distil), "data": data_identity(project)}
    key = stage_key(STAGE, config, parent=parent.content, teacher=origin.content, **inputs)

    def make(folder: Path) -> Made:
        with tempfile.TemporaryDirectory() as place:
            cutter = _Cutter(project=project, parent=parent, origin=origin, config=config, place=Path(place), curves=curves)
            plan_file = project.folder / STAGE / f".{key[:12]}.plan.json"
            plan = _taken_up(project, plan_file) or cutter.plan()
            plan_file.write_text(json.dumps(plan), encoding="utf-8")
            network = remove_channels(cutter.network, cutter.groups, plan["keep"])
            metrics: dict[str, Any] = {"one_shot": validate(project, network)}
            if config.epochs == 0:
                scored, facts = save_network(project, network, folder, {"validation": metrics["one_shot"]})
            else:
                lessons = Teacher(network=load_network(origin), config=distil, features=cutter.features(plan["keep"]))
                scored, facts = fit_and_save(project, network, tuning, key, STAGE, folder, teacher=lessons)
            metrics |= dict(scored) | cutter.gains(network, plan)
        plan_file.unlink()
        return metrics, facts

    return run_stage(project, "network", STAGE, key, config, parent, out, make)


@dataclass(frozen=True, kw_only=True)
class _Cutter:
    """One step before its fine-tuning: what may go, what goes, and what that gains."""

    project: Project
    parent: Artifact
    origin: Artifact
    config: RemoveConfig
    place: Path
    curves: Callable[[Artifact], Curves] | None

    @cached_property
    def network(self) -> nn.Module:
        """The parent without what is bypassed in this step."""
        network = load_network(self.parent)
        bypass(network, self.config.bypass)
        return network

    @cached_property
    def prepare(self) -> Prepare:
        return Prepare(self.project.spec)

    @cached_property
    def example(self) -> Tensor:
        return _example(self.project)

    @cached_property
    def groups(self) -> Groups:
        return channel_groups(self.network, self.example)

    @cached_property
    def clock(self) -> Clock:
        return Clock(load_network(self.origin), self.project.spec, self.place)

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """The importance of each unit; towards a goal in MACs or size, per what its removal saves of it."""
        scores = importance(self.network, self.groups, self.config.importance, self._losses())
        every: Kept = {group.name: tuple(range(group.width)) for group in self.groups}
        cheap = [cost for name, cost in self.costs.items() if name != "max_latency"] or [self._macs]
        if self.config.sparsity is not None or self.config.scope == "group":
            return scores
        for group in self.groups:
            without = every | {group.name: every[group.name][1:]}
            saved = max(cost(every) - cost(without) for cost in cheap)
            scores[group.name] = scores[group.name] / max(saved, torch.finfo(torch.float64).tiny)
        return scores

    @cached_property
    def whole(self) -> Cost:
        return count_cost(load_network(self.origin), self.example)

    @cached_property
    def costs(self) -> dict[str, Callable[[Kept], float]]:
        """For each goal, the cost of a choice as a fraction of the teacher's; the cheap ones first."""
        every: dict[str, Callable[[Kept], float]] = {
            "max_macs": self._macs,
            "max_size": lambda keep: size_after(self.network, self.groups, keep) / self.whole.params,
            "max_latency": lambda keep: self.clock.ratio(self._cut(keep)).value,
        }
        return {name: cost for name, cost in every.items() if name in self.config.limits}

    @cached_property
    def before(self) -> dict[str, int]:
        """The width of each group before any step."""
        known = self.parent.manifest.metrics.get("widths", {}) if self.parent.manifest.stage == STAGE else {}
        return {group.name: known.get(group.name, [group.width])[0] for group in self.groups}

    def plan(self) -> dict[str, Any]:
        """Which units stay, and the rounding with what was measured for it."""
        if self.config.sparsity is None and not self.config.limits:
            return {"keep": {group.name: list(range(group.width)) for group in self.groups}, "rounding": None}
        rounding = self._rounding()
        keep = self._choose(rounding["round_to"])
        return {"keep": {name: list(units) for name, units in keep.items()}, "rounding": rounding}

    def features(self, keep: Mapping[str, list[int]]) -> dict[str, Tensor]:
        """The last layer that reads removable channels, with those of the teacher's inputs that it still has."""
        indices = self._read_by_the_last(keep)
        return {name: torch.tensor(index) for name, index in indices.items()}

    def gains(self, network: nn.Module, plan: Mapping[str, Any]) -> dict[str, Any]:
        """What the artifact says about its size and speed beside the teacher's."""
        whole, now, ratio = self.whole, count_cost(network, self.example), self.clock.ratio(network)
        return {
            "teacher": self.origin.content,
            "gains": {
                "macs": now.macs / whole.macs,
                "size": now.params / whole.params,
                "latency": dataclasses.asdict(ratio),
            },
            "widths": {name: [self.before[name], len(units)] for name, units in plan["keep"].items()},
            "left_whole": [str(one) for one in self.groups.left_whole],
            "rounding": plan["rounding"],
            "features": self._read_by_the_last(plan["keep"]),
        }

    def _choice(self, round_to: int) -> Choice:
        scope = "group" if self.config.scope == "group" else "global"
        return Choice(scope=scope, round_to=round_to, floor=self.config.floor, original=self.before)

    def _choose(self, round_to: int) -> Kept:
        how = self._choice(round_to)
        if self.config.sparsity is not None:
            channels = {group.name: group.channels for group in self.groups}
            whole = sum(width * channels[name] for name, width in self.before.items())
            left = sum(group.width * group.channels for group in self.groups)
            sparsity = 1 - (1 - self.config.sparsity) * whole / left
            if sparsity <= 0:  # rounding took more than its share in an earlier step
                return {group.name: tuple(range(group.width)) for group in self.groups}
            return choose(self.groups, self.scores, sparsity, how)
        self._refuse_unreachable(how)

        def cost(keep: Kept) -> float:
            """The worst of the goals; the cheap ones first, as measuring takes seconds."""
            worst = 0.0
            for name, of in self.costs.items():
                worst = max(worst, of(keep) / self.config.limits[name])
                if worst > 1:
                    break
            return worst

        if self.config.scope == "sensitivity":
            from .sensitivity import choose_by_curves

            assert self.curves is not None, "the command line hands them in"
            return choose_by_curves(self.groups, self.scores, self.curves(self.parent), cost, 1.0, how)
        return choose_for(self.groups, self.scores, cost, 1.0, how)

    def _macs(self, keep: Kept) -> float:
        return macs_after(self.groups, keep) / self.whole.macs

    def _refuse_unreachable(self, how: Choice) -> None:
        floor = at_floor(self.groups, self.scores, how)
        for name, cost in self.costs.items():
            limit, least = self.config.limits[name], cost(floor)
            if least > limit:
                nearest = math.ceil(1000 * least) / 1000
                raise CompressError(
                    f"{name} (={limit:.4g}x) cannot be reached: with every channel group at its floor (={how.floor}) {nearest}x is left; "
                    f"ask for that, lower the floor, or --bypass what `compress sensitivity --granularity module` finds useless"
                )

    def _cut(self, keep: Kept) -> nn.Module:
        return remove_channels(self.network, self.groups, keep)

    def _rounding(self) -> dict[str, Any]:
        """The multiple of channels that widths are rounded to: as asked, as measured in an earlier step, or measured now."""
        if self.config.round_to:
            return {"round_to": self.config.round_to}
        if self.parent.manifest.stage == STAGE and (known := self.parent.manifest.metrics.get("rounding")):
            return dict(known)
        self.project.console.say(f"{STAGE}: measures which widths are fast here")

        def cut_for(round_to: int) -> nn.Module | None:
            try:
                return self._cut(self._choose(round_to))
            except CompressError:
                if round_to == 1:
                    raise
                return None

        measured: Rounding = fastest_rounding(cut_for, self.clock)
        return {"round_to": measured.best, "measured": [dataclasses.asdict(row) for row in measured.table]}

    def _losses(self) -> Iterator[Tensor]:
        """The loss of each batch of a stratified sample of the training images, without distortions."""
        part = self.project.data.train
        chosen = stratified_sample(part.labels, min(self.config.images, len(part.labels)), seed=0)
        device = choose_device(self.project.device)
        network, prepare = self.network.to(device).eval(), self.prepare.to(device)
        for at in range(0, len(chosen), BATCH):
            rows = chosen[at : at + BATCH]
            self.project.console.progress(f"{STAGE}: importance", at, len(chosen))
            logits = network(prepare(torch.from_numpy(part.images[rows]).to(device)))
            yield functional.cross_entropy(logits, torch.from_numpy(part.labels[rows]).to(device))
        self.project.console.progress(f"{STAGE}: importance", len(chosen), len(chosen))
        network.cpu()
        self.prepare.cpu()

    def _read_by_the_last(self, keep: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """The teacher's inputs that the last layer which reads removable channels still has, by that layer's name."""
        reads = [cut for group in self.groups for cut in group.cuts if cut.role == "input" and cut.dim == 1]
        modules = {name: place for place, (name, _) in enumerate(self.network.named_modules())}
        reads = [cut for cut in reads if cut.layer in modules]
        if not reads:
            return {}
        name = max((cut.layer for cut in reads), key=modules.__getitem__)
        gone = self.groups.removed(keep).get((f"{name}.weight", 1), set())
        width = self.network.get_parameter(f"{name}.weight").shape[1]
        known = self.parent.manifest.metrics.get("features", {}) if self.parent.manifest.hash != self.origin.manifest.hash else {}
        before = known.get(name, list(range(width)))
        return {name: [index for at, index in enumerate(before) if at not in gone]}


def _names(project: Project, parent: Artifact, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that the patterns mean, of those that can be left out."""
    if not patterns:
        return ()
    network = load_network(parent)
    return tuple(matching(bypassable(network, _example(project)), patterns))


def _example(project: Project) -> Tensor:
    return Prepare(project.spec)(torch.from_numpy(project.data.train.images[:2].copy()))


def _taken_up(project: Project, plan_file: Path) -> dict[str, Any] | None:
    """What was chosen before the run was killed, if it is to go on."""
    if not project.resume or not plan_file.is_file():
        return None
    found: dict[str, Any] = json.loads(plan_file.read_text(encoding="utf-8"))
    return found
