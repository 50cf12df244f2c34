"""The stage ``prune``: weights become zero, in steps, and what is left is fine-tuned; every step is an artifact."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.artifact import Artifact
from ..artifacts.load import load_network
from ..artifacts.parts import Metrics
from ..artifacts.project import Made, Project, data_identity, run_stage, stage_key
from ..benchmarks.results import LayerZeros
from ..errors import CompressError
from ..pruning.masks import (
    apply_masks,
    cubic_sparsities,
    outside_pattern,
    parse_pattern,
    pattern_masks,
    rank,
    sparsity_by_layer,
    squared_gradients,
    weight_masks,
)
from ..pruning.regrow import Regrowing
from ..train.distil import Teacher
from ..train.fit import choose_device, steps_in_epoch
from ..train.settings import DistilConfig, FitConfig
from ..train.sources import Part
from ..train.split import stratified_sample
from .finetune import batch_losses, ease_dropout, fit_and_save, save_network, tuning_config, validate, zeros_kept


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Unstructured pruning, then ``epochs`` of fine-tuning that keeps the mask; a cosine takes ``lr`` down to zero.

    ``sparsity``: 0.8 if none is given. ``scope``: which weights are ranked with which, see :func:`compress.prune.weight_masks`.
    ``steps``: how many times some are zeroed, on the cubic schedule up to ``sparsity``, with ``between`` epochs of fine-tuning after each
    but the last. ``pattern``: "2:4" instead keeps 2 of every 4 weights in a row, at once; ``sparsity`` then follows from it (0.5), and
    ``scope`` is without effect. ``regrow``: zeroed weights may come back while fine-tuning, see :mod:`compress.regrow`; not those
    that were zero before this pruning.
    """

    sparsity: float = None  # type: ignore[assignment]  # set below: only there is it known whether one was given
    scope: str = "fisher"
    pattern: str = ""
    steps: int = 1
    between: int = 1
    epochs: int = 3
    lr: float = 0.0001
    regrow: bool = False

    def __post_init__(self) -> None:
        given: Any = self.sparsity
        follows = 0.8
        if self.pattern:
            from ..pruning.masks import parse_pattern

            keep, of = parse_pattern(self.pattern)
            follows = 1 - keep / of
            if given not in (None, follows):
                raise CompressError(
                    f'sparsity (={given}) cannot be chosen beside pattern (="{self.pattern}"), which zeroes {follows:.3g}; leave one out'
                )
            if self.steps != 1:
                raise CompressError(f'steps (={self.steps}) must be 1 with pattern (="{self.pattern}"), which is cut at once')
            if self.regrow:
                raise CompressError(f'regrow needs a sparsity, not pattern (="{self.pattern}"); leave one out')
        if given is None:
            object.__setattr__(self, "sparsity", follows)
        if not 0 < self.sparsity < 1:
            raise CompressError(f"sparsity (={self.sparsity}) must lie in (0, 1); 0.8 zeroes 80% of the weights")
        if self.scope not in ("global", "layer", "lamp", "fisher"):
            raise CompressError(f"scope (={self.scope}) must be global, layer, lamp or fisher")
        if self.steps < 1:
            raise CompressError(f"steps (={self.steps}) must be at least 1; 1 zeroes all weights at once")
        if self.between < 0:
            raise CompressError(f"between (={self.between}) must be zero (no fine-tuning between steps) or more epochs")
        if self.epochs < 0:
            raise CompressError(f"epochs (={self.epochs}) must be zero (no fine-tuning) or more")
        if self.regrow and self.steps != 1:
            raise CompressError(f"steps (={self.steps}) must be 1 with regrow: what was zeroed too early comes back by itself")
        if self.regrow and self.epochs == 0:
            raise CompressError(f"regrow needs fine-tuning, but epochs (={self.epochs}) is zero; 10 and more do well")
        if not 0 < self.lr < math.inf:
            raise CompressError(f"lr (={self.lr}) must be a positive number; a tenth to a half of the training's is usual")


SEEN = 2048  # training images whose gradients say which weights the loss feels


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
        before = validate(project, network)
        if config.epochs == 0:
            metrics, facts = save_network(project, network, folder, Metrics(validation=before))
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
        layers = tuple(LayerZeros(**dataclasses.asdict(layer)) for layer in sparsity_by_layer(network))
        # Facts go on to what is made of this network.
        return dataclasses.replace(metrics, one_shot=before, layers=layers), dataclasses.replace(facts, layers=layers)

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
