"""Graphs as C for searches that are told ``--runtime c``: how long they take on this machine, and what they answer.

A search times many graphs, of which several differ in their numbers alone. Those are compiled once, as the time does not depend on the
numbers. What is only looked at is compiled with :data:`LOOK`, which takes two thirds of the time and keeps the order; what decides as
it will run. All cores compile, and nothing else happens meanwhile.

Libraries are kept by the hash of their text, the compiler's version and its flags in ``$XDG_CACHE_HOME/compress-edge/c`` (``~/.cache``),
the :data:`KEPT` newest, so that a search that was killed does not compile them again. They do not lie in ``runs``: what is there may be
anybody's, and is never run.

Refused: no compiler, and graphs that cannot be written as C, by the name of the node.
"""

import dataclasses
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts.project import Console
from ...benchmarks.compiled import PAGE, Compiled, Loaded
from ...benchmarks.machine import usable_cores
from ...benchmarks.runtimes import Candidate
from ...benchmarks.turns import Runtime
from ...errors import CompressError
from .compilers import STANDARD, compiler_here, toolchain
from .library import NAME, build, described, written

if TYPE_CHECKING:
    from ...codegen.program import Program

LOOK, DECIDE = "-O1", STANDARD[-1]
KEPT = 100
SECONDS = 6.0  # that a network of some 60 layers takes to compile on an idle core
_NUMBER = re.compile(r"-?\b\d+(?:\.\d+)?(?:e[-+]?\d+)?f\b")


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A graph that was written as C: hashes of its text, and of that without numbers, and what its library takes and gives."""

    text: str
    shape: str
    about: Compiled


class _Session:
    """A library, called as a session of ONNX Runtime is; the memory that it computes in lies elsewhere each time."""

    def __init__(self, library: Compiled) -> None:
        self._loaded = Loaded(library, place=int(np.random.default_rng().integers(PAGE)))
        name, _, kind = library.taken
        self._entry = SimpleNamespace(name=name, type=kind)
        self._calls: dict[int, Callable[[], Any]] = {}  # each keeps its image

    def get_inputs(self) -> list[SimpleNamespace]:
        return [self._entry]

    def run(self, _: None, fed: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.float32]]:
        image = fed[self._entry.name]
        if id(image) not in self._calls:  # it takes numpy as long to tell where it lies as a small layer
            self._calls[id(image)] = self._loaded.bound(image)
        self._calls[id(image)]()
        return (self._loaded.found,)


class InC:
    """Compiles and calls. ``folder``: where libraries are kept, as the module says where none is named; ``compiled``: how many were."""

    def __init__(self, console: Console, folder: Path | None = None) -> None:
        self.cc, self._console = compiler_here("runtime (=c)"), console
        self._folder = folder or kept_in()
        self._known: dict[Path, _Known] = {}
        self._programs: dict[Path, Program] = {}  # those that are not compiled yet
        self.compiled = 0

    def refuses(self, file: Path) -> str:
        """Why a graph cannot be written as C, or nothing."""
        try:
            self._look_at(file)
        except CompressError as error:
            return str(error)
        return ""

    def runtime(self, level: str = DECIDE) -> Runtime:
        """How files are timed."""
        return Runtime(ready=partial(self._ready, level=level), opening=partial(self._opening, level=level), seconds=SECONDS)

    def candidate(self, file: Path) -> Candidate:
        """The file with the numbers that are its own, to be asked for answers."""
        known = self._look_at(file)
        [made] = self._compile([(file, known.text, DECIDE)])
        return Candidate(name=file.stem, path=file, runtime="c", compiled=dataclasses.replace(known.about, path=made))

    def _ready(self, files: Sequence[Path], level: str) -> None:
        self._compile([(file, self._look_at(file).shape, level) for file in files])
        for file in files:
            self._programs.pop(file, None)

    def _opening(self, file: Path, level: str) -> "_Session":
        known = self._known[file]
        return _Session(dataclasses.replace(known.about, path=self._place(known.shape, level)))

    def _look_at(self, file: Path) -> _Known:
        if file not in self._known:
            program = self._programs[file] = written(file)
            text = program.files[f"{NAME}.c"]
            self._known[file] = _Known(text=_hash([text]), shape=_hash(_without_numbers(text)), about=described(program, Path()))
        return self._known[file]

    def _place(self, text: str, level: str) -> Path:
        return self._folder / f"{_hash([text, level, *toolchain().values()])[:32]}.so"

    def _compile(self, wanted: Sequence[tuple[Path, str, str]]) -> list[Path]:
        """The library of each file, for the hash of its text and a level; those that are not there are made, on all cores."""
        places = {self._place(text, level): (file, level) for file, text, level in wanted}
        missing = {place: what for place, what in places.items() if not place.is_file()}
        told = f"graphs compiled as C ({self.compiled} before)" if self.compiled else "graphs compiled as C"
        with ThreadPoolExecutor(usable_cores()) as pool:
            for done, _ in enumerate(pool.map(self._make, missing, missing.values())):
                self._console.progress(told, done + 1, len(missing))
        self.compiled += len(missing)
        for place in places.keys() - missing.keys():
            with suppress(OSError):
                os.utime(place)
        _forget(self._folder)
        return list(places)

    def _make(self, target: Path, what: tuple[Path, str]) -> None:
        file, level = what
        program = self._programs.get(file) or written(file)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=self._folder) as place:
            made = Path(place) / f"{NAME}.so"
            if told := build(self.cc, program, made, (*STANDARD[:-1], level)):
                raise CompressError(f"runtime (=c): a graph was not compiled, {told}; try another compiler, or leave it out")
            made.replace(target)


def kept_in() -> Path:
    """Where libraries are kept, by the XDG base directory specification."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "compress-edge" / "c"


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _without_numbers(text: str) -> Iterable[str]:
    """The lines without weights, and with 0 for every float32: programs of the same lines take the same time."""
    return (_NUMBER.sub("0f", line.partition(" = {")[0] if line.startswith("static const") else line) for line in text.splitlines())


def _forget(folder: Path) -> None:
    """Remove all but the newest libraries; what a process has opened stays its own."""
    with suppress(OSError):  # another process does the same
        for path in sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            path.unlink()
