"""Which runtimes and devices an artifact or a file is measured on, and files that cannot be."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress.cli import main as cli
from compress.errors import CompressError
from compress.stages import benchmark as measure
from compress.stages.benchmark import CHOICES, USUAL, _chosen, _places, candidates_of_file


def places(kind: str, runtimes: tuple[str, ...], *, on_cuda: bool = True, first: bool = True) -> list[str]:
    found = [place for runtime in _chosen(runtimes) for place in _places(kind, runtime, on_cuda, first)]
    return [f"{runtime} {device}" for runtime, device in found]


@pytest.mark.parametrize(
    ("kind", "runtimes", "cuda", "expected"),
    [
        ("graph", USUAL, False, ["onnxruntime cpu", "onnxruntime cuda"]),
        ("network", USUAL, False, ["torch cpu", "torch cuda"]),
        ("network", USUAL, True, ["torch cpu", "torch cuda", "torch.fp16 cuda", "torch.cudagraph cuda"]),
        ("graph", ("all",), True, ["onnxruntime cpu", "onnxruntime cuda", "onnxruntime.fp16 cuda", "openvino cpu"]),
        ("network", ("torch.compile",), True, ["torch.compile cpu"]),
        ("network", ("openvino",), True, []),
    ],
)
def test_places_of_an_artifact(
    monkeypatch: pytest.MonkeyPatch, kind: str, runtimes: tuple[str, ...], cuda: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(measure, "_has_cuda", lambda kind: cuda)
    assert places(kind, runtimes) == expected
    assert places(kind, runtimes, on_cuda=False) == [place for place in expected if place.endswith("cpu")]


def test_only_the_first_variant_says_that_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_has_cuda", lambda kind: False)
    assert places("graph", USUAL, first=False) == ["onnxruntime cpu"]


def test_runtimes_come_in_one_order_and_an_unknown_one_is_refused() -> None:
    assert _chosen(("torch", "onnxruntime")) == ["onnxruntime", "torch"]
    assert _chosen(("all",)) == list(CHOICES)
    with pytest.raises(
        CompressError, match=r"runtime \(=tflite\) is unknown; choose of onnxruntime, openvino, torch, torch.compile, or all"
    ):
        _chosen(("torch", "tflite"))


def test_a_file_is_measured_in_the_runtimes_that_take_one(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"net")
    assert [one.runtime for one in candidates_of_file(path, ("all",))] == ["onnxruntime", "openvino"]
    with pytest.raises(CompressError, match=r"runtime \(=torch\) takes no .onnx file such as .*net.onnx; add --runtime onnxruntime"):
        candidates_of_file(path, ("torch",))
    with pytest.raises(CompressError, match=r"none.onnx: there is no such file"):
        candidates_of_file(tmp_path / "none.onnx")


def save_net(path: Path, side: int) -> None:
    """An ONNX file for images of 1 x side x side and ten classes."""
    weights = onnx.numpy_helper.from_array(np.ones((side * side, 10), np.float32), "weights")
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["float"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    taken = helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 1, side, side])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 10])
    graph = helper.make_graph(nodes, "net", [taken], [given], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for the images of the digits, in a folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "net.onnx", 28)
    return tmp_path / "net.onnx"


def benchmark(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    quick = ["--data", "digits", "--quick", "--samples", "5", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["compress", "benchmark", *arguments, *quick])
    return cli.main()


def test_a_cut_file_and_one_for_other_images_are_refused_in_one_line(
    net: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    net.with_name("cut.onnx").write_bytes(net.read_bytes()[:300])
    save_net(net.with_name("small.onnx"), 8)
    for name, told in (
        ("cut.onnx", "cut (onnxruntime, cpu): "),
        ("small.onnx", "input shape (=('B', 1, 8, 8)) does not fit images of shape (1, 28, 28); take the data it was made for"),
    ):
        assert benchmark(monkeypatch, name) == 2
        out, err = capfd.readouterr()
        last = err.splitlines()[-1]
        assert last.startswith("compress: nothing could be measured: ") and told in last
        assert not out and "Traceback" not in err
        assert not list(net.parent.rglob("benchmark.json"))


def test_one_file_that_fails_is_named_and_the_other_is_measured(
    net: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    net.with_name("cut.onnx").write_bytes(net.read_bytes()[:300])
    assert benchmark(monkeypatch, "net.onnx", "cut.onnx") == 0
    reasons = {one["name"]: one["reason"] for one in json.loads(capfd.readouterr().out)["variants"]}
    assert reasons["net"] is None
    assert "ONNXRuntimeError" in reasons["cut"]
    assert len(list(net.parent.rglob("benchmark.json"))) == 1
