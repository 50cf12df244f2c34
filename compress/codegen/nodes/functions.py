"""Nodes that compute every number for itself: activations, sums and products that broadcast, and the steps between int8 and float32."""

from collections.abc import Callable

import numpy as np

from ..calls import Contract
from ..expressions import Expr, constant, function, number
from ..read import Node
from .lowering import Lowering

Lower = Callable[[Lowering, Node], None]


def bounds(lowering: Lowering, node: Node, low: float, high: float) -> None:
    """Clip, Relu and Relu6."""
    call = lowering.alone(node, Contract)
    if call is not None and call.quantize is None and call.low == -np.inf and call.high == np.inf and low <= high:
        call.low, call.high = low, high
        lowering.values[node.outputs[0]] = lowering.values[node.inputs[0]]
        return

    def change(x: Expr) -> Expr:
        x = lowering.pointwise(node, "max", x, number(low)) if low > -np.inf else x
        return lowering.pointwise(node, "min", x, number(high)) if high < np.inf else x

    if not lowering.after(node, change):
        lowering.result(node, change(lowering.get(node)))


def unary(lowering: Lowering, node: Node, change: Callable[[Expr], Expr]) -> None:
    if not lowering.after(node, change):
        lowering.result(node, change(lowering.operand(lowering.get(node), lowering.shape(node), f"{node.name}_in")))


def fold(lowering: Lowering, node: Node, op: str) -> None:
    """A function of two, over all inputs."""
    source = lowering.get(node)
    for place in range(1, len(node.inputs)):
        source = lowering.pointwise(node, op, source, lowering.get(node, place))
    lowering.result(node, source)


def quantize(lowering: Lowering, node: Node) -> None:
    scale, zero, _ = lowering.parameters(node)
    call = lowering.alone(node, Contract)
    if call is not None and call.quantize is None and call.scale is not None:
        call.quantize, call.writes[0].dtype = (scale, zero), "u8"
        lowering.values[node.outputs[0]] = lowering.values[node.inputs[0]]
    elif not lowering.after(node, lambda x: function("quantize", x, numbers=(scale, zero))):
        lowering.result(node, lowering.pointwise(node, "quantize", lowering.get(node), numbers=(scale, zero)))


def dequantize(lowering: Lowering, node: Node) -> None:
    scale, zero, _ = lowering.parameters(node)
    source = lowering.get(node)
    if source.op == "reshape":
        lowering.values[node.outputs[0]] = function("dequantize", source, numbers=(scale, zero))
    else:
        lowering.values[node.outputs[0]] = Expr("dequantize", source.shape, (source,), (scale, zero))


def normalise(lowering: Lowering, node: Node) -> None:
    if node.settings.get("training_mode", 0):
        raise node.refuse("training_mode (=1) must be 0")
    gain, shift, mean, variance = (lowering.numbers(node, place, "its numbers") for place in (1, 2, 3, 4))
    factor = gain / np.sqrt(variance + np.float32(node.settings.get("epsilon", 1e-5)))
    source = lowering.get(node)
    along = (-1, *[1] * (len(source.shape) - 2))
    scaled = lowering.pointwise(node, "mul", source, constant(factor.reshape(along), f"{node.name}_factor"))
    lowering.result(node, function("add", scaled, constant((shift - mean * factor).reshape(along), f"{node.name}_shift")))


def same(lowering: Lowering, node: Node) -> None:
    if len(node.inputs) > 2 and node.inputs[2] and np.any(lowering.numbers(node, 2, "training_mode")):
        raise node.refuse("training_mode must be false")
    types = [lowering.graph.types[name] for name in (node.inputs[0], node.outputs[0])]
    if types[1] != np.float32 and types[0] != types[1]:
        raise node.refuse(f"from {types[0]} to {types[1]}")
    lowering.values[node.outputs[0]] = lowering.get(node)


def _activation(build: Callable[[Node, Expr], Expr]) -> Callable[[Lowering, Node], None]:
    return lambda lowering, node: unary(lowering, node, lambda x: build(node, x))


def _hard(node: Node, x: Expr) -> Expr:
    alpha, beta = node.settings.get("alpha", 0.2), node.settings.get("beta", 0.5)
    return function("max", function("min", function("add", function("mul", x, number(alpha)), number(beta)), number(1)), number(0))


def _hard_swish(node: Node, x: Expr) -> Expr:
    sixth = function("add", function("mul", x, number(1 / 6)), number(0.5))
    return function("mul", x, function("max", function("min", sixth, number(1)), number(0)))


def _gelu(node: Node, x: Expr) -> Expr:
    if node.settings.get("approximate", "none") == "tanh":
        cube = function("mul", function("mul", function("mul", x, x), x), number(0.044715))
        inner = function("tanh", function("mul", function("add", x, cube), number(0.7978845608)))
    else:
        inner = function("erf", function("mul", x, number(0.70710678)))
    return function("mul", function("mul", x, number(0.5)), function("add", inner, number(1)))


def _leaky(node: Node, x: Expr) -> Expr:
    return function(
        "add", function("max", x, number(0)), function("mul", function("min", x, number(0)), number(node.settings.get("alpha", 0.01)))
    )


def _elu(node: Node, x: Expr) -> Expr:
    below = function("sub", function("exp", function("min", x, number(0))), number(1))
    return function("add", function("max", x, number(0)), function("mul", below, number(node.settings.get("alpha", 1.0))))


def _prelu(lowering: Lowering, node: Node) -> None:
    x, slope = lowering.operand(lowering.get(node), lowering.shape(node), node.name), lowering.get(node, 1)
    lowering.result(node, function("add", function("max", x, number(0)), function("mul", function("min", x, number(0)), slope)))


def _clip(lowering: Lowering, node: Node) -> None:
    low, high = (
        float(lowering.numbers(node, place, "its bounds").reshape(())) if len(node.inputs) > place and node.inputs[place] else default
        for place, default in ((1, node.settings.get("min", -np.inf)), (2, node.settings.get("max", np.inf)))
    )
    bounds(lowering, node, low, high)


def _one(op: str) -> Callable[[Lowering, Node], None]:
    return _activation(lambda node, x: function(op, x))


def _two(op: str) -> Callable[[Lowering, Node], None]:
    def several(lowering: Lowering, node: Node) -> None:
        fold(lowering, node, op)

    return several


def relu(lowering: Lowering, node: Node) -> None:
    """Nothing below zero."""
    bounds(lowering, node, 0.0, np.inf)


FUNCTIONS: dict[str, Lower] = {
    **{name: _one(name.lower()) for name in ("Exp", "Sigmoid", "Tanh", "Erf", "Sqrt", "Abs", "Neg")},
    **{name: _two(name.lower()) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    "Relu": relu,
    "Clip": _clip,
    "HardSigmoid": _activation(_hard),
    "HardSwish": _activation(_hard_swish),
    "Gelu": _activation(_gelu),
    "LeakyRelu": _activation(_leaky),
    "Elu": _activation(_elu),
    "PRelu": _prelu,
    "BatchNormalization": normalise,
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    **dict.fromkeys(("Cast", "Identity", "Dropout"), same),
}
