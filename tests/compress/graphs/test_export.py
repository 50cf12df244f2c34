import dataclasses
import json
import logging
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from real_data import DATA, needs_data
from stand_ins import Silent, recorded
from torch import Tensor, nn

from compress.artifacts.artifact import Artifact, InputSpec
from compress.artifacts.load import Prepare
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.project import Project
from compress.artifacts.vectors import VECTORS
from compress.benchmarks.runtimes import Candidate, open_model
from compress.cli.tables import artifact_text
from compress.errors import CompressError
from compress.graphs.export import Parity, export_onnx, own_rounding, parity
from compress.models import emnist, k49
from compress.stages.export import ExportConfig
from compress.stages.export import export as export_stage
from compress.stages.train import train
from compress.train.formats import read_array
from compress.train.settings import FitConfig
from compress.train.sources import load_data

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
    assert found.probabilities is not None and found.probabilities < 1e-6


def test_graph_takes_raw_images_and_any_batch(exported: tuple[nn.Module, Path]) -> None:
    network, path = exported
    session = onnxruntime.InferenceSession(path)
    (image,), outputs = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["batch", 1, 12, 12])
    assert [(one.name, one.type, one.shape) for one in outputs] == [
        (name, "tensor(float)", ["batch", 5]) for name in ("logits", "probabilities")
    ]
    network.eval()
    for size in (1, 3, 7):
        with torch.inference_mode():
            expected = network(Scale()(torch.from_numpy(IMAGES[:size])))
        logits, probabilities = session.run(None, {"image": IMAGES[:size]})
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), atol=1e-6)
    network.train()


def test_batch_norm_is_folded_and_dropout_gone(exported: tuple[nn.Module, Path]) -> None:
    kinds = [node.op_type for node in onnx.load(exported[1]).graph.node]
    assert kinds.count("Conv") == 2
    assert not {"BatchNormalization", "Dropout"} & set(kinds)


def test_no_shape_of_an_inner_tensor_is_noted(tmp_path: Path) -> None:
    """Of a transposed weight the note was wrong, and quantizers stopped at it: "Inferred shape and existing shape differ"."""
    from onnxruntime.quantization import quantize_dynamic

    path = export(nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.ReLU(), nn.Linear(4, 2)), tmp_path / "net.onnx")
    assert not onnx.load(path).graph.value_info
    quantize_dynamic(path, tmp_path / "int8.onnx")
    assert "MatMulInteger" in [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]


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


@needs_data
@pytest.mark.parametrize("make", [k49.make, emnist.make], ids=["k49", "emnist"])
def test_reference_networks_agree_on_real_images(make: object, tmp_path: Path) -> None:
    images = read_array(DATA / "kmnist" / "t10k-images-idx3-ubyte.gz")[:64, None]
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
    # The first of two logits a and b has probability 1 / (1 + exp(b - a)): 0.50735 for 0.0294 and 0, 0.44507 for 0.0294 and 0.25.
    assert found.probabilities == pytest.approx(0.50735 - 0.44507, abs=2e-5)
    assert dataclasses.replace(found, probabilities=None) == Parity(images=4, largest_difference=0.25, agreement=0.75, probabilities=None)


def test_a_graph_of_float_pixels_keeps_the_normalisation_inside(tmp_path: Path) -> None:
    network, spec = gated(), InputSpec(shape=(1, 12, 12), mean=(0.2,), std=(0.4,))
    path = tmp_path / "net.onnx"
    export_onnx(network, path, prepare=Prepare(spec), example=EXAMPLE, metadata={}, image="float32")
    model = onnx.load(path)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [node.op_type for node in model.graph.node[:3]] == ["Mul", "Add", "Conv"]  # 255 and 1 / (255 * 0.4) are one factor
    session = onnxruntime.InferenceSession(path)
    with torch.inference_mode():
        expected = network.eval()((torch.from_numpy(IMAGES).float() / 255 - 0.2) / 0.4).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"image": IMAGES.astype(np.float32) / 255})[0], expected, atol=1e-5)
    assert parity(network, Prepare(spec), path, IMAGES).largest_difference < 1e-5
    opened = open_model(Candidate(name="float", path=path), (1, 12, 12), 5, threads=1)
    np.testing.assert_allclose(opened.predict(IMAGES), expected, atol=1e-5)
    assert len(session.run(None, {"image": np.zeros((3, 1, 12, 12), np.float32)})[1]) == 3


@pytest.mark.parametrize("image", ["uint8", "float32"])
def test_without_a_mean_nothing_is_left_of_the_scale(image: str, tmp_path: Path) -> None:
    network, prepare = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), Prepare(InputSpec(shape=(1, 12, 12)))
    path = tmp_path / "net.onnx"
    done = export_onnx(network, path, prepare=prepare, example=EXAMPLE, metadata={"a": "b"}, image=image)
    assert done == ("pixel scale folded into 1 Conv",)
    model = onnx.load(path)
    assert [node.op_type for node in model.graph.node[: 1 + (image == "uint8")]] == ["Cast", "Conv"][image == "float32" :]
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [
        ("a", "b"),
        ("compress.rewrites", '["pixel scale folded into 1 Conv"]'),
    ]
    assert parity(network, prepare, path, IMAGES).largest_difference < 1e-5


def test_other_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r'image \(="int8"\) must be uint8 or float32; uint8 takes the pixels as'):
        export_onnx(Gated(), tmp_path / "net.onnx", prepare=Scale(), example=EXAMPLE, metadata={}, image="int8")


