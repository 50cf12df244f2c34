import logging
import os
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.export import Parity, export_onnx, parity
from compress.models import emnist, k49

DATA = Path(__file__).parents[3] / "shared" / "data" / "kmnist" / "t10k-images-idx3-ubyte.gz"
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 12, 12), dtype=np.uint8)
EXAMPLE = torch.from_numpy(IMAGES[:2])


class Scale(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return (image.float() / 255 - 0.2) / 0.4


class Gated(nn.Module):
    """Convolutions with batch norm, a depthwise one, and a CBAM-like channel gate."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))) + self.gate(x.amax((2, 3))))[:, :, None, None]
        return self.classifier(self.dropout(x.mean((2, 3))))


def seen(network: nn.Module, size: int = 12) -> nn.Module:
    """The network with batch norm statistics that are not the initial ones, in training mode."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(16, 1, size, size) * 3 + 1)
    return network


def gated() -> nn.Module:
    torch.manual_seed(0)
    return seen(Gated())


def export(network: nn.Module, target: Path, example: Tensor = EXAMPLE, **metadata: str) -> Path:
    export_onnx(network, target, prepare=Scale(), example=example, metadata=metadata)
    return target


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    network = gated()
    return network, export(network, tmp_path_factory.mktemp("export") / "net.onnx", labels="a b c d e", blank="")


def test_file_agrees_with_torch(exported: tuple[nn.Module, Path]) -> None:
    network, path = exported
    found = parity(network, Scale(), path, IMAGES, batch=16)
    assert (found.images, found.agreement) == (40, 1.0)
    assert found.largest_difference < 1e-5


def test_graph_takes_raw_images_and_any_batch(exported: tuple[nn.Module, Path]) -> None:
    network, path = exported
    session = onnxruntime.InferenceSession(path)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 1, 12, 12])
    assert (logits.name, logits.type, logits.shape) == ("logits", "tensor(float)", ["batch", 5])
    network.eval()
    for size in (1, 3, 7):
        with torch.inference_mode():
            expected = network(Scale()(torch.from_numpy(IMAGES[:size])))
        np.testing.assert_allclose(session.run(None, {"image": IMAGES[:size]})[0], expected.numpy(), atol=1e-5)
    network.train()


def test_batch_norm_is_folded_and_dropout_gone(exported: tuple[nn.Module, Path]) -> None:
    kinds = [node.op_type for node in onnx.load(exported[1]).graph.node]
    assert kinds.count("Conv") == 2
    assert not {"BatchNormalization", "Dropout", "Softmax"} & set(kinds)


def test_metadata_is_in_the_file_and_sorted(exported: tuple[nn.Module, Path]) -> None:
    model = onnx.load(exported[1])
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("blank", ""), ("labels", "a b c d e")]
    assert onnxruntime.InferenceSession(exported[1]).get_modelmeta().custom_metadata_map["labels"] == "a b c d e"


def test_nothing_of_this_machine_is_in_the_file(exported: tuple[nn.Module, Path]) -> None:
    content = exported[1].read_bytes()
    for trace in (
        str(Path(torch.__file__).parents[1]),
        str(Path(__file__).parent),
        Path.home().name + os.sep,
        "stack_trace",
        "test_export",
    ):
        assert trace.encode() not in content


def test_file_is_valid_and_one_file(exported: tuple[nn.Module, Path]) -> None:
    onnx.checker.check_model(exported[1], full_check=True)
    assert [entry.name for entry in exported[1].parent.iterdir()] == ["net.onnx"]


