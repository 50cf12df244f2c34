"""The ONNX operators of image classifiers as torch functions, whose gradients torch knows.

``make_function`` turns one node into a function of its tensors: a torch function, or one below that takes the node's attributes by their
ONNX names and with their ONNX defaults. What must be known beforehand (axes, shapes, bounds) is taken from the graph's constants. Checked
against ONNX Runtime, operator by operator.

Refuses: an operator that is not in ``OPERATORS``, settings that torch has no counterpart for (``auto_pad`` other than NOTSET and VALID,
negative steps of Slice, a dilated AveragePool, casts to anything but float32; a Resize that is not one of ``interpolate``, a ConvTranspose
whose pads differ from side to side), and axes, shapes or bounds that are computed.

Source: https://onnx.ai/onnx/operators
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from ...errors import CompressError
from ..index import constant, settings
from .steps import Function

INSTEAD = "fine-tune the float32 network, and quantize without fine-tuning after it"
VIEWS = ("Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
CHOOSING = ("Concat", "GlobalMaxPool", "MaxPool", "ReduceMax", "Relu", *VIEWS)  # every number of their output is one of their input, or 0


def make_function(node: ir.Node) -> tuple[Function, list[str]]:
    """The torch function of a node, and the names of the tensors that it takes.

    Raises:
        CompressError: for what the module refuses.
    """
    label = label_of(node)
    if node.op_type not in OPERATORS or node.domain:
        raise CompressError(f"{label} is an operator that has no torch function here (known are {', '.join(sorted(OPERATORS))}); {INSTEAD}")
    function, tensors, *names = OPERATORS[node.op_type]
    own = settings(node) | ({"num_outputs": len(node.outputs)} if node.op_type == "Split" else {})
    for name, value in zip(names, node.inputs[tensors:], strict=False):
        if value is not None:
            if (values := constant(value)) is None:
                raise CompressError(
                    f'{label} takes "{value.name}" from the graph, but it must be constant; fold the constants of the graph first'
                )
            own[name] = values.ravel().tolist()
    if told := refusal_of(node.op_type, own):
        raise CompressError(f"{label} {told}; {INSTEAD}")
    if own.pop("auto_pad", "NOTSET") == "VALID":
        own["pads"] = ()
    return partial(function, **own), [str(value.name) for value in node.inputs[:tensors] if value is not None]


def label_of(node: ir.Node) -> str:
    return f'{node.op_type} "{node.name or node.outputs[0].name}"'


def refusal_of(kind: str, own: Mapping[str, Any]) -> str:
    """What of a node's settings torch has no counterpart for; empty where it has."""
    automatic = own.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        return f'has auto_pad (="{automatic}"), but must have its pads as numbers'
    if kind == "AveragePool" and set(own.get("dilations", ())) - {1}:
        return "is dilated, which torch cannot"
    if kind == "Pad" and own.get("mode", "constant") != "constant":
        return f'has mode (="{own["mode"]}"), but must pad with a number'
    if kind == "Cast" and own["to"] != onnx.TensorProto.FLOAT:
        return f"casts to {onnx.TensorProto.DataType.Name(own['to'])}, but must cast to FLOAT"
    if kind == "Resize":
        return _refusal_of_resize(own)
    if kind == "ConvTranspose":
        pads = own.get("pads", ())
        if own.get("output_shape") or tuple(pads[: len(pads) // 2]) != tuple(pads[len(pads) // 2 :]):
            return "has an output_shape, or pads that differ from side to side, which torch cannot"
    if kind == "Slice" and min(own.get("steps", (1,))) < 1:
        return f"has steps (={own['steps']}), but torch needs them positive"
    return ""


def _refusal_of_resize(own: Mapping[str, Any]) -> str:
    mode, corners = own.get("mode", "nearest"), own.get("coordinate_transformation_mode", "half_pixel")
    rounding = own.get("nearest_mode", "round_prefer_floor")
    known = (corners, rounding) in NEAREST if mode == "nearest" else corners in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if not known:
        return f"resizes by {mode}, {corners}{f', {rounding}' if mode == 'nearest' else ''}, which torch's interpolate does not"
    if mode == "cubic" and own.get("cubic_coeff_a", -0.75) != -0.75:
        return f"has cubic_coeff_a (={own['cubic_coeff_a']:g}), but torch has -0.75"
    if own.get("antialias") or own.get("exclude_outside") or own.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "antialiases, leaves out what lies outside or keeps the aspect ratio, which torch cannot"
    axes = own.get("axes")
    whole = next((own[name][:2] for name in ("scales",) if own.get(name) and not axes), [1, 1])
    if [*whole] != [1, 1] or (axes and [*axes] != [*range(2, 2 + len(axes))]):
        return "changes other sizes than those behind the channels"
    return ""


def _pad(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, Any]:
    """The tensor, padded where the two sides differ, and what torch's operator has to pad by itself."""
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    if begin == end:
        return x, begin or 0
    return functional.pad(x, [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair], value=value), 0


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pads: Any = (), strides: Any = 1, dilations: Any = 1, group: int = 1, **_: Any
) -> Tensor:
    x, padding = _pad(x, pads)
    convolve: Function = {3: torch.conv1d, 4: torch.conv2d, 5: torch.conv3d}[weight.ndim]
    return convolve(x, weight, bias, strides, padding, dilations, group)


def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, pads: Any = (), strides: Any = 1, dilations: Any = 1, group: int = 1,
    output_padding: Any = 0, **_: Any
) -> Tensor:  # fmt: skip
    convolve: Function = {3: torch.conv_transpose1d, 4: torch.conv_transpose2d, 5: torch.conv_transpose3d}[weight.ndim]
    return convolve(x, weight, bias, strides, pads[: len(pads) // 2] or 0, output_padding, group, dilations)


def _resize(
    x: Tensor, *, scales: Sequence[float] = (), sizes: Sequence[int] = (), mode: str = "nearest",
    coordinate_transformation_mode: str = "half_pixel", nearest_mode: str = "round_prefer_floor", **_: Any
) -> Tensor:  # fmt: skip
    before = x.shape[2:]
    by = [float(scale) for scale in scales[-len(before) :]]
    how = NEAREST[coordinate_transformation_mode, nearest_mode] if mode == "nearest" else RESIZES[mode][len(before) - 1]
    settings: dict[str, Any] = {"mode": how}
    if mode != "nearest":
        settings["align_corners"] = coordinate_transformation_mode == "align_corners"
    near = [round(size * scale) for size, scale in zip(before, by, strict=False)]
    if sizes or all(abs(size * scale - due) < 1e-3 for size, scale, due in zip(before, by, near, strict=True)):
        return functional.interpolate(x, [int(size) for size in sizes[-len(before) :]] or near, **settings)
    return functional.interpolate(x, scale_factor=by, **settings)


def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, blocksize, blocksize, channels // blocksize**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(batch, channels // blocksize**2, height * blocksize, width * blocksize)


def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(batch, channels * blocksize**2, height // blocksize, width // blocksize)


def _max_pool(
    x: Tensor, *, kernel_shape: Any, pads: Any = (), strides: Any = 1, dilations: Any = 1, ceil_mode: int = 0, **_: Any
) -> Tensor:
    x, padding = _pad(x, pads, -math.inf)
    return functional.max_pool2d(x, kernel_shape, strides, padding, dilations, bool(ceil_mode))


def _average_pool(
    x: Tensor, *, kernel_shape: Any, pads: Any = (), strides: Any = 1, ceil_mode: int = 0, count_include_pad: int = 0, **_: Any
) -> Tensor:
    padded, padding = _pad(x, pads)
    how = (kernel_shape, strides, padding, bool(ceil_mode), bool(count_include_pad))
    found = functional.avg_pool2d(padded, *how)
    if padded is x or count_include_pad:
        return found
    return found / functional.avg_pool2d(_pad(torch.ones_like(x[:1, :1]), pads)[0], *how)  # torch counts the pixels that were put there


def _reduce(function: Function, x: Tensor, *, axes: Sequence[int] = (), keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    return x if noop_with_empty_axes and not axes else function(x, axes, bool(keepdims))  # no axes are all axes, in torch too


def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0, transB: int = 0
) -> Tensor:
    a, b = a.T if transA else a, b.T if transB else b
    return alpha * (a @ b) if c is None else torch.addmm(c, a, b, alpha=alpha, beta=beta)


def _reshape(x: Tensor, *, shape: Sequence[int], allowzero: int = 0) -> Tensor:
    return x.reshape(shape if allowzero else [size or x.shape[axis] for axis, size in enumerate(shape)])


def _unsqueeze(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(
    x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None, steps: Sequence[int] | None = None
) -> Tensor:
    index = [slice(None)] * x.ndim
    for axis, *cut in zip(axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True):
        index[axis] = slice(*cut)
    return x[tuple(index)]


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Tensor:
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


def _pad_by_numbers(
    x: Tensor, *, pads: Sequence[int], value: Sequence[float] = (), axes: Sequence[int] | None = None, mode: str = "constant"
) -> Tensor:
    sizes = {axis: [0, 0] for axis in range(x.ndim)}
    begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
    sizes |= {axis % x.ndim: around for axis, *around in zip(axes or range(x.ndim), begin, end, strict=True)}
    around = [size for axis in reversed(range(x.ndim)) for size in sizes[axis]]
    return functional.pad(x, around, value=value[0] if value else 0.0)


# What torch calls the way from a place to where it is taken from; and what it calls other modes, by the number of dimensions.
NEAREST = {("asymmetric", "floor"): "nearest", ("half_pixel", "round_prefer_ceil"): "nearest-exact"}
RESIZES = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}

# Operator type to its function, how many of its inputs are tensors, and what those behind them are called, which must be constant.
OPERATORS: dict[str, tuple[Any, ...]] = {
    "Abs": (torch.abs, 1),
    "Add": (torch.add, 2),
    "AveragePool": (_average_pool, 1),
    "Cast": (lambda x, **_: x.float(), 1),
    "Ceil": (torch.ceil, 1),
    "Celu": (lambda x, alpha=1.0: functional.celu(x, alpha), 1),
    "Clip": (lambda x, low=(-math.inf,), high=(math.inf,): torch.clamp(x, low[0], high[0]), 1, "low", "high"),
    "Concat": (lambda *parts, axis: torch.cat(parts, axis), 1_000),
    "Conv": (_conv, 3),
    "ConvTranspose": (_conv_transpose, 3),
    "Cos": (torch.cos, 1),
    "DepthToSpace": (_depth_to_space, 1),
    "Div": (torch.div, 2),
    "Dropout": (lambda x, **_: x, 1, "ratio", "training_mode"),
    "Elu": (lambda x, alpha=1.0: functional.elu(x, alpha), 1),
    "Erf": (torch.erf, 1),
    "Exp": (torch.exp, 1),
    "Flatten": (lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1), 1),
    "Floor": (torch.floor, 1),
    "Gelu": (lambda x, approximate="none": functional.gelu(x, approximate=approximate), 1),
    "Gemm": (_gemm, 3),
    "GlobalAveragePool": (lambda x: x.mean(tuple(range(2, x.ndim)), True), 1),
    "GlobalMaxPool": (lambda x: x.amax(tuple(range(2, x.ndim)), True), 1),
    "HardSigmoid": (lambda x, alpha=0.2, beta=0.5: torch.clamp(x * alpha + beta, 0, 1), 1),
    "HardSwish": (functional.hardswish, 1),
    "Identity": (lambda x: x, 1),
    "InstanceNormalization": (lambda x, scale, bias, epsilon=1e-5: functional.instance_norm(x, None, None, scale, bias, eps=epsilon), 3),
    "LRN": (lambda x, size, alpha=1e-4, beta=0.75, bias=1.0: functional.local_response_norm(x, size, alpha, beta, bias), 1),
    "LayerNormalization": (_layer_norm, 3),
    "LeakyRelu": (lambda x, alpha=0.01: functional.leaky_relu(x, alpha), 1),
    "Log": (torch.log, 1),
    "MatMul": (torch.matmul, 2),
    "LogSoftmax": (lambda x, axis=-1: x.log_softmax(axis), 1),
    "Max": (lambda *parts: reduce(torch.maximum, parts), 1_000),
    "MaxPool": (_max_pool, 1),
    "Mean": (lambda *parts: reduce(torch.add, parts) / len(parts), 1_000),
    "Min": (lambda *parts: reduce(torch.minimum, parts), 1_000),
    "Mish": (functional.mish, 1),
    "Mul": (torch.mul, 2),
    "Neg": (torch.neg, 1),
    "Pad": (_pad_by_numbers, 1, "pads", "value", "axes"),
    "Pow": (torch.pow, 2),
    "Reciprocal": (torch.reciprocal, 1),
    "ReduceL2": (partial(_reduce, lambda x, axes, keep: x.square().sum(axes, keep).sqrt()), 1, "axes"),
    "ReduceMax": (partial(_reduce, torch.amax), 1, "axes"),
    "ReduceMean": (partial(_reduce, torch.mean), 1, "axes"),
    "ReduceMin": (partial(_reduce, torch.amin), 1, "axes"),
    "ReduceSum": (partial(_reduce, torch.sum), 1, "axes"),
    "Relu": (torch.relu, 1),
    "Reshape": (_reshape, 1, "shape"),
    "Resize": (_resize, 1, "roi", "scales", "sizes"),
    "Round": (torch.round, 1),
    "Selu": (lambda x, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875: gamma * functional.elu(x, alpha), 1),
    "Sigmoid": (torch.sigmoid, 1),
    "Sign": (torch.sign, 1),
    "Sin": (torch.sin, 1),
    "Slice": (_slice, 1, "starts", "ends", "axes", "steps"),
    "Softmax": (lambda x, axis=-1: x.softmax(axis), 1),
    "Softplus": (functional.softplus, 1),
    "Softsign": (functional.softsign, 1),
    "SpaceToDepth": (_space_to_depth, 1),
    "Split": (lambda x, num_outputs, split=(), axis=0: x.split(split or math.ceil(x.shape[axis] / num_outputs), axis), 1, "split"),
    "Sqrt": (torch.sqrt, 1),
    "Squeeze": (lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(axes)), 1, "axes"),
    "Sub": (torch.sub, 2),
    "Sum": (lambda *parts: reduce(torch.add, parts), 1_000),
    "Tanh": (torch.tanh, 1),
    "Transpose": (lambda x, perm=None: x.permute(perm or tuple(reversed(range(x.ndim)))), 1),
    "Unsqueeze": (_unsqueeze, 1, "axes"),
}
