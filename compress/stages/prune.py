"""The stage ``prune``: weights become zero, in steps, those that stay make up for them, and are fine-tuned; every step is an artifact."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from ..artifacts.artifact import Artifact
from ..artifacts.parts import Repair
from ..artifacts.project import New, Project, data_identity, making, stage_key
from ..artifacts.recipe import Tutoring
from ..benchmarks.results import LayerZeros
from ..errors import CompressError
from ..pruning.schedule import cubic_sparsities, parse_pattern
from ..train.settings import DistilConfig, FitConfig
from .own_task import refuse_training
from .remove_channels import SOLVED_ON

if TYPE_CHECKING:
    from torch import Tensor

    from ..pruning.repair import Repaired


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Unstructured pruning, then ``epochs`` of fine-tuning that keeps the mask; a cosine takes ``lr`` down to zero.

    ``sparsity``: 0.8 if none is given, and no pattern. ``scope``: which weights are ranked with which, see ``pruning.masks.weight_masks``;
    it says how many of each layer go, and which of them do where making up for them is too much work, see :mod:`compress.pruning.surgery`.
    ``steps``: how many times some are zeroed, on the cubic schedule up to ``sparsity``, with ``between`` epochs of fine-tuning after each
    but the last. ``pattern``: "2:4" instead keeps 2 of every 4 weights in a row, at once; ``sparsity`` then follows from it (0.5), and
    ``scope`` is without effect. ``regrow``: zeroed weights may come back while fine-tuning, see :mod:`compress.pruning.regrow`; not those
    that were zero before this pruning.
    """

    sparsity: Annotated[float, Meta(gt=0, lt=1, description="0.8 zeroes 80% of the weights")] | None = None
    scope: Literal["global", "layer", "lamp", "fisher"] = "fisher"
    pattern: str = ""
    steps: Annotated[int, Meta(ge=1, description="1 zeroes all weights at once")] = 1
    between: Annotated[int, Meta(ge=0, description="epochs, 0 for no fine-tuning between steps")] = 1
    epochs: Annotated[int, Meta(ge=0, description="0 for no fine-tuning")] = 3
    lr: Annotated[float, Meta(gt=0, description="a tenth to a half of the training's is usual")] = 0.0001
    regrow: bool = False

    def __post_init__(self) -> None:
        follows = 0.8
        if self.pattern:
            keep, of = parse_pattern(self.pattern)
            follows, pattern = 1 - keep / of, f'pattern (="{self.pattern}")'
            if self.sparsity not in (None, follows):
                raise CompressError(
                    f"sparsity (={self.sparsity}) cannot be chosen beside {pattern}, which zeroes {follows:.3g}; leave one out"
                )
            if self.steps != 1:
                raise CompressError(f"steps (={self.steps}) must be 1 with {pattern}, which is cut at once")
            if self.regrow:
                raise CompressError(f"regrow needs a sparsity, not {pattern}; leave one out")
        if self.sparsity is None:
            object.__setattr__(self, "sparsity", follows)
        if self.regrow and self.steps != 1:
            raise CompressError(f"steps (={self.steps}) must be 1 with regrow: what was zeroed too early comes back by itself")
        if self.regrow and self.epochs == 0:
            raise CompressError(f"regrow needs fine-tuning, but epochs (={self.epochs}) is zero; 10 and more do well")

    @property
    def zeros(self) -> float:
        """The sparsity, which follows from the pattern where there is one."""
        assert self.sparsity is not None, "set above"
        return self.sparsity


MADE_UP = 2  # raised when zeroed weights are made up for otherwise, so that what older versions made is not taken for its own
SEEN = 2048  # training images whose gradients say which weights the loss feels


def prune(project: Project, parent: Artifact, config: PruneConfig, tutoring: Tutoring, out: Path | None = None) -> Artifact:
    """Zero weights of ``parent`` in ``config.steps`` and fine-tune after each with the mask kept; every step is an artifact."""
    refuse_training(project, max(config.epochs, config.between if config.steps > 1 else 0))
    origin, sparsities = tutoring.teacher or parent, cubic_sparsities(config.zeros, config.steps)
    for number, sparsity in enumerate(sparsities, 1):
        last = number == len(sparsities)
        step = dataclasses.replace(config, sparsity=sparsity, steps=1, between=0, epochs=config.epochs if last else config.between)
        tuning = tutoring.config(step.epochs, step.lr)
        inputs = {"training": dataclasses.asdict(tuning), "distil": dataclasses.asdict(tutoring.distil), "data": data_identity(project)}
        key = stage_key("prune", step, parent=parent.content, teacher=origin.content, made_up=MADE_UP, **inputs)
        with making(project, "network", "prune", key, step, parent, out if last else None) as new:
            if new.wanted:
                _prune(project, new, parent, origin, step, tuning, tutoring.distil)
        parent = new.artifact
    return parent


