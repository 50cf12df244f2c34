"""The ONNX operators of image classifiers as torch functions, whose gradients torch knows.

``make_function`` turns one node into a function of its tensors; what must be known beforehand (axes, shapes, bounds) is taken from the
graph's constants. Checked against ONNX Runtime, operator by operator.

Refuses: an operator that is not in ``OPERATORS``, settings that torch has no counterpart for (``auto_pad`` other than NOTSET and VALID,
negative steps of Slice, asymmetric pads of AveragePool, casts to anything but float32), and axes, shapes or bounds that are computed.

Source: https://onnx.ai/onnx/operators
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import CompressError
from ...graphs.index import constant, settings

Function = Callable[..., Any]  # of Tensors, to a Tensor, or to a tuple of them where the node has several outputs
INSTEAD = "fine-tune the float32 network, and quantize without fine-tuning after it"
VIEWS = ("Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
CHOOSING = ("Concat", "GlobalMaxPool", "MaxPool", "ReduceMax", "Relu", *VIEWS)  # every number of their output is one of their input, or 0


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One node: ``label`` for messages, its attributes by name, ``fixed``: its inputs behind the tensors (None where left out)."""

    label: str
    attributes: dict[str, Any]
    fixed: Sequence[np.ndarray | None]
    outputs: int

    def numbers(self, index: int, attribute: str) -> list[int] | None:
        """Whole numbers that are a fixed input, or an attribute in older opsets."""
        value = self.fixed[index] if index < len(self.fixed) else None
        return self.attributes.get(attribute) if value is None else [int(number) for number in value.ravel()]

    def refuse(self, what: str) -> CompressError:
        return CompressError(f"{self.label} {what}; {INSTEAD}")


def make_function(node: ir.Node) -> tuple[Function, list[str]]:
    """The torch function of a node, and the names of the tensors that it takes.

    Raises:
        CompressError: for what the module refuses.
    """
    label = label_of(node)
    if node.op_type not in OPERATORS or node.domain:
        raise CompressError(f"{label} is an operator that has no torch function here (known are {', '.join(sorted(OPERATORS))}); {INSTEAD}")
    make, tensors = OPERATORS[node.op_type]
    fixed = [constant(value) for value in node.inputs[tensors:]]
    if computed := [one for one, found in zip(node.inputs[tensors:], fixed, strict=True) if one is not None and found is None]:
        raise CompressError(
            f'{label} takes "{computed[0].name}" from the graph, but it must be constant; fold the constants of the graph first'
        )
    operation = Operation(label=label, attributes=settings(node), fixed=fixed, outputs=len(node.outputs))
    return make(operation), [str(value.name) for value in node.inputs[:tensors] if value is not None]


def label_of(node: ir.Node) -> str:
    return f'{node.op_type} "{node.name or node.outputs[0].name}"'


def _conv(operation: Operation) -> Function:
    attributes = operation.attributes
    before, padding = _padding(operation)
    stride, dilation = attributes.get("strides", 1), attributes.get("dilations", 1)
    groups = attributes.get("group", 1)

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        convolve: Function = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[weight.ndim]
        return convolve(functional.pad(x, before) if before else x, weight, bias, stride, padding, dilation, groups)

    return conv


def _padding(operation: Operation) -> tuple[list[int], Any]:
    """What must be put around the tensor beforehand (as ``functional.pad`` takes it), and what torch's operator pads by itself."""
    pads = list(operation.attributes.get("pads", ()))
    automatic = operation.attributes.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        raise operation.refuse(f'has auto_pad (="{automatic}"), but must have its pads as numbers')
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if automatic == "VALID" or begin == end:
        return [], begin if begin and automatic != "VALID" else 0
    return [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair], 0


def _max_pool(operation: Operation) -> Function:
    attributes = operation.attributes
    before, padding = _padding(operation)
    kernel = attributes["kernel_shape"]
    stride, dilation, ceil = attributes.get("strides", 1), attributes.get("dilations", 1), bool(attributes.get("ceil_mode", 0))

    def pool(x: Tensor) -> Tensor:
        x = functional.pad(x, before, value=-math.inf) if before else x
        return functional.max_pool2d(x, kernel, stride, padding, dilation, ceil)

    return pool


def _average_pool(operation: Operation) -> Function:
    attributes = operation.attributes
    before, padding = _padding(operation)
    if before or set(attributes.get("dilations", ())) - {1}:
        raise operation.refuse("is dilated or pads one side more than the other, which torch cannot")
    kernel, stride = attributes["kernel_shape"], attributes.get("strides", 1)
    ceil, count = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
    return lambda x: functional.avg_pool2d(x, kernel, stride, padding, ceil, count)


def _reduce(function: Function) -> Callable[[Operation], Function]:
    def make(operation: Operation) -> Function:
        axes, keep = operation.numbers(0, "axes") or (), bool(operation.attributes.get("keepdims", 1))
        if not axes and operation.attributes.get("noop_with_empty_axes", 0):
            return lambda x: x
        return lambda x: function(x, axes, keep)  # no axes are all axes, in torch too

    return make


