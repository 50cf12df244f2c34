"""``compress train --folds 5``: how well a recipe reads, and how much that varies, by stratified k-fold cross-validation.

Every image is held out once, but for those of a test part that came as such, which is not touched. For each fold a new network (the same
initial weights, those of the seed) trains on the other folds as in ``compress train``, and is scored on the fold with the weights of its
*last* epoch: nothing was chosen by looking at the fold. So there is no early stopping either. The best epoch's score is given beside it; it
was chosen on the images that it is measured on, and flatters.

Result: an artifact of kind "folds" in ``runs/<model>/folds/<key>`` with ``folds.json`` (scores per fold, mean, spread, confusions),
``folds.csv`` (the scores), ``history.csv`` (every epoch of every fold) and ``predictions.npz`` (of each image: its position in the data as
read, its label, and what the network that had not seen it said).

Until the artifact is made, finished folds lie in ``.<key>.folds`` beside its place with the state of the one at hand, and the same command
goes on from there.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.parts import SCORES, Metrics, Scores
from ..artifacts.payloads import Confusion, Fold, Folds, OverFolds
from ..artifacts.project import Project, making, network_identity, stage_key
from ..artifacts.records import read_kept, write_csv, write_kept, write_record
from ..benchmarks.statistics import Count
from ..train.data_set import Part
from ..train.folds import mean_and_spread, stratified_folds, worst_pairs
from ..train.metrics import Row, score
from ..train.settings import FitConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class _Fold:
    """One fold that was trained: of which run it is, a row per epoch, and the predictions of the last epoch's weights."""

    key: str
    history: Annotated[tuple[Row, ...], Meta(min_length=1)]
    predictions: tuple[Count, ...]


def cross_validate(project: Project, config: FitConfig, folds: int, out: Path | None = None) -> Artifact:
    """Train and score ``folds`` networks, in one process; raises TrainError where the images cannot be divided so."""
    config = dataclasses.replace(config, patience=0)
    settings = {"folds": folds, **dataclasses.asdict(config)}
    seen = {"fingerprint": project.data.fingerprint, "images": sum(project.data.about.counts[: 2 if project.data.has_test else 3])}
    key = stage_key("folds", settings, data=seen, **network_identity(project))
    kept = project.folder / "folds" / f".{key[:12]}.folds"

    with making(project, "folds", "folds", key, settings, out=out) as new:
        if new.wanted:
            if project.fresh:
                shutil.rmtree(kept, ignore_errors=True)
            pool = project.data.pool()
            masks = stratified_folds(pool.labels, folds, config.seed, project.data.classes)
            done = [_trained(project, config, pool, masks, index, kept, key) for index in range(folds)]
            new.metrics = _write(project, new.folder, pool, masks, done)
    if new.wanted:  # else another process may be at it
        shutil.rmtree(kept, ignore_errors=True)
    return new.artifact


def _trained(
    project: Project, config: FitConfig, pool: Part, masks: Sequence[NDArray[np.bool_]], index: int, kept: Path, key: str
) -> _Fold:
    """Fold ``index``, from the file in ``kept`` if it was finished before."""
    from .finetune import fit_parts, new_network, read_logits

    name, held = f"fold {index + 1} of {len(masks)}", masks[index]
    file, state_file = kept / f"{index + 1}.json", kept / f"{index + 1}.state.safetensors"
    if found := _read_fold(file, key, int(held.sum()), project.classes, project.console.say):
        project.console.say(f"folds: {name} is done already")
        return found
    network, own_key = new_network(project, config.seed), f"{key} {index}"
    parts = pool.take(~held), pool.take(held)
    fitted = fit_parts(project, network, config, parts, name, (index, len(masks)), state_file=state_file, key=own_key)
    _take_last(network, state_file, own_key)
    predictions = tuple(read_logits(project, network, parts[1].images).argmax(axis=1).tolist())
    fold = _Fold(key=key, history=msgspec.convert(fitted.history, tuple[Row, ...]), predictions=predictions)
    write_kept(file, fold)
    state_file.unlink()
    return fold


def _take_last(network: nn.Module, state_file: Path, key: str) -> None:
    """Give ``network``, which holds its best epoch's weights, those of its last epoch: the averaged ones where there are such.

    In the memory format in which they were scored in training, so that the answers are the same to the last bit.
    """
    import torch

    from ..train.state import read_snapshot

    saved = read_snapshot(state_file, key)
    assert saved is not None, "fit leaves the state of the last epoch"
    part = "averaged." if any(name.startswith("averaged.") for name in saved.tensors) else "network."
    network.load_state_dict({name.removeprefix(part): value for name, value in saved.tensors.items() if name.startswith(part)})
    network.to(memory_format=torch.channels_last)


def _read_fold(file: Path, key: str, images: int, classes: int, say: Callable[[str], None]) -> _Fold | None:
    """What was kept of a fold, unless it is missing, damaged or of another run."""
    kept = read_kept(file, _Fold, say)
    fits = kept is not None and kept.key == key and len(kept.predictions) == images and max(kept.predictions) < classes
    return kept if fits else None


def _write(project: Project, folder: Path, pool: Part, masks: Sequence[NDArray[np.bool_]], done: Sequence[_Fold]) -> Metrics:
    """Write the files of the artifact; returns its metrics."""
    predictions = np.empty_like(pool.labels)
    last, best = [], []
    for held, fold in zip(masks, done, strict=True):
        predictions[held] = fold.predictions
        last.append(score(pool.labels[held], predictions[held], project.classes))
        row: Mapping[str, Any] = max(fold.history, key=lambda row: row["balanced_accuracy"])
        best.append({name: row[name] for name in ("epoch", *SCORES)})
    mean, spread = mean_and_spread(last)
    best_mean, best_spread = mean_and_spread(best)
    names = project.data.classes
    result = Folds(
        images=len(pool.labels),
        epochs=len(done[0].history),
        folds=tuple(
            Fold(fold=index + 1, images=int(held.sum()), scores=Scores(**scores), best_epoch=Scores(**flattering))
            for index, (held, scores, flattering) in enumerate(zip(masks, last, best, strict=True))
        ),
        mean=Scores(**mean),
        spread=Scores(**spread),
        best_epoch=OverFolds(mean=Scores(**best_mean), spread=Scores(**best_spread)),
        confusions=tuple(
            Confusion(true=names[true], read=names[read], images=count, of=int((pool.labels == true).sum()))
            for true, read, count in worst_pairs(pool.labels, predictions, project.classes)
        ),
    )
    write_record(folder / PAYLOAD["folds"], result)
    rows = [{"fold": index + 1, **scores} for index, scores in enumerate(last)]
    write_csv(folder / "folds.csv", [*rows, {"fold": "mean", **mean}, {"fold": "standard deviation", **spread}])
    write_csv(folder / "history.csv", [{"fold": index + 1, **row} for index, fold in enumerate(done) for row in fold.history])
    np.savez_compressed(folder / "predictions.npz", index=np.arange(len(pool.labels)), label=pool.labels, prediction=predictions)
    return Metrics(folds=len(done), mean=result.mean, spread=result.spread)
