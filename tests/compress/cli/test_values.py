"""Data that are no bytes, from a set to a file, by the command line: spectrograms of tones, which a small network can learn to tell."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.cli import main as cli

NET = """
from torch import nn

def make(classes):
    layers = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d((10, 2)), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(160, classes))
"""
NAMES = ["--model", "net.py:make"]
TRAIN = ["train", *NAMES, "--data", "tones", "--image-shape", "1x20x16"]


def spectrograms(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Power in decibels below the loudest, float32 (N, 20, 16), of three tones in noise, and which tone each is."""
    random = np.random.default_rng(seed)
    labels, time = np.arange(count) % 3, np.arange(2048) / 8000
    waves = [np.sin(2 * np.pi * (500 + 800 * tone) * time + random.uniform(0, 6)) + random.normal(0, 0.3, time.size) for tone in labels]
    frames = np.stack([np.lib.stride_tricks.sliding_window_view(wave, 64)[::128][:16] for wave in waves]) * np.hanning(64)
    power = np.abs(np.fft.rfft(frames)[..., :20].transpose(0, 2, 1)) ** 2
    return (10 * np.log10(power / power.max(axis=(1, 2), keepdims=True) + 1e-12)).astype(np.float32), labels


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    Path("tones").mkdir()
    for part, count in (("train", 150), ("test", 60)):
        images, labels = spectrograms(count, count)
        np.savez(f"tones/x-{part}-imgs.npz", images)
        np.savez(f"tones/x-{part}-labels.npz", labels)
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["compress", *arguments])
    code = cli.main()
    return (code, *capfd.readouterr())


def test_spectrograms_are_learnt_and_their_file_says_what_to_feed_it(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `predict` says of an array is what the file says of pixels made by hand, as its metadata say."""
    code, _, err = run(capfd, monkeypatch, *TRAIN, "--epochs", "8", "--lr", "0.01", "--range", "-40,0")
    assert code == 0
    images = np.concatenate([np.load(f"tones/x-{part}-imgs.npz")["arr_0"] for part in ("train", "test")])
    beyond = int((images < -40 - 20 / 255).sum())
    assert beyond and f"210 images in 3 classes, values of -40 to 0 in 256 steps, {beyond:,} beyond them clipped" in err
    about = json.loads(next(here.glob("runs/*/train/*/artifact.json")).read_text())
    assert about["input"]["range"] == [-40.0, 0.0] and about["data"]["clipped"] == beyond
    assert about["metrics"]["validation"]["balanced_accuracy"] > 0.9

    assert run(capfd, monkeypatch, "quantize", *NAMES, "--mode", "static", "--images", "64")[0] == 0
    [file] = here.glob("runs/*/quantize/*/model.onnx")
    code, out, _ = run(capfd, monkeypatch, "verify", str(file.parent), "--json")
    assert code == 0
    told = {one.key: json.loads(one.value) for one in onnx.load(file).metadata_props if one.key in ("compress.image", "compress.input")}
    assert told["compress.image"] == {"dtype": "uint8", "shape": ["batch", 1, 20, 16], "range": [0, 255], "values": [-40.0, 0.0]}
    assert told["compress.input"]["range"] == [-40.0, 0.0]

    fresh, truths = spectrograms(30, 7)
    np.savez("fresh.npz", fresh)
    low, high = told["compress.image"]["values"]
    pixels = np.clip(np.rint(255 * (fresh.astype(np.float64) - low) / (high - low)), 0, 255).astype(np.uint8)[:, None]
    session = onnxruntime.InferenceSession(file)
    answers = session.run(["probabilities"], {session.get_inputs()[0].name: pixels})[0]
    assert (answers.argmax(axis=1) == truths).mean() > 0.9
    for model in (["--onnx", str(file)], ["--from", str(file.parent)]):
        code, out, _ = run(capfd, monkeypatch, "predict", *model, "fresh.npz", "--json")
        found = json.loads(out)["predictions"]
        assert code == 0 and [one["label"] for one in found] == [str(label) for label in answers.argmax(axis=1)]
        assert [one["probability"] for one in found] == pytest.approx(answers.max(axis=1).tolist(), abs=1e-4)
        assert found[3]["name"] == "fresh.npz, 3"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "x-train-imgs.npz: images are float32, of -"),
        (["--range", "0,-40"], "range (=0,-40) must be LOW,HIGH, two finite numbers of which the first is smaller, such as -80,0\n"),
        (["--range", "0"], "range (=0) must be two numbers, such as -80,0\n"),
        (["--range", "0,1,2"], "range (=0,1,2) must be two numbers, such as -80,0\n"),
        (["--range", "nan,1"], "range (=nan,1) must be LOW,HIGH"),
        (["--data", "digits", "--range", "0,1"], "digits: images are uint8, which are taken as they are; leave range (=0,1) out\n"),
        (["--range", "0,1", "--image-shape", "2x20x16"], "images (=(1, 20, 16)) must have the network's input shape (2, 20, 16)"),
        (["--range", "0,1", "--trivial-augment", "--image-shape", "2x20x16", "--data", "two"], "trivial_augment (=True) changes colours"),
        (["--range", "0,1", "--hflip", "1.5"], "hflip (=1.5) must lie in [0, 1]; 0.5 suits photographs"),
    ],
)  # fmt: skip
def test_wrong_values_are_one_line_and_leave_nothing(
    options: list[str], line: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("two").mkdir()
    for part in ("train", "test"):
        images = np.load(f"tones/x-{part}-imgs.npz")["arr_0"]
        np.savez(f"two/x-{part}-imgs.npz", np.stack([images, images], axis=-1))
        np.savez(f"two/x-{part}-labels.npz", np.load(f"tones/x-{part}-labels.npz")["arr_0"])
    code, _, err = run(capfd, monkeypatch, *TRAIN, *options)
    assert code == 2 and err.count("\n") == 1 and line in err
    assert not Path("runs").exists()


def test_values_that_are_no_numbers_are_refused_by_name(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.load("tones/x-test-imgs.npz")["arr_0"]
    images[5, 2, 3] = np.nan
    np.savez("tones/x-test-imgs.npz", images)
    code, _, err = run(capfd, monkeypatch, *TRAIN, "--range", "-40,0")
    assert (code, err) == (
        2,
        "compress: tones/x-test-imgs.npz holds 1 values that are no finite numbers, such as nan; mend them or leave them out\n",
    )
