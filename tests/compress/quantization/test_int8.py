import dataclasses
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from static_int8 import OLD, exact_sums, prepare, quantize_static
from torch import Tensor, nn

from compress.errors import CompressError
from compress.graphs.export import export_onnx
from compress.models import emnist, k49
from compress.quantization.int8 import Prepared, quantize_dynamic, quantize_prepared, write_quantized
from compress.quantization.ort_quantizer import OPERATORS, Types
from compress.quantization.records import Setting
from compress.quantization.weights_only import store_weights

IMAGES = np.random.default_rng(0).integers(0, 256, (80, 1, 12, 12), dtype=np.uint8)
STATIC = Setting()


class Scale(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float() / 255


class Gated(nn.Module):
    """Convolutions with batch norm, one of them depthwise, a CBAM-like gate of shared linear layers, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))) + self.gate(x.amax((2, 3))))[:, :, None, None]
        return self.classifier(x.mean((2, 3)))


def export(network: nn.Module, target: Path, size: int = 12) -> Path:
    example = torch.zeros(2, 1, size, size, dtype=torch.uint8)
    export_onnx(network, target, prepare=Scale(), example=example, metadata={"labels": "a b c d e"})
    return target


def logits(path: Path, images: np.ndarray = IMAGES) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"image": images})[0]


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def kinds(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}


def run(model: onnx.ModelProto, images: np.ndarray, *, optimised: bool = True) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {model.graph.input[0].name: images})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = Gated()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(16, 1, 12, 12))
    return export(network, tmp_path_factory.mktemp("quantize") / "net.onnx")


@pytest.fixture(scope="module")
def prepared(source: Path) -> Prepared:
    return prepare(source, IMAGES)


@pytest.fixture
def clean_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which nothing may be left: the quantizer of ONNX Runtime likes to."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def hand_made(
    path: Path, *nodes: onnx.NodeProto, opset: int = 18, shape: tuple[object, ...] = ("N", 1, 2, 2), **weights: np.ndarray
) -> Path:
    """A graph from float32 ``x`` of ``shape`` to ``y``."""
    graph = onnx.helper.make_graph(
        list(nodes),
        "hand_made",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * len(shape))],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def convolution(path: Path, **changes: object) -> Path:
    return hand_made(path, onnx.helper.make_node("Conv", ["x", "w"], ["y"]), w=np.ones((2, 1, 1, 1), np.float32), **changes)  # type: ignore[arg-type]


def test_dynamic_makes_linear_weights_int8_and_names_what_stays(source: Path, tmp_path: Path) -> None:
    report = quantize_dynamic(source, tmp_path / "int8.onnx")
    assert report.operators == {"MatMul": 5} == {"MatMul": kinds(tmp_path / "int8.onnx").count("MatMulInteger")}
    assert report.left["Conv"] == 2
    assert "ConvInteger" in report.reasons["Conv"]
    expected, found = logits(source), logits(tmp_path / "int8.onnx")
    assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)


def test_dynamic_leaves_a_shared_square_weight_the_right_way_round(tmp_path: Path) -> None:
    """ONNX Runtime alone transposes it once per use, and a square one would fit either way."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    path = export(nn.Sequential(nn.Flatten(), nn.Linear(16, 16), layer, nn.Tanh(), layer), tmp_path / "net.onnx", 4)
    assert quantize_dynamic(path, tmp_path / "int8.onnx").operators == {"MatMul": 3}
    images = IMAGES[:, :, :4, :4]
    expected, found = logits(path, images), logits(tmp_path / "int8.onnx", images)
    assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)


