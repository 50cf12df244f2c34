"""remove-channels on an ONNX file of somebody else's, with labels and without; and mistakes, each one line and nothing written."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from foreign import NORMALISED, foreign
from PIL import Image
from stand_ins import Commands

from compress.artifacts.artifact import read_artifact
from compress.cli.tables import artifact_text
from compress.stages.verify import verify
from compress.train.sources import load_data

ONE_SHOT = ("--max-macs", "0.6x", "--round-to", "1", "--epochs", "0")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign(tmp_path_factory.mktemp("theirs") / "net.onnx")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as PNG files without labels, some of them a folder further down, and what is none of them."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more" / ".hidden").mkdir(parents=True)
    for number, image in enumerate(load_data("digits").train.images[:400]):
        Image.fromarray(image[0]).save(folder / ("more" if number % 3 else ".") / f"{number:03}.png")
    (folder / "more/.hidden/x.png").write_bytes(b"no picture")
    (folder / "readme.txt").write_text("no picture")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answers(file: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file)
    entry = session.get_inputs()[0]
    fed = images if entry.type == "tensor(uint8)" else (images.astype(np.float32) / 255 - 0.5) / 0.25
    return session.run(None, {entry.name: fed})[0].argmax(axis=1)


def test_a_file_loses_channels_without_training_and_its_drop_is_bounded(here: Path, theirs: Path, run: Commands) -> None:
    made = run.done("remove-channels", "--onnx", str(theirs), "--data", "digits", *NORMALISED, *ONE_SHOT)
    cut = read_artifact(Path(made["artifact"]), "graph")
    assert cut.path.parts[:3] == ("runs", "net", "remove-channels-onnx") and verify(cut.path).holds
    gains, drop = made["metrics"]["gains"], made["metrics"]["drop"]
    assert gains["macs"] <= 0.6 and cut.payload.stat().st_size < theirs.stat().st_size
    images, labels = (data := load_data("digits").validation).images, data.labels
    before, after = (answers(file, images) == labels for file in (theirs, cut.payload))
    recalls = [[right[labels == one].mean() for one in range(10)] for right in (before, after)]
    assert drop["value"] == pytest.approx(100 * (np.mean(recalls[0]) - np.mean(recalls[1]))) and drop["bound"] > drop["value"]
    assert after.mean() > 0.8 * before.mean(), "least squares makes up for most of it"
    assert made["metrics"]["repair"]["how"] == "least squares" and made["metrics"]["parity"]["agreement"] == 1

    # It goes on from there: fine-tuned with the file as teacher, cut again, int8, and side by side.
    tuned = run.done("remove-channels", "--from", made["from"]["path"], *ONE_SHOT[:4], "--steps", "1", "--epochs", "1")
    assert tuned["metrics"]["best_epoch"] == 1 and "drop" not in tuned["metrics"], "its epoch was chosen on those images"
    again = run.done("remove-channels", "--from", str(cut.path), *ONE_SHOT)
    assert again["metrics"]["gains"]["macs"] <= 0.6 and again["facts"]["macs"] < made["facts"]["macs"]
    assert run.done("quantize", "--from", str(cut.path), "--mode", "static", "--images", "64")["metrics"]["quantized"]["operators"]
    code, out, err = run("benchmark", str(cut.path), made["from"]["path"], "--quick", "--rounds", "2", "--samples", "5")
    assert code == 0 and "0.6x MACs" in out, err
    assert f"Balanced accuracy lost: {drop['value']:.2f} points, at most {drop['bound']:.2f} with 95%" in artifact_text(cut)


def test_images_without_labels_do(here: Path, theirs: Path, pictures: Path, run: Commands) -> None:
    """What the file answers stands for their labels, so that an accuracy is how often the two agree."""
    given = ("--onnx", str(theirs), "--calibrate", str(pictures), *NORMALISED)
    made = run.done("remove-channels", *given, *ONE_SHOT)
    cut = read_artifact(Path(made["artifact"]), "graph")
    about = cut.manifest.data
    assert about.source == (str(pictures), str(theirs)) and about.name == pictures.name
    by_class = np.bincount(answers(theirs, load_data("digits").train.images[:400]))  # a little different between processors
    tests = [round(0.2 * count) for count in by_class]
    held = [round(0.3 * (count - test)) for count, test in zip(by_class, tests, strict=True)]
    assert vars(about.images) == {"train": 400 - sum(tests) - sum(held), "validation": sum(held), "test": sum(tests)}
    assert 0.7 < made["metrics"]["validation"]["accuracy"] <= 1
    assert made["metrics"]["drop"]["value"] == pytest.approx(100 * (1 - made["metrics"]["validation"]["balanced_accuracy"]))

    # Later commands find the same images and the same answers; the same command finds what it made.
    assert run.done("quantize", "--from", str(cut.path), "--mode", "static", "--images", "64")["metrics"]["validation"]["accuracy"] > 0.7
    assert "unchanged" in run("remove-channels", *given, *ONE_SHOT)[2]
    assert run.done("quantize", *given, "--mode", "static", "--images", "64")["metrics"]["validation"]["accuracy"] > 0.9


def test_its_settings_are_those_of_a_network_of_ones_own(here: Path, theirs: Path, run: Commands, tmp_path: Path) -> None:
    """Not those of k49, whose fine-tuning bends characters; a recipe by name wins over them. A graph can be the teacher of a graph."""
    common = ("--round-to", "1", "--epochs", "0", "--importance", "l2")
    made = run.done("remove-channels", "--onnx", str(theirs), "--data", "digits", *NORMALISED, *common)
    assert made["config"]["max_macs"] == 0.5 and made["config"]["lr"] == 0.001
    (tmp_path / "mine.toml").write_text("[remove-channels]\nmax_macs = 0.7\n")
    ours = run.done(
        "remove-channels", "--onnx", str(theirs), "--data", "digits", *NORMALISED, *common, "--recipe", str(tmp_path / "mine.toml")
    )
    assert ours["config"]["max_macs"] == 0.7 and ours["metrics"]["gains"]["macs"] <= 0.7
    further = run.done("remove-channels", "--from", ours["artifact"], "--teacher", made["from"]["path"], "--max-macs", "0.4x", *common)
    assert further["metrics"]["gains"]["macs"] <= 0.4, "of the teacher's"


def test_its_groups_are_shown_by_the_names_of_its_nodes(here: Path, theirs: Path, run: Commands) -> None:
    found = run.done("remove-channels", "--groups", "--onnx", str(theirs), "--data", "digits", *NORMALISED)
    assert [(group["name"], group["width"]) for group in found["groups"]] == [("node_conv2d", 8), ("node_conv2d_1", 16)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "digits", "--calibrate", "pictures"), "calibrate (=pictures) names images without labels and --data others; leave one"),
        ((), "name them with --data, or with --calibrate such as have no labels"),
        (("--calibrate", "nowhere"), "nowhere) is not there; name a folder of images such as the network is to read"),
        (("--calibrate", "empty"), "empty) holds no images (.bmp"),
        (("--data", "digits", "--bypass", "relu"), "bypass (=relu) leaves out modules of a network, and this is a graph; leave it out"),
        (("--data", "digits", "--max-macs", "0.001x"), "max_macs (=0.001x) cannot be reached"),
    ],
)
def test_a_mistake_is_one_line(here: Path, theirs: Path, run: Commands, arguments: tuple[str, ...], told: str) -> None:
    (here / "empty").mkdir()
    code, out, err = run("remove-channels", "--onnx", str(theirs), *NORMALISED, *ONE_SHOT, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("compress: ")]
    assert code == 2 and out == "" and len(lines) == 1 and told in lines[0]
    assert not list(here.glob("runs/net/remove-channels-onnx/*"))


def test_images_without_labels_are_for_a_file(here: Path, pictures: Path, run: Commands) -> None:
    code, _, err = run("remove-channels", "--calibrate", str(pictures), "--model", "emnist", "--max-macs", "0.5x")
    assert code == 2 and f"calibrate (={pictures}) is of images for an ONNX file; name that with --onnx" in err


def test_a_file_that_answered_for_the_labels_and_is_gone_is_named(here: Path, theirs: Path, pictures: Path, run: Commands) -> None:
    (here / "net.onnx").write_bytes(theirs.read_bytes())
    made = run.done("quantize", "--onnx", "net.onnx", "--calibrate", str(pictures), *NORMALISED, "--mode", "int8-weights")
    (here / "net.onnx").unlink()
    code, _, err = run("quantize", "--from", made["from"]["path"], "--mode", "fp16-weights")
    assert code == 2 and "net.onnx), whose answers are the labels of" in err and "there is no such file" in err