def test_exporting_again_gives_the_same_bytes(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    again = export(exported[0], tmp_path / "again.onnx", blank="", labels="a b c d e")
    assert again.read_bytes() == exported[1].read_bytes()


def test_network_stays_as_it_was(tmp_path: Path) -> None:
    network = gated()
    network.stem.eval()  # a mixture, as in fine-tuning with frozen statistics
    flags = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export(network, tmp_path / "net.onnx")
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("make", [k49.make, emnist.make], ids=["k49", "emnist"])
def test_reference_networks_agree_on_real_images(make: object, tmp_path: Path) -> None:
    import gzip

    images = np.frombuffer(gzip.decompress(DATA.read_bytes())[16:], np.uint8).reshape(-1, 1, 28, 28)[:64]
    torch.manual_seed(0)
    options = {"widths": (16, 32), "depths": (1, 1)} if make is k49.make else {}
    network = seen(make(classes=10, **options), 28)  # type: ignore[operator]
    found = parity(network, Scale(), export(network, tmp_path / "net.onnx", torch.from_numpy(images[:2].copy())), images)
    assert found.agreement == 1.0
    assert found.largest_difference < 1e-4


def test_parity_by_hand(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 2, bias=False))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[0, 0] = 1.0
    path = export(network, tmp_path / "net.onnx")
    other = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    other.load_state_dict({"1.weight": network[1].weight, "1.bias": torch.tensor([0.0, 0.25])})
    images = np.full((4, 1, 12, 12), 255, np.uint8)  # a pixel of 255 is 2.0 after scaling: logits 2 and 0, or 2 and 0.25
    images[0, 0, 0, 0] = 54  # this one is 0.029: logits 0.029 and 0, or 0.029 and 0.25
    found = parity(other, Scale(), path, images)
    assert found == Parity(images=4, largest_difference=0.25, agreement=0.75)


def test_logits_that_are_not_finite_are_an_infinite_difference(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))
    path = export(network, tmp_path / "net.onnx")
    with torch.no_grad():
        network[1].bias[0] = torch.nan
    assert parity(network, Scale(), path, IMAGES).largest_difference == float("inf")


def test_parity_refuses_what_does_not_fit(exported: tuple[nn.Module, Path]) -> None:
    network, path = exported
    with pytest.raises(CompressError, match=r"images \(=uint8 \(0, 1, 12, 12\)\) must be uint8 \(N, C, H, W\) with at least one image"):
        parity(network, Scale(), path, IMAGES[:0])
    with pytest.raises(CompressError, match=r"images \(=float32 "):
        parity(network, Scale(), path, IMAGES.astype(np.float32))
    with pytest.raises(CompressError, match=r'net\.onnx" does not take images of uint8 \(1, 11, 12\)'):
        parity(network, Scale(), path, IMAGES[:, :, 1:])
    with pytest.raises(CompressError, match=r'net\.onnx" gives \(40, 5\), the network \(40, 6\)'):
        parity(Gated(6), Scale(), path, IMAGES)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x[:, 0]).abs()


class FrozenSum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + len([0 for _ in range(x.shape[0])])


class FrozenShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Branching(), r"network cannot be exported \(.*data-dependent.*\); its forward pass must be torch operations"),
        (Eigenvalues(), r"network cannot be exported \(.*linalg_eig.*\)"),
        (FrozenSum(), r"network was exported for batches of 2 only; take the batch size from x\.shape\[0\]"),
        (FrozenShape(), r"network was exported for batches of 2 only"),
        (Pair(), r"network must give float32 logits \(B, K\) for an example of 2 images, but gives tuple"),
        (nn.Conv2d(1, 2, 3), r"network must give float32 logits .* but gives torch\.float32 \(2, 2, 10, 10\)"),
        (nn.Conv2d(3, 2, 3), r"network does not take the example \(2, 1, 12, 12\) \(.*channels"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    network: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"the old file")
    with pytest.raises(CompressError, match=message) as caught:
        export(network, target)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    assert target.read_bytes() == b"the old file"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("example", [EXAMPLE[:1], EXAMPLE.float(), EXAMPLE[0]])
def test_unsuitable_examples_are_refused(example: Tensor, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"example \(=torch\..*\) must be torch\.uint8 \(B, C, H, W\) with at least 2 images"):
        export(Gated(), tmp_path / "net.onnx", example)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"opset \(=13\) must be at least 18"):
        export_onnx(Gated(), tmp_path / "net.onnx", prepare=Scale(), example=EXAMPLE, metadata={}, opset=13)


def test_a_newer_opset_can_be_asked_for(tmp_path: Path) -> None:
    network = gated()
    export_onnx(network, tmp_path / "net.onnx", prepare=Scale(), example=EXAMPLE, metadata={}, opset=20)
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == 20
    assert parity(network, Scale(), tmp_path / "net.onnx", IMAGES).agreement == 1.0


def test_warnings_of_the_network_are_not_swallowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Warner(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("this layer is doubtful", UserWarning, stacklevel=1)
            return super().forward(x)

    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(Warner(nn.Flatten(), nn.Linear(144, 2)), tmp_path / "net.onnx")
    assert sum("doubtful" in str(warning.message) for warning in caught) >= 2  # from the check and from the trace
