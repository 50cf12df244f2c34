import numpy as np
import onnx
import onnxruntime
import pytest

from compress.errors import CompressError
from compress.graph import fold_constants, keep_outputs_float, nodes_before_weights, split_gemms, weighted_nodes

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


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [entry.op_type for entry in model.graph.node]


W, B = np.float32([[1, 2], [3, 4]]), np.float32([10, 20])
X = np.float32([[1, 0], [0, 1]])


def test_a_shared_weight_is_transposed_once() -> None:
    model = graph(node("Gemm", ["x", "w", "b"], ["a"], transB=1), node("Gemm", ["a", "w"], ["y"], transB=1), w=W, b=B)
    expected = (X @ W.T + B) @ W.T
    np.testing.assert_allclose(run(model, X), expected)
    split_gemms(model)
    assert kinds(model) == ["MatMul", "Add", "MatMul"]
    assert [weight.name for weight in model.graph.initializer] == ["b", "w_transposed"]
    np.testing.assert_allclose(run(model, X), expected)


def test_a_gemm_that_is_no_linear_layer_stays() -> None:
    model = graph(node("Gemm", ["x", "w"], ["a"], alpha=2.0), node("Gemm", ["a", "w"], ["y"], transA=1), w=W)
    split_gemms(model)
    assert kinds(model) == ["Gemm", "Gemm"]


def test_nodes_before_the_first_weights_and_those_beside_them() -> None:
    model = graph(
        node("Mul", ["x", "s"], ["scaled"], name="scale"),
        node("MatMul", ["scaled", "w"], ["a"], name="first"),
        node("Relu", ["scaled"], ["beside"], name="beside"),
        node("Add", ["a", "beside"], ["y"], name="join"),
        s=np.float32(0.5),
        w=W,
    )
    assert [entry.name for entry in weighted_nodes(model)] == ["first"]
    assert [entry.name for entry in nodes_before_weights(model)] == ["scale", "beside"]


def test_folding_computes_constants_names_nodes_and_adds_no_domains() -> None:
    model = graph(node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"]), w=W)
    assert weighted_nodes(model) == []
    folded = fold_constants(model, "the graph")
    assert kinds(folded) == ["MatMul"]
    assert folded.graph.node[0].name
    assert [entry.domain for entry in folded.opset_import] == [""]
    assert len(weighted_nodes(folded)) == 1
    np.testing.assert_array_equal(run(folded, X), run(model, X))


def test_a_graph_that_does_not_load_is_named() -> None:
    with pytest.raises(CompressError, match=r"the graph does not load in ONNX Runtime .*Nonsense"):
        fold_constants(graph(node("Nonsense", ["x"], ["y"])), "the graph")


@pytest.mark.parametrize(
    ("kinds_to_free", "expected"), [(("MatMul",), ["MatMul"]), (("Conv",), ["MatMul", "QuantizeLinear", "DequantizeLinear"])]
)
def test_the_output_loses_its_steps(kinds_to_free: tuple[str, ...], expected: list[str]) -> None:
    model = graph(
        node("MatMul", ["x", "w"], ["raw"]),
        node("QuantizeLinear", ["raw", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        w=W / 7,
        s=np.float32(0.25),
        z=np.uint8(0),
    )
    keep_outputs_float(model, kinds_to_free)
    assert kinds(model) == expected
    if expected == ["MatMul"]:
        assert [weight.name for weight in model.graph.initializer] == ["w"]
        np.testing.assert_allclose(run(model, X), X @ (W / 7))
