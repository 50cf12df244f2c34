"""Networks of other tasks as a user scores them: the examples in docs/ as they are written there, and others, to the end."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from stand_ins import Commands
from torch import nn

from compress.stages.verify import verify

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
DATA = """
import numpy as np

def load(count=200):
    random = np.random.default_rng(0)
    images = random.random((count, 1, 12, 12)).astype(np.float32)
    corners = random.integers(0, 8, (count, 2))
    for image, (left, top) in zip(images, corners):
        image[0, top:top + 4, left:left + 4] += 2
    return images, (corners / 8).astype(np.float32)

def mae(outputs, targets):
    return -abs(outputs - targets).mean()

def same_neighbour(outputs, targets):
    '''Of embeddings: how often the nearest other image has a corner nearby; of a set, and of no image alone.'''
    distances = ((outputs[:, None] - outputs[None]) ** 2).sum(axis=2) + 1e9 * np.eye(len(outputs))
    return float((abs(targets - targets[distances.argmin(axis=1)]).max(axis=1) < 0.3).mean())
"""
NET = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(576, 2)
    )
"""
MAE = ("--data", "own.py:load", "--score", "own.py:mae")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(DATA, encoding="utf-8")
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def regression() -> nn.Module:
    """A network that finds the corner, and with it its weights, trained a little."""
    torch.manual_seed(0)
    spaces: list[dict[str, object]] = [{}, {}]
    exec(DATA, spaces[0])
    exec(NET, spaces[1])
    images, corners = map(torch.from_numpy, spaces[0]["load"]())  # type: ignore[operator]
    network: nn.Module = spaces[1]["make"]()  # type: ignore[operator]
    optimiser = torch.optim.Adam(network.parameters(), 0.005)
    for _ in range(100):
        optimiser.zero_grad()
        nn.functional.mse_loss(network(images), corners).backward()
        optimiser.step()
    return network.eval()


