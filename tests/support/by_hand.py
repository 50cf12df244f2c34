"""Graphs of a few nodes, written down by hand, and what ONNX Runtime says of them."""

import numpy as np
import onnx
import onnxruntime

node = onnx.helper.make_node


def graph(*nodes: onnx.NodeProto, size: int = 2, **weights: np.ndarray) -> onnx.ModelProto:
    """From float32 ``x`` (2, size) to ``y``."""
    content = onnx.helper.make_graph(
        list(nodes),
        "by_hand",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, None])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return onnx.helper.make_model(content, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, x: np.ndarray, name: str = "x") -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {name: x})[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [entry.op_type for entry in model.graph.node]
