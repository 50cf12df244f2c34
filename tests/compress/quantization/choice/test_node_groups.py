"""Groups of nodes, on graphs small enough to name them by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.choice.node_groups import node_groups


def graph(nodes: list[onnx.NodeProto], shape: tuple[int, ...], weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    for index, node in enumerate(nodes):
        node.name = node.name or f"{node.op_type}{index}"
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", *shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(dims, np.float32), name) for name, dims in weights.items()],
    )
    return onnx.shape_inference.infer_shapes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]))


def groups(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    return node_groups(model, [node.name for node in model.graph.node])


def test_the_example_of_the_docstring() -> None:
    model = graph(
        [
            helper.make_node("Conv", ["x", "a"], ["1"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["1"], ["2"]),
            helper.make_node("MaxPool", ["2"], ["3"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Conv", ["3", "b"], ["4"]),
            helper.make_node("Relu", ["4"], ["5"]),
            helper.make_node("GlobalAveragePool", ["5"], ["6"]),
            helper.make_node("Flatten", ["6"], ["7"]),
            helper.make_node("Gemm", ["7", "c"], ["y"]),
        ],
        (1, 28, 28),
        {"a": (4, 1, 3, 3), "b": (6, 4, 1, 1), "c": (6, 5)},
    )
    assert groups(model) == {
        "first layer": ("Conv0", "Relu1", "MaxPool2"),
        "pointwise at 14x14": ("Conv3", "Relu4", "GlobalAveragePool5", "Flatten6"),
        "last layer": ("Gemm7",),
    }


def test_depthwise_grouped_and_tensors_with_two_readers() -> None:
    model = graph(
        [
            helper.make_node("Conv", ["x", "a"], ["1"]),
            helper.make_node("Conv", ["1", "depthwise"], ["2"], group=4, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["2"], ["3"]),  # goes with the depthwise convolution
            helper.make_node("Conv", ["3", "grouped"], ["4"], group=2),
            helper.make_node("Add", ["4", "1"], ["5"]),  # two tensors: a group of its own
            helper.make_node("Relu", ["5"], ["6"]),
            helper.make_node("Conv", ["6", "b"], ["y"]),
        ],
        (2, 8, 8),
        {"a": (4, 2, 1, 1), "depthwise": (4, 1, 3, 3), "grouped": (4, 2, 1, 1), "b": (4, 4, 1, 1)},
    )
    assert groups(model) == {
        "first layer": ("Conv0",),
        "depthwise 3x3 at 8x8": ("Conv1", "Relu2"),
        "grouped 1x1 at 8x8": ("Conv3",),
        "sum at 8x8": ("Add4", "Relu5"),
        "last layer": ("Conv6",),
    }


@pytest.mark.parametrize(("channels", "kind"), [(4, "channel"), (1, "spatial")])
def test_gates_are_the_nodes_between_a_tensor_and_its_product_with_a_sigmoid(channels: int, kind: str) -> None:
    squeeze = helper.make_node("GlobalAveragePool", ["1"], ["2"]) if kind == "channel" else helper.make_node("Identity", ["1"], ["2"])
    model = graph(
        [
            helper.make_node("Conv", ["x", "a"], ["1"]),
            squeeze,
            helper.make_node("Conv", ["2", "gate"], ["3"]),
            helper.make_node("Sigmoid", ["3"], ["4"]),
            helper.make_node("Mul", ["1", "4"], ["5"]),
            helper.make_node("Conv", ["5", "b"], ["y"]),
        ],
        (2, 8, 8),
        {"a": (4, 2, 1, 1), "gate": (channels, 4, 1, 1), "b": (4, 4, 1, 1)},
    )
    assert groups(model)[f"{kind} gates at 8x8"] == (f"{squeeze.op_type}1", "Conv2", "Sigmoid3", "Mul4")


def test_a_swish_is_no_gate() -> None:
    model = graph(
        [
            helper.make_node("Conv", ["x", "a"], ["1"]),
            helper.make_node("Sigmoid", ["1"], ["2"]),
            helper.make_node("Mul", ["1", "2"], ["3"]),
            helper.make_node("Conv", ["3", "b"], ["y"]),
        ],
        (2, 8, 8),
        {"a": (4, 2, 1, 1), "b": (4, 4, 1, 1)},
    )
    assert not [name for name in groups(model) if "gates" in name]


def test_only_named_nodes_are_grouped() -> None:
    model = graph([helper.make_node("Conv", ["x", "a"], ["1"]), helper.make_node("Softmax", ["1"], ["y"])], (2, 8, 8), {"a": (4, 2, 1, 1)})
    assert node_groups(model, ["Conv0"]) == {"first layer": ("Conv0",)}
