"""A function of the user's own, ``path/score.py:iou``, as ``--score`` and ``--data`` name it on this command line.

Its file is imported as that of a network is (``model_reference``), and recorded by the hash of its text and of what it imports beside it.
Whatever it raises is told in one line, with its own exception and the line of its file; it is the user's to mend. Loads no torch.
"""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Any

from ...benchmarks.errors import BenchmarkError
from ...errors import CompressError, first_line, need_file, shown
from ..model_reference import import_file, source_of


class FunctionError(CompressError, BenchmarkError):
    """A function of the user's own that is not there, raises, or gives something else than it should."""


def is_function(text: object) -> bool:
    """Whether it reads ``path/file.py:name``."""
    return isinstance(text, str | Path) and re.search(r"\.py:[^/\\]*$", str(text)) is not None


@dataclass(frozen=True)
class Function:
    """``option``: what named it, such as "score"; ``reference``: path/file.py:name."""

    option: str
    reference: str

    @property
    def told(self) -> str:
        return f"{self.option} (={shown(self.reference)})"

    @property
    def name(self) -> str:
        return self.reference.rpartition(":")[2]

    @property
    def file(self) -> Path:
        file, colon, name = self.reference.rpartition(":")
        if not colon or not file.endswith(".py") or not name.isidentifier():
            raise FunctionError(f"{self.told} must be path/file.py:function, of a function of your own")
        need_file(Path(file), self.told, "; paths are taken from the current folder", FunctionError)
        return Path(file).resolve()

    @cached_property
    def source(self) -> str:
        """The hash of its file, and of those of the user's that it imports."""
        return source_of(self.file)

    @cached_property
    def _function(self) -> Callable[..., Any]:
        with self.theirs():
            found = getattr(import_file(self.file), self.name, None)
        if not callable(found):
            raise FunctionError(f"{self.told}: {self.file} has no function {self.name}; name one that it has")
        return found

    def __call__(self, *arguments: Any) -> Any:
        with self.theirs():
            return self._function(*arguments)

    def every(self, items: Any) -> Iterator[Any]:
        """What comes out of an iterable that it gave."""
        with self.theirs():
            iterator = iter(items)
        while True:
            with self.theirs():
                try:
                    one = next(iterator)
                except StopIteration:
                    return
            yield one

    def theirs(self) -> "_Theirs":
        return _Theirs(self)


class _Theirs:
    """Inside the block the user's code runs: what it raises becomes one line, and what it prints goes to stderr, as stdout may be JSON."""

    def __init__(self, function: Function) -> None:
        self.function, self.aside = function, redirect_stdout(sys.stderr)

    def __enter__(self) -> None:
        self.aside.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.aside.__exit__(kind, error, trace)
        if isinstance(error, Exception) and not isinstance(error, FunctionError):
            lines = [(Path(frame.f_code.co_filename), line) for frame, line in walk_tb(trace)]
            own = [one for one in lines if one[0].resolve().is_relative_to(self.function.file.parent)]
            if isinstance(error, SyntaxError) and error.filename:
                own = [(Path(error.filename), error.lineno or 0)]
            where = f"failed in {own[-1][0].name}, line {own[-1][1]}" if own else "cannot be called as it is here"
            raise FunctionError(f"{self.function.told} {where}: {first_line(error)}") from error
