"""The stage ``import-onnx``: an ONNX file that another tool wrote becomes an artifact, so that every later stage takes it.

What comes out takes the raw image (``adopt``), and is proved on validation images to answer as the file did. It has no weights to train; to
prune it, take in the network it came from.
"""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.artifact import PAYLOAD, Artifact, sha256_of
from ..artifacts.context import Context
from ..artifacts.parts import Metrics
from ..artifacts.project import Project, data_identity, is_made, making, network_identity, place_of, stage_key
from ..artifacts.recipe import Recipe
from ..artifacts.records import plain
from ..artifacts.task.classes import logits_of, sure_of
from ..artifacts.vectors import TOLERANCE, write_vectors
from ..errors import CompressError, need_file
from ..graphs.records import Parity

STAGE = "import-onnx"
PARITY_IMAGES = 1000
PROVED_ON = 4  # images, of a network whose outputs may be large
SAME = 0.99  # of the answers: float32 turns a few of half precision's


def import_onnx(project: Project, path: Path, *, fold: bool = False) -> Artifact:
    """Take in the network in ``path``: a classifier, whose classes are those of the project's data, in their order, or for another task.

    ``fold``: what is constant in it too, as :func:`compress.stages.export.fold_constants` does.
    """
    config: dict[str, Any] = {"onnx": sha256_of(path), "input": plain(project.spec)}
    config |= {"fold_constants": True} if fold else {}
    key = stage_key(STAGE, config, data=data_identity(project), vectors=TOLERANCE["export"])
    spec, made = project.spec, None
    if not is_made(project, place_of(project, STAGE, key, None)):  # refused before anything is said or written
        from ..graphs.adopt import adopt, classes_of

        about = {
            "compress.classes": json.dumps(project.data.classes, ensure_ascii=False),
            "compress.input": json.dumps(plain(spec)),
            "compress.data": json.dumps({"name": project.data.name, "fingerprint": project.data.fingerprint}),
            "compress.source": f"{path.name} {config['onnx']}",
        }
        if project.task is not None:
            return _import_other(project, path, key, config, about)
        made = adopt(path, spec.shape, spec.mean, spec.std, about)
        if (count := classes_of(made)) != project.classes:
            raise CompressError(
                f"{path} reads {count} classes, data (={project.data.name}) has {project.classes}; name the data it was made for"
            )
    with making(project, "graph", STAGE, key, config) as new:
        if made is None or not new.wanted:
            return new.artifact
        from ..graphs.file import write_onnx

        target = new.folder / PAYLOAD["graph"]
        write_onnx(made, target)
        answers = partial(logits_of, project, target)
        images = project.data.validation.images[:PARITY_IMAGES]
        new.metrics = Metrics(parity=_parity(project, path, target, images))
        if fold:
            from .export import fold_constants

            folded, _ = fold_constants(project, STAGE, target, answers)
            new.metrics = dataclasses.replace(new.metrics, constants=folded)
        write_vectors(new.folder, answers, images, TOLERANCE["export"])
    return new.artifact


def _import_other(project: Project, path: Path, key: str, config: Mapping[str, Any], about: Mapping[str, str]) -> Artifact:
    """A network whose outputs are no classes; they stay as they are."""
    from ..graphs.adopt import adopt_any
    from ..graphs.file import write_onnx
    from .own_task import score_of

    if config.get("fold_constants"):
        raise CompressError("fold_constants (=True) is proved by the answers of a classifier; leave it out")
    made = adopt_any(path, project.data.validation.images[:PROVED_ON], project.spec.mean, project.spec.std, about)
    with making(project, "graph", STAGE, key, config) as new:
        if new.wanted:
            write_onnx(made, new.folder / PAYLOAD["graph"])
            new.metrics = Metrics(score=score_of(project, new.folder / PAYLOAD["graph"]))
    return new.artifact


def _parity(project: Project, path: Path, target: Path, images: NDArray[np.uint8]) -> Parity:
    """The file as it came, fed as its maker meant it, against what was made of it."""
    from ..graphs.adopt import own_answers

    ours = logits_of(project, target, images)
    theirs, _ = own_answers(path, project.spec.mean, project.spec.std, images)
    same = float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean())
    difference = min(float(np.abs(theirs - one).max()) for one in (ours, sure_of(project, target, images)))  # it may give either
    if same < SAME:
        raise CompressError(
            f"{path}: with the image preparation inside {100 * (1 - same):.2f}% of the answers change; please report this file"
        )
    return Parity(images=len(images), largest_difference=difference, agreement=same, probabilities=None)


def refuse_sigmoid(parent: Artifact, epochs: int) -> None:
    """Raise CompressError where a graph is to be trained whose labels do not exclude each other: the loss here is of such that do."""
    if epochs and any(step.stage == STAGE for step in parent.steps):
        from ..graphs.adopt import is_sigmoid

        if is_sigmoid(parent.payload):
            told = f"epochs (={epochs}): {parent.path} ends in a sigmoid, and our loss is a softmax's"
            raise CompressError(f"{told}; take --epochs 0")


def import_weights(project: Project, weights: Path, *, new_head: bool = False) -> Artifact:
    """Take in a network that was trained elsewhere; it is scored on the validation images.

    ``new_head``: where only its last layer is of other classes than the data's, that is left out, as it will be trained.
    """
    config: dict[str, Any] = {"weights": sha256_of(weights)} | ({"new_head": True} if new_head else {})
    key = stage_key("import", config, data=data_identity(project), **network_identity(project))

    network = None
    if not is_made(project, place_of(project, "import", key, None)):  # refused before anything is said or written
        from ..artifacts.load import load_weights
        from .finetune import new_network, save_network, validated

        network = new_network(project, 0)
        if told := load_weights(network, weights, classes=project.classes if new_head else None):
            project.console.say(f"import: {weights.name}, {told}")
    with making(project, "network", "import", key, config) as new:
        if network is not None and new.wanted:
            save_network(project, new, network, validated(project, network))
    return new.artifact


def start_of(
    context: Context, stages: tuple[str, ...], allowed: tuple[str, ...] | None = None, *, new_head: bool = False
) -> tuple[Project, Recipe, Artifact]:
    """As ``Context.child``; weights from elsewhere become an artifact first."""
    if (weights := context.weights_file()) is None:
        return context.child(stages, allowed)
    context.named_parent()  # refuses two at once
    need_file(weights, f"weights (={weights})")
    recipe = context.load_recipe()
    project = context.project(recipe)
    return project, recipe, import_weights(project, weights, new_head=new_head)
