"""Another machine as a place to time candidates in, over OpenSSH: ``ssh://user@host[:port][/folder]``.

The client is ``ssh`` with its own keys, its own configuration and its own check of the host's key; it asks nothing (``BatchMode``). On the
other side runs `boot`, then `there`, in one process that ends with the connection; nothing listens, and nothing is left running. It
computes with this very package, which goes there once per version, and with the libraries that `compress board add` put there or that its
Python has. Files go by their SHA-256, each once. ``folder`` is where all of it lies, ``.compress-edge`` in the home without it.

Refused, in one line each: a host that is unknown or out of reach, another system than Linux, no Python or libraries there, a folder that
cannot be written, and a connection that was cut.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from ..errors import BenchmarkError
from ..machine import Machine as Facts
from ..place import Asked, Place, Surroundings
from ..runtimes import Candidate
from ..turns import ONNX_RUNTIME, Runtime
from .wire import hash_of, packed, unpacked

FOLDER = ".compress-edge"
NEEDED = ("numpy", "onnxruntime", "msgspec")  # to measure; commands there need the rest of the base too
CHUNK = 1 << 22
CUT = "the connection was cut; what is finished is kept, and the same command goes on"
OPTIONS = ("BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=4", "RequestTTY=no", "LogLevel=ERROR")
PYTHONS = "python3 python3.14 python3.13 python3.12 python3.11"
NO_PYTHON = "no Python of 3.11 or newer"
# What OpenSSH says, and what to do about it.
CURES = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its key is another than before; find out why, then `ssh-keygen -R {host}`"),
    ("Host key verification failed", "its key is not known here; connect once by hand, `ssh {target}`, and compare it"),
    ("Permission denied", "it lets no key of yours in; `ssh-copy-id {target}`"),
    (NO_PYTHON, "it has no Python of 3.11 or newer; install one there"),
)
# The boot's text comes as one line of stdin, so that no shell has to quote it.
START = 'import os,base64;exec(base64.b64decode(b"".join(iter(lambda:os.read(0,1)or os._exit(0),b"\\n"))))'
COMMAND = (
    f"for p in {PYTHONS}; do command -v $p >/dev/null && $p -c 'import sys; sys.exit(sys.version_info < (3, 11))' </dev/null && "
    f"exec $p -c '{START}'; done; echo {NO_PYTHON} >&2; exit 3"
)


@dataclass(frozen=True)
class Address:
    """``ssh://user@host[:port][/folder]`` in its parts; `str` puts it together again."""

    host: str
    user: str = ""
    port: int | None = None
    folder: str = FOLDER

    @classmethod
    def of(cls, text: str) -> Address:
        """Raises BenchmarkError for anything else."""
        found = re.fullmatch(r"ssh://(?:([\w.+-]+)@)?([\w.-]+|\[[\w:.%]+\])(?::(\d{1,5}))?(/[^\0\n]*)?", text)
        if found is None or found[2].startswith("-") or (found[1] or "").startswith("-"):
            raise BenchmarkError(f"on (={text}) must be ssh://user@host[:port][/folder], or a name of `compress board list`")
        folder = found[4] if found[4] and found[4] != "/" else FOLDER
        return cls(host=found[2].strip("[]"), user=found[1] or "", port=int(found[3]) if found[3] else None, folder=folder)

    @property
    def target(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = self.folder if self.folder.startswith("/") else ""
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}{where}"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What `boot` tells of the other side, and `skew`, seconds that its clock is ahead."""

    folder: str
    python: str
    machine: str
    bits: int
    libc: str
    system: str
    free: int
    packages: Mapping[str, str]
    code: tuple[str, ...]
    skew: float


