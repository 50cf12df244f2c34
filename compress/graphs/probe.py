"""Looks inside a graph while images run through it: extra outputs, and the weights as the nodes see them.

Used by what compares a float32 graph with its quantized form, node by node.
"""

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime

from .file import as_taken, image_inputs, open_session


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Each constant of the graph by name, and each constant behind a DequantizeLinear by the name of what that gives, as float32.

    By hand: int8 [[4], [8]] with scales [0.5, 0.25] along axis 0 is [[2.0], [2.0]].
    """
    constants = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            stored, scale = (constants[name].astype(np.float32) for name in node.input[:2])
            zero = constants[node.input[2]].astype(np.float32) if len(node.input) > 2 else np.zeros_like(scale)
            if scale.ndim == 1 and stored.ndim:
                axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1) % stored.ndim
                along = [-1 if index == axis else 1 for index in range(stored.ndim)]
                scale, zero = scale.reshape(along), zero.reshape(along)
            constants[node.output[0]] = (stored - zero) * scale
    return constants


def run_in_batches(
    model: onnx.ModelProto, images: np.ndarray, batch: int, *, as_written: bool = True
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """How many images, and the outputs of a graph with one input for them, for one batch after the other.

    Args:
        model: with one input (B, C, H, W), B free or fixed.
        images: uint8 (N, C, H, W). Those that do not fill a fixed batch at the end are left out.
        batch: images at a time, unless the graph fixes it.
        as_written: compute each node for itself; else fused as ONNX Runtime does on this machine, int8 kernels included.
    """
    [entry] = image_inputs(model)
    fixed = entry.type.tensor_type.shape.dim[0].dim_value
    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(model, "the graph with the outputs to look at", options)
    for start in range(0, len(images), fixed or batch):
        taken = images[start : start + (fixed or batch)]
        if len(taken) == fixed or not fixed:
            yield len(taken), session.run(None, {entry.name: as_taken(entry, taken)})
