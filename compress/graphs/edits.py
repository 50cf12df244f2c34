"""Changes to an ONNX graph before quantization, each of which leaves what it computes as it was, and where its weights stand.

Works on the main graph; nodes inside the branches of If, Loop and Scan are left alone.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from .file import open_session
from .index import add_constant, constant, edited, fresh, is_a, make, settings, sweep

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
    if not all(node.name for node in folded.graph.node):
        with edited(folded) as graph:
            for index, node in enumerate(graph):
                node.name = node.name or fresh(graph, f"{node.op_type}_{index}", of_node=True)
    return folded


def is_weighted(node: ir.Node) -> bool:
    """Whether it is a convolution or matrix product that has a constant float32 factor."""
    factors = [value.const_value for value in node.inputs[:2] if value is not None and value.const_value is not None]
    return is_a(node, *WEIGHTED) and any(factor.dtype == ir.DataType.FLOAT for factor in factors)


def weighted_nodes(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if is_weighted(node)]


def nodes_before_weights(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that no weight has reached yet, such as the scaling of the image; a graph lists its nodes in the order of computation."""
    reached: set[ir.Node] = set()
    for node in graph:
        if is_weighted(node) or not reached.isdisjoint(node.predecessors()):
            reached.add(node)
    return [node for node in graph if node not in reached]


def nodes_after_weights(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that lead to no weights any more: the end of the network, and outputs made from the logits, such as probabilities."""
    leading: set[ir.Node] = set()
    for node in reversed(graph):
        if is_weighted(node) or not leading.isdisjoint(node.successors()):
            leading.add(node)
    return [node for node in graph if node not in leading]


def split_gemms(model: onnx.ModelProto) -> None:
    """Turn each Gemm that is a linear layer with constant weights into MatMul and Add, in place.

    ONNX Runtime's quantizer does so too, but transposes a weight once per Gemm that uses it: twice for CBAM's shared MLP.
    """
    transposed: dict[ir.Value, ir.Value] = {}
    with edited(model) as graph:
        for gemm in [node for node in graph if is_a(node, "Gemm")]:
            own, (x, weight, *biases), result = settings(gemm), gemm.inputs, gemm.outputs[0]
            values = constant(weight)
            if weight is None or values is None or own.get("alpha", 1) != 1 or own.get("beta", 1) != 1 or own.get("transA", 0):
                continue
            if own.get("transB", 0):
                if weight not in transposed:
                    transposed[weight] = add_constant(graph, f"{weight.name}_transposed", np.ascontiguousarray(values.T))
                weight = transposed[weight]
            bias = [value for value in biases if value is not None]
            product = make(graph, "MatMul", [x, weight], f"{result.name}_product" if bias else result, f"{result.name}_MatMul")
            steps = [product, make(graph, "Add", [*product.outputs, *bias], result)] if bias else [product]
            ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], steps, [result], steps[-1].outputs)
        sweep(graph)