def test_static_quantizes_all_but_the_logits(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    report = quantize_static(source, target, IMAGES, STATIC)
    assert report.operators["Conv"] == 2
    assert report.operators["Gemm"] == 5
    assert set(report.reasons) == set(report.left)
    model = onnx.load(target)
    [first] = [node for node in model.graph.node if "image" in node.input]
    assert first.op_type == "DequantizeLinear"  # no Cast, no division: the pixels are quantized values already
    assert constants(model)[first.input[1]] == pytest.approx(1 / 255)
    assert constants(model)[first.input[2]] == 0
    assert [node.op_type for node in model.graph.node if "logits" in node.output] == ["Gemm"]
    expected, found = logits(source), logits(target)
    assert np.abs(found - expected).max() < 0.1 * np.ptp(expected)
    assert target.stat().st_size < 40_000


@exact_sums
def test_a_scaling_that_is_no_uint8_stays_float(tmp_path: Path) -> None:
    """Two channels of one mean each: (u / 255 - mean) / std has no zero point for both."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", ["f", "k"], ["g"]),
            onnx.helper.make_node("Sub", ["g", "mean"], ["h"]),
            onnx.helper.make_node("Conv", ["h", "w"], ["y"]),
        ],
        "two_channels",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, ("N", 2, 4, 4))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ("N", 3, 2, 2))],
        [
            onnx.numpy_helper.from_array(value, name)
            for name, value in {
                "k": np.float32(1 / 255),
                "mean": np.float32([[[0.4]], [[0.5]]]),
                "w": np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32),
            }.items()
        ],
    )
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    images = np.random.default_rng(1).integers(0, 256, (40, 2, 4, 4), dtype=np.uint8)
    report = quantize_static(path, tmp_path / "int8.onnx", images, STATIC)
    assert report.operators == {"Conv": 1}
    assert {"Cast", "Mul", "Sub"} == set(report.left)
    [expected], [found] = run(onnx.load(path), images), run(onnx.load(tmp_path / "int8.onnx"), images)
    assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_choice_of_types_computes_the_same(per_channel: bool, reduce_range: bool, activations: str, prepared: Prepared) -> None:
    types = Types(activations=activations, reduce_range=reduce_range)  # type: ignore[arg-type]
    model = quantize_prepared(dataclasses.replace(prepared, types=types), Setting(per_channel=per_channel))
    weights = [value for name, value in constants(model).items() if name.endswith("_quantized") and value.ndim >= 2]
    assert {value.dtype for value in weights} == {np.dtype(np.int8)}
    assert max(np.abs(value).max() for value in weights) == (64 if reduce_range else 127)
    types = {value.dtype for name, value in constants(model).items() if name == "x_zero_point" or "relu_zero_point" in name}
    assert types <= {np.dtype(activations)}
    expected, found = run(prepared.source, IMAGES)[0], run(model, IMAGES)[0]
    assert np.abs(found - expected).max() < 0.1 * np.ptp(expected)
    assert np.mean(found.argmax(1) == expected.argmax(1)) > 0.9


def two_outputs(path: Path) -> Path:
    """A convolution, a linear layer as MatMul and Add, and Softmax on top: ``logits`` and ``probabilities``."""
    draw = np.random.default_rng(0)
    weights = {
        "w": draw.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "v": draw.normal(size=(64, 5)).astype(np.float32),
        "b": draw.normal(size=5).astype(np.float32),
    }
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        onnx.helper.make_node("Relu", ["a"], ["r"], name="relu"),
        onnx.helper.make_node("Flatten", ["r"], ["f"], name="flatten"),
        onnx.helper.make_node("MatMul", ["f", "v"], ["product"], name="matmul"),
        onnx.helper.make_node("Add", ["product", "b"], ["logits"], name="bias"),
        onnx.helper.make_node("Softmax", ["logits"], ["probabilities"], name="softmax"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "two_outputs",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("N", 1, 4, 4))],
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("N", 5)) for name in ("logits", "probabilities")],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@exact_sums
def test_probabilities_are_the_softmax_of_float_logits(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(64, 1, 4, 4)).astype(np.float32)
    path = two_outputs(tmp_path / "net.onnx")
    prepared = prepare(path, images)
    assert [node.op_type for node in prepared.nodes] == ["Conv", "Relu", "Flatten", "Gemm"]  # folded: MatMul and Add
    static = quantize_static(path, tmp_path / "static.onnx", images, STATIC)
    assert static.left == {"Softmax": 1}
    quantize_dynamic(path, tmp_path / "dynamic.onnx")
    expected = run(onnx.load(path), images)[0]
    for name in ("static.onnx", "dynamic.onnx"):
        model = onnx.load(tmp_path / name)
        assert [value.name for value in model.graph.output] == ["logits", "probabilities"]
        found, probabilities = run(model, images)
        assert np.abs(found - expected).max() < 0.03 * np.ptp(expected)
        assert len(np.unique(found)) > 256  # in steps there would be no more
        exponents = np.exp(found - found.max(1, keepdims=True))
        np.testing.assert_allclose(probabilities, exponents / exponents.sum(1, keepdims=True), rtol=1e-4)


def test_nodes_can_be_chosen_by_name(prepared: Prepared, tmp_path: Path) -> None:
    nodes = prepared.nodes
    assert {node.op_type for node in nodes} <= set(OPERATORS)
    assert "Cast" not in {node.op_type for node in nodes}
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    report = write_quantized(quantize_prepared(prepared, STATIC, convolutions[1:]), prepared, STATIC, tmp_path / "int8.onnx")
    assert (report.operators["Conv"], report.left["Conv"], report.left["Gemm"]) == (1, 1, 5)
    assert metadata(tmp_path / "int8.onnx")["quantization.int8"] == "Conv 1"
    everything = quantize_prepared(prepared, STATIC, [node.name for node in nodes][::-1])
    assert everything.SerializeToString(deterministic=True) == quantize_prepared(prepared, STATIC).SerializeToString(deterministic=True)


def test_nodes_that_stay_float_can_be_stored_small(prepared: Prepared, tmp_path: Path) -> None:
    """Convolutions stay float, but their weights are int8 in the file: both have 64 values or more."""
    nodes = [node.name for node in prepared.nodes if node.op_type == "Gemm"]
    for store in (None, "fp16", "int8"):
        write_quantized(quantize_prepared(prepared, STATIC, nodes), prepared, STATIC, tmp_path / f"{store}.onnx", store=store)
        assert metadata(tmp_path / f"{store}.onnx")["quantization.float_weights"] == (store or "float32")
    sizes = [(tmp_path / f"{store}.onnx").stat().st_size for store in (None, "fp16", "int8")]
    assert len(set(sizes)) == 3
    assert kinds(tmp_path / "int8.onnx").count("Mul") == kinds(tmp_path / "None.onnx").count("Mul") + 2
    expected, found = logits(tmp_path / "None.onnx"), logits(tmp_path / "int8.onnx")
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)


def test_a_choice_of_nodes_that_cannot_be_is_refused(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r'nodes \(="Conv_99"\) is no node of ".*net\.onnx" that can be quantized, such as "'):
        quantize_prepared(prepared, STATIC, ["Conv_99"])
    with pytest.raises(CompressError, match=r"has nothing to quantize among the 0 nodes chosen"):
        quantize_prepared(prepared, STATIC, [])
    relus = [node.name for node in prepared.nodes if node.op_type == "Relu"]
    with pytest.raises(CompressError, match=r"has nothing quantized in it; choose other nodes, a Conv or Gemm among them"):
        write_quantized(quantize_prepared(prepared, STATIC, relus), prepared, STATIC, tmp_path / "int8.onnx")
    assert names(tmp_path) == []


def test_a_prepared_graph_serves_many_times_and_stays_as_it_is(prepared: Prepared, source: Path) -> None:
    before = prepared.model.SerializeToString(deterministic=True), prepared.source.SerializeToString(deterministic=True)
    first = quantize_prepared(prepared, STATIC).SerializeToString(deterministic=True)
    for method in ("mse", "entropy"):
        quantize_prepared(prepared, Setting(method=method, per_channel=False))
    assert quantize_prepared(prepared, STATIC).SerializeToString(deterministic=True) == first
    assert (prepared.model.SerializeToString(deterministic=True), prepared.source.SerializeToString(deterministic=True)) == before
    assert quantize_prepared(prepare(source, IMAGES), STATIC).SerializeToString(deterministic=True) == first


def test_equalisation_comes_before_calibration_and_bias_correction_after_quantization(tmp_path: Path) -> None:
    """Two channels of 100 and 1 meet at 10 (see ``equalise``); 0.3 of 1 in steps of 1 / 127 is 0.29921, which the bias makes up for."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["r"]),
        onnx.helper.make_node("Conv", ["r", "v", "c"], ["y"]),
    ]
    weights = {"w": np.float32([[[[100]]], [[[1]]]]), "b": np.zeros(2), "v": np.float32([[[[1]], [[100]]]]), "c": np.zeros(1)}
    path = hand_made(tmp_path / "net.onnx", *nodes, **{name: np.float32(value) for name, value in weights.items()})
    images = np.ones((32, 1, 2, 2), np.float32)
    plain, equalised = prepare(path, images), prepare(path, images, equalised=True)
    assert plain.histograms.limits["r"][1] == pytest.approx(100)
    assert equalised.histograms.limits["r"][1] == pytest.approx(10)
    coarse = Setting(per_channel=False)
    [expected], [exact] = run(plain.model, images), run(quantize_prepared(plain, dataclasses.replace(coarse, correct_bias=True)), images)
    [rounded] = run(quantize_prepared(plain, coarse), images)
    assert np.abs(exact - expected).max() < np.abs(rounded - expected).max()


