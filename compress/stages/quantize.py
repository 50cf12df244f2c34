"""The stage ``quantize``: from an exported graph to an int8 file, or to the measured answer that none is worth it here.

::

    export ── choose (what was tried, measured on this machine) ── quantize, as it was chosen
    export ── quantize, as the user says
    export ── explain (what int8 costs each layer and group, as tables and a picture; makes no file)

With ``runtime`` c the candidates are timed as C, compiled here, and asked so on validation images: what is fast there differs. Compiling
costs seconds each, so fewer are timed, and the rest is foretold. Then the choice is one for C, and says so.

With ``target``, a processor that is not here, files have its 8-bit types and nothing is timed: the choice is one by size and accuracy, for
that processor and valid on any machine that makes it. What files answer is found with exact sums (`task.classes.to_ask`), as there.

The choice is an artifact of its own, found again as long as graph, data, settings and machine are the same: latencies are never the same
twice, but a second run takes the same choice and so makes the same bytes. Calibration images are drawn evenly from the classes of the
training images by the seed, and recorded by index and hash. Settings are chosen on training images, without labels; the validation images
choose nothing: what is most wanted is asked on them whether it is proved to keep ``max_drop``.

A search that was cut short by ``time_limit`` has a key of its own, and a complete one is taken instead where it is there.

The weights of nodes that stay float are stored as int8 too (``storage``), which costs no time and is part of the accuracy measured.

Fine-tuning trains the quantized graph itself (``graph_network``), with the float32 graph as teacher; what was zero stays zero, and what
was removed is not there.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.parts import Chosen, Metrics
from ..artifacts.payloads import Noise, NoisyGroup, NoisyLayer, Search, read_payload
from ..artifacts.project import Project, data_identity, is_made, making, place_identity, place_of, stage_key, state_file
from ..artifacts.recipe import Tutoring
from ..artifacts.records import seconds_of, write_record
from ..artifacts.vectors import TOLERANCE
from ..benchmarks.machine import DECIDING
from ..benchmarks.place import HERE
from ..benchmarks.statistics import Interval, over_launches
from ..benchmarks.turns import in_turns, random_images, ratios_to_first
from ..codegen.target import unmeasured
from ..errors import CompressError
from ..graphs.records import MINIMUM_IMAGES
from ..quantization.choice.by_size import choose_by_size
from ..quantization.choice.search import QUICK, SURE, Judges, Readers, choose
from ..quantization.records import Choice, Lost, Setting
from .boards.compilers import compiler_here, toolchain
from .import_network import refuse_sigmoid
from .own_task import OwnAnswers, refuse_compiled, refuse_training

if TYPE_CHECKING:
    from .boards.timing import InC
    from .int8_files import Maker

EXPLAIN, SEEN = "explain-int8", 1024
USUAL_DROP = 0.3  # points of balanced accuracy
TOLD = ("verdict", "decided", "complete", "best", "finalists", "runtime", "target")  # of a search, beside the file that it chose
SEARCH = 2  # raised when a search chooses otherwise, so that what older versions chose is not taken for its own


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """int8. ``mode``: auto searches by measurement for the fastest file that is proved to lose at most ``max_drop`` points of balanced
    accuracy (0.3), or of the user's own score (0.3% of it), by a 95% bound, or loses no more as counted where ``accept_unproved`` says that
    this is enough, for at most ``time_limit``, timed in ``runtime``; for a ``target`` the smallest. Static, dynamic, int8-weights and
    fp16-weights (stored so, computed in float32) make one by hand; float32 is a copy.

    The rest concerns static, and but for ``images`` and ``seed`` (calibration images drawn by it) auto finds it: ``method`` and
    ``per_channel`` as ``Setting`` has them, ``groups`` of nodes to take (none: all), see ``node_groups``, ``equalise`` and
    ``correct_bias``. ``epochs`` of fine-tuning from ``lr`` follow, with what int8 does to every tensor in the forward pass.
    """

    mode: Literal["auto", "static", "dynamic", "int8-weights", "fp16-weights", "float32"] = "auto"
    method: Literal["minmax", "percentile", "entropy", "mse"] = "minmax"
    per_channel: bool = True
    groups: tuple[str, ...] = ()
    equalise: bool = False
    correct_bias: bool = False
    images: Annotated[int, Meta(ge=MINIMUM_IMAGES, description="256 to 1024 of the training images do well")] = 512
    seed: Annotated[int, Meta(ge=0)] = 0
    max_drop: Annotated[float, Meta(ge=0, description="points of balanced accuracy, 0.3 is the default")] | None = None
    accept_unproved: bool = False
    time_limit: str | float | None = None
    runtime: Annotated[Literal["onnxruntime", "c"], Meta(description="where candidates are timed")] = "onnxruntime"
    target: Annotated[str, Meta(description="a processor that is not here, such as cortex-a72; nothing is timed")] = ""
    epochs: Annotated[int, Meta(ge=0, description="0 does no fine-tuning")] = 0
    lr: Annotated[float, Meta(gt=0, description="0.0001 is the default")] = 0.0001

    def __post_init__(self) -> None:
        if self.time_limit is not None:
            seconds_of(self.time_limit, "time_limit")
        by_hand = ("method", "per_channel", "groups", "equalise", "correct_bias")
        if self.mode != "static" and (given := [name for name in by_hand if getattr(self, name) != getattr(QuantizeConfig, name)]):
            how = "auto tries them all" if self.mode == "auto" else f"{self.mode} has none"
            raise CompressError(f"{given[0]} (={getattr(self, given[0])}) is a setting of --mode static; {how}")
        if self.target:
            unmeasured(self.target)
            if self.runtime != "onnxruntime":
                told = "nothing is timed for a processor that is not here"
                raise CompressError(f"target (={self.target}): {told}; leave runtime (={self.runtime}) out")
        if self.runtime == "c":
            if self.mode != "auto":
                raise CompressError(f"runtime (=c) is what --mode auto times candidates in; {self.mode} times none, leave it out")
            compiler_here("runtime (=c)")
        if self.epochs and self.mode not in ("auto", "static"):
            raise CompressError(f"epochs (={self.epochs}) of fine-tuning need --mode auto or static; {self.mode} has nothing to train")


def quantize(
    project: Project,
    parent: Artifact,
    config: QuantizeConfig,
    tutoring: Tutoring,
    out: Path | None = None,
) -> Artifact:
    """Quantize the graph of ``parent`` as ``config`` says; ``tutoring`` is that of fine-tuning, if it says so."""
    refuse_sigmoid(parent, config.epochs)
    refuse_training(project, config.epochs)
    project, config = _targeted(project, config), _limited(project, config)
    chosen: Chosen | UnsetType = UNSET
    found, inputs = None, dict[str, Any]()
    if config.mode == "auto":
        choice = choose_quantization(project, parent, config)
        found = read_payload(choice, Search)
        config = _as_chosen(found, config)
        # What is said of a file belongs to it: another search that comes to the same settings makes another artifact, unless it trains.
        inputs = {} if config.epochs else {"choice": choice.manifest.key}
        told: dict[str, Any] = {name: getattr(found, name) for name in TOLD}
        chosen = Chosen(artifact=str(choice.path), hash=choice.manifest.hash, tried=len(found.tried), **told)
        project.console.say(f"quantize: {found.verdict}")
    tuning, distil = tutoring.config(config.epochs, config.lr), tutoring.distil
    settings = _settings_of(config)
    if config.epochs:  # "unfolded": older versions trained the first layer at another scale
        inputs = {"training": dataclasses.asdict(tuning), "distil": dataclasses.asdict(distil), "first layer": "unfolded"}
    inputs |= place_identity(project)
    key = stage_key("quantize", settings, parent=parent.content, data=data_identity(project), vectors=TOLERANCE["quantize"], **inputs)

    with making(project, "graph", "quantize", key, settings, parent, out) as new:
        if new.wanted:
            from .int8_files import make_file

            new.metrics = dataclasses.replace(make_file(project, new, parent, config, tutoring, found), choice=chosen)
            new.facts = parent.manifest.facts
    if new.wanted:  # else another process may be at it
        state_file(project, "quantize", key).unlink(missing_ok=True)
    return new.artifact


def choose_quantization(project: Project, parent: Artifact, config: QuantizeConfig) -> Artifact:
    """Search for the fastest file as ``quantization.choice.search`` does, on this machine: one image, one thread; for a ``target``, for the
    smallest as ``by_size`` does."""
    begun, project, config = time.monotonic(), _targeted(project, config), _limited(project, config)
    refuse_compiled(project, config.runtime)
    facts = {} if config.target else project.place.machine()
    machine: dict[str, Any] = {name: facts.get(name) for name in DECIDING if name not in ("governor", "gpu")} if facts else {}
    targeted: dict[str, Any] = {"target": config.target} if config.target else {}
    settings = targeted | {name: getattr(config, name) for name in ("images", "seed", "max_drop", "accept_unproved")}
    inputs: dict[str, Any] = {"parent": parent.content, "data": data_identity(project), "machine": machine, "search": SEARCH}
    if config.runtime != "onnxruntime":
        settings["runtime"], inputs["toolchain"] = config.runtime, toolchain()
    key, limit = stage_key("choose", settings, **inputs), None
    if config.time_limit is not None and not is_made(project, place_of(project, "choose", key, None)):
        limit = seconds_of(config.time_limit, "time_limit")
        settings |= {"time_limit": limit}
        key = stage_key("choose", settings, **inputs)

    with making(project, "choice", "choose", key, settings, parent) as new:
        if not new.wanted:
            return new.artifact
        from .boards.timing import InC
        from .int8_files import Answers, Maker, calibration_images, graph_of

        in_c = InC(project.console) if config.runtime == "c" else None
        calibrated, calibration = calibration_images(project, config)
        with tempfile.TemporaryDirectory(dir=new.folder) as scratch:
            maker = Maker(project, parent.payload, calibration, Path(scratch), *([in_c.refuses] if in_c else []))
            asked = [in_c.candidate] if in_c else []
            answers = (OwnAnswers if project.task else Answers)(project, parent.payload, calibrated, config.max_drop, *asked)
            readers = Readers(
                moved=answers.moved,
                certify=answers.certify,
                progress=lambda told: project.console.progress(told, 0, 1),
                late=lambda: limit is not None and time.monotonic() - begun > limit,
            )
            how: dict[str, Any] = {"max_drop": answers.max_drop, "accept_unproved": config.accept_unproved}
            found = _chosen(project, config, maker, readers, how, in_c)
            best = maker.file(found.best)
            before, after = answers.scores(parent.payload), answers.scores(best)
            own = {"before": None, "after": None, "own": (before, after)}
            scored: dict[str, Any] = own if project.task is not None else {"before": before, "after": after}
            about = targeted | {"groups": maker.groups_of, "machine": machine} | ({"runtime": "c"} if in_c else {})
            search = Search(**vars(found), **scored, graph=graph_of(best), max_drop=answers.max_drop, **about)
            project.console.progress("chosen", 1, 1)
        write_record(new.folder / PAYLOAD["choice"], search)
        new.metrics = Metrics(verdict=found.verdict)
    return new.artifact


def _chosen(project: Project, config: QuantizeConfig, maker: Maker, readers: Readers, how: dict[str, Any], in_c: InC | None) -> Choice:
    """What the search comes to, and where that holds; ``how``: what it allows."""
    how |= {"units": Lost(project.score.name if project.score else "")}
    if config.target:
        return choose_by_size(maker, readers, target=config.target, **how)
    generator = np.random.default_rng(config.seed)
    images = random_images(project.spec.shape, bool(project.spec.pixels), generator)
    judges = Judges(
        times=lambda files, rounds: _timed(project, in_c, files, images, rounds, generator),
        interval=over_launches,
        dear=in_c is not None,
        **vars(readers),
    )
    found = choose(maker, judges, **how)
    if in_c:
        return dataclasses.replace(found, verdict=f"{found.verdict} This is the choice for C ({toolchain()['compiler']}).")
    facts, verdict = project.place.machine(), found.verdict
    if project.place is not HERE:
        verdict = f"On {project.place.name} ({facts.get('cpu', 'an unnamed CPU')}): {verdict.replace(' on this machine', '')}"
    if facts.get("emulated"):
        verdict += " The processor is emulated, so its latencies say nothing of a real one."
    return dataclasses.replace(found, verdict=verdict)


def _targeted(project: Project, config: QuantizeConfig) -> Project:
    """The project for the processor that ``config`` names, if it names one."""
    return dataclasses.replace(project, target=unmeasured(config.target)) if config.target else project


def _timed(
    project: Project, in_c: InC | None, files: Sequence[Path], images: list[NDArray[Any]], rounds: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Seconds per call (rounds, files), in ONNX Runtime or as C, of which few rounds are a first look."""
    from .boards.timing import DECIDE, LOOK

    runtime = [in_c.runtime(LOOK if rounds <= QUICK else DECIDE)] if in_c else []
    return project.place.turns(list(files), images, rounds, generator, *runtime)


