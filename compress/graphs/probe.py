"""Looks inside a graph while images run through it: extra outputs, and the weights as the nodes see them.

Used by what compares a float32 graph with its quantized form, node by node.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .file import Level, as_taken, image_inputs, open_session
from .index import constant, maker, settings


def stored_constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What a tensor holds if it is a constant, or a constant behind a DequantizeLinear, as float32 then.

    By hand: int8 [[4], [8]] with scales [0.5, 0.25] along axis 0 is [[2.0], [2.0]].
    """
    node = maker(value, "DequantizeLinear")
    if node is None or any(constant(one) is None for one in node.inputs):
        return constant(value)
    stored, scale, *zeros = (np.asarray(constant(one), np.float32) for one in node.inputs)
    zero = zeros[0] if zeros else np.zeros_like(scale)
    if scale.ndim == 1 and stored.ndim:
        along = -1, *[1] * (stored.ndim - 1 - settings(node).get("axis", 1) % stored.ndim)
        scale, zero = scale.reshape(along), zero.reshape(along)
    return (stored - zero) * scale


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model that gives the tensors of these names, whatever they are."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[:]
    copied.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copied


def run_in_batches(
    model: onnx.ModelProto, images: np.ndarray, batch: int, *, as_written: bool = True, most_bytes: int | None = None
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """How many images, and the outputs of a graph with one input for them, for one batch after the other.

    Args:
        model: with one input (B, C, H, W), B free or fixed.
        images: uint8 (N, C, H, W), or of the input's type. Those that do not fill a fixed batch at the end are left out.
        batch: images at a time, unless the graph fixes it.
        most_bytes: of the outputs of a batch, which has fewer images then; the first image alone tells how many fit.
        as_written: compute each node for itself; else fused as ONNX Runtime does on this machine, int8 kernels included.
    """
    [entry] = image_inputs(model)
    fixed = entry.type.tensor_type.shape.dim[0].dim_value
    level = Level.ORT_DISABLE_ALL if as_written else Level.ORT_ENABLE_ALL
    session = open_session(model, "the graph with the outputs to look at", graph_optimization_level=level)
    start, size = 0, fixed or (batch if most_bytes is None else 1)
    while start + (fixed or 1) <= len(images):
        taken = images[start : start + size]
        found = session.run(None, {entry.name: as_taken(entry, taken)})
        yield len(taken), found
        start += size
        if most_bytes is not None and size == 1 and not fixed:
            size = max(1, min(batch, most_bytes // max(1, sum(values.nbytes for values in found))))
