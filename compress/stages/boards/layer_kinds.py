"""Kinds of layers whose time a latency table knows: the shapes that are measured, in which graphs, and what the time grows with.

==========  ==========================================================================================================
conv        k x k, k above 1, groups too
pointwise   1 x 1
depthwise   one channel in, one out
matmul      a linear layer, or a product of two activations
activation  Sigmoid, Tanh, Softmax and other transcendental functions of each value
arithmetic  what adds, multiplies, selects or moves each value
pool        the largest or the mean of a window
==========  ==========================================================================================================

A graph has the same layer ``count`` times in a row, each with weights of its own, so that the time of one is the difference of two graphs
over that of their counts: what a call costs, what goes before and what comes after are in both. A layer that changes the number of channels
goes there and back. Wherever the time matters here it is one image, one thread, float32, ONNX Runtime.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Kind = Literal["conv", "pointwise", "depthwise", "matmul", "activation", "arithmetic", "pool"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DIMENSIONS: Mapping[Kind, int] = dict.fromkeys(KINDS, 1) | {"conv": 4, "pointwise": 4, "depthwise": 4, "matmul": 2}  # of their weights
SHAPES = 20  # of each kind that are measured
MOST_MACS, MOST_ELEMENTS = 2e7, 1e6  # of one layer
LONG = range(2, 9)  # how many layers more the longer graph has, as many as cost MOST_MACS
LANES = 8  # channels are computed in blocks of so many
IMAGE = (1, 8, 8)  # that the graphs take, so that all are fed the same


@dataclass(frozen=True, kw_only=True)
class Layer:
    """``weight``: the shape of its weight, ``(out, in)`` or ``(out, in / groups, k, k)``; of a kind without, ``(channels,)``.
    ``positions``: places that each output channel has a value at."""

    kind: Kind
    weight: tuple[int, ...]
    positions: int

    @property
    def macs(self) -> int:
        return math.prod(self.weight) * self.positions

    @property
    def back(self) -> "Layer | None":
        """The layer from its outputs to its inputs again; None where they are as many."""
        if self.kind not in ("conv", "pointwise", "matmul"):
            return None
        out, into, *window = self.weight
        return Layer(kind=self.kind, weight=(into, out, *window), positions=self.positions)


def weighted(shape: tuple[int, ...], positions: int) -> Layer:
    """The layer of a weight of this shape."""
    if len(shape) == 2:
        return Layer(kind="matmul", weight=shape, positions=positions)
    if shape[1] == 1 < shape[0]:
        return Layer(kind="depthwise", weight=shape, positions=positions)
    return Layer(kind="pointwise" if math.prod(shape[2:]) == 1 else "conv", weight=shape, positions=positions)


def features(layer: Layer) -> NDArray[np.float64]:
    """What its time is a sum of, each times a figure of its kind: 1, and multiplications in whole blocks, weights, outputs, inputs."""
    outputs = layer.weight[0] * layer.positions
    if len(layer.weight) == 1:
        return np.array([1.0, 0.0, 0.0, outputs, 0.0])
    blocks = [math.ceil(size / LANES) * LANES for size in layer.weight[: 1 if layer.kind == "depthwise" else 2]]
    macs = math.prod(blocks) * math.prod(layer.weight[len(blocks) :]) * layer.positions
    return np.array([1.0, macs, math.prod(layer.weight), outputs, layer.weight[1] * layer.positions], float)


def sampled(seed: int = 0) -> list[Layer]:
    """:data:`SHAPES` of each kind, spread over what networks have: 4 to 512 channels, 1 x 1 to 56 x 56."""
    generator = np.random.default_rng(seed)
    return [layer for kind in KINDS for layer in _sampled(kind, generator)]


def _sampled(kind: Kind, generator: np.random.Generator) -> Iterator[Layer]:
    found = 0
    while found < SHAPES:
        channels = [max(4, round(2 ** generator.uniform(2, 9) / 4) * 4) for _ in range(2)]
        side, window = round(2 ** generator.uniform(0, 5.8)), int(generator.choice([3, 5]))
        positions = int(generator.choice([1, 1, 49, 196])) if kind == "matmul" else side * side
        weights: Mapping[Kind, tuple[int, ...]] = {
            "conv": (*channels, window, window),
            "pointwise": (*channels, 1, 1),
            "depthwise": (channels[0], 1, window, window),
            "matmul": (channels[0], channels[1]),
        }
        layer = Layer(kind=kind, weight=weights.get(kind, (channels[0],)), positions=positions)
        if layer.macs <= MOST_MACS and layer.weight[0] * positions <= MOST_ELEMENTS:
            found += 1
            yield layer


def longer(layer: Layer) -> int:
    """How many layers more the longer of its two graphs has."""
    return min(max(int(MOST_MACS / layer.macs), LONG[0]), LONG[-1])


def chain(layer: Layer, count: int) -> "onnx.ModelProto":
    """The layer ``count`` times in a row, there and back where it changes the number of channels; float32 ``(1, *IMAGE)`` to one number."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, constants, number = list[onnx.NodeProto](), list[onnx.TensorProto](), 0

    def constant(shape: tuple[int, ...], scale: float) -> str:
        name = f"c{len(constants)}"
        values = (scale * generator.standard_normal(shape)).astype(np.float32)
        constants.append(numpy_helper.from_array(values, name))
        return name

    def add(kind: str, *inputs: str, **settings: Any) -> str:
        nonlocal number
        number += 1
        nodes.append(helper.make_node(kind, [*inputs], [f"t{number}"], **settings))
        return f"t{number}"

    flat, side = layer.kind == "matmul", math.isqrt(layer.positions)
    entry = layer.weight[1] if flat or layer.kind in ("conv", "pointwise") else layer.weight[0]
    mean = add("ReduceMean", "image", axes=[1, 2, 3], keepdims=1)
    if flat:
        mean = add("Flatten", mean)
    value = add("Add", constant((layer.positions, entry) if flat else (1, entry, side, side), 1.0), mean)
    for _ in range(count):
        for one in filter(None, (layer, layer.back)):
            if one.kind == "matmul":
                value = add("MatMul", value, constant(one.weight[::-1], one.weight[1] ** -0.5))
            elif len(one.weight) == 4:
                window = one.weight[2]
                groups = {"group": one.weight[0]} if one.kind == "depthwise" else {}
                weight = constant(one.weight, math.prod(one.weight[1:]) ** -0.5)
                value = add("Conv", value, weight, kernel_shape=[window] * 2, pads=[window // 2] * 4, **groups)
            elif one.kind == "pool":
                value = add("MaxPool", value, kernel_shape=[3, 3], pads=[1] * 4)
            else:
                value = add("Sigmoid", value) if one.kind == "activation" else add("Add", value, constant((1, entry, side, side), 1.0))
    end = add("ReduceMean", value, keepdims=1)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *IMAGE])],
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1] * (2 if flat else 4))],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