def _limited(project: Project, config: QuantizeConfig) -> QuantizeConfig:
    """With the usual limit where none was given; of a score of the user's own it follows from what float32 scores."""
    usual = config.max_drop is None and project.task is None
    if project.task is None and not usual and config.max_drop > 100:  # type: ignore[operator]
        raise CompressError(f"max_drop (={config.max_drop}) must lie in [0, 100]; points of balanced accuracy, 0.3 is the default")
    return dataclasses.replace(config, max_drop=USUAL_DROP) if usual else config


def _settings_of(config: QuantizeConfig) -> dict[str, Any]:
    """What of ``config`` decides the result."""
    target = {"target": config.target} if config.target else {}
    if config.mode != "static":
        return {"mode": config.mode} | target
    without = {"max_drop", "accept_unproved", "time_limit", "runtime", "target"} | (set() if config.epochs else {"epochs", "lr"})
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in without} | target


def _as_chosen(found: Search, config: QuantizeConfig) -> QuantizeConfig:
    """The settings of the winner; where fine-tuning follows, of the fastest static one, whatever it loses before; of untimed ones, of that
    with most groups in int8."""
    best = found.best
    if config.epochs:
        fast = [one for one in found.finalists if one.mode == "static" and (one.ratio is None or one.ratio < 1)]
        if not fast:
            raise CompressError(f"epochs (={config.epochs}): there is nothing to fine-tune. {found.verdict} Leave --epochs out")
        best = min(fast, key=lambda one: (one.ratio or 0.0, -len(one.groups)))
    common: dict[str, Any] = {name: getattr(config, name) for name in ("images", "seed", "max_drop", "target")} | {"mode": best.mode}
    if best.mode == "static":
        groups = () if len(best.groups) == len(found.groups) else best.groups
        common |= dataclasses.asdict(best.setting or Setting()) | {"groups": groups, "epochs": config.epochs, "lr": config.lr}
    return QuantizeConfig(**common)


