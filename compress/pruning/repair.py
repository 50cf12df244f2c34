"""What can be made of a changed network without training, and the best of it: of one with channels cut, or with weights zeroed.

By hand: of four networks with the losses 2.0 (as it was cut), 1.1 (batch norm re-estimated), 0.6 (least squares) and 0.7 (both) the third
is taken. See :mod:`compress.pruning.layerwise` for how layers are solved, and for the sources.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .layerwise import LIVE, ROOM, Prepare, Progress, Solved, Zeros, solve
from .passes import at_once

How = Literal["cut", "batch norm", "least squares", "both"]


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The best of what can be made of a cut network without training, ``how`` it was made, and the ``losses`` of all that was tried."""

    network: nn.Module
    how: How
    losses: Mapping[str, float]
    left: Mapping[str, str] = field(default_factory=dict)


def make_up(
    network: nn.Module,
    pruned: nn.Module,
    images: Tensor,
    score: Callable[[nn.Module], float],
    *,
    zeros: Zeros = "move",
    prepare: Prepare = lambda images: images,
    progress: Progress = lambda done, of: None,
) -> Repaired:
    """The best by ``score`` of a network with zeroed weights as it is, with its batch norm re-estimated, solved, and with both.

    Each layer has as many zeros afterwards. Where ``pruned`` has the weights of ``network``, it comes back as it is, and nothing is scored.

    Args:
        network: before weights were zeroed; ``pruned``: after. Neither is changed.
        score: as for :func:`best_of`. The rest is as for :func:`compress.pruning.layerwise.solve`.
    """
    after = pruned.state_dict()
    if all(torch.equal(value, after[name]) for name, value in network.state_dict().items()):
        return Repaired(network=pruned, how="cut", losses={})
    return best_of(pruned, solve(network, pruned, images, zeros=zeros, prepare=prepare, progress=progress), images, score, prepare=prepare)


def best_of(
    pruned: nn.Module,
    solved: Solved,
    images: Tensor,
    score: Callable[[nn.Module], float],
    *,
    prepare: Prepare = lambda images: images,
) -> Repaired:
    """The best by ``score`` of the network as it was pruned, with its batch norm re-estimated, as it was solved, and with both.

    Args:
        score: a loss of a network in eval mode, smaller is better, on images that were not solved on; one that is not finite is the worst.
    """
    made = (pruned, reestimate(pruned, images, prepare=prepare), solved.network, reestimate(solved.network, images, prepare=prepare))
    tried = {how: one for how, one in zip(get_args(How), made, strict=True) if one is not None}
    losses = {how: loss if math.isfinite(loss := score(one)) else math.inf for how, one in tried.items()}
    best = min(losses, key=losses.__getitem__)
    return Repaired(network=tried[best], how=best, losses=losses, left=solved.left)


def reestimate(network: nn.Module, images: Tensor, *, prepare: Prepare = lambda images: images) -> nn.Module | None:
    """A copy whose batch norms have the means and variances of what they read on these images; None where there is no batch norm.

    Args:
        images: (N, ...), whatever ``prepare`` makes the network's input of, N at least 2.
    """
    fresh = copy.deepcopy(network).eval()
    norms = [m for m in fresh.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    size = min(256, at_once(fresh, prepare(images[:2]), ROOM / LIVE))  # in eval mode, so that it leaves no trace
    before = [(norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in images.chunk(math.ceil(len(images) / max(2, size))):
            if norms and len(batch) > 1:
                fresh(prepare(batch))
    for norm, (momentum, tracked) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = momentum, tracked
    return fresh.eval() if norms else None


def to_six_digits(losses: Mapping[str, float]) -> dict[str, float]:
    """Those that are finite, to six digits: on another number of threads sums are taken in another order, which shows in the tenth."""
    return {name: float(f"{loss:.6g}") for name, loss in losses.items() if math.isfinite(loss)}
