"""The stage that removes channels: cut a network towards a goal and fine-tune it, in steps; every step is an artifact.

::

    teacher ── step 1 ── step 2 ── step 3         goals are fractions of the teacher's cost, and all steps learn from it

The same command goes on with a killed run: finished steps are found, and what was chosen for the step in progress lies beside its state.
Latency is measured on this machine, in ONNX Runtime or as C, so with such a goal, or with a measured rounding, two machines may choose
otherwise. RAM and flash are planned as C for a target, and are the same everywhere.

Refused: a goal that the floors put out of reach (the nearest one is named), a network that cannot be cut (see compress.channels).
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts.artifact import Artifact
from ..artifacts.project import New, Project, data_identity, is_made, making, place_identity, place_of, stage_key
from ..artifacts.recipe import Recipe, Tutoring
from ..artifacts.records import seconds_of, write_kept
from ..benchmarks.formats import size
from ..errors import CompressError
from ..train.settings import FitConfig
from .import_network import refuse_sigmoid
from .own_task import refuse_compiled, refuse_training
from .removal.goals import RemoveConfig
from .sensitivity import spare_modules

if TYPE_CHECKING:
    from torch import nn

    from ..artifacts.cost import Clock
    from ..benchmarks.statistics import Interval
    from ..channels.groups import Groups
    from .boards.latency_table import LatencyTable

STAGE, OF_GRAPH = "remove-channels", "remove-channels-onnx"
AUTO = "auto"
SOLVED_ON = 1024  # training images that a cut network is reconstructed on; more bring little


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all steps share. ``origin``: the teacher. ``goals``: those after the last step.

    ``place``: where the graphs lie that are measured. ``stage``: what is made is called.
    """

    project: Project
    origin: Artifact
    goals: RemoveConfig
    tutoring: Tutoring
    recipe: Recipe
    place: Path
    stage: str

    @cached_property
    def final(self) -> dict[str, float]:
        """The limits after the last step."""
        return self.shares(self.goals)

    @property
    def sparsity(self) -> float | None:
        return self.goals.sparsity

    @cached_property
    def clock(self) -> Clock:
        """Measures latencies as fractions of the teacher's."""
        from ..artifacts.cost import Clock
        from ..artifacts.load import load_to_cut

        how: dict[str, Any] = {"classes": self.project.score is None}
        how["place"] = self.project.place
        if self.goals.runtime == "c":
            from .boards.timing import InC

            how["runtime"] = InC(self.project.console).runtime()
        return Clock(load_to_cut(self.origin), self.project.spec, self.place, **how)

    @cached_property
    def table(self) -> LatencyTable | None:
        """What is known of layers on the machine where latency is measured, if it is a goal."""
        if self.goals.max_latency is None or self.goals.runtime != "onnxruntime":
            return None
        from .boards.latency_table import table_for

        return table_for(self.project.place, self.project.console.say)

    @cached_property
    def _planned(self) -> dict[Path, dict[str, int]]:
        return {}

    def needs(self, network: nn.Module) -> dict[str, int]:
        """Bytes of RAM and flash, by the goals in them; planned once for the same widths."""
        from .boards.memory import needs_in

        graph = self.clock.graph(network)
        if graph not in self._planned:
            found = needs_in(graph, self.goals.target, self.goals.precision, self.project.spec.shape)
            self._planned[graph] = {"max_ram": found.ram, "max_flash": found.flash}
        return self._planned[graph]

    @cached_property
    def whole(self) -> dict[str, int]:
        """What the teacher needs, where that is a goal."""
        from ..artifacts.load import load_to_cut

        return self.needs(load_to_cut(self.origin)) if self.goals.memory else {}

    def shares(self, config: RemoveConfig) -> dict[str, float]:
        """The goals of a step as fractions of what the teacher costs, memory too."""
        return config.limits | {name: most / self.whole[name] for name, most in config.memory.items()}


