"""The stages: thin shells that load a parent artifact, call one algorithm, measure, and write the child.

::

    train ──┬── export ──┬── quantize (dynamic)
    import ─┘            └── quantize (static)
       └── prune ── export ── quantize

    benchmark: every graph of one root, side by side      report: what the benchmark says, and which variant to ship
"""

import csv
import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from . import __version__
from .artifact import PAYLOAD, Artifact, sha256_of
from .config import ExportConfig, PruneConfig
from .cost import count_cost
from .errors import CompressError
from .export import export_onnx, parity
from .networks import Prepare, build_network, load_network, load_weights
from .project import Made, Project, data_identity, network_identity, run_stage, stage_key
from .prune import (
    apply_masks,
    cubic_sparsities,
    nonzero_masks,
    outside_pattern,
    parse_pattern,
    pattern_masks,
    rank,
    sparsity_by_layer,
    squared_gradients,
    weight_masks,
)
from .regrow import Regrowing
from .train.distil import Teacher
from .train.distributed import joined, this_team
from .train.fit import Fitted, choose_device, fit, predict_logits, steps_in_epoch
from .train.metrics import score
from .train.settings import DistilConfig, FitConfig
from .train.sources import Part
from .verify import TOLERANCE, write_vectors

# Float32 sums in another order differ by about 1e-6 of the largest logit; a wrong graph is wrong by far more.
PARITY_TOLERANCE = 1e-3

SEEN = 2048  # training images whose gradients say which weights the loss feels


def train(project: Project, config: FitConfig, out: Path | None = None, start: Artifact | None = None) -> Artifact | None:
    """Train a new network, or the one of ``start`` further; initial weights and everything random follow from ``config.seed``.

    Processes that torchrun started train it together. Only the first of them reads and writes artifacts; the others get None.
    """
    begun = {} if start is None else {"start": start.content}
    key = stage_key("train", config, data=data_identity(project), **network_identity(project), **begun)
    with joined(choose_device(project.device).type == "cuda") as team:
        if team.from_first(key) != key:
            raise CompressError(
                f"process {team.rank} does not train what the first one does; start all with the same command, code and data"
            )
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            network = _new_network(project) if start is None else load_network(start)
        if team.rank:
            if team.from_first(False):
                with tempfile.TemporaryDirectory() as folder:
                    fit_and_save(project, network, config, key, "train", Path(folder))
            return None
        told = False

        def make(folder: Path) -> Made:
            nonlocal told
            told = team.from_first(True)
            return fit_and_save(project, network, config, key, "train", folder)

        artifact = run_stage(project, "network", "train", key, config, start, out, make)
        if not told:  # it was there already
            team.from_first(False)
        return artifact


def import_weights(project: Project, weights: Path, out: Path | None = None) -> Artifact:
    """Take in a network that was trained elsewhere; it is scored on the validation images."""
    if not weights.is_file():
        raise CompressError(f"weights (={weights}): there is no such file")
    config = {"weights": sha256_of(weights)}
    key = stage_key("import", config, data=data_identity(project), **network_identity(project))
    network = _new_network(project)
    load_weights(network, weights)

    def make(folder: Path) -> Made:
        return save_network(project, network, folder, {"validation": validate(project, network)})

    return run_stage(project, "network", "import", key, config, None, out, make)


def prune(
    project: Project,
    parent: Artifact,
    config: PruneConfig,
    training: FitConfig,
    distil: DistilConfig,
    *,
    teacher: Artifact | None = None,
    out: Path | None = None,
) -> Artifact:
    """Zero weights of ``parent`` in ``config.steps`` and fine-tune after each with the mask kept; every step is an artifact.

    ``training`` gives batch, optimiser, smoothing and distortions; fine-tuning learns from ``teacher`` too, ``parent`` if not given.
    """
    origin, sparsities = teacher or parent, cubic_sparsities(config.sparsity, config.steps)
    for number, sparsity in enumerate(sparsities, 1):
        last = number == len(sparsities)
        step = dataclasses.replace(config, sparsity=sparsity, steps=1, between=0, epochs=config.epochs if last else config.between)
        parent = _prune_step(project, parent, origin, step, training, distil, out if last else None)
    return parent