def _gemm(operation: Operation) -> Function:
    attributes = operation.attributes
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    turn_a, turn_b = attributes.get("transA", 0), attributes.get("transB", 0)

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.T if turn_a else a, b.T if turn_b else b
        return alpha * (a @ b) if c is None else torch.addmm(c, a, b, alpha=alpha, beta=beta)

    return gemm


def _clip(operation: Operation) -> Function:
    low, high = (None if value is None else float(value) for value in (*operation.fixed, None, None)[:2])
    if low is None and high is None:
        return lambda x: x
    return lambda x: torch.clamp(x, low, high)


def _hard_sigmoid(operation: Operation) -> Function:
    alpha, beta = operation.attributes.get("alpha", 0.2), operation.attributes.get("beta", 0.5)
    return lambda x: torch.clamp(x * alpha + beta, 0, 1)


def _cast(operation: Operation) -> Function:
    if operation.attributes["to"] != onnx.TensorProto.FLOAT:
        raise operation.refuse(f"casts to {onnx.TensorProto.DataType.Name(operation.attributes['to'])}, but must cast to FLOAT")
    return lambda x: x.float()


def _reshape(operation: Operation) -> Function:
    shape = operation.numbers(0, "shape") or []
    if operation.attributes.get("allowzero", 0):
        return lambda x: x.reshape(shape)
    return lambda x: x.reshape([size or x.shape[axis] for axis, size in enumerate(shape)])


def _flatten(operation: Operation) -> Function:
    axis = operation.attributes.get("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(operation: Operation) -> Function:
    order = operation.attributes.get("perm")
    return lambda x: x.permute(order or tuple(reversed(range(x.ndim))))


def _squeeze(operation: Operation) -> Function:
    axes = operation.numbers(0, "axes")
    return lambda x: x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(operation: Operation) -> Function:
    axes = operation.numbers(0, "axes") or []

    def unsqueeze(x: Tensor) -> Tensor:
        for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return unsqueeze


def _slice(operation: Operation) -> Function:
    starts, ends = (operation.numbers(index, "") or [] for index in (0, 1))
    axes, steps = operation.numbers(2, "") or list(range(len(starts))), operation.numbers(3, "") or [1] * len(starts)
    if min(steps) < 1:
        raise operation.refuse(f"has steps (={steps}), but torch needs them positive")

    def cut(x: Tensor) -> Tensor:
        index = [slice(None)] * x.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            index[axis] = slice(start, end, step)
        return x[tuple(index)]

    return cut


def _split(operation: Operation) -> Function:
    sizes, axis = operation.numbers(0, "split"), operation.attributes.get("axis", 0)
    return lambda x: tuple(x.split(sizes or math.ceil(x.shape[axis] / operation.outputs), axis))


def _concat(operation: Operation) -> Function:
    axis = operation.attributes["axis"]
    return lambda *parts: torch.cat(parts, axis)


def _softmax(operation: Operation) -> Function:
    axis = operation.attributes.get("axis", -1)
    return lambda x: x.softmax(axis)


def _just(function: Function) -> Callable[[Operation], Function]:
    return lambda operation: function


def _over_pixels(function: Function) -> Callable[[Operation], Function]:
    return _just(lambda x: function(x, tuple(range(2, x.ndim)), True))


# Operator type to what makes its function, and how many of its inputs are tensors; those behind them must be constant.
OPERATORS: dict[str, tuple[Callable[[Operation], Function], int]] = {
    "Add": (_just(torch.add), 2),
    "AveragePool": (_average_pool, 1),
    "Cast": (_cast, 1),
    "Clip": (_clip, 1),
    "Concat": (_concat, 1_000),
    "Conv": (_conv, 3),
    "Div": (_just(torch.div), 2),
    "Flatten": (_flatten, 1),
    "Gemm": (_gemm, 3),
    "GlobalAveragePool": (_over_pixels(torch.mean), 1),
    "GlobalMaxPool": (_over_pixels(torch.amax), 1),
    "HardSigmoid": (_hard_sigmoid, 1),
    "HardSwish": (_just(functional.hardswish), 1),
    "Identity": (_just(lambda x: x), 1),
    "MatMul": (_just(torch.matmul), 2),
    "MaxPool": (_max_pool, 1),
    "Mul": (_just(torch.mul), 2),
    "ReduceMax": (_reduce(torch.amax), 1),
    "ReduceMean": (_reduce(torch.mean), 1),
    "ReduceSum": (_reduce(torch.sum), 1),
    "Relu": (_just(torch.relu), 1),
    "Reshape": (_reshape, 1),
    "Sigmoid": (_just(torch.sigmoid), 1),
    "Slice": (_slice, 1),
    "Softmax": (_softmax, 1),
    "Split": (_split, 1),
    "Squeeze": (_squeeze, 1),
    "Sub": (_just(torch.sub), 2),
    "Transpose": (_transpose, 1),
    "Unsqueeze": (_unsqueeze, 1),
}
