"""Follow the channels of a network through one run of it: every operation is seen as it is called, and the labels of its result noted.

The network is run as it stands, in eval and in train mode, under a ``TorchFunctionMode``; which labels an operation's result has, and what
it joins, is in operator_rules.py. Because it runs, shapes may decide what it does; the data may not: a tensor made from the input that is
turned into a Python number or truth value is refused, naming module and line.
"""

import copy
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_stack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import NetworkError, first_line
from ..pruning.passes import tensors_in
from .identities import FIXED, Identities, shorten

# As torch calls them, since ``.float()`` converts a tensor, and ``float(x)``, which is ``x.__float__()``, makes a Python number of one.
PEEKS = "__bool__ __float__ __int__ __index__ __complex__ __array__ __contains__ item tolist numpy equal allclose is_nonzero"
NETWORK_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, ArithmeticError)
_HIDDEN = (str(Path(torch.__file__).parent), *(str(Path(__file__).with_name(name)) for name in ("trace.py", "cut.py")))


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One call: what was called, and the labels that went in and came out; ``outputs`` is empty where no channel is in it."""

    name: str
    inputs: tuple[Tensor, ...]
    shapes: tuple[torch.Size, ...]
    outputs: tuple[Tensor, ...]
    mixes: Tensor | None  # labels of its first argument, where it mixes channels


@dataclass(kw_only=True)
class Slot:
    """One dimension of one parameter or buffer; role "output", "input" or "each" (one value per channel, as in a batch norm)."""

    labels: Tensor
    role: str


@dataclass(kw_only=True)
class Call:
    """What a rule sees of one call."""

    name: str
    where: str
    module: nn.Module | None
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]
    mixes: Tensor | None = None
    nonnegative: bool = False

    def get(self, position: int, name: str, default: Any = None) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def tensors(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))


class Watch(TorchFunctionMode):
    """Sees every call of a network, and knows in which module and on which line of the user's code it stands."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._names = {module: name for name, module in network.named_modules()}

    def stands(self) -> tuple[nn.Module | None, str]:
        """The innermost module, and ``blocks.0.cbam (net.py:12)``; without the line where only torch's own modules ran."""
        # From the caller on: a frame whose own variables hold it is freed by the garbage collector alone, and all tensors above with it.
        frames = [frame for frame, _ in itertools.takewhile(lambda at: at[0].f_code is not run.__code__, walk_stack(sys._getframe(1)))]
        called = [frame.f_locals["self"] for frame in frames if frame.f_code is nn.Module._call_impl.__code__]
        inside = [module for module in called if module in self._names]
        name = next(filter(None, map(self._names.get, inside)), "the network")
        line = next((frame for frame in frames if not frame.f_code.co_filename.startswith(_HIDDEN)), None)
        told = f"{name} ({Path(line.f_code.co_filename).name}:{line.f_lineno})" if line else name
        return inside[0] if inside else None, told


