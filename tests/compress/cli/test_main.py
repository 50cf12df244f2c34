"""The command line as a user meets it: one line and exit code 2 for mistakes, JSON for scripts, an instant --help."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import Running
from real_data import few_digits

from compress.cli import main as cli
from compress.train import pictures

TINY = ["--model", "emnist", "--option", "channels=[4,8]", "--option", "hidden=16"]


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["compress", *arguments])
    code = cli.main()
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = (
    "train",
    "tune",
    "sensitivity",
    "prune",
    "remove-channels",
    "export-onnx",
    "export-litert",
    "export-c",
    "quantize",
    "benchmark",
    "report",
    "run",
    "predict",
    "compare",
    "verify",
    "explain",
    "throughput",
    "data",
    "recipe",
    "serve",
    "page",
    "board",
    "completion",
)


def test_every_command_is_there_and_has_help_with_an_example(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(cli.COMMANDS) == set(COMMANDS)
    for command in COMMANDS:
        code, out, _ = run(capfd, monkeypatch, command, "--help")
        assert code == 0
        assert f"compress {command}" in out.split("Example:")[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--data", "digitz"], "data (=digitz) is neither a known name nor a folder, did you mean digits?"),
        (["train", "--model", "k50"], "model (=k50) must be one of k49, emnist, torchvision:NAME, timm:NAME, or path/net.py:factory"),
        (["train", "--model", "net.py:make"], "there is no file net.py"),
        (["train", "--epochs", "0"], "epochs (=0) must be at least 1"),
        (["train", "--epochs", "many"], "'many' is not a valid integer; see compress train --help"),
        (["quantize", "net.onnx"], "extra argument (net.onnx); name the file with --onnx net.onnx, or see compress quantize --help"),
        (["train", "net.onnx"], "extra argument (net.onnx); see compress train --help"),
        (["train", "--option", "widths"], "option (=widths) must be NAME=VALUE"),
        (["train", "--option", "colour=3"], "colour"),
        (["train", "--option", "hidden=2020-01-01"], "option: hidden (=2020-01-01) is a date; write it as a text in quotes"),
        (["train", "--data", "d" * 5000], " ... "),
        (["train", "--model", "m" * 5000], " ... "),
        (["train", "--data", "\x1b[31mred"], "data (=?[31mred) is neither a known name nor a folder"),
        (["train", "--image-shape", "28"], "image-shape (=28) must be CxHxW"),
        (["train", "--image-shape", "axb"], "image-shape (=axb) must be CxHxW"),
        (["train", "--mean", "x"], "mean (=x) must be one number or one per channel"),
        (["train", "--std", "0"], "std (=(0.0,)) must be positive"),
        (["train", "--device", "tpu"], "device (=tpu) must be auto, cpu or cuda"),
        (["train", "--train-images", "a.npz"], "--train-labels and --test-images and --test-labels missing"),
        (["train", "--recipe", "none.toml"], "recipe (=none.toml): there is no such file, and no recipe of the toolkit"),
        (["train", "--seed", "-1"], "seed (=-1) must lie in [0, 2147483648)"),
        (["prune", "--sparsity", "1.2"], "sparsity (=1.2) must lie in (0, 1); 0.8 zeroes 80% of the weights"),
        (["prune", "--sparsity", "nan"], "sparsity (=nan) must lie in (0, 1)"),
        (["prune"], "has no network yet (looked in train, import); run `compress train` first"),
        (["quantize", "--mode", "int4"], "mode (=int4) must be auto, static, dynamic"),
        (["quantize", "--from", "nothing"], "nothing is not an artifact"),
        (["export-onnx", "--from", "a", "--weights", "b.pt"], "exclude each other"),
        (["export-onnx", "--weights", "b.pt", "--data", "digits"], "weights (=b.pt): there is no such file"),
        (["benchmark", "none.onnx"], "none.onnx"),
        (
            ["benchmark", "--runtime", "tflite", "none.onnx"],
            "runtime (=tflite) is unknown; choose of onnxruntime, openvino, c, litert, torch",
        ),
        (["benchmark", "--samples", "0"], "samples (=0) must be at least 1"),
        (["report", "none.json"], "none.json"),
        (["report"], "run `compress benchmark` first"),
        (["predict"], "name image files, or take --random 16"),
        (["predict", "--random", "0"], "random (=0) must lie in 1 to 400"),
        (["predict", "--onnx", "none.onnx", "letter.png"], "onnx (=none.onnx): there is no such file"),
        (["compare", "none.json", "new.json"], "file (=none.json): there is no such file"),
        (["compare", "a.json", "b.json", "--fail-if-slower", "much"], "fail-if-slower (=much) must be a percentage, such as 5%"),
        (["verify", "none"], "none is no folder; name the one that holds model.onnx and vectors.npz"),
        (["compres"], "No such command 'compres'"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_leaves_nothing(
    arguments: list[str], line: str, here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = run(capfd, monkeypatch, *arguments)
    assert code == 2
    assert line in err
    assert err.startswith("compress: ")
    assert len(err.splitlines()) == 1
    assert not out
    assert not [path for path in here.rglob("*") if path.is_file()]


def test_step_by_step_from_training_to_a_prediction(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def done(*arguments: str) -> dict[str, object]:
        code, out, err = run(capfd, monkeypatch, *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    trained = done("train", *TINY, "--data", "digits", "--epochs", "2")
    assert Path(str(trained["artifact"])).parent == Path("runs/emnist/train")
    assert trained["metrics"]["best_epoch"] in (1, 2)  # type: ignore[index]
    done("prune", "--model", "emnist", "--epochs", "1")
    # Quantizing straight after pruning exports first, and takes the newest network.
    quantized = done("quantize", "--model", "emnist", "--images", "64", "--out", "board")
    assert [step["stage"] for step in json.loads(Path("board/artifact.json").read_text())["lineage"]] == ["train", "prune", "export"]
    assert quantized["kind"] == "graph"
    assert done("export-onnx", "--model", "emnist", "--from", str(trained["artifact"]))["metrics"]["parity"]["agreement"] == 1.0  # type: ignore[index]
    read = done("predict", "--onnx", "board/model.onnx", "--data", "digits", "--random", "6", "--seed", "1")
    assert len(read["predictions"]) == 6  # type: ignore[arg-type]
    assert Path("predictions.png").read_bytes().startswith(b"\x89PNG")
    same = done("predict", "--from", "board", "--random", "6", "--seed", "1")
    assert same["predictions"] == read["predictions"]
    measured = done("benchmark", "board/model.onnx", "--data", "digits", "--samples", "5", "--rounds", "1", "--device", "cpu")
    assert measured["kind"] == "benchmark"
    code, out, _ = run(capfd, monkeypatch, "report", str(Path(str(measured["artifact"])) / "benchmark.json"), "--out", "report")
    assert code == 0
    assert "report.html" in out
    assert Path("report/report.html").is_file()


def test_predict_reads_image_files_with_and_without_inverting(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from PIL import Image

    from compress.train.sources import load_data

    assert run(capfd, monkeypatch, "train", *TINY, "--data", "digits", "--epochs", "6", "--lr", "0.005")[0] == 0
    images = load_data("digits").test.images[:4, 0]
    for index, image in enumerate(images):
        Image.fromarray(image).save(f"light{index}.png")
        Image.fromarray(np.uint8(255) - image).save(f"dark{index}.png")
    light = run(capfd, monkeypatch, "predict", "--model", "emnist", "--json", *[f"light{i}.png" for i in range(4)])
    dark = run(capfd, monkeypatch, "predict", "--model", "emnist", "--json", "--invert", *[f"dark{i}.png" for i in range(4)])
    labels = [[one["label"] for one in json.loads(out)["predictions"]] for _, out, _ in (light, dark)]
    assert labels[0] == labels[1]
    code, _, err = run(capfd, monkeypatch, "predict", "--model", "emnist", "none.png")
    assert (code, err) == (2, "compress: none.png does not exist; check the path\n")


def test_ctrl_c_stops_with_130_and_the_same_command_ends_with_the_weights_of_an_uninterrupted_run(
    here: Path, start: Callable[..., Running], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(here / "few")
    command = ["train", *TINY, "--data", "few", "--epochs", "15"]
    assert run(capfd, monkeypatch, *command, "--runs", "whole")[0] == 0
    process = start(*command)
    deadline = time.monotonic() + 60
    while not list(here.glob("runs/emnist/train/.*.state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert "the same command goes on" in process.err
    assert "Traceback" not in process.err
    assert not list(here.glob("runs/emnist/train/*/artifact.json"))
    state = next(here.glob("runs/emnist/train/.*.state.safetensors"))
    code, _, err = run(capfd, monkeypatch, *command)
    assert code == 0 and f"train: goes on from {state.relative_to(here)}, epoch " in err and "; --fresh starts anew" in err
    weights = [next(here.glob(f"{runs}/emnist/train/*/weights.safetensors")).read_bytes() for runs in ("whole", "runs")]
    assert weights[0] == weights[1]


# Commands as lines, with nothing but spaces between their words.
HEAVY = """
import sys
from compress.cli.main import main

