"""Corrected biases against values by hand, and against the mean error that a layer makes with and without them."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.bias import correct_bias


def value(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model_of(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], channels: int) -> onnx.ModelProto:
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", channels, None, None])
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name="y")], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def dequantize(name: str, axis: int = 0) -> onnx.NodeProto:
    return helper.make_node("DequantizeLinear", [f"{name}_int", f"{name}_scale"], [f"{name}_rounded"], axis=axis)


def pair(
    weight: np.ndarray, bias: np.ndarray, scale: np.ndarray, groups: int = 1, **settings: int | list[int]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A convolution, and its QDQ form with weights rounded to ``scale`` per channel and a bias in steps of a thousandth of that."""
    bias_scale = scale / 1000
    channels = weight.shape[1] * groups
    stored = np.round(weight / scale.reshape(-1, 1, 1, 1))
    floats = model_of(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", group=groups, **settings)],
        [value("w", weight), value("b", bias)],
        channels,
    )
    quantized = model_of(
        [
            dequantize("w"),
            dequantize("b"),
            helper.make_node("Conv", ["x", "w_rounded", "b_rounded"], ["y"], name="conv", group=groups, **settings),
        ],
        [
            value("w_int", stored, np.int8),
            value("w_scale", scale),
            value("b_int", np.round(bias / bias_scale), np.int32),
            value("b_scale", bias_scale),
        ],
        channels,
    )
    return floats, quantized


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(weight for weight in model.graph.initializer if weight.name == name))


def outputs(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0]


def mean_error(floats: onnx.ModelProto, quantized: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return (outputs(quantized, images).astype(np.float64) - outputs(floats, images)).mean((0, 2, 3))


def test_one_weight_by_hand() -> None:
    """0.3 is stored as 1 * 0.25; the images are 1 and 3, 2 on average: the output is 0.1 low. 0.1 is 400 steps of 0.00025."""
    floats, quantized = pair(np.full((1, 1, 1, 1), 0.3), np.array([1.0]), np.array([0.25]))
    images = np.array([1, 3], np.float32).reshape(2, 1, 1, 1)
    assert correct_bias(quantized, floats, images) == 1
    assert constant(quantized, "b_int").tolist() == [4400] and constant(quantized, "b_int").dtype == np.int32


def test_padding_counts_by_hand() -> None:
    """A 3x3 convolution of a single pixel, 2, padded: only the middle weight meets it; the others are wrong too, but add nothing."""
    weight = np.full((1, 1, 3, 3), 0.1)
    weight[..., 1, 1] = 0.3
    floats, quantized = pair(weight, np.array([1.0]), np.array([0.25]), pads=[1, 1, 1, 1])
    correct_bias(quantized, floats, np.full((1, 1, 1, 1), 2, np.float32))
    assert constant(quantized, "b_int").tolist() == [4400]


def test_an_older_opset_and_a_fixed_batch() -> None:
    """The fifth image does not fill a batch of two, and does not count."""
    floats, quantized = pair(np.full((1, 1, 1, 1), 0.3), np.array([1.0]), np.array([0.25]))
    for model in (floats, quantized):
        model.opset_import[0].version = 13
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    images = np.array([1, 3, 1, 3, 100], np.float32).reshape(5, 1, 1, 1)
    assert correct_bias(quantized, floats, images) == 1
    assert constant(quantized, "b_int").tolist() == [4400]


@pytest.mark.parametrize("groups", [1, 4])
def test_the_mean_error_of_coarse_weights_shrinks_to_nearly_nothing(groups: int) -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 4 // groups, 3, 3)) * 10 ** np.array([0.0, 0.0, -1.0, 1.0]).reshape(4, 1, 1, 1)
    scale = np.abs(weight).max((1, 2, 3)) / 3  # 7 levels
    floats, quantized = pair(weight, random.normal(size=4), scale, groups, pads=[1, 1, 1, 1])
    images = random.uniform(0, 2, (70, 4, 6, 6)).astype(np.float32)
    before = mean_error(floats, quantized, images)
    again = onnx.ModelProto()
    again.CopyFrom(quantized)
    assert correct_bias(quantized, floats, images) == 1
    assert np.all(np.abs(before) > 20 * scale / 1000)
    assert np.all(np.abs(mean_error(floats, quantized, images)) < 0.51 * scale / 1000)  # half a step of the bias
    correct_bias(again, floats, images, batch=7)
    assert again == quantized  # however the images are split; and so twice the same


def test_a_linear_layer() -> None:
    def model(quantized: bool) -> onnx.ModelProto:
        inputs = ["f", "w_rounded", "b_rounded"] if quantized else ["f", "w", "b"]
        nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", inputs, ["y"], name="fc", alpha=2.0)]
        if quantized:
            integers = [value("w_int", [[1], [1]], np.int8), value("b_int", [1000], np.int32)]
            scales = [value("w_scale", [0.25]), value("b_scale", [0.001])]
            return model_of([dequantize("w", axis=1), dequantize("b"), *nodes], [*integers, *scales], 1)
        return model_of(nodes, [value("w", [[0.3], [0.2]]), value("b", [1])], 1)

    quantized = model(True)
    images = np.array([[2, 1], [4, 1]], np.float32).reshape(2, 1, 2, 1)
    assert correct_bias(quantized, model(False), images) == 1
    assert constant(quantized, "b_int").tolist() == [1200]  # 2 * (-0.05 * 3 + 0.05 * 1) = -0.2


def test_a_bias_that_stayed_float() -> None:
    floats, quantized = pair(np.full((1, 1, 1, 1), 0.3), np.array([1.0]), np.array([0.25]))
    quantized.graph.node[-1].input[2] = "b"
    quantized.graph.initializer.append(value("b", [1.0]))
    correct_bias(quantized, floats, np.full((1, 1, 1, 1), 2, np.float32))
    np.testing.assert_allclose(constant(quantized, "b"), [1.1], rtol=1e-6)


def test_layers_without_a_bias_or_that_stayed_float_are_left_alone() -> None:
    floats, quantized = pair(np.full((1, 1, 1, 1), 0.3), np.array([1.0]), np.array([0.25]))
    images = np.full((1, 1, 1, 1), 2, np.float32)
    stayed = onnx.ModelProto()
    stayed.CopyFrom(floats)
    assert correct_bias(stayed, floats, images) == 0 and stayed == floats
    del quantized.graph.node[-1].input[2], floats.graph.node[-1].input[2]
    before = quantized.SerializeToString(deterministic=True)
    assert correct_bias(quantized, floats, images) == 0 and quantized.SerializeToString(deterministic=True) == before
