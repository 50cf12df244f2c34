"""``compress sensitivity``: what a network loses by pruning each layer, channel group or module alone; measured once and kept.

Scored are training images, a stratified sample drawn by seed: what is chosen by these figures must not be chosen by the validation
images, or the accuracy that is reported on those would flatter. So the baseline here lies above the one that other commands tell.

Result: an artifact of kind "sensitivity" in ``runs/<model>/sensitivity/<key>`` with ``sensitivity.json`` (all scores),
``sensitivity.csv`` (a row for each) and ``sensitivity.png`` (the heat map).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.parts import Baseline, Metrics
from ..artifacts.payloads import Curve as Measured
from ..artifacts.payloads import Point, Sensitivity, read_payload
from ..artifacts.project import Project, data_identity, is_made, making, place_identity, place_of, stage_key
from ..artifacts.recipe import Recipe
from ..artifacts.records import write_csv, write_record
from ..benchmarks.statistics import Interval
from ..errors import CompressError, NetworkError
from ..train.data_set import Part
from ..train.metrics import score

if TYPE_CHECKING:
    from torch import nn

    from ..channels.curves import Curve, Curves, Measure, Score


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig:
    """How much each part of a network bears: ``granularity`` weight (zeroed, per layer), channel (removed, per group) or module (bypassed).

    ``sparsities``: those that are measured; modules know none. ``importance``: which channels go first, see ``channels.scores``.
    ``reconstruct``: the layers that read removed channels make up for them by least squares, and all layers for a module that was bypassed,
    as they do in channel removal.
    ``images``: how many training images are scored, drawn by ``seed``.
    """

    granularity: Literal["weight", "channel", "module"] = "channel"
    sparsities: Annotated[
        tuple[Annotated[float, Meta(gt=0, lt=1, description="0.5 removes half of one layer or group")], ...], Meta(min_length=1)
    ] = (0.25, 0.5, 0.75, 0.9)
    importance: Literal["l2", "bn", "taylor", "fluctuation", "bn-fluctuation"] = "l2"
    reconstruct: bool = True
    images: Annotated[int, Meta(ge=1, description="2048 is the default")] = 2048
    seed: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsities", tuple(sorted(set(self.sparsities))))


STAGE: Literal["sensitivity"] = "sensitivity"
MOST_LOST, LEAST_SAVED = 1.0, 0.01
SOLVED_ON = 256  # training images that layers are reconstructed on, for each sparsity of each group


def measure_sensitivity(
    project: Project, parent: Artifact, config: SensitivityConfig, out: Path | None = None, *, limit: float | None = None
) -> Artifact:
    """Measure the network of ``parent``, or return what was measured before; raises CompressError where there is nothing to measure.

    ``limit``: seconds after which no further part is begun; what was measured by then is kept by itself, and said to be incomplete.
    """
    settings = dataclasses.asdict(config)
    for name in {
        "weight": ("importance", "reconstruct"),
        "channel": (),
        "module": ("importance", "sparsities"),
    }[config.granularity]:
        del settings[name]  # without effect
    there = place_identity(project) if config.granularity == "module" else {}  # of modules the latency counts too
    key = stage_key(STAGE, settings, parent=parent.content, data=data_identity(project), **there)
    if limit is not None and not is_made(project, place_of(project, STAGE, key, out)):
        settings |= {"time_limit": limit}
        key = stage_key(STAGE, settings, parent=parent.content, data=data_identity(project), **there)

    with making(project, STAGE, STAGE, key, settings, parent, out) as new:
        if not new.wanted:
            return new.artifact
        from ..artifacts.load import load_network, load_to_cut
        from ..channels.curves import loss_rises
        from ..plots.sensitivity import draw_heat_map

        sample = project.data.train.sample(config.images, config.seed)
        load = load_to_cut if config.granularity == "channel" else load_network
        network, measure = load(parent), _measure(project, sample)
        baseline = measure(network)
        curves = _within(project, limit, _curves(project, config, network, sample, measure))
        latencies = _latencies(project, network, [curve.name for curve in curves]) if config.granularity == "module" else {}
        project.console.progress(STAGE, 1, 1)
        result = Sensitivity(
            granularity=config.granularity,
            images=len(sample.labels),
            baseline=Baseline(**vars(baseline)),
            curves=tuple(_plain(curve, baseline) for curve in curves),
            rises=loss_rises(baseline, curves),
            latency=latencies,
        )
        write_record(new.folder / PAYLOAD["sensitivity"], result)
        rows = [{"name": curve.name, "size": curve.size, **vars(point)} for curve in result.curves for point in curve.points]
        write_csv(new.folder / f"{STAGE}.csv", rows)
        columns = [_column(result, point) for point in result.curves[0].points]
        lost = [[point.points_lost for point in curve.points] for curve in result.curves]
        title = _title(result).replace("accuracy ", "accuracy\n", 1)
        (new.folder / f"{STAGE}.png").write_bytes(draw_heat_map([curve.name for curve in curves], columns, lost, title))
        new.metrics = Metrics(images=result.images, baseline=result.baseline)
    return new.artifact


def loss_curves(project: Project, recipe: Recipe, parent: Artifact, limit: float | None = None) -> Curves:
    """How the loss rises with the sparsity of each channel group, measured once as the recipe's table [sensitivity] says.

    ``limit``: seconds, see :func:`measure_sensitivity`; at least one group is measured.
    """
    return _measured(project, recipe, parent, "channel", limit).rises


def spare_modules(project: Project, recipe: Recipe, parent: Artifact, limit: float | None = None) -> list[str]:
    """The modules that are cheap to leave out, measured likewise; see :func:`cheap_modules`."""
    return cheap_modules(_measured(project, recipe, parent, "module", limit))


def _measured(project: Project, recipe: Recipe, parent: Artifact, granularity: str, limit: float | None) -> Sensitivity:
    config = recipe.stage(SensitivityConfig, "sensitivity", granularity=granularity)
    return read_payload(measure_sensitivity(project, parent, config, limit=limit), Sensitivity)


def _within(project: Project, limit: float | None, curves: Iterator[Curve]) -> list[Curve]:
    """The curves that are begun in time, at least one."""
    until, found = time.monotonic() + (math.inf if limit is None else limit), [next(curves)]
    while time.monotonic() < until:
        if (curve := next(curves, None)) is None:
            return found
        found.append(curve)
    project.console.say(f"{STAGE}: the time limit is over; {len(found)} parts were measured, the last {found[-1].name}")
    return found


def cheap_modules(result: Sensitivity) -> list[str]:
    """The modules that cost at most a point of balanced accuracy alone, and surely save latency: more than 1%, by the whole interval.

    Of one inside another the outer one. ``result``: of granularity "module".
    """
    cheap = [
        curve.name
        for curve in result.curves
        if curve.points[0].points_lost <= MOST_LOST and result.latency[curve.name].high < 1 - LEAST_SAVED
    ]
    return [name for name in cheap if not any(name.startswith(f"{outer}.") for outer in cheap)]


def _measure(project: Project, sample: Part) -> Measure:
    import torch
    from torch.nn.functional import cross_entropy

    from ..channels.curves import Score
    from .finetune import read_logits

    def measure(network: nn.Module) -> Score:
        logits = read_logits(project, network, sample.images)
        loss = float(cross_entropy(torch.from_numpy(logits), torch.from_numpy(sample.labels)))
        if not math.isfinite(loss):
            raise NetworkError(f"network gives a cross-entropy of {loss}; its weights or logits hold NaN or infinity, train it again")
        scores = score(sample.labels, logits.argmax(axis=1), project.classes)
        return Score(balanced_accuracy=scores["balanced_accuracy"], cross_entropy=loss)

    return measure


def _curves(project: Project, config: SensitivityConfig, network: nn.Module, sample: Part, measure: Measure) -> Iterator[Curve]:
    import torch

    from ..artifacts.load import Prepare
    from ..channels.bypass import bypassable
    from ..channels.curves import channel_curves, module_curves, weight_curves
    from ..channels.find import channel_groups
    from ..channels.scores import importance
    from .finetune import Bench, batch_losses

    example = Prepare(project.spec)(torch.from_numpy(sample.images[:2].copy()))

    def progress(name: str, done: int, total: int) -> None:
        project.console.progress(f"{STAGE}: {name}", done, total)

    if config.granularity == "weight":
        return weight_curves(network, config.sparsities, measure, progress)
    if config.granularity == "channel":
        groups = channel_groups(network, example)
        scores = importance(network, groups, config.importance, batch_losses(project, network, sample))
        network.cpu()
        bench, how = Bench(project=project, solved_on=SOLVED_ON), {}
        if config.reconstruct:
            how["repair"] = lambda pruned, keep: bench.reconstructed(network, pruned, groups, keep, near=True)
        return channel_curves(network, groups, scores, config.sparsities, measure, progress, **how)
    if not (names := bypassable(network, example)):
        raise CompressError("granularity (=module): no module of this network keeps the shape of its input; take weight or channel")
    if not config.reconstruct:
        return module_curves(network, names, measure, progress)
    bench = Bench(project=project, solved_on=SOLVED_ON)
    return module_curves(network, names, measure, progress, lambda bypassed: bench.without(network, bypassed))


def _latencies(project: Project, network: nn.Module, names: Sequence[str]) -> dict[str, Interval]:
    """The latency without each module as a fraction of that with all, measured in turns, with its 95% interval."""
    from ..artifacts.cost import Clock
    from ..channels.bypass import bypass

    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(network, project.spec, Path(folder), place=project.place)
        without = []
        for done, name in enumerate(names):
            project.console.progress(f"{STAGE}: latency without {name}", done, len(names))
            without.append(copy.deepcopy(network))
            bypass(without[-1], [name])
        return dict(zip(names, clock.ratios(without), strict=True))


def _plain(curve: Curve, baseline: Score) -> Measured:
    lost = [100 * (baseline.balanced_accuracy - point.score.balanced_accuracy) for point in curve.points]
    rows = zip(curve.points, lost, strict=True)
    points = tuple(Point(sparsity=p.sparsity, removed=p.removed, **vars(p.score), points_lost=points) for p, points in rows)
    return Measured(name=curve.name, size=curve.size, points=points)


def _column(result: Sensitivity, point: Point) -> str:
    return "without" if result.granularity == "module" else f"{100 * point.sparsity:.3g}%"


def _title(result: Sensitivity) -> str:
    part = {"weight": "with a part of one layer's weights zeroed", "channel": "with a part of one group's channels removed"}
    how = part.get(result.granularity, "without one module")
    return f"Points lost of {100 * result.baseline.balanced_accuracy:.2f}% balanced accuracy {how}"