@exact_sums
def test_fused_steps_move_a_result_by_one_step_at_most(tmp_path: Path) -> None:
    """microsoft/onnxruntime#32132: what ONNX Runtime computes of a QDQ graph is the graph to one step of what it rounds last."""
    draw = np.random.default_rng(0)
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w", "b"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["r"]),
        onnx.helper.make_node("Conv", ["r", "v", "c"], ["y"]),
    ]
    weights = {"w": (8, 1, 1, 1), "b": (8,), "v": (6, 8, 2, 2), "c": (6,)}
    path = hand_made(tmp_path / "net.onnx", *nodes, **{name: draw.normal(size=shape).astype(np.float32) for name, shape in weights.items()})
    images = draw.normal(size=(500, 1, 2, 2)).astype(np.float32)
    model = quantize_prepared(prepare(path, images), STATIC)
    [fused], [written] = run(model, images), run(model, images, optimised=False)
    steps = np.abs(fused - written) / constants(model)["y_scale"]
    assert steps.max() < 2.01  # one step of the output, and what one step of the tensor before it can add
    assert np.mean(steps < 0.01) > 0.95
    assert np.mean(fused.argmax(1) == written.argmax(1)) > 0.98


def test_another_process_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    """Sets of names come in another order there, and in this one."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from compress.quantization.int8 import *; from static_int8 import *\n"
        "from compress.quantization.weights_only import store_weights\n"
        "images = np.random.default_rng(0).integers(0, 256, (80, 1, 12, 12), dtype=np.uint8)\n"
        "source, folder = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "quantize_static(source, folder / 'mse.onnx', images, Setting(method='mse'))\n"
        "quantize_dynamic(source, folder / 'dynamic.onnx'); store_weights(source, folder / 'stored.onnx', bits='int8')"
    )
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(source), str(tmp_path / "there")], check=True, env=environment)
    quantize_static(source, tmp_path / "here" / "mse.onnx", IMAGES, Setting(method="mse"))
    quantize_dynamic(source, tmp_path / "here" / "dynamic.onnx")
    store_weights(source, tmp_path / "here" / "stored.onnx", bits="int8")
    for name in ("mse.onnx", "dynamic.onnx", "stored.onnx"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_scales_by_hand(tmp_path: Path) -> None:
    """Two 1x1 filters, 0.5 and -2, on pixels from -1 to 4: the figures of the module's docstring."""
    nodes = (onnx.helper.make_node("Conv", ["x", "w"], ["a"]), onnx.helper.make_node("Conv", ["a", "v"], ["y"]))
    path = hand_made(tmp_path / "net.onnx", *nodes, w=np.float32([[[[0.5]]], [[[-2]]]]), v=np.ones((1, 2, 1, 1), np.float32))
    images = np.linspace(-1, 4, 32 * 4, dtype=np.float32).reshape(32, 1, 2, 2)
    quantize_static(path, tmp_path / "int8.onnx", images, STATIC)
    tensors = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    assert tensors["x_scale"] == pytest.approx(5 / 255)
    assert (tensors["x_zero_point"], tensors["x_zero_point"].dtype) == (51, np.uint8)
    np.testing.assert_allclose(tensors["w_scale"], [0.5 / 127, 2 / 127], rtol=1e-5)
    assert tensors["w_quantized"].ravel().tolist() == [127, -127]
    assert tensors["w_quantized"].dtype == np.int8
    quantize_static(path, tmp_path / "one.onnx", images, dataclasses.replace(STATIC, per_channel=False))
    tensors = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(tmp_path / "one.onnx").graph.initializer}
    assert tensors["w_scale"] == pytest.approx(2 / 127)
    quantize_static(path, tmp_path / "seven.onnx", images, STATIC, OLD)
    tensors = {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(tmp_path / "seven.onnx").graph.initializer}
    assert np.abs(tensors["w_quantized"]).max() <= 64


