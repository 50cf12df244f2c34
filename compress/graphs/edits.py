"""Changes to an ONNX graph before and after quantization, each of which leaves what it computes as it was.

Works on the main graph; nodes inside the branches of If, Loop and Scan are left alone.
"""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .file import open_session

_ADDED = ("_scale", "_zero_point", "_quantized", "_QuantizeLinear_Output", "_DequantizeLinear_Output")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_PASSED_BY_QUANTIZE = ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice")  # seen in ONNX Runtime's optimised graphs, besides MaxPool


def fold_constants(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Fold constants and batch norm as ONNX Runtime's basic optimisation does; every node gets a name, and no inferred shapes are left.

    Raises:
        CompressError: ONNX Runtime cannot load the model, which the error calls ``name``.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        open_session(model, name, options)
        folded = onnx.load(Path(folder) / "folded.onnx")
    del folded.graph.value_info[:]  # stale shapes of transposed weights: "Inferred shape and existing shape differ"
    used = {node.domain for node in folded.graph.node} | {entry.domain for entry in model.opset_import}
    imports = [entry for entry in folded.opset_import if entry.domain in used]  # ONNX Runtime adds every domain that it knows
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    for index, node in enumerate(folded.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return folded


def rename_clashes(model: onnx.ModelProto) -> None:
    """Rename, in place, what is called as ONNX Runtime's quantizer calls what it adds: beside a tensor "x" a weight "x_scale".

    The quantizer takes such a weight for the scale of "x", without a word.
    """
    graph = model.graph
    names = {name for node in graph.node for name in (*node.input, *node.output) if name} | {one.name for one in graph.initializer}
    kept = {value.name for value in (*graph.input, *graph.output)}
    clashing = {f"{name}{suffix}" for name in names for suffix in _ADDED} & names - kept
    new = {name: f"{name}." for name in clashing}
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [new.get(name, name) for name in field]
    for entry in (*graph.initializer, *graph.value_info):
        entry.name = new.get(entry.name, entry.name)


def weighted_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions and matrix products that have a constant float32 factor."""
    weights = {weight.name for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT}
    return [node for node in model.graph.node if node.op_type in WEIGHTED and not weights.isdisjoint(node.input[:2])]


def nodes_before_weights(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that no weight has reached yet, such as the scaling of the image; a graph lists its nodes in the order of computation."""
    weighted = {node.name for node in weighted_nodes(model)}
    reached: set[str] = set()
    before = []
    for node in model.graph.node:
        if node.name in weighted or not reached.isdisjoint(node.input):
            reached.update(node.output)
        else:
            before.append(node)
    return before


def split_gemms(model: onnx.ModelProto) -> None:
    """Turn each Gemm that is a linear layer with constant weights into MatMul and Add, in place.

    ONNX Runtime's quantizer does so too, but transposes a weight once per Gemm that uses it: twice for CBAM's shared MLP.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        settings = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        scaled = settings.get("alpha", 1) != 1 or settings.get("beta", 1) != 1 or settings.get("transA", 0)
        if node.op_type != "Gemm" or node.input[1] not in weights or scaled:
            nodes.append(node)
            continue
        name = node.input[1]
        if settings.get("transB", 0):
            name += "_transposed"
            transposed = np.ascontiguousarray(onnx.numpy_helper.to_array(weights[node.input[1]]).T)
            weights.setdefault(name, onnx.numpy_helper.from_array(transposed, name))
        biased = len(node.input) > 2 and bool(node.input[2])
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(onnx.helper.make_node("MatMul", [node.input[0], name], [product], name=f"{node.output[0]}_MatMul"))
        if biased:
            nodes.append(onnx.helper.make_node("Add", [product, node.input[2]], node.output, name=f"{node.output[0]}_Add"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _set_weights(model, weights.values())


def nodes_after_weights(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that lead to no weights any more: the end of the network, and outputs made from the logits, such as probabilities."""
    weighted = {node.name for node in weighted_nodes(model)}
    leading: set[str] = set()
    after = []
    for node in reversed(model.graph.node):
        if node.name in weighted or not leading.isdisjoint(node.output):
            leading.update(node.input)
        else:
            after.append(node)
    return after[::-1]


def image_scale(model: onnx.ModelProto, tensor: str) -> tuple[str, float, int] | None:
    """Where the tensor is scale * (image - zero point) of a uint8 input of the graph: the input's name, the scale and the zero point.

    By hand: u / 255 is 1 / 255 * (u - 0). (u / 255 - 0.5) / 0.25 is 4 / 255 * (u - 127.5): None, as 127.5 is no uint8. Also None: a scale
    or an offset that differs by channel, and anything but Cast, Mul, Div, Add and Sub in between.
    """
    images = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    steps: list[tuple[str, float]] = []
    while tensor not in images:
        node = makers.get(tensor)
        if node is None or node.op_type not in ("Cast", "Mul", "Div", "Add", "Sub"):
            return None
        tensor = node.input[0]
        if node.op_type != "Cast":
            constant = node.input[1]
            if tensor in constants and node.op_type in ("Mul", "Add"):
                tensor, constant = constant, tensor
            values = np.unique(constants.get(constant, np.zeros(0)))
            if len(values) != 1:
                return None
            steps.append((node.op_type, float(values[0])))
    scale, offset = 1.0, 0.0
    for kind, value in reversed(steps):
        if kind in ("Mul", "Div"):
            factor = value if kind == "Mul" else np.divide(1, value) if value else 0.0
            scale, offset = scale * factor, offset * factor
        else:
            offset += value if kind == "Add" else -value
    zero_point = -offset / scale if scale > 0 else -1.0
    whole = round(zero_point)
    return (tensor, scale, whole) if abs(zero_point - whole) < 1e-3 and 0 <= whole <= 255 else None


def read_image_directly(model: onnx.ModelProto, tensors: Mapping[str, str]) -> None:
    """Let the DequantizeLinear of each of the tensors read the uint8 image that it is made of, and drop what nothing reads then.

    Where the scale is the image's own, Cast, Mul and QuantizeLinear only give back the image that they began with; the caller sees to it.

    Args:
        model: a QDQ graph, changed in place.
        tensors: name of a quantized float32 tensor, to that of the graph's input.
    """
    images = {
        node.output[0]: tensors[node.input[0]] for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in tensors
    }
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in images:
            node.input[0] = images[node.input[0]]
    wanted = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if not wanted.isdisjoint(node.output):
            wanted.update(node.input)
            kept.append(node)
    _set_nodes(model, kept[::-1])


def pool_before_clipping(model: onnx.ModelProto) -> None:
    """Swap Relu (or Clip) and the float MaxPool behind it where what comes out is quantized next, in place.

    Both keep the order of numbers, so nothing changes but the time: ONNX Runtime moves a QuantizeLinear up through a MaxPool, and through
    what only moves values, and its int8 MaxPool is slow: 1.7 of the float latency for two convolutions, 0.5 with the two swapped.
    """
    makers, users = _links(model)
    outputs = {value.name for value in model.graph.output}
    for quantize in [node for node in model.graph.node if node.op_type == "QuantizeLinear"]:
        pool = makers.get(quantize.input[0])
        while pool is not None and pool.op_type in _PASSED_BY_QUANTIZE:
            pool = makers.get(pool.input[0])
        clip = makers.get(pool.input[0]) if pool is not None and pool.op_type == "MaxPool" and len(pool.output) == 1 else None
        if pool is None or clip is None or clip.op_type not in ("Relu", "Clip"):
            continue
        maker = makers.get(clip.input[0])
        int8 = maker is not None and maker.op_type == "DequantizeLinear"
        if int8 or len(users[clip.output[0]]) > 1 or clip.output[0] in outputs:
            continue
        # The two trade places in the list of nodes too, which stays in the order of computation.
        first, second = _copy(pool), _copy(clip)
        first.input[0], second.output[0] = clip.input[0], pool.output[0]
        second.input[0] = first.output[0] = clip.output[0]
        clip.CopyFrom(first)
        pool.CopyFrom(second)
        makers[clip.output[0]], makers[pool.output[0]] = clip, pool


def keep_outputs_float(model: onnx.ModelProto, kinds: Collection[str], after: Collection[str]) -> None:
    """Take QuantizeLinear and DequantizeLinear off the logits: off what a node of these types makes for outputs and nodes behind it only.

    Args:
        model: a QDQ graph, changed in place.
        kinds: operator types whose int8 kernels can give float32.
        after: names of the nodes behind the last weights, such as Softmax, or the Add of a bias.
    """
    makers, users = _links(model)
    steps: set[str] = set()
    for dequantize in model.graph.node:
        quantize = makers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
        maker = makers.get(quantize.input[0]) if quantize is not None else None
        if quantize is None or maker is None or maker.op_type not in kinds or len(users[quantize.input[0]]) > 1:
            continue
        name = dequantize.output[0]
        if all(node.name in after for node in users.get(name, [])):
            maker.output[0] = name
            steps.add(quantize.output[0])
    _set_nodes(model, [node for node in model.graph.node if steps.isdisjoint(node.output) and steps.isdisjoint(node.input)])


def _links(model: onnx.ModelProto) -> tuple[dict[str, onnx.NodeProto], dict[str, list[onnx.NodeProto]]]:
    """By the name of a tensor, the node that makes it, and the nodes that read it."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return {output: node for node in model.graph.node for output in node.output}, users


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def _set_nodes(model: onnx.ModelProto, nodes: Collection[onnx.NodeProto]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _set_weights(model, list(model.graph.initializer))


def _set_weights(model: onnx.ModelProto, weights: Collection[onnx.TensorProto]) -> None:
    """Keep those of the weights that a node uses (inside a branch counts too), or that are an output."""
    used = {value.name for value in model.graph.output}
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            used.update(node.input)
            graphs.extend(entry.g for entry in node.attribute if entry.HasField("g"))
    kept = [weight for weight in weights if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
