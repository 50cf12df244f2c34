"""What an exit code means: 1 is proved, 2 the user's to mend, 70 a fault of ours; whatever happens, one line and nothing half-written."""

import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Running
from stand_ins import Commands

from compress.cli import commands
from compress.cli import main as cli
from compress.errors import CompressError, processes

COMPRESS = [sys.executable, "-m", "compress"]
TRAIN = ["train", "--model", "emnist", "--option", "channels=[4,8]", "--option", "hidden=16", "--data", "digits", "--epochs"]


def told(err: str) -> str:
    """The last line, which is the only one that is an error."""
    *remarks, last = err.strip().splitlines()
    assert last.startswith("compress: ") and len(last) <= 310 and not any(line.startswith("compress: ") for line in remarks)
    assert "Traceback" not in err and "Exception ignored" not in err
    return last.removeprefix("compress: ")


@pytest.mark.parametrize(
    ("redirected", "line"),
    [
        (">/dev/full", "stdout: No space left on device; what was made is kept"),
        (">&-", "stdout is closed; send it to /dev/null where nobody is to read it"),
    ],
)
def test_a_result_that_cannot_be_shown_is_one_line(redirected: str, line: str, tmp_path: Path) -> None:
    done = subprocess.run(
        f'"{sys.executable}" -m compress recipe {redirected}', shell=True, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, told(done.stderr)) == (2, line)


def test_a_reader_that_had_enough_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMPRESS, "recipe", "--schema"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_work_goes_on_where_nobody_hears_of_it(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run([*COMPRESS, *TRAIN, "1"], cwd=tmp_path, stderr=full, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "\nnext: compress " in done.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_stops_as_ctrl_c_does(name: str, tmp_path: Path, start: Callable[..., Running]) -> None:
    number = getattr(signal, name)
    process = start(*TRAIN, "500", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/emnist/train/.*.state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.signal(number)
    assert process.wait(60) == 128 + number
    assert told(process.err) == "stopped; what is finished is kept, and the same command goes on"
    assert [path.suffix for path in tmp_path.glob("runs/emnist/train/.*")] == [".safetensors"], "the state alone"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["export-onnx", "--model", "emnist", "--data", "digits", "--weights"], "weights (={}) is not a file"),
        (["predict", "--data", "digits", "--random", "1", "--onnx"], "onnx (={}) is not a file"),
        (["report"], "file (={}) is not a file"),
        (["run", "--recipe"], "recipe (={}) is not a file"),
    ],
)
@pytest.mark.parametrize("kind", ["a pipe", "a folder"])
def test_what_is_no_file_is_named_and_not_waited_for(arguments: list[str], told: str, kind: str, tmp_path: Path, run: Commands) -> None:
    (os.mkfifo if kind == "a pipe" else os.mkdir)(place := tmp_path / "place")
    code, _, err = run(*arguments, str(place))
    assert (code, err.splitlines()[-1]) == (2, "compress: " + told.format(place))


def test_a_pipe_is_nothing_to_measure(tmp_path: Path, run: Commands) -> None:
    os.mkfifo(place := tmp_path / "place")
    code, _, err = run("benchmark", "--data", "digits", str(place))
    assert (code, err) == (2, f"compress: {place} is not a file; name an .onnx file or the folder of an artifact\n")


def test_what_is_ignored_stays_ignored() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli._stopped_by("SIGHUP"):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# A limit that is set once everything is loaded: what the interpreter and the libraries need before differs from one machine to the next.
LIMITED = "import resource, sys, onnx, onnxruntime, sklearn.datasets, torch; from compress.cli.main import main; "


@pytest.mark.parametrize(
    ("limit", "line"),
    [
        ("RLIMIT_FSIZE, 1024", r".*File too large; raise the limit of file sizes \(ulimit -f\), and the same command goes on"),
        ("RLIMIT_NOFILE, 4", r".*Too many open files; raise the limit of open files \(ulimit -n\)"),
    ],
)
def test_a_limit_of_the_system_is_one_line_and_leaves_nothing(limit: str, line: str, tmp_path: Path) -> None:
    name, most = limit.split(", ")
    script = f"{LIMITED}resource.setrlimit(resource.{name}, ({most}, {most})); sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script, *TRAIN, "1"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch(line, told(done.stderr)), done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "there is not enough memory for this; .*"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
            "there is not enough .*",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), "there is not enough .*"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "there is not enough .*"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room, and the same command goes on"),
        (OSError(errno.EROFS, "Read-only file system", "runs"), "runs: Read-only file system; name another --runs, --out or --cache"),
        (OSError(errno.EACCES, "Permission denied", "runs"), "runs: Permission denied; nothing was changed there"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "this needs torch, which is not installed here; .*"),
    ],
)
def test_what_the_user_can_mend_is_2(error: Exception, line: str, run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(commands.recipe, "callback", fails)
    code, out, err = run("recipe")
    assert (code, out) == (2, "") and re.fullmatch(line, told(err))


@pytest.mark.parametrize("error", [KeyError("x"), OSError("no number"), ModuleNotFoundError("No module named 'ours'", name="ours")])
def test_a_fault_of_ours_is_70_and_says_where_its_traceback_lies(
    error: Exception, run: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(**_: object) -> None:
        raise error

    monkeypatch.setattr(commands.recipe, "callback", fails)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, _, err = run("recipe")
    found = re.fullmatch(r"this is a fault of ours \(\w+: .+\); please report it, the traceback lies in (.+)", told(err))
    assert code == 70 and found is not None
    assert "in fails" in Path(found[1]).read_text()
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda *_, **__: (tmp_path / "no" / "folder").touch())
    code, _, err = run("recipe")
    assert code == 70 and "the traceback:" in err


@pytest.mark.parametrize("command", [["recipe"], [*TRAIN, "1"]])
def test_variables_of_torchrun_that_are_none_are_refused(command: list[str], run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "abc")
    code, out, err = run(*command)
    line = "WORLD_SIZE (=abc) must be a whole number, as torchrun sets it; unset WORLD_SIZE for one process"
    assert (code, out, told(err)) == (2, "", line)


@pytest.mark.parametrize("size", ["0", "-1", "1.5", "", "²"])
def test_a_number_of_processes_is_checked(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(CompressError, match=r"WORLD_SIZE \(=.*\) must be a whole number"):
        processes()


def test_one_of_several_processes_must_know_its_number(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes() == 2
    code, _, err = run(*TRAIN, "1")
    assert (code, told(err)) == (2, "RANK (=) must be a whole number, as torchrun sets it; unset WORLD_SIZE for one process")


def test_what_onnx_runtime_does_not_compute_is_no_fault_of_ours() -> None:
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    told = "ONNX Runtime does not compute this file (Fail: no such shape); `compress verify FILE` says what of it holds"
    assert importlib.import_module("compress.cli.main")._told(Fail("no such shape")) == told
