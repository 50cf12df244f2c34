"""The convolutions and linear layers that a network and a changed copy of it have in common, which are solved one after the other."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .least_squares import Moments, positions_of

Gone = Mapping[tuple[str, int], set[int]]  # which rows of which parameters the changed one has no more, by name and axis


@dataclass(kw_only=True, eq=False)
class Layer:
    """One convolution or linear layer of both networks, and what is known of it by now.

    ``kept``: the outputs of the uncut one that the cut one has. ``calls``: how often it is called in one pass. ``positions``: of one image.
    ``norm``: the batch norm of
    the cut network that alone takes its offset. ``moments``: of places that are solved on, and of those that judge.
    """

    name: str
    uncut: nn.Module
    module: Any
    kept: Tensor
    calls: int
    positions: int
    norm: Any
    targets: dict[int, list[list[Tensor]]] = field(default_factory=dict)  # of each chunk that is to come: of each call, and part of it
    moments: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))

    @property
    def square(self) -> int:
        """How many numbers the square matrices over its inputs have."""
        return int(getattr(self.module, "groups", 1) * self.module.weight[0].numel() ** 2)

    def put(self, weights: Tensor) -> None:
        """Make the layer compute by ``weights``, as ``weights_of`` gives them; a batch norm's offset counts from where it is."""
        found, offset = weights.transpose(1, 2).flatten(0, 1).split([weights.shape[1] - 1, 1], 1)
        with torch.no_grad():
            self.module.weight.copy_(found.reshape(self.module.weight.shape))
            if self.module.bias is not None:
                self.module.bias.copy_(offset.flatten())
            elif self.norm is not None:
                self.norm.running_mean.copy_(self.norm.running_mean.double() - offset.flatten())


def layers_of_both(network: nn.Module, solved: nn.Module, gone: Gone, example: Tensor) -> Iterator[Layer]:
    """The convolutions and linear layers of both, called as often in both, in the order in which they are first called in the cut one."""
    names, calls, last = dict(network.named_modules()), Counter[str](), dict[int, tuple[str, Tensor]]()
    positions: dict[str, int] = {}
    read, called = dict[str, list[str]](), Counter[str]()
    modules = {name: module for name, module in solved.named_modules() if name in names}

    def before(name: str, came: Any) -> None:
        if came and id(came[0]) in last:
            read.setdefault(last[id(came[0])][0], []).append(name)

    def after(name: str, made: Any) -> None:
        calls[name] += 1
        if isinstance(made, Tensor) and isinstance(modules[name], nn.modules.conv._ConvNd | nn.Linear):
            last[id(made)] = name, made
            positions[name] = positions_of(modules[name], made).shape[2]

    with ExitStack() as hooks, torch.no_grad():
        for name, module in modules.items():
            hooks.enter_context(names[name].register_forward_hook(lambda *_, name=name: called.update([name])))
            if not [*module.children()] and not isinstance(module, nn.Identity):
                hooks.enter_context(module.register_forward_pre_hook(lambda _, came, name=name: before(name, came)))
                hooks.enter_context(module.register_forward_hook(lambda _, __, made, name=name: after(name, made)))
        network(example)
        solved(example)
    for name, count in calls.items():
        module = modules[name]
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and count == called[name]:
            kept = [row for row in range(len(names[name].weight)) if row not in gone.get((f"{name}.weight", 0), ())]
            norm = modules[read[name][0]] if len(read.get(name, ())) == count == 1 else None
            usable = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None and calls[read[name][0]] == 1
            yield Layer(
                name=name,
                uncut=names[name],
                module=module,
                kept=torch.tensor(kept),
                calls=count,
                positions=positions[name],
                norm=norm if usable else None,
            )
