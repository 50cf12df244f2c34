from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from by_hand import graph, kinds, node, run

from compress.graphs.index import edited, index, named
from compress.quantization.qdq import image_scale, keep_outputs_float, pool_before_clipping, read_image_directly

W, B = np.float32([[1, 2], [3, 4]]), np.float32([10, 20])
X = np.float32([[1, 0], [0, 1]])

QDQ = {"s": np.float32(0.25), "z": np.uint8(3)}


def steps(read: str, written: str) -> list[onnx.NodeProto]:
    return [node("QuantizeLinear", [read, "s", "z"], [f"{read}_q"]), node("DequantizeLinear", [f"{read}_q", "s", "z"], [written])]


def test_logits_lose_their_steps() -> None:
    model = graph(node("MatMul", ["x", "w"], ["raw"], name="last"), *steps("raw", "y"), w=W / 7, **QDQ)
    with edited(model) as opened:
        keep_outputs_float(opened, ["MatMul"], [])
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
    with edited(model) as opened:
        keep_outputs_float(opened, ["MatMul"], ["bias", "probabilities"])
    assert kinds(model) == ["MatMul", "Add", "Softmax"]
    logits = X @ (W / 7) + B
    np.testing.assert_allclose(run(model, X), np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("kind", ["of another type", "read by a quantized node"])
def test_steps_stay_where_they_are_needed(kind: str) -> None:
    model = graph(node("MatMul", ["x", "w"], ["raw"], name="first"), *steps("raw", "a"), node("MatMul", ["a", "w"], ["y"]), w=W, **QDQ)
    with edited(model) as opened:
        keep_outputs_float(opened, ["MatMul"] if kind == "read by a quantized node" else ["Gemm"], [])
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
    model = image_graph(CAST, *nodes, node("Relu", ["x" if nodes else "f"], ["y"]), **weights)
    found = image_scale(named(index(model))["x" if nodes else "f"])
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found == ("u", pytest.approx(expected[0]), expected[1])


def test_a_float_input_is_no_image() -> None:
    assert image_scale(named(index(graph(node("Mul", ["x", "w"], ["y"]), w=np.float32(0.5))))["y"]) is None


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
    with edited(model) as opened:
        read_image_directly(opened, {"x": "u"})
    assert kinds(model) == ["DequantizeLinear", "Conv"]
    assert sorted(weight.name for weight in model.graph.initializer) == ["s", "w", "z"]
    np.testing.assert_allclose(run(model, images, "u"), expected, rtol=1e-4, atol=1e-5)


def test_a_scaled_image_that_others_read_stays_too() -> None:
    content = [CAST, node("Mul", ["f", "s"], ["x"]), *steps("x", "d"), node("Add", ["d", "x"], ["y"])]
    model = image_graph(*content, s=np.float32(1 / 255), z=np.uint8(0))
    with edited(model) as opened:
        read_image_directly(opened, {"x": "u"})
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
    with edited(model) as opened:
        pool_before_clipping(opened)
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
    with edited(model) as opened:
        pool_before_clipping(opened)
    assert model.SerializeToString(deterministic=True) == before
