"""Weights stored small, computed in float32: a file of a quarter or half the size that runs at float speed.

int8: each weight becomes int8 values with one scale per output channel, and Cast and Mul in front of its nodes make float32 of them again.
fp16: float16 values and a Cast. ONNX Runtime computes these once, while it loads the file, so nothing is slower afterwards. (It does not
do so for a DequantizeLinear, which runs again for every image.) By hand: the channel (-2, 0.5, 0) gets scale 2 / 127 and is stored as
(-127, 32, 0): 0.5 comes back as 0.504. Zeros stay zeros. Biases and weights of less than 64 values are not worth it and stay float32.

Refuses: a file that is quantized already, one without such weights, weights that are not finite, and for fp16 those beyond 65504.

Source: ONNX operators Cast and Mul; the symmetric scale is that of Krishnamoorthi 2018, arXiv:1806.08342.
"""

from pathlib import Path

import numpy as np
import onnx

from ..errors import CompressError
from ..graphs.file import write_onnx
from ..graphs.floats import read_float
from .records import Stored

BITS = ("int8", "fp16")
_LEAST_VALUES = 64
_FP16_MAX = float(np.finfo(np.float16).max)


def store_weights(source: Path, target: Path, *, bits: str) -> Stored:
    """Store the weights of a float32 file as int8 or float16.

    Args:
        source: a float32 ONNX file.
        target: the file to write; replaced at once or not at all. ``source``'s metadata is kept, ``quantization.*`` added.
        bits: "int8" or "fp16".

    Raises:
        CompressError: for what the module refuses.
    """
    if bits not in BITS:
        raise CompressError(f'bits (="{bits}") must be int8 or fp16; int8 is a quarter of the size, fp16 half')
    model, name = read_float(source), f'"{source}"'
    before = model.ByteSize()
    noise = store_in(model, name, bits=bits)
    if not noise:
        raise CompressError(f"{name} has no float32 weights of {_LEAST_VALUES} values or more; there is nothing to store smaller")
    onnx.helper.set_model_props(model, _metadata(model, bits))
    write_onnx(model, target)
    return Stored(bits=bits, weights=noise, bytes_before=before, bytes_after=target.stat().st_size)


def store_in(model: onnx.ModelProto, name: str, *, bits: str) -> dict[str, float | None]:
    """Store the float32 weights of a graph in place, quantized nodes beside them or not; what was lost as ``Stored.weights`` has it.

    Raises:
        CompressError: weights that cannot be stored so, which the error calls those of ``name``.
    """
    axes = _channel_axes(model)
    nodes: list[onnx.NodeProto] = []
    kept: list[onnx.TensorProto] = []
    noise: dict[str, float | None] = {}
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if weight.data_type != onnx.TensorProto.FLOAT or values.ndim < 2 or values.size < _LEAST_VALUES:
            kept.append(weight)
            continue
        if not np.isfinite(values).all():
            raise CompressError(f'{name}: weight "{weight.name}" holds values that are not finite; train the network again')
        if bits == "fp16" and np.abs(values).max() > _FP16_MAX:
            raise CompressError(
                f'{name}: weight "{weight.name}" (up to {np.abs(values).max():.4g}) must lie within {_FP16_MAX:.0f} to be fp16; use int8'
            )
        scale = _scale(values, axes.get(weight.name, 0)) if bits == "int8" else None
        small = values.astype(np.float16) if scale is None else np.rint(values / scale).astype(np.int8)
        back = small.astype(np.float32) * (1 if scale is None else scale)
        noise[weight.name] = _noise(values, back)
        kept.append(onnx.numpy_helper.from_array(small, f"{weight.name}_{bits}"))
        cast = weight.name if scale is None else f"{weight.name}_float"
        nodes.append(onnx.helper.make_node("Cast", [f"{weight.name}_{bits}"], [cast], f"{cast}_Cast", to=onnx.TensorProto.FLOAT))
        if scale is not None:
            kept.append(onnx.numpy_helper.from_array(scale, f"{weight.name}_scale"))
            nodes.append(onnx.helper.make_node("Mul", [cast, f"{weight.name}_scale"], [weight.name], f"{weight.name}_Mul"))
    _replace(model, nodes, kept, dropped=set(noise))
    return noise


def _channel_axes(model: onnx.ModelProto) -> dict[str, int]:
    """The axis of the output channels, by the name of a weight; the first node that uses it decides."""
    axes: dict[str, int] = {}
    ranks = {weight.name: len(weight.dims) for weight in model.graph.initializer}
    for node in model.graph.node:
        for name in node.input[1:2]:
            if node.op_type == "ConvTranspose":
                axes.setdefault(name, 1)
            elif node.op_type == "Gemm":
                transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
                axes.setdefault(name, 0 if transposed else 1)
            elif node.op_type == "MatMul" and name in ranks:
                axes.setdefault(name, ranks[name] - 1)
            else:
                axes.setdefault(name, 0)
    return axes


def _scale(values: np.ndarray, axis: int) -> np.ndarray:
    """Greatest magnitude per channel over 127, 1 where a channel is all zeros, of a shape that multiplies with the values."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    greatest = np.abs(values).max(axis=others, keepdims=True)
    return np.where(greatest > 0, greatest / np.float32(127), np.float32(1)).astype(np.float32)


def _noise(values: np.ndarray, back: np.ndarray) -> float | None:
    error = float(np.square(values.astype(np.float64) - back).sum())
    signal = float(np.square(values.astype(np.float64)).sum())
    return 10 * float(np.log10(signal / error)) if error and signal else None


def _replace(model: onnx.ModelProto, nodes: list[onnx.NodeProto], kept: list[onnx.TensorProto], dropped: set[str]) -> None:
    """Put the nodes first, and the weights in place of all; what is computed now is no input any more, as old files have it."""
    rest, inputs = list(model.graph.node), [value for value in model.graph.input if value.name not in dropped]
    shapes = [value for value in model.graph.value_info if value.name not in dropped]
    for field, content in ((model.graph.node, [*nodes, *rest]), (model.graph.initializer, kept)):
        del field[:]
        field.extend(content)
    for field, values in ((model.graph.input, inputs), (model.graph.value_info, shapes)):
        del field[:]
        field.extend(values)


def _metadata(model: onnx.ModelProto, bits: str) -> dict[str, str]:
    facts = {entry.key: entry.value for entry in model.metadata_props}
    return dict(sorted((facts | {"quantization.mode": "weights", "quantization.weights": bits}).items()))
