"""Where each tensor lies: strides of its axes, margins, and a place in the arena that is free while it lives.

By hand: a "pixel" tensor (1, 20, 3, 5) in lanes of 16, with a margin of 1: a pixel has 32 numbers, a row (5 + 2) of them, the strides are
(5 * 224, 1, 224, 32) and the first number is at 224 + 32. A part of a Concat has the strides of the whole and begins further on.

Tensors that live at different times share memory: largest first, each at the lowest place that nobody has meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .calls import Call
from .expressions import Shape, Tensor

ALIGN = 64  # bytes
SLACK = 128  # bytes behind a tensor that vectors may read, and write if nobody lives there


@dataclass(frozen=True)
class Layout:
    """``start``: where the first number is, ``strides``: from one to the next along each axis, ``size`` of the whole, all in numbers."""

    start: int
    strides: Shape
    size: int


def rounded(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def width(tensor: Tensor) -> int:
    """Bytes of a number."""
    return 1 if tensor.dtype == "u8" else 4


def order_of(tensor: Tensor) -> tuple[int, ...]:
    """Axes from the outermost to the innermost."""
    rank = len(tensor.shape)
    pixel = tensor.kind in ("pixel", "tight") or (tensor.kind is None and rank == 4)
    return (0, *range(2, rank), 1) if pixel and rank > 2 else tuple(range(rank))


def layout(tensor: Tensor, lanes: int) -> Layout:
    """How a tensor lies."""
    if tensor.alias is not None:
        under = layout(tensor.alias, lanes)
        steps = np.cumprod([1, *tensor.shape[:0:-1]])[::-1] if tensor.shape else ()
        return Layout(under.start, tuple(int(one) for one in steps), under.size)
    if tensor.inside is not None:
        whole, at = tensor.inside
        under = layout(whole, lanes)
        return Layout(under.start + sum(a * b for a, b in zip(at, under.strides, strict=True)), under.strides, under.size)
    sizes, order = list(tensor.shape), order_of(tensor)
    start = [0] * len(sizes)
    if len(sizes) == 4:
        start[2:] = tensor.halo[:2]
        sizes[2:] = [sizes[2] + tensor.halo[0] + tensor.halo[2], sizes[3] + tensor.halo[1] + tensor.halo[3]]
    if sizes and sizes[order[-1]] > 1 and tensor.kind not in ("tight", "planes", "plain"):
        sizes[order[-1]] = rounded(sizes[order[-1]], lanes)
    strides, step = [0] * len(sizes), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= sizes[axis]
    return Layout(sum(a * b for a, b in zip(start, strides, strict=True)), tuple(strides), step)


def packed(tensor: Tensor, lanes: int) -> NDArray[np.float32]:
    """The numbers of a constant as they lie in flash."""
    assert tensor.data is not None
    plan = layout(tensor, lanes)
    memory = np.zeros(rounded(plan.size, lanes), np.float32)
    places = sum(
        np.arange(size).reshape([-1 if at == axis else 1 for at in range(len(tensor.shape))]) * plan.strides[axis]
        for axis, size in enumerate(tensor.shape)
    )
    memory[plan.start + np.broadcast_to(places, tensor.shape)] = tensor.data
    return memory


def place(calls: Sequence[Call], lanes: int) -> tuple[int, list[int]]:
    """Set ``offset`` of every tensor in the arena, in bytes; the arena's size, and how much of it lives during each call."""
    first, last = dict[Tensor, int](), dict[Tensor, int]()
    for number, call in enumerate(calls):
        for tensor in (*call.reads(), *call.writes):
            whole = tensor.whole
            if whole.place == "arena":
                first.setdefault(whole, number)
                last[whole] = number
    sizes = {whole: rounded(layout(whole, lanes).size * width(whole) + SLACK + whole.halo[1] * 64 * width(whole), ALIGN) for whole in first}
    placed: list[Tensor] = []
    for whole in sorted(first, key=lambda one: (-sizes[one], first[one])):
        at = 0
        for other in sorted((one for one in placed if first[one] <= last[whole] and first[whole] <= last[one]), key=lambda one: one.offset):
            if other.offset - at >= sizes[whole]:
                break
            at = max(at, other.offset + sizes[other])
        whole.offset = at
        placed.append(whole)
    lives = [sum(sizes[one] for one in first if first[one] <= number <= last[one]) for number in range(len(calls))]
    return max((one.offset + sizes[one] for one in placed), default=0), lives
