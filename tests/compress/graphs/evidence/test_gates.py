"""Gates against the formula they are made of, in torch and in ONNX; evidence against a network whose eye is known; ranks against scipy."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from compress.graphs.evidence.gates import correlation, graph_gates, network_gates, rank_correlation
from compress.graphs.evidence.occlusion import occlusion, run_batches
from compress.graphs.export import export_onnx

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 1, 6, 5), dtype=np.uint8)
X = IMAGES.astype(np.float64)[:, 0] / 255


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


class Scale(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.float() / 255


class Known(nn.Module):
    """Two channels, x and 1 - x, gated at each pixel by sigmoid(2x - 1), then by channel in the ways that people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.excite = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
        with torch.no_grad():
            self.conv.weight.fill_(2)
            self.conv.bias.fill_(-1)  # type: ignore[union-attr]
            self.excite[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
            self.excite[0].bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        two = torch.cat([pooled, 1 - pooled], 1)
        features = torch.cat([x, 1 - x], 1) * torch.sigmoid(self.conv(x))
        features = self.excite(two).view(-1, 2, 1, 1).expand_as(features) * features
        features = features * nn.functional.hardsigmoid(two)[:, :, None, None]
        features = features * two[:, :, None, None].sigmoid()
        return features.mean((2, 3))


def known_gates() -> list[tuple[str, np.ndarray]]:
    pooled = X.mean((1, 2))
    two = np.stack([pooled, 1 - pooled], 1)
    return [("spatial", sigmoid(2 * X - 1)), ("channel", sigmoid(two * [1, -1])), ("channel", two / 6 + 0.5), ("channel", sigmoid(two))]


class Gateless(nn.Module):
    """Sigmoids that are no gates: SiLU by hand, also of pooled channels; one that is added to; coordinate attention; one of the logits."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, 1 - x], 1)
        x = x * torch.sigmoid(x)
        pooled = x.mean((2, 3), keepdim=True)
        pooled = pooled * torch.sigmoid(pooled)
        x = x * (1 + torch.sigmoid(pooled))
        x = x * torch.sigmoid(x.mean(3, keepdim=True)) * torch.sigmoid(x.mean((1, 2, 3), keepdim=True))
        return torch.sigmoid(x.mean((2, 3)))


def exported(network: nn.Module, folder: Path) -> onnx.ModelProto:
    target = folder / "net.onnx"
    export_onnx(network, target, prepare=Scale(), example=torch.from_numpy(IMAGES[:2]), metadata={})
    return onnx.load(target)


def test_known_gates_are_found_in_torch_and_after_export(tmp_path: Path) -> None:
    network = Known().eval()
    for found in (network_gates(network, torch.from_numpy(IMAGES).float() / 255), graph_gates(exported(network, tmp_path), IMAGES)):
        assert [gate.kind for gate in found] == [kind for kind, _ in known_gates()]
        for gate, (_, expected) in zip(found, known_gates(), strict=True):
            assert gate.values.dtype == np.float32
            np.testing.assert_allclose(gate.values, expected, atol=1e-5)


def test_other_sigmoids_are_no_gates(tmp_path: Path) -> None:
    network = Gateless()
    assert network_gates(network, torch.from_numpy(IMAGES).float()) == []
    model = exported(network, tmp_path)
    assert sum(node.op_type == "Sigmoid" for node in model.graph.node) == 6
    assert graph_gates(model, IMAGES) == []


def test_gates_written_in_place_are_found() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gate = x.mean(1, keepdim=True).sigmoid_()
            return torch.cat([x, x], 1).mul_(gate)

    [gate] = network_gates(InPlace(), torch.from_numpy(IMAGES).float() / 255)
    np.testing.assert_allclose(gate.values, sigmoid(X), atol=1e-6)


def graph(nodes: list[onnx.NodeProto], batch: int | str, kind: int) -> onnx.ModelProto:
    """x (B, 1, 6, 5) to two channels ``wide``, the given nodes, and the sum of what they make of it, ``gated``."""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["x", "x"], ["wide"], axis=1),
        helper.make_node("Sigmoid", ["x"], ["sigmoid"]),
        *nodes,
        helper.make_node("ReduceSum", ["gated", "axes"], ["logits"], keepdims=0),
    ]
    scale, zero = helper.make_tensor("scale", 1, [], [0.01]), helper.make_tensor("zero", TensorProto.UINT8, [], [0])
    inputs = [helper.make_tensor_value_info("image", kind, [batch, 1, 6, 5])]
    outputs = [helper.make_tensor_value_info("logits", 1, [batch, 2])]
    made = helper.make_graph(nodes, "net", inputs, outputs, [scale, zero, helper.make_tensor("axes", 7, [2], [2, 3])])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def test_images_that_a_network_writes_over_stay_as_they_were() -> None:
    images = torch.ones(1, 1, 2, 2)
    network_gates(nn.Threshold(2, 0, inplace=True), images)
    assert torch.equal(images, torch.ones(1, 1, 2, 2))


def test_an_int8_gate_is_the_rounded_one() -> None:
    """Scale 0.01 and zero point 0: the gate is a whole number of hundredths."""
    model = graph(
        [
            helper.make_node("QuantizeLinear", ["sigmoid", "scale", "zero"], ["rounded"]),
            helper.make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["gate"]),
            helper.make_node("Mul", ["gate", "wide"], ["gated"]),
        ],
        "B",
        TensorProto.FLOAT,
    )
    before = model.SerializeToString()
    [gate] = graph_gates(model, IMAGES)
    np.testing.assert_allclose(gate.values, np.round(sigmoid(X) * 100) / 100, atol=1e-6)
    assert model.SerializeToString() == before


def test_a_fixed_batch_of_one_and_raw_pixels() -> None:
    [gate] = graph_gates(graph([helper.make_node("Mul", ["wide", "sigmoid"], ["gated"])], 1, TensorProto.UINT8), IMAGES)
    np.testing.assert_allclose(gate.values, sigmoid(255 * X), atol=1e-6)


def corner(images: np.ndarray) -> np.ndarray:
    """Looks at the upper left pixel: its first logit is that pixel, plus 100 in all three logits."""
    logits = np.full((len(images), 3), 100, np.float32)
    logits[:, 0] += images[:, 0, 0, 0]
    return logits


def test_occlusion_finds_the_only_pixel_that_is_looked_at() -> None:
    """Covered, the first logit falls by 200 and so the mean by 200 / 3."""
    image = np.zeros((1, 6, 5), np.uint8)
    image[0, 0, 0] = 200
    first, second = occlusion(corner, image, [0, 1], patch=1)
    expected = np.zeros((6, 5))
    expected[0, 0] = 200 * 2 / 3
    np.testing.assert_allclose(first, expected, atol=1e-4)
    np.testing.assert_allclose(second, -expected / 2, atol=1e-4)


def test_larger_patches_point_to_the_same_corner_and_cover_every_pixel_equally() -> None:
    image = np.zeros((1, 12, 12), np.uint8)
    image[0, 0, 0] = 200
    [evidence] = occlusion(corner, image, [0], patch=4)
    assert evidence.shape == (12, 12)
    assert (evidence[:2, :2] > 133).all() and evidence.max() == pytest.approx(400 / 3, rel=1e-5)
    assert (evidence[4:] == 0).all() and (evidence[:, 4:] == 0).all()
    [flat] = occlusion(lambda images: images.astype(np.float32).sum((2, 3)) @ np.array([[1, 0]], np.float32), image + 7, [0], patch=4)
    assert flat[4:, 4:] == pytest.approx(0)


def test_background_is_the_colour_of_the_border_so_that_dark_ink_on_light_is_read_too() -> None:
    image = np.full((3, 8, 8), 250, np.uint8)
    image[:, 3:5, 3:5] = 10
    ink = occlusion(lambda images: (250 - images[:, :2].astype(np.float32)).sum((2, 3)) * np.float32([1, 0]), image, [0], patch=2)[0]
    assert ink[3:5, 3:5].min() > 0
    assert ink[[0, 1, 6, 7]] == pytest.approx(0)


def test_batches_change_nothing_and_tell_of_their_progress() -> None:
    images = np.random.default_rng(1).integers(0, 256, (70, 1, 2, 2), dtype=np.uint8)
    told: list[tuple[int, int]] = []
    np.testing.assert_array_equal(run_batches(corner, images, lambda *seen: told.append(seen)), corner(images))
    assert told[-1] == (70, 70) and len(told) > 1


def test_correlations_are_those_of_scipy_with_ties() -> None:
    random = np.random.default_rng(2)
    first, second = random.integers(0, 5, (2, 4, 6)).astype(np.float32)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first.ravel(), second.ravel()).statistic)
    assert correlation(first, second) == pytest.approx(pearsonr(first.ravel(), second.ravel()).statistic, abs=1e-6)
    assert rank_correlation(first, first**3) == pytest.approx(1.0)
    assert rank_correlation(first, np.zeros_like(first)) is None
    assert rank_correlation(first, second[:2]) is None
