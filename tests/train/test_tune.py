"""Tuning on a function that costs nothing: exact numbers of trials, kills, several workers, and the same draws again."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from compress.train.errors import TrainError
from compress.train.space import parse_space
from compress.train.storage import opened
from compress.train.tune import Attempt, Hopeless, Summary, TuneConfig, tune

SPACE = parse_space(
    {"a.x": {"low": 0.0, "high": 1.0}, "a.n": {"low": 1, "high": 99}, "a.widths": {"choices": [[1, 2], [3]]}},
    {"a.x": float, "a.n": int, "a.widths": tuple},
    "test",
)
# A worker of its own process: where the study is, how many trials, seconds per epoch.
WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
import test_tune
where, trials, seconds = sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
def slow(attempt):
    time.sleep(seconds)
    return test_tune.objective(attempt)
print(len(test_tune.search(where, trials, slow).trials))
"""


def objective(attempt: Attempt) -> float:
    """Best at x = 0.3, in three epochs."""
    for epoch in (1, 2, 3):
        attempt.beat()
        attempt.report(epoch, score_of(attempt.values) - 0.1 * (3 - epoch))
    return score_of(attempt.values)


def score_of(values: Mapping[str, Any]) -> float:
    return 1 - abs(values["a.x"] - 0.3)


def search(where: Path | str, trials: int, function: Any = objective, **more: Any) -> Summary:
    about = {"identity": {"data": "d"}} | more
    with opened(str(where)) as storage:
        config = TuneConfig(trials=trials, seed=about.pop("seed", 0), time_limit=about.pop("time_limit", None))
        return tune(function, SPACE, config, storage, "study", **about)


