"""Noise against what is known of rounding: a step s makes s^2 / 12, a power of two is exact; a group of nodes against it alone by hand."""

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from static_int8 import prepare

from compress.quantization.int8 import Prepared, quantize_prepared
from compress.quantization.noise import LayerNoise, decibels, group_costs, layer_noise, logits_name
from compress.quantization.records import Setting

CONFIG = Setting()


def value(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def model_of(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], outputs: tuple[str, ...] = ("logits",)) -> onnx.ModelProto:
    entry = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
    graph = helper.make_graph(nodes, "g", [entry], [onnx.ValueInfoProto(name=name) for name in outputs], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rounded(tensor: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"]),
        helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [f"{tensor}_dq"]),
    ]


def doubled_and_negated(scale: float, zero: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """2 x, rounded to ``scale``, then its negative as the logits."""
    nodes = [helper.make_node("Mul", ["image", "two"], ["a"], name="double"), helper.make_node("Neg", ["a"], ["logits"], name="negate")]
    constants = [value("two", 2.0)]
    floats = model_of(nodes, constants)
    nodes = [nodes[0], *rounded("a"), helper.make_node("Neg", ["a_dq"], ["logits"], name="negate")]
    return floats, model_of(nodes, [*constants, value("scale", scale), value("zero", zero, np.uint8)])


def test_uniform_noise_is_a_twelfth_of_the_squared_step() -> None:
    """2 x is even between 0 and 1, E = 1/3, and rounded to 1/255: 10 log10(4 * 255^2) = 54.15 dB, at the node and behind it."""
    images = np.random.default_rng(0).uniform(0, 0.5, (100, 1, 8, 8)).astype(np.float32)
    row, logits = layer_noise(*doubled_and_negated(1 / 255, 0), images)
    assert (row.name, row.kind, row.weights, row.weight_db, row.clipped) == ("double", "Mul", None, None, 0.0)
    expected = 10 * math.log10(4 * 255**2)
    assert row.output_db == pytest.approx(expected, abs=0.2) and row.own_db == pytest.approx(row.output_db, abs=1e-4)
    assert (logits.name, logits.kind, logits.own_db) == ("logits", "logits", None)
    assert logits.output_db == pytest.approx(row.output_db, abs=1e-4)


def test_what_eight_bits_represent_exactly_has_no_noise() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8)).astype(np.float32) / 8
    row, logits = layer_noise(*doubled_and_negated(0.25, 0), images)
    assert row.output_db == row.own_db == logits.output_db == math.inf


def test_values_out_of_range_are_counted_by_hand() -> None:
    """Values -1 and 1 in a row of 64, the rest 0, in steps of 0.01 from 0 on: -2 is cut off to 0. 2 fits."""
    images = np.zeros((5, 1, 8, 8), np.float32)
    images[:, 0, 0, :2] = -1, 1
    row, _ = layer_noise(*doubled_and_negated(0.01, 0), images, batch=2)
    assert row.clipped == pytest.approx(1 / 64)
    assert row.own_db == pytest.approx(10 * math.log10(8 / 4), abs=1e-3)  # 2^2 + 2^2 of signal, 2^2 of noise


@pytest.mark.parametrize(
    ("pixel", "clipped"),
    [(-0.002, False), (-0.0027, True), (-0.01, True), (1.277, False), (1.2773, False), (1.2777, True), (1.285, True)],
)
def test_what_rounding_could_bring_is_not_out_of_range(pixel: float, clipped: bool) -> None:
    """Steps of 0.01 from 0 to 2.55; twice the pixel lies 0.4, 0.54 and 2 steps below, or 0.4, 0.46, 0.54 and 2 above."""
    images = np.zeros((1, 1, 8, 8), np.float32)
    images[0, 0, 0, 0] = pixel
    row, _ = layer_noise(*doubled_and_negated(0.01, 0), images)
    assert row.clipped == pytest.approx(clipped / 64)


def test_an_output_under_another_name_is_that_of_the_node_of_the_same_name() -> None:
    floats, quantized = doubled_and_negated(0.01, 0)
    images = np.random.default_rng(0).uniform(0, 1, (4, 1, 8, 8)).astype(np.float32)
    expected = layer_noise(floats, quantized, images)
    for node in quantized.graph.node[:2]:
        for names in (node.input, node.output):
            names[:] = ["renamed" if name == "a" else name for name in names]
    assert layer_noise(floats, quantized, images) == expected