for line in sys.stdin.read().splitlines():
    sys.argv = ["compress", *line.split()]
    assert main() == 0, line
    heavy = {"torch", "torchvision", "onnx", "onnx_ir", "onnxruntime", "sklearn", "scipy", "matplotlib", "PIL"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""


def lightly(*commands: list[str]) -> str:
    """What they say on stderr, in one process that must end without a large library."""
    lines = "\n".join(" ".join(command) for command in commands)
    done = subprocess.run([sys.executable, "-c", HEAVY], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_what_is_done_already_is_found_without_loading_torch_or_reading_an_image(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every stage that a run has, one after the other, each found by its own command."""
    few_digits(here / "few")
    network = ["--model", "emnist", "--runs", "runs"]
    together = [  # what finds another network once the next ones are made
        [
            ["train", *network, *TINY[2:], "--data", "few", "--epochs", "1"],
            ["sensitivity", *network, "--granularity", "weight", "--images", "32"],
        ],
        [["prune", *network, "--epochs", "0"]],
        [
            ["remove-channels", *network, "--max-macs", "0.7", "--round-to", "2", "--steps", "1", "--epochs", "0"],
            ["export-onnx", *network],
            ["quantize", *network, "--mode", "static", "--images", "32"],
            ["train", *network, *TINY[2:], "--data", "few", "--epochs", "1", "--folds", "2"],
        ],
    ]
    for commands in together:
        for command in commands:
            assert run(capfd, monkeypatch, *command)[0] == 0
        assert lightly(*commands).count("unchanged") == len(commands)


def test_what_is_done_for_a_network_of_a_package_is_found_without_loading_it(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even though its mean, std and crop are the package's; where the note of them is damaged, the package is asked again."""
    for name, value in (("dark", 40), ("light", 200)):
        (here / "photos" / name).mkdir(parents=True)
        for index in range(20):
            Image.new("RGB", (32, 32), (value + index, value, value)).save(here / "photos" / name / f"{index}.png")
    command = ["train", "--model", "torchvision:mobilenet_v3_small", "--image-shape", "3x32x32", "--data", "photos", "--epochs", "1"]
    assert run(capfd, monkeypatch, *command)[0] == 0
    assert "unchanged" in lightly(command)
    [made] = here.glob("runs/*/train/*/artifact.json")
    assert json.loads(made.read_text())["input"]["mean"] == [0.485, 0.456, 0.406]
    [note] = [file for file in here.glob("runs/.data/*.json") if "mean" in file.read_text()]
    note.write_text('{"mean": "red"}')
    code, _, err = run(capfd, monkeypatch, *command)
    assert code == 0 and "unchanged" in err

    # Its trained weights too: where they lie is asked once, and again where they have gone from there.
    import torch
    from torchvision import models

    where = Path(models.MobileNet_V3_Small_Weights.DEFAULT.url).name
    monkeypatch.setenv("TORCH_HOME", str(here / "hub"))
    (here / "hub" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(models.mobilenet_v3_small().state_dict(), here / "hub" / "hub" / "checkpoints" / where)
    assert run(capfd, monkeypatch, *command, "--pretrained")[0] == 0
    assert lightly([*command, "--pretrained"]).count("unchanged") == 2
    (here / "hub").rename(here / "moved")
    monkeypatch.setenv("TORCH_HOME", str(here / "moved"))
    code, _, err = run(capfd, monkeypatch, *command, "--pretrained")
    assert code == 0 and err.count("unchanged") == 2


def test_large_images_are_trained_on_few_at_a_time_and_that_is_said(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "net.py").write_text(
        "from torch import nn\n\ndef make(classes):\n"
        "    return nn.Sequential(nn.AvgPool2d(32), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))\n"
    )
    for name, value in (("dark", 40), ("light", 200)):
        (here / "photos" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (224, 224), (value + index, value, value)).save(here / "photos" / name / f"{index}.png")
    command = ["train", "--model", "net.py:make", "--image-shape", "3x224x224", "--data", "photos", "--epochs", "1"]
    code, _, err = run(capfd, monkeypatch, *command)
    assert code == 0
    assert "train: 16 images of 224x224 a step, as large ones take memory, with a learning rate of 0.001 all the same" in err
    assert run(capfd, monkeypatch, *command, "--batch", "4")[0] == 0
    batches = {json.loads(file.read_text())["config"]["batch"] for file in here.glob("runs/net-make/train/*/artifact.json")}
    assert batches == {4, 16}


def test_an_interrupted_training_starts_anew_where_that_is_asked_for(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.train import fit as fitting

    command = ["train", *TINY, "--data", "digits", "--epochs", "3"]
    real, seen = fitting._epoch, []

    def stopping(state: object, *arguments: object) -> object:
        seen.append(len(state.history))  # type: ignore[attr-defined]
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(state, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "_epoch", stopping)
    assert run(capfd, monkeypatch, *command)[0] == 130
    code, _, err = run(capfd, monkeypatch, *command, "--fresh", "--resume")
    assert (code, err) == (2, "compress: fresh and resume exclude each other; leave one of them out\n")
    assert run(capfd, monkeypatch, *command, "--fresh")[0] == 0
    assert seen == [0, 1, 0, 1, 2]


def test_help_loads_neither_torch_nor_onnxruntime_nor_numpy() -> None:
    script = (
        "import sys; sys.argv = ['compress', '--help']\n"
        "from compress.cli.main import main\n"
        "assert main() == 0\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0, done.stderr
    assert "compress run --model k49 --data digits" in done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").write_text("")
    code, _, err = run(capfd, monkeypatch, "train", *TINY, "--data", "digits", "--epochs", "1", "--runs", "file")
    assert code == 2
    assert err.splitlines()[-1].startswith("compress: file")
    assert (here / "file").read_text() == ""


def test_decoded_pictures_are_listed_and_removed(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The set is decoded by one command, found by the next, and gone after ``data --prune``."""
    for index in range(12):
        Path("photos", "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 20 * index, np.uint8)).save(Path("photos", "ab"[index % 2], f"{index}.png"))
    monkeypatch.setattr(pictures, "MANY", 1)
    Path("photos", "a", "broken.png").write_bytes(b"no picture")
    code, _, err = run(capfd, monkeypatch, "train", *TINY, "--data", "photos", "--epochs", "1", "--skip-broken")
    assert code == 0 and "12 images in 2 classes; 1 that cannot be used left out" in err
    code, out, _ = run(capfd, monkeypatch, "data")
    assert code == 0 and re.search(r" 12 +1x28x28 +9\.41 kB\n", out)
    assert out.endswith("\n9.41 kB in data/.pictures; compress data --prune removes them\n")
    assert run(capfd, monkeypatch, "data", "--prune")[1].endswith("removed: 9.41 kB in data/.pictures\n")
    assert run(capfd, monkeypatch, "data")[1] == "0 bytes in data/.pictures; compress data --prune removes them\n"
    assert not list(Path("data").rglob("*.u8"))


def test_pictures_are_resized_as_in_training(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that was trained on the middle of wide pictures reads of a wide picture what it reads of its middle."""
    for index in range(60):
        Path("photos", "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (28, 60), np.uint8)
        Image.fromarray(pixels).save(Path("photos", "ab"[index % 2], f"{index}.png"))
    Image.fromarray(pixels[:, 16:44]).save("middle.png")
    how = ["--data", "photos", "--resize", "crop", "--interpolation", "bicubic"]
    assert run(capfd, monkeypatch, "train", *TINY, *how, "--epochs", "1")[0] == 0
    assert run(capfd, monkeypatch, "quantize", "--model", "emnist", "--mode", "static", "--images", "32", "--out", "board")[0] == 0
    said = {"way": "crop", "crop": 1.0, "interpolation": "bicubic"}
    assert json.loads(Path("board/artifact.json").read_text())["input"]["resize"] == said
    assert run(capfd, monkeypatch, "verify", "board")[0] == 0
    for model in (["--onnx", "board/model.onnx"], ["--from", "board"], ["--model", "emnist"]):
        code, out, _ = run(capfd, monkeypatch, "predict", *model, "photos/b/59.png", "middle.png", "--json")
        wide, middle = json.loads(out)["predictions"]
        assert code == 0 and wide["probability"] == middle["probability"]
    code, _, err = run(capfd, monkeypatch, "train", *TINY, "--data", "photos", "--crop", "0.8")
    assert code == 2 and "crop (=0.8) is for pictures that are cropped; add --resize crop" in err