@pytest.mark.parametrize("method", ["percentile", "entropy", "mse"])
def test_other_calibrations_cut_outliers(method: str, source: Path, tmp_path: Path) -> None:
    quantize_static(source, tmp_path / "int8.onnx", IMAGES, dataclasses.replace(STATIC, method=method))
    expected, found = logits(source), logits(tmp_path / "int8.onnx")
    assert np.abs(found - expected).max() < 0.25 * np.ptp(expected)
    assert metadata(tmp_path / "int8.onnx")["quantization.method"] == method


def test_operators_can_be_chosen_by_their_nodes(prepared: Prepared, tmp_path: Path) -> None:
    nodes = [node.name for node in prepared.nodes if node.op_type == "Gemm"]
    report = write_quantized(quantize_prepared(prepared, STATIC, nodes), prepared, STATIC, tmp_path / "int8.onnx")
    assert set(report.operators) == {"Gemm", "Relu"}  # a Relu between two of them is int8 too
    assert report.left["Conv"] == 2
    assert report.reasons["Conv"] == "it was not chosen, or lies before the first weights or beside float tensors"


@pytest.mark.parametrize("kind", ["dynamic", "minmax", "percentile", "entropy", "mse"])
def test_quantizing_again_gives_the_same_bytes_and_leaves_nothing_behind(
    kind: str, source: Path, tmp_path: Path, clean_cwd: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = source.read_bytes()
    for name in ("one.onnx", "two.onnx"):
        if kind == "dynamic":
            quantize_dynamic(source, tmp_path / "out" / name)
        else:
            quantize_static(source, tmp_path / "out" / name, IMAGES, Setting(method=kind))
    assert (tmp_path / "out" / "one.onnx").read_bytes() == (tmp_path / "out" / "two.onnx").read_bytes()
    assert names(tmp_path / "out") == ["one.onnx", "two.onnx"]
    assert names(clean_cwd) == []
    assert source.read_bytes() == before
    assert names(source.parent) == [source.name]
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if "onnxruntime" in record.pathname]