def _prune(
    project: Project, new: New, parent: Artifact, origin: Artifact, config: PruneConfig, tuning: FitConfig, distil: DistilConfig
) -> None:
    import torch

    from ..artifacts.load import load_network
    from ..pruning.masks import apply_masks, outside_pattern, pattern_masks, sparsity_by_layer, squared_gradients, weight_masks
    from ..pruning.regrow import Regrowing
    from ..train.distil import Teacher
    from ..train.fit import choose_device, steps_in_epoch
    from .finetune import Bench, batch_losses, ease_dropout, fit_and_save, save_network, validated, zeros_kept

    network = load_network(parent)
    if config.pattern:
        keep, of = parse_pattern(config.pattern)
        masks = pattern_masks(network, keep, of)
        if left := outside_pattern(network, of):
            project.console.say(f"prune: left whole, as their inputs do not fit {config.pattern}: {', '.join(left)}")
    else:
        squares = None
        if config.scope == "fisher":  # of a few images at a time: in the mean of many, gradients that differ cancel
            losses = batch_losses(project, network, project.data.train.sample(SEEN, 0), batch=8)
            squares = {name: square.cpu() for name, square in squared_gradients(network, losses).items()}
            network.cpu()
        masks = weight_masks(network, config.zeros, scope=config.scope, squares=squares)
    fixed = zeros_kept(parent, network)
    masks |= {name: masks.get(name, kept) & kept for name, kept in fixed.items()}
    whole = copy.deepcopy(network)
    apply_masks(network, masks)
    repaired = Bench(project=project, solved_on=SOLVED_ON).made_up(whole, network, "stay" if config.pattern else "move")
    network = repaired.network
    masks = {name: (network.get_parameter(name) != 0) | (mask & (whole.get_parameter(name) == 0)) for name, mask in masks.items()}
    before = validated(project, network)
    if config.epochs == 0:
        save_network(project, new, network, before)
    else:
        masks = {name: mask.to(choose_device(project.device)) for name, mask in masks.items()}
        lessons = Teacher(network=load_network(origin), config=distil)
        ease_dropout(network, lessons.network)
        if config.regrow:
            now, then = ({name: one.get_parameter(name).detach() for name in masks} for one in (network, whole))
            dense = {name: torch.where(mask.cpu(), now[name], then[name]) for name, mask in masks.items()}
            steps = tuning.epochs * steps_in_epoch(tuning, len(project.data.train.labels))
            regrowing = Regrowing(network, masks, dense, lambda weights, squares: _rank_but(fixed, weights, squares, config), steps)
            after_step, finish = regrowing.after_step, regrowing.finish
        else:
            after_step, finish = lambda: apply_masks(network, masks), None
        fit_and_save(project, new, network, tuning, teacher=lessons, after_step=after_step, finish=finish)
    layers = tuple(LayerZeros(**dataclasses.asdict(layer)) for layer in sparsity_by_layer(network))
    new.metrics = dataclasses.replace(new.metrics, one_shot=before.validation, layers=layers, repair=_told(repaired))
    new.facts = dataclasses.replace(new.facts, layers=layers)  # facts go on to what is made of this network


def _told(repaired: Repaired) -> Repair:
    from ..pruning.repair import to_six_digits

    return Repair(how=repaired.how, losses=to_six_digits(repaired.losses), left=repaired.left)


def _rank_but(
    fixed: Mapping[str, Tensor], weights: Mapping[str, Tensor], squares: Mapping[str, Tensor], config: PruneConfig
) -> dict[str, Tensor]:
    """The masks for ``weights`` as they are now; those that a pruning before this one has zeroed (False in ``fixed``) stay so."""
    from ..pruning.masks import rank

    kept = {name: fixed[name].to(weight.device) if name in fixed else True for name, weight in weights.items()}
    within = {name: weight * kept[name] for name, weight in weights.items()}
    ranked = rank(within, config.zeros, scope=config.scope, squares=squares)
    return {name: mask & kept[name] for name, mask in ranked.items()}
