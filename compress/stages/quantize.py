"""The stage ``quantize``: from an exported graph to an int8 file, or to the measured answer that none is worth it here.

::

    export ── choose (what was tried, measured on this machine) ── quantize, as it was chosen
    export ── quantize, as the user says

The choice is an artifact of its own, found again as long as graph, data, settings and machine are the same: latencies are never the same
twice, but a second run takes the same choice and so makes the same bytes. Calibration images are drawn evenly from the classes of the
training images by the seed, and recorded by index and hash. Accuracy is that on validation images.

The weights of nodes that stay float are stored as int8 too (``storage``), which costs no time and is part of the accuracy measured.

Fine-tuning trains the quantized graph itself (``graph_network``), with the float32 graph as teacher; what was zero stays zero, and what
was removed is not there.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import onnx
import torch
from msgspec import UNSET, Meta, UnsetType
from numpy.typing import NDArray
from torch import Tensor

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.cost import INPUTS, in_turns
from ..artifacts.parts import Calibration, Chosen, Facts, Metrics, Scores
from ..artifacts.payloads import Search, read_payload
from ..artifacts.project import Made, Project, data_identity, run_stage, stage_key
from ..artifacts.records import write_record
from ..artifacts.vectors import TOLERANCE, write_vectors
from ..benchmarks.machine import DECIDING, machine_facts
from ..benchmarks.runtimes import Candidate, check_logits, open_model
from ..benchmarks.statistics import over_launches
from ..errors import CompressError
from ..graphs.file import write_onnx
from ..graphs.floats import MINIMUM_IMAGES
from ..quantization.bias import correct_bias
from ..quantization.equalise import equalise
from ..quantization.int8 import Change, Prepared, StaticConfig, prepare, quantizable, quantize_dynamic, quantize_prepared, write_quantized
from ..quantization.node_groups import node_groups
from ..quantization.qat.network import GraphNetwork
from ..quantization.search import Groups, Setting, choose
from ..quantization.weights_only import store_in, store_weights
from ..train.distil import Teacher
from ..train.metrics import score
from ..train.settings import DistilConfig, FitConfig
from ..train.split import stratified_sample
from .finetune import Tutoring, fit_network, state_file


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """int8. ``mode``: auto searches by measurement for the fastest file that loses at most ``max_drop`` points of balanced accuracy;
    static, dynamic, int8-weights and fp16-weights (stored so, computed in float32) make one by hand; float32 is a copy.

    The rest concerns static, and but for ``images`` and ``seed`` (calibration images drawn by it) auto finds it: ``method`` and
    ``per_channel`` as ``StaticConfig`` has them, ``groups`` of nodes to take (none: all), see ``node_groups``, ``equalise`` and
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
    max_drop: Annotated[float, Meta(ge=0, le=100, description="points of balanced accuracy, 0.3 is the default")] = 0.3
    epochs: Annotated[int, Meta(ge=0, description="0 does no fine-tuning")] = 0
    lr: Annotated[float, Meta(gt=0, description="0.0001 is the default")] = 0.0001

    def __post_init__(self) -> None:
        by_hand = {"method": "minmax", "per_channel": True, "groups": (), "equalise": False, "correct_bias": False}
        if self.mode != "static" and (given := [name for name, usual in by_hand.items() if getattr(self, name) != usual]):
            how = "auto tries them all" if self.mode == "auto" else f"{self.mode} has none"
            raise CompressError(f"{given[0]} (={getattr(self, given[0])}) is a setting of --mode static; {how}")
        if self.epochs and self.mode not in ("auto", "static"):
            raise CompressError(f"epochs (={self.epochs}) of fine-tuning need --mode auto or static; {self.mode} has nothing to train")


SCORED = 10_000  # validation images that decide, evenly drawn where there are more
BITS = {"int8-weights": "int8", "fp16-weights": "fp16"}


def quantize(
    project: Project,
    parent: Artifact,
    config: QuantizeConfig,
    tutoring: Tutoring,
    out: Path | None = None,
) -> Artifact:
    """Quantize the graph of ``parent`` as ``config`` says; ``tutoring`` is that of fine-tuning, if it says so."""
    chosen: Chosen | UnsetType = UNSET
    if config.mode == "auto":
        choice = choose_quantization(project, parent, config)
        found = read_payload(choice, Search)
        config = _as_chosen(found, config)
        told: dict[str, Any] = {name: getattr(found, name) for name in ("verdict", "best", "finalists")}
        chosen = Chosen(artifact=str(choice.path), hash=choice.manifest.hash, tried=len(found.tried), **told)
        project.console.say(f"quantize: {found.verdict}")
    tuning, distil = tutoring.config(config.epochs, config.lr), tutoring.distil
    settings = _settings_of(config)
    inputs = {"training": dataclasses.asdict(tuning), "distil": dataclasses.asdict(distil)} if config.epochs else {}
    key = stage_key("quantize", settings, parent=parent.content, data=data_identity(project), vectors=TOLERANCE["quantize"], **inputs)

    def make(folder: Path) -> Made:
        target = folder / PAYLOAD["graph"]
        metrics = _make(project, parent, config, tuning, distil, key, target)
        _prove(project, target)
        scores = _scores(project, target)
        before = _scores(project, parent.payload)
        drop = 100 * (before.balanced_accuracy - scores.balanced_accuracy)
        return dataclasses.replace(metrics, validation=scores, points_lost=drop, choice=chosen), parent.manifest.facts

    made = run_stage(project, "graph", "quantize", key, settings, parent, out, make)
    state_file(project, "quantize", key).unlink(missing_ok=True)
    return made


