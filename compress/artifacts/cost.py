"""What a network costs: parameters, nonzeros and multiply-accumulates, counted on a forward pass.

A multiply-accumulate (MAC) is one multiplication with its addition in a convolution or linear layer; batch norm, activations, pooling
and gates' elementwise products are not counted, as in the published figures of MobileNet and its successors. A 3x3 convolution from 2 to
4 channels on a 5x5 output: 4 * 2 * 9 * 25 = 1800 MACs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters and nonzeros of the whole network; MACs for one image."""

    params: int
    nonzeros: int
    macs: int


def count_cost(network: nn.Module, example: Tensor) -> Cost:
    """Count on ``example``, float32 (B, C, H, W) in [0, 1]; MACs are given per image."""
    macs = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Linear):
            macs += output.numel() * module.in_features
        elif isinstance(module, nn.modules.conv._ConvNd):
            # A transposed convolution spreads each input over the kernel; a plain one gathers the kernel for each output.
            spread = inputs[0].numel() * module.out_channels if module.transposed else output.numel() * module.in_channels
            macs += spread // module.groups * torch.Size(module.kernel_size).numel()

    handles = [m.register_forward_hook(count) for m in network.modules()]
    was_training = network.training
    try:
        network.eval()
        with torch.no_grad():
            network(example)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    parameters = list(network.parameters())
    return Cost(
        params=sum(p.numel() for p in parameters),
        nonzeros=sum(int(torch.count_nonzero(p)) for p in parameters),
        macs=macs // example.shape[0],
    )