def export(network: nn.Module, path: Path) -> None:
    """As torch writes it, of a free batch."""
    shapes = ({0: torch.export.Dim("n")},)
    torch.onnx.export(network, (torch.rand(2, 1, 12, 12),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)


@pytest.fixture(scope="module")
def fixed(regression: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for one image at a time."""
    path = tmp_path_factory.mktemp("fixed") / "net.onnx"
    torch.onnx.export(regression, (torch.rand(1, 1, 12, 12),), path, dynamo=True, verbose=False)
    return path


@pytest.mark.parametrize("name", ["segmentation", "detection"])
def test_an_example_runs_as_it_is_written(here: Path, run: Commands, name: str) -> None:
    shutil.copyfile(EXAMPLES / f"{name}.py", here / f"{name}.py")
    runpy.run_path(f"{name}.py", run_name="__main__")
    lines = re.findall(r"^    compress (.*)$", (here / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == {"segmentation": 4, "detection": 3}[name]
    for line in lines:
        more = ("--rounds", "2", "--samples", "5") if line.startswith("benchmark") else ()
        code, out, err = run(*line.split(), *more)
        assert code == 0, err
        assert {"segmentation": "iou", "detection": "found"}[name] in out and "points" not in out and "balanced" not in out
    [made] = (here / "runs" / name / "quantize").iterdir()
    assert verify(made).holds


def test_a_regression_network_goes_from_its_weights_to_a_report(here: Path, run: Commands, regression: nn.Module) -> None:
    torch.save(regression.state_dict(), "w.pt")
    own = ("--model", "net.py:make", *MAE)
    pruned = run.done("prune", *own, "--weights", "w.pt", "--epochs", "0", "--sparsity", "0.5")
    score = pruned["metrics"]["score"]
    assert score["name"] == pruned["metrics"]["units"] == "mae" and -0.2 < score["value"] < 0 and score["images"] == 48
    assert "validation" not in pruned["metrics"]

    small = run.done("remove-channels", *own, "--epochs", "0", "--max-macs", "0.6x", "--round-to", "4")
    assert small["metrics"]["gains"]["macs"] <= 0.6 and small["metrics"]["drop"]["bound"] > small["metrics"]["drop"]["value"]
    quantized = run.done("quantize", *own, "--from", small["artifact"], "--mode", "static", "--images", "64")
    assert abs(quantized["metrics"]["score_lost"]) < 0.1 and "points_lost" not in quantized["metrics"]

    measured = run.done("benchmark", *own, "--quick", "--rounds", "2", "--samples", "5")
    assert measured["scoring"]["name"] == "mae" and measured["scoring"]["by_image"] is True
    assert {one["runtime"] for one in measured["variants"] if one["score"] is not None} == {"onnxruntime", "torch"}
    code, out, err = run("report", "--model", "net.py:make", "--max-drop", "0.5", "--ship", "board")
    assert code == 0, err
    texts = [out, *((here / "runs/net-make/report" / f"report.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))]
    for text in texts:
        read = re.sub(r"<script.*?</script>|<style.*?</style>| points=\"[^\"]*\"", "", text, flags=re.DOTALL)  # what people read of it
        assert "mae" in read and "balanced accuracy" not in read.lower() and "points" not in read
    assert not (here / "board/labels.txt").exists()
    assert run("verify", "board/model.onnx")[0] == 0


def test_a_second_run_finds_what_is_there_and_another_score_does_not(here: Path, run: Commands, regression: nn.Module) -> None:
    torch.save(regression.state_dict(), "w.pt")
    command = ("prune", "--model", "net.py:make", *MAE, "--weights", "w.pt", "--epochs", "0", "--sparsity", "0.5")
    first = run.done(*command)["artifact"]
    assert "unchanged" in run(*command)[2] and run.done(*command)["artifact"] == first
    (here / "own.py").write_text(DATA.replace("return -abs", "return -2 * abs"), encoding="utf-8")
    again = run.done(*command)
    assert again["artifact"] != first
    code, _, err = run("prune", "--model", "net.py:make", "--from", first, "--epochs", "0")
    assert code == 2 and "is scored by mae, a function of your own; name it and what it compares with" in err


def test_embeddings_have_a_score_of_the_set(here: Path, run: Commands, regression: nn.Module) -> None:
    export(regression[:6].eval(), here / "embed.onnx")
    own = ("--data", "own.py:load", "--score", "own.py:same_neighbour")
    made = run.done("quantize", "--onnx", "embed.onnx", *own, "--mode", "static", "--images", "64")
    measured = run.done("benchmark", "embed.onnx", made["artifact"] + "/model.onnx", *own, "--quick", "--rounds", "2", "--samples", "5")
    assert measured["scoring"]["by_image"] is False
    assert all(0 < one["score"] <= 1 and one["intervals"]["same_neighbour"]["low"] < one["score"] for one in measured["variants"])


def test_two_results_of_other_scores_are_not_compared(
    here: Path, run: Commands, regression: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # where latencies are wide, a narrower table cuts its heading
    export(regression, here / "net.onnx")
    how = ("--quick", "--rounds", "2", "--samples", "5")
    for name, score in (("a", "mae"), ("b", "mae"), ("c", "same_neighbour")):
        run.done("benchmark", "net.onnx", "--data", "own.py:load", "--score", f"own.py:{score}", *how, "--out", name)
    code, out, err = run("compare", "a/benchmark.json", "b/benchmark.json", "--fail-if-less-accurate", "0.01")
    assert code == 0 and "mae lost" in " ".join(out.split()), err
    code, _, err = run("compare", "a/benchmark.json", "c/benchmark.json")
    assert code == 2 and "scores of the two results differ: score was mae, is same_neighbour" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "own.py:load"), "name what compares outputs with them: --score path/score.py:function"),
        (("--score", "own.py:mae"), "name what gives them: --data path/data.py:load"),
        (("--data", "digits", "--score", "own.py:mae"), "and data (=digits) has classes"),
        ((*MAE, "--epochs", "2"), "epochs (=2): training is for classifiers, and mae of your own scores this network; take --epochs 0"),
        ((*MAE, "--explain"), "explain shows what int8 costs the logits of a classifier"),
        ((*MAE, "--fold-constants"), "fold_constants (=True) is proved by the answers of a classifier"),
        ((*MAE, "--mean", "0.5"), "mean (=(0.5,)) normalises pixels, and data (=own.py:load) gives floats"),
        (("--data", "own.py:gone", "--score", "own.py:mae"), "has no function gone"),
        (("--data", "own.py:load", "--score", "own.py:load"), "cannot be called as it is here"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(here: Path, run: Commands, fixed: Path, arguments: tuple[str, ...], told: str) -> None:
    code, out, err = run("quantize", "--onnx", str(fixed), *arguments)
    last = err.strip().splitlines()[-1]
    assert code == 2 and not out and last.startswith("compress: ") and told in last
    assert not list(here.rglob("*.partial")) and not list(here.glob("runs/net/quantize/*"))


def test_training_stays_for_classifiers(here: Path, run: Commands) -> None:
    code, _, err = run("prune", "--model", "net.py:make", *MAE, "--weights", "w.pt", "--epochs", "1")
    assert code == 2 and "w.pt" in err
    code, _, err = run("train", "--model", "net.py:make", "--data", "own.py:load")
    assert code == 2 and "--score" in err


def test_numbers_of_the_file_stay_what_they_were(here: Path, run: Commands, fixed: Path) -> None:
    """uint8 pixels: their normalisation comes into the graph, and outputs are those that the file gave for normalised images."""
    (here / "own.py").write_text(DATA + "\ndef pixels():\n    images, t = load()\n    return (images * 80).astype(np.uint8), t\n")
    own = ("--data", "own.py:pixels", "--score", "own.py:mae", "--mean", "0.5", "--std", "0.25")
    made = run.done("quantize", "--onnx", str(fixed), *own, "--mode", "float32")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 1, 12, 12)).astype(np.uint8)
    theirs, ours = (onnxruntime.InferenceSession(path) for path in (fixed, made["artifact"] + "/model.onnx"))
    normalised = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)
    expected = theirs.run(None, {theirs.get_inputs()[0].name: normalised})[0]
    np.testing.assert_allclose(ours.run(None, {"image": pixels})[0], expected, atol=1e-5)
