"""Where quantization hurts: the signal to quantization noise ratio at each layer, and what each group of nodes costs when it alone is int8.

The ratio is 10 log10(E[x^2] / E[(x - x_q)^2]) in dB, x of the float32 graph and x_q of the quantized one. By hand: rounding to a step s
makes an error that is even between -s/2 and s/2, E[error^2] = s^2 / 12. Values even between 0 and 1 have E[x^2] = 1/3, so in 255 steps
their ratio is 10 log10(4 * 255^2) = 54 dB. 6 dB are one bit.

Both graphs run as one, each node as it is written: no fused int8 kernel, which differs by a step here and there, and only sums leave it.

Source: Bennett 1948, "Spectra of quantized signals" (s^2 / 12); Wu et al. 2020, arXiv:2004.09602, section 6 (one layer at a time).
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graphs.probe import constants_of, run_in_batches
from .int8 import Prepared, StaticConfig, quantize_prepared

_TWIN = "int8/"  # before each name of the quantized graph
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
    weights: str | None
    output_db: float
    own_db: float | None
    weight_db: float | None
    clipped: float | None


@dataclass(frozen=True, kw_only=True)
class GroupCost:
    """``logits_db``: ratio at the logits. ``changed``: fraction (0 to 1) of the images with another answer."""

    logits_db: float
    changed: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Place:
    """Where the graphs are compared: ``tensor`` of the float one, ``twin`` of the other; ``quantize`` and ``dequantize`` what rounds it."""

    node: onnx.NodeProto
    weights: str | None
    weight_db: float | None
    tensor: str
    twin: str
    quantize: onnx.NodeProto | None
    dequantize: onnx.NodeProto | None


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
    places = list(_places(prepared_model, quantized))
    logits = logits_name(quantized)
    graph = _both(prepared_model, quantized)
    for index, place in enumerate(places):
        _add_sums(graph, f"{index}/", place)
    _add_squares(graph, "logits/", logits_name(prepared_model), _TWIN + logits)
    sums = dict.fromkeys((value.name for value in graph.graph.output), 0.0)
    for _, found in run_in_batches(graph, images, batch):
        sums = {name: total + float(value) for (name, total), value in zip(sums.items(), found, strict=True)}

    rows = []
    for index, place in enumerate(places):
        signal, noise, own, clipped, count = (sums.get(f"{index}/{what}") for what in ("signal", "noise", "own", "clipped", "count"))
        assert signal is not None and noise is not None, "each place has both"
        rows.append(
            LayerNoise(
                name=place.node.name,
                kind=place.node.op_type,
                weights=place.weights,
                output_db=decibels(signal, noise),
                own_db=None if own is None else decibels(signal, own),
                weight_db=place.weight_db,
                clipped=clipped / count if clipped is not None and count else None,
            )
        )
    last = decibels(sums["logits/signal"], sums["logits/noise"])
    return (*rows, LayerNoise(name=logits, kind="logits", weights=None, output_db=last, own_db=None, weight_db=None, clipped=None))


def group_costs(
    prepared: Prepared, config: StaticConfig, groups: Mapping[str, Collection[str]], images: np.ndarray, *, batch: int = 32
) -> dict[str, GroupCost]:
    """What each group of nodes costs when it alone is quantized, as ONNX Runtime computes it on this machine.

    Args:
        prepared: of ``quantize.prepare``. config: how to quantize.
        groups: names of the nodes of each group.
        images: uint8 (N, C, H, W).
    """
    exact = _logits(prepared.model, images, batch)
    costs = {}
    for name, nodes in groups.items():
        found = _logits(quantize_prepared(prepared, config, nodes), images, batch)
        ratio = decibels(float(np.square(exact).mean()), float(np.square(found - exact).mean()))
        costs[name] = GroupCost(logits_db=ratio, changed=float((found.argmax(1) != exact.argmax(1)).mean()))
    return costs


def logits_name(model: onnx.ModelProto) -> str:
    """The output called "logits", or the first: probabilities may stand beside them."""
    names = [value.name for value in model.graph.output]
    return "logits" if "logits" in names else names[0]


def _logits(model: onnx.ModelProto, images: np.ndarray, batch: int) -> np.ndarray:
    """(N, K) as float64."""
    where = [value.name for value in model.graph.output].index(logits_name(model))
    return np.concatenate([found[where] for _, found in run_in_batches(model, images, batch, as_written=False)]).astype(np.float64)


def _places(prepared_model: onnx.ModelProto, quantized: onnx.ModelProto) -> Iterator[_Place]:
    exact, rounded = constants_of(prepared_model), constants_of(quantized)
    stored = {output for node in quantized.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    before = {node.name: node for node in prepared_model.graph.node}
    tensors = {output for node in prepared_model.graph.node for output in node.output}
    after = {node.name: node for node in quantized.graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in quantized.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    done = set()
    for node in prepared_model.graph.node:
        if node.name not in after:
            continue
        last = after[node.name]
        pairs = [
            pair for pair in zip(node.input, last.input, strict=False) if pair[1] in stored and pair[0] in exact and pair[1] in rounded
        ]
        weights, twins = next(((one, two) for one, two in pairs if exact[one].ndim > 1), (None, ""))
        while len(users := readers.get(last.output[0], [])) == 1 and users[0].op_type in ("Relu", "Clip"):
            last = users[0]
        quantize = next((user for user in users if user.op_type == "QuantizeLinear"), None)
        if (quantize is None and weights is None) or last.output[0] in done:
            continue
        done.add(last.output[0])
        dequantize = readers[quantize.output[0]][0] if quantize is not None else None
        yield _Place(
            node=node,
            weights=weights,
            weight_db=None if weights is None else _ratio(exact[weights], rounded[twins]),
            tensor=last.output[0] if last.output[0] in tensors else before[last.name].output[0],
            twin=_TWIN + (last if dequantize is None else dequantize).output[0],
            quantize=quantize,
            dequantize=dequantize,
        )


def _ratio(exact: np.ndarray, rounded: np.ndarray) -> float:
    exact = exact.astype(np.float64)
    return decibels(float(np.square(exact).mean()), float(np.square(exact - rounded).mean()))


def _both(prepared_model: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Both graphs in one, behind the same input, without an output."""
    twin = onnx.compose.add_prefix(quantized, _TWIN, rename_inputs=False)
    both = onnx.ModelProto()
    both.CopyFrom(twin)
    for field in ("node", "initializer", "sparse_initializer", "output", "value_info"):
        both.graph.ClearField(field)
    for part in (prepared_model, twin):
        both.graph.node.extend(part.graph.node)
        both.graph.initializer.extend(part.graph.initializer)
    return both


