"""Rewrites of an exported graph that change no answer, but the time: fewer and larger steps for the same sums.

- A Relu behind a Concat of convolutions moves to each convolution, into which runtimes fuse it.
- CBAM runs one MLP (convolutions of one pixel) on the average and on the maximum, and adds. Stacked on the height axis, once is enough:
  ``W r(a) + b + W r(m) + b`` is ``2W mean(r(a), r(m)) + 2b``, r being the first layer and its Relu. By hand, for W = 3, b = 1, r(a) = 2
  and r(m) = 4: 7 + 13 = 6 * 3 + 2 = 20.
- The factors that scale the image go into the weights of the first convolutions. An offset cannot: zeros that pad the image come after it.

Each rewrite is made only where it is exact but for rounding in float32: no tensor that disappears is used elsewhere or is an output.
Graphs with branches (If, Loop, Scan) are left as they are, and so is whatever does not have one of the three forms.

``fold_tensors`` is for what somebody found to be constant, and changes answers by as much as it is not. By hand: in ``conv -> relu -> Mul``
by a gate that is always 0.5, the weights and the bias of the convolution are halved, and the Mul and all that made the gate are gone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .index import add_constant, constant, edited, index, is_a, make, maker, named, only_reader, readers, settings, sizes, sweep


def simplify(model: onnx.ModelProto) -> tuple[str, ...]:
    """Rewrite ``model`` in place where one of the forms above is found; shapes noted of inner tensors are dropped.

    Args:
        model: a valid float32 graph; constants lie among its initializers, as the exporter has them.

    Returns:
        What was done, in words, one entry for each kind of rewrite.
    """
    with edited(model) as graph:
        if any(graph.subgraphs()):
            return ()
        steps = (_move_relus(graph), _stack_shared_mlps(graph, _shapes(model)), _fold_pixel_scale(graph))
        done = tuple(words for words in steps if words)
        if done:
            sweep(graph)
    if done:
        del model.graph.value_info[:]  # stale by now
    return done


def _maker_for_one(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of type ``kind`` that makes a tensor which is used once."""
    return maker(value, kind) if value is not None and only_reader(value) is not None else None


def _weight(value: ir.Value | None) -> NDArray[np.float32] | None:
    """A float32 constant; one that is an input too may be replaced by the caller, and is none."""
    values = constant(value) if value is not None and not value.is_graph_input() else None
    return values if values is not None and values.dtype == np.float32 else None


def _move_relus(graph: ir.Graph) -> str:
    count = 0
    for concat in [node for node in graph if is_a(node, "Concat")]:
        relu = only_reader(concat.outputs[0], "Relu")
        if relu is None or any(_maker_for_one(value, "Conv") is None for value in concat.inputs):
            continue
        [result] = relu.outputs
        relus = [make(graph, "Relu", [value], f"{value.name}_relu") for value in concat.inputs if value is not None]
        joined = make(graph, "Concat", [one.outputs[0] for one in relus], result, **concat.attributes)
        ir.convenience.replace_nodes_and_values(graph, concat, [concat, relu], [*relus, joined], [result], joined.outputs)
        count += 1
    return f"{count} Relu moved before Concat" if count else ""


class _Branch(NamedTuple):
    """One pass of the MLP: ``squeeze`` -> ``relu`` -> ``excite``."""

    squeeze: ir.Node
    relu: ir.Node
    excite: ir.Node


def _stack_shared_mlps(graph: ir.Graph, shapes: dict[str, tuple[int | str, ...]]) -> str:
    doubled: dict[ir.Value, ir.Value] = {}
    count = 0
    for add in [node for node in graph if is_a(node, "Add")]:
        first, second = (_branch(value) for value in add.inputs)
        if first is None or second is None or not _stackable(shapes, first, second):
            continue
        for one in first.excite.inputs[1:]:
            if one is not None and one not in doubled:
                value = _weight(one)
                assert value is not None, "checked in _stackable"
                doubled[one] = add_constant(graph, f"{one.name}_doubled", (2.0 * value.astype(np.float64)).astype(np.float32))
        [result] = add.outputs
        stacked = make(graph, "Concat", [first.squeeze.inputs[0], second.squeeze.inputs[0]], f"{result.name}_stacked", axis=2)
        squeezed = make(graph, "Conv", [*stacked.outputs, *first.squeeze.inputs[1:]], f"{result.name}_squeezed", **first.squeeze.attributes)
        active = make(graph, "Relu", squeezed.outputs, f"{result.name}_relu")
        mean = make(graph, "GlobalAveragePool", active.outputs, f"{result.name}_mean")
        weights = [doubled[one] for one in first.excite.inputs[1:] if one is not None]
        excited = make(graph, "Conv", [*mean.outputs, *weights], result, **first.excite.attributes)
        new = [stacked, squeezed, active, mean, excited]
        ir.convenience.replace_nodes_and_values(graph, add, [add, *first, *second], new, [result], excited.outputs)
        count += 1
    return f"{count} shared MLP run once on average and maximum" if count else ""