def _prune_step(
    project: Project,
    parent: Artifact,
    origin: Artifact,
    config: PruneConfig,
    training: FitConfig,
    distil: DistilConfig,
    out: Path | None,
) -> Artifact:
    tuning = tuning_config(training, config.epochs, config.lr)
    inputs = {"training": dataclasses.asdict(tuning), "distil": dataclasses.asdict(distil), "data": data_identity(project)}
    key = stage_key("prune", config, parent=parent.content, teacher=origin.content, **inputs)

    def make(folder: Path) -> Made:
        network = load_network(parent)
        if config.pattern:
            keep, of = parse_pattern(config.pattern)
            masks = pattern_masks(network, keep, of)
            if left := outside_pattern(network, of):
                project.console.say(f"prune: left whole, as their inputs do not fit {config.pattern}: {', '.join(left)}")
        else:
            squares = _squared_gradients(project, network) if config.scope == "fisher" else None
            masks = weight_masks(network, config.sparsity, scope=config.scope, squares=squares)
        fixed = zeros_kept(parent, network)
        masks |= {name: masks.get(name, kept) & kept for name, kept in fixed.items()}
        dense = {name: network.get_parameter(name).detach().clone() for name in masks}
        apply_masks(network, masks)
        before = {"one_shot": validate(project, network)}
        if config.epochs == 0:
            metrics, facts = save_network(project, network, folder, {"validation": before["one_shot"]})
        else:
            masks = {name: mask.to(choose_device(project.device)) for name, mask in masks.items()}
            lessons = Teacher(network=load_network(origin), config=distil)
            ease_dropout(network, lessons.network)
            if config.regrow:
                steps = tuning.epochs * steps_in_epoch(tuning, len(project.data.train.labels))
                regrowing = Regrowing(network, masks, dense, lambda weights, squares: _rank_but(fixed, weights, squares, config), steps)
                after_step, finish = regrowing.after_step, regrowing.finish
            else:
                after_step, finish = lambda: apply_masks(network, masks), None
            metrics, facts = fit_and_save(
                project, network, tuning, key, "prune", folder, teacher=lessons, after_step=after_step, finish=finish
            )
        layers = [dataclasses.asdict(layer) for layer in sparsity_by_layer(network)]
        return {**metrics, **before, "layers": layers}, {**facts, "layers": layers}  # facts go on to what is made of this network

    return run_stage(project, "network", "prune", key, config, parent, out, make)


def _squared_gradients(project: Project, network: nn.Module) -> dict[str, Tensor]:
    """Over SEEN training images, a few at a time: in the mean of many, gradients that differ cancel."""
    part = project.data.train
    chosen = stratified_sample(part.labels, min(SEEN, len(part.labels)), 0)
    sample = Part(part.images[chosen], part.labels[chosen])
    squares = squared_gradients(network, batch_losses(project, network, sample, batch=8))
    network.cpu()
    return {name: square.cpu() for name, square in squares.items()}


def _rank_but(
    fixed: Mapping[str, Tensor], weights: Mapping[str, Tensor], squares: Mapping[str, Tensor], config: PruneConfig
) -> dict[str, Tensor]:
    """The masks for ``weights`` as they are now; those that a pruning before this one has zeroed (False in ``fixed``) stay so."""
    allowed = {
        name: fixed[name].to(weight.device) if name in fixed else torch.ones_like(weight, dtype=torch.bool)
        for name, weight in weights.items()
    }
    within = {name: weight * allowed[name] for name, weight in weights.items()}
    ranked = rank(within, config.sparsity, scope=config.scope, squares=squares)
    return {name: mask & allowed[name] for name, mask in ranked.items()}


def zeros_kept(parent: Artifact, network: nn.Module) -> dict[str, Tensor]:
    """Masks of the zeros in ``network``, made of ``parent``, if it was pruned before; fine-tuning must not fill them."""
    return nonzero_masks(network) if any(step["stage"] == "prune" for step in parent.steps) else {}


def tuning_config(training: FitConfig, epochs: int, lr: float) -> FitConfig:
    """The settings of fine-tuning: those of training, but for a cosine from ``lr`` down to zero over ``epochs``."""
    plain = min(training.plain_epochs, max(0, epochs - 1))
    return dataclasses.replace(training, epochs=max(1, epochs), lr=lr, schedule="cosine", warmup=0.0, plain_epochs=plain)


