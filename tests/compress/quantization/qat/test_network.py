import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from real_data import DATA, needs_data
from static_int8 import OLD, VNNI, exact_sums, quantize_static
from torch import Tensor, nn
from torch.nn import functional

from compress.artifacts.artifact import InputSpec
from compress.artifacts.load import Prepare
from compress.errors import CompressError
from compress.graphs.export import export_onnx
from compress.graphs.floats import fold
from compress.models import emnist
from compress.quantization.ort_quantizer import Types
from compress.quantization.qat.network import GraphNetwork
from compress.quantization.records import Setting
from compress.train.fit import fit
from compress.train.settings import FitConfig

IMAGES = np.random.default_rng(0).integers(0, 256, (256, 1, 12, 12), dtype=np.uint8)
LEVELS = onnxruntime.GraphOptimizationLevel


class Scale(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float() / 255


class Gated(nn.Module):
    """Convolutions with batch norm, one depthwise, CBAM-like gates (a shared MLP, and a map of mean and maximum), five classes."""

    def __init__(self, *, linear: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)
        self.classifier = nn.Linear(8, 5) if linear else nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))) + self.gate(x.amax((2, 3))))[:, :, None, None]
        x = x * torch.sigmoid(self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        if isinstance(self.classifier, nn.Linear):
            return self.classifier(x.mean((2, 3)))
        return functional.max_pool2d(self.classifier(x), 12).flatten(1)


class Graphs:
    """A float32 graph and the weights in it, and the QDQ graph made of it."""

    def __init__(self, source: Path, *, images: np.ndarray = IMAGES, per_channel: bool = True, types: Types = VNNI) -> None:
        target = source.with_name("int8.onnx")
        quantize_static(source, target, images[:64], Setting(per_channel=per_channel), types)
        self.float, self.int8 = onnx.load(source), onnx.load(target)
        self.weights = arrays(fold(self.float, "float.onnx"))


def export(network: nn.Module, folder: Path, shape: tuple[int, ...] = (1, 12, 12)) -> Path:
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    export_onnx(network, folder / "float.onnx", prepare=Scale(), example=example, metadata={"labels": "a b c d e"})
    return folder / "float.onnx"


def gated(linear: bool = True) -> nn.Module:
    torch.manual_seed(0)
    network = Gated(linear=linear)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(16, 1, 12, 12))
        network.stem[0].weight[3, :, 1] = 0
        network.classifier.weight[:, ::2] = 0
    return network


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(gated(), tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def graphs(exported: Path) -> Graphs:
    return Graphs(exported)


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def logits(network: nn.Module, images: np.ndarray = IMAGES) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


def runtime(model: onnx.ModelProto, images: np.ndarray = IMAGES, level: object = LEVELS.ORT_DISABLE_ALL) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    entry = model.graph.input[0].name
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {entry: images})[0]


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    return float((one.argmax(axis=1) == other.argmax(axis=1)).mean())


def hand_made(nodes: Iterable[onnx.NodeProto], *, kind: int = TensorProto.FLOAT, opset: int = 18, **weights: np.ndarray) -> onnx.ModelProto:
    """A graph from ``x`` (N, 1, 2, 2) to ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "hand_made",
        [helper.make_tensor_value_info("x", kind, ("N", 1, 2, 2))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


# Whole graphs


def test_float_graph_computes_what_onnx_runtime_does(graphs: Graphs) -> None:
    np.testing.assert_allclose(logits(GraphNetwork(graphs.float)), runtime(graphs.float), atol=1e-5)
    np.testing.assert_allclose(logits(GraphNetwork(fold(graphs.float, "it"))), runtime(graphs.float), atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_quantized_graph_computes_what_onnx_runtime_does(per_channel: bool, exported: Path) -> None:
    int8 = Graphs(exported, per_channel=per_channel).int8
    found, plain, fused = logits(GraphNetwork(int8)), runtime(int8), runtime(int8, level=LEVELS.ORT_ENABLE_ALL)
    difference = np.abs(found - plain).max(axis=1)
    assert np.quantile(difference, 0.9) < 1e-5  # the others: a sum that lies on a tie, rounded the other way
    assert difference.max() < 0.02 * np.ptp(plain)
    assert agreement(found, plain) >= 0.99
    assert agreement(found, fused) >= 0.99


@exact_sums
def test_quantized_output_differs_by_one_step_at_most(tmp_path: Path) -> None:
    """ONNX Runtime's int8 kernels round sums otherwise than its float ones (microsoft/onnxruntime#32132), so does torch."""
    int8 = Graphs(export(gated(linear=False), tmp_path)).int8
    last = [node for node in int8.graph.node if node.op_type == "QuantizeLinear"][-1]  # nothing behind it but views
    step = float(arrays(int8)[last.input[1]])
    found = logits(GraphNetwork(int8)) / step
    np.testing.assert_allclose(found, found.round(), atol=1e-3)
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_ALL):
        steps = np.abs(found - runtime(int8, level=level) / step).round()
        assert steps.max() <= 1
        assert (steps > 0).mean() < 0.02


