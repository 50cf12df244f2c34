"""A graph as a list of steps: what is computed of which values, in order, each value let go when nothing needs it any more."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Function = Callable[..., Any]  # of Tensors, to a Tensor, or to a tuple of them where the node has several outputs


@dataclass(kw_only=True)
class Step:
    """One function of the forward pass, or the name of one; ``last_used`` are the values that nothing after it needs."""

    function: Function | str
    inputs: Sequence[str]
    outputs: Sequence[str]
    last_used: Sequence[str] = ()


def let_go(steps: Sequence[Step], wanted: Collection[str]) -> list[Step]:
    """The steps that lead to the values ``wanted``, which note from then on what each of them is the last to use."""
    needed, left = set(wanted), list[Step]()
    for step in reversed(steps):
        if needed.isdisjoint(step.outputs):
            continue
        step.last_used = [name for name in dict.fromkeys((*step.inputs, *step.outputs)) if name not in needed]
        needed.update(step.inputs)
        left.append(step)
    return left[::-1]


def walk(steps: Sequence[Step], values: dict[str, Tensor], named: Mapping[str, Function]) -> None:
    """Compute all steps in ``values``, which holds what they begin with; ``named`` are the functions that steps name."""
    for step in steps:
        function = named[step.function] if isinstance(step.function, str) else step.function
        made = function(*[values[name] for name in step.inputs])
        values.update(zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=True))
        for name in step.last_used:
            del values[name]