def test_scales_along_an_axis_stay_on_it() -> None:
    """A step of 1/64 in seven columns, where 0.25 is exact, and of 1 in the last, where it becomes 0: one eighth of the signal is lost."""
    floats, quantized = doubled_and_negated(1.0, 0)
    constants = [value("two", 2.0), value("scale", [1 / 64] * 7 + [1.0]), value("zero", [0] * 8, np.uint8)]
    del quantized.graph.initializer[:]
    quantized.graph.initializer.extend(constants)
    for node in quantized.graph.node[1:3]:
        node.attribute.append(helper.make_attribute("axis", 3))
    row, _ = layer_noise(floats, quantized, np.full((2, 1, 8, 8), 0.125, np.float32))
    assert row.own_db == pytest.approx(10 * math.log10(8), abs=1e-4) == row.output_db


def test_logits_are_the_output_of_that_name_or_the_first() -> None:
    node = helper.make_node("Neg", ["image"], ["a"])
    assert logits_name(model_of([node], [], ("probabilities", "logits"))) == "logits"
    assert logits_name(model_of([node], [], ("scores", "probabilities"))) == "scores"


def test_nothing_but_noise() -> None:
    assert decibels(0.0, 0.0) == math.inf and decibels(0.0, 1.0) == -math.inf
    assert decibels(100.0, 1.0) == 20.0 and decibels(0.01, 1.0) == -20.0


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(64, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, images: np.ndarray) -> Prepared:
    """Two convolutions, of which the first has one weight that makes the scale of all others coarse; probabilities beside the logits."""
    random = np.random.default_rng(2)
    first = random.normal(size=(4, 1, 3, 3))
    first[0, 0, 0, 0] = 40
    nodes = [
        helper.make_node("Conv", ["image", "w1", "c1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2", "c2"], ["c"], name="second"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flatten"),
        helper.make_node("Gemm", ["e", "w3", "c3"], ["logits"], name="fc"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax"),
    ]
    constants = [value("w1", first), value("c1", random.normal(size=4)), value("w2", random.normal(size=(5, 4, 3, 3)))]
    constants += [value("c2", random.normal(size=5)), value("w3", random.normal(size=(5, 6))), value("c3", random.normal(size=6))]
    model = model_of(nodes, constants, ("probabilities", "logits"))
    for output in model.graph.output:
        output.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 6]))
    path = tmp_path_factory.mktemp("noise") / "net.onnx"
    onnx.save(model, path)
    return prepare(path, images)


