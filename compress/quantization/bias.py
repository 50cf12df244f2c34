"""Bias correction: what rounding the weights adds to the mean of each output channel is taken off the bias.

By hand: one weight, 0.3, is stored as 0.25, and its input is 2 on average. Then the output is 0.1 too low on average, and with 0.1 added to
the bias it is right on average. The rounding of activations needs nothing of the kind: it goes up as often as down.

The mean input is that of the float32 graph on calibration images, padding included. A bias is int32 in steps of the input's scale times
the weight's, so at most half such a step remains. Takes Conv and Gemm with a constant bias; others are left as they are.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from ..graphs.file import opset_of
from ..graphs.index import add_constant, constant, edited, index, is_a, make, maker, set_constants, settings
from ..graphs.probe import run_in_batches, stored_constant

_INT32 = np.iinfo(np.int32)


class _Layer(NamedTuple):
    node: ir.Node
    weight: np.ndarray
    bias: np.ndarray
    weight_name: str | None


def correct_bias(quantized: onnx.ModelProto, prepared_model: onnx.ModelProto, images: np.ndarray, *, batch: int = 32) -> int:
    """Correct the biases of the quantized Conv and Gemm nodes of a QDQ graph, in place; returns how many.

    ``prepared_model``: the float32 graph that it was made of; nodes of the same name belong together. ``images``: uint8 (N, C, H, W), such
    as those of the calibration, taken ``batch`` at a time, so that the memory needed does not grow with them.
    """
    exact, rounded = _layers(prepared_model), _layers(quantized)
    errors = _mean_errors(prepared_model, exact, rounded, images, batch)
    shares: dict[ir.Value | None, list[np.ndarray]] = {}  # by bias: two nodes may have the same one
    for name, error in errors.items():
        shares.setdefault(rounded[name].node.inputs[2], []).append(exact[name].bias - error)
    biases = {}
    for value, wanted in shares.items():
        bias = np.mean(wanted, axis=0)
        if (dequantize := maker(value, "DequantizeLinear")) is not None:
            value, scale = dequantize.inputs[:2]
            bias = np.clip(np.round(bias / constant(scale)), _INT32.min, _INT32.max)
        if value is not None:
            biases[str(value.name)] = bias
    set_constants(quantized, biases)
    return len(errors)


def _mean_errors(
    model: onnx.ModelProto, exact: dict[str, _Layer], rounded: dict[str, _Layer], images: np.ndarray, batch: int
) -> dict[str, np.ndarray]:
    """By node, the mean over images and pixels of what it makes of its input with the error of its weights as weights, (C,).

    A layer is linear: the mean of what it makes is what it makes of the mean image.
    """
    names = [name for name, layer in exact.items() if name in rounded and layer.weight_name != rounded[name].weight_name]
    if not names:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    with edited(probe) as graph:
        nodes = {node.name: node for node in graph}
        axis: dict[str, Any] = {"axes": [0]} if opset_of(model) < 18 else {}
        axes = [] if axis else [add_constant(graph, "batch axis", np.array([0]))]
        graph.outputs.clear()
        for name in names:
            node = nodes[name]
            error = add_constant(graph, f"{name}/weight error", rounded[name].weight - exact[name].weight)
            mean = make(graph, "ReduceMean", [node.inputs[0], *axes], f"{name}/mean", **axis)
            second = make(graph, node.op_type, [*mean.outputs, error], f"{name}/error", **node.attributes)
            graph.extend([mean, second])
            graph.outputs.extend(second.outputs)
    sums, seen = [np.zeros(1)] * len(names), 0
    for count, found in run_in_batches(probe, images, batch, as_written=False):
        means = [values.mean(axis=(0, *range(2, values.ndim)), dtype=np.float64) for values in found]
        seen += count
        sums = [total + count * mean for total, mean in zip(sums, means, strict=True)]
    return {name: total / seen for name, total in zip(names, sums, strict=True)}


def _layers(model: onnx.ModelProto) -> dict[str, _Layer]:
    """By name, the nodes that can be corrected: their weight and their bias, one per output and added as it stands, are constant."""
    found = {}
    for node in index(model):
        plain = is_a(node, "Conv") or (is_a(node, "Gemm") and settings(node).get("beta", 1) == 1)
        fixed = [stored_constant(value) for value in node.inputs[1:]] if plain else []
        if len(fixed) == 2 and fixed[0] is not None and fixed[1] is not None and fixed[1].ndim == 1 and node.inputs[1] is not None:
            found[str(node.name)] = _Layer(node, fixed[0], fixed[1], node.inputs[1].name)
    return found