@exact_sums
@needs_data
def test_real_images_are_read_as_onnx_runtime_reads_them(tmp_path: Path) -> None:
    images = np.load(DATA / "emnist47" / "emnist47-test-imgs.npz")["arr_0"][:1000, None]
    torch.manual_seed(0)
    int8 = Graphs(export(emnist.make(47), tmp_path, (1, 28, 28)), images=images).int8
    assert agreement(logits(GraphNetwork(int8), images), runtime(int8, images, LEVELS.ORT_ENABLE_ALL)) >= 0.99


def test_images_as_float_are_the_same_images(graphs: Graphs) -> None:
    for model in (graphs.float, graphs.int8):
        network = GraphNetwork(model)
        np.testing.assert_array_equal(logits(network), logits(network, IMAGES.astype(np.float32)))


def test_image_that_is_its_own_quantized_form() -> None:
    """(3 - 1) * 0.5 * 2 = 2 for a uint8 pixel of 3; a distorted pixel of 3.5 is not rounded and gives 2.5."""
    nodes = (helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"]), helper.make_node("Conv", ["a", "w"], ["y"]))
    weights = {"s": np.float32(0.5), "z": np.uint8(1), "w": np.full((1, 1, 1, 1), 2, np.float32)}
    network = GraphNetwork(hand_made(nodes, kind=TensorProto.UINT8, **{name: np.asarray(value) for name, value in weights.items()}))
    assert network(torch.full((1, 1, 2, 2), 3, dtype=torch.uint8)).flatten().tolist() == [2.0] * 4
    assert network(torch.full((1, 1, 2, 2), 3.5)).flatten().tolist() == [2.5] * 4


def test_batch_is_free_and_lower_precision_is_kept_out(graphs: Graphs) -> None:
    network, expected = GraphNetwork(graphs.int8), logits(GraphNetwork(graphs.int8))
    for size in (1, 3):
        np.testing.assert_allclose(logits(network, IMAGES[:size]), expected[:size], atol=0.02 * np.ptp(expected))
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(logits(network), expected)


def test_only_the_first_output_is_computed() -> None:
    nodes = (helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Erf", ["y"], ["other"]))
    model = hand_made(nodes, w=np.full((1, 1, 1, 1), 2, np.float32))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, None))
    assert GraphNetwork(model)(torch.ones(1, 1, 2, 2)).flatten().tolist() == [2.0] * 4


# Training


def test_untrained_graph_is_given_back_as_it_was(graphs: Graphs) -> None:
    for model in (graphs.float, graphs.int8):
        assert GraphNetwork(model).to_onnx().SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_float_weights_to_start_from_round_to_the_quantizers(graphs: Graphs) -> None:
    network = GraphNetwork(graphs.int8, weights=graphs.weights)
    assert network.to_onnx().SerializeToString(deterministic=True) == graphs.int8.SerializeToString(deterministic=True)
    starts = {tuple(parameter.shape): parameter.detach().numpy() for parameter in network.parameters()}
    stem = next(value for value in graphs.weights.values() if value.shape == (8, 1, 3, 3))
    np.testing.assert_array_equal(starts[8, 1, 3, 3], stem)