def outputs(model: onnx.ModelProto, name: str, images: np.ndarray) -> np.ndarray:
    """A tensor inside the graph, its nodes computed as they are written."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(onnx.ValueInfoProto(name=name))
    return onnxruntime.InferenceSession(shown.SerializeToString(), options).run([name], {"image": images})[0].astype(np.float64)


def ratio(exact: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).mean() / np.square(exact - other).mean()))


def test_a_quantized_network_agrees_with_its_tensors_taken_out(prepared: Prepared, images: np.ndarray) -> None:
    quantized = quantize_prepared(prepared, CONFIG)
    rows = {row.name: row for row in layer_noise(prepared.model, quantized, images, batch=10)}
    assert [name for name in rows if rows[name].weights] == ["first", "second", "fc"]
    assert "relu" not in rows  # ONNX Runtime's quantizer leaves it to the range of what the convolution makes
    assert list(rows)[-1] == "logits" and "softmax" not in rows
    expected = ratio(outputs(prepared.model, "b", images), outputs(quantized, "b_DequantizeLinear_Output", images))
    assert rows["first"].output_db == pytest.approx(expected, abs=0.01)
    second = ratio(outputs(prepared.model, "c", images), outputs(quantized, "c_DequantizeLinear_Output", images))
    assert rows["second"].output_db == pytest.approx(second, abs=0.01)
    last = ratio(outputs(prepared.model, "logits", images), outputs(quantized, "logits", images))
    assert rows["logits"].output_db == rows["fc"].output_db == pytest.approx(last, abs=0.01)
    assert rows["fc"].own_db is None  # the logits stay float
    own = rows["second"].own_db
    assert own is not None and own > rows["second"].output_db


def test_the_noise_of_weights_by_hand(prepared: Prepared, images: np.ndarray) -> None:
    quantized = quantize_prepared(prepared, Setting(per_channel=False))
    row = layer_noise(prepared.model, quantized, images)[0]
    [weights] = [numpy_helper.to_array(one).astype(np.float64) for one in prepared.model.graph.initializer if one.name == "w1"]
    step = np.abs(weights).max() / 127
    assert row.weight_db == pytest.approx(ratio(weights, np.round(weights / step) * step), abs=0.01)


def test_rows_do_not_depend_on_the_batch(prepared: Prepared, images: np.ndarray) -> None:
    quantized = quantize_prepared(prepared, CONFIG)
    one, other = (layer_noise(prepared.model, quantized, images, batch=batch) for batch in (64, 7))
    for row, twin in zip(one, other, strict=True):
        assert row.output_db == pytest.approx(twin.output_db, abs=1e-3) and row.clipped == pytest.approx(twin.clipped)
    assert layer_noise(prepared.model, quantized, images, batch=7) == other


def test_a_group_costs_what_it_costs_alone(prepared: Prepared, images: np.ndarray) -> None:
    names = [node.name for node in prepared.nodes]
    coarse = Setting(per_channel=False)
    costs = group_costs(prepared, coarse, {"coarse": ["first"], "fine": ["fc"], "all": names}, images)
    assert list(costs) == ["coarse", "fine", "all"]
    assert max(costs["all"].logits_db, costs["coarse"].logits_db) < costs["fine"].logits_db - 5
    exact = onnxruntime.InferenceSession(prepared.model.SerializeToString()).run(["logits"], {"image": images})[0]
    alone = onnxruntime.InferenceSession(quantize_prepared(prepared, coarse, ["first"]).SerializeToString())
    found = alone.run(["logits"], {"image": images})[0]
    assert costs["coarse"].changed == pytest.approx((found.argmax(1) != exact.argmax(1)).mean())
    assert costs["coarse"].logits_db == pytest.approx(ratio(exact.astype(np.float64), found), abs=0.3)


@pytest.mark.parametrize("kind", ["Relu", "Clip"])
def test_a_relu_that_stayed_is_measured_with_its_layer(kind: str) -> None:
    """Signed activations, as on ARM: the quantizer keeps the Relu, and one row stands for both."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], name="conv"),
        helper.make_node(kind, ["a"], ["b"], name="activation"),
        helper.make_node("Neg", ["b"], ["logits"], name="negate"),
    ]
    floats = model_of(nodes, [value("w", np.ones((1, 1, 1, 1)))])
    twin = [
        helper.make_node("DequantizeLinear", ["w_q", "scale", "w_zero"], ["w_dq"]),
        helper.make_node("Conv", ["image", "w_dq"], ["a"], name="conv"),
        nodes[1],
        *rounded("b"),
        helper.make_node("Neg", ["b_dq"], ["logits"], name="negate"),
    ]
    constants = [
        value("w_q", np.full((1, 1, 1, 1), 4), np.int8),
        value("w_zero", 0, np.int8),
        value("zero", 0, np.int8),
        value("scale", 0.25),
    ]
    images = np.full((2, 1, 8, 8), 1.125, np.float32)
    row, _ = layer_noise(floats, model_of(twin, constants), images)
    assert row == LayerNoise(
        name="conv", kind="Conv", weights="w", output_db=row.output_db, own_db=row.output_db, weight_db=math.inf, clipped=0.0
    )
    assert row.output_db == pytest.approx(20 * math.log10(9), abs=1e-3)  # 1.125 becomes 1.0 (half to even), 0.125 off


def test_files_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Prepared, images: np.ndarray) -> None:
    monkeypatch.chdir(tmp_path)
    before = prepared.model.SerializeToString(deterministic=True)
    quantized = quantize_prepared(prepared, CONFIG)
    kept = quantized.SerializeToString(deterministic=True)
    layer_noise(prepared.model, quantized, images)
    assert (prepared.model.SerializeToString(deterministic=True), quantized.SerializeToString(deterministic=True)) == (before, kept)
    assert list(tmp_path.iterdir()) == []
