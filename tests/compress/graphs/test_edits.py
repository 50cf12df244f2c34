from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.errors import CompressError
from compress.graphs.edits import (
    fold_constants,
    image_scale,
    keep_outputs_float,
    nodes_after_weights,
    nodes_before_weights,
    pool_before_clipping,
    read_image_directly,
    split_gemms,
    weighted_nodes,
)

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


def test_nodes_after_the_last_weights() -> None:
    model = graph(
        node("MatMul", ["x", "w"], ["a"], name="last"),
        node("Add", ["a", "b"], ["logits"], name="bias"),
        node("Softmax", ["logits"], ["y"], name="probabilities"),
        w=W,
        b=B,
    )
    assert [entry.name for entry in nodes_after_weights(model)] == ["bias", "probabilities"]


QDQ = {"s": np.float32(0.25), "z": np.uint8(3)}


def steps(read: str, written: str) -> list[onnx.NodeProto]:
    return [node("QuantizeLinear", [read, "s", "z"], [f"{read}_q"]), node("DequantizeLinear", [f"{read}_q", "s", "z"], [written])]


def test_logits_lose_their_steps() -> None:
    model = graph(node("MatMul", ["x", "w"], ["raw"], name="last"), *steps("raw", "y"), w=W / 7, **QDQ)
    keep_outputs_float(model, ["MatMul"], [])
    assert kinds(model) == ["MatMul"]
    assert [weight.name for weight in model.graph.initializer] == ["w"]
    np.testing.assert_allclose(run(model, X), X @ (W / 7))


