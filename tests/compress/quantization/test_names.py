"""Every pass, on a graph whose own tensors and nodes are called already what the pass calls those that it adds.

Such a graph must come to the same numbers as one with harmless names: a name is a name and nothing else.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from static_int8 import prepare, quantize_static

from compress.graphs.adopt import adopt
from compress.graphs.floats import fold, split_gemms
from compress.graphs.rewrite import simplify
from compress.quantization.bias import correct_bias
from compress.quantization.int8 import quantize_dynamic, quantize_prepared
from compress.quantization.noise import layer_noise
from compress.quantization.qat.network import GraphNetwork
from compress.quantization.records import Setting
from compress.quantization.weights_only import store_in

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
CONFIG = Setting()
Names = tuple[Sequence[str], Sequence[str]]  # of tensors, of nodes


def network(names: Names, kind: int = TensorProto.UINT8) -> onnx.ModelProto:
    """Something for every pass to do: a scaled image, a Relu behind a Concat, a shared MLP, a Gemm; then the tensors are added."""
    random = np.random.default_rng(1)
    shapes = {
        "w0": (4, 1, 3, 3),
        "b0": (4,),
        "w1": (4, 1, 3, 3),
        "b1": (4,),
        "w2": (8, 8, 1, 1),
        "b2": (8,),
        "w3": (8, 8, 1, 1),
        "b3": (8,),
    }
    weights = {name: random.normal(size=shape) for name, shape in (shapes | {"fc": (10, 8), "b": (10,)}).items()}
    tensors = {name: random.normal(size=1) for name in names[0]}
    nodes = [helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT)] if kind == TensorProto.UINT8 else []
    nodes += [
        helper.make_node("Mul", ["cast" if nodes else "image", "k"], ["x"], name="scale"),
        helper.make_node("Conv", ["x", "w0", "b0"], ["left"], name="left"),
        helper.make_node("Conv", ["x", "w1", "b1"], ["right"], name="right"),
        helper.make_node("Concat", ["left", "right"], ["both"], axis=1, name="join"),
        helper.make_node("Relu", ["both"], ["r"], name="clip"),
    ]
    for way, pool in (("a", "GlobalAveragePool"), ("m", "GlobalMaxPool")):
        nodes += [
            helper.make_node(pool, ["r"], [way], name=f"pool_{way}"),
            helper.make_node("Conv", [way, "w2", "b2"], [f"{way}1"], name=f"squeeze_{way}"),
            helper.make_node("Relu", [f"{way}1"], [f"{way}2"], name=f"relu_{way}"),
            helper.make_node("Conv", [f"{way}2", "w3", "b3"], [f"{way}3"], name=f"excite_{way}"),
        ]
    nodes += [
        helper.make_node("Add", ["a3", "m3"], ["sum"], name="sum"),
        helper.make_node("Flatten", ["sum"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "fc", "b"], ["y0"], transB=1, name="linear"),
    ]
    for index, (tensor, node) in enumerate(zip(*names, strict=True)):
        nodes.append(helper.make_node("Add", [f"y{index}", tensor], [f"y{index + 1}"], name=node))
    nodes.append(helper.make_node("Sigmoid", [f"y{len(tensors)}"], ["logits"], name="end"))
    constants = {"k": np.array(1 / 255)} | weights | tensors
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", kind, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(["logits"], {"image": IMAGES})[0]


def edit(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], onnx.ModelProto]:
    def edited(path: Path) -> onnx.ModelProto:
        model = onnx.load(path)
        change(model)
        return model

    return edited


def in_file(quantize: Callable[[Path, Path], object]) -> Callable[[Path], onnx.ModelProto]:
    def written(path: Path) -> onnx.ModelProto:
        quantize(path, path.with_suffix(".out"))
        return onnx.load(path.with_suffix(".out"))

    return written


PASSES = {
    "simplify": edit(simplify),
    "split_gemms": edit(split_gemms),
    "int8 weights": edit(lambda model: store_in(model, "it", bits="int8")),
    "fp16 weights": edit(lambda model: store_in(model, "it", bits="fp16")),
    "adopt": lambda path: adopt(path, (1, 8, 8), (0.5,), (0.25,), {}),
    "dynamic": in_file(quantize_dynamic),
    "static": in_file(lambda path, target: quantize_static(path, target, IMAGES, CONFIG)),
}


def saved(path: Path, names: Names, name: str = "") -> Path:
    onnx.save(network(names, TensorProto.FLOAT if name == "adopt" else TensorProto.UINT8), path)
    return path


def named(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    tensors = {name for node in model.graph.node for name in node.output} | {weight.name for weight in model.graph.initializer}
    return tensors, {node.name for node in model.graph.node}


def harmless(count: int) -> Names:
    return [f"t{index}" for index in range(count)], [f"n{index}" for index in range(count)]


def hostile(names: Collection[str]) -> Names:
    return sorted(names), sorted(names)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_makes_the_same_of_a_graph_that_has_its_names_already(name: str, tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.onnx", harmless(1), name)
    before, after = named(onnx.load(plain)), named(PASSES[name](plain))
    added = {one for old, new in zip(before, after, strict=True) for one in new - old} - {"probabilities"} | {"image_", "logits_"}
    assert len(added) > 3
    expected = run(PASSES[name](saved(tmp_path / "many.onnx", harmless(len(added)), name)))
    found = PASSES[name](saved(tmp_path / "hostile.onnx", hostile(added), name))
    np.testing.assert_array_equal(run(found), expected)


def test_unnamed_nodes_get_names_that_no_other_node_has() -> None:
    model = network((["t"], ["Conv_2"]))
    model.graph.node[2].name = ""
    folded = fold(model, "it")
    assert len({node.name for node in folded.graph.node}) == len(folded.graph.node)


INNER = [
    "int8/w0",
    "int8/x",
    "0/signal",
    "0/q",
    "0/limit",
    "logits/noise",
    "left/mean",
    "left/error",
    "left/weight error",
    "bias/batch axis",
]
INNER += [
    "batch axis",
    "limit",
    "Sub",
    "Div",
    "left_DequantizeLinear_Output scale",
    "x_DequantizeLinear_Output scale",
    "r_DequantizeLinear_Output scale",
]


def looked_at(path: Path) -> tuple[object, np.ndarray, np.ndarray]:
    """What noise, bias correction and the graph as a network come to."""
    prepared = prepare(path, IMAGES)
    quantized = quantize_prepared(prepared, CONFIG)
    noise = [(row.output_db, row.own_db, row.weight_db, row.clipped) for row in layer_noise(prepared.model, quantized, IMAGES)]
    with torch.inference_mode():
        logits = GraphNetwork(quantized)(torch.from_numpy(IMAGES)).numpy()
    assert correct_bias(quantized, prepared.model, IMAGES) == 7
    return noise, logits, run(quantized)


def test_what_looks_into_a_graph_finds_the_same_in_one_that_has_its_names_already(tmp_path: Path) -> None:
    expected = looked_at(saved(tmp_path / "plain.onnx", harmless(len(INNER))))
    found = looked_at(saved(tmp_path / "hostile.onnx", hostile(INNER)))
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])