def digits_project(folder: Path, **options: object) -> Project:
    data = load_data("digits")
    source = recorded("digits", data.fingerprint)
    model = ModelReference(reference="emnist", options={"channels": [4, 8], "hidden": 16})
    about = {"folder": folder, "model": model, "spec": InputSpec(), "data": data, "source": source, "console": Silent()}
    return Project(**about | options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Artifact]:
    project = digits_project(tmp_path_factory.mktemp("runs"))
    network = train(project, FitConfig(epochs=1, batch=256))
    assert network is not None
    return project, network


@pytest.fixture(scope="module")
def once(trained: tuple[Project, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_stage(*trained, ExportConfig(), tmp_path_factory.mktemp("once") / "one")


def test_the_same_command_twice_gives_the_same_bytes_and_says_what_the_file_is(
    trained: tuple[Project, Artifact], once: Artifact, tmp_path: Path
) -> None:
    project, root = trained
    one, two = once, export_stage(project, root, ExportConfig(), tmp_path / "two")
    found = one.manifest.metrics.parity
    assert (found.images, found.agreement) == (1000, 1.0)
    assert max(found.largest_difference, found.probabilities) < 1e-4
    assert one.payload.read_bytes() == two.payload.read_bytes()
    assert (one.path / VECTORS).read_bytes() == (two.path / VECTORS).read_bytes()
    about = {entry.key: entry.value for entry in onnx.load(one.payload).metadata_props}
    assert json.loads(about["compress.classes"]) == list("0123456789")
    assert json.loads(about["compress.image"]) == {"dtype": "uint8", "shape": ["batch", 1, 28, 28], "range": [0, 255]}
    assert json.loads(about["compress.input"]) == {"shape": [1, 28, 28], "mean": [0.0], "std": [1.0]}
    assert json.loads(about["compress.outputs"])["probabilities"] == {"dtype": "float32", "shape": ["batch", 10]}
    assert json.loads(about["compress.versions"]) == {"torch": str(torch.__version__), "onnx": onnx.__version__, "opset": 18}
    assert json.loads(about["compress.data"])["fingerprint"] == project.data.fingerprint
    assert [step["stage"] for step in json.loads(about["compress.lineage"])] == ["train"]


def test_parity_takes_training_images_where_those_for_validation_are_too_few(trained: tuple[Project, Artifact], tmp_path: Path) -> None:
    project, root = trained
    everything = len(project.data.validation.images) + len(project.data.train.images)
    assert len(project.data.validation.images) < 1000 < everything
    console, config = Silent(), ExportConfig(parity_images=5000, input="float32")
    few = export_stage(dataclasses.replace(project, console=console), root, config, tmp_path / "few")
    assert few.manifest.metrics.parity.images == everything
    assert f"export: the data has {everything} images for the proof of parity, fewer than parity_images (=5000)" in console.said
    assert f"same label on 100.00% of {everything} images" in artifact_text(few)


def test_a_rewrite_that_is_wrong_is_found_by_the_parity(
    trained: tuple[Project, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: onnx.ModelProto) -> tuple[str, ...]:
        (bias,) = [weight for weight in model.graph.initializer if weight.name == "network.fc2.bias"]
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        return ("nonsense",)

    monkeypatch.setattr("compress.graphs.export.simplify", wrong)
    with pytest.raises(CompressError, match=r"the exported graph does not compute what .* does: logits differ by 0\.01 on 1000 images"):
        export_stage(*trained, ExportConfig(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Spread(nn.Module):
    """A sum that float32 rounds by 0.25 of what a batch norm of variance 0 then makes 316 times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten, self.norm, self.last = nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 2)
        nn.init.zeros_(self.norm.running_var)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.flatten(x) * 0.1 + 4e3) - self.norm(torch.full_like(self.flatten(x), 4e3)))


def test_what_float32_makes_of_a_network_is_told_from_a_wrong_graph() -> None:
    torch.manual_seed(0)
    assert own_rounding(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)).eval(), Scale(), IMAGES, batch=16) < 1e-5
    assert own_rounding(Spread().eval(), Scale(), IMAGES) > 1e-3

    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ torch.ones(144, 2)

    assert own_rounding(Single(), Scale(), IMAGES) == 0


@pytest.mark.parametrize(("rounding", "allowed"), [(0.001, "0.004"), (0.5, "0.01"), (0.0, "0.001")])
def test_a_graph_may_differ_by_what_float32_makes_of_the_network_but_not_by_more(
    trained: tuple[Project, Artifact], once: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounding: float, allowed: str
) -> None:
    monkeypatch.setattr("compress.graphs.export.export_onnx", lambda network, target, **_: shutil.copy(once.payload, target) and ())
    monkeypatch.setattr("compress.graphs.export.own_rounding", lambda *_, **__: rounding)
    for difference, refused in ((0.0039, allowed == "0.001"), (0.011, True)):
        proof = Parity(images=3, largest_difference=difference, agreement=1.0, probabilities=None)
        monkeypatch.setattr("compress.graphs.export.parity", lambda *_, proof=proof, **__: proof)
        if refused:
            with pytest.raises(CompressError, match=rf"logits differ by {difference} on 3 images, {allowed} is allowed"):
                export_stage(*trained, ExportConfig(), tmp_path / str(difference))
        else:
            assert export_stage(*trained, ExportConfig(), tmp_path / str(difference)).manifest.metrics.parity == proof


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


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - x.flatten(1).mean(0)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Centred(), r"network gives an image other logits alone than in a batch, so nothing could be proved of it; keep running"),
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
