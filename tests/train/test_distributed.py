"""Several processes against one. ``test_torchrun`` has torchrun start them; here they are started with the variables that it sets.

Run as a script, this file is what is started: it trains, trains again but stops after the first epoch, and goes on from there.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.train import fit as fitting
from compress.train.distributed import Team, joined
from compress.train.errors import TrainError
from compress.train.fit import fit
from compress.train.settings import AugmentConfig, FitConfig


class Stop(Exception):
    """Stands for Ctrl-C."""


def stop(row: dict[str, float]) -> None:
    raise Stop


def train(folder: Path, seed: int, rank: int, name: str, stopping: bool = False) -> None:
    """In float64, so that what differs is not a sum of float32 in another order but a mistake. ``seed``: of the initial weights."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 192)
    images = random.integers(0, 180, (192, 1, 8, 8))
    images[:, :, :4] += (labels * 30)[:, None, None, None]
    arrays = images.astype(np.uint8), labels
    torch.manual_seed(seed)
    features = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.Dropout2d(0.1),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
    ]
    network = nn.Sequential(*features, nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    augment = AugmentConfig(rotate=10, elastic=0.5, mixup=0.3, cutmix=1.0, hflip=0.5, resized_crop=0.5, trivial_augment=True)
    config = FitConfig(epochs=2, batch=6, lr=0.01, ema=0.9, imbalance="logit-adjusted", augment=augment)
    part = arrays[0][:51], arrays[1][:51]
    fitted = fit(
        network, arrays, part, config, classes=3, prepare=lambda x: x.double() / 255, device=torch.device("cpu"),
        state_file=folder / f"{name}.{rank}.state", key="k", after_epoch=stop if stopping else None,
    )  # fmt: skip
    assert {type(module) for module in network} >= {nn.BatchNorm2d, nn.Dropout}, "the shared layers must not outlive the training"
    if rank == 0:
        torch.save([network.state_dict(), fitted.history], folder / name)


def test_two_processes_end_with_the_weights_of_one_also_when_resumed(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = []
    for rank in ("0", "1"):
        environment = os.environ | common | {"RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, __file__, str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    train(tmp_path, 1, 0, "one")
    told = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    (one, history), (two, other), (resumed, _) = (torch.load(tmp_path / name) for name in ("one", "two", "resumed"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)
        assert torch.equal(resumed[name], two[name])
    for here, there in zip(history, other, strict=True):
        assert abs(here["train_loss"] - there["train_loss"]) < 1e-5
        assert here["balanced_accuracy"] == there["balanced_accuracy"]
    assert (tmp_path / "two.0.state").exists() and not (tmp_path / "two.1.state").exists()  # only the first process writes


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "this_team", lambda: Team(0, 4))
    with pytest.raises(TrainError, match=r"batch \(=6\) must be a multiple of the 4 processes, which share it"):
        train(tmp_path, 1, 0, "x")


def test_alone_nothing_is_shared() -> None:
    team = Team()
    assert team.rows(6) == slice(0, 6)
    assert team.from_first("x") == "x"
    assert Team(1, 3).rows(6) == slice(2, 4)
    with joined(cuda=False) as alone:
        assert alone == team


if __name__ == "__main__":
    with joined(cuda=False) as team:
        here, seed = Path(sys.argv[1]), 1 + team.rank  # the first process's initial weights count
        train(here, seed, team.rank, "two")
        try:
            train(here, seed, team.rank, "resumed", stopping=True)
        except Stop:
            train(here, seed, team.rank, "resumed")