def remove_in_steps(
    project: Project, parent: Artifact, config: RemoveConfig, tutoring: Tutoring, recipe: Recipe, out: Path | None = None
) -> Artifact:
    """Take ``parent`` to the goals of ``config``; returns the artifact of the last step.

    ``tutoring``: its teacher is the unpruned network that is learnt from and that goals are fractions of. ``recipe``: says how sensitivity
    is measured, for scope "sensitivity" and bypass "auto". Raises CompressError for what the module refuses.
    """
    project, stage = _of_kind(project, parent, config)
    if project.score is not None and (AUTO in config.bypass or config.scope == "sensitivity"):
        named = "bypass (=auto)" if AUTO in config.bypass else "scope (=sensitivity)"
        raise CompressError(f"{named} is measured by the accuracy of a classifier; leave it out, or name the modules")
    if AUTO in config.bypass:
        if config.runtime == "c":
            project.console.say(f"{STAGE}: --bypass auto weighs what a module saves by its time in ONNX Runtime")
        begun, limit = time.monotonic(), None if config.time_limit is None else seconds_of(config.time_limit, "time_limit")
        cheap = spare_modules(project, recipe, parent, limit)
        left = None if limit is None else max(1.0, limit - (time.monotonic() - begun))
        project.console.say(f"{STAGE}: leaves out {', '.join(cheap) or 'no module, as each costs more than it saves'}")
        config = dataclasses.replace(config, bypass=(*cheap, *(name for name in config.bypass if name != AUTO)), time_limit=left)
    config = dataclasses.replace(config, bypass=_names(project, parent, config.bypass))
    steps = config.in_steps()
    refuse_sigmoid(parent, max(step.epochs for step in steps))
    refuse_training(project, max(step.epochs for step in steps))
    refuse_compiled(project, config.runtime)
    with tempfile.TemporaryDirectory() as place:
        job = Job(
            project=project,
            origin=tutoring.teacher or parent,
            goals=steps[-1],
            tutoring=tutoring,
            recipe=recipe,
            place=Path(place),
            stage=stage,
        )
        steps = _within_reach(job, steps, config)
        for number, step in enumerate(steps, 1):
            parent = _step(job, parent, step, out if number == len(steps) else None)
    return parent


def _within_reach(job: Job, steps: list[RemoveConfig], config: RemoveConfig) -> list[RemoveConfig]:
    """The steps with their share of memory; CompressError where C is asked for and cannot be, or there is nothing to do for memory."""
    if config.runtime == "c":
        from ..artifacts.load import load_to_cut
        from .boards.library import written

        written(job.clock.graph(load_to_cut(job.origin)))
    if not config.memory:
        return steps
    if not config.limits and not config.bypass and all(job.whole[name] <= most for name, most in config.memory.items()):
        name, most = next(iter(config.memory.items()))
        needs = f"{size(job.whole[name])} as C for {config.target} in {config.precision}"
        raise CompressError(f"{name} (={size(most)}) is met already, the network needs {needs}; ask for less")
    return config.in_steps(job.whole)


def _of_kind(project: Project, parent: Artifact, config: RemoveConfig) -> tuple[Project, str]:
    """The project as its network takes images, and the stage: a graph has the preparation of its images inside."""
    if parent.manifest.kind != "graph":
        return project, STAGE
    if config.bypass:
        raise CompressError(f"bypass (={', '.join(config.bypass)}) leaves out modules of a network, and this is a graph; leave it out")
    return dataclasses.replace(project, spec=project.spec.as_pixels), OF_GRAPH


def refuse_unreachable(project: Project, network: nn.Module, config: RemoveConfig) -> None:
    """Raise CompressError where the floors keep ``network``, which need not be trained yet, from a goal in MACs or size.

    Nothing is said of latency, which has to be measured, nor where modules are left out by trial (bypass "auto").
    """
    limits = {name: limit for name, limit in config.limits.items() if name != "max_latency"}
    if not limits or AUTO in config.bypass:
        return
    import torch

    from ..artifacts.cost import MULTIPLES, count_cost
    from ..channels.bypass import bypass, bypassable, matching
    from ..channels.choose import Choice, at_floor, macs_after, size_after
    from ..channels.find import channel_groups
    from ..pruning.attention.heads import separate_heads
    from .removal.plan import example_of

    example = example_of(project)
    separate_heads(network)
    whole = count_cost(network, example)
    if config.bypass:
        bypass(network, tuple(matching(bypassable(network, example), config.bypass)))
    groups = channel_groups(network, example)
    equal = {group.name: torch.zeros(group.width) for group in groups}
    fixed = count_cost(network, example).macs - macs_after(groups, {group.name: tuple(range(group.width)) for group in groups})
    missed: dict[int, tuple[float, str, float]] = {}
    for multiple in [config.round_to] if config.round_to else MULTIPLES:
        floor = at_floor(groups, equal, Choice(round_to=multiple, floor=config.floor))
        left = {"max_macs": (macs_after(groups, floor) + fixed) / whole.macs, "max_size": size_after(network, groups, floor) / whole.params}
        missed[multiple] = max((left[name] / limit, name, left[name]) for name, limit in limits.items())
    best = min(missed, key=lambda multiple: missed[multiple])
    times, name, least = missed[best]
    if times > 1:
        raise out_of_reach(name, limits[name], least, config.floor, best)


def out_of_reach(name: str, limit: float, least: float, floor: float, multiple: int, whole: int = 0) -> CompressError:
    """What to say of a goal that is missed although every group is at its floor; ``whole``: bytes that it is a fraction of."""
    rounded = f" in multiples of {multiple}" if multiple > 1 else ""
    wanted, left = (size(limit * whole), size(least * whole)) if whole else (f"{limit:.4g}x", f"{math.ceil(1000 * least) / 1000}x")
    return CompressError(
        f"{name} (={wanted}) cannot be reached: with every channel group at its floor (={floor}){rounded} "
        f"{left} is left; ask for that, lower the floor, or leave modules of a network out (--bypass auto)"
    )