def ease_dropout(network: nn.Module, teacher: nn.Module) -> None:
    """Lower every dropout by the square root of the share of the teacher's weights that are left: less can be learnt by heart.

    Source: Han et al. 2015, arXiv:1506.02626, section 3.2.
    """
    left, whole = (sum(int(torch.count_nonzero(value)) for value in one.parameters()) for one in (network, teacher))
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p *= math.sqrt(min(1.0, left / max(1, whole)))


def export(project: Project, parent: Artifact, config: ExportConfig, out: Path | None = None) -> Artifact:
    """Export ``parent`` to ONNX (images in, logits and probabilities out) and prove on real images that it computes the same."""
    key = stage_key("export", config, parent=parent.content, data=data_identity(project), vectors=TOLERANCE["export"])

    def make(folder: Path) -> Made:
        network, prepare = load_network(parent), Prepare(parent.manifest.input)
        images = _real_images(project, config.parity_images)
        target = folder / PAYLOAD["graph"]
        example, metadata = torch.from_numpy(images[:2].copy()), graph_metadata(parent, config)
        rewrites = export_onnx(network, target, prepare=prepare, example=example, metadata=metadata, opset=config.opset, image=config.input)
        proof = parity(network, prepare, target, images)
        if max(proof.largest_difference, proof.probabilities or 0.0) > PARITY_TOLERANCE:
            raise CompressError(
                f"the exported graph does not compute what {parent.path} does: logits differ by {proof.largest_difference:.2g} "
                f"on {proof.images} images, {PARITY_TOLERANCE:g} is allowed; please report this with the network"
            )

        def expected(seen: NDArray[np.uint8]) -> NDArray[np.float32]:
            with torch.inference_mode():
                return network(prepare(torch.from_numpy(seen.copy()))).numpy()

        write_vectors(folder, expected, project.data.validation.images, TOLERANCE["export"])
        return {"parity": dataclasses.asdict(proof), "rewrites": rewrites}, parent.manifest.facts

    return run_stage(project, "graph", "export", key, config, parent, out, make)


def _real_images(project: Project, count: int) -> NDArray[np.uint8]:
    """The first ``count`` validation images, and training images where those are too few; the proof needs no unseen ones."""
    validation, train = project.data.validation.images, project.data.train.images
    images = np.concatenate([validation[:count], train[: max(0, count - len(validation))]])
    if len(images) < count:
        project.console.say(f"export: the data has {len(images)} images for the proof of parity, fewer than parity_images (={count})")
    return images


def graph_of(project: Project, parent: Artifact, config: ExportConfig) -> Artifact:
    """``parent`` itself if it is a graph, else its export."""
    return parent if parent.manifest.kind == "graph" else export(project, parent, config)


def graph_metadata(parent: Artifact, config: ExportConfig) -> dict[str, str]:
    """What an ONNX file says of itself: everything here follows from the inputs, so that the same export gives the same bytes.

    ``compress.image`` is what to feed it. ``compress.input`` is what the graph makes of the image itself: nobody else has to normalise.
    """
    about = parent.manifest
    image = {"dtype": config.input, "shape": ["batch", *about.input.shape], "range": [0, 255] if config.input == "uint8" else [0, 1]}
    output = {"dtype": "float32", "shape": ["batch", len(about.classes)]}
    lineage = [{"stage": step["stage"], "config": step["config"]} for step in parent.steps]
    return {
        "compress.version": __version__,
        "compress.versions": json.dumps({"torch": torch.__version__, "onnx": version("onnx"), "opset": config.opset}),
        "compress.classes": json.dumps(about.classes, ensure_ascii=False),
        "compress.image": json.dumps(image),
        "compress.input": json.dumps(dataclasses.asdict(about.input)),
        "compress.outputs": json.dumps({"logits": output, "probabilities": output}),
        "compress.model": json.dumps(about.model),
        "compress.lineage": json.dumps(lineage),
        "compress.data": json.dumps({"name": about.data["name"], "fingerprint": about.data["fingerprint"]}),
    }


