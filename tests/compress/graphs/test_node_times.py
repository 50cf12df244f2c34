from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from static_int8 import quantize_static

from compress.errors import CompressError
from compress.graphs.index import index
from compress.graphs.node_times import _owner, node_times


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "c1": (16,), "w2": (16, 16, 3, 3), "c2": (16,), "w3": (16, 10), "c3": (10,)}
    constants = [numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["image", "w1", "c1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2", "c2"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "c"], ["d"], name="add"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "c3"], ["logits"], name="fc"),
    ]
    entry = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 16, 16])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(nodes, "g", [entry], [result], constants)
    path = tmp_path_factory.mktemp("times") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_times_go_to_the_layers_of_the_file_whatever_was_fused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(1).normal(size=(32, 3, 16, 16)).astype(np.float32)
    int8 = tmp_path / "int8" / "net.onnx"
    quantize_static(source, int8, images)
    for path in (source, int8):
        names = {node.name for node in onnx.load(path).graph.node}
        times = node_times(path, (3, 16, 16), calls=20)
        assert {"first", "second", "fc"} <= set(times)
        assert all(name in names or (name[0], name[-1]) == ("(", ")") for name in times)
        assert all(time >= 0 for time in times.values())
    assert sorted(tmp_path.iterdir()) == [int8.parent]  # no profile is left


@pytest.mark.parametrize(
    ("kernel", "kind", "owner"),
    [
        ("fc_kernel_time", "Gemm", "fc"),
        ("fused fc_kernel_time", "FusedGemm", "fc"),
        ("b_nchwc_kernel_time", "Conv", "first"),  # Conv and Relu in one, called after what the Relu makes
        ("d_nchwc_kernel_time", "Conv", "second"),  # Conv and Add
        ("second_token_12_kernel_time", "QLinearConv", "second"),
        ("ReorderOutput_token_3_kernel_time", "ReorderOutput", "(ReorderOutput)"),
        ("Transpose_kernel_time", "Transpose", "(Transpose)"),
    ],
)
def test_names_that_onnx_runtime_gives(source: Path, kernel: str, kind: str, owner: str) -> None:
    assert _owner(index(onnx.load(source)), kernel, kind) == owner


def test_a_file_that_is_no_graph_is_one_line(source: Path, tmp_path: Path) -> None:
    model = onnx.load(source)
    model.graph.node[0].op_type = "Fold"
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(CompressError, match=r'net\.onnx" is no valid ONNX graph'):
        node_times(tmp_path / "net.onnx", (3, 16, 16))
