"""Equalisation against ranges by hand, against the float graph's own answers, and against what one scale per tensor loses without it."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantization.equalise import equalise

IMAGES = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)


def constant(name: str, *shape: int) -> onnx.TensorProto:
    """Random weights; the channels of a weight are of very different size, as batch norm leaves them."""
    random = np.random.default_rng([len(name), *shape])
    values = random.normal(size=shape) * 10 ** random.uniform(-1.5, 1.5, (shape[0], *[1] * (len(shape) - 1)))
    return numpy_helper.from_array(values.astype(np.float32), name)


def graph_of(nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto], outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return model


def chain(*between: onnx.NodeProto) -> onnx.ModelProto:
    """Conv 3 to 4 channels, ``between`` from "a" to "b", Conv 4 to 5."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "c1"], ["a"], pads=[1, 1, 1, 1]),
        *between,
        helper.make_node("Conv", ["b", "w2", "c2"], ["y"]),
    ]
    return graph_of(nodes, [constant("w1", 4, 3, 3, 3), constant("c1", 4), constant("w2", 5, 4, 1, 1), constant("c2", 5)])


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def answers(model: onnx.ModelProto, images: np.ndarray = IMAGES) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})


def equalised(model: onnx.ModelProto, pairs: int) -> dict[str, np.ndarray]:
    """The weights afterwards, of a graph whose answers stayed within 1e-5 of the largest."""
    before = answers(model)
    assert equalise(model) == pairs
    for one, two in zip(before, answers(model), strict=True):
        assert np.abs(one - two).max() <= 1e-5 * np.abs(one).max()
    return weights(model)


def same_ranges(one: np.ndarray, two: np.ndarray) -> None:
    np.testing.assert_allclose(one, two, rtol=1e-3)


def test_two_channels_by_hand() -> None:
    model = graph_of(
        [
            helper.make_node("Conv", ["x", "w1", "c1"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w2"], ["y"]),
        ],
        [
            numpy_helper.from_array(np.array([[100, 50, 0], [1, 0.5, 0]], np.float32)[..., None, None], "w1"),
            numpy_helper.from_array(np.array([20, 3], np.float32), "c1"),
            numpy_helper.from_array(np.array([[1, 100]], np.float32)[..., None, None], "w2"),
        ],
    )
    after = equalised(model, 1)
    np.testing.assert_allclose(after["w1"][..., 0, 0], [[10, 5, 0], [10, 5, 0]], rtol=1e-6)
    np.testing.assert_allclose(after["c1"], [2, 30], rtol=1e-6)
    np.testing.assert_allclose(after["w2"][..., 0, 0], [[10, 10]], rtol=1e-6)


@pytest.mark.parametrize(
    "between",
    [
        [helper.make_node("Relu", ["a"], ["b"])],
        [helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.2)],
        [helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2])],
        [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("AveragePool", ["r"], ["b"], kernel_shape=[2, 2])],
        [helper.make_node("MaxPool", ["a"], ["r"], kernel_shape=[2, 2]), helper.make_node("Relu", ["r"], ["b"])],
        [helper.make_node("GlobalAveragePool", ["a"], ["b"])],
    ],
    ids=lambda nodes: "+".join(node.op_type for node in nodes),
)
def test_both_layers_of_a_pair_have_the_same_ranges(between: list[onnx.NodeProto]) -> None:
    after = equalised(chain(*between), 1)
    same_ranges(np.abs(after["w1"]).max((1, 2, 3)), np.abs(after["w2"]).max((0, 2, 3)))


def test_a_depthwise_and_a_grouped_convolution_in_a_chain() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2", "c2"], ["c"], group=6),
        helper.make_node("Conv", ["c", "w3", "c3"], ["d"], group=2),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "w4"], ["y"]),
    ]
    constants = [constant("w1", 6, 3, 1, 1), constant("w2", 6, 1, 3, 3), constant("c2", 6), constant("w3", 4, 3, 1, 1), constant("c3", 4)]
    after = equalised(graph_of(nodes, [*constants, constant("w4", 2, 4, 1, 1)]), 3)
    same_ranges(np.abs(after["w1"]).max((1, 2, 3)), np.abs(after["w2"]).max((1, 2, 3)))
    grouped = np.abs(after["w3"][..., 0, 0]).reshape(2, 2, 3).max(1).reshape(-1)  # input 3 g + i is column i of group g
    same_ranges(np.abs(after["w2"]).max((1, 2, 3)), grouped)
    same_ranges(np.abs(after["w3"]).max((1, 2, 3)), np.abs(after["w4"]).max((0, 2, 3)))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize(
    ("flatten", "each"), [("Flatten", 64), ("Reshape", 64), ("ReduceMean", 1), ("ReduceMax", 1)], ids=lambda value: str(value)
)
def test_a_linear_layer_behind_flattened_or_reduced_channels(flatten: str, each: int, transposed: int) -> None:
    inputs = {"Reshape": ["b", "shape"], "ReduceMean": ["b", "axes"], "ReduceMax": ["b", "axes"]}.get(flatten, ["b"])
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node(flatten, inputs, ["c"], **({"keepdims": 0} if flatten.startswith("Reduce") else {})),
        helper.make_node("Gemm", ["c", "w2", "c2"], ["d"], transB=transposed),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3"], ["y"]),
    ]
    second = constant("w2", 6, 4 * each) if transposed else constant("w2", 4 * each, 6)
    extra = [numpy_helper.from_array(np.array([-1, 4 * each]), "shape"), numpy_helper.from_array(np.array([2, -1]), "axes")]
    after = equalised(graph_of(nodes, [constant("w1", 4, 3, 3, 3), second, constant("c2", 6), constant("w3", 6, 2), *extra]), 2)
    rows = after["w2"] if transposed else after["w2"].T
    same_ranges(np.abs(after["w1"]).max((1, 2, 3)), np.abs(rows).reshape(6, 4, each).max((0, 2)))
    same_ranges(np.abs(rows).max(1), np.abs(after["w3"]).max(1))