def _branch(value: ir.Value | None) -> _Branch | None:
    excite = _maker_for_one(value, "Conv")
    relu = _maker_for_one(excite.inputs[0], "Relu") if excite is not None else None
    squeeze = _maker_for_one(relu.inputs[0], "Conv") if relu is not None else None
    return _Branch(squeeze, relu, excite) if excite is not None and relu is not None and squeeze is not None else None


def _stackable(shapes: dict[str, tuple[int | str, ...]], first: _Branch, second: _Branch) -> bool:
    """Whether the two are the same layers, pixel by pixel, of one pixel each and of batches of the same size."""
    for one, other in ((first.squeeze, second.squeeze), (first.excite, second.excite)):
        if one.inputs[1:] != other.inputs[1:] or settings(one) != settings(other) or not _pixelwise(one):
            return False
    if any(_weight(value) is None for value in first.excite.inputs[1:]):
        return False
    taken = [branch.squeeze.inputs[0] for branch in (first, second)]
    one_shape, other_shape = (shapes.get(str(value.name), ()) for value in taken if value is not None)
    return len(one_shape) == 4 and "" not in one_shape and one_shape == other_shape and one_shape[2:] == (1, 1)


def _pixelwise(conv: ir.Node) -> bool:
    """A convolution with one pixel as its kernel, and neither steps nor padding."""
    weight, own = _weight(conv.inputs[1]), settings(conv)
    plain = not any(own.get("pads", ())) and set(own.get("strides", (1,))) == {1}
    return weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1) and plain


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Of each tensor, inferred anew, as what a file notes may be stale: numbers, names of free sizes, and "" for unknown ones."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    values = named(index(onnx.shape_inference.infer_shapes(bare))).items()
    return {name: tuple(dim if isinstance(dim, int) else dim.value or "" for dim in value.shape or ()) for name, value in values}


def _fold_pixel_scale(graph: ir.Graph) -> str:
    """Fold all factors of the image into the convolutions behind them; where there are none, many factors become one."""
    entries = [value for value in graph.inputs if not value.is_initializer()]
    if len(entries) != 1 or len(sizes(entries[0])) != 4:
        return ""
    cast = only_reader(entries[0], "Cast")
    pixels = scaled = entries[0] if cast is None else cast.outputs[0]
    factor, muls = np.ones(1), list[ir.Node]()
    while (mul := only_reader(scaled, "Mul")) is not None and (found := _factor(mul, scaled, sizes(entries[0])[1])) is not None:
        factor, scaled, muls = factor * found, mul.outputs[0], [*muls, mul]
    users = readers(scaled)
    if not muls or scaled.is_graph_output():
        return ""
    if all(_takes_factor(node, scaled, factor) for node in users):
        for conv in users:
            weight, [result] = _weight(conv.inputs[1]), conv.outputs
            assert weight is not None and conv.inputs[1] is not None, "checked in _takes_factor"
            product = (weight * factor.reshape(1, -1, 1, 1)).astype(np.float32)
            inputs = [pixels, add_constant(graph, f"{conv.inputs[1].name}_scaled", product), *conv.inputs[2:]]
            folded = make(graph, "Conv", inputs, result, **conv.attributes)
            folded.name = conv.name
            ir.convenience.replace_nodes_and_values(graph, conv, [conv], [folded], [result], folded.outputs)
        return f"pixel scale folded into {len(users)} Conv"
    if len(muls) == 1:
        return ""
    shaped = (factor if factor.size == 1 else factor.reshape(1, -1, 1, 1)).astype(np.float32)
    once = make(graph, "Mul", [pixels, add_constant(graph, f"{scaled.name}_factor", shaped)], scaled)
    ir.convenience.replace_nodes_and_values(graph, muls[-1], muls[::-1], [once], [scaled], once.outputs)
    return f"{len(muls)} pixel scales made one"


def _factor(mul: ir.Node, scaled: ir.Value, channels: int | str) -> NDArray[np.float64] | None:
    """The constant that ``mul`` multiplies the image by: one number (1,), or one per channel (C,)."""
    value = _weight(mul.inputs[1] if mul.inputs[0] is scaled else mul.inputs[0])
    if value is None or value.ndim > 4 or (value.size > 1 and (value.ndim < 3 or value.shape[-3] != value.size or value.size != channels)):
        return None
    return value.astype(np.float64).reshape(-1)