class Trace(Watch):
    """The labels of everything that the network computes; ``follow`` is given an example."""

    def __init__(self, network: nn.Module, rule: Callable[["Trace", Call], list[Tensor]]) -> None:
        try:
            super().__init__(copy.deepcopy(network))
        except (RuntimeError, TypeError) as error:
            raise NetworkError(
                f"network cannot be copied ({first_line(error)}); remove old-style weight_norm, locks and open files from it"
            ) from error
        stored = self.network.state_dict(keep_vars=True)
        self.rule = rule
        self.identities = Identities()
        self.owned = {id(value): name for name, value in reversed(stored.items())}
        self.slots: dict[tuple[str, int], Slot] = {}
        self.uses: list[tuple[str, tuple[int, ...], float]] = []  # of a weight: name, shape, MACs of each of its elements per image
        self.mixed: list[Tensor] = []
        self.operations: list[Operation] = []
        self.unknown: dict[str, str] = {}  # module, reason
        self.batch = 1
        self._known = WeakTensorKeyDictionary()  # labels, and whether no value is negative

    def follow(self, example: Tensor) -> None:
        """Run the network on it in both modes: what only one of them does (auxiliary outputs) must fit too."""
        self.batch = len(example)
        for train in (True, False):
            self.network.train(train)
            self.operations.clear()
            self.uses.clear()
            self.note(example, torch.full((1,) * example.dim(), FIXED))
            for output in tensors_in(run(self.network, example, self)):
                self.identities.freeze(self.labels(output), "they are the network's output")

    def labels(self, tensor: Tensor) -> Tensor:
        """In short form; FIXED for what does not come from the input."""
        return self._known[tensor][0] if self.is_followed(tensor) else torch.full((1,) * tensor.dim(), FIXED)

    def note(self, tensor: Tensor, labels: Tensor, nonnegative: bool = False) -> None:
        self._known[tensor] = labels, nonnegative

    def is_followed(self, tensor: Tensor) -> bool:
        return tensor in self._known

    def is_nonnegative(self, tensor: Tensor) -> bool:
        return self.is_followed(tensor) and self._known[tensor][1]

    def tie(self, tensor: Tensor | None, dim: int, labels: Tensor, role: str, where: str) -> Tensor:
        """Dimension ``dim`` of a parameter goes with these labels, int64 (size,); returns the labels of both."""
        if tensor is None:
            return labels
        name = self.owned.get(id(tensor))
        if name is None:
            self.identities.freeze(labels, f"{where} uses a tensor there that is no parameter or saved buffer")
            return labels
        slot = self.slots.setdefault((name, dim), Slot(labels=labels, role=role))
        return self.identities.join(slot.labels, labels, f"{where} ties them to something that must stay")

    def own(self, tensor: Tensor | None, dim: int, size: int) -> Tensor:
        """The labels of a parameter's dimension: fresh ones, and the same at each use, so that its users share them."""
        slot = self.slots.get((self.owned.get(id(tensor), ""), dim))
        return slot.labels if slot else self.identities.fresh(size)

    def leave_whole(self, call: Call, reason: str, *, named: bool = False) -> list[Tensor]:
        """Everything that goes into the call stays; ``named``: say so of its module too, which may have channels that were not seen."""
        for tensor in call.tensors():
            self.identities.freeze(self.labels(tensor), reason)
        if named:
            self.unknown.setdefault(call.where.partition(" (")[0], reason)
        return [torch.full((1,) * result.dim(), FIXED) for result in call.results]

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, name_of(func)
        if getattr(func, "__name__", "") in PEEKS.split() and any(self.is_followed(t) for t in tensors_in((args, kwargs))):
            _, where = self.stands()
            raise NetworkError(
                f"network: {where} makes a Python value of the data ({name}), so what it does next depends on it and its channels "
                "cannot be followed; take that out of forward, or prune weights, which needs no tracing"
            )
        result = func(*args, **kwargs)
        if results := tensors_in(result):
            module, where = self.stands()
            self._follow(Call(name=name, where=where, module=module, function=func, args=args, kwargs=kwargs, results=results))
        return result

    def _follow(self, call: Call) -> None:
        before = tuple(self.labels(t) for t in call.tensors())
        outputs = tuple(shorten(labels) for labels in self.rule(self, call))
        for tensor, labels in zip(call.results, outputs, strict=bool(outputs)):
            assert labels.dim() == tensor.dim(), (call.name, labels.shape, tensor.shape)
            self.note(tensor, labels, call.nonnegative)
        if call.mixes is not None:
            self.mixed.append(call.mixes.flatten())
        shapes = tuple(t.shape for t in call.results)
        self.operations.append(Operation(name=call.name, inputs=before, shapes=shapes, outputs=outputs, mixes=call.mixes))


def run(network: nn.Module, example: Tensor, mode: TorchFunctionMode) -> Any:
    """One forward pass under ``mode``, on pixels of its own, without gradients and without moving torch's generator."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), mode:
        try:
            return network(example.clone())
        except NetworkError:
            raise
        except NETWORK_FAILURES as error:
            shape = tuple(example.shape)
            raise NetworkError(
                f"network fails on an example of shape {shape}: {first_line(error)}; give one that it takes, a batch of 2"
            ) from error


def name_of(func: Callable[..., Any]) -> str:
    """``add`` for torch.add, Tensor.add_, ``+`` and ``+=``; a property's name for its getter."""
    name = getattr(func, "__name__", str(func))
    return (func.__self__.__name__ if name == "__get__" else name).strip("_")  # type: ignore[attr-defined]
