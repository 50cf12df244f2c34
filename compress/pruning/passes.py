"""Forward passes of a network as it stands: in eval mode, and of as many images at once as there is room for."""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In eval mode inside the block; every module gets its own mode back."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def at_once(network: nn.Module, example: Tensor, room: float) -> int:
    """How many images may go through a network so that the largest of what its modules make takes ``room`` bytes; at least one."""
    largest = [example.numel() * example.element_size()]

    def note(made: Any) -> None:
        largest.extend(one.numel() * one.element_size() for one in tensors_in(made))

    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            hooks.enter_context(module.register_forward_hook(lambda _, __, made: note(made)))
        network(example)
    return max(1, int(room * len(example) / max(largest)))


def held_at_layers(network: nn.Module, example: Tensor) -> int:
    """The most bytes of what its modules read and make that are still held where a convolution or a linear layer begins."""
    known: list[weakref.ref[Tensor]] = [weakref.ref(example)]
    most = [example.nbytes]

    def before(module: nn.Module, came: Any) -> None:
        known.extend(map(weakref.ref, tensors_in(came)))
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            alive = [one for ref in known if (one := ref()) is not None]
            most.append(sum({one.data_ptr(): one.nbytes for one in alive}.values()))

    with ExitStack() as hooks, torch.no_grad():
        for module in network.modules():
            hooks.enter_context(module.register_forward_pre_hook(before))
            hooks.enter_context(module.register_forward_hook(lambda _, __, made: known.extend(map(weakref.ref, tensors_in(made)))))
        network(example)
    return max(most)


def tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