def _takes_factor(conv: ir.Node, scaled: ir.Value, factor: NDArray[np.float64]) -> bool:
    """Whether it is a convolution of the image, with constant weights that a factor per channel fits."""
    if not is_a(conv, "Conv") or list(conv.inputs).count(scaled) != 1 or conv.inputs[0] is not scaled or _weight(conv.inputs[1]) is None:
        return False
    return factor.size == 1 or settings(conv).get("group", 1) == 1


def fold_tensors(model: onnx.ModelProto, values: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy in which tensors are constants, without what only they needed; a factor goes into weights where that is exact.

    A factor per channel goes into the convolutions and batch norms before it, through what keeps the sign (Relu, pooling) and Concat, or
    into all the convolutions that read the product. Where neither is so the product stays.

    Args:
        model: a valid float32 graph without branches.
        values: of tensors by name, (1, ...) for (B, ...); what reads them must broadcast.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    shapes = _shapes(model)
    with edited(folded) as graph:
        tensors, factors = named(graph), list[ir.Value]()
        for name, value in values.items():
            factors.append(add_constant(graph, f"{name}_constant", value))
            tensors[name].replace_all_uses_with(factors[-1])
        sweep(graph)
        for factor in factors:
            for mul in [node for node in readers(factor) if is_a(node, "Mul")]:
                _absorb(graph, mul, mul.inputs[mul.inputs[0] is factor], shapes)
        sweep(graph)
    del folded.graph.value_info[:]  # stale by now
    simplify(folded)  # the image may be read once now
    return folded


def _absorb(graph: ir.Graph, mul: ir.Node, data: ir.Value | None, shapes: dict[str, tuple[int | str, ...]]) -> None:
    """Take a product with a constant out of the graph where the weights before it or behind it can have the factor."""
    [result] = mul.outputs
    shape = shapes.get(str(data.name), ()) if data is not None else ()
    if data is None or result.is_graph_output() or len(shape) != 4 or (factor := _factor(mul, data, shape[1])) is None:
        return
    if not (factor == 1).all():
        takers = _takers(data, factor, shapes)
        if takers is None:
            if not readers(result) or not all(_takes_factor(node, result, factor) for node in readers(result)):
                return
            takers = [(node, factor.reshape(1, -1)) for node in readers(result)]
        for node, part in takers:
            _scale(graph, node, part)
    result.replace_all_uses_with(data)
    graph.remove(mul, safe=True)


def _takers(
    value: ir.Value | None, factor: NDArray[np.float64], shapes: dict[str, tuple[int | str, ...]]
) -> list[tuple[ir.Node, NDArray[np.float64]]] | None:
    """The nodes whose weights can multiply the channels of a tensor, each with its part of the factor; None where one cannot."""
    node = maker(value)
    if value is None or node is None or only_reader(value) is None:
        return None
    weights = [_weight(one) for one in node.inputs[1:]]
    if is_a(node, "Conv", "BatchNormalization"):
        known = all(weight is not None for weight in weights) and len(node.outputs) == 1
        return [(node, factor)] if known else None
    if is_a(node, "Identity", "AveragePool", "GlobalAveragePool") or (
        is_a(node, "Relu", "LeakyRelu", "MaxPool", "GlobalMaxPool") and factor.min() >= 0 and len(node.outputs) == 1
    ):
        return _takers(node.inputs[0], factor, shapes)
    if not is_a(node, "Concat") or settings(node)["axis"] != 1:
        return None
    widths = [shapes.get(str(one.name), ("", ""))[1] for one in node.inputs if one is not None]
    if not all(isinstance(width, int) for width in widths):
        return None
    ends = np.cumsum(widths)[:-1]
    parts = np.split(factor, ends) if factor.size > 1 else [factor] * len(widths)
    found = [_takers(one, part, shapes) for one, part in zip(node.inputs, parts, strict=True)]
    return None if any(part is None for part in found) else [one for part in found if part is not None for one in part]


def _scale(graph: ir.Graph, node: ir.Node, factor: NDArray[np.float64]) -> None:
    """Multiply what a convolution or batch norm gives by ``factor`` (C,), or what a convolution takes by (1, C)."""
    for place in (1,) if factor.ndim == 2 else (1, 2):
        if len(node.inputs) > place and (value := node.inputs[place]) is not None:
            weight = _weight(value)
            assert weight is not None, "checked before"
            scaled = weight * factor.reshape(*factor.shape, *[1] * (weight.ndim - factor.ndim))
            node.replace_input_with(place, add_constant(graph, f"{value.name}_scaled", scaled.astype(np.float32)))
