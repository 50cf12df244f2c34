import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from by_hand import graph, kinds, node, run
from onnx import save

from compress.errors import CompressError
from compress.graphs.floats import fold, is_weighted, nodes_after_weights, nodes_before_weights, split_gemms
from compress.graphs.index import index

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
    assert [entry.name for entry in index(model) if is_weighted(entry)] == ["first"]
    assert [entry.name for entry in nodes_before_weights(index(model))] == ["scale", "beside"]


def test_folding_computes_constants_names_nodes_and_adds_no_domains() -> None:
    model = graph(node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"]), w=W)
    assert not any(is_weighted(entry) for entry in index(model))
    folded = fold(model, "the graph")
    assert kinds(folded) == ["MatMul"]
    assert folded.graph.node[0].name
    assert [entry.domain for entry in folded.opset_import] == [""]
    assert [is_weighted(entry) for entry in index(folded)] == [True]
    np.testing.assert_array_equal(run(folded, X), run(model, X))


def test_a_graph_that_does_not_load_is_named() -> None:
    with pytest.raises(CompressError, match=r"the graph does not load in ONNX Runtime .*Nonsense"):
        fold(graph(node("Nonsense", ["x"], ["y"])), "the graph")


def test_nodes_after_the_last_weights() -> None:
    model = graph(
        node("MatMul", ["x", "w"], ["a"], name="last"),
        node("Add", ["a", "b"], ["logits"], name="bias"),
        node("Softmax", ["logits"], ["y"], name="probabilities"),
        w=W,
        b=B,
    )
    assert [entry.name for entry in nodes_after_weights(index(model))] == ["bias", "probabilities"]


def test_a_disk_without_room_is_not_blamed_on_the_model(tmp_path: Path) -> None:
    save(graph(node("MatMul", ["x", "w"], ["y"]), w=np.ones((2, 600), np.float32)), tmp_path / "net.onnx")
    script = (
        "import onnx, resource; from compress.graphs.floats import fold; model = onnx.load('net.onnx'); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); fold(model, 'the graph')"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"
