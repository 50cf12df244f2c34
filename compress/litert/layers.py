"""Convolutions, products with matrices, and pools. Weights in int8 have one scale for each output and no zero point; the bias is int32."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.nodes.maps import geometry
from ..codegen.nodes.weights import Weights, factors
from ..codegen.read import Node, Quantized
from .file import Quantization
from .lowering import ACTIVATIONS, LAST, End, Lower, Lowering, Unfit, Value

SAME, VALID = 0, 1
LOWEST = -float(np.finfo(np.float32).max)
RESCALED = 2.0**-32, 256.0  # what XNNPACK multiplies sums of products by lies between


def convolution(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, weights = low.last(ins[0]), weights_of(low, node, 0)
    filters, shape = weights.filters, low.graph.shapes[node.outputs[0]]
    if len(shape) != 4:
        raise node.refuse(f"its rank (={len(shape)}) must be 4")
    groups, channels = node.settings.get("group", 1), source.shape[1]
    source, options = _windows(low, node, source, filters.shape[2:])
    depthwise = groups == channels > 1
    order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
    inputs = [source.at, *_weights(low, node, weights, filters.transpose(order), source, end, axis=3 if depthwise else 0)]
    made = low.output(node, end, last=True)
    options |= {"fusedActivationFunction": ACTIVATIONS[end.activation]}
    if depthwise:
        options |= {"depthMultiplier": len(filters) // channels}
    kind = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    low.file.add("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", inputs, [made.at], kind, **options)


def matrix(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    """Gemm and MatMul. Behind a Flatten the columns are those of the map as it is stored."""
    if not low.is_constant(node.inputs[1]):
        _product(low, node, end)
        return
    if node.settings.get("transA", 0) or len(ins[0].shape) < 2 or np.ndim(low.numbers(node, 1)) != 2:
        raise node.refuse("it must be a product of rows with a matrix of weights")
    turned, weights, source = bool(node.settings.get("transB", 0)), _matrix_of(low, node), ins[0]
    filters, shape = weights.filters, low.graph.shapes[node.outputs[0]]
    filters = filters if turned else filters.T
    wide = low.flattened.get(node.inputs[0])
    if wide is not None:
        filters = filters.reshape(len(filters), *wide.shape[1:]).transpose(LAST).reshape(len(filters), -1)
    source = low.plain(source)
    inputs = [source.at, *_weights(low, node, weights, filters, source, end)]
    made = low.output(node, end)
    options = {"fusedActivationFunction": ACTIVATIONS[end.activation], "keepNumDims": len(shape) > 2}
    low.file.add("FULLY_CONNECTED", inputs, [made.at], "FullyConnectedOptions", **options)


def _product(low: Lowering, node: Node, end: End) -> None:
    pair = [low.plain(low.floats(name)) for name in node.inputs]
    if node.kind != "MatMul" or min(len(one.shape) for one in pair) < 2:
        raise node.refuse("products of two computed matrices must be a MatMul")
    made = low.output(node, End(node.outputs[0]))
    low.file.add("BATCH_MATMUL", [one.at for one in pair], [made.at], "BatchMatMulOptions", adjX=False, adjY=False)


def weights_of(low: Lowering, node: Node, axis: int) -> Weights:
    """Those of a convolution, or of a matrix whose outputs run along ``axis``."""
    given = low.graph.constants.get(node.inputs[1])
    if given is None:
        raise node.refuse("its weights must be constants")
    filters, scale = factors(given, axis)
    bias: Any = np.zeros(filters.shape[axis], np.float32)
    if len(node.inputs) > 2 and node.inputs[2]:
        bias = low.graph.constants.get(node.inputs[2])
        if bias is None or np.size(bias.values if isinstance(bias, Quantized) else bias) != filters.shape[axis]:
            raise node.refuse("its bias must be constants, one for each output")
    return Weights(np.asarray(filters), scale, bias)


def _matrix_of(low: Lowering, node: Node) -> Weights:
    weights = weights_of(low, node, 0 if node.settings.get("transB", 0) else 1)
    alpha, beta = (np.float32(node.settings.get(name, 1.0)) for name in ("alpha", "beta"))
    if alpha == beta == 1:
        return weights
    filters = weights.filters.astype(np.float32)
    if weights.scale is not None:
        filters = filters * (weights.scale[:, None] if node.settings.get("transB", 0) else weights.scale)
    return Weights(filters * alpha, None, weights.bias_numbers() * beta)


def _weights(low: Lowering, node: Node, weights: Weights, filters: NDArray[Any], source: Value, end: End, axis: int = 0) -> tuple[int, int]:
    """The tensors of weights and bias, in integers where the node ends in integers."""
    if end.scale:
        assert weights.scale is not None, "such a node is unfit"
        scale = np.float32(source.scale) * weights.scale
        data = low.file.tensor(
            node.inputs[1], filters.shape, np.int8, data=filters, quantization=Quantization(np.array(weights.scale), 0, axis)
        )
        bias = np.rint(weights.bias_numbers().astype(np.float64) / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        return data, low.file.tensor(f"{node.name}_bias", bias.shape, np.int32, data=bias, quantization=Quantization(scale))
    if weights.scale is not None:
        along = [1] * filters.ndim
        along[axis] = -1
        filters = filters.astype(np.float32) * weights.scale.reshape(along)
    return low.file.constant(node.inputs[1], filters.astype(np.float32)), low.file.constant(f"{node.name}_bias", weights.bias_numbers())


def _unfit_weights(low: Lowering, node: Node, ins: list[Value], end: End) -> str:
    if not low.is_constant(node.inputs[1]):
        return "both of its matrices are computed"
    weights = weights_of(low, node, 0) if node.kind == "Conv" else _matrix_of(low, node)
    if weights.scale is None:
        return "its weights are no int8 with one scale for each output, or have a zero point"
    ratios = np.float32(ins[0].scale) * weights.scale / np.float32(end.scale)
    odd = ratios[(ratios < RESCALED[0]) | (ratios >= RESCALED[1])]
    return f"its sums would be multiplied by {odd[0]:.3g}, and XNNPACK takes 2**-32 to 256" if odd.size else ""


def _windows(low: Lowering, node: Node, source: Value, kernel: Any, fill: float = 0.0) -> tuple[Value, dict[str, Any]]:
    """The map with whatever margin the operator cannot make itself, and the options for its windows."""
    shape = low.graph.shapes[node.outputs[0]]
    kernel, strides, dilations, pads = geometry(node, source.shape, shape, kernel)
    reach = [(kernel[a] - 1) * dilations[a] + 1 for a in (0, 1)]
    total = [(shape[2 + a] - 1) * strides[a] + reach[a] - source.shape[2 + a] for a in (0, 1)]
    after = [max(0, total[a] - pads[a]) for a in (0, 1)]
    same = all(
        shape[2 + a] == -(-source.shape[2 + a] // strides[a]) and pads[a] == max(0, total[a]) // 2 and (total[a] >= 0 or not pads[a])
        for a in (0, 1)
    )
    padding = SAME if same else VALID
    if not same and (any(pads[:2]) or any(after)):
        source = _padded(low, node, source, ((pads[0], after[0]), (pads[1], after[1])), fill)
    options = {"padding": padding, "strideH": strides[0], "strideW": strides[1]}
    if node.kind == "Conv":
        return source, options | {"dilationHFactor": dilations[0], "dilationWFactor": dilations[1]}
    if dilations != (1, 1):
        raise node.refuse("windows with gaps (dilations) are none of LiteRT's pools")
    return source, options | {"filterHeight": kernel[0], "filterWidth": kernel[1]}


def _padded(low: Lowering, node: Node, source: Value, pads: Any, fill: float) -> Value:
    (top, bottom), (left, right) = pads
    shape = (*source.shape[:2], source.shape[2] + top + bottom, source.shape[3] + left + right)
    made = low.temporary(f"{node.name}_padded", source, shape=shape)
    margins = low.file.constant(f"{node.name}_pads", np.array([(0, 0), *pads, (0, 0)], np.int32))
    if not fill:
        low.file.add("PAD", [source.at, margins], [made.at], "PadOptions")
        return made
    value = np.array([-128], np.int8) if source.scale else np.array([fill], np.float32)
    quantization = Quantization(source.scale, source.zero) if source.scale else None
    constant = low.file.tensor(f"{node.name}_fill", (1,), value.dtype, data=value, quantization=quantization)
    low.file.add("PADV2", [source.at, margins, constant], [made.at], "PadV2Options")
    return made


def pool(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, most = low.last(ins[0]), node.kind == "MaxPool"
    if len(source.shape) != 4:
        raise node.refuse(f"its rank (={len(source.shape)}) must be 4")
    pads = node.settings.get("pads", ())
    if counts := not most and bool(node.settings.get("count_include_pad", 0)) and any(pads):
        source = _padded(low, node, source, ((pads[0], pads[2]), (pads[1], pads[3])), 0.0)
        node = replace(node, settings={**node.settings, "pads": (0, 0, 0, 0)})
    given = source
    source, options = _windows(low, node, source, node.settings["kernel_shape"], LOWEST if most else 0.0)
    if not most and not counts and source is not given:
        raise node.refuse("a mean that leaves out margins which LiteRT does not have by itself")
    _rescaling(low, node, source, end, "MAX_POOL_2D" if most else "AVERAGE_POOL_2D", "Pool2DOptions", [], **options)


def reduce(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, op = ins[0], {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}.get(node.kind, node.kind)
    rank = len(source.shape)
    axes: Any = range(2, rank) if node.kind.startswith("Global") else node.settings.get("axes", ())
    if not node.kind.startswith("Global") and len(node.inputs) > 1 and node.inputs[1]:
        axes = low.numbers(node, 1).reshape(-1)
    if not len(axes) and node.settings.get("noop_with_empty_axes", 0):
        raise node.refuse("it reduces nothing; leave it out")
    chosen = sorted(int(axis) % rank for axis in axes) or list(range(rank))
    kept = bool(node.settings.get("keepdims", 1))
    source = source if kept or {*chosen} >= {2, 3} or rank != 4 else low.plain(source)
    code = {"ReduceMean": "MEAN", "ReduceSum": "SUM", "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN"}[op]
    at = low.file.constant(f"{node.name}_axes", np.array(sorted(source.axis(axis) for axis in chosen), np.int32))
    last = source.last and kept
    if code in ("MEAN", "SUM"):  # which rescale integers themselves
        low.file.add(code, [source.at, at], [low.output(node, end, last=last).at], "ReducerOptions", keepDims=kept)
    else:
        _rescaling(low, node, source, end, code, "ReducerOptions", [at], last=last, keepDims=kept)


def _rescaling(
    low: Lowering, node: Node, source: Value, end: End, code: str, kind: str, more: list[int], *, last: bool = True, **options: Any
) -> None:
    """An operator that gives integers of the scale that it reads, and those of the scale that is wanted."""
    if not end.scale or (np.float32(end.scale), end.zero) == (np.float32(source.scale), source.zero):
        low.file.add(code, [source.at, *more], [low.output(node, end, last=last).at], kind, **options)
        return
    made = low.temporary(f"{node.name}_plain", source, shape=low.graph.shapes[node.outputs[0]], last=last)
    low.file.add(code, [source.at, *more], [made.at], kind, **options)
    low.file.add("QUANTIZE", [made.at], [low.output(node, end, last=last).at], "QuantizeOptions")


def fits(low: Lowering, node: Node, ins: list[Value], end: End) -> str:
    """Nothing is in the way."""
    return ""


LAYERS: dict[str, tuple[Lower, Unfit | None, int]] = {  # how, what is in the way of int8, and how many inputs are no constants
    "Conv": (convolution, _unfit_weights, 1),
    "Gemm": (matrix, _unfit_weights, 1),
    "MatMul": (matrix, _unfit_weights, 1),
    **dict.fromkeys(("MaxPool", "AveragePool"), (pool, fits, 1)),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"), (reduce, fits, 1)),
    **dict.fromkeys(("ReduceSum", "ReduceMin"), (reduce, None, 1)),
}
