"""Bypass modules: replace attention gates, residual blocks and the like, whose output has their input's shape, by ``nn.Identity``.

By hand: in ``x -> conv -> gate -> linear`` the gate scales what the convolution made, shape in, shape out. Without it the linear layer
reads the convolution directly. The convolution changes the number of channels and cannot be bypassed.

What a module does is seen by running the network on an example. Refuses: names that are no module, the network as a whole, and modules
that are not called exactly once with one tensor, that return another shape or type than they get, or without which the network fails.
"""

import difflib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError, first_line
from .cut import evaluating
from .trace import NETWORK_FAILURES


@dataclass(kw_only=True)
class _Calls:
    """What was seen of one module: how often it was called, and the tensor that came in and went out, each with its version.

    The version tells ``Sequential(norm, ReLU(inplace=True))`` from ``norm``: the same tensors, but one of them was written to since.
    """

    count: int = 0
    came: tuple[Tensor, int] | None = None
    went: tuple[Tensor, int] | None = None

    @property
    def hindrance(self) -> str:
        """Why the module cannot be bypassed, or nothing."""
        if self.count != 1:
            return f"is called {self.count} times in a forward pass"
        if self.came is None or self.went is None:
            return "takes or returns something else than one tensor"
        came, went = self.came[0], self.went[0]
        if (came.shape, came.dtype) != (went.shape, went.dtype):
            return f"makes {went.dtype} {tuple(went.shape)} of {came.dtype} {tuple(came.shape)}"
        return ""

    def is_same_as(self, other: "_Calls") -> bool:
        """Whether the very same tensors go into and come out of both, and nothing was written to them in between."""
        pairs = ((self.came, other.came), (self.went, other.went))
        return all(a is not None and b is not None and a[0] is b[0] and a[1] == b[1] for a, b in pairs)


def bypassable(network: nn.Module, example: Tensor) -> list[str]:
    """The modules without which the network still runs: each is called once and maps one tensor to one of the same shape and type.

    Left out are those without parameters (activations, dropout, ``nn.Identity``) and batch norms, which export folds into convolutions, as
    there is nothing to save; and containers around a single other one of the list, which would be the same again.

    Args:
        network: any module; it is not changed.
        example: float32 (B, C, H, W) as the network takes it, on its device.

    Returns:
        Their names, in the order of ``network.named_modules()``.

    Raises:
        NetworkError: the network fails on the example.
    """
    calls = _watch(network, example)
    named = {name: module for name, module in network.named_modules() if name}
    fitting = [
        name
        for name, module in named.items()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) and [*module.parameters()] and not calls[module].hindrance
    ]
    return [
        name
        for name in fitting
        if not any(inner.startswith(f"{name}.") and calls[named[name]].is_same_as(calls[named[inner]]) for inner in fitting)
        and not _failure(network, [named[name]], example)
    ]


def bypass(network: nn.Module, names: Iterable[str], example: Tensor | None = None) -> None:
    """Replace modules by ``nn.Identity``, in place.

    Args:
        network: the one to change; nothing is changed where an error is raised.
        names: of modules, as in ``network.named_modules()``; of one inside another, the outer one decides.
        example: float32 (B, C, H, W) on the network's device, to check that each module keeps the shape of its input and that the network
            runs without all of them; leave it out where that is known, as when a network is loaded again.

    Raises:
        NetworkError: for what the module refuses.
    """
    names, known = list(names), dict(network.named_modules(remove_duplicate=False))
    for name in names:
        if not name:
            raise NetworkError('bypass (="") is the network as a whole; name a module inside it')
        if name not in known:
            raise NetworkError(f"bypass (={name}) is no module of this network{_nearest(name, known)}")
    gone = [known[name] for name in names]
    if example is not None:
        calls = _watch(network, example)
        for name, module in zip(names, gone, strict=True):
            if why := calls[module].hindrance:
                raise NetworkError(f"bypass (={name}) {why}; only what is called once and keeps the shape of one tensor can be left out")
        if why := _failure(network, gone, example):
            raise NetworkError(f"bypass (={', '.join(names)}): the network fails without ({why}); leave some of them in")
    _replace(network, gone)


def matching(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """Those of ``names`` that match any pattern, in their order; ``*`` stands for any characters, dots too, ``?`` for one.

    Raises:
        NetworkError: a pattern that matches none; the message names the nearest.
    """
    patterns = list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise NetworkError(f"bypass (={pattern}) matches no module that can be bypassed{_nearest(pattern, names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _watch(network: nn.Module, example: Tensor) -> dict[nn.Module, _Calls]:
    """Run the network and note what goes through each of its modules."""
    seen = {module: _Calls() for module in network.modules()}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[module].count += 1
        seen[module].came = (args[0], args[0]._version) if not kwargs and len(args) == 1 and isinstance(args[0], Tensor) else None

    def after(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        seen[module].went = (result, result._version) if isinstance(result, Tensor) else None

    with ExitStack() as hooks:
        for module in seen:
            hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after))
        why = _failure(network, [], example)
    if why:
        raise NetworkError(f"network fails on an example of shape {tuple(example.shape)}: {why}; give one that it takes")
    return seen


def _failure(network: nn.Module, gone: Iterable[nn.Module], example: Tensor) -> str:
    """How the network fails on the example without the modules, or nothing; a parent may read the ``weight`` of one, say."""
    places = _replace(network, gone)
    try:
        with torch.no_grad(), evaluating(network):
            network(example.clone())
    except NETWORK_FAILURES as error:
        return first_line(error)
    finally:
        for owner, attribute, module in places:
            setattr(owner, attribute, module)
    return ""


def _replace(network: nn.Module, gone: Iterable[nn.Module]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put identities in the place of modules, under every name they have; returns who held what."""
    away = set(gone)
    held = [(owner, name, child) for owner in network.modules() for name, child in owner._modules.items()]
    places = [(owner, name, child) for owner, name, child in held if child is not None and child in away]
    for owner, name, child in places:
        setattr(owner, name, nn.Identity().train(child.training))
    return places


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [known for known in names if known], 1, cutoff=0)
    return f"; did you mean {near[0]}?" if near else "; it has none"
