"""Zeroed weights that may come back: the mask is chosen anew again and again while the weights under it go on learning.

A weight that looked useless before its neighbours were zeroed may be needed afterwards. Here the network computes with the masked weights,
but every step moves all weights, the masked ones by the gradient they have at zero; every ``EVERY`` steps the mask is chosen anew among
all of them. By hand: of the weights ``[3, -1, 2, -4]`` at sparsity 0.5 the network sees ``[3, 0, 0, -4]``; once the steps have taken them
to ``[3, -1, 3.5, -4]``, it sees ``[0, 0, 3.5, -4]``.

A masked weight fades by ``FADE`` per step, so that only those come back whose gradient keeps pulling the same way; without it, an
optimiser that scales its steps (Adam) lets noise grow them. What chooses also gets a running mean of the squared gradients, of which a step
keeps ``MEMORY``. Counter, masks and means lie in the network's state, so a saved training goes on as it would have; the last quarter of the
steps keeps the mask.

Refuses: a weight that several layers share.

Sources: Lin et al. 2020, arXiv:2006.07253 (dynamic model pruning with feedback); Zhou et al. 2021, arXiv:2102.04010 (the fading).
"""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import CompressError

EVERY = 16
FADE = 0.002
UNTIL = 0.75
MEMORY = 0.995


class _Masked(nn.Module):
    """A weight as the network sees it: zero where ``keep`` is False; its gradient reaches all of it. ``squares``: of gradients."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.keep = nn.Buffer(keep.clone())
        self.squares = nn.Buffer(torch.zeros(keep.shape, device=keep.device))
        self.age = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def forward(self, weight: Tensor) -> Tensor:
        seen = weight.clone(memory_format=torch.preserve_format)  # as the weight lies in memory: convolutions are slow otherwise
        seen.detach().masked_fill_(~self.keep, 0)  # unknown to autograd, which passes the gradient on as it is
        return seen


class Regrowing:
    """``network`` with weights that may come back, for a training of ``steps`` steps; ``after_step`` is called after each of them.

    Args:
        network: its weights are parametrized until :meth:`finish`; where it trains, it is moved there by whoever trains it.
        masks: of :mod:`compress.pruning.masks`. dense: the values that these parameters start from, the masked ones too.
        choose: the masks to take for these weights and the running means of their squared gradients.

    Raises:
        CompressError: a weight that several layers share; each would need the mask.
    """

    def __init__(
        self,
        network: nn.Module,
        masks: Mapping[str, Tensor],
        dense: Mapping[str, Tensor],
        choose: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, Tensor]],
        steps: int,
    ) -> None:
        self.network, self.choose, self.last = network, choose, int(UNTIL * steps)
        self.masked: dict[str, _Masked] = {}
        self.done: int | None = None  # as the state says, which is read once: reading waits for a GPU
        places = Counter(parameter for _, parameter in network.named_parameters(remove_duplicate=False))
        if shared := [name for name in masks if places[network.get_parameter(name)] > 1]:
            raise CompressError(f'regrow: "{shared[0]}" is shared by several layers, whose weights cannot come back; leave regrow out')
        for name, mask in masks.items():
            weight, (layer, _, attribute) = network.get_parameter(name), name.rpartition(".")
            with torch.no_grad():
                weight.copy_(dense[name])
            self.masked[name] = _Masked(mask.to(weight.device))
            parametrize.register_parametrization(network.get_submodule(layer), attribute, self.masked[name])

    def after_step(self) -> None:
        """Fade what is masked and, when it is time, choose the masks anew."""
        with torch.no_grad():
            for name, masked in self.masked.items():
                weight = self._dense(name)
                weight.mul_(1 - FADE * ~masked.keep)
                if weight.grad is not None:
                    masked.squares.mul_(MEMORY).addcmul_(weight.grad, weight.grad, value=1 - MEMORY)
                masked.age.add_(1)
            if self.done is None:
                self.done = int(masked.age) - 1
            self.done += 1
            if self.done % EVERY == 0 and self.done <= self.last:
                squares = {name: masked.squares for name, masked in self.masked.items()}
                for name, mask in self.choose({name: self._dense(name) for name in squares}, squares).items():
                    self.masked[name].keep.copy_(mask)

    def finish(self) -> None:
        """Leave the network with plain parameters, zero where they are masked."""
        for name in self.masked:
            layer, _, attribute = name.rpartition(".")
            parametrize.remove_parametrizations(self.network.get_submodule(layer), attribute, leave_parametrized=True)

    def _dense(self, name: str) -> nn.Parameter:
        layer, _, attribute = name.rpartition(".")
        return self.network.get_submodule(layer).get_parameter(f"parametrizations.{attribute}.original")
