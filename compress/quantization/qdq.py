"""Edits of graphs with QuantizeLinear and DequantizeLinear (QDQ), before and after ONNX Runtime's quantizer has put them in.

They make room for the names that it gives, and take out roundings that cost time or accuracy; what else a graph computes stays.
"""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from ..graphs.index import constant, edited, fresh, index, is_a, maker, only_reader, readers, sweep

# What the quantizer appends to the name of a tensor or node, to have one for what it adds: a tensor, or a node.
_TENSORS: tuple[str, ...] = ("_scale", "_zero_point", "_quantized", "_quantized_scale", "_quantized_zero_point", "_QuantizeLinear_Output")
_TENSORS += ("_DequantizeLinear_Output", "_output_quantized", "_output_quantized_cast_output", "_quant_scales_mul:0")
_NODES = ("_QuantizeLinear", "_DequantizeLinear", "_quant", "_quant_scales_mul", "_quant_output_scale_mul", "_output_quantized_cast")
_PASSED_BY_QUANTIZE = ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice")  # seen in ONNX Runtime's optimised graphs, besides MaxPool


def rename_clashes(model: onnx.ModelProto) -> None:
    """Rename, in place, what is called as ONNX Runtime's quantizer calls what it adds: beside a tensor "x" a weight "x_scale".

    The quantizer takes such a weight for the scale of "x", without a word, and makes a second node of a name that there is.
    """
    if _clashes(index(model)):
        with edited(model) as graph:
            for one in _clashes(graph):
                one.name = fresh(graph, f"{one.name}.", of_node=isinstance(one, ir.Node))


def _clashes(graph: ir.Graph) -> list[ir.Value | ir.Node]:
    tensors = ir.convenience.create_value_mapping(graph)
    nodes = {str(node.name): node for node in graph.all_nodes()}
    stems = (*tensors, *nodes)
    found = [tensors[name] for name in sorted({f"{stem}{ending}" for stem in stems for ending in _TENSORS} & tensors.keys())]
    inner = [one for one in found if not one.is_graph_input() and not one.is_graph_output()]
    return [*inner, *(nodes[name] for name in sorted({f"{stem}{ending}" for stem in stems for ending in _NODES} & nodes.keys()))]


def image_scale(tensor: ir.Value | None) -> tuple[str, float, int] | None:
    """Where the tensor is scale * (image - zero point) of a uint8 input of the graph: the input's name, the scale and the zero point.

    By hand: u / 255 is 1 / 255 * (u - 0). (u / 255 - 0.5) / 0.25 is 4 / 255 * (u - 127.5): None, as 127.5 is no uint8. Also None: a scale
    or an offset that differs by channel, and anything but Cast, Mul, Div, Add and Sub in between.
    """
    scale, offset = 1.0, 0.0  # what is known by now: the tensor asked for is scale * tensor + offset
    while (node := maker(tensor, "Cast", "Mul", "Div", "Add", "Sub")) is not None:
        tensor = node.inputs[0]
        if node.op_type != "Cast":
            values = constant(node.inputs[1])
            if constant(tensor) is not None and node.op_type in ("Mul", "Add"):
                tensor, values = node.inputs[1], constant(tensor)
            if values is None or len(np.unique(values)) != 1:
                return None
            value = float(values.flat[0])
            if node.op_type in ("Add", "Sub"):
                offset += scale * (value if node.op_type == "Add" else -value)
            else:
                scale *= value if node.op_type == "Mul" else 1 / value if value else 0.0
    if tensor is None or not tensor.is_graph_input() or tensor.dtype != ir.DataType.UINT8:
        return None
    zero_point = -offset / scale if scale > 0 else -1.0
    whole = round(zero_point)
    return (str(tensor.name), scale, whole) if abs(zero_point - whole) < 1e-3 and 0 <= whole <= 255 else None


def read_image_directly(graph: ir.Graph, tensors: Mapping[str, str]) -> None:
    """Let the DequantizeLinear of each of the tensors read the uint8 image that it is made of, in place; drop what nothing reads then.

    Where the scale is the image's own, Cast, Mul and QuantizeLinear only give back the image that they began with; the caller sees to it.
    ``tensors``: name of a quantized float32 tensor, to that of the graph's input.
    """
    images = {value.name: value for value in graph.inputs}
    for dequantize in [node for node in graph if is_a(node, "DequantizeLinear")]:
        quantize = maker(dequantize.inputs[0], "QuantizeLinear")
        source = quantize.inputs[0] if quantize is not None else None
        image = images.get(tensors.get(str(source.name))) if source is not None else None
        if image is not None:
            dequantize.replace_input_with(0, image)
    sweep(graph)


def pool_before_clipping(graph: ir.Graph) -> None:
    """Swap Relu (or Clip) and the float MaxPool behind it where what comes out is quantized next, in place.

    Both keep the order of numbers, so nothing changes but the time: ONNX Runtime moves a QuantizeLinear up through a MaxPool, and through
    what only moves values, and its int8 MaxPool is slow: 1.7 of the float latency for two convolutions, 0.5 with the two swapped.
    """
    for quantize in [node for node in graph if is_a(node, "QuantizeLinear")]:
        pool = maker(quantize.inputs[0])
        while pool is not None and is_a(pool, *_PASSED_BY_QUANTIZE):
            pool = maker(pool.inputs[0])
        if pool is None or not is_a(pool, "MaxPool") or len(pool.outputs) > 1:
            continue
        clip = maker(pool.inputs[0], "Relu", "Clip")
        if clip is not None and maker(clip.inputs[0], "DequantizeLinear") is None and only_reader(clip.outputs[0]) is not None:
            _swap(clip, pool)


def _swap(first: ir.Node, second: ir.Node) -> None:
    """Exchange what two nodes in a row do, each to its first input; their tensors keep their names, and the nodes stay in order."""
    limits, attributes = first.inputs[1:], (second.attributes.copy(), first.attributes.copy())
    first.resize_inputs(1)
    second.resize_inputs(1 + len(limits))
    for place, value in enumerate(limits, 1):
        second.replace_input_with(place, value)
    first.op_type, second.op_type = second.op_type, first.op_type
    first.name, second.name = second.name, first.name
    for node, own in zip((first, second), attributes, strict=True):
        node.attributes.clear()
        node.attributes.update(own)


def keep_outputs_float(graph: ir.Graph, kinds: Collection[str], after: Collection[str | None]) -> None:
    """Take QuantizeLinear and DequantizeLinear off the logits, in place: off what a node of ``kinds`` makes for outputs and ``after`` only.

    ``kinds``: operator types whose int8 kernels can give float32. ``after``: names of the nodes behind the last weights, such as Softmax.
    """
    for dequantize in [node for node in graph if is_a(node, "DequantizeLinear")]:
        quantize, [rounded] = maker(dequantize.inputs[0], "QuantizeLinear"), dequantize.outputs
        exact = quantize.inputs[0] if quantize is not None else None
        if exact is None or maker(exact, *kinds) is None or only_reader(exact) is None:
            continue
        if all(node.name in after for node in readers(rounded)):
            exact.type, exact.shape, exact.name = rounded.type, rounded.shape, rounded.name
            rounded.replace_all_uses_with(exact, replace_graph_outputs=True)
    sweep(graph)
