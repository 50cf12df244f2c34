"""Reconstruct a cut network: each layer, in the order of the forward pass, is solved for the outputs that it gave before the cut.

By hand: B reads channels a and b of A, and b is always 2a. Without b the weight (w_a, w_b) becomes w_a + 2 w_b, and B computes what it
did. What a layer is to give are the outputs of the uncut one in the channels that are kept; how it is solved, what is left as it is, and
the sources: :mod:`compress.pruning.layerwise`.
"""

import copy
from collections.abc import Callable, Collection

from torch import Tensor, nn

from ..pruning.layerwise import Prepare, Progress, Solved, Zeros, solve
from ..pruning.repair import Repaired, best_of
from .cut import Keep, is_whole
from .groups import Groups


def repair(
    network: nn.Module,
    pruned: nn.Module,
    groups: Groups,
    keep: Keep,
    images: Tensor,
    score: Callable[[nn.Module], float],
    *,
    prepare: Prepare = lambda images: images,
    zeros: Zeros = "",
    progress: Progress = lambda done, of: None,
) -> Repaired:
    """The best by ``score`` of the network as it was cut, with its batch norm re-estimated, reconstructed, and with both.

    ``score``: as for :func:`compress.pruning.repair.best_of`. The rest is as for :func:`reconstruct`. Where nothing was removed, the
    network comes back as it is, and nothing is scored.
    """
    if is_whole(network, pruned, groups.removed(keep)):
        return Repaired(network=pruned, how="cut", losses={})
    solved = reconstruct(network, pruned, groups, keep, images, prepare=prepare, zeros=zeros, progress=progress)
    return best_of(pruned, solved, images, score, prepare=prepare)


def reconstruct(
    network: nn.Module,
    pruned: nn.Module,
    groups: Groups,
    keep: Keep,
    images: Tensor,
    *,
    prepare: Prepare = lambda images: images,
    zeros: Zeros = "",
    fixed: Collection[str] = (),
    progress: Progress = lambda done, of: None,
) -> Solved:
    """A copy of the cut network, its layers solved one after the other for the outputs that the uncut ones give.

    Args:
        network: the one that ``groups`` were found in, or that before modules were bypassed in it; ``pruned``: what
            ``channels.cut.remove_channels`` made of the former with ``keep``, on the same device. Neither is changed.
        zeros: "stay" where weights were pruned before, of which those that are zero stay so.

    The rest is as for :func:`compress.pruning.layerwise.solve`.
    """
    gone = groups.removed(keep)
    if is_whole(network, pruned, gone):
        return Solved(network=copy.deepcopy(pruned).eval(), layers={}, left={})
    return solve(network, pruned, images, gone=gone, zeros=zeros, prepare=prepare, fixed=fixed, progress=progress)
