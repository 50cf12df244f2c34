"""Several processes train one network, each on its share of every batch, and end with the weights that one process would have.

``torchrun --nproc-per-node 2 -m compress train ...`` starts them; on several hosts the same command runs on each, with torchrun's
``--nnodes``, ``--node-rank`` and ``--rdzv-endpoint``. Gradients are averaged by PyTorch's DistributedDataParallel, over gloo on CPUs and
NCCL on GPUs. What depends on the whole batch is computed over the whole batch: batch norm takes its mean and variance from all processes,
and dropout masks are drawn for the global batch, of which each process takes its rows. So the result differs from that of one process by
rounding only, whatever the number of processes. A network that draws random numbers in another way (``functional.dropout`` in its
``forward``) still trains, but draws the same numbers in every process.

Source: Li et al. 2020, arXiv:2006.15704 (DistributedDataParallel); Ioffe and Szegedy 2015, arXiv:1502.03167 (batch norm).
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import TrainError

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """This process, number ``rank`` of ``size``; alone, nothing is sent anywhere."""

    rank: int = 0
    size: int = 1

    def rows(self, batch: int) -> slice:
        """The rows of a global batch that are this process's."""
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def from_first(self, value: T) -> T:
        """``value`` as the first process has it."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, part: NDArray[np.float32]) -> NDArray[np.float32]:
        """The parts of all processes, one after the other."""
        if self.size == 1:
            return part
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, part)
        return np.concatenate(parts)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of ``value`` over all processes."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value / self.size

    @contextmanager
    def sharing(self, network: nn.Module) -> Iterator[nn.Module]:
        """The network to train: itself if alone, else wrapped so that gradients, batch norm and dropout are those of the global batch."""
        if self.size == 1:
            yield network
            return
        plain = {module: type(module) for module in network.modules() if type(module) in _SHARED}
        for module, kind in plain.items():
            module.__class__ = _SHARED[kind]
        try:
            yield nn.parallel.DistributedDataParallel(network, static_graph=True)
        finally:
            for module, kind in plain.items():
                module.__class__ = kind


def this_team() -> Team:
    """The processes joined, or this one alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return Team()
    return Team(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def joined(cuda: bool) -> Iterator[Team]:
    """Join the processes that torchrun started beside this one, if it did, for as long as the context lasts."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or this_team().size > 1:
        yield this_team()
        return
    if cuda:
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise TrainError(f"nproc-per-node is more than the {count} GPUs of this host; start torchrun with --nproc-per-node {count}")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield this_team()
    finally:
        # DistributedDataParallel refers to itself in circles; alive at the exit, its threads end the process with an abort.
        gc.collect()
        distributed.destroy_process_group()


class _Total(torch.autograd.Function):
    """The sum over all processes, of a tensor and of its gradient: what one process computes reaches the loss of every other."""

    @staticmethod
    def forward(context: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Total.forward(context, gradient)


class _SharedNorm(_BatchNorm):
    """Batch norm with the mean and variance of the global batch; in eval mode its base class."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Checked by the class that this stands for, when it is evaluated."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        team = this_team()
        others = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = team.size * input.numel() // input.shape[1]
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        mean = _Total.apply(wide.sum(others)) / count
        centred = wide - mean.view(shape)
        variance = _Total.apply(centred.square().sum(others)) / count
        self._remember(mean.detach(), variance.detach(), count)
        output = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1), momentum)


def _shared_dropout(kind: type[nn.Module], drop: Callable[..., Tensor]) -> type[nn.Module]:
    """The class ``kind`` with its mask drawn by ``drop`` for the global batch."""

    def forward(self: Any, input: Tensor) -> Tensor:
        if not self.training:
            return input
        team = this_team()
        # The memory format of one process's batch, as masks are drawn in the order of memory.
        last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        ones = torch.ones(team.size * len(input), *input.shape[1:], dtype=input.dtype, device=input.device)
        mask = drop(ones.contiguous(memory_format=torch.channels_last) if last else ones, self.p, True)
        return input * mask[team.rows(len(mask))]

    return type(f"Shared{kind.__name__}", (kind,), {"forward": forward})


_SHARED: dict[type[nn.Module], type[nn.Module]] = dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _SharedNorm)
_SHARED |= {nn.Dropout: _shared_dropout(nn.Dropout, functional.dropout), nn.Dropout2d: _shared_dropout(nn.Dropout2d, functional.dropout2d)}
