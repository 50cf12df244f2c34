"""Weights in the package: shipped, found by --pretrained, refused for other data, and still computing what they did."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from real_data import few_digits
from safetensors.torch import load_file
from stand_ins import Silent

from compress.artifacts import context as opening
from compress.artifacts.artifact import Artifact, InputSpec, read_artifact
from compress.artifacts.context import Context
from compress.artifacts.load import load_network, load_runner
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.parts import Scores
from compress.artifacts.project import Project, variants_of
from compress.cli import main as cli
from compress.cli import ship
from compress.errors import ArtifactError, CompressError
from compress.stages.train import train
from compress.train.fit import FitConfig, choose_device, predict_logits
from compress.train.metrics import score
from compress.train.sources import load_data

SHAPE = (1, 28, 28)
SHIPPED = sorted(path.name for path in opening.WEIGHTS.glob("[!.]*"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_digits(tmp_path_factory.mktemp("data") / "letters9")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    loaded, source = Context(data=str(data)).load(str(data), 0, InputSpec())
    project = Project(
        folder=tmp_path_factory.mktemp("runs") / "emnist",
        model=ModelReference(reference="emnist", options={"channels": [4, 8], "hidden": 16}),
        spec=InputSpec(),
        data=loaded,
        source=source,
        console=Silent(),
        device="cpu",
    )
    return train(project, FitConfig(epochs=2, batch=32, lr=0.003))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["compress", *arguments])
    code = cli.main()
    out, err = capfd.readouterr()
    return code, out, err


def test_a_shipped_artifact_is_whole_names_no_path_and_keeps_where_it_was_made(trained: Artifact, data: Path, weights: Path) -> None:
    shipped = ship.ship(trained.path, weights / "emnist", title="Letters-9 (project split)", test=True)
    assert read_artifact(weights / "emnist", "network") == shipped
    about, original = shipped.manifest, trained.manifest
    assert str(data.parent) not in (shipped.path / "artifact.json").read_text()
    assert about.data.source == "letters9" and about.data.title == "Letters-9 (project split)"
    assert about.data.fingerprint == original.data.fingerprint
    assert (about.created, about.versions, about.machine, about.key) == (
        original.created,
        original.versions,
        original.machine,
        original.key,
    )
    assert shipped.content == trained.content, "what is made of it must be the same"
    assert shipped.payload.read_bytes() == trained.payload.read_bytes()
    truth = load_data(str(data)).test
    scores = score(truth.labels, load_runner(trained, "cpu", 1)(truth.images).argmax(axis=1), 10)
    assert about.metrics == dataclasses.replace(original.metrics, test=Scores(**scores))


def test_the_reference_holds_the_logits_of_the_network(trained: Artifact, weights: Path) -> None:
    ship.ship(trained.path, weights / "emnist")
    with np.load(weights / "emnist" / ship.REFERENCE) as stored:
        images, logits = stored["images"], stored["logits"]
    np.testing.assert_array_equal(images, ship.noise(SHAPE))
    assert images.shape == (4, *SHAPE) and images.dtype == np.uint8 and 120 < images.mean() < 135
    scaled = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        np.testing.assert_allclose(load_network(trained)(scaled).numpy(), logits, atol=1e-5)


@pytest.mark.parametrize("model", SHIPPED)
def test_the_networks_of_this_package_compute_what_their_weights_were_trained_with(model: str) -> None:
    """A change of the network's code that keeps the shapes would go unnoticed otherwise."""
    artifact = read_artifact(opening.WEIGHTS / model, "network")
    assert artifact.payload.stat().st_size <= ship.MOST_BYTES
    assert artifact.manifest.stage == "train" and artifact.manifest.model.reference == model
    assert "/" not in artifact.manifest.data.source
    with np.load(artifact.path / ship.REFERENCE) as stored:
        logits = load_runner(artifact, "cpu", 1)(stored["images"])
        np.testing.assert_allclose(logits, stored["logits"], atol=1e-4 * np.abs(stored["logits"]).max())


def test_what_cannot_be_shipped_is_refused(trained: Artifact, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"data \(=digits\) is not what .* was trained on \(letters9\); name that with --data"):
        ship.ship(trained.path, weights / "emnist", test=True, data="digits")
    monkeypatch.setattr(ship, "MOST_BYTES", 1000)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors has [\d,]+ bytes, at most 1,000 are shipped"):
        ship.ship(trained.path, weights / "emnist")
    done = CliRunner().invoke(ship.main, [str(tmp_path), str(weights / "emnist")])
    assert done.exit_code == 1 and "is not an artifact" in done.output and len(done.output.splitlines()) == 1
    assert not weights.exists()


def test_pretrained_works_at_once_and_from_stage_to_stage(
    trained: Artifact, data: Path, weights: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def done(*arguments: str) -> dict[str, object]:
        code, out, err = run(capfd, monkeypatch, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    shipped = ship.ship(trained.path, weights / "emnist")
    pruned = done("prune", "--model", "emnist", "--pretrained", "--epochs", "1", "--data", str(data))
    about = read_artifact(Path(str(pruned["artifact"]))).manifest
    assert about.parent == shipped.manifest.hash
    assert load_file(Path(str(pruned["artifact"])) / "weights.safetensors").keys() == load_file(trained.payload).keys()
    # From there on as with a network of one's own, and without naming the data again.
    graph = done("export-onnx", "--model", "emnist")
    assert graph["metrics"]["parity"]["agreement"] == 1.0  # type: ignore[index]
    dense = done("export-onnx", "--model", "emnist", "--pretrained", "--data", str(data))
    assert dense["artifact"] != graph["artifact"]
    # What `compress benchmark --pretrained` measures.
    project, _, root = Context(model="emnist", pretrained=True, data=str(data)).child(("train", "import"))
    assert {str(graph.path) for graph in variants_of(project, root)} == {graph["artifact"], dense["artifact"]}


def test_pretrained_reads_pictures_without_any_data(
    trained: Artifact, weights: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    ship.ship(trained.path, weights / "emnist")
    image = load_data("digits").test.images[:1]
    Image.fromarray(image[0, 0]).save("three.png")
    code, out, err = run(capfd, monkeypatch, "predict", "--model", "emnist", "--pretrained", "--json", "three.png")
    assert code == 0, err
    device = choose_device("cpu")
    logits = predict_logits(load_network(trained), image, prepare=lambda x: x.float() / 255, device=device)
    assert json.loads(out)["predictions"][0]["label"] == str(logits.argmax())


def test_missing_or_other_data_is_one_line_that_says_which_is_meant(
    trained: Artifact, weights: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ship.ship(trained.path, weights / "emnist", title="Letters-9 (project split)")
    meant = "the weights of emnist were trained on Letters-9 (project split), 200 images and 60 for test"
    for arguments, line in (
        (["--pretrained"], f"{meant}; name its folder with --data"),
        (["--pretrained", "--data", "digits"], f"{meant}; data (=digits) is other data: name that one, or run `compress train` on yours"),
        (["--from", str(weights / "emnist")], f"{meant}; name its folder with --data"),
        (["--pretrained", "--from", "x"], "from (=x) and pretrained exclude each other; leave all but one of them out"),
        (["--pretrained", "--weights", "x.pt"], "weights (=x.pt) and pretrained exclude each other"),
        (["--pretrained", "--model", "k49"], "pretrained: no weights of model (=k49) come with this package, but of emnist; run"),
    ):
        code, out, err = run(capfd, monkeypatch, "prune", "--model", "emnist", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith(f"compress: {line}") and len(err.splitlines()) == 1
    assert not Path("runs").exists()
