"""Nodes that multiply by weights, and products of two computed matrices.

A Gemm behind a Flatten is a convolution as large as the map. int8 tensors by int8 weights stay in integers: ``Contract.scale`` is what one
of them stands for. Where there are few output channels, vectors run along the rows: planes, and whole numbers in float32.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calls import Contract, Product
from ..expressions import Expr, Shape, Tensor, constant, function, load, move, number, number_of, reshape
from ..read import Constant, Node, Quantized
from .lowering import Lowering
from .maps import as_map, geometry

_FEW = 3  # output channels that are computed as planes
_TIGHT = 4  # input channels, up to which a row of taps is read as one run


@dataclass(frozen=True, eq=False)
class Weights:
    """``filters`` (N, C, kh, kw): int8 with one ``scale`` per N, or float32 without; ``bias``: N constants."""

    filters: NDArray[Any]
    scale: NDArray[np.float32] | None
    bias: Constant

    def numbers(self) -> NDArray[np.float32]:
        """The filters in float32."""
        return self.filters if self.scale is None else self.filters.astype(np.float32) * self.scale.reshape(-1, 1, 1, 1)

    def bias_numbers(self) -> NDArray[np.float32]:
        """The bias in float32."""
        return (self.bias.numbers() if isinstance(self.bias, Quantized) else np.asarray(self.bias, np.float32)).reshape(-1)

    def bias_integers(self, scale: NDArray[np.float32]) -> NDArray[np.int32]:
        """The bias as multiples of ``scale``."""
        if isinstance(self.bias, Quantized) and not np.any(self.bias.zero):
            return self.bias.values.reshape(-1).astype(np.int32)
        return np.rint(self.bias_numbers() / scale).astype(np.int32)


def factors(given: Constant, axis: int) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """A constant as int8 and scales along ``axis``, that of the outputs; else as float32 and None."""
    if not isinstance(given, Quantized):
        return given, None
    along = given.scale.ndim == 0 or given.axis == axis
    if given.values.dtype != np.int8 or np.any(given.zero) or not along:
        return given.numbers(), None
    return given.values, np.broadcast_to(given.scale, given.values.shape[axis : axis + 1])


def convolution(lowering: Lowering, node: Node) -> None:
    source, (filters, scale) = lowering.get(node), factors(lowering.constant(node, 1, "the weights"), 0)
    shape, wide = as_map(node, lowering.shape(node)), as_map(node, source.shape)
    kernel, strides, dilations, pads = geometry(node, wide, shape, node.settings.get("kernel_shape", filters.shape[2:]))
    bias = lowering.constant(node, 2, "the bias") if len(node.inputs) > 2 and node.inputs[2] else np.zeros(len(filters), np.float32)
    weights = Weights(filters.reshape(*filters.shape[:2], *kernel), scale, bias)
    groups = node.settings.get("group", 1)
    contract(lowering, node, reshape(source, wide), weights, shape, strides=strides, dilations=dilations, pads=pads[:2], groups=groups)


def matrix(lowering: Lowering, node: Node) -> None:
    """Gemm and MatMul."""
    turned, third = bool(node.settings.get("transB", 0)), len(node.inputs) > 2 and bool(node.inputs[2])
    given = lowering.graph.constants.get(node.inputs[1])
    rank = len(lowering.get(node).shape)
    if given is None or rank < 2 or np.ndim(given.values if isinstance(given, Quantized) else given) != 2:
        product(lowering, node)
        return
    values, scale = factors(given, 0 if turned else 1)
    filters = (values if turned else values.T).reshape(-1, values.shape[turned], 1, 1)
    left, alpha, beta = lowering.get(node), node.settings.get("alpha", 1.0), node.settings.get("beta", 1.0)
    if node.settings.get("transA", 0):
        left = move(lowering.usable(left, f"{node.name}_in"), left.shape[::-1], [(1, 0, 1), (0, 0, 1)])
    bias = lowering.graph.constants.get(node.inputs[2]) if third else np.zeros(len(filters), np.float32)
    size = 0 if bias is None else np.size(bias.values if isinstance(bias, Quantized) else bias)
    if bias is None or size != len(filters) or alpha != 1 or beta != 1:  # a matrix is added, or something is scaled
        scaled = Weights(Weights(filters, scale, np.zeros(0)).numbers() * np.float32(alpha), None, np.zeros(len(filters), np.float32))
        contract(lowering, node, left, scaled, lowering.shape(node), matrix=True)
        if third:
            added = function("mul", lowering.get(node, 2), number(beta))
            lowering.result(node, lowering.pointwise(node, "add", lowering.values[node.outputs[0]], added))
        return
    inner = left.args[0] if left.op == "dequantize" else left
    if inner.op == "reshape" and len(inner.args[0].shape) == 4 and inner.args[0].shape[0] == left.shape[0] == 1:
        source = inner.args[0]
        filters = filters.reshape(len(filters), *source.shape[1:])
        wide = Expr("dequantize", source.shape, (source,), left.numbers) if left.op == "dequantize" else source
        contract(lowering, node, wide, Weights(filters, scale, bias), (1, len(filters), 1, 1))
    else:
        contract(lowering, node, left, Weights(filters, scale, bias), lowering.shape(node), matrix=True)


def contract(lowering: Lowering, node: Node, source: Expr, weights: Weights, shape: Shape, **how: Any) -> None:
    """One convolution or product with weights; ``how``: fields of :class:`Contract`."""
    tensor = Tensor(node.outputs[0], shape)
    call = Contract(name=node.name, writes=[tensor], source=tensor, weights=weights.filters, bias=np.zeros(0), **how)
    n, c = weights.filters.shape[:2]
    few = n <= _FEW and call.groups == 1 and np.prod(shape[2:]) > 1 and call.strides == (1, 1) and not call.matrix
    scale = None
    if weights.scale is not None and source.op == "dequantize":
        scale = np.float32(source.numbers[0]) * weights.scale
        source, call.zero, call.bias = source.args[0], int(source.numbers[1]), weights.bias_integers(scale)
    else:
        source, call.weights, call.bias = number_of(source), weights.numbers(), weights.bias_numbers()
    if scale is not None and few:  # whole numbers in float32, exact up to 2^24
        source = function("sub", lowering.usable(source, node.name), number(call.zero))
        call.weights, call.bias, call.zero = call.weights.astype(np.float32), call.bias.astype(np.float32), 0
    kind = "rows" if call.matrix else "planes" if few else "tight" if c <= _TIGHT and call.groups == 1 else "pixel"
    halo = [0] * 4 if call.matrix or call.groups == n == source.shape[1] > 1 else margin(call, source.shape, shape)
    call.source = lowering.store(source, f"{node.name}_in", kind, halo=any(halo) or bool(few))
    if any(halo):
        whole = call.source.whole
        whole.halo, whole.fill = [max(pair) for pair in zip(whole.halo, halo, strict=True)], call.zero
    tensor.kind = kind if few or call.matrix else "pixel"
    lowering.add(call)
    made = load(tensor)
    if scale is not None and few:
        made = function("mul", made, constant(scale.reshape(1, -1, 1, 1), f"{node.name}_scale"))
    elif scale is not None:
        call.scale = scale
    lowering.values[node.outputs[0]] = reshape(made, lowering.shape(node))


def margin(call: Contract, source: Shape, shape: Shape) -> list[int]:
    """Zeros around a map that a convolution reads: top, left, bottom, right."""
    kernel, strides, dilations, pads = call.weights.shape[2:], call.strides, call.dilations, call.pads
    end = [(shape[2 + a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 - pads[a] - source[2 + a] for a in (0, 1)]
    return [pads[0], pads[1], max(0, end[0]), max(0, end[1])]


def product(lowering: Lowering, node: Node) -> None:
    left, right = lowering.get(node), lowering.get(node, 1)
    if min(len(left.shape), len(right.shape)) < 2 or node.kind != "MatMul":
        raise node.refuse("products of vectors, or of two computed matrices, must be a MatMul of matrices")
    tensor = Tensor(node.outputs[0], lowering.shape(node), kind="rows")
    pair = [lowering.store(number_of(one), f"{node.name}_in{place}", "rows") for place, one in enumerate((left, right))]
    lowering.add(Product(name=node.name, writes=[tensor], left=pair[0], right=pair[1]))
    lowering.values[node.outputs[0]] = load(tensor)


WEIGHTS = {"Conv": convolution, "Gemm": matrix, "MatMul": matrix}
