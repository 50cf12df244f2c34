"""Follow the channels of a network through one run of it: every operation is seen as it is called, and the labels of its result noted.

The network is run as it stands, in eval and in train mode, under a ``TorchFunctionMode``; which labels an operation's result has, and what
it joins, is in compress/rules.py. Because it runs, shapes may decide what it does; the data may not: a tensor made from the input that is
turned into a Python number or truth value is refused, naming module and line.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import NetworkError, first_line
from .identities import FIXED, Identities, shorten

PEEKS = ("bool", "float", "int", "index", "complex", "item", "tolist", "numpy", "array")
NETWORK_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError, ArithmeticError)
_HIDDEN = (str(Path(torch.__file__).parent), *(str(Path(__file__).with_name(name)) for name in ("trace.py", "cut.py")))


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One call: what was called, where, and the labels that went in and came out; ``outputs`` is empty where no channel is in it."""

    name: str
    where: str
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
        self.inside: list[tuple[str, nn.Module]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self.inside.clear()
        for name, module in self.network.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._begin(name)))
            self._handles.append(module.register_forward_hook(self._end, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, _: self.inside.append((name, module))

    def _end(self, *_: Any) -> None:
        self.inside.pop()

    def where(self) -> str:
        """``blocks.0.cbam (net.py:12)``; without the line where only torch's own modules ran."""
        module = next((name for name, _ in reversed(self.inside) if name), "the network")
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not run.__code__:
            if not frame.f_code.co_filename.startswith(_HIDDEN):
                return f"{module} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
            frame = frame.f_back
        return module


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
        self._labels = WeakTensorKeyDictionary()
        self._nonnegative = WeakTensorKeyDictionary()

    def follow(self, example: Tensor) -> None:
        """Run the network on it in both modes: what only one of them does (auxiliary outputs) must fit too."""
        self.batch = len(example)
        for train in (True, False):
            self.network.train(train)
            self.operations.clear()
            self.uses.clear()
            start = example.clone()
            self.note(start, torch.full((1,) * start.dim(), FIXED))
            for output in tensors_in(run(self.network, start, self)):
                self.identities.freeze(self.labels(output), "they are the network's output")

    def labels(self, tensor: Tensor) -> Tensor:
        """In short form; FIXED for what does not come from the input."""
        known = self._labels.get(tensor)
        return torch.full((1,) * tensor.dim(), FIXED) if known is None else known

    def note(self, tensor: Tensor, labels: Tensor, nonnegative: bool = False) -> None:
        self._labels[tensor], self._nonnegative[tensor] = labels, nonnegative

    def is_followed(self, tensor: Tensor) -> bool:
        return tensor in self._labels

    def is_nonnegative(self, tensor: Tensor) -> bool:
        return bool(self._nonnegative.get(tensor, False))

    def tie(self, tensor: Tensor | None, dim: int, labels: Tensor, role: str, where: str) -> Tensor:
        """Dimension ``dim`` of a parameter goes with these labels, int64 (size,); returns the labels of both."""
        if tensor is None:
            return labels
        name = self.owned.get(id(tensor))
        if name is None:
            self.identities.freeze(labels, f"{where} uses a tensor there that is no parameter or saved buffer")
            return labels
        if (slot := self.slots.get((name, dim))) is None:
            self.slots[name, dim] = Slot(labels=labels, role=role)
            return labels
        return self.identities.join(slot.labels, labels, f"{where} ties them to something that must stay")

    def leave_whole(self, call: Call, reason: str, *, named: bool = False) -> list[Tensor]:
        """Everything that goes into the call stays; ``named``: say so of its module too, which may have channels that were not seen."""
        for tensor in call.tensors():
            self.identities.freeze(self.labels(tensor), reason)
        if named:
            self.unknown.setdefault(call.where.partition(" (")[0], reason)
        return [torch.full((1,) * result.dim(), FIXED) for result in call.results]

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name in PEEKS and any(self.is_followed(t) for t in tensors_in((args, kwargs))):
            raise NetworkError(
                f"network: {self.where()} makes a Python value of the data ({name}), so what it does next depends on it and its channels "
                "cannot be followed; take that out of forward, or prune weights, which needs no tracing"
            )
        result = func(*args, **kwargs)
        if results := tensors_in(result):
            module = self.inside[-1][1] if self.inside else None
            call = Call(name=name, where=self.where(), module=module, function=func, args=args, kwargs=kwargs, results=results)
            self._follow(call)
        return result

    def _follow(self, call: Call) -> None:
        before = tuple(self.labels(t) for t in call.tensors())
        outputs = [shorten(labels) for labels in self.rule(self, call)]
        for tensor, labels in zip(call.results, outputs, strict=bool(outputs)):
            assert labels.dim() == tensor.dim(), (call.name, labels.shape, tensor.shape)
            self.note(tensor, labels, call.nonnegative)
        if call.mixes is not None:
            self.mixed.append(call.mixes.flatten())
        self.operations.append(
            Operation(
                name=call.name,
                where=call.where,
                inputs=before,
                shapes=tuple(t.shape for t in call.results),
                outputs=tuple(outputs),
                mixes=call.mixes,
            )
        )


def run(network: nn.Module, example: Tensor, mode: TorchFunctionMode) -> Any:
    """One forward pass under ``mode``, without gradients and without moving torch's generator."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), mode:
        try:
            return network(example)
        except NetworkError:
            raise
        except NETWORK_FAILURES as error:
            shape = tuple(example.shape)
            raise NetworkError(
                f"network fails on an example of shape {shape}: {first_line(error)}; give one that it takes, a batch of 2"
            ) from error


def tensors_in(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def name_of(func: Callable[..., Any]) -> str:
    """``add`` for torch.add, Tensor.add_, ``+`` and ``+=``; a property's name for its getter."""
    name = getattr(func, "__name__", str(func))
    return (func.__self__.__name__ if name == "__get__" else name).strip("_")  # type: ignore[attr-defined]
