"""Looks inside a graph while images run through it: extra outputs, the weights as the nodes see them, and what is always the same.

Used by what compares a float32 graph with its quantized form, node by node, and by what folds constants.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .file import Level, as_taken, image_inputs, open_session
from .index import constant, index, is_a, maker, reached, readers, settings

# Nodes that take (1, ...) where the file has (B, ...), and give the same.
_BROADCAST = ("Mul", "Add", "Sub", "Div", "Max", "Min", "Sum")
_FIRST, _BATCH, _MOST_BYTES = 8, 61, 2**28  # images that most tensors are known by already to differ; a batch that is nobody's width
_ROUNDING, _ONE = 1e-6, 0.01  # of the largest number of a tensor; how far a factor that is no factor may be from 1


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Steady:
    """A tensor that is nearly the same for all images.

    ``mean``: float32 (1, ...), over the images. ``varies``: its variance over images as a share of its mean square, 0 where it never varies
    but for rounding. By hand: a gate that is (0.9, 0.5) for one image and (1.1, 0.5) for another has the mean (1, 0.5) and varies by
    0.01 / 1.25.
    """

    name: str
    mean: NDArray[np.float32]
    varies: float


def steady_tensors(model: onnx.ModelProto, images: NDArray[np.uint8], most: float) -> list[Steady]:
    """The tensors that could be constants, those that vary least first: float32, made of the image, no output of the graph.

    Of what follows from one another only the last is among them, which is read beside something that varies, by a node that broadcasts.

    Args:
        model: a graph with one input for ``images``, uint8 (N, C, H, W); in one with branches (If, Loop, Scan) none is found.
        most: what ``varies`` may be.
    """
    graph = index(model)
    if any(graph.subgraphs()):
        return []
    entries = {entry.name for entry in image_inputs(model)}
    made = reached(graph, lambda node: any(value is not None and value.name in entries for value in node.inputs), ir.Node.predecessors)
    values = {str(value.name): value for node in made for value in node.outputs if value.name}
    found = _steady(model, list(values), images[:_FIRST], 4 * most)  # so few say less
    found = _steady(model, list(found), images, most)

    def is_last(value: ir.Value) -> bool:
        beside = [node for node in readers(value) if any(made.name not in found for made in node.outputs)]
        return bool(beside) and all(is_a(node, *_BROADCAST) for node in beside) and not value.is_graph_output()

    return sorted((_smallest(one) for name, one in found.items() if is_last(values[name])), key=lambda one: one.varies)


def _smallest(one: Steady) -> Steady:
    """Its mean with one number for those that are the same along an axis; all those that are nearly 1 are 1, unless it never varies."""
    mean = one.mean
    if one.varies and np.abs(mean - 1).max() <= _ONE:
        mean = np.ones_like(mean)
    for axis in range(1, mean.ndim):
        if not np.ptp(mean, axis=axis).any():
            mean = mean.take([0], axis=axis)
    return replace(one, mean=np.ascontiguousarray(mean))


def _steady(model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.uint8], most: float) -> dict[str, Steady]:
    """Those of the tensors that vary by at most ``most``; counted from what they are for the first image, so that nothing cancels out."""
    first, total = dict[str, NDArray[np.float32]](), dict[str, NDArray[np.float32]]()
    squares, largest = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    names, seen = list(names), 0
    for count, tensors in run_in_batches(with_outputs(model, names), images, _BATCH, most_bytes=_MOST_BYTES) if names else ():
        for name, values in zip(names, tensors, strict=True):
            known = first.get(name)
            if name not in squares or not _is_batch(values, count) or (known is not None and known.shape[1:] != values.shape[1:]):
                squares.pop(name, None)
                continue
            off = values - first.setdefault(name, values[:1].copy())
            total[name] = total.get(name, 0) + off.sum(axis=0, keepdims=True)
            squares[name] += float(np.square(off, dtype=np.float64).sum())
            largest[name] = max(largest[name], float(np.abs(off).max()))
        seen += count
    found = {}
    for name, square in squares.items() if seen else ():
        shift = total[name] / np.float32(seen)
        mean = first[name] + shift
        variance, scale = square / seen - float(np.square(shift, dtype=np.float64).sum()), float(np.square(mean, dtype=np.float64).sum())
        same = largest[name] <= _ROUNDING * float(np.abs(mean).max())
        if same or variance <= most * scale:
            found[name] = Steady(name=name, mean=mean, varies=0.0 if same else max(variance / scale, np.finfo(float).tiny))
    return found


def _is_batch(values: Any, count: int) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == np.float32 and values.ndim > 1 and len(values) == count and values.size > 0
