"""Rewrites of an exported graph that change no answer, but the time: fewer and larger steps for the same sums.

- A Relu behind a Concat of convolutions moves to each convolution, into which runtimes fuse it.
- CBAM runs one MLP (convolutions of one pixel) on the average and on the maximum, and adds. Stacked on the height axis, once is enough:
  ``W r(a) + b + W r(m) + b`` is ``2W mean(r(a), r(m)) + 2b``, r being the first layer and its Relu. By hand, for W = 3, b = 1, r(a) = 2
  and r(m) = 4: 7 + 13 = 6 * 3 + 2 = 20.
- The factors that scale the image go into the weights of the first convolutions. An offset cannot: zeros that pad the image come after it.

Each rewrite is made only where it is exact but for rounding in float32: no tensor that disappears is used elsewhere or is an output.
Graphs with branches (If, Loop, Scan) are left as they are, and so is whatever does not have one of the three forms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .file import image_inputs

_SUBGRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def simplify(model: onnx.ModelProto) -> tuple[str, ...]:
    """Rewrite ``model`` in place where one of the forms above is found; shapes noted of inner tensors are dropped.

    Args:
        model: a valid float32 graph; constants lie among its initializers, as the exporter has them.

    Returns:
        What was done, in words, one entry for each kind of rewrite.
    """
    if any(entry.type in _SUBGRAPHS for node in model.graph.node for entry in node.attribute):
        return ()
    done = [words for words in (_move_relus(model), _stack_shared_mlps(model), _fold_pixel_scale(model)) if words]
    if done:
        del model.graph.value_info[:]  # stale by now
        used = {name for node in model.graph.node for name in node.input}
        used |= {value.name for value in (*model.graph.output, *model.graph.input)}  # old files list the weights among the inputs
        kept = [weight for weight in model.graph.initializer if weight.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return tuple(done)


class _Links:
    """Who makes and who uses each tensor of a graph, and its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        taken = {value.name for value in graph.input}  # an initializer that is an input too may be replaced by the caller
        floats = [weight for weight in graph.initializer if weight.data_type == onnx.TensorProto.FLOAT]
        self.weights = {weight.name: weight for weight in floats if weight.name not in taken}
        self.names = taken | {weight.name for weight in graph.initializer} | set(self.makers)

    def sole_user(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of type ``kind`` that alone, and once, uses the tensor."""
        users = self.users.get(name, [])
        return users[0] if len(users) == 1 and name not in self.outputs and _is(users[0], kind) else None

    def maker_for_one(self, name: str, kind: str) -> onnx.NodeProto | None:
        """The node of type ``kind`` that makes a tensor which is used once."""
        maker = self.makers.get(name)
        once = maker is not None and _is(maker, kind) and len(self.users.get(name, [])) == 1 and name not in self.outputs
        return maker if once else None

    def constant(self, name: str) -> NDArray[np.float32] | None:
        return numpy_helper.to_array(self.weights[name]) if name in self.weights else None

    def fresh(self, name: str) -> str:
        """``name``, or one like it that the graph does not have yet."""
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def add_constant(self, name: str, value: NDArray[np.float64]) -> str:
        name = self.fresh(name)
        self.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name


def _is(node: onnx.NodeProto, kind: str) -> bool:
    return node.op_type == kind and node.domain in ("", "ai.onnx")


def _settings(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _node(kind: str, inputs: Sequence[str], output: str, **settings: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{output}_{kind}", **settings)


def _replace(graph: onnx.GraphProto, instead: dict[str, list[onnx.NodeProto]]) -> None:
    """Put other nodes in the place of those that make the tensors named."""
    nodes = [new for node in graph.node for new in instead.get(node.output[0], [node])]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # deleting frees the graph's own
    del graph.node[:]
    graph.node.extend(copies)


def _move_relus(model: onnx.ModelProto) -> str:
    links = _Links(model.graph)
    instead: dict[str, list[onnx.NodeProto]] = {}
    for concat in model.graph.node:
        if not _is(concat, "Concat") or (relu := links.sole_user(concat.output[0], "Relu")) is None:
            continue
        if all(links.maker_for_one(name, "Conv") is not None for name in concat.input):
            parts = [links.fresh(f"{name}_relu") for name in concat.input]
            relus = [_node("Relu", [name], part) for name, part in zip(concat.input, parts, strict=True)]
            joined = _node("Concat", parts, relu.output[0], **_settings(concat))
            instead |= {concat.output[0]: [*relus, joined], relu.output[0]: []}
    _replace(model.graph, instead)
    return f"{len(instead) // 2} Relu moved before Concat" if instead else ""


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """One pass of the MLP: ``taken`` -> ``squeeze`` -> Relu -> ``excite``; ``tensors`` are what the three nodes make."""

    taken: str
    squeeze: onnx.NodeProto
    excite: onnx.NodeProto
    tensors: tuple[str, str, str]


def _stack_shared_mlps(model: onnx.ModelProto) -> str:
    links = _Links(model.graph)
    shapes = _shapes(model)
    doubled: dict[str, str] = {}
    instead: dict[str, list[onnx.NodeProto]] = {}
    count = 0
    for add in model.graph.node:
        first, second = (_branch(links, name) for name in add.input) if _is(add, "Add") else (None, None)
        if first is None or second is None or not _stackable(links, shapes, first, second):
            continue
        for name in first.excite.input[1:]:
            if name not in doubled:
                value = links.constant(name)
                assert value is not None, "checked in _stackable"
                doubled[name] = links.add_constant(f"{name}_doubled", 2.0 * value.astype(np.float64))
        stem = add.output[0]
        stacked, squeezed, active, mean = (links.fresh(f"{stem}_{part}") for part in ("stacked", "squeezed", "relu", "mean"))
        instead |= {tensor: [] for branch in (first, second) for tensor in branch.tensors}
        instead[stem] = [
            _node("Concat", [first.taken, second.taken], stacked, axis=2),
            _node("Conv", [stacked, *first.squeeze.input[1:]], squeezed, **_settings(first.squeeze)),
            _node("Relu", [squeezed], active),
            _node("GlobalAveragePool", [active], mean),
            _node("Conv", [mean, *(doubled[name] for name in first.excite.input[1:])], stem, **_settings(first.excite)),
        ]
        count += 1
    _replace(model.graph, instead)
    return f"{count} shared MLP run once on average and maximum" if count else ""


def _branch(links: _Links, name: str) -> _Branch | None:
    excite = links.maker_for_one(name, "Conv")
    relu = links.maker_for_one(excite.input[0], "Relu") if excite is not None else None
    squeeze = links.maker_for_one(relu.input[0], "Conv") if relu is not None else None
    if excite is None or relu is None or squeeze is None:
        return None
    return _Branch(taken=squeeze.input[0], squeeze=squeeze, excite=excite, tensors=(squeeze.output[0], relu.output[0], name))


def _stackable(links: _Links, shapes: dict[str, tuple[int | str, ...]], first: _Branch, second: _Branch) -> bool:
    """Whether the two are the same layers, pixel by pixel, of one pixel each and of batches of the same size."""
    for one, other in ((first.squeeze, second.squeeze), (first.excite, second.excite)):
        if one.input[1:] != other.input[1:] or _settings(one) != _settings(other) or not _pixelwise(links, one):
            return False
    if any(links.constant(name) is None for name in first.excite.input[1:]):
        return False
    one_shape, other_shape = shapes.get(first.taken, ()), shapes.get(second.taken, ())
    return len(one_shape) == 4 and "" not in one_shape and one_shape == other_shape and one_shape[2:] == (1, 1)


def _pixelwise(links: _Links, conv: onnx.NodeProto) -> bool:
    """A convolution with one pixel as its kernel, and neither steps nor padding."""
    weight, settings = links.constant(conv.input[1]), _settings(conv)
    plain = not any(settings.get("pads", ())) and set(settings.get("strides", (1,))) == {1}
    return weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1) and plain


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Of each tensor whose rank is known: numbers, names of free sizes, and "" for unknown ones."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    graph = onnx.shape_inference.infer_shapes(bare).graph
    values = [value for value in (*graph.value_info, *graph.input) if value.type.tensor_type.HasField("shape")]
    return {value.name: tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim) for value in values}


def _fold_pixel_scale(model: onnx.ModelProto) -> str:
    """Fold all factors of the image into the convolutions behind them; where there are none, many factors become one."""
    links = _Links(model.graph)
    entries = image_inputs(model)
    if len(entries) != 1 or len(entries[0].type.tensor_type.shape.dim) != 4:
        return ""
    channels = entries[0].type.tensor_type.shape.dim[1].dim_value
    cast = links.sole_user(entries[0].name, "Cast")
    pixels = cast.output[0] if cast is not None else entries[0].name
    scaled, factor = pixels, np.ones(1)
    muls: list[onnx.NodeProto] = []
    while (mul := links.sole_user(scaled, "Mul")) is not None and (found := _factor(links, mul, scaled, channels)) is not None:
        factor, scaled, muls = factor * found, mul.output[0], [*muls, mul]
    instead: dict[str, list[onnx.NodeProto]] = {mul.output[0]: [] for mul in muls}
    users = links.users.get(scaled, [])
    if not muls or scaled in links.outputs:
        return ""
    if all(_takes_factor(links, node, scaled, factor) for node in users):
        for conv in users:
            weight = links.constant(conv.input[1])
            assert weight is not None, "checked in _takes_factor"
            name = links.add_constant(f"{conv.input[1]}_scaled", weight * factor.reshape(1, -1, 1, 1))
            inputs = [pixels, name, *conv.input[2:]]
            instead[conv.output[0]] = [helper.make_node("Conv", inputs, conv.output, name=conv.name, **_settings(conv))]
        words = f"pixel scale folded into {len(users)} Conv"
    elif len(muls) > 1:
        shaped = factor if factor.size == 1 else factor.reshape(1, -1, 1, 1)
        instead[scaled] = [_node("Mul", [pixels, links.add_constant(f"{scaled}_factor", shaped)], scaled)]
        words = f"{len(muls)} pixel scales made one"
    else:
        return ""
    _replace(model.graph, instead)
    return words


def _factor(links: _Links, mul: onnx.NodeProto, scaled: str, channels: int) -> NDArray[np.float64] | None:
    """The constant that ``mul`` multiplies the image by: one number (1,), or one per channel (C,)."""
    value = links.constant(mul.input[1] if mul.input[0] == scaled else mul.input[0])
    if value is None or value.ndim > 4 or (value.size > 1 and (value.ndim < 3 or value.shape[-3] != value.size or value.size != channels)):
        return None
    return value.astype(np.float64).reshape(-1)


def _takes_factor(links: _Links, conv: onnx.NodeProto, scaled: str, factor: NDArray[np.float64]) -> bool:
    """Whether it is a convolution of the image, with constant weights that a factor per channel fits."""
    if not _is(conv, "Conv") or list(conv.input).count(scaled) != 1 or conv.input[0] != scaled or links.constant(conv.input[1]) is None:
        return False
    return factor.size == 1 or _settings(conv).get("group", 1) == 1
