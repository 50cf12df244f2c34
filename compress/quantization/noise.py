"""Where quantization hurts: the signal to quantization noise ratio at each layer, and what each group of nodes costs when it alone is int8.

The ratio is 10 log10(E[x^2] / E[(x - x_q)^2]) in dB, x of the float32 graph and x_q of the quantized one. By hand: rounding to a step s
makes an error that is even between -s/2 and s/2, E[error^2] = s^2 / 12. Values even between 0 and 1 have E[x^2] = 1/3, so in 255 steps
their ratio is 10 log10(4 * 255^2) = 54 dB. 6 dB are one bit.

Both graphs run as one, each node as it is written: no fused int8 kernel, which differs by a step here and there, and only sums leave it.

Source: Bennett 1948, "Spectra of quantized signals" (s^2 / 12); Wu et al. 2020, arXiv:2004.09602, section 6 (one layer at a time).
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from ..graphs.index import add_constant, edited, is_a, make, maker, named, readers
from ..graphs.probe import run_in_batches, stored_constant
from .int8 import Prepared, quantize_prepared
from .records import Setting

_TWIN = "int8 twin/"  # before each name of the quantized graph, where both are one
_CLIPPED = 0.501  # steps: what is further off than rounding can bring it was outside of the range


@dataclass(frozen=True, kw_only=True)
class LayerNoise:
    """How far quantization moves one node's output.

    ``name``, ``kind``: of the node in the float graph, and its operator type; the last of all is the logits' name and "logits".
    ``weights``: name of its quantized weights. ``output_db``: at its output as the next node reads it, with all errors from before.
    ``own_db``: what storing the exact output in 8 bits would give alone; None where it is not stored so. ``weight_db``: of its weights;
    None where they are not quantized. ``clipped``: fraction (0 to 1) of the exact output that 8 bits cannot reach, None as own_db.
    Ratios are infinite where nothing is lost; JSON knows no infinity and has null there.
    """

    name: str
    kind: str
    weights: str | None = None
    output_db: float = math.inf
    own_db: float | None = None
    weight_db: float | None = None
    clipped: float | None = None


@dataclass(frozen=True, kw_only=True)
class GroupCost:
    """``logits_db``: ratio at the logits. ``changed``: fraction (0 to 1) of the images with another answer."""

    logits_db: float
    changed: float


class _Place(NamedTuple):
    """Where the graphs are compared: ``tensor`` of the float one, ``twin`` of the other; ``quantize`` and ``dequantize`` what rounds it."""

    layer: LayerNoise  # its noise is not known yet
    tensor: ir.Value
    twin: ir.Value
    quantize: ir.Node | None
    dequantize: ir.Node | None


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two mean squares; infinite where there is no noise, minus infinite where there is nothing else."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def layer_noise(
    prepared_model: onnx.ModelProto, quantized: onnx.ModelProto, images: np.ndarray, *, batch: int = 32
) -> tuple[LayerNoise, ...]:
    """The noise at each node with quantized weights or output, in the order of the float graph, and at the logits.

    Args:
        prepared_model: the float32 graph. quantized: the QDQ graph made of it; nodes of the same name belong together. An activation that
            became part of the node before it is no row of its own.
        images: uint8 (N, C, H, W).
        batch: images at a time; the memory needed does not grow with ``images``.
    """
    logits, both = logits_name(quantized), onnx.compose.add_prefix(quantized, _TWIN, rename_inputs=False)
    both.graph.node.extend(prepared_model.graph.node)
    both.graph.initializer.extend(prepared_model.graph.initializer)
    with edited(both) as graph:
        places, tensors = list(_places(graph)), named(graph)
        ends = tensors[logits_name(prepared_model)], tensors[f"{_TWIN}{logits}"]
        sums = [_add_sums(graph, place) for place in places] + [_add_squares(graph, *ends)]
        graph.outputs[:] = [value for found in sums for value in found.values()]
    totals = np.zeros(sum(map(len, sums)))
    for _, batch_sums in run_in_batches(both, images, batch):
        totals += [float(value) for value in batch_sums]
    seen = iter(totals.tolist())
    *rows, last = [{what: next(seen) for what in found} for found in sums]
    return (
        *(_measured(place.layer, **row) for place, row in zip(places, rows, strict=True)),
        _measured(LayerNoise(name=logits, kind="logits"), **last),
    )


def _measured(
    layer: LayerNoise, *, signal: float, noise: float, own: float | None = None, clipped: float = 0, count: float = 0
) -> LayerNoise:
    own_db = None if own is None else decibels(signal, own)
    return replace(layer, output_db=decibels(signal, noise), own_db=own_db, clipped=clipped / count if count else None)


def group_costs(prepared: Prepared, setting: Setting, groups: Mapping[str, Collection[str]], images: np.ndarray) -> dict[str, GroupCost]:
    """What each group of nodes costs when it alone is quantized, as ONNX Runtime computes it on this machine.

    ``groups``: names of the nodes of each. ``images``: uint8 (N, C, H, W).
    """
    exact = _logits(prepared.model, images)
    costs = {}
    for name, nodes in groups.items():
        found = _logits(quantize_prepared(prepared, setting, nodes), images)
        costs[name] = GroupCost(logits_db=_ratio(exact, found), changed=float((found.argmax(1) != exact.argmax(1)).mean()))
    return costs


def logits_name(model: onnx.ModelProto) -> str:
    """The output called "logits", or the first: probabilities may stand beside them."""
    names = [value.name for value in model.graph.output]
    return "logits" if "logits" in names else names[0]


def _logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """(N, K) as float64."""
    where = [value.name for value in model.graph.output].index(logits_name(model))
    return np.concatenate([found[where] for _, found in run_in_batches(model, images, 32, as_written=False)]).astype(np.float64)


def _places(graph: ir.Graph) -> Iterator[_Place]:
    nodes, tensors = {str(node.name): node for node in graph}, named(graph)
    done = set()
    for node in graph:
        last = nodes.get(f"{_TWIN}{node.name}")
        if last is None:
            continue
        pairs = [
            (one, stored_constant(one), stored_constant(two))
            for one, two in zip(node.inputs, last.inputs, strict=False)
            if maker(two, "DequantizeLinear") is not None
        ]
        weights, weight_db = next(
            ((str(one.name), _ratio(x, y)) for one, x, y in pairs if one and x is not None and y is not None and x.ndim > 1), (None, None)
        )
        while len(users := readers(last.outputs[0])) == 1 and is_a(users[0], "Relu", "Clip"):
            last = users[0]
        [result, *_] = last.outputs
        quantize = next((user for user in users if is_a(user, "QuantizeLinear")), None)
        if (quantize is None and weights is None) or result in done:
            continue
        done.add(result)
        dequantize = readers(quantize.outputs[0])[0] if quantize is not None else None
        same = tensors.get(str(result.name).removeprefix(_TWIN))
        tensor = same if same is not None and same.producer() is not None else nodes[str(last.name).removeprefix(_TWIN)].outputs[0]
        layer = LayerNoise(name=str(node.name), kind=node.op_type, weights=weights, weight_db=weight_db)
        yield _Place(layer, tensor, result if dequantize is None else dequantize.outputs[0], quantize, dequantize)


def _ratio(exact: np.ndarray, rounded: np.ndarray) -> float:
    exact = exact.astype(np.float64)
    return decibels(float(np.square(exact).mean()), float(np.square(exact - rounded).mean()))


def _add_sums(graph: ir.Graph, place: _Place) -> dict[str, ir.Value]:
    """What is to be known of one place; all are sums over the batch."""
    found = _add_squares(graph, place.tensor, place.twin)
    if place.quantize is None or place.dequantize is None:
        return found
    scales = place.quantize.inputs[1:]
    stored = _add(graph, "QuantizeLinear", place.tensor, *scales, **place.quantize.attributes)
    error = _add(graph, "Sub", place.tensor, _add(graph, "DequantizeLinear", stored, *scales, **place.dequantize.attributes))
    steps = _add(graph, "Div", _add(graph, "Abs", error), scales[0])
    outside = _add(graph, "Greater", steps, add_constant(graph, "limit", np.array(_CLIPPED, np.float32)))
    return found | {
        "own": _add(graph, "ReduceSumSquare", error, keepdims=0),
        "clipped": _add(graph, "ReduceSum", _add(graph, "Cast", outside, to=ir.DataType.INT64), keepdims=0),
        "count": _add(graph, "Size", place.tensor),
    }


def _add_squares(graph: ir.Graph, tensor: ir.Value, twin: ir.Value) -> dict[str, ir.Value]:
    error = _add(graph, "Sub", tensor, twin)
    return {name: _add(graph, "ReduceSumSquare", value, keepdims=0) for name, value in (("signal", tensor), ("noise", error))}


def _add(graph: ir.Graph, kind: str, tensor: ir.Value, *others: ir.Value | None, **attributes: Any) -> ir.Value:
    node = make(graph, kind, [tensor, *others], f"{tensor.name}/{kind}", **attributes)
    graph.append(node)
    return node.outputs[0]


def finite(one: LayerNoise | GroupCost) -> dict[str, Any]:
    """Its figures as JSON takes them, which has no infinity: what is exact has no noise, and so no ratio."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in vars(one).items()}