def test_a_shared_weight_is_one_parameter(graphs: Graphs) -> None:
    """Stem, depthwise, two of the MLP that runs twice, spatial, classifier; each with a bias."""
    assert sorted(parameter.ndim for parameter in GraphNetwork(graphs.float).parameters()) == [1] * 6 + [2] * 3 + [4] * 3
    assert len(list(GraphNetwork(graphs.int8).parameters())) >= 12


def test_training_lowers_the_loss_keeps_zeros_and_is_what_runs(graphs: Graphs) -> None:
    network = GraphNetwork(graphs.int8, weights=graphs.weights)
    masks = network.zero_masks()
    assert sorted(int((~mask).sum()) for mask in masks.values()) == [3, 20]
    labels = torch.arange(len(IMAGES)) % 2
    images = torch.from_numpy(IMAGES) // (1 + labels)[:, None, None, None]
    optimiser = torch.optim.Adam(network.parameters(), lr=0.03)
    losses = []
    for _ in range(25):
        loss = functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
        optimiser.step()
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in masks:
                    parameter.mul_(masks[name])
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    trained = network.to_onnx()
    onnx.checker.check_model(trained, full_check=True)
    assert [entry.value for entry in trained.metadata_props] == [entry.value for entry in graphs.int8.metadata_props]
    before, after = arrays(graphs.int8), arrays(trained)
    assert {name: (value.shape, value.dtype) for name, value in after.items()} == {k: (v.shape, v.dtype) for k, v in before.items()}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(before[name].dtype in (np.int8, np.int32) for name in changed)  # no scale, no zero point
    stem, classifier = (next(v for v in after.values() if v.shape == shape and v.dtype == np.int8) for shape in ((8, 1, 3, 3), (5, 8)))
    assert not stem[3, :, 1].any()
    assert not classifier[:, ::2].any()
    assert classifier[:, 1::2].any()
    found, expected = logits(network), runtime(trained)
    assert np.quantile(np.abs(found - expected).max(axis=1), 0.9) < 1e-4
    assert agreement(found, expected) >= 0.99
    assert agreement(found, runtime(trained, level=LEVELS.ORT_ENABLE_ALL)) >= 0.99
    np.testing.assert_array_equal(logits(GraphNetwork(trained)), found)


def drifts(network: GraphNetwork, images: np.ndarray, steps: int = 3) -> dict[tuple[int, ...], float]:
    """How far each weight is from where it was after steps of Adam at 1e-4, as a fraction of its size, by shape."""
    before = [one.detach().clone() for one in network.parameters()]
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(network(torch.from_numpy(images)), torch.arange(len(images)) % 5).backward()
        optimiser.step()
    after = [one.detach() for one in network.parameters()]
    return {tuple(old.shape): float((new - old).norm() / old.norm()) for old, new in zip(before, after, strict=True) if old.ndim > 1}


@pytest.mark.parametrize("quantized", [True, False])
def test_no_layer_drifts_by_another_order_of_magnitude_where_the_pixel_scale_was_folded(quantized: bool, tmp_path: Path) -> None:
    """With the folded weights themselves as parameters, the first layer moves by 26 to 35%, the others by 0.1 to 0.3%."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    export_onnx(
        network, tmp_path / "float.onnx", prepare=Prepare(InputSpec()), example=torch.zeros(2, 1, 12, 12, dtype=torch.uint8), metadata={}
    )
    graphs = Graphs(tmp_path / "float.onnx")
    assert any("scaled" in name for name in graphs.weights), "the scale is folded into the first layer"
    model = graphs.int8 if quantized else fold(graphs.float, "it")
    folded = GraphNetwork(model, weights=graphs.weights)
    assert folded.to_onnx().SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    found = drifts(folded, IMAGES[:64])
    assert len(found) == 3
    assert max(found.values()) < 5 * min(found.values())
    assert agreement(logits(folded), runtime(folded.to_onnx())) == 1
    np.testing.assert_array_equal(logits(GraphNetwork(folded.to_onnx())), logits(folded))


def test_weights_that_were_learnt_on_pixels_up_to_255_stay_as_they_are() -> None:
    """Somebody else's network that never divides by 255: its first layer is as large as any."""
    nodes = (helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT), CONV)
    for size, expected in ((0.5, 0.5), (0.5 / 255, 256 * 0.5 / 255)):
        model = hand_made(nodes, kind=TensorProto.UINT8, w=np.full((1, 1, 2, 2), size, np.float32))
        [weight] = GraphNetwork(model).parameters()
        assert weight.flatten().tolist() == pytest.approx([expected] * 4)