class Connection:
    """One connection, in lines of JSON with `boot` first; ``name``: what messages call the machine."""

    def __init__(self, name: str, address: Address, packages: Sequence[str] = NEEDED) -> None:
        self.name, self.address = name, address
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this
        port = ["-p", str(address.port)] if address.port else []
        options = [word for one in OPTIONS for word in ("-o", one)]
        command = ["ssh", *options, *port, "--", address.target, f"sh -c {shlex.quote(COMMAND)}"]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        except FileNotFoundError:
            raise BenchmarkError(f"on (={name}) needs OpenSSH's client, `ssh`, which is not installed here") from None
        try:
            self.machine = self._greeted(packages)
        except BaseException:
            self.close()
            raise

    def _greeted(self, packages: Sequence[str]) -> Machine:
        asked = time.time()
        self._write(base64.b64encode(Path(__file__).with_name("boot.py").read_bytes()) + b"\n")
        self.say(folder=self.address.folder, packages=list(packages))
        about = self.hear()
        ahead = about.pop("time") - (asked + time.time()) / 2
        return Machine(**about | {"code": tuple(about["code"])}, skew=ahead)

    def close(self) -> None:
        """End it; the other side ends with it."""
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                with suppress(BrokenPipeError):
                    end.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def say(self, **told: Any) -> None:
        self._write(json.dumps(told).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """The next line; BenchmarkError where it says that something went wrong."""
        line = b""
        while not line.endswith(b"\n"):
            line += self.read(1)
        try:
            found = json.loads(line)
        except ValueError:
            raise BenchmarkError(f"{self.name}: it said {line[:60]!r}; its shell must print nothing when `ssh` runs a command") from None
        if "error" in found:
            raise BenchmarkError(f"{self.name}: {found['error']}{_next_step(found['error'])}")
        return cast(dict[str, Any], found)

    def send(self, frame: bytes) -> None:
        self._write(frame)

    def read(self, count: int) -> bytes:
        """Exactly so many bytes."""
        assert self._process.stdout is not None, "a pipe"
        found = self._process.stdout.read(count)
        if len(found) < count:
            raise self._gone()
        return found

    def _write(self, content: bytes) -> None:
        assert self._process.stdin is not None, "a pipe"
        try:
            self._process.stdin.write(content)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _gone(self) -> BenchmarkError:
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        port = f"-p {self.address.port} " if self.address.port else ""
        for words, cure in CURES:
            if words in said:
                return BenchmarkError(f"{self.name}: " + cure.format(host=self.address.host, target=port + self.address.target))
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        if lines and lines[-1].startswith(("ssh: ", "Connection timed out")) and not hasattr(self, "machine"):
            return BenchmarkError(f"{self.name}: {lines[-1]}; is it on, and its address right?")
        return CutError(f"{self.name}: {CUT}")


class CutError(BenchmarkError):
    """The connection is gone; what was being asked may be asked again over a new one."""


def _next_step(error: str) -> str:
    if "No space left" in error:
        return "; make room there, and the same command goes on"
    return "; name another folder at the end of its address" if error.endswith(("Read-only file system", "denied", "permitted")) else ""


class Board(Place):
    """Another machine as a place. It is reached with the first question; ``close`` ends it there. ``tell`` is told what goes there."""

    def __init__(self, name: str, address: Address, tell: Callable[[str, int, int], None] | None = None) -> None:
        self.name, self.address, self._tell = name, address, tell
        self._link: Connection | None = None
        self._facts: Facts | None = None
        self._there: set[str] = set()
        self._count = 0

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def ask(self, name: str, *arguments: Any) -> Any:
        """What the other side answers, over a connection that is made where there is none."""
        if self._link is None:
            self._link, self._there = self._connected(), set()
        self._link.send(packed([name, *arguments], self._keep))
        kind, value = unpacked(self._link.read)
        if kind == "failed":
            raise BenchmarkError(f"{self.name}: {value}{_next_step(str(value))}")
        return value

    def machine(self) -> Facts:
        if self._facts is None:
            self._facts = cast(Facts, self.ask("machine"))
        return self._facts

    def surroundings(self, threads: int) -> Surroundings:
        return cast(Surroundings, self.ask("surroundings", threads))

    def worker(self, candidate: Candidate, *, inputs: list[np.ndarray], classes: int | None, threads: int, log: Path) -> Asked:
        self._count += 1
        return _Worker(self, self._count, candidate, inputs, classes, threads)

    def turns(
        self, files: Sequence[Path], images: list[np.ndarray], rounds: int, generator: np.random.Generator, runtime: Runtime = ONNX_RUNTIME
    ) -> np.ndarray:
        """As `turns.in_turns`. A connection that is cut is made anew, twice at most: what was timed before stands."""
        assert runtime is ONNX_RUNTIME, "others are compiled for this machine"
        seed, tries = int(generator.integers(2**31)), 3
        while True:
            try:
                return cast(np.ndarray, self.ask("turns", list(files), images, rounds, seed))
            except CutError:
                self.close()
                tries -= 1
                if not tries:
                    raise

    def _connected(self) -> Connection:
        link = Connection(self.name, self.address)
        try:
            about = link.machine
            if missing := [name for name in NEEDED if name not in about.packages]:
                raise BenchmarkError(f"{self.name} has no {missing[0]}; `compress board add NAME {self.address}` installs it there")
            code = package()
            digest = hash_of(code)[:16]
            if digest not in about.code:
                link.say(do="code", hash=digest, size=len(code))
                link.send(code)
                link.hear()
            link.say(do="serve", hash=digest)
        except BaseException:
            link.close()
            raise
        return link

    def _keep(self, content: bytes | Path) -> str:
        """Make sure that it is there; each goes once."""
        digest = hash_of(content)
        if digest in self._there:
            return digest
        assert self._link is not None, "something is being sent"
        self._link.send(packed(["missing", [digest]]))
        if self._answer():
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                for at in range(0, max(size, 1), CHUNK):
                    self._link.send(packed(["put", digest, file.read(CHUNK), at == 0, at + CHUNK >= size]))
                    self._answer()
                    if self._tell and size > CHUNK:
                        self._tell(f"to {self.name}", min(at + CHUNK, size), size)
        self._there.add(digest)
        return digest

    def _answer(self) -> Any:
        assert self._link is not None, "something was asked"
        kind, value = unpacked(self._link.read)
        if kind == "failed":
            raise BenchmarkError(f"{self.name}: {value}{_next_step(str(value))}")
        return value


class _Worker:
    """A worker there, as `worker.Worker` is one here."""

    def __init__(
        self, board: Board, number: int, candidate: Candidate, inputs: list[np.ndarray], classes: int | None, threads: int
    ) -> None:
        self.reason: str | None = None
        self._board, self._number = board, number
        board.ask("start", number, candidate, inputs, classes, threads)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:  # else the whole connection is given up
            self._board.ask("stop", self._number)

    def receive(self) -> Any:
        return self._take("receive")

    def ask(self, *message: Any) -> Any:
        return self._take("ask", *message)

    def _take(self, name: str, *message: Any) -> Any:
        if self.reason is not None:
            return None
        found, self.reason = self._board.ask(name, self._number, *message)
        return found


def package() -> bytes:
    """What of this package measures, and what that imports, as a zip: the same bytes for the same files."""
    above, buffer = Path(__file__).resolve().parents[2], io.BytesIO()
    root = above / "compress" if (above / "compress").is_dir() else above  # in a clone, benchmarks stands beside it
    folders = (root, root / "api", root / "benchmarks", root / "benchmarks" / "boards")
    paths = [path for folder in folders for path in folder.glob("*.py")]
    with zipfile.ZipFile(buffer, "w") as target:
        for path in sorted(paths):
            entry = zipfile.ZipInfo((Path("compress") / path.relative_to(root)).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, path.read_bytes())
    return buffer.getvalue()
