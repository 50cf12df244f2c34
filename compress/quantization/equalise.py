"""Cross-layer equalisation: the channels between two layers are scaled so that both layers' weights suit one scale per tensor.

By hand: a convolution whose two output channels have weights up to 100 and 1, then ReLU, then a convolution that reads the two with
weights up to 1 and 100. One int8 scale per tensor, 100 / 127, leaves three values to the small channel of each. Since
ReLU(s x) = s ReLU(x) for s > 0, channel i of the first may be divided by s_i and that of the second multiplied by it; with
s_i = sqrt(r1_i / r2_i) = 10 and 0.1 each channel of both has weights up to 10, and the network answers as before.

Takes pairs of Conv and Gemm, depthwise and grouped ones included, with nothing between them but ReLU, pooling and flattening; where a
layer stands in two pairs, the pairs are repeated until nothing changes any more. Leaves alone what does not commute with a positive
scale (Clip, Sigmoid, HardSwish), channels with next to no weights, tensors that somebody else reads too, and weights that several nodes
share.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from ..graphs.index import constant, index, is_a, only_reader, set_constants, settings, sizes

_LAYERS = ("Conv", "Gemm")
_COMMUTE = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_OVER_SPACE = ("ReduceMean", "ReduceMax")  # commute where they leave the channels alone
_FLATTEN = ("Flatten", "Reshape")
_ROUNDS, _CHANGE = 200, 1e-4  # the ranges of a long chain meet slowly; the largest relative change at which they have
# Of the largest channel: what is smaller has no say in a scale, and to make it larger would make its bias, and so the activations, huge.
_DEAD = 1e-6


@dataclass(kw_only=True, eq=False)
class _Layer:
    """``weight`` is float64 during the work; ``channels`` has (groups, outputs per group, inputs per group, the rest), a view of it."""

    weight: np.ndarray
    channels: np.ndarray
    bias: np.ndarray | None
    names: tuple[str, ...]  # of the initializers, weight first

    @property
    def outputs(self) -> int:
        return self.channels.shape[0] * self.channels.shape[1]

    @property
    def inputs(self) -> int:
        return self.channels.shape[0] * self.channels.shape[2]


def equalise(model: onnx.ModelProto) -> int:
    """Equalise every pair of layers of a float32 graph with its batch norm folded, in place; returns the number of pairs.

    The answers stay the same up to float32 rounding.
    """
    graph = index(onnx.shape_inference.infer_shapes(model))
    layers = {node: layer for node in graph if (layer := _layer(node)) is not None}
    pairs = []
    for node, first in layers.items():
        second, each = _next_layer(node)
        if second in layers and layers[second].inputs == each * first.outputs:
            pairs.append((first, layers[second]))
    for _ in range(_ROUNDS):
        changes = [_equalise_pair(*pair) for pair in pairs]
        if max(changes, default=0.0) < _CHANGE:
            break
    changed = {id(layer): layer for pair in pairs for layer in pair}.values()
    held = [pair for layer in changed for pair in zip(layer.names, (layer.weight, layer.bias), strict=False)]
    set_constants(model, {name: values for name, values in held if values is not None})
    return len(pairs)


def _equalise_pair(first: _Layer, second: _Layer) -> float:
    """Equalise one pair; how far the furthest scale was from 1, as the absolute natural logarithm."""
    one = np.abs(first.channels).max(axis=(2, 3)).reshape(-1)
    two = np.abs(second.channels).max(axis=(1, 3)).reshape(len(one), -1).max(axis=1)  # several inputs in a row where it was flattened
    alive = (one > _DEAD * one.max()) & (two > _DEAD * two.max())
    scale = np.ones_like(one)
    scale[alive] = np.sqrt(one[alive] / two[alive])
    first.channels /= scale.reshape(*first.channels.shape[:2], 1, 1)
    if first.bias is not None:
        first.bias /= scale
    groups, _, each, _ = second.channels.shape
    second.channels *= np.repeat(scale, second.inputs // len(scale)).reshape(groups, 1, each, 1)
    return float(np.abs(np.log(scale)).max())


def _next_layer(node: ir.Node) -> tuple[ir.Node | None, int]:
    """The layer behind nothing but nodes that commute with a scale per channel, and how many of its inputs are one channel."""
    graph, each = node.graph, 1
    while len(node.outputs) == 1 and (reader := only_reader(node.outputs[0])) is not None:
        [tensor], node = node.outputs, reader
        if node.inputs[0] is not tensor or node.graph is not graph:
            break
        shape = sizes(tensor)
        if is_a(node, *_LAYERS):
            return node, each
        if is_a(node, *_OVER_SPACE):
            axes = constant(node.inputs[1]) if len(node.inputs) > 1 else settings(node).get("axes")
            if axes is None or not shape or len(axes) == 0 or not {0, 1}.isdisjoint(axis % len(shape) for axis in axes):
                break
        elif is_a(node, *_FLATTEN):
            each *= math.prod(shape[2:])
            if 0 in shape[1:] or sizes(node.outputs[0])[1:] != (math.prod(shape[1:]),):
                break  # something other than (B, C, H, W) to (B, C * H * W)
        elif not is_a(node, *_COMMUTE):
            break
    return None, 0


def _layer(node: ir.Node) -> _Layer | None:
    """The weights of a Conv or Gemm; None for other nodes, and where they are not constants of its own."""
    values = [value for value in node.inputs[1:] if value is not None]
    own = all(value.const_value is not None and value.dtype == ir.DataType.FLOAT and only_reader(value) is node for value in values)
    if not is_a(node, *_LAYERS) or not own or settings(node).get("transA", 0):
        return None
    weight, *biases = [np.array(constant(value), np.float64) for value in values]
    if node.op_type == "Conv":
        groups = settings(node).get("group", 1)
        channels = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    else:
        channels = (weight if settings(node).get("transB", 0) else weight.T)[None, :, :, None]
    names = tuple(str(value.name) for value in values)
    layer = _Layer(weight=weight, channels=channels, bias=biases[0] if biases else None, names=names)
    return layer if layer.bias is None or layer.bias.shape == (layer.outputs,) else None
