"""What the C does, one call after the other: which tensors each reads and writes, and in which shapes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .expressions import Expr, Tensor

ACC = Expr("acc", ())


@dataclass(eq=False, kw_only=True)
class Call:
    """``name``: of the node; ``writes``: what it stores."""

    name: str
    writes: list[Tensor]

    def reads(self) -> list[Tensor]:
        """The tensors that it reads."""
        return [leaf.tensor for expr in self.expressions() for leaf in expr.leaves() if leaf.tensor is not None]

    def expressions(self) -> list[Expr]:
        """What it computes of them number by number."""
        return []

    def macs(self) -> int:
        """Multiplications with weights."""
        return 0


@dataclass(eq=False, kw_only=True)
class Fill(Call):
    """All of a tensor is one number."""

    value: float


@dataclass(eq=False, kw_only=True)
class Loop(Call):
    """Every number of the tensor is that of the expression."""

    source: Expr

    def expressions(self) -> list[Expr]:
        return [self.source]


@dataclass(eq=False, kw_only=True)
class Reduce(Call):
    """One tensor for each of ``ops`` ("sum", "mean", "max", "min"), over ``axes``, which stay as ones; ``after`` is of ``ACC``."""

    source: Expr
    axes: tuple[int, ...]
    ops: list[str]
    after: list[Expr]

    def expressions(self) -> list[Expr]:
        return [self.source, *self.after]


@dataclass(eq=False, kw_only=True)
class Window(Call):
    """Pooling of (N, C, H, W): "max" or "mean" of ``kernel`` places, ``pads`` (top, left, bottom, right) of them outside.

    ``count_pads``: whether those count in the mean.
    """

    source: Expr
    op: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    count_pads: bool
    after: list[Expr] = field(default_factory=lambda: [ACC])

    def expressions(self) -> list[Expr]:
        return [self.source, *self.after]


@dataclass(eq=False, kw_only=True)
class Contract(Call):
    """Convolution, or product with a matrix of weights: ``weights`` (N, C, kh, kw), float32 or int8; ``matrix``: rows of C to rows of N.

    ``scale``: what the integers of a result stand for, one per channel; ``zero`` of the input. ``quantize``: (scale, zero point) of the
    output. ``low``, ``high``: where its numbers end. ``limit``: rows and columns that somebody reads. ``pooled``: rows and columns of the
    convolution itself, where the largest of 2 x 2 of them are written.
    """

    source: Tensor
    weights: NDArray[Any]
    bias: NDArray[Any]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int] = (0, 0)
    groups: int = 1
    matrix: bool = False
    scale: NDArray[np.float32] | None = None
    zero: int = 0
    quantize: tuple[float, float] | None = None
    low: float = -np.inf
    high: float = np.inf
    limit: tuple[int, int] | None = None
    pooled: tuple[int, int] | None = None

    def reads(self) -> list[Tensor]:
        return [self.source]

    def depthwise(self) -> bool:
        """One filter for each channel."""
        return self.groups == len(self.weights) == self.source.shape[1] > 1 and not self.matrix

    def macs(self) -> int:
        shape = self.writes[0].shape
        return int(self.weights.size * np.prod(shape[:-1] if self.matrix else (shape[0], *(self.pooled or shape[2:]))))


@dataclass(eq=False, kw_only=True)
class Product(Call):
    """Matrix product of two stored tensors (..., M, K) and (..., K, N)."""

    left: Tensor
    right: Tensor

    def reads(self) -> list[Tensor]:
        return [self.left, self.right]

    def macs(self) -> int:
        return int(np.prod(self.writes[0].shape) * self.left.shape[-1])


@dataclass(eq=False, kw_only=True)
class Softmax(Call):
    """Along one axis."""

    source: Tensor
    axis: int

    def reads(self) -> list[Tensor]:
        return [self.source]


@dataclass(eq=False, kw_only=True)
class Resize(Call):
    """(N, C, H, W) to other H and W: for each row, and for each column, two places of the source and the weight of the second."""

    source: Tensor
    rows: list[tuple[int, int, float]]
    columns: list[tuple[int, int, float]]

    def reads(self) -> list[Tensor]:
        return [self.source]
