"""What `remote` talks to on the other machine: starts the same workers, and passes on what they are asked.

It is started by `boot` in a folder, listens to no one but its stdin, and ends with it: at once where the connection is cut, whatever is
being computed, and after `SILENT` seconds in which nothing came. Nothing that it started outlives it.

Each request is a list, a name of `Requests` and its arguments; each answer is ``["made", value]``, or ``["failed", why]``.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import shutil
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BenchmarkError
from ..machine import Machine
from ..place import HERE, Surroundings
from ..runtimes import Candidate
from ..turns import in_turns
from ..worker import Worker
from .wire import hash_of, packed, unpacked

SILENT = 1800.0


class Requests:
    """What may be asked: each public method, by its name."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._files, self._scratch = folder / "files", scratch
        self._files.mkdir(exist_ok=True)
        self._workers: dict[int, Worker] = {}

    def kept(self, digest: str) -> Path:
        """Where the file of a hash lies."""
        if len(digest) != 64 or not digest.isalnum():
            raise BenchmarkError("hash (=?) must be a SHA-256")
        return self._files / digest

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Those of which no file is here."""
        return [one for one in digests if not self.kept(one).is_file()]

    def put(self, digest: str, content: bytes, first: bool, last: bool) -> None:
        """Append to a file; it is there once all of it is."""
        part = self._scratch / digest
        with part.open("wb" if first else "ab") as file:
            file.write(content)
        if last:
            if hash_of(part) != digest:
                raise BenchmarkError("a file came damaged")
            part.replace(self.kept(digest))

    def machine(self) -> Machine:
        """What it is."""
        return HERE.machine()

    def surroundings(self, threads: int) -> Surroundings:
        """What a benchmark records of this machine."""
        return HERE.surroundings(threads)

    def start(self, number: int, candidate: Candidate, inputs: list[np.ndarray], classes: int | None, threads: int) -> None:
        """A worker; it is asked by its number from then on."""
        log = self._scratch / f"{number}.log"
        self._workers[number] = Worker(candidate, inputs=inputs, classes=classes, threads=threads, log=log)

    def receive(self, number: int) -> list[Any]:
        """Its first answer, and why it has failed."""
        worker = self._workers[number]
        return [worker.receive(), worker.reason]

    def ask(self, number: int, *message: Any) -> list[Any]:
        """Its answer, and why it has failed."""
        worker = self._workers[number]
        return [worker.ask(*message), worker.reason]

    def stop(self, number: int) -> None:
        """End it."""
        if number in self._workers:
            self._workers.pop(number).__exit__(None, None, None)

    def turns(self, files: Sequence[Path], images: list[np.ndarray], rounds: int, seed: int) -> np.ndarray:
        """As `turns.in_turns`."""
        return in_turns(files, images, rounds, np.random.default_rng(seed))


def serve(folder: Path) -> None:
    """Answer until stdin ends; called by `boot`."""
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not come between
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder / "scratch")))
        threading.Thread(target=_watch, args=(scratch,), daemon=True).start()
        requests = Requests(folder, scratch)
        with suppress(EOFError, BrokenPipeError):
            while True:
                name, *arguments = unpacked(_read, requests.kept)
                try:
                    answer = ["made", getattr(requests, name)(*arguments)]
                except (BenchmarkError, OSError) as error:
                    answer = ["failed", str(error) if isinstance(error, BenchmarkError) else f"{error.filename}: {error.strerror}"]
                except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors have no class in common
                    answer = ["failed", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"]
                _write(out, packed(answer))
        _end()


def _read(count: int) -> bytes:
    parts = []
    while count:
        if not select.select([0], [], [], SILENT)[0]:
            raise EOFError
        part = os.read(0, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write(out: int, frame: bytes) -> None:
    view = memoryview(frame)
    while view:
        view = view[os.write(out, view) :]


def _watch(scratch: Path) -> None:
    """End everything once the other end is gone, also while something is computed."""
    gone = select.POLLHUP | getattr(select, "POLLRDHUP", 0)
    poll = select.poll()
    poll.register(0, gone)
    poll.poll()
    shutil.rmtree(scratch, ignore_errors=True)
    _end()
    os._exit(0)


def _end() -> None:
    for process in multiprocessing.active_children():
        process.kill()
