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
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx

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

    def output_range(self) -> np.ndarray:
        return np.abs(self.channels).max(axis=(2, 3)).reshape(-1)

    def input_range(self, channels: int) -> np.ndarray:
        """The largest weight on each of the channels; behind a flattening each of them stands for several inputs in a row."""
        return np.abs(self.channels).max(axis=(1, 3)).reshape(channels, -1).max(axis=1)

    def divide_outputs(self, by: np.ndarray) -> None:
        self.channels /= by.reshape(*self.channels.shape[:2], 1, 1)
        if self.bias is not None:
            self.bias /= by

    def multiply_inputs(self, by: np.ndarray) -> None:
        groups, _, each, _ = self.channels.shape
        self.channels *= np.repeat(by, self.inputs // len(by)).reshape(groups, 1, each, 1)


@dataclass(kw_only=True, eq=False)
class _Graph:
    """What is asked of a graph again and again: who reads a tensor, its shape, the constants."""

    constants: dict[str, onnx.TensorProto]
    readers: Counter[str]  # how often a tensor is read, inside branches and as an output of the graph too
    nodes: dict[str, onnx.NodeProto]
    next: dict[str, onnx.NodeProto]  # that reads a tensor as its first input
    shapes: dict[str, list[int]]  # 0 where unknown


def equalise(model: onnx.ModelProto) -> int:
    """Equalise every pair of layers, in place; the answers stay the same up to float32 rounding.

    Args:
        model: a float32 graph with its batch norm folded.

    Returns:
        The number of pairs.
    """
    graph = _graph(model)
    layers = {node.name: layer for node in model.graph.node if (layer := _layer(node, graph)) is not None}
    pairs = []
    for name, first in layers.items():
        second, each = _next_layer(name, graph)
        if second in layers and layers[second].inputs == each * first.outputs:
            pairs.append((first, layers[second]))
    for _ in range(_ROUNDS):
        changes = [_equalise_pair(*pair) for pair in pairs]
        if max(changes, default=0.0) < _CHANGE:
            break
    for layer in {id(layer): layer for pair in pairs for layer in pair}.values():
        for name, values in zip(layer.names, (layer.weight, layer.bias), strict=False):
            assert values is not None
            graph.constants[name].CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    return len(pairs)


def _equalise_pair(first: _Layer, second: _Layer) -> float:
    """Equalise one pair; how far the furthest scale was from 1, as the absolute natural logarithm."""
    one, two = first.output_range(), second.input_range(first.outputs)
    alive = (one > _DEAD * one.max()) & (two > _DEAD * two.max())
    scale = np.ones_like(one)
    scale[alive] = np.sqrt(one[alive] / two[alive])
    first.divide_outputs(scale)
    second.multiply_inputs(scale)
    return float(np.abs(np.log(scale)).max())


def _graph(model: onnx.ModelProto) -> _Graph:
    readers: Counter[str] = Counter(value.name for value in model.graph.output)
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            readers.update(node.input)
            graphs.extend(entry.g for entry in node.attribute if entry.HasField("g"))
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return _Graph(
        constants={weight.name: weight for weight in model.graph.initializer},
        readers=readers,
        nodes={node.name: node for node in model.graph.node},
        next={node.input[0]: node for node in model.graph.node if node.input},
        shapes={value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred.value_info},
    )


def _next_layer(name: str, graph: _Graph) -> tuple[str | None, int]:
    """The layer behind nothing but nodes that commute with a scale per channel, and how many of its inputs are one channel."""
    node, each = graph.nodes[name], 1
    while len(node.output) == 1 and graph.readers[node.output[0]] == 1 and node.output[0] in graph.next:
        tensor, node = node.output[0], graph.next[node.output[0]]
        shape = graph.shapes.get(tensor, [])
        if node.op_type in _LAYERS:
            return node.name, each
        if node.op_type in _OVER_SPACE:
            axes = {axis % len(shape) for axis in _axes(node, graph)} if shape else set()
            if not axes or axes & {0, 1}:
                break
        elif node.op_type in _FLATTEN:
            each *= math.prod(shape[2:])
            if 0 in shape[1:] or graph.shapes.get(node.output[0], [])[1:] != [math.prod(shape[1:])]:
                break  # something other than (B, C, H, W) to (B, C * H * W)
        elif node.op_type not in _COMMUTE:
            break
    return None, 0


def _axes(node: onnx.NodeProto, graph: _Graph) -> list[int]:
    if len(node.input) > 1:
        return onnx.numpy_helper.to_array(graph.constants[node.input[1]]).tolist() if node.input[1] in graph.constants else []
    return [axis for entry in node.attribute if entry.name == "axes" for axis in entry.ints]


def _layer(node: onnx.NodeProto, graph: _Graph) -> _Layer | None:
    """The weights of a Conv or Gemm; None for other nodes, and where they are not constants of its own."""
    if node.op_type not in _LAYERS:
        return None
    settings = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    names = tuple(name for name in node.input[1:] if name)
    constants = [graph.constants.get(name) for name in names]
    own = all(found is not None and found.data_type == onnx.TensorProto.FLOAT and graph.readers[found.name] == 1 for found in constants)
    if not own or settings.get("transA", 0):
        return None
    weight, *biases = [onnx.numpy_helper.to_array(found).astype(np.float64) for found in constants if found is not None]
    weight = np.ascontiguousarray(weight)
    if node.op_type == "Conv":
        groups = settings.get("group", 1)
        channels = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    else:
        channels = (weight if settings.get("transB", 0) else weight.T)[None, :, :, None]
    layer = _Layer(weight=weight, channels=channels, bias=biases[0] if biases else None, names=names)
    return layer if layer.bias is None or layer.bias.shape == (layer.outputs,) else None
