"""The terminal that a stage talks to: remarks and progress on stderr; results go to stdout.

Where somebody watches, long work is a bar with the time it took and the time that is left; elsewhere (CI, a notebook, a file) a plain line
every few seconds. Of the processes that torchrun started one speaks. Colour is left out where ``NO_COLOR`` says so, and off a terminal.
"""

import os
import sys
import time
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

import click

from ..errors import CompressError, neutral

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET_SECONDS = 10.0  # between two plain lines


def tell(text: str) -> None:
    """Print a result; raises CompressError where it cannot be written. Whoever stops to read, as head does, had enough."""
    try:
        click.echo(neutral(text))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise CompressError(f"stdout: {error.strerror}; what was made is kept") from error


class Terminal:
    """See :class:`compress.artifacts.project.Console`; a bar is one ``label`` up to ``done == total``, and its words may change."""

    def __init__(self) -> None:
        self._silent = os.environ.get("RANK", "0") != "0"
        self._watched = sys.stderr.isatty() and not self._silent
        self._spoke = self._began = time.monotonic()
        self._open = False

    @cached_property
    def _bar(self) -> "Progress":
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        words = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(24), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(), words)
        return Progress(*columns, console=Console(stderr=True), transient=True)

    def say(self, text: str) -> None:
        self.close()
        if not self._silent:
            self._echo(text)

    def progress(self, label: str, done: int, total: int) -> None:
        if self._silent:
            return
        now, label = time.monotonic(), neutral(label)
        if not self._open:
            self._open, self._began, self._spoke = True, now, now
            if self._watched:
                self._bar.add_task(label, total=total)
                self._bar.start()
        if self._watched:
            self._bar.update(self._bar.task_ids[-1], description=label, completed=done, total=total)
        elif now - self._spoke >= QUIET_SECONDS and done < total:
            self._spoke, took = now, now - self._began
            left = f", {took * (total - done) / done:.0f} s left" if done else ""
            self._echo(f"  {100 * done / max(1, total):3.0f}%  {label}  ({took:.0f} s{left})")
        if done >= total:
            self.close()

    def _echo(self, text: str) -> None:
        with suppress(OSError):  # whom it is told went away; the work is worth as much
            click.echo(neutral(text), err=True)

    def close(self) -> None:
        """Take the bar away, and give the cursor back."""
        if self._open and self._watched:
            self._bar.stop()
            self._bar.remove_task(self._bar.task_ids[-1])
        self._open = False
