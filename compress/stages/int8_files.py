"""Int8 files of a graph: the candidates of a search, and the one that was chosen, fine-tuned where that is asked for, scored and proved."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import UNSET
from numpy.typing import NDArray

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.parts import Calibration, Metrics, Scores
from ..artifacts.payloads import Search
from ..artifacts.project import New, Project
from ..artifacts.recipe import Tutoring
from ..artifacts.task.classes import logits_of, sure_of, to_ask
from ..artifacts.vectors import TOLERANCE, write_vectors
from ..benchmarks.paired import images_to_tell, paired_drop
from ..benchmarks.place import HERE
from ..benchmarks.runtimes import open_model
from ..errors import CompressError
from ..graphs.adopt import is_sigmoid
from ..graphs.file import write_onnx
from ..graphs.records import MINIMUM_IMAGES
from ..quantization.choice.latency_model import Groups
from ..quantization.choice.node_groups import borders, node_groups
from ..quantization.int8 import Prepared, prepare, quantize_dynamic, quantize_prepared, write_quantized
from ..quantization.records import Certified, Setting, Tried, Types, types_for
from ..quantization.weights_only import store_in, store_weights
from ..train.data_set import Part
from ..train.metrics import mean_average_precision, score
from ..train.split import stratified_sample
from .own_task import Asked, score_of
from .quantize import QuantizeConfig

SCORED = 10_000  # validation images that decide, evenly drawn where there are more
SEEN = 512  # training images on which answers are compared without their labels
BITS = {"int8-weights": "int8", "fp16-weights": "fp16"}


class Maker:
    """Makes the candidates of a search as files in ``folder``, each once; see ``search.Maker``. ``refuses``: why a runtime other than ONNX
    Runtime cannot take a file, or nothing; the groups that it refuses in int8 are named and left in float32, and as it computes in float32
    with weights that are stored in fewer bits, and stores them so, those are not tried.
    """

    def __init__(
        self, project: Project, source: Path, images: NDArray[np.uint8], folder: Path, refuses: Callable[[Path], str] | None = None
    ) -> None:
        self.project, self.float32, self.images, self.folder, self._others = project, source, images, folder, refuses is None
        self._files: dict[tuple[Groups, Setting], Path] = {}
        self._sketches: dict[Groups, Path] = {}
        self._prepared: dict[bool, Prepared] = {}
        prepared = self.prepared(False)
        self.groups_of = groups_of(prepared)
        self.groups: Sequence[str] = tuple(self.groups_of)
        if refuses is not None:
            self.groups = self._taken(refuses)
        self.borders = borders(prepared.model, {name: self.groups_of[name] for name in self.groups})

    def _taken(self, refuses: Callable[[Path], str]) -> tuple[str, ...]:
        """The groups that can be in int8."""
        if why := refuses(self.float32):
            raise CompressError(f"{self.float32}: {why}")
        taken = list(self.groups)
        if why := refuses(self.sketch(frozenset(taken))):
            for name in self.groups:
                if why := refuses(self.sketch(frozenset([name]))):
                    self.project.console.say(f"quantize: {name} stays float32: {why}")
                    taken.remove(name)
            if not taken or (why := refuses(self.sketch(frozenset(taken)))):
                raise CompressError(f"{', '.join(taken) or 'every group of nodes'} in int8: {why}")
        return tuple(taken)

    def prepared(self, equalised: bool) -> Prepared:
        """The graph as the quantizer takes it, calibrated once; with cross-layer equalisation before or without."""
        if equalised not in self._prepared:
            self.project.console.progress("calibration", 0, 1)
            self._prepared[equalised] = prepare(self.float32, self.images, equalised=equalised, types=types_of(self.project))
        return self._prepared[equalised]

    def static(self, groups: Groups, setting: Setting) -> Path:
        if (groups, setting) not in self._files:
            target = self.folder / f"{len(self._files)}.onnx"
            prepared = self.prepared(setting.equalise)
            quantized = quantize_prepared(prepared, setting, self._nodes(groups))
            store_in(quantized, prepared.name, bits="int8")
            write_onnx(quantized, target)
            self._files[groups, setting] = target
        return self._files[groups, setting]

    def sketch(self, groups: Groups) -> Path:
        """A file that is as fast as the static one: its weights are not stored small, and nothing is checked.

        Not one that ONNX Runtime has optimised already, though that would load in 12 ms instead of 50 for each turn (k49): a session of it
        takes 3 to 4% less than one of the file it was made of, and float32's does not, so everything in int8 would look faster than it is.
        """
        if not groups:
            return self.float32
        if groups not in self._sketches:
            self._sketches[groups] = self.folder / f"sketch{len(self._sketches)}.onnx"
            quantized = quantize_prepared(self.prepared(False), Setting(), self._nodes(groups))
            self._sketches[groups].write_bytes(quantized.SerializeToString())
        return self._sketches[groups]

    def _nodes(self, groups: Groups) -> list[str]:
        return [name for group in self.groups if group in groups for name in self.groups_of[group]]

    def file(self, one: Tried) -> Path:
        """That of a finalist."""
        if one.mode == "static":
            return self.static(frozenset(one.groups), one.setting or Setting())
        return self.float32 if one.mode == "float32" else self.folder / f"{one.mode}.onnx"

    def others(self) -> dict[str, Path]:
        files = dict[str, Path]()
        for mode in ("int8-weights", "fp16-weights", "dynamic") if self._others else ():
            target = self.folder / f"{mode}.onnx"
            try:
                if mode == "dynamic":
                    quantize_dynamic(self.float32, target, types_of(self.project))
                else:
                    store_weights(self.float32, target, bits=BITS[mode])
            except CompressError as error:  # such as a network without linear layers, which has no dynamic form
                self.project.console.say(f"quantize: no {mode}: {error}")
            else:
                files[mode] = target
        return files


class Answers:
    """What files answer beside the float32 one: on training images without labels, and on the validation images with them.

    Args:
        float32: the file that the others were made of.
        calibrated: positions of the training images that calibrate; others are taken where there are enough.
        max_drop: points of balanced accuracy that may be lost.
        asked: how a file is asked on validation images; in ONNX Runtime.
    """

    def __init__(
        self, project: Project, float32: Path, calibrated: NDArray[np.int64], max_drop: float | None, asked: Asked = lambda file: file
    ) -> None:
        assert max_drop is not None, "given, or the usual one"
        self.project, self.max_drop, self._asked = project, max_drop, asked
        train = project.data.train
        others = np.setdiff1d(np.arange(len(train.labels)), calibrated)
        pool = others if len(others) >= MINIMUM_IMAGES else calibrated
        self.images = train.images[pool[stratified_sample(train.labels[pool], min(SEEN, len(pool)), 0)]]
        self._sure = sure_of(project, float32, self.images)
        self.validation = _scored(project)
        self._float32, self._answers = float32, dict[Path, NDArray[np.int64]]()

    def of(self, file: Path) -> NDArray[np.int64]:
        """The classes that a file reads in the validation images, (N,), asked once."""
        if file not in self._answers:
            self._answers[file] = logits_of(self.project, self._asked(file), self.validation.images).argmax(axis=1)
        return self._answers[file]

    def scores(self, file: Path) -> Scores:
        """Its scores on them."""
        return scores_of(self.project, file, self.of(file))

    def moved(self, file: Path) -> float:
        """Points of probability that move to another class, on average over training images: 0.9 and 0.1 that become 0.7 and 0.3 are 20.

        Of a sigmoid's, whose labels do not exclude each other, half the sum of what each moves by.
        """
        found = sure_of(self.project, file, self.images)
        return 50 * float(np.abs(found - self._sure).sum(axis=1).mean())

    def certify(self, file: Path, error: float) -> Certified:
        """The drop that the validation images show, and its bound, which is wrong with the probability ``error`` at most."""
        answers = self.validation.labels, self.of(self._float32), self.of(file)
        drop = paired_drop(*answers, error=error)
        tells = images_to_tell(*answers, self.max_drop, error=error) if drop.bound > self.max_drop else None
        return Certified(drop=drop.value, bound=drop.bound, images=drop.images, tells=tells)


def types_of(project: Project) -> Types | None:
    """Those that the machine of ``--on`` or the ``target`` computes fast and without overflow; None for this machine's."""
    if (target := project.target) is not None:
        assert target.activations, "a target is one whose types are known"
        return Types(activations=target.activations, reduce_range=target.reduce_range, target=target.name)
    if project.place is HERE:
        return None
    facts = project.place.machine()
    return types_for(facts.get("architecture", ""), facts.get("flags", []))