def test_logits_lose_their_steps_before_a_bias_and_softmax() -> None:
    content = [
        node("MatMul", ["x", "w"], ["raw"], name="last"),
        *steps("raw", "product"),
        node("Add", ["product", "b"], ["logits"], name="bias"),
        node("Softmax", ["logits"], ["y"], name="probabilities"),
    ]
    model = graph(*content, w=W / 7, b=B, **QDQ)
    keep_outputs_float(model, ["MatMul"], ["bias", "probabilities"])
    assert kinds(model) == ["MatMul", "Add", "Softmax"]
    logits = X @ (W / 7) + B
    np.testing.assert_allclose(run(model, X), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("kind", ["of another type", "read by a quantized node"])
def test_steps_stay_where_they_are_needed(kind: str) -> None:
    model = graph(node("MatMul", ["x", "w"], ["raw"], name="first"), *steps("raw", "a"), node("MatMul", ["a", "w"], ["y"]), w=W, **QDQ)
    keep_outputs_float(model, ["MatMul"] if kind == "read by a quantized node" else ["Gemm"], [])
    assert kinds(model) == ["MatMul", "QuantizeLinear", "DequantizeLinear", "MatMul"]


def image_graph(*nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """From uint8 ``u`` (N, 2, 4, 4) to float32 ``y`` of four axes."""
    content = onnx.helper.make_graph(
        list(nodes),
        "by_hand",
        [onnx.helper.make_tensor_value_info("u", onnx.TensorProto.UINT8, ["N", 2, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * 4)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return onnx.helper.make_model(content, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


CAST = node("Cast", ["u"], ["f"], to=onnx.TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], (1, 0)),
        ([node("Mul", ["f", "k"], ["x"])], (1 / 255, 0)),
        ([node("Mul", ["k", "f"], ["x"])], (1 / 255, 0)),
        ([node("Div", ["f", "c255"], ["x"])], (1 / 255, 0)),
        ([node("Div", ["f", "c255"], ["a"]), node("Sub", ["a", "grey"], ["b"]), node("Div", ["b", "std"], ["x"])], (4 / 255, 51)),
        ([node("Sub", ["f", "c51"], ["x"])], (1, 51)),
        ([node("Div", ["f", "c255"], ["a"]), node("Sub", ["a", "half"], ["b"]), node("Div", ["b", "std"], ["x"])], None),  # 127.5
        ([node("Add", ["f", "c51"], ["x"])], None),  # -51
        ([node("Sub", ["c255", "f"], ["x"])], None),  # inverted
        ([node("Div", ["c255", "f"], ["x"])], None),
        ([node("Mul", ["f", "each"], ["x"])], None),  # differs by channel
        ([node("Mul", ["f", "same"], ["x"])], (0.5, 0)),
        ([node("Mul", ["f", "f"], ["x"])], None),
        ([node("Mul", ["f", "zero"], ["x"])], None),
        ([node("Sqrt", ["f"], ["x"])], None),
    ],
)
def test_the_scale_of_an_image(nodes: list[onnx.NodeProto], expected: tuple[float, int] | None) -> None:
    constants = {"k": 1 / 255, "c255": 255, "grey": 0.2, "half": 0.5, "std": 0.25, "c51": 51, "zero": 0}
    each, same = np.float32([[[1]], [[2]]]), np.full((1, 2, 1, 1), 0.5, np.float32)
    weights = {name: np.float32(value) for name, value in constants.items()} | {"each": each, "same": same}
    found = image_scale(image_graph(CAST, *nodes, node("Relu", ["x" if nodes else "f"], ["y"]), **weights), "x" if nodes else "f")
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == ("u", pytest.approx(expected[0]), expected[1])


def test_a_float_input_is_no_image() -> None:
    assert image_scale(graph(node("Mul", ["x", "w"], ["y"]), w=np.float32(0.5)), "y") is None


def test_a_scaled_image_is_read_directly() -> None:
    """(u / 255 - 0.2) / 0.25: scale 4 / 255, zero point 51; a padded zero is that grey, as in the float graph."""
    content = [
        CAST,
        node("Div", ["f", "c255"], ["a"]),
        node("Sub", ["a", "grey"], ["b"]),
        node("Div", ["b", "std"], ["x"]),
        node("QuantizeLinear", ["x", "s", "z"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"]),
        node("Conv", ["x_dq", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    weights = {"c255": np.float32(255), "grey": np.float32(0.2), "std": np.float32(0.25), "s": np.float32(4 / 255), "z": np.uint8(51)}
    model = image_graph(*content, w=np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32), **weights)
    images = np.random.default_rng(1).integers(0, 256, (5, 2, 4, 4), dtype=np.uint8)
    expected = run(model, images, "u")
    read_image_directly(model, {"x": "u"})
    assert kinds(model) == ["DequantizeLinear", "Conv"]
    assert sorted(weight.name for weight in model.graph.initializer) == ["s", "w", "z"]
    np.testing.assert_allclose(run(model, images, "u"), expected, rtol=1e-4, atol=1e-5)


def test_a_scaled_image_that_others_read_stays_too() -> None:
    content = [CAST, node("Mul", ["f", "s"], ["x"]), *steps("x", "d"), node("Add", ["d", "x"], ["y"])]
    model = image_graph(*content, s=np.float32(1 / 255), z=np.uint8(0))
    read_image_directly(model, {"x": "u"})
    assert kinds(model) == ["Cast", "Mul", "DequantizeLinear", "Add"]


def pooled(*between: onnx.NodeProto, clip: str = "Relu", read: str = "p") -> onnx.ModelProto:
    content = [
        CAST,
        node("Conv", ["f", "w"], ["c"], pads=[1, 1, 1, 1]),
        node(clip, ["c", *(["low", "high"] if clip == "Clip" else [])], ["r"], name="clip"),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        *between,
        *steps(read, "y"),
    ]
    limits = {"low": np.float32(-1), "high": np.float32(2), "shape": np.int64([0, 0, 4, 1]), "s": np.float32(1), "z": np.uint8(3)}
    return image_graph(*content, w=np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32), **limits)


@pytest.mark.parametrize("clip", ["Relu", "Clip", "LeakyRelu"])
@pytest.mark.parametrize("between", ["", "Transpose", "Reshape", "AveragePool"])
def test_a_pool_goes_before_what_clips_where_steps_follow(clip: str, between: str, tmp_path: Path) -> None:
    """The order of the optimised graph in ONNX Runtime is what it is for: its int8 MaxPool must not appear."""
    more = [
        node(between, ["p", "shape"] if between == "Reshape" else ["p"], ["t"], **({"kernel_shape": [1, 1]} if "Pool" in between else {}))
    ]
    model = pooled(*(more if between else []), clip=clip, read="t" if between else "p")
    images = np.random.default_rng(1).integers(0, 256, (5, 2, 4, 4), dtype=np.uint8)
    before, expected = kinds(model), run(model, images, "u")
    pool_before_clipping(model)
    swapped = clip != "LeakyRelu" and between != "AveragePool"
    assert kinds(model)[2:4] == (["MaxPool", clip] if swapped else [clip, "MaxPool"])
    assert sorted(kinds(model)) == sorted(before)
    np.testing.assert_array_equal(run(model, images, "u"), expected)
    if swapped:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4  # a file made for this machine only, it warns
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        optimised = kinds(onnx.load(tmp_path / "optimised.onnx"))
        assert optimised.index("MaxPool") < optimised.index("QuantizeLinear")


@pytest.mark.parametrize("kind", ["read twice", "an output", "no steps", "int8 itself"])
def test_a_pool_stays_where_a_swap_would_change_something_or_help_nothing(kind: str) -> None:
    model = pooled(*([node("Identity", ["r"], ["other"])] if kind == "read twice" else []))
    if kind == "an output":
        model.graph.output.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [None] * 4))
    if kind == "no steps":
        model.graph.node[4].op_type = "Identity"
        del model.graph.node[4].input[1:]
        model.graph.node[5].op_type = "Identity"
        del model.graph.node[5].input[1:]
    if kind == "int8 itself":
        content = [node("Relu", ["d"], ["r"]), node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2])]
        model = image_graph(CAST, *steps("f", "d"), *content, *steps("p", "y"), **QDQ)
    before = model.SerializeToString(deterministic=True)
    pool_before_clipping(model)
    assert model.SerializeToString(deterministic=True) == before