def test_metadata_is_kept_and_says_how_it_was_quantized(source: Path, tmp_path: Path) -> None:
    report = quantize_static(source, tmp_path / "int8.onnx", IMAGES, STATIC)
    found = metadata(tmp_path / "int8.onnx")
    assert list(found) == sorted(found)
    assert found.pop("quantization.tool").startswith("onnxruntime ")
    assert found == {
        "labels": "a b c d e",
        "quantization.mode": "static",
        "quantization.method": "minmax",
        "quantization.per_channel": "true",
        "quantization.reduce_range": "false",
        "quantization.activations": "uint8",
        "quantization.operators": "all",
        "quantization.int8": ", ".join(f"{kind} {count}" for kind, count in report.operators.items()),
        "quantization.float_weights": "float32",
        "quantization.calibration.images": "80",
        "quantization.calibration.sha256": hashlib.sha256(IMAGES.tobytes()).hexdigest(),
    }
    quantize_dynamic(source, tmp_path / "dynamic.onnx")
    assert metadata(tmp_path / "dynamic.onnx").items() >= {("labels", "a b c d e"), ("quantization.mode", "dynamic")}


def test_batch_stays_free(source: Path, tmp_path: Path) -> None:
    quantize_static(source, tmp_path / "int8.onnx", IMAGES, STATIC)
    assert onnxruntime.InferenceSession(tmp_path / "int8.onnx").get_inputs()[0].shape == ["batch", 1, 12, 12]
    together, alone = logits(tmp_path / "int8.onnx", IMAGES[:3]), logits(tmp_path / "int8.onnx", IMAGES[:1])
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


