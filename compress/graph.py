"""Changes to an ONNX graph before and after quantization, each of which leaves what it computes as it was.

Works on the main graph; nodes inside the branches of If, Loop and Scan are left alone.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from .onnxfile import open_session

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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


def keep_outputs_float(model: onnx.ModelProto, kinds: Collection[str]) -> None:
    """Take the last QuantizeLinear and DequantizeLinear off each output of the graph that a node of these types makes."""
    for value in model.graph.output:
        makers = {output: node for node in model.graph.node for output in node.output}
        dequantize = makers[value.name]
        quantize = makers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
        maker = makers.get(quantize.input[0]) if quantize is not None else None
        if quantize is None or maker is None or maker.op_type not in kinds:
            continue
        raw = quantize.input[0]
        if sum(raw in node.input for node in model.graph.node) == 1:
            maker.output[list(maker.output).index(raw)] = value.name
            model.graph.node.remove(quantize)
            model.graph.node.remove(dequantize)
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