def test_weights_do_not_leave_their_range(exported: Path) -> None:
    """Seven bits where 16-bit sums would saturate (microsoft/onnxruntime#12072), and no -128 otherwise; activations keep all 8 bits."""
    for types, limit in ((OLD, 64), (VNNI, 127)):
        network = GraphNetwork(Graphs(exported, types=types).int8)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(-5)
        int8 = [value for value in arrays(network.to_onnx()).values() if value.dtype == np.int8 and value.ndim > 1]
        assert {(value.min(), value.max()) for value in int8} <= {(-limit, limit)}


def test_fit_trains_it_and_a_copy_is_another(graphs: Graphs) -> None:
    network = GraphNetwork(graphs.int8, weights=graphs.weights)
    other = copy.deepcopy(network)
    labels = np.arange(256) % 5
    config = FitConfig(epochs=1, batch=64, lr=1e-3)
    fit(network, (IMAGES, labels), (IMAGES, labels), config, classes=5, prepare=lambda x: x.float(), device=torch.device("cpu"))
    assert not np.array_equal(logits(network), logits(other))
    np.testing.assert_array_equal(logits(other), logits(GraphNetwork(graphs.int8, weights=graphs.weights)))
    other.load_state_dict(network.state_dict())
    np.testing.assert_array_equal(logits(other), logits(network))
    assert agreement(logits(network), runtime(network.to_onnx())) >= 0.99


# What is refused

SCALES = {"s": np.array(0.5, np.float32), "t": np.array(0.25, np.float32)}
WEIGHT = np.ones((1, 1, 1, 1), np.float32)
CONV = helper.make_node("Conv", ["a", "w"], ["y"])


@pytest.mark.parametrize(
    ("nodes", "settings", "told"),
    [
        ([helper.make_node("Det", ["x"], ["a"], name="odd"), CONV], {"w": WEIGHT}, 'Det "odd" is an operator that has no torch function'),
        ([helper.make_node("Relu", ["x"], ["y"])], {}, "no constant weights of convolutions or matrix products.*fine-tune the float32"),
        ([helper.make_node("Relu", ["x"], ["a"]), CONV], {"w": WEIGHT, "opset": 12}, "opset 12, but .* needs at least 13; export it again"),
        (
            [
                helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "t"], ["a"], name="D"),
                CONV,
            ],
            {"w": WEIGHT, **SCALES},
            'DequantizeLinear "D" reads "q" otherwise than a QuantizeLinear wrote it; quantize with this toolkit',
        ),
        (
            [
                helper.make_node("DequantizeLinear", ["w", "s"], ["a"]),
                helper.make_node("DequantizeLinear", ["w", "t"], ["b"], name="D"),
                helper.make_node("Conv", ["x", "a"], ["c"]),
                helper.make_node("Conv", ["c", "b"], ["y"]),
            ],
            {"w": WEIGHT.astype(np.int8), **SCALES},
            'DequantizeLinear "D" reads "w" with other scales than another node does; quantize with this toolkit',
        ),
    ],
)
def test_graphs_that_cannot_be_trained_are_refused(nodes: list[onnx.NodeProto], settings: dict, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        GraphNetwork(hand_made(nodes, **settings))


def test_weights_of_another_graph_are_refused(graphs: Graphs) -> None:
    with pytest.raises(CompressError, match=r"weights .a, .* are none of this graph's; take those of the graph it was made from"):
        GraphNetwork(graphs.int8, weights={"a": np.zeros(3, np.float32)})
    cut = {name: value[:1] if value.shape == (8, 1, 3, 3) else value for name, value in graphs.weights.items()}
    with pytest.raises(CompressError, match=r"weights: .* is \(1, 1, 3, 3\), but \(8, 1, 3, 3\) in the graph; take the graph"):
        GraphNetwork(graphs.int8, weights=cut)
