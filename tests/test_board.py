"""Alone on a board: the wheel in an environment of its own, installed as a user would, with what it asks for and nothing else.

The environment is built from the package registry; without one these tests are skipped, and say so. What runs there was trained, exported
and quantized here.
"""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from served import Service
from stand_ins import recorded

from compress.artifacts.artifact import InputSpec
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.project import Project
from compress.artifacts.recipe import Tutoring
from compress.cli.main import EXTRAS
from compress.cli.terminal import Terminal
from compress.litert.convert import convert
from compress.stages.export import ExportConfig, export
from compress.stages.quantize import QuantizeConfig, quantize
from compress.stages.train import train
from compress.train.settings import DistilConfig, FitConfig
from compress.train.sources import load_data

ROOT = Path(__file__).parents[1]
MOST_MEGABYTES, MOST_OF_OURS = 200, 3_000_000
QUICK = ("--data", "data", "--quick", "--rounds", "2", "--samples", "10", "--recipe", "quick.toml")


@dataclass(frozen=True)
class Board:
    """A Python of its own, and a folder with ``fp32/``, ``int8/`` (both as exported) and ``data/`` (the digits in four files)."""

    python: Path
    folder: Path

    def run(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of ``compress ARGUMENTS``."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.python.with_name("compress")), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=clean | environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr


def pip(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, as a build leaves things behind."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("models", "train", "benchmarks", "compress", "src"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--retries", "1", "--wheel-dir", str(folder), str(folder)]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode != 0:
        pytest.skip(f"no package registry to build the wheel with: {done.stderr.strip().splitlines()[-1]}")
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Board:
    folder = tmp_path_factory.mktemp("board")
    venv.create(folder / "environment", symlinks=True, with_pip=False)
    python = folder / "environment" / "bin" / "python"
    if (done := pip(python, "--retries", "1", str(wheel))).returncode != 0:
        pytest.skip(f"no package registry to build a board's environment from: {done.stderr.strip().splitlines()[-1]}")
    _fill(folder)
    return Board(python=python, folder=folder)


def added(board: Board, wheel: Path, extras: str, folder: Path) -> Path:
    """What these extras add to the board, in a folder of its own."""
    done = pip(board.python, "--no-compile", "--prefix", str(folder), f"{wheel}[{extras}]")
    assert done.returncode == 0, done.stderr
    [packages] = folder.glob("lib/python*/site-packages")
    assert not (packages / "numpy").exists() and not (packages / "torch").exists()
    return packages


@pytest.fixture(scope="module")
def graphs(board: Board, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return added(board, wheel, "onnx", tmp_path_factory.mktemp("graphs"))


def _fill(folder: Path) -> None:
    digits = load_data("digits")
    (folder / "data").mkdir()
    for name, part in {"train": digits.train, "test": digits.test}.items():
        np.savez(folder / "data" / f"digits-{name}-imgs.npz", part.images[:, 0])
        np.savez(folder / "data" / f"digits-{name}-labels.npz", part.labels)
    data = load_data(str(folder / "data"))
    source = recorded("data", data.fingerprint)
    model = ModelReference(reference="emnist", options={"channels": [4, 8], "hidden": 16})
    project = Project(folder=folder / "runs", model=model, spec=InputSpec(), data=data, source=source, console=Terminal())
    root = train(project, FitConfig(epochs=2, batch=64, lr=0.005))
    graph = export(project, root, ExportConfig(), folder / "fp32")
    quantize(
        project, graph, QuantizeConfig(mode="static", images=64), Tutoring(training=FitConfig(), distil=DistilConfig()), folder / "int8"
    )
    (folder / "quick.toml").write_text("[benchmark]\nlaunches = 2\ntime_limit = 0\n")


def test_there_is_nothing_else_on_the_board(board: Board) -> None:
    heavy = "torch", "torchvision", "onnx", "onnxscript", "sklearn", "scipy", "safetensors", "matplotlib", "PIL"
    code = f"import importlib.util; print([name for name in {heavy} if importlib.util.find_spec(name)])"
    assert subprocess.run([str(board.python), "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code, out, _ = board.run("--help")
    assert code == 0 and "compress run --model k49" in out


def test_the_base_is_small_and_lacks_nothing(board: Board, wheel: Path) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(board.python), "check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "No broken requirements found.\n"
    files = [path for path in (board.python.parents[1] / "lib").rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) < MOST_MEGABYTES * 1e6
    assert wheel.stat().st_size < MOST_OF_OURS


def test_every_message_names_an_extra_that_has_what_is_missing(wheel: Path) -> None:
    about = next(
        email.message_from_bytes(zip.read(name)) for zip in [zipfile.ZipFile(wheel)] for name in zip.namelist() if name.endswith("METADATA")
    )
    told = [line for line in about.get_all("Requires-Dist", []) if "extra ==" in line]
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "onnx_ir": "onnx-ir"}
    for extra, modules in EXTRAS.items():
        has = {re.split(r"[><=; ]", line)[0] for line in told if f'extra == "{extra}"' in line}
        assert {names.get(one, one) for one in modules} <= has
    assert about["Author"] == "the compress contributors"


def test_quantize_chooses_on_the_board_with_onnx_and_without_torch(board: Board, graphs: Path) -> None:
    shutil.copy(board.folder / "fp32" / "model.onnx", board.folder / "net.onnx")
    arguments = ("quantize", "--onnx", "net.onnx", "--data", "data", "--images", "64", "--json")
    code, out, err = board.run(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("compress: this needs onnx, which is not installed here; pip install 'compress-edge[onnx]', or")
    code, out, err = board.run(*arguments, PYTHONPATH=str(graphs))
    assert code == 0, err
    assert json.loads(out)["metrics"]["choice"]["tried"] > 1
    assert board.run("verify", json.loads(out)["artifact"])[0] == 0


def test_serve_and_tflite_files_need_their_extras_alone(board: Board, wheel: Path, tmp_path: Path) -> None:
    (board.folder / "net.tflite").write_bytes(convert(board.folder / "fp32" / "model.onnx").content)
    for arguments in (("serve", "fp32", "--port", "0"), ("verify", "net.tflite")):
        code, out, err = board.run(*arguments)
        assert (code, out) == (2, ""), err
        assert re.search(r"not installed.*pip install 'compress-edge\[(serve|litert)\]'", err.splitlines()[-1]), err
    packages = added(board, wheel, "serve,litert", tmp_path)
    code, out, err = board.run("verify", "net.tflite", PYTHONPATH=str(packages))
    assert (code, err) == (0, "") and out.endswith("net.tflite: proved\n"), out
    service = Service(board.folder / "fp32", python=board.python, path=packages)
    try:
        vectors = np.load(board.folder / "fp32" / "vectors.npz")
        status, told = service.read(np.moveaxis(vectors["images"], 1, -1), "fp32")
        assert status == 200
        assert [one["label"] for one in told["predictions"]] == [str(one) for one in vectors["logits"].argmax(1)], "digits are their labels"
    finally:
        service.stop()


def test_verify_proves_both_models_and_finds_a_cut_one(board: Board) -> None:
    for name in ("fp32", "int8"):
        code, out, err = board.run("verify", name)
        assert (code, err) == (0, ""), out + err
        assert out.endswith(f"{name}: proved\n")
    (board.folder / "bare").mkdir()
    for name in ("model.onnx", "vectors.npz"):
        shutil.copy(board.folder / "fp32" / name, board.folder / "bare")
    assert json.loads(board.run("verify", "bare", "--json")[1])["holds"] is True
    model = board.folder / "bare" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1000])
    code, out, err = board.run("verify", "bare")
    assert (code, err) == (1, "")
    assert out.startswith("FAIL  hash") and out.endswith("bare: NOT proved; copy or export the model again\n")
    code, out, err = board.run("verify", "data")
    assert (code, out, err) == (2, "", "compress: data has no model.onnx; name the folder of an exported or quantized model\n")


def test_a_file_alone_is_timed_and_proved_as_far_as_that_goes(board: Board) -> None:
    shutil.copy(board.folder / "fp32" / "model.onnx", board.folder / "alone.onnx")
    code, out, err = board.run("benchmark", "alone.onnx", "--quick", "--rounds", "1", "--samples", "5", "--recipe", "quick.toml")
    assert code == 0, err
    assert "random pixels, without labels: latency and size only" in out
    code, out, err = board.run("verify", "alone.onnx")
    assert (code, err) == (0, "") and out.endswith("alone.onnx: proved\n")


def test_predict_reads_test_images_and_says_that_there_is_no_picture(board: Board) -> None:
    code, out, err = board.run("predict", "--onnx", "int8/model.onnx", "--data", "data", "--random", "5", "--seed", "1")
    assert (code, err) == (0, "")
    assert len([line for line in out.splitlines() if line.startswith("test image")]) == 5
    assert out.endswith("\npicture: none, matplotlib is not installed here\n")
    fields = json.loads(board.run("predict", "--onnx", "int8/model.onnx", "--data", "data", "--random", "5", "--seed", "1", "--json")[1])
    assert fields["grid"] is None and len(fields["predictions"]) == 5


def test_predict_reads_image_files_with_pillow_and_names_it_without(board: Board, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(load_data("digits").test.images[0, 0]).save(board.folder / "digit.png")
    arguments = ("predict", "--onnx", "fp32/model.onnx", "digit.png")
    code, out, err = board.run(*arguments)
    told = "this needs pillow, which is not installed here; pip install 'compress-edge[pictures]', or do this on another machine"
    assert (code, out, err) == (2, "", f"compress: {told}\n")
    assert pip(board.python, "--target", str(tmp_path / "extra"), "pillow").returncode == 0
    code, out, err = board.run(*arguments, PYTHONPATH=str(tmp_path / "extra"))
    assert code == 0, err
    assert "digit.png" in out


def test_benchmark_and_compare(board: Board) -> None:
    results = []
    for seed in ("0", "1"):
        code, out, err = board.run("benchmark", "fp32/model.onnx", "int8", *QUICK, "--seed", seed, "--json")
        assert code == 0, err
        results.append(Path(json.loads(out)["artifact"]) / "benchmark.json")
    old, new = (json.loads((board.folder / path).read_text()) for path in results)
    assert [one["reason"] for one in new["measurements"] if one["device"] == "cpu"] == [None, None]
    assert all(one["scores"]["accuracy"] > 0.2 for one in new["measurements"] if one["reason"] is None)
    code, out, err = board.run("report", str(results[0]), "--out", "report")
    assert code == 0, err
    assert "only in report.html, as matplotlib is not installed here" in (board.folder / "report" / "report.html").read_text()
    code, out, err = board.run("compare", *map(str, results), "--fail-if-slower", "400%", "--fail-if-less-accurate", "0.5")
    assert (code, err) == (0, ""), out
    assert "Intervals are unpaired" in out
    for one in old["measurements"]:
        one["samples_ns"] = [[[sample // 100 for sample in turn] for turn in launch] for launch in one["samples_ns"]]
    (board.folder / "faster.json").write_text(json.dumps(old))
    code, out, err = board.run("compare", "faster.json", str(results[1]), "--fail-if-slower", "5%", "--json")
    assert (code, err) == (1, "")
    assert json.loads(out)["fails"] is True
    old["machine"]["cpu"] = "Another CPU"
    (board.folder / "other.json").write_text(json.dumps(old))
    code, out, err = board.run("compare", "other.json", str(results[1]), "--fail-if-slower", "5%")
    assert (code, out) == (2, "") and err.startswith("compress: machines of the two results differ: cpu was Another CPU, is ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (("train", "--model", "k49", "--data", "data"), "torch"),
        (("train", "--model", "k49", "--data", "digits"), "torch or scikit-learn"),
        (("benchmark", "fp32/model.onnx", "--data", "digits"), "scikit-learn"),
        (("export-onnx", "--from", "NETWORK", "--data", "data"), "torch"),
    ],
)
def test_what_needs_more_says_what_in_one_line(board: Board, arguments: tuple[str, ...], missing: str) -> None:
    network = next(board.folder.glob("runs/train/*/weights.safetensors")).parent
    code, out, err = board.run(*(str(network) if one == "NETWORK" else one for one in arguments))
    line = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert any(line.startswith(f"compress: this needs {name}, which is not installed here") for name in missing.split(" or ")), err