@pytest.mark.parametrize("make", [k49.make, emnist.make], ids=["k49", "emnist"])
def test_reference_networks_can_be_quantized(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"widths": (8, 16), "depths": (1, 1)} if make is k49.make else {"channels": (4, 8), "hidden": 16}
    path = export(make(classes=10, **options), tmp_path / "net.onnx", 28)  # type: ignore[operator]
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 28, 28), dtype=np.uint8)
    assert quantize_dynamic(path, tmp_path / "dynamic.onnx").operators["MatMul"] >= 1
    report = quantize_static(path, tmp_path / "static.onnx", images, STATIC)
    assert "Conv" in report.operators
    assert "Conv" not in report.left
    expected = logits(path, images)
    for name in ("dynamic.onnx", "static.onnx"):
        assert np.abs(logits(tmp_path / name, images) - expected).max() < 0.5 * np.ptp(expected)


def test_a_graph_that_fixes_its_batch_is_calibrated_in_that_batch(tmp_path: Path) -> None:
    path = convolution(tmp_path / "net.onnx", shape=(1, 1, 2, 2))
    report = quantize_static(path, tmp_path / "int8.onnx", np.random.default_rng(0).random((33, 1, 2, 2), np.float32), STATIC)
    assert report.operators == {"Conv": 1}


def test_a_quantized_file_is_refused(source: Path, tmp_path: Path) -> None:
    quantize_static(source, tmp_path / "static.onnx", IMAGES, STATIC)
    quantize_dynamic(source, tmp_path / "dynamic.onnx")
    with pytest.raises(CompressError, match=r'static\.onnx" is quantized already \(it has DequantizeLinear, QuantizeLinear\)'):
        quantize_dynamic(tmp_path / "static.onnx", tmp_path / "out.onnx")
    with pytest.raises(CompressError, match=r'dynamic\.onnx" is quantized already \(it has DynamicQuantizeLinear, MatMulInteger\)'):
        quantize_static(tmp_path / "dynamic.onnx", tmp_path / "out.onnx", IMAGES, STATIC)
    store_weights(source, tmp_path / "stored.onnx", bits="fp16")
    with pytest.raises(CompressError, match=r'stored\.onnx" is quantized already \(its metadata says weights\)'):
        quantize_static(tmp_path / "stored.onnx", tmp_path / "out.onnx", IMAGES, STATIC)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(b"", r"is empty \(0 bytes\)"), (b"\x89PNG\r\n\x1a\n" * 9, "no ONNX file at all"), (None, "is not a file")]
)
def test_files_that_are_none_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    before = names(tmp_path)
    with pytest.raises(CompressError, match=rf'net\.onnx" {".*" if content else ""}{message}'):
        quantize_dynamic(path, tmp_path / "out.onnx")
    with pytest.raises(CompressError, match=rf'net\.onnx" {".*" if content else ""}{message}'):
        quantize_static(path, tmp_path / "out.onnx", IMAGES, STATIC)
    assert names(tmp_path) == before


