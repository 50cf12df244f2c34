"""Functions of a user's own: found in their file, and what goes wrong in them told in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compress.artifacts.task.function import Function, FunctionError, is_function
from compress.benchmarks.errors import BenchmarkError
from compress.errors import CompressError

Write = Callable[..., Function]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write_file(source: str, name: str = "score", file: str = "own.py") -> Function:
        (tmp_path / file).write_text(source, encoding="utf-8")
        return Function("score", f"{tmp_path / file}:{name}")

    return write_file


@pytest.mark.parametrize(("text", "expected"), [("a/b.py:load", True), ("b.py:", True), ("digits", False), ("b.py", False), (None, False)])
def test_what_reads_like_a_function(text: str | None, expected: bool) -> None:
    assert is_function(text) is expected


def test_it_is_called_and_prints_aside(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """stdout may be JSON."""
    assert write("def score(a, b):\n    print('seen')\n    return a + b")(1, 2) == 3
    assert capsys.readouterr() == ("", "seen\n")


def test_its_source_changes_with_what_it_imports(write: Write) -> None:
    write("FACTOR = 1", file="helper.py")
    one = write("from helper import FACTOR\ndef score(): return FACTOR")
    before = one.source
    write("FACTOR = 2", file="helper.py")
    assert Function("score", one.reference).source != before


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def other(): ...", r"own.py has no function score; name one that it has"),
        ("score = 3", r"own.py has no function score"),
        ("def score():\n    return {}['gone']", r"failed in own.py, line 2: KeyError: 'gone'"),
        ("class Mine(Exception): ...\ndef score():\n    raise Mine('first\\nsecond')", r"failed in own.py, line 3: Mine: first$"),
        ("import json\ndef score():\n    return json.loads('{')", r"failed in own.py, line 3: JSONDecodeError"),
        ("raise OSError('at once')\ndef score(): ...", r"failed in own.py, line 1: OSError: at once"),
        ("import nothing_like_it\ndef score(): ...", r"failed in own.py, line 1: ModuleNotFoundError"),
        ("def score(:", r"failed in own.py, line 1: SyntaxError"),
        ("def score(a): ...", r"cannot be called as it is here: TypeError: score\(\) missing 1 required positional argument"),
    ],
)
def test_what_it_does_wrong_is_one_line(write: Write, source: str, told: str) -> None:
    with pytest.raises(FunctionError, match=told) as caught:
        write(source)()
    assert "\n" not in str(caught.value) and isinstance(caught.value, CompressError | BenchmarkError)


def test_what_comes_out_of_an_iterable_is_guarded_too(write: Write) -> None:
    one = write("def score():\n    yield 1\n    yield 1 / 0")
    with pytest.raises(FunctionError, match=r"failed in own\.py, line 3: ZeroDivisionError"):
        list(one.every(one()))


def test_ctrl_c_goes_through(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        write("def score(): raise KeyboardInterrupt")()


@pytest.mark.parametrize(
    ("reference", "told"),
    [("own.py", r"must be path/file.py:function"), ("own.py:1x", "must be path/file.py"), ("gone.py:score", "there is no such file")],
)
def test_a_wrong_reference_is_refused(reference: str, told: str) -> None:
    with pytest.raises(FunctionError, match=told):
        _ = Function("score", reference).source
