"""`compress tune` on digits: its results, what it refuses, kills, and two workers at once."""

import csv
import json
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Running
from real_data import few_digits
from stand_ins import Silent, recorded, with_parts

from compress.artifacts.artifact import InputSpec
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.parts import Facts
from compress.artifacts.project import Project
from compress.artifacts.recipe import load_recipe, training_config
from compress.cli import main as cli
from compress.errors import CompressError
from compress.models.k49 import K49Config
from compress.stages import tune as tune_module
from compress.stages.train import train
from compress.stages.tune import SPACES, Tuning, read_space, tune_project
from compress.train.data_set import DataSet, Part
from compress.train.errors import TrainError
from compress.train.sources import load_data
from compress.train.tune import Attempt

SPACE = """
[space]
train.lr = {low = 1e-3, high = 1e-2, log = true}
train.batch = {choices = [32, 64]}
model-options.hidden = {low = 8, high = 24, step = 4}
model-options.channels = {choices = [[2, 4], [4, 8]]}
augment.rotate = {low = 0, high = 10}
"""


@pytest.fixture(scope="module")
def few() -> DataSet:
    """A few of the digits, so that a trial takes no time."""
    data = load_data("digits")
    cut = {name: Part(getattr(data, name).images[:320], getattr(data, name).labels[:320]) for name in ("train", "validation", "test")}
    return with_parts(data, **cut)


def project_in(folder: Path, data: DataSet, **more: Any) -> Project:
    source = recorded("digits", data.fingerprint)
    about: dict[str, Any] = {"folder": folder / "emnist", "model": ModelReference(reference="emnist"), "spec": InputSpec(), "device": "cpu"}
    return Project(**about | {"data": data, "source": source, "console": Silent()} | more)


def tuning(tmp_path: Path, text: str = SPACE, **more: Any) -> Tuning:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return Tuning(**{"trials": 5, "epochs": 2, "space": path} | more)


def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["compress", *arguments])
    code = cli.main()
    out, err = capfd.readouterr()
    return code, out, err


def test_the_best_recipe_gives_the_score_of_its_trial_again(tmp_path: Path, few: DataSet) -> None:
    project = project_in(tmp_path, few)
    tuned = tune_project(project, load_recipe(None, model="emnist"), tuning(tmp_path))
    best = tuned.summary.best
    assert best is not None
    assert tuned.summary.finished == 5
    assert tuned.folder == tmp_path / "emnist/tune/digits"
    assert {path.name for path in tuned.folder.iterdir()} == {"best.toml", "trials.csv", "history.png", "importances.png", "slices.png"}

    recipe = load_recipe(tuned.folder / "best.toml")
    assert recipe.table("model-options") == {name: best.values[f"model-options.{name}"] for name in ("hidden", "channels")}
    assert recipe.table("train")["epochs"] == load_recipe(None, model="emnist").table("train")["epochs"]
    model = ModelReference(reference=recipe.model, options=recipe.table("model-options"))
    trained = train(project_in(tmp_path, few, model=model), training_config(recipe, epochs=2))
    assert trained.manifest.metrics.validation.balanced_accuracy == best.score
    assert trained.manifest.facts == Facts(**best.notes, nonzeros=trained.manifest.facts.nonzeros)


