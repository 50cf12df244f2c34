"""Changes to an ONNX graph before quantization, each of which leaves what it computes as it was, and where its weights stand.

Works on the main graph; nodes inside the branches of If, Loop and Scan are left alone.
"""

import numpy as np
import onnx
import onnx_ir as ir

from .index import add_constant, constant, edited, is_a, make, reached, settings, sweep

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def is_weighted(node: ir.Node) -> bool:
    """Whether it is a convolution or matrix product that has a constant float32 factor."""
    factors = [value.const_value for value in node.inputs[:2] if value is not None and value.const_value is not None]
    return is_a(node, *WEIGHTED) and any(factor.dtype == ir.DataType.FLOAT for factor in factors)


def nodes_before_weights(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that no weight has reached yet, such as the scaling of the image; a graph lists its nodes in the order of computation."""
    behind = reached(graph, is_weighted, ir.Node.predecessors)
    return [node for node in graph if node not in behind]


def nodes_after_weights(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that lead to no weights any more: the end of the network, and outputs made from the logits, such as probabilities."""
    leading = reached(reversed(graph), is_weighted, ir.Node.successors)
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
