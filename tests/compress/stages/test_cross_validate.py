"""Cross-validation: each figure again from the predictions or from a training by hand, and what a kill leaves."""

import csv
import json
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Running
from real_data import few_digits
from stand_ins import Silent, recorded

import compress
from compress.artifacts.artifact import Artifact, InputSpec, read_artifact
from compress.artifacts.context import Context
from compress.artifacts.load import Prepare, build_network
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.project import Project
from compress.artifacts.recipe import load_recipe
from compress.artifacts.records import plain
from compress.benchmarks.run import BenchmarkConfig
from compress.cli import main as cli
from compress.cli.tables import artifact_text, summary
from compress.errors import CompressError
from compress.stages import finetune
from compress.stages.benchmark import USUAL, measure
from compress.stages.cross_validate import cross_validate
from compress.train.data_set import About, DataSet, Part, Parts
from compress.train.errors import TrainError
from compress.train.fit import choose_device, fit
from compress.train.folds import stratified_folds
from compress.train.metrics import score
from compress.train.settings import FitConfig
from compress.train.sources import load_data

FIT = FitConfig(epochs=3, batch=32, lr=0.01, ema=0.9, seed=4)
MODEL = ModelReference(reference="emnist", options={"channels": [4, 8], "hidden": 16})
TINY = ["--model", "emnist", "--option", "channels=[4,8]", "--option", "hidden=16"]


def small_data() -> DataSet:
    """180 digits, in the parts of a data set that has a test part of its own: 100 train, 20 validation and 60 test images."""
    part = load_data("digits").train
    train, validation, test = (Part(part.images[a:b], part.labels[a:b]) for a, b in ((0, 100), (100, 120), (120, 180)))
    order = np.random.default_rng(0).permutation(120)
    names = tuple("abcdefghij")
    about = About(name="few", classes=names, shape=(1, 28, 28), counts=(100, 20, 60), fingerprint="f" * 64, has_test=True)
    parts = Parts(train=train, validation=validation, test=test, order=order)
    return DataSet(about, lambda: (about, parts))


def project_in(folder: Path, **options: object) -> Project:
    source = recorded("few")
    about = {"folder": folder / "emnist", "model": MODEL, "spec": InputSpec(), "data": small_data(), "source": source, "console": Silent()}
    return Project(**about | {"device": "cpu"} | options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Artifact]:
    project = project_in(tmp_path_factory.mktemp("runs"))
    return project, cross_validate(project, FIT, 3)


def result_of(artifact: Artifact) -> dict:
    return json.loads(artifact.payload.read_text(encoding="utf-8"))


def test_scores_are_those_of_the_predictions_and_every_image_has_one(made: tuple[Project, Artifact]) -> None:
    project, artifact = made
    result = result_of(artifact)
    with np.load(artifact.path / "predictions.npz") as stored:
        index, labels, predictions = stored["index"], stored["label"], stored["prediction"]
    data = project.data
    by_order = np.empty(120, np.int64)
    by_order[data.order] = np.concatenate([data.train.labels, data.validation.labels])
    np.testing.assert_array_equal(index, np.arange(120))
    np.testing.assert_array_equal(labels, by_order)
    masks = stratified_folds(labels, 3, FIT.seed)
    for mask, fold in zip(masks, result["folds"], strict=True):
        assert fold["scores"] == score(labels[mask], predictions[mask], 10)
        assert fold["images"] == mask.sum()
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision"):
        values = [fold["scores"][name] for fold in result["folds"]]
        assert result["mean"][name] == pytest.approx(statistics.mean(values))
        assert result["spread"][name] == pytest.approx(statistics.stdev(values))
    worst = result["confusions"][0]
    true, read = (data.classes.index(worst[key]) for key in ("true", "read"))
    assert worst["images"] == ((labels == true) & (predictions == read)).sum() <= worst["of"] == (labels == true).sum()
    assert plain(artifact.manifest.metrics.mean) == result["mean"]


