"""Another machine over ssh: OpenSSH's own server and client on the loopback; what is wrong with a machine is one line."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import Host, host, written

from compress.benchmarks.boards import known as boards
from compress.benchmarks.boards import remote
from compress.benchmarks.boards.boot import unpack
from compress.benchmarks.boards.remote import Address, Board, CutError, Machine, package
from compress.benchmarks.boards.wire import hash_of, packed, unpacked
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.place import HERE, answering
from compress.benchmarks.run import BenchmarkConfig, run_benchmark
from compress.benchmarks.runtimes import Candidate

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
INPUTS = [IMAGES[:1], IMAGES[1:2]]
QUICK = BenchmarkConfig(launches=2, rounds=2, samples=5, sweeps=False, time_limit=0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("host")) as found:
        yield found


@pytest.fixture
def there(server: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{server.client}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return server


@pytest.fixture
def board(there: Host) -> Iterator[Board]:
    found = Board("pi", Address.of(there.address))
    yield found
    found.close()


@pytest.fixture
def model(pixel_model: Callable[..., Path]) -> Path:
    return pixel_model("net")


def gone(server: Host) -> bool:
    """Nothing runs there within some seconds."""
    for _ in range(100):
        if not server.running():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("text", "host", "user", "port", "folder"),
    [
        ("ssh://pi@10.0.0.2", "10.0.0.2", "pi", None, ".compress-edge"),
        ("ssh://board:2222/data/c", "board", "", 2222, "/data/c"),
        ("ssh://pi@[fe80::1%eth0]:22/", "fe80::1%eth0", "pi", 22, ".compress-edge"),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, host: str, user: str, port: int | None, folder: str) -> None:
    found = Address.of(text)
    assert found == Address(host=host, user=user, port=port, folder=folder)
    assert Address.of(str(found)) == found


@pytest.mark.parametrize("text", ["pi", "http://pi", "ssh://", "ssh://-oProxyCommand=x", "ssh://-x@pi", "ssh://pi:port", "ssh://pi/a\nb"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match=r"must be ssh://user@host"):
        Address.of(text)


def test_messages_come_back_as_they_went_and_nothing_else_is_made_of_bytes() -> None:
    def read(frame: bytes) -> object:
        left = [frame]

        def take(count: int) -> bytes:
            part, left[0] = left[0][:count], left[0][count:]
            return part

        return unpacked(take)

    for value in (None, True, 3, 0.5, "a", b"b", [1, [2]], {"a": None}):
        assert read(packed(value)) == value
    whole = np.arange(6, dtype=np.int64).reshape(2, 3)
    found = read(packed([whole]))[0]  # type: ignore[index]
    assert found.dtype == np.int64 and np.array_equal(found, whole)
    objects = {"!": "array", "type": "|O", "shape": [1], "data": b"12345678"}
    for wrong in ({"!": "os.system", "x": "true"}, objects, {"!": "file", "hash": "/etc/passwd"}):
        with pytest.raises(BenchmarkError, match="the other end is another program"):
            read(packed(wrong))
    with pytest.raises(BenchmarkError, match="at most 268,435,456 may"):
        read(b"\xff" * 8)


def test_what_goes_there_is_the_same_bytes_each_time_and_runs_alone(tmp_path: Path) -> None:
    assert package() == package()
    unpack(package(), tmp_path / "code")
    names = {"click", "torch", "onnx", "jinja2", "compress.cli"}
    code = f"import compress.benchmarks.boards.there, sys; print(sorted({names!r} & set(sys.modules)))"
    command, environment = [sys.executable, "-P", "-c", code], {"PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_file_is_measured_there_as_here_and_nothing_stays(there: Host, board: Board, model: Path) -> None:
    candidates = [Candidate(name=name, path=model) for name in ("one", "other")]
    labels = np.zeros(len(IMAGES), np.int64)

    def score(labels: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
        return {"balanced_accuracy": float((labels == predictions).mean())}

    how: dict[str, Any] = {"baseline": "one", "data": {"name": "noise"}}
    far, near = (run_benchmark(candidates, IMAGES, labels, 3, score, QUICK, place=place, **how) for place in (board, HERE))
    assert [one.reason for one in far.measurements] == [None, None]
    assert [one.scores for one in far.measurements] == [one.scores for one in near.measurements]
    assert np.array(far.measurements[0].samples_ns).shape == (2, 2, 5)
    assert far.machine["cpu"] == near.machine["cpu"]
    board.close()
    assert gone(there)
    kept = {path.name for path in (there.folder / "files").iterdir()}
    assert kept == {hash_of(model)}  # small arrays went inside of messages
    assert not list((there.folder / "scratch").iterdir())


def test_a_file_that_does_not_fit_is_named_and_stops_no_other(board: Board, model: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match=r"must be \(1, 7\): 1 images, 7 classes"),
        answering(board, Candidate(name="x", path=model), (1, 4, 4), 7),
    ):
        pass
    with answering(board, Candidate(name="x", path=model), (1, 4, 4), 3) as told:
        logits, probabilities = told(IMAGES)
    assert logits.shape == (40, 3) and probabilities is None


def test_a_large_array_and_a_file_travel_once(board: Board, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = [np.zeros((1, 1, 4, 4), np.uint8)]
    sent: list[int] = []
    board.machine()
    send = board._link.send  # type: ignore[union-attr]
    monkeypatch.setattr(board._link, "send", lambda frame: (sent.append(len(frame)), send(frame))[1])
    for _ in range(2):
        assert board.turns([model, model], large, 2, np.random.default_rng(0)).shape == (2, 2)
    monkeypatch.setattr("compress.benchmarks.boards.wire.LARGE", 8)
    before = len(sent)
    for _ in range(2):
        board.turns([model], large, 2, np.random.default_rng(0))
    assert len(sent) - before <= 4  # missing, put, turns; then turns alone
    assert sum(size > model.stat().st_size for size in sent) <= 1


def test_a_cut_connection_ends_everything_there_and_says_how_to_go_on(there: Host, board: Board, model: Path) -> None:
    """At ten moments of a benchmark, drawn at random; then it goes through."""
    generator = np.random.default_rng(1)
    candidates = [Candidate(name=name, path=model) for name in ("one", "other")]
    how: dict[str, Any] = {"baseline": "one", "data": {"name": "noise"}, "place": board}
    outcomes = []
    for _ in range(10):
        timer = threading.Timer(float(generator.uniform(0.2, 4)), there.cut)
        timer.start()
        try:
            run_benchmark(candidates, IMAGES, None, None, None, QUICK, **how)
            outcomes.append("done")
        except CutError as error:
            assert str(error) == f"pi: {remote.CUT}"
            outcomes.append("cut")
        timer.cancel()
        timer.join()
        board.close()
        assert gone(there)
    assert "cut" in outcomes
    assert run_benchmark(candidates, IMAGES, None, None, None, QUICK, **how).measurements[1].reason is None


def test_candidates_of_a_search_are_timed_on_over_a_cut(there: Host, board: Board, model: Path) -> None:
    board.machine()
    there.cut()
    assert board.turns([model], INPUTS, 2, np.random.default_rng(0)).shape == (2, 1)


def test_an_unknown_key_a_closed_door_and_an_unknown_host_are_one_line_each(there: Host, board: Board) -> None:
    known = there.client.parent / "known"
    text = known.read_text()
    known.write_text("")
    with pytest.raises(BenchmarkError, match=rf"^pi: its key is not known here; connect once by hand, `ssh -p {there.port} 127.0.0.1`"):
        board.machine()
    known.write_text(text)
    authorized = there.client.parent / "authorized"
    keys = authorized.read_text()
    authorized.write_text("")
    with pytest.raises(BenchmarkError, match=r"^pi: it lets no key of yours in; `ssh-copy-id"):
        board.machine()
    authorized.write_text(keys)
    with pytest.raises(BenchmarkError, match=r"^pi: ssh: connect to host 127\.0\.0\.1 port 1: Connection refused; is it on"):
        Board("pi", Address.of("ssh://127.0.0.1:1")).machine()


def test_no_python_and_no_libraries_are_one_line_each(there: Host, board: Board) -> None:
    python = there.bin / "python3"
    whole = python.read_text()
    try:
        written(python, f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', 0o755)
        with pytest.raises(BenchmarkError, match=r"^pi has no numpy; `compress board add NAME ssh://127\.0\.0\.1"):
            board.machine()
        for name in remote.PYTHONS.split():
            written(there.bin / name, "#!/bin/sh\nexit 1\n", 0o755)
        with pytest.raises(BenchmarkError, match=r"^pi: it has no Python of 3\.11 or newer; install one there"):
            board.machine()
    finally:
        for name in remote.PYTHONS.split():
            (there.bin / name).unlink(missing_ok=True)
        written(python, whole, 0o755)


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_one_line_each(there: Host, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"^pi: /proc/compress: .*; name another folder at the end of its address|No such file"):
        Board("pi", Address.of(f"ssh://127.0.0.1:{there.port}/proc/compress")).machine()
    full = tmp_path / "full"
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with pytest.raises(BenchmarkError, match=r"^pi: .*No space left on device; make room there, and the same command goes on"):
            Board("pi", Address.of(f"ssh://127.0.0.1:{there.port}{full}")).machine()
    finally:
        subprocess.run(["umount", str(full)], check=True)


FINE = Machine(
    folder="/f", python="3.11.2", machine="aarch64", bits=64, libc="2.36", system="Linux", free=10**9, packages={}, code=(), skew=0.0
)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"machine": "armv7l", "bits": 32},
            "pi is Linux on armv7l, 32 bits, and ONNX Runtime has wheels for 64 bits",
        ),
        ({"skew": -86_400.0}, "pi: its clock is 24.0 hours behind, with which certificates"),
        ({"free": 20_000_000}, "pi has 20 MB free in /f, 400 are needed"),
    ],
)
def test_a_machine_that_is_wrong_is_one_line(changes: dict[str, object], told: str) -> None:
    from dataclasses import replace

    with pytest.raises(BenchmarkError, match=told):
        boards._refuse("pi", replace(FINE, **changes), False)  # type: ignore[arg-type]
    boards._refuse("pi", FINE, False)


def test_the_clock_of_the_other_machine_is_read(there: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time
    monkeypatch.setattr(remote.time, "time", lambda: now() + 86_400)
    with pytest.raises(BenchmarkError, match=r"its clock is 24\.0 hours behind"):
        boards.add("pi", there.address)


def test_boards_are_added_listed_checked_and_removed(there: Host) -> None:
    assert boards.known() == {}
    assert boards.add("pi", there.address).folder == str(there.folder)
    assert boards.known() == {"pi": there.address}
    assert boards.place_named("pi").machine()["cpu"] == HERE.machine()["cpu"]
    assert "onnxruntime" in boards.check("pi").packages
    assert boards.remove("pi") == "" and boards.known() == {}
    assert not there.folder.exists()
    with pytest.raises(BenchmarkError, match=r"on \(=pi\) is no board that is known \(none\); `compress board add pi ssh://user@host`"):
        boards.place_named("pi")
    with pytest.raises(BenchmarkError, match="must be of letters"):
        boards.add("../x", there.address)
