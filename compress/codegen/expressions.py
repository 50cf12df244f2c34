"""What is computed number by number: an expression of stored tensors, written into the loop of whoever reads it.

A *stored* tensor lies in memory. ``Mul`` and ``Add`` of it are not stored: they are an expression, whose leaves say which number of which
tensor they read. By hand: for a map x (1, 8, 4, 4) and a gate s (1, 8, 1, 1), ``x * s`` at (n, c, h, w) is ``load x[n, c, h, w] * load
s[n, c, 0, 0]``; so a Relu behind it, or a sum over channels, becomes one loop, and the product is never written.

Every expression below another has its shape: a leaf says for each axis of its tensor ``(axis, start, step)``, axis None for a fixed place.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Way = tuple[int | None, int, int]
_HEAVY = {"exp", "sigmoid", "tanh", "erf", "div", "sqrt", "quantize"}


@dataclass(eq=False)
class Tensor:
    """What lies in memory: ``dtype`` "f32" or "u8"; ``data`` of a constant.

    ``kind``, of the whole that it is a part of: "pixel" (channels innermost, padded), "tight" (innermost, not padded), "planes" (one after
    the other), "rows" (padded), "plain" (as ONNX has it), or None while nobody asked. ``inside``: the tensor that it is part of, and where
    it begins there. ``alias``: the plain tensor whose memory it is. ``halo``: margin of zeros that convolutions read: top, left, bottom,
    right. ``place``: "arena", "image", "outputs" or "flash".
    """

    name: str
    shape: Shape
    dtype: str = "f32"
    data: NDArray[Any] | None = None
    kind: str | None = None
    inside: tuple["Tensor", Shape] | None = None
    alias: "Tensor | None" = None
    halo: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    fill: int = 0
    place: str = "arena"
    offset: int = 0

    @property
    def whole(self) -> "Tensor":
        """The tensor whose memory this is in."""
        if self.alias is not None:
            return self.alias.whole
        return self.inside[0].whole if self.inside else self


@dataclass(frozen=True, eq=False)
class Expr:
    """``op`` "load" (of ``tensor`` along ``ways``), "number", "acc" (what a reduction has summed up), "reshape", or one of ``args``."""

    op: str
    shape: Shape
    args: tuple["Expr", ...] = ()
    numbers: tuple[float, ...] = ()
    tensor: Tensor | None = None
    ways: tuple[Way, ...] = ()

    def leaves(self) -> Iterator["Expr"]:
        """Its loads, each as often as it stands there."""
        if self.op == "load":
            yield self
        for one in self.args:
            yield from one.leaves()

    def whole_tensor(self) -> Tensor:
        """The tensor of a load."""
        assert self.tensor is not None
        return self.tensor

    def is_whole(self) -> bool:
        """Whether it is one stored tensor, number by number."""
        return self.tensor is not None and self.ways == straight(self.tensor.shape) and self.shape == self.tensor.shape

    def is_heavy(self) -> bool:
        """Whether computing it twice costs more than storing it."""
        return self.op in _HEAVY or any(one.is_heavy() for one in self.args)

    def size(self) -> int:
        """How many functions it has."""
        return len(self.args) > 0 and 1 + sum(one.size() for one in self.args)


def straight(shape: Shape) -> tuple[Way, ...]:
    """The way through a tensor by which each axis is its own; an axis of one is a fixed place."""
    return tuple((axis if size > 1 else None, 0, 1) for axis, size in enumerate(shape))


def load(tensor: Tensor) -> Expr:
    """All of a stored tensor."""
    return Expr("load", tensor.shape, tensor=tensor, ways=straight(tensor.shape))


def number(value: float) -> Expr:
    """The same number everywhere."""
    return Expr("number", (), numbers=(float(value),))


def constant(values: NDArray[Any], name: str) -> Expr:
    """A constant: a number, or a tensor in flash."""
    if values.size == 1:
        return Expr("number", values.shape, numbers=(float(values.reshape(())),))
    return load(Tensor(name, values.shape, data=np.asarray(values, np.float32), place="flash"))


def dtype_of(source: Expr) -> str:
    """What an expression is stored as: "u8" for integers, "f32" for all else."""
    if source.op == "load":
        assert source.tensor is not None
        return source.tensor.dtype
    return "u8" if source.op == "quantize" else dtype_of(source.args[0]) if source.op == "reshape" else "f32"


def function(op: str, *args: Expr, numbers: Sequence[float] = ()) -> Expr:
    """A function of expressions, which broadcast as in ONNX."""
    if op == "quantize" and args[0].op == "dequantize" and args[0].numbers == tuple(numbers) and dtype_of(args[0].args[0]) == "u8":
        return args[0].args[0]
    if op == "quantize" and args[0].op == "dequantize":  # from one scale to another by one factor: a tie stays a tie
        (scale, zero), (wanted, other) = args[0].numbers, numbers
        shifted = function("sub", args[0].args[0], number(zero)) if zero else args[0].args[0]
        return function("quantize", function("copy", shifted), numbers=(float(np.float32(wanted) / np.float32(scale)), other))
    if args[0].op == "reshape" and all(one.op == "number" for one in args[1:]):
        return reshape(function(op, args[0].args[0], *args[1:], numbers=numbers), args[0].shape)
    shape = np.broadcast_shapes(*(one.shape for one in args))
    return Expr(op, shape, tuple(broadcast(one, shape) for one in args), tuple(map(float, numbers)))


def reshape(source: Expr, shape: Shape) -> Expr:
    """The same numbers in their order, in another shape."""
    if source.op == "reshape":
        source = source.args[0]
    if source.shape == shape:
        return source
    if [size for size in source.shape if size > 1] == [size for size in shape if size > 1] and source.op != "reshape":
        axes = iter([axis for axis, size in enumerate(shape) if size > 1])
        return move(source, shape, tuple((next(axes) if size > 1 else None, 0, 1) for size in source.shape))
    return Expr("reshape", shape, (source,))


def broadcast(source: Expr, shape: Shape) -> Expr:
    """The expression repeated along the axes that it lacks, or has one of."""
    extra = len(shape) - len(source.shape)
    ways = tuple((extra + axis if size > 1 else None, 0, 1) for axis, size in enumerate(source.shape))
    return source if source.shape == shape else move(source, shape, ways)


def move(source: Expr, shape: Shape, ways: Sequence[Way]) -> Expr:
    """The expression seen along other axes: ``ways[i]`` is where its axis i is found, see the module."""
    if source.op == "load":
        moved = []
        for axis, start, step in source.ways:
            there, first, stride = (None, 0, 1) if axis is None else ways[axis]
            moved.append((there, start + first * step, stride * step))
        return Expr("load", shape, tensor=source.tensor, ways=tuple(moved))
    assert source.op != "reshape"
    return Expr(source.op, shape, tuple(move(one, shape, ways) for one in source.args), source.numbers)


def number_of(source: Expr) -> Expr:
    """The expression as float32 where it would be stored as integers."""
    return function("copy", source) if dtype_of(source) == "u8" else source


def same(one: Expr, other: Expr) -> bool:
    """Whether two expressions are the same, written twice."""
    alike = (one.op, one.shape, one.numbers, one.tensor, one.ways) == (other.op, other.shape, other.numbers, other.tensor, other.ways)
    return one is other or (alike and all(same(*pair) for pair in zip(one.args, other.args, strict=True)))