def groups_of(prepared: Prepared) -> dict[str, tuple[str, ...]]:
    """The groups of nodes that static quantization can take, in the order of the graph."""
    return node_groups(prepared.model, [node.name for node in prepared.nodes])


def calibration_images(project: Project, config: QuantizeConfig) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Indices into the training images, evenly drawn from the classes, and the images uint8 (N, C, H, W)."""
    chosen = stratified_sample(project.data.train.labels, config.images, config.seed)
    return chosen, project.data.train.images[chosen]


def make_file(
    project: Project, new: New, parent: Artifact, config: QuantizeConfig, tutoring: Tutoring, found: Search | None = None
) -> Metrics:
    """Write the file that ``config`` asks for, with its test vectors, and return what is to be said of it; ``found``: how it was chosen."""
    target = new.folder / PAYLOAD["graph"]
    metrics = _make(project, new, parent, config, tutoring)
    if project.task is not None:
        had, has = found.own if found and found.own else (score_of(project, parent.payload), UNSET)
        has = has if found and has and found.graph == graph_of(target) else score_of(project, target)
        assert had.value is not UNSET and has.value is not UNSET, "scored"
        return dataclasses.replace(metrics, score=has, score_lost=had.value - has.value, units=has.name)
    # Test vectors are what it answers here, as no other runtime computes in int8 what this one does.
    run: Any = partial(logits_of, project, target)
    if project.place is HERE:
        run = open_model(to_ask(project, target), project.spec.shape, project.classes, threads=1).predict
    write_vectors(new.folder, run, project.data.validation.images, TOLERANCE["quantize"])
    before = found.before if found and found.before else scores_of(project, parent.payload)
    scores = found.after if found and found.after and found.graph == graph_of(target) else scores_of(project, target)
    return dataclasses.replace(metrics, validation=scores, points_lost=100 * (before.balanced_accuracy - scores.balanced_accuracy))


def _make(project: Project, new: New, parent: Artifact, config: QuantizeConfig, tutoring: Tutoring) -> Metrics:
    target = new.folder / PAYLOAD["graph"]
    if config.mode == "float32":
        target.write_bytes(parent.payload.read_bytes())
        return Metrics()
    if config.mode == "dynamic":
        return Metrics(quantized=quantize_dynamic(parent.payload, target, types_of(project)))
    if config.mode in BITS:
        return Metrics(stored=store_weights(parent.payload, target, bits=BITS[config.mode]))
    indices, images = calibration_images(project, config)
    prepared = prepare(parent.payload, images, equalised=config.equalise, types=types_of(project))
    setting = Setting(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Setting)})
    quantized = quantize_prepared(prepared, setting, nodes_of(prepared, config.groups))
    metrics = Metrics()
    if config.epochs:
        quantized, metrics = _fine_tune(project, new, prepared, quantized, config, tutoring)
    report = write_quantized(quantized, prepared, setting, target, store="int8")
    calibration = {"indices": indices.tolist(), "sha256": prepared.sha256, "data": project.data.fingerprint}
    (new.folder / "calibration.json").write_text(json.dumps(calibration) + "\n", encoding="utf-8")
    return dataclasses.replace(metrics, quantized=report, calibration=Calibration(images=len(indices), sha256=prepared.sha256))


def nodes_of(prepared: Prepared, groups: Sequence[str]) -> list[str] | None:
    """The names of the nodes in ``groups``; None, which is all, for none. Raises CompressError for a group that the graph has not."""
    if not groups:
        return None
    known = groups_of(prepared)
    if unknown := [name for name in groups if name not in known]:
        raise CompressError(f'group (="{unknown[0]}") is none of this graph; it has {", ".join(known)}')
    return [node for name in known if name in groups for node in known[name]]


def _fine_tune(
    project: Project, new: New, prepared: Prepared, quantized: Any, config: QuantizeConfig, tutoring: Tutoring
) -> tuple[Any, Metrics]:
    """Train the quantized graph, with the float32 one as teacher; the graph with its new weights, and what happened."""
    from ..pruning.masks import apply_masks
    from ..quantization.qat.network import GraphNetwork
    from ..train.distil import Teacher
    from ..train.fit import choose_device
    from .finetune import fit_network

    weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in prepared.model.graph.initializer}
    network, teacher = GraphNetwork(quantized, weights=weights), Teacher(network=GraphNetwork(prepared.model), config=tutoring.distil)
    device = choose_device(project.device)
    zeros = {name: mask.to(device) for name, mask in network.zero_masks().items()}
    # Images come as 0..255, float32 where they are distorted; the graph may take them in [0, 1].
    scale = 255 if prepared.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT else 1
    fitted = fit_network(
        project,
        new,
        network,
        tutoring.config(config.epochs, config.lr),
        prepare=lambda images: images.float() / scale,
        teacher=teacher,
        after_step=lambda: apply_masks(network, zeros),
    )
    return network.to_onnx(), Metrics(best_epoch=fitted.best_epoch, fine_tuned=Scores(**fitted.best))


def graph_of(file: Path) -> str:
    """SHA-256 of the graph in a file, whatever its metadata: the same graph gives the same answers."""
    return hashlib.sha256(onnx.load(file).graph.SerializeToString(deterministic=True)).hexdigest()


def scores_of(project: Project, file: Path, answers: NDArray[np.int64] | None = None) -> Scores:
    """The scores of a file on the validation images, of which its ``answers`` may be known."""
    part, many = _scored(project), is_sigmoid(file)
    logits = logits_of(project, file, part.images) if many or answers is None else None
    found: dict[str, Any] = {"mean_average_precision": mean_average_precision(part.labels, logits)} if many and logits is not None else {}
    answers = logits.argmax(axis=1) if logits is not None else answers
    assert answers is not None, "known or asked for"
    return Scores(**score(part.labels, answers, project.classes), **found)


def _scored(project: Project) -> Part:
    """The validation images, or so many of them that are evenly drawn."""
    part = project.data.validation
    if len(part.labels) <= SCORED:
        return part
    chosen = stratified_sample(part.labels, SCORED, 0)
    return Part(images=part.images[chosen], labels=part.labels[chosen])
