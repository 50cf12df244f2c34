"""Rewrites against ONNX Runtime: each is made where it is exact, gives the same answers, and is left alone otherwise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.graphs.rewrite import fold_tensors, simplify

Node = tuple[str, Sequence[str], str, dict[str, Any]]
SIZES = {"w1": (4, 3, 3, 3), "w2": (2, 3, 3, 3), "w8": (4, 8, 3, 3), "dw": (3, 1, 3, 3), "scale": (1, 3, 1, 1), "one": ()}
SIZES |= {"v": (2, 4, 1, 1), "vb": (2,), "u": (4, 2, 1, 1), "ub": (4,), "u_other": (4, 2, 1, 1), "map": (1, 4, 6, 6)}
PAD = {"pads": [1, 1, 1, 1]}


def graph(
    nodes: Sequence[Node], outputs: Sequence[str] = ("y",), *, taken: int = TensorProto.FLOAT, batch: Any = "B", **others: Any
) -> onnx.ModelProto:
    """Takes ``x``, (B, 3, 6, 6); ``axes`` are those of the pixels, the other weights normal numbers unless ``others`` has them."""
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SIZES.items()}
    weights |= {"axes": np.array([2, 3])} | others
    made = helper.make_graph(
        [helper.make_node(kind, inputs, [output], name=output, **settings) for kind, inputs, output, settings in nodes],
        "by_hand",
        [helper.make_tensor_value_info("x", taken, [batch, weights["w1"].shape[1], 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def run(model: onnx.ModelProto, count: int) -> list[np.ndarray]:
    image = np.random.default_rng(1).integers(0, 256, (count, 3, 6, 6), dtype=np.uint8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # what the file says
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    kind = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32
    return session.run(None, {"x": image.astype(kind)})


def simplified(model: onnx.ModelProto, *, fixed: int | None = None) -> tuple[tuple[str, ...], onnx.ModelProto]:
    """What was done, and the graph, which is valid and gives what it gave before."""
    after = onnx.ModelProto()
    after.CopyFrom(model)
    done = simplify(after)
    onnx.checker.check_model(after, full_check=True)
    for count in (fixed,) if fixed else (1, 5):
        for one, other in zip(run(model, count), run(after, count), strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())
    if not done:
        assert after == model
    return done, after


def concat(axis: int = 1, second: str = "w2", kind: str = "Relu") -> list[Node]:
    return [
        ("Conv", ["x", "w1"], "a", PAD),
        ("Conv", ["x", second], "b", PAD),
        ("Concat", ["a", "b"], "c", {"axis": axis}),
        (kind, ["c"], "y", {}),
    ]


def test_relu_moves_before_concat() -> None:
    done, after = simplified(graph(concat()))
    assert done == ("1 Relu moved before Concat",)
    assert kinds(after) == ["Conv", "Conv", "Relu", "Relu", "Concat"]
    assert not after.graph.value_info
    assert [value.name for value in after.graph.output] == ["y"]
    assert simplified(graph(concat(axis=2, second="w1")))[0] == done  # on any axis


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (concat(), ("y", "c")),
        (concat(), ("y", "a")),
        ([*concat(), ("Abs", ["c"], "z", {})], ("y", "z")),
        ([*concat(), ("Abs", ["a"], "z", {})], ("y", "z")),
        (concat(kind="Abs"), ("y",)),
        ([("Conv", ["x", "w1"], "a", PAD), ("Concat", ["a", "x"], "c", {"axis": 1}), ("Relu", ["c"], "y", {})], ("y",)),
        ([("Conv", ["x", "w1"], "a", PAD), ("Concat", ["a", "a"], "c", {"axis": 1}), ("Relu", ["c"], "y", {})], ("y",)),
    ],
    ids=["concat is an output", "part is an output", "concat used twice", "part used twice", "no Relu", "part no Conv", "one part twice"],
)
def test_relu_stays_behind_concat(nodes: list[Node], outputs: tuple[str, ...]) -> None:
    assert simplified(graph(nodes, outputs))[0] == ()


def gate(**changes: Any) -> list[Node]:
    """Average and maximum of a convolution, the MLP on each, their sum; ``changes`` replace nodes by the name of their output."""
    nodes: list[Node] = [
        ("Conv", ["x", "w1"], "f", PAD),
        ("ReduceMean", ["f", "axes"], "avg", {"keepdims": 1}),
        ("Conv", ["avg", "v", "vb"], "a1", {"kernel_shape": [1, 1]}),
        ("Relu", ["a1"], "a2", {}),
        ("Conv", ["a2", "u", "ub"], "a3", {}),
        ("ReduceMax", ["f", "axes"], "max", {"keepdims": 1}),
        ("Conv", ["max", "v", "vb"], "m1", {"kernel_shape": [1, 1]}),
        ("Relu", ["m1"], "m2", {}),
        ("Conv", ["m2", "u", "ub"], "m3", {}),
        ("Add", ["a3", "m3"], "sum", {}),
        ("Sigmoid", ["sum"], "gate", {}),
        ("Mul", ["f", "gate"], "y", {}),
    ]
    return [changes.get(node[2], node) for node in nodes]


def test_a_shared_mlp_runs_once() -> None:
    done, after = simplified(graph(gate()))
    assert done == ("1 shared MLP run once on average and maximum",)
    assert kinds(after) == [
        *("Conv", "ReduceMean", "ReduceMax", "Concat", "Conv", "Relu", "GlobalAveragePool", "Conv", "Sigmoid", "Mul"),
    ]
    names = {weight.name: numpy_helper.to_array(weight) for weight in after.graph.initializer}
    assert "u" not in names and "u_doubled" in names and "ub_doubled" in names  # nothing that no node uses is left
    without_bias = gate(a3=("Conv", ["a2", "u"], "a3", {}), m3=("Conv", ["m2", "u"], "m3", {}))
    assert simplified(graph(without_bias))[0] == done
    used_elsewhere = [*gate(), ("Conv", ["gate", "v"], "g1", {}), ("Conv", ["g1", "u"], "z", {})]
    assert "u" in {weight.name for weight in simplified(graph(used_elsewhere, ("y", "z")))[1].graph.initializer}


def test_a_shared_mlp_by_hand() -> None:
    """As in the module: as many pixels of 0 and of 4 have average 2 and maximum 4; weights 1 and 3 and bias 1 make 7 + 13 = 20 of it."""
    one = np.ones((1, 1, 1, 1), np.float32)
    model = graph(gate()[:10], ("sum",), w1=one, v=one, vb=np.zeros(1, np.float32), u=3 * one, ub=np.ones(1, np.float32))
    model.graph.node[0].ClearField("attribute")  # no padding
    assert simplify(model) == ("1 shared MLP run once on average and maximum",)
    image = np.array(18 * [0, 4], np.float32).reshape(1, 1, 6, 6)
    assert onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": image})[0].tolist() == [[[[20.0]]]]


@pytest.mark.parametrize(
    ("changes", "outputs"),
    [
        ({"m3": ("Conv", ["m2", "u_other", "ub"], "m3", {})}, ("y",)),
        ({"m3": ("Conv", ["m2", "u"], "m3", {})}, ("y",)),
        ({"m1": ("Conv", ["max", "v", "vb"], "m1", {"strides": [2, 2]})}, ("y",)),
        ({name: ("Conv", [of, "v", "vb"], name, PAD) for name, of in (("a1", "avg"), ("m1", "max"))}, ("sum",)),
        ({"a2": ("Sigmoid", ["a1"], "a2", {}), "m2": ("Sigmoid", ["m1"], "m2", {})}, ("y",)),
        ({"avg": ("Identity", ["f"], "avg", {}), "max": ("Identity", ["f"], "max", {})}, ("y",)),
        ({"sum": ("Mul", ["a3", "m3"], "sum", {})}, ("y",)),
        ({"sum": ("Add", ["a3", "a3"], "sum", {})}, ("y",)),
        ({"gate": ("Mul", ["sum", "m3"], "gate", {})}, ("y",)),
        ({"max": ("ReduceMax", ["map", "axes"], "max", {"keepdims": 1})}, ("y",)),
        ({}, ("y", "a2")),
    ],
    ids=[
        *("other weights", "other bias", "other steps", "padding", "other activation", "whole map", "product", "one branch twice"),
        *("part used twice", "a batch of one that Add repeats", "inner output"),
    ],
)
def test_an_mlp_that_is_not_shared_or_not_alone_stays(changes: dict[str, Node], outputs: tuple[str, ...]) -> None:
    nodes = gate(**changes)
    assert simplified(graph(nodes if "y" in outputs else nodes[:10], outputs))[0] == ()


def scaled(*others: Node, scale: str = "scale", weight: str = "w1", **settings: Any) -> list[Node]:
    return [
        ("Cast", ["x"], "pixels", {"to": TensorProto.FLOAT}),
        ("Mul", ["pixels", scale], "scaled", {}),
        ("Conv", ["scaled", weight], "y", PAD | settings),
        *others,
    ]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (scaled(), ("y",)),
        (scaled(scale="one"), ("y",)),
        (scaled(scale="one", weight="dw", group=3), ("y",)),
        (scaled(("Conv", ["scaled", "w2"], "z", {})), ("y", "z")),
        (scaled(("Conv", ["scaled", "w1"], "z", {})), ("y", "z")),
        ([scaled()[0], ("Mul", ["one", "pixels"], "half", {}), ("Mul", ["half", "scale"], "scaled", {}), scaled()[2]], ("y",)),
    ],
    ids=["per channel", "one number", "depthwise", "two convolutions", "one weight twice", "two factors"],
)
def test_the_scale_of_the_pixels_goes_into_the_weights(nodes: list[Node], outputs: tuple[str, ...]) -> None:
    done, after = simplified(graph(nodes, outputs, taken=TensorProto.UINT8))
    assert done == (f"pixel scale folded into {len(outputs)} Conv",)
    assert kinds(after) == ["Cast", *["Conv"] * len(outputs)]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (scaled(), ("y", "scaled")),
        (scaled(("Relu", ["scaled"], "z", {})), ("y", "z")),
        (scaled(weight="dw", group=3), ("y",)),
        ([*scaled()[:2], ("Conv", ["w1", "scaled"], "y", {"pads": [2, 2, 2, 2]})], ("y",)),
        ([*scaled()[:2], ("Add", ["scaled", "one"], "shifted", {}), ("Conv", ["shifted", "w1"], "y", PAD)], ("y",)),
        ([scaled()[0], ("Mul", ["pixels", "pixels"], "scaled", {}), scaled()[2]], ("y",)),
    ],
    ids=["an output", "used elsewhere", "per channel and depthwise", "as weight", "shifted", "squared"],
)
def test_the_scale_stays_where_it_is_needed(nodes: list[Node], outputs: tuple[str, ...]) -> None:
    done, after = simplified(graph(nodes, outputs, taken=TensorProto.UINT8, batch=4), fixed=4)
    assert done == ()
    assert "Mul" in kinds(after)


def test_factors_before_a_shift_become_one() -> None:
    nodes = [*scaled()[:2], ("Mul", ["scaled", "one"], "more", {}), ("Add", ["more", "one"], "shifted", {}), ("Abs", ["shifted"], "y", {})]
    done, after = simplified(graph(nodes, taken=TensorProto.UINT8))
    assert done == ("2 pixel scales made one",)
    assert kinds(after) == ["Cast", "Mul", "Add", "Abs"]


def test_names_that_are_taken_are_not_given_again() -> None:
    nodes = [*concat(), ("Abs", ["x"], "a_relu", {}), ("Abs", ["a_relu"], "b_relu", {})]
    assert simplified(graph(nodes, ("y", "b_relu")))[0] == ("1 Relu moved before Concat",)


def test_all_three_at_once_and_a_second_time_nothing() -> None:
    parts: list[Node] = [
        ("Conv", ["scaled", "w1"], "a", PAD),
        ("Conv", ["scaled", "w1"], "b", PAD),
        ("Concat", ["a", "b"], "c", {"axis": 1}),
        ("Relu", ["c"], "d", {}),
    ]
    model = graph([*scaled()[:2], *parts, *gate(f=("Conv", ["d", "w8"], "f", PAD))], taken=TensorProto.UINT8)
    done, after = simplified(model)
    assert len(done) == 3
    assert simplify(after) == ()


def test_a_graph_with_branches_is_left_alone() -> None:
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", 4, 6, 6])
    branch = helper.make_graph([helper.make_node("Identity", ["a"], ["z"])], "branch", [], [output])
    model = graph(concat())
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["other"], then_branch=branch, else_branch=branch))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["B", 4, 6, 6]))
    assert simplified(model)[0] == ()


CHANNELS = np.array([0.5, 2, 0.25, 1.5], np.float32).reshape(1, 4, 1, 1)
GATE: list[Node] = [("ReduceMean", ["x", "all"], "mean", {"keepdims": 1}), ("Sigmoid", ["mean"], "g", {})]
NORM = ("BatchNormalization", ["a", "vector", "ub", "ub", "vector"], "n", {})
JOINED: list[Node] = [
    ("Conv", ["x", "w2"], "a", PAD),
    ("Conv", ["x", "w2"], "b", PAD),
    ("Concat", ["a", "b"], "c", {"axis": 1}),
    ("Relu", ["c"], "r", {}),
]


def times(data: str, *behind: Node) -> list[Node]:
    return [*GATE, ("Mul", ["g", data], "m", {}), *(behind or [("Abs", ["m"], "y", {})])]


def folded(nodes: list[Node], value: np.ndarray, outputs: Sequence[str] = ("y",)) -> list[str]:
    """The nodes of the graph in which ``g`` is ``value``; it gives what one does that has it as a constant, product and all."""
    others = {"all": np.array([1, 2, 3]), "vector": np.array([1, 2, 3, 4], np.float32)}
    model = graph(nodes, outputs, **others)
    before = model.SerializeToString()
    after = fold_tensors(model, {"g": value})
    assert model.SerializeToString() == before and not after.graph.value_info
    onnx.checker.check_model(after, full_check=True)
    expected = graph([node for node in nodes if node not in GATE], outputs, **others, g=value)
    for one, other in zip(run(expected, 3), run(after, 3), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())
    return kinds(after)


@pytest.mark.parametrize(
    ("before", "left"),
    [
        ([("Conv", ["x", "w1"], "d", PAD)], ["Conv"]),
        ([("Conv", ["x", "w1", "ub"], "a", PAD), ("Relu", ["a"], "d", {})], ["Conv", "Relu"]),
        ([("Conv", ["x", "w1"], "a", PAD), NORM, ("LeakyRelu", ["n"], "d", {})], ["Conv", "BatchNormalization", "LeakyRelu"]),
        ([*JOINED, ("MaxPool", ["r"], "d", {"kernel_shape": [2, 2]})], ["Conv", "Conv", "Relu", "Relu", "Concat", "MaxPool"]),
    ],
    ids=["convolution", "bias and relu", "batch norm", "concatenation and pooling"],
)
def test_a_constant_gate_goes_into_the_weights_before_it(before: list[Node], left: list[str]) -> None:
    assert folded([*before, *times("d")], CHANNELS) == [*left, "Abs"]
    assert folded([*before, *times("d")], CHANNELS[:, :1]) == [*left, "Abs"]  # one number for all channels


def test_a_constant_gate_by_hand() -> None:
    """As in the module: the weights and the bias of the convolution are halved."""
    nodes = [("Conv", ["x", "w1", "ub"], "a", PAD), ("Relu", ["a"], "d", {}), *times("d")]
    model = graph(nodes, all=np.array([1, 2, 3]))
    weights = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    after = {
        one.name: numpy_helper.to_array(one) for one in fold_tensors(model, {"g": np.full((1, 1, 1, 1), 0.5, np.float32)}).graph.initializer
    }
    np.testing.assert_array_equal(after["w1_scaled"], weights["w1"] / 2)
    np.testing.assert_array_equal(after["ub_scaled"], weights["ub"] / 2)
    assert "w1" not in after and len(after) == 2


def test_a_constant_gate_goes_into_the_weights_behind_it() -> None:
    behind = times("d", ("Conv", ["m", "v"], "y", {}), ("Conv", ["m", "v", "vb"], "z", {}))
    before: list[Node] = [("Conv", ["x", "w1"], "a", PAD), ("Sigmoid", ["a"], "d", {})]
    assert folded([*before, *behind], CHANNELS, ("y", "z")) == ["Conv", "Sigmoid", "Conv", "Conv"]
    assert "Mul" in folded([*before, *behind, ("Abs", ["m"], "w", {})], CHANNELS, ("y", "z", "w"))


@pytest.mark.parametrize(
    ("nodes", "outputs", "value"),
    [
        ([("Conv", ["x", "w1"], "a", PAD), ("Relu", ["a"], "d", {}), *times("d")], ("y",), -CHANNELS),
        ([("Conv", ["x", "w1"], "d", PAD), *times("d"), ("Abs", ["d"], "z", {})], ("y", "z"), CHANNELS),
        ([("Conv", ["x", "w1"], "d", PAD), *times("d")], ("y", "d"), CHANNELS),
        ([("Conv", ["x", "w1"], "d", PAD), *times("d")], ("y", "m"), CHANNELS),
        ([("Conv", ["x", "w1"], "a", PAD), ("Sigmoid", ["a"], "d", {}), *times("d")], ("y",), CHANNELS),
        ([("Conv", ["x", "w1"], "d", PAD), *times("d")], ("y",), np.arange(36, dtype=np.float32).reshape(1, 1, 6, 6)),
        ([*JOINED[:2], ("Concat", ["a", "b"], "d", {"axis": 2}), *times("d")], ("y",), CHANNELS[:, :2]),
    ],
    ids=["negative", "read elsewhere", "an output", "product an output", "no weights", "a map", "joined along the height"],
)
def test_a_constant_gate_stays_a_factor_where_no_weights_can_have_it(
    nodes: list[Node], outputs: tuple[str, ...], value: np.ndarray
) -> None:
    left = folded(nodes, value, outputs)
    assert "Mul" in left and "ReduceMean" not in left


def test_a_factor_of_one_is_gone_whatever_is_before_it() -> None:
    nodes = [("Conv", ["x", "w1"], "a", PAD), ("Sigmoid", ["a"], "d", {}), *times("d")]
    assert folded(nodes, np.ones((1, 1, 1, 1), np.float32)) == ["Conv", "Sigmoid", "Abs"]
