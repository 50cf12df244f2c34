"""Which runtimes and devices an artifact or a file is measured on, and files that cannot be."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from compress.cli import main as cli
from compress.errors import CompressError
from compress.stages import benchmark as measure
from compress.stages.benchmark import CHOICES, USUAL, _chosen, _places, candidates_of_file
from compress.train.sources import load_data


def places(kind: str, runtimes: tuple[str, ...], *, on_cuda: bool = True, first: bool = True) -> list[str]:
    found = [place for runtime in _chosen(runtimes) for place in _places(kind, runtime, on_cuda, first)]
    return [f"{runtime} {device}" for runtime, device in found]


@pytest.mark.parametrize(
    ("kind", "runtimes", "cuda", "expected"),
    [
        ("graph", USUAL, False, ["onnxruntime cpu", "onnxruntime cuda"]),
        ("network", USUAL, False, ["torch cpu", "torch cuda"]),
        ("network", USUAL, True, ["torch cpu", "torch cuda", "torch.fp16 cuda", "torch.cudagraph cuda"]),
        ("graph", ("all",), True, ["onnxruntime cpu", "onnxruntime cuda", "onnxruntime.fp16 cuda", "openvino cpu", "c cpu"]),
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
        CompressError, match=r"runtime \(=tflite\) is unknown; choose of onnxruntime, openvino, c, litert, torch, torch.compile, or all"
    ):
        _chosen(("torch", "tflite"))


def test_a_file_is_measured_in_the_runtimes_that_take_one(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"net")
    assert [one.runtime for one in candidates_of_file(path, ("all",))] == ["onnxruntime", "openvino", "c"]
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
        ("cut.onnx", "cut.onnx is no ONNX file that onnxruntime can load: "),
        ("small.onnx", "data (=digits) has images of shape (1, 28, 28), the network takes (1, 8, 8); choose other data"),
    ):
        assert benchmark(monkeypatch, name) == 2
        out, err = capfd.readouterr()
        last = err.splitlines()[-1]
        assert last.startswith(f"compress: {told}")
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


def foreign_net(path: Path, kind: int, *shape: object) -> Path:
    """A file that takes images in this type and shape, and gives means (B, C, 1, 1), where the second axis is C."""
    taken, given = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, [shape[0], shape[1], 1, 1])
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["x"], ["y"])], "net", [taken], [given])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7), path)
    return path


@pytest.mark.parametrize(("kind", "shape"), [(1, (1, 3, 16, 16)), (10, ("n", 3, 16, 20)), (1, ("n", 16, 20, 3))])
def test_a_file_without_data_is_timed_on_random_pixels_and_not_scored(
    kind: int, shape: tuple[object, ...], net: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever it gives, and of whichever type and layout."""
    path = foreign_net(net.with_name("mobile_v2.0_classifier_of_lines_infer.onnx"), kind, *shape)
    net.with_name("again.onnx").write_bytes(path.read_bytes())
    for arguments in ([], ["--json"]):
        given = [path.name, "again.onnx", "--quick", "--samples", "5", "--rounds", "1", *arguments]
        monkeypatch.setattr(sys, "argv", ["compress", "benchmark", *given])
        assert cli.main() == 0
        out = capfd.readouterr().out
        if not arguments:
            assert "random pixels, without labels: latency and size only, no scores; --data names labelled images" in out
            assert "acc" not in out and "compress report" not in out
    found = json.loads(out)
    for one in found["variants"]:
        assert one["reason"] is None and one["latency"]["p50"] > 0 and one["size_bytes"] == path.stat().st_size
    assert found["data"]["name"] == "random pixels" and found["data"]["shape"] == [3, 16, 20 if 20 in shape else 16]
    result = next(net.parent.rglob("benchmark.json"))
    for command in (["report"], ["compare", str(result)]):
        monkeypatch.setattr(sys, "argv", ["compress", *command, str(result)])
        assert cli.main() == 2
        assert "have no scores, as there were no labels; run `compress benchmark` with --data" in capfd.readouterr().err


def test_a_folder_of_images_without_labels_takes_the_place_of_random_pixels(
    net: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = net.with_name("photos")
    folder.mkdir()
    for number in range(20):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")
    for more, code, told in (
        ([], 0, "photos, without labels: latency and size only"),
        (["--data", "digits"], 2, "calibrate (=photos) is of images for files of which no labels are known; leave it or --data out"),
    ):
        monkeypatch.setattr(sys, "argv", ["compress", "benchmark", "net.onnx", "--calibrate", "photos", "--quick", "--samples", "5", *more])
        assert cli.main() == code
        assert told in "".join(capfd.readouterr())


def test_a_file_that_says_no_size_is_refused_until_one_is_given(
    net: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    foreign_net(net.with_name("open.onnx"), 1, "n", 3, "h", "w")
    common = ["compress", "benchmark", "open.onnx", "--quick", "--samples", "5", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", common)
    assert cli.main() == 2
    assert "open.onnx leaves the size of its images open, (3, 0, 0); name it with --image-shape CxHxW" in capfd.readouterr().err
    monkeypatch.setattr(sys, "argv", [*common, "--image-shape", "3x16x16"])
    assert cli.main() == 0


def test_a_file_with_data_is_fed_as_its_maker_fed_it(net: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its float input is normalised as --mean and --std say: the file computes the class of an image from what it was told."""
    data = load_data("digits").test
    zeros = np.full((1, 1, 1, 1), -0.5 / 0.25, np.float32)  # what a black pixel is then
    model = onnx.load(net)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 1, 28, 28]))
    model.graph.node[0].CopyFrom(helper.make_node("Sub", ["x", "black"], ["ink"]))
    model.graph.node.insert(1, helper.make_node("Mul", ["ink", "ink"], ["float"]))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(one_hot_weights(), "weights"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(zeros, "black"))
    onnx.save(model, net)
    assert benchmark(monkeypatch, "net.onnx", "--mean", "0.5", "--std", "0.25") == 0
    (one,) = json.loads(capfd.readouterr().out)["variants"]
    pixels = ((data.images / 255.0).astype(np.float32) / 0.25) ** 2
    expected = (pixels.reshape(len(pixels), -1) @ one_hot_weights()).argmax(axis=1)
    assert one["scores"]["accuracy"] == pytest.approx((expected == data.labels).mean(), abs=1e-9)


def one_hot_weights() -> np.ndarray:
    """The mean image of each digit, less that of all."""
    train = load_data("digits").train
    means = np.stack([train.images[train.labels == label].reshape(-1, 784).mean(axis=0) for label in range(10)])
    return np.ascontiguousarray((means - means.mean(axis=0)).T.astype(np.float32))


def test_a_tflite_file_is_measured_in_litert_and_nothing_else_is(tmp_path: Path) -> None:
    (path := tmp_path / "net.tflite").write_bytes(b"")
    assert [(one.name, one.runtime) for one in candidates_of_file(path)] == [("net", "litert")]
    assert [one.runtime for one in candidates_of_file(path, ("all",))] == ["litert"]