def choose_quantization(project: Project, parent: Artifact, config: QuantizeConfig) -> Artifact:
    """Search for the fastest file as ``quantization.search`` does, on this machine: one image, one thread, ONNX Runtime."""
    machine: dict[str, Any] = {name: machine_facts().get(name) for name in DECIDING if name not in ("governor", "gpu")}
    settings = {"images": config.images, "seed": config.seed, "max_drop": config.max_drop}
    key = stage_key("choose", settings, parent=parent.content, data=data_identity(project), machine=machine)

    def make(folder: Path) -> Made:
        generator = np.random.default_rng(config.seed)
        images = [generator.integers(0, 256, (1, *project.spec.shape), dtype=np.uint8) for _ in range(INPUTS)]
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            maker = Maker(project, parent.payload, calibration_images(project, config)[1], Path(scratch))
            found = choose(
                maker,
                lambda files, rounds: in_turns(list(files), images, rounds, generator),
                lambda file: _scores(project, file).balanced_accuracy,
                interval=over_launches,
                max_drop=config.max_drop,
                progress=lambda told: project.console.progress(told, 0, 1),
            )
            project.console.progress("chosen", 1, 1)
        search = Search(**vars(found), max_drop=config.max_drop, groups=maker.groups_of, machine=machine)
        write_record(folder / PAYLOAD["choice"], search)
        return Metrics(verdict=found.verdict), Facts()

    return run_stage(project, "choice", "choose", key, settings, parent, None, make)


class Maker:
    """Makes the candidates of a search as files in ``folder``, each once; see ``choose.Maker``."""

    def __init__(self, project: Project, source: Path, images: NDArray[np.uint8], folder: Path) -> None:
        self.project, self.float32, self.images, self.folder = project, source, images, folder
        self._files: dict[tuple[Groups, Setting], Path] = {}
        self._prepared: dict[bool, Prepared] = {}
        prepared = self.prepared(False)
        self.groups_of = groups_of(prepared)
        self.groups: Sequence[str] = tuple(self.groups_of)

    def prepared(self, equalised: bool) -> Prepared:
        """The graph as the quantizer takes it, calibrated once; with cross-layer equalisation before or without."""
        if equalised not in self._prepared:
            self.project.console.progress("calibration", 0, 1)
            self._prepared[equalised] = prepare(self.float32, self.images, change=equalise if equalised else None)
        return self._prepared[equalised]

    def static(self, groups: Groups, setting: Setting) -> Path:
        if (groups, setting) not in self._files:
            target = self.folder / f"{len(self._files)}.onnx"
            prepared = self.prepared(setting.equalise)
            nodes = [name for group in self.groups if group in groups for name in self.groups_of[group]]
            config = StaticConfig(method=setting.method, per_channel=setting.per_channel)
            quantized = quantize_prepared(prepared, config, nodes, change=self.corrector(setting))
            store_in(quantized, prepared.name, bits="int8")
            write_onnx(quantized, target)
            self._files[groups, setting] = target
        return self._files[groups, setting]

    def corrector(self, setting: Setting) -> Change | None:
        return _corrector(self.prepared(setting.equalise), self.images) if setting.correct_bias else None

    def others(self) -> dict[str, Path]:
        files = {}
        for mode in ("int8-weights", "fp16-weights", "dynamic"):
            target = self.folder / f"{mode}.onnx"
            try:
                _ = quantize_dynamic(self.float32, target) if mode == "dynamic" else store_weights(self.float32, target, bits=BITS[mode])
            except CompressError as error:  # such as a network without linear layers, which has no dynamic form
                self.project.console.say(f"quantize: no {mode}: {error}")
            else:
                files[mode] = target
        return files


def groups_of(prepared: Prepared) -> dict[str, tuple[str, ...]]:
    """The groups of nodes that static quantization can take, in the order of the graph."""
    return node_groups(prepared.model, [node.name for node in quantizable(prepared)])