def test_networks_above_a_limit_are_given_up_before_they_are_trained(tmp_path: Path, few: DataSet) -> None:
    project = project_in(tmp_path, few)
    tuned = tune_project(project, load_recipe(None, model="emnist"), tuning(tmp_path, max_params=2500, fraction=0.5))
    rows = list(csv.DictReader((tuned.folder / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 5
    above = [row for row in rows if int(row["params"]) > 2500]
    assert 0 < len(above) < 5
    for row in above:
        assert (row["state"], row["epochs"], row["reason"]) == ("pruned", "0", f"{int(row['params']):,} params, more than 2,500")
    with pytest.raises(CompressError, match=r"no trial of 2 was completed, the last because: .* macs, more than 10; give it more room"):
        tune_project(project, load_recipe(None, model="emnist"), tuning(tmp_path, trials=2, max_macs=10, study="none"))


def test_settings_that_do_not_fit_together_are_given_up_with_the_reason(tmp_path: Path, few: DataSet) -> None:
    text = (
        "[space]\nmodel-options.widths = {choices = [[2, 4]]}\nmodel-options.depths = {choices = [[1], [1, 1]]}\n"
        "train.lr = {choices = [1e-3, 1e30]}"
    )
    project = project_in(tmp_path, few, model=ModelReference(reference="k49", options={"reduction": 2}))
    tuned = tune_project(project, load_recipe(None, model="k49"), tuning(tmp_path, text, trials=6, epochs=1))
    reasons = {trial.reason.split(" (=")[0] for trial in tuned.summary.trials if trial.state == "pruned"}
    assert reasons <= {"widths", "the loss became nan in epoch 1 with lr"}
    assert "widths" in reasons


def test_the_built_in_spaces_are_read_and_every_choice_of_k49_can_be_built() -> None:
    for name in ("emnist", "k49"):
        space = read_space(ModelReference(reference=name), load_recipe(None, model=name), Tuning())
        assert {"train.lr", "train.batch", "model-options.dropout"} <= set(space)
    for widths in space["model-options.widths"].extremes:
        for depths in space["model-options.depths"].extremes:
            K49Config(classes=47, widths=widths, depths=depths)
    assert {path.stem for path in SPACES.glob("*.toml")} == {"emnist", "k49", "any"}


def test_the_built_in_batches_are_for_small_images_and_large_ones_keep_the_batch_that_follows_their_pixels(
    tmp_path: Path, few: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried are 64 to 256 images a step, which are gigabytes of 224x224; a space of the user's own is taken as it is."""

    class Seen(Exception):
        pass

    def see(objective: Any, space: Any, *others: Any) -> None:
        raise Seen(*sorted(space))

    monkeypatch.setattr(tune_module, "tune", see)
    model = ModelReference(reference="torchvision:mobilenet_v3_small")
    small, large = (InputSpec(shape=(3, side, side)) for side in (32, 224))
    for spec, more, there in (
        (small, {}, True),
        (large, {}, False),
        (large, {"space": tuning(tmp_path, "[space]\ntrain.batch = {choices = [4, 8]}").space}, True),
    ):
        with pytest.raises(Seen) as seen:
            tune_project(project_in(tmp_path, few, model=model, spec=spec), load_recipe(None, model=model.reference), Tuning(**more))
        assert ("train.batch" in seen.value.args) == there


def test_options_of_a_users_factory_can_be_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("def make(classes, width=8, rate=0.5): ...\ndef free(classes, **options): ...\n")
    text = "[space]\nmodel-options.width = {low = 4, high = 8}\nmodel-options.rate = {low = 0, high = 1}"
    recipe = load_recipe(None, model="net.py:make")
    space = read_space(ModelReference(reference="net.py:make"), recipe, tuning(tmp_path, text))
    assert [one.whole for one in space.values()] == [True, False]  # type: ignore[union-attr]
    assert len(read_space(ModelReference(reference="net.py:free"), recipe, tuning(tmp_path, text))) == 2
    assert "train.lr" in read_space(ModelReference(reference="net.py:make"), recipe, Tuning())
    with pytest.raises(TrainError, match=r"model-options.widht in .* is unknown; did you mean model-options.width\?"):
        read_space(ModelReference(reference="net.py:make"), recipe, tuning(tmp_path, text.replace("width", "widht")))


@pytest.mark.parametrize(
    ("text", "arguments", "line"),
    [
        ("", ["--trials", "0"], "trials (=0) must be at least 1; 40 is the default"),
        ("", ["--time-limit", "soon"], "time_limit (=soon) must be a time above 0, such as 90s, 5m or 1h"),
        ("", ["--fraction", "0"], "fraction (=0.0) must lie in (0, 1]"),
        ("", ["--epochs", "0"], "epochs (=0) must be at least 1"),
        ("", ["--max-params", "0"], "max_params (=0) must be at least 1"),
        ("", ["--study", "../up"], "study (=../up) must be letters, digits"),
        ("", ["--space", "none.toml"], "space (=none.toml): there is no such file"),
        ("", ["--storage", "sqlite:///none/study.db"], "storage (=sqlite:///none/study.db) cannot be opened"),
        ("", ["--storage", "text.journal"], "storage (=text.journal) is no journal of Optuna"),
        ("", ["--device", "tpu"], "device (=tpu) must be auto, cpu or cuda"),
        ("[space", [], "space (=space.toml) is not readable as TOML"),
        ("[spaces]", [], "space (=space.toml) must have one table, [space]; it has spaces"),
        ("[space]", [], "space.toml tunes nothing"),
        ("[space]\ntrain.lrr = {low = 1, high = 2}", [], "train.lrr in space.toml is unknown; did you mean train.lr?"),
        ("[space]\ntrain.seed = {low = 1, high = 2}", [], "train.seed in space.toml is unknown"),
        ("[space]\nmodel-options.hiden = {low = 1, high = 2}", [], "did you mean model-options.hidden?"),
        ("[space]\ntrain.lr = {low = 2, high = 1}", [], "train.lr in space.toml: low (=2) must not be above high (=1)"),
        ("[space]\nmodel-options.dropout = {low = 0, high = 1.5}", [], "model-options.dropout in space.toml: dropout (=1.5) must lie in"),
        ("[space]\naugment.scale = {low = 0, high = 2}", [], "augment.scale in space.toml: scale (=2.0) must lie in"),
        ('[space]\ntrain.optimiser = {choices = ["adm"]}', [], "train.optimiser in space.toml: optimiser (=adm) must be adam or adamw"),
        ("[space]\ntrain.epochs = {low = 1, high = 2}", ["--epochs", "3"], "epochs (=3) is tuned by space.toml already"),
    ],
)
def test_a_mistake_is_one_line(
    text: str, arguments: list[str], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.journal").write_text("hello\n")
    if text:
        Path("space.toml").write_text(text)
        arguments = [*arguments, "--space", "space.toml"]
    code, out, err = run(capfd, monkeypatch, "tune", "--model", "emnist", "--data", "digits", *arguments)
    last = err.splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("compress: ")
    assert line in last


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tuning(tmp_path)
    command = ["tune", "--model", "emnist", "--data", "digits", "--epochs", "1", "--fraction", "0.25", "--space", "space.toml", "--trials"]
    report, reports = Attempt.report, [0]

    def interrupted(self: Attempt, epoch: int, score: float) -> None:
        reports[0] += 1
        if reports[0] == 2:
            raise KeyboardInterrupt
        report(self, epoch, score)

    monkeypatch.setattr(Attempt, "report", interrupted)
    code, _, err = run(capfd, monkeypatch, *command, "3")
    assert code == 130
    assert "what is finished is kept, and the same command goes on" in err.splitlines()[-1]
    code, out, err = run(capfd, monkeypatch, *command, "3", "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert [trial["state"] for trial in shown["trials"]] == ["complete"] * 3
    assert shown["best"]["score"] == max(trial["score"] for trial in shown["trials"])
    code, out, err = run(capfd, monkeypatch, *command, "3")
    assert (code, err.count("trial")) == (0, 0), "nothing was left to do"
    assert f"compress train --recipe {shown['recipe']}" in out
    code, _, err = run(capfd, monkeypatch, *command, "3", "--seed", "1")
    assert code == 2
    assert "study (=emnist-digits) was made with something else: data seed was 0 and is 1" in err


def test_killed_and_resumed_by_two_workers_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, start: Callable[..., Running]
) -> None:
    monkeypatch.chdir(tmp_path)
    tuning(tmp_path)
    few_digits(tmp_path / "few")
    arguments = ["tune", "--model", "emnist", "--data", "few", "--epochs", "4", "--space", "space.toml", "--fraction", "0.5"]
    arguments += ["--trials", "6", "--device", "cpu"]
    first = start(*arguments, "--json")
    waited_for("1 of 6 done", first)
    time.sleep(0.1)
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    [journal] = Path("runs/emnist/tune").glob("*.journal")
    assert journal.is_file()
    second = start(*arguments, "--json")
    waited_for("study ", second)
    code, _, err = run(capfd, monkeypatch, *arguments)
    assert code == 0, err
    assert second.wait(120) == 0, second.err
    shown = json.loads(run(capfd, monkeypatch, *arguments, "--json")[1])
    assert [trial["state"] in ("complete", "pruned") for trial in shown["trials"]] == [True] * 6
    assert len({json.dumps(trial["values"]) for trial in shown["trials"]}) == 6
    assert tomllib.loads(Path(shown["recipe"]).read_text())["data"] == "few"


def waited_for(words: str, process: Running) -> None:
    while words not in process.err:
        assert process.runs(), "the worker ended"
        time.sleep(0.005)
