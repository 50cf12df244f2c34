"""Where studies are kept: files that are no journals, databases that cannot be opened, lines that a kill cut short."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest

from compress.train.errors import TrainError
from compress.train.storage import check_study, opened


def trials_in(where: str) -> int:
    with opened(where) as storage:
        study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True)
        before = len(study.trials)
        study.add_trial(optuna.create_trial(value=float(before)))
        return len(study.trials)


@pytest.mark.parametrize("kind", ["study.journal", "sqlite:///study.db"])
def test_what_was_written_is_there_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [trials_in(kind) for _ in range(3)] == [1, 2, 3]


def test_a_line_that_was_cut_short_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    assert [trials_in(str(path)) for _ in range(2)] == [1, 2]
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"work')
    assert trials_in(str(path)) == 3
    assert path.read_bytes().startswith(whole + b'{"op_code"')


@pytest.mark.parametrize("content", [b"hello\nworld\n", b"[1]\n", b'{"a": 1}\n', b"\x89PNG\n\xff\xfe\n", b"SQLite format 3\0"])
def test_another_file_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(TrainError, match=r"other\) is no journal of Optuna \(line 1\); name a new file"), opened(str(path)):
        pass
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:///none/study.db", r"storage \(=sqlite:///none/study.db\) cannot be opened: OperationalError"),
        ("sqlit:///study.db", "cannot be opened: NoSuchModuleError"),
        ("://", "cannot be opened: ArgumentError"),
        ("sqlit://me:secret@host/x", r"storage \(=sqlit://me:\*\*\*@host/x\)"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line_without_its_password(url: str, told: str) -> None:
    with pytest.raises(TrainError, match=told) as caught, opened(url):
        pass
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("where", ["{}", "sqlite:///{}"])
def test_a_pipe_is_not_waited_for(where: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TrainError, match=r"storage \(=.*pipe\) is not a file; name one"), opened(where.format(tmp_path / "pipe")):
        pass


def test_a_folder_is_no_storage(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"is a folder; name a file"), opened(str(tmp_path)):
        pass


START = '{"op_code": 0, "worker_id": "w", "study_name": "s", "directions": [2]}\n'


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"op_code": 99}', "no journal of Optuna"),
        ('{"op_code": 0, "worker_id": 7}', "no journal of Optuna"),
        ("[" * 200_000, "no journal of Optuna"),
        ("9" * 5000, "no journal of Optuna"),
        ('{"op_code": ' + "9" * 5000 + "}", "no journal of Optuna"),
        ('{"op_code": 0, "worker_id": "w"}', "is damaged"),
        ('{"op_code": 0, "worker_id": "w", "study_name": "s", "directions": 7}', "is damaged"),
        ('{"op_code": 0, "worker_id": "w", "study_name": "s", "directions": [99]}', "is damaged"),
        (START + '{"op_code": 4, "worker_id": "w", "study_id": 0, "datetime_start": "never"}', "is damaged"),
        (START + '{"op_code": 4, "worker_id": "w", "study_id": []}', "is damaged"),
        (START + '{"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {}}', "is damaged"),
        (START + '{"op_code": 8, "worker_id": "w", "trial_id": 7, "user_attr": {"a": ' + "9" * 5000 + "}}", "is damaged"),
    ],
)
def test_a_journal_whose_lines_are_others_is_one_line(lines: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_text(lines + "\n")
    with pytest.raises(TrainError, match=rf"study.journal\) {told if told == 'is damaged' else 'is ' + told}") as caught, opened(str(path)):
        pass
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"worker": 7}, "worker"),
        ({"beat": "x"}, "beat"),
        ({"reason": 3}, "reason"),
        ({"queued": [1]}, "queued"),
        ({}, "x is not of the space"),
    ],
)
def test_trials_that_say_something_of_another_type_are_named(attributes: dict[str, object], told: str) -> None:
    study = optuna.create_study(study_name="s")
    params = {} if attributes else {"x": 0.5}
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in params}
    study.add_trial(optuna.create_trial(value=0.5, params=params, distributions=distributions, user_attrs=attributes))
    with pytest.raises(TrainError, match=rf"study \(=s\) is damaged: .*{told}.*; take another --study"):
        check_study(study, {})


def test_workers_that_start_together_on_a_new_database_all_get_it(tmp_path: Path) -> None:
    """Each keeps a study there, and whoever comes later finds all of them."""
    names = {"a", "b", "c", "d"}
    for number in range(4):
        gate, where = threading.Barrier(len(names)), f"sqlite:///{tmp_path}/{number}.db"

        def start(name: str, gate: threading.Barrier = gate, where: str = where) -> None:
            gate.wait()
            with opened(where) as storage:
                optuna.create_study(study_name=name, storage=storage)

        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(start, sorted(names)))
        with opened(where) as storage:
            assert {study.study_name for study in storage.get_all_studies()} == names


def test_a_database_that_never_opens_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("nothing was made by another worker"))
    with pytest.raises(TrainError, match="unable to open database file"), opened(f"sqlite:///{tmp_path}/none/study.db"):
        pass