def explain_quantization(project: Project, parent: Artifact, config: QuantizeConfig) -> Artifact:
    """Measure what static quantization costs the graph of ``parent``, with the settings of ``config``; for auto all nodes and minmax.

    For each layer the signal to quantization noise ratio, with everything in int8 that the settings say. For each group of nodes, taken to
    int8 alone: how far the logits move, how many answers change, and the latency, measured in turns with the float32 graph. So the one
    table says where the noise arises, the other which groups to leave out. Seen are validation images; nothing is chosen by it.
    """
    if project.task is not None:
        raise CompressError("explain shows what int8 costs the logits of a classifier; leave it out")
    if config.target:
        raise CompressError(f"explain times groups of nodes on this machine; leave target (={config.target}) out")
    if config.runtime != "onnxruntime":
        raise CompressError(f"explain times groups of nodes in ONNX Runtime; leave runtime (={config.runtime}) out")
    if project.place is not HERE:
        raise CompressError(f"explain times nodes on this machine; leave on (={project.place.name}) out")
    settings = {name: getattr(config, name) for name in ("method", "per_channel", "groups", "equalise", "correct_bias", "images", "seed")}
    key = stage_key(EXPLAIN, settings, parent=parent.content, data=data_identity(project))
    setting = Setting(method=config.method, per_channel=config.per_channel, equalise=config.equalise, correct_bias=config.correct_bias)

    with making(project, "noise", EXPLAIN, key, settings, parent) as new:
        if not new.wanted:
            return new.artifact
        from ..graphs.node_times import node_times
        from ..plots.noise import draw_noise, layer_names
        from ..quantization.int8 import quantize_prepared
        from ..quantization.noise import finite, group_costs, layer_noise
        from .int8_files import Maker, calibration_images, nodes_of

        images = project.data.validation.sample(SEEN, config.seed).images[:]
        with tempfile.TemporaryDirectory(dir=new.folder) as scratch:
            maker = Maker(project, parent.payload, calibration_images(project, config)[1], Path(scratch))
            prepared = maker.prepared(setting.equalise)
            project.console.progress("noise of each layer", 0, 2)
            quantized = quantize_prepared(prepared, setting, nodes_of(prepared, config.groups))
            layers = layer_noise(prepared.model, quantized, images)
            project.console.progress("each group of nodes alone", 1, 2)
            costs = group_costs(prepared, dataclasses.replace(setting, correct_bias=False), maker.groups_of, images)
            latencies = _latencies(project, maker, setting, config.seed)
            int8 = maker.static(frozenset(config.groups or maker.groups), setting)
            times = node_times(maker.float32, project.spec.shape), node_times(int8, project.spec.shape)
        noise = Noise(
            images=len(images),
            setting=str(setting),
            layers=tuple(
                NoisyLayer(label=label, **finite(one), microseconds=(times[0].get(one.name), times[1].get(one.name)))
                for label, one in zip(layer_names(layers), layers, strict=True)
            ),
            groups=tuple(
                NoisyGroup(name=name, nodes=len(maker.groups_of[name]), **finite(cost), latency=latencies[name])
                for name, cost in costs.items()
            ),
        )
        write_record(new.folder / PAYLOAD["noise"], noise)
        (new.folder / "noise.png").write_bytes(draw_noise(layers, f"{project.folder.name}, int8, {setting}", times))
        project.console.progress("explained", 2, 2)
        new.metrics = Metrics(images=len(images))
    return new.artifact


def _latencies(project: Project, maker: Maker, setting: Setting, seed: int) -> dict[str, Interval]:
    """Latency with one group alone in int8 as a fraction of float32's, with its 95% interval."""
    generator = np.random.default_rng(seed)
    images = random_images(project.spec.shape, bool(project.spec.pixels), generator)
    files = [maker.float32, *(maker.static(frozenset([name]), setting) for name in maker.groups)]
    return dict(zip(maker.groups, ratios_to_first(in_turns(files, images, SURE, generator)), strict=True))
