"""Where each tensor lies: strides of its axes, margins, and a place in the arena that is free while it lives.

By hand: a "pixel" tensor (1, 20, 3, 5) in lanes of 16, with a margin of 1: a pixel has 32 numbers, a row (5 + 2) of them, the strides are
(5 * 224, 1, 224, 32) and the first number is at 224 + 32. A part of a Concat has the strides of the whole and begins further on.

Tensors that live at different times share memory. Without vectors a result may also lie over what it is computed from, where that is read
for the last time, as long as it stays behind what is still to be read. By hand: a 3x3 convolution makes 8 rows of 10 bytes from 10 rows of
12 with their margin. Row y reads from byte 12 y on, and its result ends at byte 10 (y + 1): 10 bytes before its source it destroys nothing.

Each tensor takes the lowest place that is free, largest first. That order is changed as long as it helps, or until the arena is as small as
what one call needs for itself, which is the bound.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .calls import Call, Contract, Loop, Window
from .expressions import Shape, Tensor

SLACK = 8  # bytes for each lane, behind a tensor, that vectors may read, and write if nobody lives there
TRIES = 100  # orders that are tried for the arena


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


def _over(call: Call, lanes: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Source, result, and how many bytes the result must lie before the source so as to destroy only what was read."""
    result = call.writes[0]
    if result.whole is not result or len(result.shape) != 4 or result.shape[0] > 1 or len(call.writes) > 1:
        return
    out, wide = layout(result, lanes), width(result)
    sources = list(dict.fromkeys(call.reads()))
    if isinstance(call, Loop):
        sizes = [rounded(size, lanes) if stride == 1 else size for size, stride in zip(result.shape, out.strides, strict=True)]
        for source in (one for one in sources if one.whole is one and one.shape == result.shape and one.place == "arena"):
            under, narrow = layout(source, lanes), width(source)
            if order_of(source) == order_of(result) and all(leaf.is_whole() for leaf in call.source.leaves() if leaf.tensor is source):
                steps = [a * wide - b * narrow for a, b in zip(out.strides, under.strides, strict=True)]
                longest = sum(max(0, step) * (size - 1) for step, size in zip(steps, sizes, strict=True))
                yield source, result, out.start * wide - under.start * narrow + wide - narrow + longest
    elif isinstance(call, Window) or (isinstance(call, Contract) and not call.matrix and result.kind == "pixel"):
        [source] = sources
        if source.whole is source and source.place == "arena" and result.shape[1] > 1:
            under, narrow = layout(source, lanes), width(source)
            row = (result.shape[3] - 1) * out.strides[3] + rounded(result.shape[1], lanes)
            top, left, (step, before) = source.halo[0], source.halo[1] * under.strides[3], (call.strides[0], call.pads[0])
            step *= 2 if isinstance(call, Contract) and call.pooled else 1
            ends = [out.start + y * out.strides[2] + row for y in range(result.shape[2])]
            begins = [under.start + max(-top, y * step - before) * under.strides[2] - left for y in range(result.shape[2])]
            yield source, result, max(end * wide - begin * narrow for end, begin in zip(ends, begins, strict=True))


class _Arena:
    """Tensors that wait for a place: their ``sizes`` in bytes, who lives ``beside`` whom, how far a result lies ``behind`` a source."""

    def __init__(self, calls: Sequence[Call], lanes: int) -> None:
        self.first, last = dict[Tensor, int](), dict[Tensor, int]()
        for number, call in enumerate(calls):
            for whole in (tensor.whole for tensor in (*call.reads(), *call.writes) if tensor.whole.place == "arena"):
                self.first.setdefault(whole, number)
                last[whole] = number
        align = 4 * lanes
        self.sizes = {
            one: rounded(layout(one, lanes).size * width(one) + SLACK * lanes + 4 * lanes * one.halo[1] * width(one), align)
            for one in self.first
        }
        self.behind = {
            (source, result): rounded(distance, align)
            for number, call in enumerate(calls)
            for source, result, distance in (_over(call, lanes) if lanes < 16 else ())
            if last[source] == self.first.get(result) == number
        }
        self.beside = {
            one: [other for other in self.first if self.first[other] <= last[one] and self.first[one] <= last[other]] for one in self.first
        }
        lives = [sum(self.sizes[one] for one in self.first if self.first[one] <= at <= last[one]) for at in range(len(calls))]
        shared = [0] * len(calls)
        for (source, result), distance in self.behind.items():
            together = max(self.sizes[result], self.sizes[source] + max(0, distance))
            at = self.first[result]
            shared[at] = max(shared[at], self.sizes[source] + self.sizes[result] - together)
        self.lives = [one - other for one, other in zip(lives, shared, strict=True)]

    def lowest(self, order: Sequence[Tensor]) -> dict[Tensor, int]:
        """Offsets, if the tensors choose in this order."""
        found: dict[Tensor, int] = {}
        for one in order:
            size, taken = self.sizes[one], []
            for other in self.beside[one]:
                if other in found:
                    low = found[other] - min(size, self.behind.get((other, one), size))
                    taken.append((low, found[other] + min(self.sizes[other], self.behind.get((one, other), self.sizes[other]))))
            at = 0
            for low, high in sorted(taken):
                at = high if low < at < high else at
            found[one] = at
        return found

    def height(self, found: dict[Tensor, int]) -> int:
        """Bytes that these offsets take."""
        return max((at + self.sizes[one] for one, at in found.items()), default=0)

    def best(self) -> dict[Tensor, int]:
        """The offsets that take least, of those that were tried."""
        largest = sorted(self.first, key=lambda one: (-self.sizes[one], self.first[one]))
        orders = [largest, sorted(self.first, key=lambda one: -self.first[one]), sorted(self.first, key=lambda one: self.first[one])]
        order = min(orders, key=lambda one: self.height(self.lowest(one)))
        found, draw = self.lowest(order), random.Random(0)
        for _ in range(TRIES):
            height = self.height(found)
            if height == max(self.lives, default=0):
                break
            top = next(one for one, at in found.items() if at + self.sizes[one] == height)
            moved = draw.choice(self.beside[top])
            changed = [moved, *(one for one in order if one is not moved)]
            if self.height(other := self.lowest(changed)) <= height:
                order, found = changed, other
        return found


def place(calls: Sequence[Call], lanes: int) -> tuple[int, list[int]]:
    """Set ``offset`` of every tensor in the arena, in bytes; the arena's size, and how much of it each call needs for itself."""
    arena = _Arena(calls, lanes)
    for one, at in (found := arena.best()).items():
        one.offset = at
    return arena.height(found), arena.lives


def share(one: Tensor, other: Tensor, lanes: int) -> bool:
    """Whether two tensors have bytes in common."""
    (a, b), sizes = (one.whole, other.whole), [layout(each, lanes).size * width(each) for each in (one, other)]
    return a.place == b.place == "arena" and a.offset < b.offset + sizes[1] and b.offset < a.offset + sizes[0]
