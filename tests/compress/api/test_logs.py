"""Figures reach a tracker: one by hand, and TensorBoard's and MLflow's, read back with their own readers where they are installed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.api import logs
from compress.api.logs import Logged, MLflow, TensorBoard, Tracker
from compress.errors import CompressError


class Noted(Tracker):
    where = "here"

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, Mapping[str, float]]] = []
        self.done: list[bool] = []

    def figures(self, name: str, step: int, values: Mapping[str, float]) -> None:
        self.seen.append((name, step, values))

    def close(self, done: bool) -> None:
        self.done.append(done)


def test_steps_of_a_name_only_grow_and_only_numbers_are_kept() -> None:
    noted, said = Noted(), []
    log = Logged(noted, said.append)
    for step in (1, 2, 1, 2):  # a second step of pruning counts its epochs from 1 again
        log.figures("prune", step, {"loss": step, "why": "text", "none": None, "yes": True, "nan": float("nan")})
    log.figures("benchmark/a", 0, {"size_bytes": 3})
    log.close(True)
    assert noted.seen == [("prune", at, {"loss": float(step)}) for at, step in ((1, 1), (2, 2), (3, 1), (4, 2))] + [
        ("benchmark/a", 0, {"size_bytes": 3.0})
    ]
    assert noted.done == [True] and said == ["log: here"]


def test_a_tracker_that_fails_is_told_once_and_work_goes_on() -> None:
    class Broken(Noted):
        def figures(self, name: str, step: int, values: Mapping[str, float]) -> None:
            raise ConnectionError("gone")

    said: list[str] = []
    log = Logged(Broken(), said.append)
    for step in range(3):
        log.figures("train", step, {"loss": 1.0})
    log.close(True)
    assert said == ["log: ConnectionError: gone; goes on without it"]


def test_training_is_logged_epoch_by_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted = Noted()
    monkeypatch.setattr(logs, "TensorBoard", lambda folder: noted)
    monkeypatch.setattr(logs, "installed", lambda package: True)
    network = compress.open("emnist", data="digits", runs=tmp_path)
    artifact = network.train(epochs=2, log="tensorboard")
    assert [(name, step) for name, step, _ in noted.seen] == [("train", 1), ("train", 2)]
    scores = [values["balanced_accuracy"] for *_, values in noted.seen]
    assert max(scores) == pytest.approx(artifact.manifest.metrics.validation.balanced_accuracy)  # type: ignore[union-attr]
    assert noted.done == [True]
    network.train(epochs=2, log="tensorboard")
    assert len(noted.seen) == 2, "nothing was trained anew"


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named_with_its_extra(kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "installed", lambda package: False)
    told = rf"log \(={kind}\) needs {kind}, which is not installed here; pip install 'compress-edge\[{kind}\]'"
    with pytest.raises(CompressError, match=told):
        compress.open("emnist", data="digits", runs=tmp_path).train(log=kind)


def test_another_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"log .*wandb.*tensorboard"):
        compress.open("emnist", data="digits", runs=tmp_path).train(log="wandb")  # type: ignore[arg-type]


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

    log = Logged(TensorBoard(tmp_path / "runs"), print)
    for step, loss in enumerate((0.5, 0.25), start=1):
        log.figures("train", step, {"loss": loss})
    log.close(True)
    found = EventAccumulator(str(tmp_path / "runs"), size_guidance={TENSORS: 0}).Reload()
    assert [(one.step, one.tensor_proto.float_val[0]) for one in found.Tensors("train/loss")] == [(1, 0.5), (2, 0.25)]


@pytest.mark.filterwarnings("ignore")  # those of its database
def test_mlflow_reads_what_was_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed (the extra mlflow)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    tracker = MLflow("benchmark", {"threads": 1})
    log = Logged(tracker, print)
    log.figures("benchmark/int8 (onnxruntime, cpu)", 0, {"p50": 0.25})
    log.close(True)
    run = tracker._client.search_runs([tracker._experiment])[0]
    assert run.data.metrics == {"benchmark/int8 _onnxruntime_ cpu_/p50": 0.25} and run.data.params == {"threads": "1"}
    assert run.info.status == "FINISHED" and "mlflow" in sys.modules


def test_a_server_of_mlflow_that_does_not_answer_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed (the extra mlflow)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CompressError, match=r"log \(=mlflow\) at http://127.0.0.1:9 failed: .*; set MLFLOW_TRACKING_URI"):
        MLflow("train", {})