def test_a_file_truncated_anywhere_is_refused(source: Path, tmp_path: Path) -> None:
    content, path = source.read_bytes(), tmp_path / "net.onnx"
    for size in range(0, len(content) - 1, max(1, len(content) // 60)):
        path.write_bytes(content[:size])
        with pytest.raises(CompressError, match=r"net\.onnx") as caught:
            quantize_dynamic(path, tmp_path / "out.onnx")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.onnx").exists()


def test_missing_external_data_is_refused(source: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(source), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    quantize_dynamic(tmp_path / "net.onnx", tmp_path / "with.onnx")
    (tmp_path / "net.data").unlink()
    with pytest.raises(CompressError, match=r'net\.onnx" keeps its weights in another file that cannot be read; put it beside this one'):
        quantize_dynamic(tmp_path / "net.onnx", tmp_path / "without.onnx")


def test_graphs_with_nothing_to_quantize_are_refused(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "net.onnx", onnx.helper.make_node("Relu", ["x"], ["y"]))
    with pytest.raises(CompressError, match=r'net\.onnx" has no Conv, ConvTranspose, Gemm, MatMul with constant float32 weights'):
        quantize_static(path, tmp_path / "out.onnx", np.zeros((32, 1, 2, 2), np.float32), STATIC)
    with pytest.raises(CompressError, match=r'net\.onnx" has no MatMul or Gemm with constant weights.*; use static quantization'):
        quantize_dynamic(convolution(path), tmp_path / "out.onnx")


def test_stale_shapes_do_not_stop_the_dynamic_kind(tmp_path: Path) -> None:
    """The exporter leaves the shape that a transposed weight had before; ONNX Runtime alone trips over it."""
    node = onnx.helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)
    path = hand_made(tmp_path / "net.onnx", onnx.helper.make_node("Flatten", ["x"], ["f"]), node, w=np.eye(3, 4, dtype=np.float32))
    model = onnx.load(path)
    del model.graph.output[0].type.tensor_type.shape.dim[2:]
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("w_transposed", onnx.TensorProto.FLOAT, [3, 4]))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("w_Transposed", onnx.TensorProto.FLOAT, [3, 4]))
    onnx.save(model, path)
    assert quantize_dynamic(path, tmp_path / "int8.onnx").operators == {"MatMul": 1}
    images = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2)
    np.testing.assert_allclose(run(onnx.load(tmp_path / "int8.onnx"), images)[0], images.reshape(2, 4)[:, :3], atol=0.05)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:0], r"calibration \(=0 images\) must be at least 32"),
        (IMAGES[:31], r"calibration \(=31 images\) must be at least 32"),
        (IMAGES.astype(np.float32), r"calibration \(=float32 \(80, 1, 12, 12\)\) must be uint8 \('N', 1, 12, 12\)"),
        (IMAGES[:, :, :, :11], r"calibration \(=uint8 \(80, 1, 12, 11\)\) must be uint8 \('N', 1, 12, 12\)"),
        (IMAGES[:, 0], r"calibration \(=uint8 \(80, 12, 12\)\) must be uint8"),
    ],
)
def test_unsuitable_calibration_images_are_refused(images: np.ndarray, message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=message):
        quantize_static(source, tmp_path / "out.onnx", images, STATIC)
    assert names(tmp_path) == []


