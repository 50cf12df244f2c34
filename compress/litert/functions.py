"""Nodes that compute every number for itself, softmax, and the steps between integers and floats."""

import math
from typing import Any

import numpy as np

from ..codegen.read import Node
from .file import Quantization
from .layers import fits
from .lowering import ACTIVATIONS, LAST, End, Lower, Lowering, Unfit, Value

SUMS, PRODUCTS = (2.0**-10, 2.0**8), (2.0**-16, 2.0**8)  # between which XNNPACK rescales
FIXED = {"Sigmoid": (1 / 256, -128), "Tanh": (1 / 128, 0), "Softmax": (1 / 256, -128)}  # scale and zero point of what LiteRT's kernels give


def unary(code: str, kind: str = "", **options: Any) -> Lower:
    """One operator; ``kind`` of its options."""

    def lower(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
        low.file.add(code, [ins[0].at], [low.output(node, end, last=ins[0].last).at], kind, **options)

    return lower


def scalar(low: Lowering, value: float) -> int:
    """A constant of one number."""
    return low.file.constant(f"number_{len(low.file.tensors)}", np.array([value], np.float32))


def steps(low: Lowering, node: Node, source: Value, *parts: tuple[str, float]) -> None:
    """Operators on a map and a number, one after the other: ``("MUL", 2.0), ("ADD", 1.0)`` is 2 x + 1."""
    end = End(node.outputs[0])
    for place, (code, number) in enumerate(parts, 1):
        made = low.output(node, end, last=source.last) if place == len(parts) else low.temporary(f"{node.name}_{place}", source)
        low.file.add(code, [source.at, scalar(low, number)], [made.at], *_kind(code))
        source = made


def _kind(code: str) -> tuple[str]:
    return ("MaximumMinimumOptions",) if code in ("MAXIMUM", "MINIMUM") else (f"{code.title()}Options",)


def clip(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    known = low.activation(node)
    if known:
        low.file.add(known, [ins[0].at], [low.output(node, end, last=ins[0].last).at])
        return
    least, most = low.limits(node)
    parts = [(code, one) for code, one in (("MAXIMUM", least), ("MINIMUM", most)) if one is not None and np.isfinite(one)]
    steps(low, node, ins[0], *(parts or [("MUL", 1.0)]))


def hard_sigmoid(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    alpha, beta = node.settings.get("alpha", 0.2), node.settings.get("beta", 0.5)
    steps(low, node, ins[0], ("MUL", alpha), ("ADD", beta), ("MAXIMUM", 0.0), ("MINIMUM", 1.0))


def leaky(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    made = low.output(node, end, last=ins[0].last)
    low.file.add("LEAKY_RELU", [ins[0].at], [made.at], "LeakyReluOptions", alpha=node.settings.get("alpha", 0.01))


def elu(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    if node.settings.get("alpha", 1.0) != 1:
        raise node.refuse("alpha must be 1")
    unary("ELU")(low, node, ins, end)


def gelu(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    unary("GELU", "GeluOptions", approximate=node.settings.get("approximate", "none") == "tanh")(low, node, ins, end)


def erf(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    """Within 5e-7: 1 - (a1 t + ... + a5 t^5) exp(-x^2) for t = 1 / (1 + p |x|), with the sign of x.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    x, count = ins[0], 0

    def made(code: str, *inputs: Value | float) -> Value:
        nonlocal count
        count += 1
        result = low.temporary(f"{node.name}_{count}", x)
        numbers = [one.at if isinstance(one, Value) else scalar(low, one) for one in inputs]
        low.file.add(code, numbers, [result.at], *(_kind(code) if code in ("MUL", "ADD", "SUB", "DIV") else ()))
        return result

    t = made("DIV", 1.0, made("ADD", made("MUL", made("ABS", x), 0.3275911), 1.0))
    power = made("MUL", t, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        power = made("MUL", made("ADD", power, factor), t)
    rest = made("SUB", 1.0, made("MUL", power, made("EXP", made("NEG", made("MUL", x, x)))))
    low.file.add("MUL", [rest.at, made("SIGN", x).at], [low.output(node, end, last=x.last).at], "MulOptions")


def prelu(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    slope = low.numbers(node, 1)
    if len(ins[0].shape) != 4 or slope.size not in (1, ins[0].shape[1]):
        raise node.refuse("slopes must be one for each channel of a map")
    source = low.last(ins[0])
    slopes = low.file.constant(node.inputs[1], np.broadcast_to(slope.reshape(-1).astype(np.float32), (1, 1, source.shape[1])))
    low.file.add("PRELU", [source.at, slopes], [low.output(node, end, last=True).at])


def power(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    exponent = low.numbers(node, 1)
    if exponent.size != 1:
        raise node.refuse("the exponent must be one number")
    made = low.output(node, end, last=ins[0].last)
    low.file.add("POW", [ins[0].at, scalar(low, float(exponent.reshape(())))], [made.at], "PowOptions")


def fixed(code: str, kind: str = "", **options: Any) -> Lower:
    """One operator whose integers are of one scale, and then of that which is wanted."""

    def lower(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
        source, (scale, zero) = ins[0], FIXED[node.kind]
        if not end.scale or (np.float32(end.scale), end.zero) == (np.float32(scale), zero):
            low.file.add(code, [source.at], [low.output(node, end, last=source.last).at], kind, **options)
            return
        made = low.temporary(f"{node.name}_fixed", Value(source.at, source.shape, source.last, scale, zero))
        low.file.add(code, [source.at], [made.at], kind, **options)
        low.file.add("QUANTIZE", [made.at], [low.output(node, end, last=source.last).at], "QuantizeOptions")

    return lower


def softmax(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, rank = ins[0], len(ins[0].shape)
    axis = node.settings.get("axis", -1 if node.opset >= 13 else 1) % rank
    if node.opset < 13 and math.prod(ins[0].shape[axis + 1 :]) > 1:
        raise node.refuse("before operator set 13 it goes over several axes; convert the graph to a newer one")
    source = low.last(source) if rank == 4 and axis == 1 else low.plain(source)
    if source.axis(axis) != rank - 1:
        raise node.refuse(f"axis (={axis}) must be the last, or the channels of a map")
    fixed("SOFTMAX", "SoftmaxOptions", beta=1.0)(low, node, [source], end)


def binary(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    """Sums, products and the like of two that broadcast, or of several."""
    code = {"Add": "ADD", "Sum": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Max": "MAXIMUM", "Min": "MINIMUM"}[node.kind]
    if len(node.inputs) == 1:
        raise node.refuse("it has one input; leave it out")
    computed = [one for name, one in zip(node.inputs, ins, strict=True) if not low.is_constant(name)]
    shape = low.graph.shapes[node.outputs[0]]
    last = len(shape) == 4 and any(one.last for one in computed) and all(len(one.shape) in (0, 4) for one in computed)
    sides = [_side(low, node, at, one, last, len(shape)) for at, one in enumerate(ins)]
    options = {} if code in ("MAXIMUM", "MINIMUM") else {"fusedActivationFunction": ACTIVATIONS[end.activation]}
    source = sides[0]
    for place, other in enumerate(sides[1:], 2):
        so_far = tuple(np.broadcast_shapes(source.shape, other.shape))
        made = (
            low.output(node, end, last=last)
            if place == len(sides)
            else low.temporary(f"{node.name}_{place}", source, last=last, shape=so_far)
        )
        low.file.add(code, [source.at, other.at], [made.at], *_kind(code), **options)
        source = made


def _side(low: Lowering, node: Node, at: int, value: Value, last: bool, rank: int) -> Value:
    name = node.inputs[at]
    if not low.is_constant(name):
        return low.last(value) if last else low.plain(value)
    if not last or len(value.shape) == 0 or (np.prod(value.shape) == 1 and len(value.shape) <= 1):
        return value
    numbers = np.asarray(low.numbers(node, at), np.float32).reshape((1,) * (rank - len(value.shape)) + value.shape).transpose(LAST)
    return Value(low.file.constant(f"{name}_last", numbers), tuple(numbers.transpose(0, 3, 1, 2).shape), last=True)


def _unfit_binary(low: Lowering, node: Node, ins: list[Value], end: End) -> str:
    if node.kind not in ("Add", "Sub", "Mul") or len(ins) != 2 or any(map(low.is_constant, node.inputs)):
        return "it is no sum or product of two computed tensors"
    one, other = (np.float32(side.scale) for side in ins)
    ratios = [one * other / np.float32(end.scale)] if node.kind == "Mul" else [one / np.float32(end.scale), other / np.float32(end.scale)]
    least, most = PRODUCTS if node.kind == "Mul" else SUMS
    odd = [ratio for ratio in ratios if not least <= ratio < most]
    return f"what it reads would be multiplied by {odd[0]:.3g}, and XNNPACK takes {least:.3g} to {most:g}" if odd else ""


def _unfit_same(low: Lowering, node: Node, ins: list[Value], end: End) -> str:
    return "" if low.activation(node) or node.kind == "LeakyRelu" else "it ends at other numbers than an activation of LiteRT"


def normalise(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    if node.settings.get("training_mode", 0):
        raise node.refuse("training_mode (=1) must be 0")
    gain, shift, mean, variance = (low.numbers(node, at).astype(np.float32) for at in (1, 2, 3, 4))
    factor = gain / np.sqrt(variance + np.float32(node.settings.get("epsilon", 1e-5)))
    source = low.last(ins[0])
    if not source.last and len(source.shape) != 2:
        raise node.refuse(f"its rank (={len(source.shape)}) must be 2 or 4")
    scaled = low.temporary(f"{node.name}_scaled", source)
    low.file.add("MUL", [source.at, low.file.constant(f"{node.name}_factor", factor)], [scaled.at], "MulOptions")
    offset = low.file.constant(f"{node.name}_offset", shift - mean * factor)
    low.file.add("ADD", [scaled.at, offset], [low.output(node, end, last=source.last).at], "AddOptions")


def same(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    """Cast, Identity and Dropout."""
    if len(node.inputs) > 2 and node.inputs[2] and np.any(low.numbers(node, 2)):
        raise node.refuse("training_mode must be false")
    source, wanted = node.inputs[0], low.graph.types.get(node.outputs[0], np.dtype(np.float32))
    given = low.graph.types.get(source, np.dtype(np.float32))
    if given == wanted:
        low.values[node.outputs[0]] = ins[0]
    elif given == np.uint8 and wanted == np.float32:
        made = low.output(node, end, last=ins[0].last)
        kinds = low.file.schema.TensorType
        low.file.add("CAST", [ins[0].at], [made.at], "CastOptions", inDataType=kinds.UINT8, outDataType=kinds.FLOAT32)
    else:
        raise node.refuse(f"from {given} to {wanted}")


def quantize(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    scale, zero = low.parameters(node)
    source = ins[0]
    at = low.file.tensor(node.outputs[0], source.stored, np.int8, quantization=Quantization(scale, zero))
    low.file.add("QUANTIZE", [source.at], [at], "QuantizeOptions")
    low.integers[node.outputs[0]] = Value(at, source.shape, source.last, scale, zero)


def dequantize(low: Lowering, node: Node) -> None:
    """Nothing is computed until somebody wants floats."""
    source, name = node.inputs[0], node.outputs[0]
    if source not in low.integers:  # the image itself
        image, (scale, zero) = low.values[source], low.parameters(node)
        low.file.quantize(image.at, Quantization(scale, zero + 128))
        at = low.file.tensor(f"{source}_int8", image.stored, np.int8, quantization=Quantization(scale, zero))
        low.file.add("QUANTIZE", [image.at], [at], "QuantizeOptions")
        low.integers[source] = Value(at, image.shape, image.last, scale, zero)
    low.integers[name] = low.integers[source]
    if source in low.flattened:
        low.flattened[name] = low.flattened[source]


FUNCTIONS: dict[str, tuple[Lower, Unfit | None, int]] = {
    **{name: (unary(code), None, 1) for name, code in (("Exp", "EXP"), ("Sqrt", "SQRT"), ("Abs", "ABS"), ("Neg", "NEG"))},
    "Sigmoid": (fixed("LOGISTIC"), fits, 1),
    "Tanh": (fixed("TANH"), fits, 1),
    "Softmax": (softmax, fits, 1),
    **dict.fromkeys(("Relu", "Clip"), (clip, _unfit_same, 1)),
    "LeakyRelu": (leaky, fits, 1),
    "HardSwish": (unary("HARD_SWISH", "HardSwishOptions"), None, 1),
    "HardSigmoid": (hard_sigmoid, None, 1),
    "Elu": (elu, None, 1),
    "Gelu": (gelu, None, 1),
    "Erf": (erf, None, 1),
    "PRelu": (prelu, None, 1),
    "Pow": (power, None, 1),
    **dict.fromkeys(("Add", "Sum", "Sub", "Mul", "Div", "Max", "Min"), (binary, _unfit_binary, 99)),
    "BatchNormalization": (normalise, None, 1),
    **dict.fromkeys(("Cast", "Identity", "Dropout"), (same, None, 1)),
    "QuantizeLinear": (quantize, None, 1),
}
