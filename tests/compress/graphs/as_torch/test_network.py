"""Graphs as other tools write them, as torch networks: what ONNX Runtime says of the file is the truth, whole and cut."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.channels.cut import remove_channels
from compress.channels.find import channel_groups
from compress.errors import CompressError
from compress.graphs.as_torch.network import OnnxNetwork

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)


def weight(*shape: int) -> np.ndarray:
    seed = sum(size * 7**place for place, size in enumerate(shape))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / max(1, int(np.prod(shape[1:]))) ** 0.5


def graph(
    *nodes: onnx.NodeProto, outputs: tuple[str, ...] = ("logits",), batch: object = "n", opset: int = 18, **weights: np.ndarray
) -> onnx.ModelProto:
    """From uint8 ``image`` (n, 3, 8, 8) by ``x``, which is float32 in [0, 1], to ``logits``."""
    scaled = [helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT), helper.make_node("Mul", ["cast", "scale"], ["x"])]
    content = helper.make_graph(
        [*scaled, *nodes],
        "theirs",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {"scale": np.float32(1 / 255), **weights}.items()],
    )
    model = helper.make_model(content, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, {"kept": "as it was"})
    onnx.checker.check_model(model, full_check=True)
    return model


def answers(model: onnx.ModelProto, images: np.ndarray = IMAGES) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(["logits"], {"image": images})[0]


def logits(network: nn.Module, images: np.ndarray = IMAGES) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def conv(source: str, target: str, weights: str, **how: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, *weights.split()], [target], name=f"/{target}/Conv.1", **how)


def plain() -> onnx.ModelProto:
    """A Reshape with the width written in, and pads that follow from the size."""
    return graph(
        conv("x", "a", "w1 b1", auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("PRelu", ["a", "slope"], ["b"]),
        conv("b", "c", "w2", pads=[1, 0, 0, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["logits"], transB=1),
        w1=weight(8, 3, 3, 3), b1=weight(8), slope=weight(8, 1, 1), w2=weight(6, 8, 2, 2), shape=np.array([-1, 6]), w3=weight(4, 6),
        b3=weight(1, 4),
    )  # fmt: skip


def gated() -> onnx.ModelProto:
    """A depthwise convolution, a gate of two layers on the mean, a scale for each channel, and a residual sum; two biases are equal."""
    return graph(
        conv("x", "a", "w1"),
        helper.make_node("HardSwish", ["a"], ["active"]),
        helper.make_node("Mul", ["active", "layer_scale"], ["scaled"]),
        conv("scaled", "b", "w2", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["b", "axes"], ["mean"]),
        conv("mean", "squeezed", "w3 b3"),
        helper.make_node("Relu", ["squeezed"], ["relu"]),
        conv("relu", "excited", "w4"),
        helper.make_node("HardSigmoid", ["excited"], ["gate"]),
        helper.make_node("Mul", ["b", "gate"], ["c"]),
        helper.make_node("Sum", ["c", "scaled"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "w5"], ["f"]),
        helper.make_node("Add", ["b5", "f"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        outputs=("logits", "probabilities"),
        w1=weight(8, 3, 1, 1), layer_scale=weight(1, 8, 1, 1), w2=weight(8, 1, 3, 3), axes=np.array([2, 3]), w3=weight(4, 8, 1, 1),
        b3=weight(4), w4=weight(8, 4, 1, 1), w5=weight(512, 4), b5=weight(4),
    )  # fmt: skip


def dense() -> onnx.ModelProto:
    """A batch norm that follows a concatenation, which nothing folds; one layer used twice; halves that are swapped."""
    halves = [
        helper.make_node("Split", ["n", "sizes"], ["left", "right"], axis=1),
        helper.make_node("Concat", ["right", "left"], ["m"], axis=1),
    ]
    return graph(
        conv("x", "a", "w1"),
        conv("a", "b", "w2"),
        helper.make_node("Relu", ["b"], ["r"]),
        conv("r", "c", "w2"),
        helper.make_node("Concat", ["a", "c"], ["both"], axis=1),
        helper.make_node("BatchNormalization", ["both", "g", "h", "mean", "variance"], ["n"]),
        *halves,
        helper.make_node("GlobalMaxPool", ["m"], ["d"]),
        helper.make_node("Reshape", ["d", "shape"], ["e"]),
        helper.make_node("MatMul", ["e", "w3"], ["logits"]),
        w1=weight(6, 3, 1, 1), w2=weight(6, 6, 1, 1), g=weight(12), h=weight(12), mean=weight(12), variance=weight(12) ** 2 + 1,
        sizes=np.array([6, 6]), shape=np.array([0, 12]), w3=weight(12, 4),
    )  # fmt: skip


def computed() -> onnx.ModelProto:
    """A shape that is computed from the batch, as Paddle and TensorFlow export it."""
    return graph(
        conv("x", "a", "w1 b1"),
        helper.make_node("Shape", ["a"], ["whole"]),
        helper.make_node("Slice", ["whole", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("MatMul", ["b", "w2"], ["logits"]),
        w1=weight(6, 3, 1, 1), b1=weight(6), zero=np.array([0]), one=np.array([1]), rest=np.array([384]), w2=weight(384, 4),
    )  # fmt: skip


def turned() -> onnx.ModelProto:
    """The mean of each channel goes to the end, as TensorFlow exports it: (B, C, 1, 1), (B, 1, 1, C), (B, C)."""
    return graph(
        conv("x", "a", "w1 b1"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["b"]),
        helper.make_node("Reshape", ["b", "last"], ["c"]),
        helper.make_node("Reshape", ["c", "flat"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["logits"]),
        w1=weight(8, 3, 1, 1), b1=weight(8), last=np.array([-1, 1, 1, 8]), flat=np.array([-1, 8]), w2=weight(8, 4),
    )  # fmt: skip


def shuffled() -> onnx.ModelProto:
    """The shuffle of a grouped convolution's channels, its sizes written in: channels of the same place in both groups go together."""
    return graph(
        conv("x", "a", "w1"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Reshape", ["r", "apart"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["c", "together"], ["d"]),
        conv("d", "e", "w2"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "w3"], ["logits"]),
        w1=weight(8, 3, 1, 1), apart=np.array([-1, 2, 4, 8, 8]), together=np.array([-1, 8, 8, 8]), w2=weight(6, 8, 1, 1), w3=weight(6, 4),
    )  # fmt: skip