def groups_of(project: Project, parent: Artifact) -> Groups:
    from ..artifacts.load import load_to_cut
    from ..channels.find import channel_groups
    from .removal.plan import example_of

    return channel_groups(load_to_cut(parent), example_of(_of_kind(project, parent, RemoveConfig())[0]))


def _step(job: Job, parent: Artifact, config: RemoveConfig, out: Path | None) -> Artifact:
    project, origin = job.project, job.origin
    tuning = job.tutoring.config(config.epochs, config.lr)
    inputs: dict[str, Any] = {
        "training": dataclasses.asdict(tuning),
        "distil": dataclasses.asdict(job.tutoring.distil),
        "data": data_identity(project),
    }
    inputs |= {"parent": parent.content, "teacher": origin.content} | place_identity(project)
    inputs |= {"bypass": "made up for"} if config.bypass else {}  # older versions did so for channels alone
    key = stage_key(job.stage, dataclasses.replace(config, time_limit=None).decides, **inputs)
    if config.time_limit is not None and not is_made(project, place_of(project, job.stage, key, out)):
        key = stage_key(job.stage, config.decides, **inputs)  # what was not cut short is taken where it is there
    plan_file = project.folder / job.stage / f".{key[:12]}.plan.json"

    with making(project, parent.manifest.kind, job.stage, key, config, parent, out) as new:
        if new.wanted:
            _remove(job, new, parent, config, tuning, plan_file)
            plan_file.unlink(missing_ok=True)
    return new.artifact


def _remove(job: Job, new: New, parent: Artifact, config: RemoveConfig, tuning: FitConfig, plan_file: Path) -> None:
    import torch

    from ..artifacts.load import load_to_cut
    from ..channels.cut import remove_channels
    from ..pruning.masks import apply_masks
    from ..train.distil import Teacher
    from ..train.fit import choose_device
    from .finetune import Bench, ease_dropout, fit_and_save, save_network, validated, zeros_kept
    from .removal.plan import Cutter
    from .removal.told import drop_of, features_of, gains_of, repair_of
    from .removal.trial import planned, taken_up

    project = job.project
    cutter = Cutter(job=job, parent=parent, config=config)
    plan = taken_up(project, plan_file, cutter.groups) or planned(cutter)
    write_kept(plan_file, plan)
    cut = remove_channels(cutter.network, cutter.groups, plan.keep)
    kept_zeros = zeros_kept(parent, cut)
    bench = Bench(project=project, solved_on=min(config.images, SOLVED_ON))
    repaired = bench.repaired(load_to_cut(parent), cut, cutter.groups, plan.keep, "stay" if kept_zeros else "")
    network = repaired.network
    before = validated(project, network)
    if config.epochs == 0:
        save_network(project, new, network, before)
    else:
        features = {name: torch.tensor(index) for name, index in features_of(cutter, plan.keep).items()}
        lessons = Teacher(network=load_to_cut(job.origin), config=job.tutoring.distil, features=features)
        ease_dropout(network, lessons.network)
        zeros = {name: mask.to(choose_device(project.device)) for name, mask in kept_zeros.items()}
        keep_zeros = (lambda: apply_masks(network, zeros)) if zeros else None
        fit_and_save(project, new, network, tuning, teacher=lessons, after_step=keep_zeros)
    gains = gains_of(cutter, network, plan)
    if config.epochs == 0:  # else the validation images chose the epoch
        gains["drop"] = drop_of(project, load_to_cut(job.origin), network)
    if missed := _missed(job, config, gains["gains"].latency):
        project.console.say(f"{STAGE}: {missed}")
    new.metrics = dataclasses.replace(new.metrics, one_shot=before.validation, repair=repair_of(plan, repaired), **gains)


def _missed(job: Job, config: RemoveConfig, latency: Interval) -> str:
    """By how much a goal in latency was missed, in words, or that nothing was gained; or nothing."""
    goal = job.final.get("max_latency")
    if goal is None and latency.low > 1 and config.limits.items() <= job.final.items():
        slower = f"what is left is slower than before, {latency.value:.3g}x ({latency.low:.3g} to {latency.high:.3g})"
        return f"{slower}; ask for widths in multiples of 8 (--round-to 8), or for a latency (--max-latency 0.9x)"
    if goal is None or goal != config.max_latency or latency.high <= goal:
        return ""
    measured = f"{latency.value:.3g}x ({latency.low:.3g} to {latency.high:.3g})"
    if latency.value <= goal:
        return f"max_latency (={goal:.4g}x) is met, but not surely: {measured}"
    return f"max_latency (={goal:.4g}x) is missed by {100 * (latency.value / goal - 1):.1f}%: {measured}; ask for less, or lower the floor"


def _names(project: Project, parent: Artifact, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that the patterns mean, of those that can be left out."""
    if not patterns:
        return ()
    from ..artifacts.load import load_to_cut
    from ..channels.bypass import bypassable, matching
    from .removal.plan import example_of

    network = load_to_cut(parent)
    return tuple(matching(bypassable(network, example_of(project)), patterns))