@pytest.mark.parametrize("rest", [0, 1e-12])
def test_a_channel_with_next_to_no_weights_is_left_alone(rest: float) -> None:
    """Else its bias would be divided by next to nothing."""
    model = chain(helper.make_node("Relu", ["a"], ["b"]))
    values = weights(model)
    for name, index in (("w1", 1), ("w2", (slice(None), 2))):
        dead = values[name].copy()
        dead[index] *= rest
        next(weight for weight in model.graph.initializer if weight.name == name).CopyFrom(numpy_helper.from_array(dead, name))
    before = weights(model)
    after = equalised(model, 1)
    assert after["c1"][1] == before["c1"][1]
    for channel in (1, 2):
        np.testing.assert_array_equal(after["w1"][channel], before["w1"][channel])
        np.testing.assert_array_equal(after["w2"][:, channel], before["w2"][:, channel])
    same_ranges(np.abs(after["w1"][[0, 3]]).max((1, 2, 3)), np.abs(after["w2"][:, [0, 3]]).max((0, 2, 3)))


def untouchable() -> dict[str, onnx.ModelProto]:
    limits = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("low", 0), ("high", 6))]
    clip = chain(helper.make_node("Clip", ["a", "low", "high"], ["b"]))
    clip.graph.initializer.extend(limits)
    add = chain(helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"]))
    shown = chain(helper.make_node("Relu", ["a"], ["b"]))
    shown.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    square = [constant("w", 3, 3, 1, 1), constant("c", 3)]
    shared = [
        helper.make_node("Conv", ["x", "w", "c"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]
    shared_bias = [
        helper.make_node("Conv", ["x", "w", "c"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v", "c"], ["y"]),
    ]
    mixed = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Gemm", ["b", "v"], ["y"]),
    ]
    over_channels = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ReduceMean", ["a", "axes"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["y"]),
    ]
    return {
        "Clip": clip,
        "Sigmoid": chain(helper.make_node("Sigmoid", ["a"], ["b"])),
        "HardSwish": chain(helper.make_node("HardSwish", ["a"], ["b"])),
        "two readers": add,
        "an output": shown,
        "shared weights": graph_of(shared, square),
        "a shared bias": graph_of(shared_bias, [*square, constant("v", 3, 3, 1, 1)]),
        # (N, 4, 8, 8) to (4 N, 64): the 64 inputs of the linear layer are pixels of one channel
        "a reshape of another kind": graph_of(
            mixed, [constant("w", 4, 3, 1, 1), constant("v", 64, 2), numpy_helper.from_array(np.array([-1, 64]), "shape")]
        ),
        "a mean over channels": graph_of(
            over_channels, [constant("w", 1, 3, 1, 1), constant("v", 2, 1, 1, 1), numpy_helper.from_array(np.array([1]), "axes")]
        ),
    }


@pytest.mark.parametrize("case", untouchable())
def test_what_does_not_commute_or_is_shared_stays_bit_identical(case: str) -> None:
    model = untouchable()[case]
    before = model.SerializeToString(deterministic=True)
    assert equalise(model) == 0
    assert model.SerializeToString(deterministic=True) == before


def per_tensor(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each weight rounded to 255 steps of one scale."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for weight in rounded.graph.initializer:
        if weight.name.startswith("w"):
            values = numpy_helper.to_array(weight)
            scale = np.abs(values).max() / 127
            weight.CopyFrom(numpy_helper.from_array((np.round(values / scale) * scale).astype(np.float32), weight.name))
    return rounded


def test_channels_scaled_a_thousand_to_one_survive_one_scale_per_tensor_only_with_it() -> None:
    """The answers of a network, then with half its channels scaled by 1000 and back, which changes nothing until it is quantized."""
    model = chain(helper.make_node("Relu", ["a"], ["r"]), helper.make_node("GlobalAveragePool", ["r"], ["b"]))
    uneven = np.where(np.arange(4) < 2, 1000, 1).astype(np.float32)
    plain = {name: np.random.default_rng(1).normal(size=value.shape).astype(np.float32) for name, value in weights(model).items()}
    plain |= {"w1": plain["w1"] * uneven[:, None, None, None], "c1": plain["c1"] * uneven, "w2": plain["w2"] / uneven[:, None, None]}
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(plain[weight.name], weight.name))
    images = np.random.default_rng(2).normal(size=(200, 3, 8, 8)).astype(np.float32)

    def agreement(quantized: onnx.ModelProto) -> float:
        return float((answers(quantized, images)[0].argmax(1) == answers(model, images)[0].argmax(1)).mean())

    without = agreement(per_tensor(model))
    assert equalise(model) == 1
    assert without < 0.9 < 0.97 < agreement(per_tensor(model))
