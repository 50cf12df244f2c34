"""``compress train`` started by torchrun: the processes train one network, and the first of them writes it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.cli import main as cli

COMMAND = ["train", "--model", "emnist", "--option", "channels=[4,8]", "--option", "hidden=16", "--data", "digits", "--epochs", "1"]


def test_two_processes_write_one_artifact_like_that_of_one(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    outputs = {}
    for name, runner in (("one", []), ("two", torchrun)):
        command = [sys.executable, *runner, "-m", "compress", *COMMAND, "--runs", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600)
        assert done.returncode == 0, done.stderr
        outputs[name] = done
    assert outputs["two"].stdout.count("artifact ") == outputs["two"].stderr.count("a new network on digits") == 1
    one, two = (sorted((tmp_path / name).rglob("*.*")) for name in ("one", "two"))
    assert [path.relative_to(tmp_path / "one") for path in one] == [path.relative_to(tmp_path / "two") for path in two]
    weights = [load_file(path) for paths in (one, two) for path in paths if path.suffix == ".safetensors"]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["prune", "--model", "emnist"], "prune runs in one process; torchrun is for `compress train` only, start it without"),
        (
            ["train", "--model", "emnist", "--weights", "w.pt"],
            "weights (=w.pt) are taken in by one process; `compress export-onnx --weights w.pt` first, then train --from",
        ),
        ([*COMMAND, "--folds", "3"], "folds (=3) are trained by one process; start `compress train` without torchrun"),
    ],
)
def test_what_runs_in_one_process_says_so(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["compress", *arguments])
    assert cli.main() == 2
    assert capfd.readouterr().err == f"compress: {line}\n"