def stratified_sample(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """``count`` indices into ``labels``, as equal a number of each class as there are; int64 (count,), sorted.

    Labels 0 0 0 1 1 2 and count 4 take one or two of each of 0 and 1, and the only 2.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for value in np.unique(labels):
        mine = order[labels[order] == value]
        rank[mine] = np.arange(len(mine))
    # By rank within the class, ties in random order: every class gives its first image before any gives its second.
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def batch_losses(project: Project, network: nn.Module, part: Part, batch: int = 64) -> Iterator[Tensor]:
    """The mean cross-entropy of each batch of ``part`` in eval mode, without distortions, to be differentiated; on the project's device."""
    device = choose_device(project.device)
    network.to(device).eval()
    prepare = Prepare(project.spec).to(device)
    for start in range(0, len(part.labels), batch):
        project.console.progress("importance", start, len(part.labels))
        images, labels = (torch.from_numpy(of[start : start + batch]).to(device) for of in (part.images, part.labels))
        yield functional.cross_entropy(network(prepare(images)), labels)
    project.console.progress("importance", len(part.labels), len(part.labels))


def _new_network(project: Project) -> nn.Module:
    assert project.model is not None, "only files are measured without a model"
    return build_network(project.model, project.classes, project.spec)


def fit_and_save(
    project: Project,
    network: nn.Module,
    config: FitConfig,
    key: str,
    stage: str,
    folder: Path,
    teacher: Teacher | None = None,
    after_step: Callable[[], None] | None = None,
    finish: Callable[[], None] | None = None,
) -> Made:
    """Train, ``finish`` and save; the state file beside the artifact's place is removed with the artifact made."""
    prepare = Prepare(project.spec).to(choose_device(project.device))
    fitted = fit_network(project, network, config, key, stage, folder, prepare=prepare, teacher=teacher, after_step=after_step)
    if finish is not None:
        finish()
    names = ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision")
    made = save_network(
        project, network, folder, {"validation": {name: fitted.best[name] for name in names}, "best_epoch": fitted.best_epoch}
    )
    if this_team().rank == 0:
        state_file(project, stage, key).unlink(missing_ok=True)
    return made


def state_file(project: Project, stage: str, key: str) -> Path:
    """Where a training keeps its state, so that a killed run can go on."""
    return project.folder / stage / f".{key[:12]}.state.safetensors"


def fit_network(
    project: Project,
    network: nn.Module,
    config: FitConfig,
    key: str,
    stage: str,
    folder: Path,
    *,
    prepare: Callable[[Tensor], Tensor],
    teacher: Teacher | None = None,
    after_step: Callable[[], None] | None = None,
) -> Fitted:
    """Train ``network`` in place on the project's images, with progress, a state file and ``history.csv`` in ``folder``."""
    state = state_file(project, stage, key) if this_team().rank == 0 else None
    if state is None:
        pass  # the first process has it
    elif not project.resume:
        state.unlink(missing_ok=True)
    elif state.is_file():
        project.console.say(f"{stage}: goes on from {state}")

    def progress(epoch: int, step: int, steps: int, loss: float) -> None:
        project.console.progress(
            f"{stage}, epoch {epoch} of {config.epochs}, loss {loss:.3f}", (epoch - 1) * steps + step, config.epochs * steps
        )

    data = project.data
    fitted = fit(
        network,
        (data.train.images, data.train.labels),
        (data.validation.images, data.validation.labels),
        config,
        classes=project.classes,
        prepare=prepare,
        device=choose_device(project.device),
        state_file=state,
        key=key,
        teacher=teacher,
        after_step=after_step,
        progress=progress,
    )
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(fitted.history[0]))
        writer.writeheader()
        writer.writerows(fitted.history)
    return fitted


def save_network(project: Project, network: nn.Module, folder: Path, metrics: Mapping[str, Any]) -> Made:
    # Cloned, as safetensors refuses tensors that share memory (tied weights).
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    save_file(weights, folder / PAYLOAD["network"])
    example = Prepare(project.spec)(torch.from_numpy(project.data.validation.images[:2].copy()))
    return metrics, dataclasses.asdict(count_cost(network, example))


def validate(project: Project, network: nn.Module) -> dict[str, float]:
    validation, device = project.data.validation, choose_device(project.device)
    logits = predict_logits(network, validation.images, prepare=Prepare(project.spec).to(device), device=device)
    network.cpu()
    return score(validation.labels, logits.argmax(axis=1), project.classes)