def test_inputs_that_are_no_images_are_refused(tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    path = hand_made(tmp_path / "net.onnx", node, shape=("N", 4), w=np.ones((4, 2), np.float32))
    with pytest.raises(CompressError, match=r"the graph's inputs \[\('N', 4\)\] must be one of \(B, C, H, W\)"):
        quantize_static(path, tmp_path / "out.onnx", np.zeros((32, 4), np.float32), STATIC)


def test_an_unknown_method_is_refused(prepared: Prepared) -> None:
    with pytest.raises(CompressError, match=r'method \(="max"\) must be one of minmax, percentile, entropy, mse'):
        quantize_prepared(prepared, Setting(method="max"))


def test_weights_that_are_not_finite_never_become_a_file(tmp_path: Path) -> None:
    path = hand_made(tmp_path / "net.onnx", onnx.helper.make_node("Conv", ["x", "w"], ["y"]), w=np.float32([[[[np.nan]]]]))
    with pytest.raises(CompressError, match=r'net\.onnx": weight "w" holds values that are not finite'):
        quantize_static(path, tmp_path / "out.onnx", np.ones((32, 1, 2, 2), np.float32), STATIC)
    assert names(tmp_path) == ["net.onnx"]


@exact_sums
def test_a_weight_called_as_the_quantizer_would_call_a_scale_stays_a_weight(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"c": rng.normal(size=(4, 1, 3, 3)), "a_scale": rng.normal(size=(4, 4, 1, 1)), "l": rng.normal(size=(4, 5))}
    nodes = [
        onnx.helper.make_node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT),
        onnx.helper.make_node("Conv", ["x", "c"], ["a"]),
        onnx.helper.make_node("Conv", ["a", "a_scale"], ["b"]),
        onnx.helper.make_node("GlobalAveragePool", ["b"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "l"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "clash",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ("n", 1, 12, 12))],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ("n", 5))],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    source = tmp_path / "clash.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), source)
    quantize_static(source, tmp_path / "int8.onnx", IMAGES, STATIC)
    expected, found = logits(source), logits(tmp_path / "int8.onnx")
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        (("InstanceNormalization", ["r", "scale", "shift"]), {"scale": (4,), "shift": (4,)}),
        (("LayerNormalization", ["r", "scale", "shift"]), {"scale": (6,), "shift": (6,)}),
        (("ConvTranspose", ["r", "scale"]), {"scale": (4, 4, 1, 1)}),
        (("BatchNormalization", ["r", "scale", "shift", "shift", "spread"]), {"scale": (4,), "shift": (4,), "spread": (4,)}),
    ],
)
def test_operator_that_runs_as_float32_in_any_case_is_not_rounded(
    tmp_path: Path, node: tuple[str, list[str]], weights: dict[str, tuple[int, ...]]
) -> None:
    """Behind a ReLU that another node reads too, batch norm cannot be folded."""
    kind, inputs = node
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"]),
        onnx.helper.make_node("Relu", ["a"], ["r"]),
        onnx.helper.make_node(kind, inputs, ["n"]),
        onnx.helper.make_node("Add", ["n", "r"], ["s"]),
        onnx.helper.make_node("Conv", ["s", "v"], ["y"]),
    ]
    draw = np.random.default_rng(0)
    shapes = weights | {"w": (4, 1, 1, 1), "v": (4, 4, 1, 1)}
    constants = {name: np.abs(draw.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    path = hand_made(tmp_path / "net.onnx", *nodes, shape=("N", 1, 6, 6), **constants)  # type: ignore[arg-type]
    report = quantize_static(path, tmp_path / "int8.onnx", draw.normal(size=(64, 1, 6, 6)).astype(np.float32), STATIC)
    assert kind not in report.operators and report.left[kind] == 1 and report.operators["Conv"] == 2
    assert report.reasons[kind] == "ONNX Runtime has no int8 form of it"
    graph = onnx.load(tmp_path / "int8.onnx").graph
    [kept] = [one for one in graph.node if one.op_type == kind]
    assert set(kept.input[1:]) <= {one.name for one in graph.initializer}