def tokens() -> onnx.ModelProto:
    """Layer norm over the channels of tokens, channels last, and back again."""
    return graph(
        conv("x", "a", "w1"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["b", "flat"], ["c"]),
        helper.make_node("LayerNormalization", ["c", "scale1", "bias1"], ["d"], epsilon=0.01),
        helper.make_node("MatMul", ["d", "w2"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["g"]),
        helper.make_node("Add", ["g", "c"], ["h"]),
        helper.make_node("Reshape", ["h", "square"], ["i"]),
        helper.make_node("ReduceMean", ["i", "axes"], ["j"], keepdims=0),
        helper.make_node("Gemm", ["j", "w4"], ["logits"]),
        w1=weight(8, 3, 1, 1), flat=np.array([0, 64, 8]), scale1=weight(8), bias1=weight(8) + 1, w2=weight(8, 12), w3=weight(12, 8),
        square=np.array([0, 8, 8, 8]), axes=np.array([1, 2]), w4=weight(8, 4),
    )  # fmt: skip


def segmenting(opset: int = 18) -> onnx.ModelProto:
    """Up again by a transposed convolution, a scale, and a size that is written in with the channels; what came before is joined on."""
    return graph(
        conv("x", "a", "w1 b1", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("b", "c", "w2 b2", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["c", "", "double"], ["d"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        helper.make_node("Concat", ["d", "b"], ["e"], axis=1),
        helper.make_node("ConvTranspose", ["e", "w3", "b3"], ["f"], name="up", strides=[2, 2]),
        helper.make_node("Shape", ["f"], ["whole"]),
        helper.make_node("Slice", ["whole", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "rest"], ["sizes"], axis=0),
        helper.make_node("Resize", ["f", "", "", "sizes"], ["g"], mode="linear", coordinate_transformation_mode="align_corners"),
        conv("g", "h", "w4"),
        helper.make_node("GlobalAveragePool", ["h"], ["i"]),
        helper.make_node("Flatten", ["i"], ["logits"]),
        opset=opset,
        w1=weight(6, 3, 3, 3), b1=weight(6), w2=weight(8, 6, 3, 3), b2=weight(8), double=np.float32([1, 1, 2, 2]), w3=weight(14, 10, 2, 2),
        b3=weight(10), zero=np.array([0]), one=np.array([1]), rest=np.array([10, 12, 16]), w4=weight(4, 10, 3, 3),
    )  # fmt: skip


CUT = [(plain, 2), (gated, 2), (dense, 1), (computed, 1), (turned, 1), (shuffled, 2), (tokens, 2), (segmenting, 3)]


@pytest.mark.parametrize(("make", "groups"), [*CUT, (lambda: segmenting(opset=13), 3)])
def test_graph_is_the_same_as_a_network_and_half_as_wide_as_torch_cuts_it(make: Callable[[], onnx.ModelProto], groups: int) -> None:
    model = make()
    before = model.SerializeToString()
    network = OnnxNetwork(model, "theirs").eval()
    assert model.SerializeToString() == before
    np.testing.assert_allclose(logits(network), answers(model), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(answers(network.to_onnx()), answers(model))

    found = channel_groups(network, torch.from_numpy(IMAGES[:2]).float())
    assert len(found) == groups, str(found)
    cut = remove_channels(network, found, {group.name: tuple(range(group.width // 2)) for group in found})
    narrow = cut.to_onnx()
    onnx.checker.check_model(narrow, full_check=True)
    np.testing.assert_allclose(logits(cut), answers(narrow), rtol=1e-4, atol=1e-5)
    assert len(narrow.SerializeToString()) < len(model.SerializeToString())
    assert [entry.value for entry in narrow.metadata_props] == ["as it was"]
    assert [one.name for one in narrow.graph.output] == [one.name for one in model.graph.output]
    np.testing.assert_array_equal(answers(network.to_onnx()), answers(model))  # the network itself is whole


def test_layers_are_called_as_their_nodes_are() -> None:
    network = OnnxNetwork(plain(), "theirs")
    assert {type(network.get_submodule(name)) for name in ("a/Conv_1", "c/Conv_1")} == {nn.Conv2d}
    assert channel_groups(network, torch.from_numpy(IMAGES[:2]).float())[0].name == "a/Conv_1"


def test_a_batch_that_is_written_into_the_graph_does_not_bind_the_network() -> None:
    weights = {one.name: numpy_helper.to_array(one) for one in plain().graph.initializer if one.name not in ("scale", "shape")}
    fixed = graph(*plain().graph.node[2:], batch=1, shape=np.array([1, 6]), **weights)
    network = OnnxNetwork(fixed, "theirs").eval()
    alone = np.concatenate([answers(fixed, IMAGES[at : at + 1]) for at in range(len(IMAGES))])
    np.testing.assert_allclose(logits(network), alone, rtol=1e-4, atol=1e-5)


def test_zeros_are_put_in_the_place_of_the_weights_that_nobody_trains() -> None:
    """What is no weight of a layer has no gradient; to_onnx writes what the network holds."""
    network = OnnxNetwork(gated(), "theirs").eval()
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert "layer_scale" in " ".join(name for name, _ in network.named_parameters()) and not any("layer_scale" in name for name in trained)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "layer_scale" in name:
                value.zero_()
    np.testing.assert_allclose(answers(network.to_onnx()), np.tile(weight(4), (5, 1)), atol=1e-6)


def refused(model: onnx.ModelProto) -> str:
    with pytest.raises(CompressError) as caught:
        OnnxNetwork(model, '"net.onnx"')
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_a_network_is_refused_by_name() -> None:
    weights = {"w1": weight(4, 3, 8, 8), "shape": np.array([-1, 4])}
    flat = helper.make_node("Reshape", ["a", "shape"], ["logits"])
    odd = helper.make_node("Det", ["x"], ["odd"], name="odd")
    told = refused(graph(conv("x", "a", "w1"), flat, odd, outputs=("logits", "odd"), **weights))
    assert told == (
        '"net.onnx" has an output "odd" beside its logits that is not made of these alone, and could lose channels; '
        "export the classifier without it"
    )
    told = refused(
        graph(helper.make_node("Det", ["x"], ["m"], name="odd"), helper.make_node("MatMul", ["m", "w"], ["logits"]), w=weight(3, 4))
    )
    assert told.startswith('"net.onnx": Det "odd" is an operator that has no torch function')
    assert told.endswith("; take in the network that it was exported from, with --weights")
