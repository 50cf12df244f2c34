"""Bias correction: what rounding the weights adds to the mean of each output channel is taken off the bias.

By hand: one weight, 0.3, is stored as 0.25, and its input is 2 on average. Then the output is 0.1 too low on average, and with 0.1 added to
the bias it is right on average. The rounding of activations needs nothing of the kind: it goes up as often as down.

The mean input is that of the float32 graph on calibration images, padding included. A bias is int32 in steps of the input's scale times
the weight's, so at most half such a step remains. Takes Conv and Gemm with a constant bias; others are left as they are.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graphs.probe import constants_of, run_in_batches

_BATCH_AXIS = "bias/batch axis"
_INT32 = np.iinfo(np.int32)


def correct_bias(quantized: onnx.ModelProto, prepared_model: onnx.ModelProto, images: np.ndarray, *, batch: int = 32) -> int:
    """Correct the biases of the quantized Conv and Gemm nodes, in place.

    Args:
        quantized: a QDQ graph. prepared_model: the float32 graph that it was made of; nodes of the same name belong together.
        images: uint8 (N, C, H, W), such as those of the calibration.
        batch: images at a time; the memory needed does not grow with ``images``.

    Returns:
        The number of nodes whose bias was corrected.
    """
    errors = _mean_errors(quantized, prepared_model, images, batch)
    floats = {weight.name: weight for weight in prepared_model.graph.initializer}
    stored = {weight.name: weight for weight in quantized.graph.initializer}
    makers = {output: node for node in quantized.graph.node for output in node.output}
    before = {node.name: node for node in prepared_model.graph.node}
    shares: dict[str, list[np.ndarray]] = {}  # by bias: two nodes may have the same one
    for node in quantized.graph.node:
        if node.name in errors:
            shares.setdefault(node.input[2], []).append(numpy_helper.to_array(floats[before[node.name].input[2]]) - errors[node.name])
    for name, wanted in shares.items():
        bias = np.mean(wanted, axis=0)
        target = stored.get(name)
        if target is None:
            dequantize = makers[name]
            target = stored[dequantize.input[0]]
            bias = np.clip(np.round(bias / numpy_helper.to_array(stored[dequantize.input[1]])), _INT32.min, _INT32.max)
        dtype = helper.tensor_dtype_to_np_dtype(target.data_type)
        target.CopyFrom(numpy_helper.from_array(bias.astype(dtype), target.name))
    return len(errors)


def _mean_errors(quantized: onnx.ModelProto, prepared_model: onnx.ModelProto, images: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """By node, the mean over images and pixels of what it makes of its input with the error of its weights as weights, (C,).

    A layer is linear: the mean of what it makes is what it makes of the mean image.
    """
    weights, rounded = constants_of(prepared_model), constants_of(quantized)
    after = {node.name: node for node in quantized.graph.node}
    probe = onnx.ModelProto()
    probe.CopyFrom(prepared_model)
    del probe.graph.output[:]
    names = []
    for node in prepared_model.graph.node:
        twin = after.get(node.name)
        if twin is None or not _correctable(node, weights) or not _correctable(twin, rounded) or node.input[1] == twin.input[1]:
            continue
        error = numpy_helper.from_array(rounded[twin.input[1]] - weights[node.input[1]], f"{node.name}/weight error")
        second = onnx.NodeProto()
        second.CopyFrom(node)
        second.name = f"{node.name}/error"
        del second.input[:], second.output[:]
        second.input.extend([f"{node.name}/mean", error.name])
        second.output.append(second.name)
        probe.graph.initializer.append(error)
        probe.graph.node.extend([_mean_over_batch(node.input[0], f"{node.name}/mean", prepared_model), second])
        probe.graph.output.append(onnx.ValueInfoProto(name=second.name))
        names.append(node.name)
    if not names:
        return {}
    probe.graph.initializer.append(numpy_helper.from_array(np.array([0]), _BATCH_AXIS))
    sums, seen = [np.zeros(1)] * len(names), 0
    for count, found in run_in_batches(probe, images, batch, as_written=False):
        means = [values.mean(axis=(0, *range(2, values.ndim)), dtype=np.float64) for values in found]
        seen += count
        sums = [total + count * mean for total, mean in zip(sums, means, strict=True)]
    return {name: total / seen for name, total in zip(names, sums, strict=True)}


def _mean_over_batch(tensor: str, name: str, model: onnx.ModelProto) -> onnx.NodeProto:
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 18:
        return helper.make_node("ReduceMean", [tensor], [name], name=name, axes=[0])
    return helper.make_node("ReduceMean", [tensor, _BATCH_AXIS], [name], name=name)


def _correctable(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> bool:
    """Whether it is a layer with a constant weight and one constant bias per output, which it adds as it stands."""
    plain = node.op_type == "Conv" or (node.op_type == "Gemm" and all(entry.name != "beta" or entry.f == 1 for entry in node.attribute))
    return plain and len(node.input) > 2 and all(name in constants for name in node.input[1:]) and constants[node.input[2]].ndim == 1