def test_scores_are_those_of_the_last_epoch_and_the_best_one_is_beside_them(made: tuple[Project, Artifact]) -> None:
    _, artifact = made
    with (artifact.path / "history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["fold"], row["epoch"]) for row in rows] == [(str(f), str(e)) for f in (1, 2, 3) for e in (1, 2, 3)]
    result = result_of(artifact)
    for fold in result["folds"]:
        history = [float(row["balanced_accuracy"]) for row in rows if row["fold"] == str(fold["fold"])]
        assert fold["scores"]["balanced_accuracy"] == history[-1]
        assert fold["best_epoch"]["balanced_accuracy"] == max(history)
        assert fold["best_epoch"]["epoch"] == 1 + history.index(max(history))
    assert any(fold["best_epoch"]["epoch"] < 3 for fold in result["folds"]), "the case does not tell last from best"


def test_a_fold_is_a_training_on_the_other_folds(made: tuple[Project, Artifact]) -> None:
    project, artifact = made
    pool = project.data.pool()
    [_, mask, _] = stratified_folds(pool.labels, 3, FIT.seed)
    with torch.random.fork_rng():
        torch.manual_seed(FIT.seed)
        network = build_network(MODEL, 10, InputSpec())
    about = {"classes": 10, "prepare": Prepare(InputSpec()), "device": choose_device("cpu")}
    parts = [(pool.images[chosen], pool.labels[chosen]) for chosen in (~mask, mask)]
    history = fit(network, *parts, FIT, **about).history  # type: ignore[arg-type]
    assert result_of(artifact)["folds"][1]["scores"]["accuracy"] == history[-1]["accuracy"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_folds(made: tuple[Project, Artifact], tmp_path: Path) -> None:
    first = made[1]
    again = cross_validate(project_in(tmp_path), FIT, 3)
    for name in ("folds.json", "folds.csv", "predictions.npz"):
        assert (again.path / name).read_bytes() == (first.path / name).read_bytes()
    assert again.manifest.key == first.manifest.key
    assert again.manifest.config == json.loads(json.dumps(first.manifest.config)) and again.manifest.config["folds"] == 3
    project = project_in(tmp_path)
    assert cross_validate(project, FIT, 3) == read_artifact(again.path, "folds")
    assert project.console.said == [f"folds: unchanged, {again.path}"]  # type: ignore[attr-defined]
    assert not list(again.path.parent.glob(".*"))


def test_finished_folds_are_not_trained_again_and_one_that_was_cut_short_goes_on(
    made: tuple[Project, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def counted(network, training, validation, config, **how):
        def stop(row):
            if config.seed == FIT.seed and len(trained) == 2 and row["epoch"] == 2:
                raise KeyboardInterrupt

        trained.append(how["key"])
        return fit(network, training, validation, config, **how | {"after_epoch": stop})

    monkeypatch.setattr(finetune, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(project_in(tmp_path), FIT, 3)
    kept = next((tmp_path / "emnist" / "folds").glob(".*.folds"))
    assert sorted(path.name for path in kept.iterdir()) == ["1.json", "2.state.safetensors"]
    copied = tmp_path / "copy"
    shutil.copytree(tmp_path / "emnist", copied / "emnist")

    resumed = project_in(tmp_path)
    artifact = cross_validate(resumed, FIT, 3)
    assert resumed.console.said[1:3] == [  # type: ignore[attr-defined]
        "folds: fold 1 of 3 is done already",
        f"fold 2 of 3: goes on from {kept / '2.state.safetensors'}, epoch 2; --fresh starts anew",
    ]
    assert [key[-1] for key in trained] == ["0", "1", "1", "2"]
    (copied / kept.relative_to(tmp_path) / "1.json").write_text("{ damaged")
    other = cross_validate(project_in(copied), FIT, 3)
    assert [key[-1] for key in trained[4:]] == ["0", "1", "2"]
    for one in (artifact, other):
        assert (one.path / "folds.json").read_bytes() == (made[1].path / "folds.json").read_bytes()
        assert not list(one.path.parent.glob(".*"))


def test_a_fold_is_never_stopped_early_by_looking_at_it(tmp_path: Path) -> None:
    patient = FitConfig(epochs=4, batch=32, lr=1e-9, patience=1)
    assert result_of(cross_validate(project_in(tmp_path), patient, 2))["epochs"] == 4


def test_a_test_part_that_was_given_is_not_touched_and_one_cut_off_is_used(tmp_path: Path) -> None:
    assert len(small_data().pool().labels) == 120
    assert len(load_data("digits").pool().labels) == 1797


def test_impossible_folds_name_the_class(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"folds \(=40\) must be at most \d+, the number of images of class [a-j];"):
        cross_validate(project_in(tmp_path), FIT, 40)
    assert not list(tmp_path.iterdir())


def test_the_table_says_what_the_figures_are(made: tuple[Project, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = artifact_text(made[1])
    result = result_of(made[1])
    lines = text.splitlines()
    assert lines[0].split("  ")[0] == "fold" and [line.split()[0] for line in lines[2:7]] == ["1", "2", "3", "mean", "spread"]
    assert f"{100 * result['mean']['accuracy']:.2f}%" in lines[5]
    assert "last epoch (3): nothing was chosen on the images that a fold holds out" in text
    assert "it flatters" in text
    worst = result["confusions"][0]
    assert f"misread most: {worst['true']} as {worst['read']} {worst['images']} of {worst['of']}" in text
    assert json.loads(json.dumps(summary(made[1])["result"])) == result


def test_no_other_command_takes_it_for_a_network(made: tuple[Project, Artifact]) -> None:
    with pytest.raises(CompressError, match="is a cross-validation's result, which keeps no network; name networks or graphs"):
        measure(Context(), load_recipe(None), [made[1].path], BenchmarkConfig(), USUAL)
    with pytest.raises(CompressError, match=r"holds a folds \(stage folds\), but a network is needed here"):
        read_artifact(made[1].path, "network")


@pytest.mark.parametrize("folds", ["1", "0", "-3"])
def test_too_few_folds_are_one_line(folds: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compress", "train", "--data", "nowhere", "--folds", folds])
    assert cli.main() == 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"compress: folds (={folds}) must be at least 2; 5 trains five networks, each on four fifths of the images\n")
    assert not list(tmp_path.iterdir())


def test_killed_and_run_again_gives_the_same_without_training_finished_folds_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, start: Callable[..., Running]
) -> None:
    few_digits(tmp_path / "few")
    arguments = ["train", *TINY, "--data", "few", "--folds", "2", "--epochs", "12", "--batch", "32", "--device", "cpu", "--runs"]
    process = start(*arguments, "killed", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/emnist/folds/.*/1.json")) and process.runs() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(tmp_path.glob("killed/emnist/folds/[!.]*"))
    monkeypatch.chdir(tmp_path)
    results = []
    for runs in ("killed", "whole"):
        monkeypatch.setattr(sys, "argv", ["compress", *arguments, runs])
        assert cli.main() == 0
        assert ("fold 1 of 2 is done already" in capfd.readouterr().err) == (runs == "killed")
        [folder] = tmp_path.glob(f"{runs}/emnist/folds/*")
        results.append(read_artifact(folder, "folds").manifest.files["folds.json"])
    assert results[0] == results[1]


def test_processes_of_torchrun_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CompressError, match=r"folds \(=3\) are trained by one process; start `compress train` without torchrun"):
        compress.open("emnist", runs=tmp_path).train(folds=3)


def test_predictions_of_the_last_epoch_are_averaged_ones_where_weights_are_averaged(made: tuple[Project, Artifact], tmp_path: Path) -> None:
    """Without averaging the same folds get other answers, and their scores are those of the history too."""
    plain = result_of(cross_validate(project_in(tmp_path), FitConfig(epochs=3, batch=32, lr=0.01, seed=4), 3))
    assert plain["mean"] != result_of(made[1])["mean"]
    with next(tmp_path.glob("emnist/folds/*/history.csv")).open(encoding="utf-8") as file:
        last = [float(row["accuracy"]) for row in csv.DictReader(file) if row["epoch"] == "3"]
    assert last == [fold["scores"]["accuracy"] for fold in plain["folds"]]