def _add_sums(model: onnx.ModelProto, name: str, place: _Place) -> None:
    """Outputs for one place, each called ``name`` and what it is; all are sums over the batch."""
    _add_squares(model, name, place.tensor, place.twin)
    if place.quantize is None or place.dequantize is None:
        return
    scales = [_TWIN + one for one in place.quantize.input[1:]]
    for node, given, made in ((place.quantize, place.tensor, f"{name}q"), (place.dequantize, f"{name}q", f"{name}rounded")):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = made
        del copy.input[:], copy.output[:]
        copy.input.extend([given, *scales])
        copy.output.append(made)
        model.graph.node.append(copy)
    _add_nodes(
        model,
        helper.make_node("Sub", [place.tensor, f"{name}rounded"], [f"{name}own error"]),
        helper.make_node("ReduceSumSquare", [f"{name}own error"], [f"{name}own"], keepdims=0),
        helper.make_node("Abs", [f"{name}own error"], [f"{name}distance"]),
        helper.make_node("Div", [f"{name}distance", scales[0]], [f"{name}steps"]),
        helper.make_node("Greater", [f"{name}steps", f"{name}limit"], [f"{name}outside"]),
        helper.make_node("Cast", [f"{name}outside"], [f"{name}outside int"], to=onnx.TensorProto.INT64),
        helper.make_node("ReduceSum", [f"{name}outside int"], [f"{name}clipped"], keepdims=0),
        helper.make_node("Size", [place.tensor], [f"{name}count"]),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(_CLIPPED, np.float32), f"{name}limit"))
    model.graph.output.extend(onnx.ValueInfoProto(name=name + what) for what in ("own", "clipped", "count"))


def _add_squares(model: onnx.ModelProto, name: str, tensor: str, twin: str) -> None:
    _add_nodes(
        model,
        helper.make_node("ReduceSumSquare", [tensor], [f"{name}signal"], keepdims=0),
        helper.make_node("Sub", [tensor, twin], [f"{name}error"]),
        helper.make_node("ReduceSumSquare", [f"{name}error"], [f"{name}noise"], keepdims=0),
    )
    model.graph.output.extend(onnx.ValueInfoProto(name=name + what) for what in ("signal", "noise"))


def _add_nodes(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    for node in nodes:
        node.name = node.output[0]
    model.graph.node.extend(nodes)
