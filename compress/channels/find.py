"""Find the coupled channel groups of any network: which channels can be removed, and what goes with each.

The network is run on an example and its channels are followed through every operation (trace.py, operator_rules.py). Then
half of every group is cut on trial: where the cut network leaves the expected path (a width written into ``forward``), what is involved
is left whole and named. The trial has random weights, so that it depends on the network's structure alone. What has no rule is left
whole and named too: attention, choices by number.

Refuses: a network whose path depends on the data, one that fails on the example, and one that computes something else after the
trial than with the removed contributions zeroed.

Source: the idea of dependency groups, Fang et al. 2023, "DepGraph", arXiv:2301.12900; here by identities of single channels.
"""

import copy
import math

import torch
from torch import Tensor, nn

from ..errors import NetworkError
from .cut import Mismatch, check, cut, surgery_error
from .groups import Groups, assemble
from .operator_rules import follow
from .trace import Trace

# Rounding of float32 through some hundred layers; a channel in the wrong place is off by 1e-2 and more.
TOLERANCE = 1e-3


def channel_groups(network: nn.Module, example: Tensor) -> Groups:
    """The channel groups of ``network``, proved by a trial cut.

    Args:
        network: any module that maps a batch to logits; it is not changed.
        example: float32 (B, C, H, W) as the network takes it, on its device; of a single image, two are made. Small images are quicker.

    Raises:
        NetworkError: for what the module refuses.
    """
    example = example if len(example) > 1 else torch.cat([example, example.flip(-1)])
    trace = Trace(network, follow)
    trace.follow(example)
    trial = _scrambled(network)
    while True:
        groups = assemble(trace, example)
        keep = {group.name: range(0, group.width, 2) for group in groups}
        pruned = cut(trial, groups, keep)
        try:
            check(pruned, groups, keep)
        except Mismatch as mismatch:
            # A width may come from a tensor before, as in ``reshape(B, N, 3, heads, x.shape[-1] // heads)`` of what was made of x.
            for operation in reversed(groups.operations[: mismatch.index + 1]):
                found = [trace.identities.freeze(labels, str(mismatch)) for labels in (*operation.inputs, *operation.outputs)]
                if any(found):
                    break
            else:
                raise NetworkError(f"network cannot be cut: {mismatch}; compute widths from shapes in forward") from mismatch
            continue
        error = surgery_error(trial, pruned, groups, keep)
        if not math.isfinite(error):
            error = surgery_error(network, cut(network, groups, keep), groups, keep)
        if not error <= TOLERANCE:
            raise NetworkError(
                f"network computes something else without half of its channels than with them zeroed (off by {error:.1g}), so an operation "
                "in it is not what it seems; prune weights instead"
            )
        return groups


def _scrambled(network: nn.Module) -> nn.Module:
    """A copy with random weights under which every channel counts: a last layer or a branch that starts as zeros would hide mistakes."""
    trial = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in trial.modules():
            for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                statistic = isinstance(module, nn.modules.batchnorm._NormBase) and name.startswith("running")
                if not value.is_floating_point() or not (statistic or isinstance(value, nn.Parameter)):
                    continue
                noise = torch.randn(value.shape, generator=generator)
                if value.dim() > 1:
                    noise *= math.sqrt(2 / max(1, value[0].numel()))  # He et al. 2015: the signal keeps its size
                elif "bias" in name or "mean" in name:
                    noise *= 0.1
                else:
                    noise = 0.5 + torch.rand(value.shape, generator=generator)
                value.copy_(noise)
    return trial