def worker(where: Path, trials: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(Path(__file__).parent), str(where), str(trials), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def drawn(summary: Summary) -> list[Mapping[str, Any]]:
    return [trial.values for trial in summary.trials]


def until_running(where: Path, finished: int) -> list[dict[str, Any]]:
    """Wait until ``finished`` trials ended and another one runs; returns the settings of those that run."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if where.exists() and where.read_bytes().count(b"\n") > 1:
            study = optuna.load_study(study_name="study", storage=_reader(where))
            running = [trial for trial in study.trials if trial.state.name == "RUNNING" and len(trial.params) == len(SPACE)]
            if sum(trial.state.is_finished() for trial in study.trials) >= finished and running:
                return [trial.params for trial in running]
        time.sleep(0.02)
    raise AssertionError("no trial ran")


def _reader(where: Path) -> optuna.storages.JournalStorage:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(where)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return search(tmp_path_factory.mktemp("whole") / "study.journal", 14)


def test_finds_the_best_of_a_known_function(undisturbed: Summary) -> None:
    assert undisturbed.finished == 14
    assert undisturbed.best is not None
    assert undisturbed.best.score == pytest.approx(1.0, abs=0.1)
    assert undisturbed.best.values["a.x"] == pytest.approx(0.3, abs=0.1)
    assert undisturbed.best.values["a.widths"] in ([1, 2], [3])
    assert max(undisturbed.importances, key=lambda name: undisturbed.importances[name]) == "a.x"
    assert sum(undisturbed.importances.values()) == pytest.approx(1.0)


def test_the_same_seed_draws_the_same_and_another_seed_not(undisturbed: Summary, tmp_path: Path) -> None:
    database = "sqlite:///" + str(tmp_path / "study.db")
    for trials in (2, 4):  # another storage, and in two runs
        assert drawn(search(database, trials)) == drawn(undisturbed)[:trials]
    assert drawn(search(tmp_path / "b", 2, seed=1)) != drawn(undisturbed)[:2]


def test_trials_count_finished_ones_so_a_second_run_does_what_is_missing(undisturbed: Summary, tmp_path: Path) -> None:
    seen: list[int] = []
    for trials, expected in ((4, [0, 1, 2, 3]), (4, []), (6, [4, 5]), (2, [])):
        seen.clear()
        summary = search(tmp_path / "study.journal", trials, told=lambda trial, _: seen.append(trial.number))
        assert seen == expected
    assert drawn(summary) == drawn(undisturbed)[:6]


def test_a_run_killed_in_a_trial_and_resumed_ends_with_the_trials_of_an_undisturbed_one(undisturbed: Summary, tmp_path: Path) -> None:
    where = tmp_path / "study.journal"
    process = worker(where, 14, 0.15)
    [killed] = until_running(where, 3)
    time.sleep(0.05)  # out of the journal's lock, which others break only after seconds
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resumed = search(where, 14)
    assert resumed.finished == len(resumed.trials) == 14
    assert drawn(resumed) == drawn(undisturbed)
    assert [trial.score for trial in resumed.trials] == [trial.score for trial in undisturbed.trials]
    assert killed["a.x"] in [values["a.x"] for values in drawn(resumed)]


def test_two_workers_on_one_storage_do_all_trials_once(tmp_path: Path) -> None:
    where = tmp_path / "study.journal"
    other = worker(where, 16, 0.03)
    until_running(where, 0)
    seen: list[int] = []

    def slow(attempt: Attempt) -> float:
        time.sleep(0.03)
        return objective(attempt)

    search(where, 16, slow, told=lambda trial, _: seen.append(trial.number))
    out, _ = other.communicate(timeout=60)
    assert int(out) <= 16
    summary = search(where, 16)
    assert summary.finished == len(summary.trials) == 16
    assert 0 < len(seen) < 16, "one of the workers did nothing"
    assert len({json.dumps(values) for values in drawn(summary)}) == 16


def test_a_trial_that_another_living_worker_runs_is_left_to_it(tmp_path: Path) -> None:
    where = tmp_path / "study.journal"
    other = worker(where, 1, 30)
    [running] = until_running(where, 0)
    summary = search(where, 3, time_limit=4.0)
    assert [trial.state for trial in summary.trials] == ["running", "complete", "complete"]
    with pytest.raises(TrainError, match=r"study \(=study\) is busy: another worker runs a trial of it"):
        search(where, 3, fresh=True)
    waited: list[int] = []

    def killed(busy: int) -> None:
        waited.append(busy)
        other.kill()
        other.communicate()

    summary = search(where, 3, waits=killed)
    assert waited == [1] and [trial.state for trial in summary.trials] == ["complete"] * 3
    assert summary.trials[-1].values["a.x"] == running["a.x"]


def test_the_last_trials_of_other_workers_are_waited_for(tmp_path: Path) -> None:
    other = worker(tmp_path / "study.journal", 1, 5.0)  # long enough to be found at work
    until_running(tmp_path / "study.journal", 0)
    waited: list[int] = []
    summary = search(tmp_path / "study.journal", 1, waits=waited.append)
    out, _ = other.communicate(timeout=60)
    assert (waited, [trial.state for trial in summary.trials], int(out)) == ([1], ["complete"], 1)


def test_ctrl_c_keeps_what_is_finished_and_gives_the_trial_back(undisturbed: Summary, tmp_path: Path) -> None:
    def interrupted(attempt: Attempt) -> float:
        if attempt.number == 2:
            raise KeyboardInterrupt
        return objective(attempt)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "study.journal", 5, interrupted)
    assert drawn(search(tmp_path / "study.journal", 5)) == drawn(undisturbed)[:5]


def test_hopeless_trials_end_early_and_say_why(tmp_path: Path) -> None:
    def one(attempt: Attempt) -> float:
        if attempt.number == 1:
            raise Hopeless("too large")
        if attempt.number == 2:
            return float("nan")
        attempt.note(params=7)
        for epoch in range(1, 5):
            attempt.report(epoch, 0.1 if attempt.number == 8 else 0.5)
        return 0.5

    summary = search(tmp_path / "study.journal", 9, one)
    told = {trial.number: (trial.state, trial.epochs, trial.reason) for trial in summary.trials if trial.state != "complete"}
    # Five complete trials go before; the second epoch is the first at which a trial may end.
    assert told == {
        1: ("pruned", 0, "too large"),
        2: ("pruned", 0, "the score was nan"),
        8: ("pruned", 2, "below the median after epoch 2"),
    }
    assert summary.trials[0].notes == {"params": 7}
    assert summary.importances == {}, "all scores are equal"


def test_another_error_ends_the_tuning_and_the_trial_is_not_counted(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        search(tmp_path / "study.journal", 2, lambda attempt: 1 / 0)
    assert search(tmp_path / "study.journal", 2).finished == 2


def test_a_study_of_something_else_is_refused_with_what_differs(tmp_path: Path) -> None:
    where = tmp_path / "study.journal"
    search(where, 1, identity={"data": "digits", "space": {"train.lr": "0 to 1"}})
    with pytest.raises(TrainError, match=r"data was digits and is letters, space train.lr was 0 to 1 and is unset; take another --study"):
        search(where, 1, identity={"data": "letters"})
    assert len(search(where, 2, identity={"data": "letters"}, fresh=True).trials) == 2
    study = optuna.create_study(storage=_reader(tmp_path / "foreign"), study_name="study")
    study.add_trial(optuna.create_trial(value=1.0))
    with pytest.raises(TrainError, match="holds trials of another program"):
        search(tmp_path / "foreign", 1)


def test_a_worker_whose_trial_was_taken_over_drops_its_result(tmp_path: Path) -> None:
    """As when a laptop slept for an hour in the middle of a trial."""
    where = tmp_path / "study.journal"

    def overtaken(attempt: Attempt) -> float:
        if attempt.number == 0:
            study = optuna.load_study(study_name="study", storage=_reader(where))
            study.tell(0, state=optuna.trial.TrialState.FAIL)
        return objective(attempt)

    assert [trial.number for trial in search(where, 2, overtaken).trials] == [1, 2]


def test_no_trial_starts_after_the_time_limit(tmp_path: Path) -> None:
    with opened(str(tmp_path / "study.journal")) as storage:
        summary = tune(objective, SPACE, TuneConfig(trials=9, time_limit=1e-9), storage, "study", {})
    assert summary.trials == ()
    assert summary.best is None


def test_optunas_own_remarks_are_left_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    search(tmp_path / "study.journal", 2)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")
