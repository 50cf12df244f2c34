import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compress import files
from compress.files import claimed, publish, write_whole

HOLDS = """
import sys, time
from pathlib import Path
from compress.files import claimed

with claimed(Path(sys.argv[1]), bool) as folder:
    (folder / "half").write_bytes(b"half")
    print("holds", flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(target: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that is making ``target``, and is killed at the end."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, target], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "holds\n"
        yield process
        process.kill()


def test_who_wants_to_make_the_same_waits_and_then_finds_it_made(tmp_path: Path) -> None:
    target, told, waiting = tmp_path / "a", [], threading.Event()

    def second() -> None:
        with claimed(target, waiting.set) as folder:
            told.append((target / "file").read_bytes())
            told.append(list(folder.iterdir()))

    thread = threading.Thread(target=second)
    with claimed(target, pytest.fail) as folder:
        (folder / "file").write_bytes(b"made")
        thread.start()
        assert waiting.wait(60) and not told
        publish(folder, target)
    thread.join(60)
    assert told == [b"made", []]
    assert list(tmp_path.iterdir()) == [target], "and nothing is left of either"


def test_the_lock_dies_with_its_holder_and_what_was_half_made_goes(tmp_path: Path) -> None:
    with holder(tmp_path / "a"):
        partial = tmp_path / ".a.partial"
        assert [path.name for path in partial.iterdir()] == ["half"]
        with claimed(tmp_path / "b", pytest.fail):
            assert partial.is_dir(), "that of a living process stays"
    with claimed(tmp_path / "a", pytest.fail) as folder:
        assert not list(folder.iterdir())
    with holder(tmp_path / "a"):
        pass
    with claimed(tmp_path / "b", pytest.fail):
        assert not partial.exists(), "that of a killed one goes with the next that is made beside it"


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "file", b"old")

    def full(path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_where_there_are_no_locks_each_makes_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(files, "_taken", none)
    target = tmp_path / "a"
    own = tmp_path / f".a.{os.getpid()}.partial"
    own.mkdir()
    (own / "half").touch()  # by an earlier process of this number; in a container every run has the same small one
    with claimed(target, pytest.fail) as folder:
        assert folder == own and not list(folder.iterdir())
        publish(folder, target)
    with claimed(target, pytest.fail) as folder:
        publish(folder, target)
    assert list(tmp_path.iterdir()) == [target]
