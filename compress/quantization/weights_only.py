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
import onnx_ir as ir

from ..errors import CompressError
from ..graphs.file import note, write_onnx
from ..graphs.floats import read_float
from ..graphs.index import add_constant, constant, edited, is_a, make, settings
from .records import Stored

BITS = ("int8", "fp16")
_LEAST_VALUES = 64
_FP16_MAX = float(np.finfo(np.float16).max)


def store_weights(source: Path, target: Path, *, bits: str) -> Stored:
    """Store the weights of a float32 file as ``bits`` says: "int8" or "fp16".

    ``target`` is replaced at once or not at all; it keeps the metadata of ``source``, and ``quantization.*`` is added.

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
    note(model, model, {"quantization.mode": "weights", "quantization.weights": bits})
    write_onnx(model, target)
    return Stored(bits=bits, weights=noise, bytes_before=before, bytes_after=target.stat().st_size)


def store_in(model: onnx.ModelProto, name: str, *, bits: str) -> dict[str, float | None]:
    """Store the float32 weights of a graph in place, quantized nodes beside them or not; what was lost as ``Stored.weights`` has it.

    Raises:
        CompressError: weights that cannot be stored so, which the error calls those of ``name``.
    """
    noise: dict[str, float | None] = {}
    nodes: list[ir.Node] = []
    with edited(model) as graph:
        for weight in list(graph.initializers.values()):
            own, values = str(weight.name), np.asarray(constant(weight))
            graph.initializers.add(graph.initializers.pop(own))  # all take their turn, so that the new ones stand in the place of the old
            if weight.dtype != ir.DataType.FLOAT or values.ndim < 2 or values.size < _LEAST_VALUES:
                continue
            if not np.isfinite(values).all():
                raise CompressError(f'{name}: weight "{own}" holds values that are not finite; train the network again')
            if bits == "fp16" and np.abs(values).max() > _FP16_MAX:
                raise CompressError(
                    f'{name}: weight "{own}" (up to {np.abs(values).max():.4g}) must lie within {_FP16_MAX:.0f} to be fp16; use int8'
                )
            del graph.initializers[own]
            scale = _scale(weight, values) if bits == "int8" else None
            small = values.astype(np.float16) if scale is None else np.rint(values / scale).astype(np.int8)
            noise[own] = _noise(values, small.astype(np.float32) * (1 if scale is None else scale))
            stored = add_constant(graph, f"{own}_{bits}", small)
            steps = [make(graph, "Cast", [stored], weight if scale is None else f"{own}_float", to=ir.DataType.FLOAT)]
            if scale is not None:
                steps.append(make(graph, "Mul", [*steps[0].outputs, add_constant(graph, f"{own}_scale", scale)], weight))
            if weight.is_graph_input():  # as old files have it; what is computed now is none any more
                graph.inputs.remove(weight)
            weight.replace_all_uses_with(steps[-1].outputs[0], replace_graph_outputs=True)
            nodes += steps
        graph.insert_before(graph[0], nodes)
    return noise


def _scale(weight: ir.Value, values: np.ndarray) -> np.ndarray:
    """Greatest magnitude per output channel over 127, 1 where a channel is all zeros, of a shape that multiplies with the values."""
    node = next((use.node for use in weight.uses() if use.idx == 1), None)  # the first that has it as its weight
    axis = 0
    if node is not None and is_a(node, "MatMul"):
        axis = values.ndim - 1
    elif node is not None and (is_a(node, "ConvTranspose") or (is_a(node, "Gemm") and not settings(node).get("transB", 0))):
        axis = 1
    greatest = np.abs(values).max(axis=tuple({*range(values.ndim)} - {axis}), keepdims=True)
    return np.where(greatest > 0, greatest / np.float32(127), np.float32(1)).astype(np.float32)


def _noise(values: np.ndarray, back: np.ndarray) -> float | None:
    error = float(np.square(values.astype(np.float64) - back).sum())
    signal = float(np.square(values.astype(np.float64)).sum())
    return 10 * float(np.log10(signal / error)) if error and signal else None