def calibration_images(project: Project, config: QuantizeConfig) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Indices into the training images, evenly drawn from the classes, and the images uint8 (N, C, H, W)."""
    chosen = stratified_sample(project.data.train.labels, config.images, config.seed)
    return chosen, project.data.train.images[chosen]


def _settings_of(config: QuantizeConfig) -> dict[str, Any]:
    """What of ``config`` decides the result."""
    if config.mode != "static":
        return {"mode": config.mode}
    settings = dataclasses.asdict(config)
    del settings["max_drop"]
    return settings if config.epochs else {name: value for name, value in settings.items() if name not in ("epochs", "lr")}


def _as_chosen(found: Search, config: QuantizeConfig) -> QuantizeConfig:
    """The settings of the winner; where fine-tuning follows, of the fastest static one, whatever it loses before."""
    best = found.best
    if config.epochs:
        fast = [one for one in found.finalists if one.mode == "static" and one.ratio < 1]
        if not fast:
            raise CompressError(f"epochs (={config.epochs}): there is nothing to fine-tune. {found.verdict} Leave --epochs out")
        best = min(fast, key=lambda one: one.ratio)
    common: dict[str, Any] = {"mode": best.mode, "images": config.images, "seed": config.seed, "max_drop": config.max_drop}
    if best.mode == "static":
        groups = () if len(best.groups) == len(found.groups) else best.groups
        common |= dataclasses.asdict(best.setting or Setting()) | {"groups": groups, "epochs": config.epochs, "lr": config.lr}
    return QuantizeConfig(**common)


def _make(
    project: Project, parent: Artifact, config: QuantizeConfig, tuning: FitConfig, distil: DistilConfig, key: str, target: Path
) -> Metrics:
    """Write the file and return what is to be said of it."""
    if config.mode == "float32":
        target.write_bytes(parent.payload.read_bytes())
        return Metrics()
    if config.mode == "dynamic":
        return Metrics(quantized=quantize_dynamic(parent.payload, target))
    if config.mode in BITS:
        return Metrics(stored=store_weights(parent.payload, target, bits=BITS[config.mode]))
    indices, images = calibration_images(project, config)
    prepared = prepare(parent.payload, images, change=equalise if config.equalise else None)
    static = StaticConfig(method=config.method, per_channel=config.per_channel)
    change = _corrector(prepared, images) if config.correct_bias else None
    quantized = quantize_prepared(prepared, static, nodes_of(prepared, config.groups), change=change)
    metrics = Metrics()
    if config.epochs:
        quantized, metrics = _fine_tune(project, prepared, quantized, tuning, distil, key, target.parent)
    report = write_quantized(quantized, prepared, static, target, store="int8")
    calibration = {"indices": indices.tolist(), "sha256": prepared.sha256, "data": project.data.fingerprint}
    (target.parent / "calibration.json").write_text(json.dumps(calibration) + "\n", encoding="utf-8")
    return dataclasses.replace(metrics, quantized=report, calibration=Calibration(images=len(indices), sha256=prepared.sha256))


def nodes_of(prepared: Prepared, groups: Sequence[str]) -> list[str] | None:
    """The names of the nodes in ``groups``; None, which is all, for none. Raises CompressError for a group that the graph has not."""
    if not groups:
        return None
    known = groups_of(prepared)
    if unknown := [name for name in groups if name not in known]:
        raise CompressError(f'group (="{unknown[0]}") is none of this graph; it has {", ".join(known)}')
    return [node for name in known if name in groups for node in known[name]]


def _corrector(prepared: Prepared, images: NDArray[np.uint8]) -> Change:
    return functools.partial(correct_bias, prepared_model=prepared.model, images=images)


def _fine_tune(
    project: Project, prepared: Prepared, quantized: Any, tuning: FitConfig, distil: DistilConfig, key: str, folder: Path
) -> tuple[Any, Metrics]:
    """Train the quantized graph, with the float32 one as teacher; the graph with its new weights, and what happened."""
    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in prepared.model.graph.initializer}
    network = GraphNetwork(quantized, weights=weights)
    masks = network.zero_masks()

    def keep_zeros() -> None:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in masks:
                    parameter.mul_(masks[name].to(parameter.device))

    fitted = fit_network(
        project, network, tuning, key, "quantize", folder,
        prepare=lambda images: _as_taken(images, prepared.model),
        teacher=Teacher(network=GraphNetwork(prepared.model), config=distil), after_step=keep_zeros,
    )  # fmt: skip
    return network.to_onnx(), Metrics(best_epoch=fitted.best_epoch, fine_tuned=Scores(**fitted.best))


def _as_taken(images: Tensor, model: Any) -> Tensor:
    """Images of 0..255, float32 where they are distorted, as ``GraphNetwork`` takes them: in [0, 1] where the graph does."""
    return images.float() / 255 if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT else images.float()


def _scores(project: Project, file: Path) -> Scores:
    """The scores of a file on the validation images."""
    part = project.data.validation
    chosen = stratified_sample(part.labels, min(SCORED, len(part.labels)), 0)
    images, labels = part.images[chosen], part.labels[chosen]
    predict = open_model(Candidate(name=file.stem, path=file), project.spec.shape, project.classes, threads=1).predict
    logits = [check_logits(predict(batch), len(batch), project.classes) for batch in np.array_split(images, max(1, len(images) // 64))]
    return Scores(**score(labels, np.concatenate(logits).argmax(axis=1), project.classes))


def _prove(project: Project, target: Path) -> None:
    """Test vectors for an int8 file: what it answers here, as no other runtime computes in int8 what it does."""
    run = open_model(Candidate(name="int8", path=target), project.spec.shape, project.classes, threads=1).predict
    write_vectors(target.parent, run, project.data.validation.images, TOLERANCE["quantize"])
