"""A candidate in a process of its own, so that no runtime's threads, caches or crash reach another candidate.

The worker waits on a pipe and computes only when asked. It handles no error: it dies of it, and the parent reads the reason off what it
left on stderr. That way a Python exception, an abort in native code and a kill for memory all come out as one line. It ends when the
pipe closes, so a killed parent leaves none behind.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .gauges import Turn, Watch, clock_step, peak_memory
from .machine import emulated
from .profile import Profile, profile_onnx
from .runtimes import Candidate, OnDevice, Opened, Predict, check_logits, import_runtime, open_model
from .sweep import Point, calls_within
from .torchnets import until_awake

WARM_BLOCK_SECONDS, WARM_LEAST, WARM_MOST, WARM_SECONDS, WARM_GAIN = 0.05, 4, 100, 10.0, 0.02
WARM_RULE = (
    f"blocks of {WARM_BLOCK_SECONDS:g} s and at least 3 calls, at least {WARM_LEAST} blocks; steady once a block's median is less than "
    f"{WARM_GAIN:.0%} under the lowest before it; at most {WARM_MOST} blocks or {WARM_SECONDS:.0f} s"
)
MOST_OPENING_NS = 300_000_000
WAKE_CALLS = 5  # untimed calls at the start of a round: the other candidates have just emptied the caches


class Worker:
    """One candidate's process, seen from the parent; the first answer, True, comes unasked once its runtime is imported.

    Once it has failed, `reason` says why and every answer is None.
    """

    def __init__(self, candidate: Candidate, *, inputs: list[np.ndarray], classes: int | None, threads: int, log: Path) -> None:
        context = multiprocessing.get_context("spawn")  # fork would carry the parent's runtime threads over in an undefined state
        self.reason: str | None = None
        self._log = log
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, str(log)), daemon=True)
        self._process.start()
        theirs.close()
        # The candidate follows through the pipe: unpickling it imports the caller's modules, whose errors are then caught like any.
        self.send(candidate, inputs, classes, threads)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def send(self, *message: Any) -> None:
        """Hand over a command; `receive` must follow before the next."""
        if self.reason is None:
            try:
                self._pipe.send(message)
            except (BrokenPipeError, ConnectionResetError):
                self._find_reason()

    def receive(self) -> Any:
        """The answer to the last `send`, or None when the worker has failed."""
        if self.reason is None:
            try:
                return self._pipe.recv()
            except (EOFError, ConnectionResetError):
                self._find_reason()
        return None

    def ask(self, *message: Any) -> Any:
        """`send`, then `receive`."""
        self.send(*message)
        return self.receive()

    def _find_reason(self) -> None:
        self._process.join()
        code = self._process.exitcode or 0
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        by = signal.Signals(-code).name if code < 0 else ""
        ended = f"the process ended by {by}" if by else f"the process ended with exit code {code}"
        self.reason = reason_in(log) or ended + (", perhaps for want of memory" if by == "SIGKILL" else "")


def reason_in(log: str) -> str:
    """The message of the last Python exception in a log, else its last line; one line of at most 300 characters, or nothing."""
    said = [line for line in log.rpartition("Traceback (most recent call last):")[2].splitlines() if line.strip()]
    if "Traceback (most recent call last):" in log:
        said = [line for line in said if not line.startswith(" ")][:1]
    line = said[-1].strip() if said else ""
    return re.sub(r"^([\w]+\.)+(?=\w+(: |$))", "", line).removeprefix("BenchmarkError: ")[:300]


def serve(pipe: Connection, log: str) -> None:
    """The worker's main function: loads the runtime, then answers commands until the pipe closes; see `Session` for them."""
    with Path(log).open("wb") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides, and closes the pipe
    candidate, inputs, classes, threads = pipe.recv()
    import_runtime(candidate)
    session = Session(candidate, inputs, classes, threads)
    pipe.send(True)
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(session, command)(*arguments))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What opening a model told; see `Opened`. `clock_step` is in nanoseconds; `emulated`: see `machine`."""

    providers: tuple[str, ...]
    load_ns: int
    first_ns: int
    clock_step: int
    emulated: bool = False


class Session:
    """What a worker answers: each public method is a command of the parent's. `open` comes first."""

    def __init__(self, candidate: Candidate, inputs: list[np.ndarray], classes: int | None, threads: int) -> None:
        self._candidate, self._inputs, self._classes, self._threads = candidate, inputs, classes, threads
        self._shape = inputs[0].shape[1:]
        self._model: Opened | None = None
        self._independent: bool | None = None
        self._load_ns = 0

    def open(self) -> Facts:
        """Load the file; workers do so in turn, so that none of the times is another's doing."""
        model = self._model = open_model(self._candidate, self._shape, self._classes, self._threads)
        self._load_ns = model.load_ns
        if model.last:  # in the memory of who uses such a file images lie as it takes them
            self._inputs = [np.ascontiguousarray(one.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for one in self._inputs]
        about: dict[str, Any] = {"providers": model.providers, "load_ns": model.load_ns, "first_ns": model.first_ns}
        return Facts(**about, clock_step=clock_step(), emulated=emulated())

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Class indices, int64 ``(B,)``, and of labels that do not exclude each other the logits ``(B, K)`` too, else None."""
        assert self._classes is not None and self._model is not None, "without labels nobody asks"
        logits = check_logits(self._predict(images), len(images), self._classes)
        if self._independent is None:
            sure = logits if self._model.probabilities is None else self._model.probabilities(images)
            self._independent = are_independent(sure)
        return logits.argmax(axis=1).astype(np.int64), logits if self._independent else None

    def logits(self, images: np.ndarray) -> list[np.ndarray | None]:
        """Logits ``(B, K)``, and probabilities where the file gives them as such."""
        assert self._model is not None, "open comes first"
        return [self._model.predict(images), self._model.probabilities(images) if self._model.probabilities else None]

    def answer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """All that it gives for one image."""
        return tuple(np.atleast_1d(one) for one in self._model.predict(image)) if self._model else ()

    def release(self) -> bool:
        """Give back the memory of the batches that were read."""
        if self._model is not None and self._model.release is not None:
            self._model.release()
        return True

    def warm_up(self) -> tuple[np.ndarray, bool]:
        """All samples, int64 nanoseconds, and whether calls became steady."""
        return warm_up(self._predict, self._inputs)

    def time(self, first: int, calls: int, core: int | None = None) -> tuple[np.ndarray, np.ndarray, Turn]:
        """A few untimed calls, then `calls` timed ones, int64 nanoseconds each, and what the system said meanwhile; all on one `core`.

        A session keeps for its life the luck of where its memory lies, so each turn has one of its own, where opening it takes no longer
        than the turn; the old one goes when the new one is there, as the new one would get its place otherwise.
        """
        with on_core(core):
            return self._turn(first, calls)

    def _turn(self, first: int, calls: int) -> tuple[np.ndarray, np.ndarray, Turn]:
        if self._candidate.decides and self._load_ns < MOST_OPENING_NS:
            self._model = open_model(self._candidate, self._shape, self._classes, self._threads)
        if self._candidate.device == "cuda":
            until_awake(lambda: self._predict(self._inputs[first % len(self._inputs)]))
        woken = time_calls(self._predict, self._inputs, first, WAKE_CALLS)
        watch = Watch()
        return woken, time_calls(self._predict, self._inputs, first, calls), watch.stop()

    def memory(self) -> int | None:
        """Bytes, the most so far."""
        return peak_memory()

    def on_device(self, calls: int) -> np.ndarray:
        """int64 nanoseconds per call on the GPU alone; none where there is no GPU to time by itself."""
        time_on: OnDevice | None = self._model.on_device if self._model else None
        return time_on(self._inputs[0], calls) if time_on else np.empty(0, np.int64)

    def profile(self) -> Profile | None:
        """Where the nodes run, for ONNX Runtime."""
        return profile_onnx(self._candidate, self._shape) if self._candidate.runtime == "onnxruntime" else None

    def sweep(self, points: list[Point]) -> list[np.ndarray]:
        """For each batch and number of threads int64 nanoseconds ``(calls,)``, after one call that does not count."""
        pool, threads, found = np.concatenate(self._inputs), self._threads, []
        for batch, wanted in points:
            if wanted != threads:
                self._model = None  # its threads must end before others begin
                self._model, threads = open_model(self._candidate, self._shape, self._classes, wanted), wanted
            images = pool.take(range(batch), axis=0, mode="wrap")
            time_calls(self._predict, [images], 0, 1)
            trial = time_calls(self._predict, [images], 0, 1)
            found.append(np.concatenate([trial, time_calls(self._predict, [images], 0, calls_within(int(trial[0])))]))
        return found

    @property
    def _predict(self) -> Predict:
        assert self._model is not None, "open comes first"
        return self._model.predict


def are_independent(sure: np.ndarray) -> bool:
    """Whether these are probabilities ``(B, K)`` of labels that do not exclude each other, as a sigmoid gives them."""
    return bool((sure >= 0).all() and (sure <= 1).all() and np.abs(sure.sum(axis=1) - 1).max() > 1e-3)


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Keep this thread on one core of those it may use; None leaves it where it is."""
    if core is None:
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def time_calls(predict: Predict, inputs: list[np.ndarray], first: int, calls: int) -> np.ndarray:
    """Time calls one by one, cycling over the inputs from number `first` on; int64 nanoseconds ``(calls,)``."""
    clock = time.perf_counter_ns
    nanoseconds = np.empty(calls, np.int64)
    gc.disable()  # a collection inside a sample would be Python's time, not the model's
    for call in range(calls):
        images = inputs[(first + call) % len(inputs)]
        begin = clock()
        predict(images)
        nanoseconds[call] = clock() - begin
    gc.enable()
    return nanoseconds


def warm_up(predict: Predict, inputs: list[np.ndarray]) -> tuple[np.ndarray, bool]:
    """Call until steady, by `WARM_RULE`; all samples as int64 nanoseconds, and whether it became steady."""
    first = time_calls(predict, inputs, 0, 3)
    calls = max(3, round(WARM_BLOCK_SECONDS * 1e9 / float(np.median(first))))
    blocks, lowest, begin = [first], np.inf, time.monotonic()
    while len(blocks) <= WARM_MOST and time.monotonic() - begin < WARM_SECONDS:
        blocks.append(time_calls(predict, inputs, 0, calls))
        median = float(np.median(blocks[-1]))
        if len(blocks) > WARM_LEAST and median > (1 - WARM_GAIN) * lowest:
            return np.concatenate(blocks), True
        lowest = min(lowest, median)
    return np.concatenate(blocks), False
