"""Where candidates are timed: on this machine, or on one that `boards.remote` reaches. What measures asks a place, and knows not which."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from .errors import BenchmarkError
from .gauges import energy_source
from .machine import Machine, machine_facts, strongest_cores
from .peak import gemm_peak
from .runtimes import Candidate
from .turns import ONNX_RUNTIME, Runtime, in_turns
from .worker import Worker


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a benchmark records of the machine; see `results.Result`. ``cores``: those of which each round takes the next one."""

    machine: Machine
    peak: float | None
    energy: str
    cores: list[int]


class Asked(Protocol):
    """A candidate in a process of its own, see `worker.Worker`."""

    reason: str | None

    def __enter__(self) -> Asked: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def receive(self) -> Any: ...

    def ask(self, *message: Any) -> Any: ...


class Place(Protocol):
    """``name``: what a message calls it; nothing for this machine."""

    name: str

    def machine(self) -> Machine: ...

    def surroundings(self, threads: int) -> Surroundings: ...

    def worker(self, candidate: Candidate, *, inputs: list[np.ndarray], classes: int | None, threads: int, log: Path) -> Asked: ...

    def turns(
        self, files: Sequence[Path], images: list[np.ndarray], rounds: int, generator: np.random.Generator, runtime: Runtime = ONNX_RUNTIME
    ) -> np.ndarray: ...


class Here(Place):
    """This machine."""

    name = ""

    def machine(self) -> Machine:
        return machine_facts()

    def surroundings(self, threads: int) -> Surroundings:
        return Surroundings(machine=machine_facts(), peak=gemm_peak(threads), energy=energy_source(), cores=strongest_cores(threads))

    def worker(self, candidate: Candidate, *, inputs: list[np.ndarray], classes: int | None, threads: int, log: Path) -> Asked:
        return Worker(candidate, inputs=inputs, classes=classes, threads=threads, log=log)

    def turns(
        self, files: Sequence[Path], images: list[np.ndarray], rounds: int, generator: np.random.Generator, runtime: Runtime = ONNX_RUNTIME
    ) -> np.ndarray:
        return in_turns(files, images, rounds, generator, runtime)


HERE = Here()


@contextmanager
def answering(
    place: Place, candidate: Candidate, shape: tuple[int, int, int], classes: int | None
) -> Iterator[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]]:
    """What a file answers there: a function of images ``(B, C, H, W)`` to logits ``(B, K)``, and probabilities where it gives them.

    Raises BenchmarkError where it does not load or run.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = [np.zeros((1, *shape), np.uint8)]
        with place.worker(candidate, inputs=inputs, classes=classes, threads=1, log=Path(folder, "log")) as worker:

            def heard(found: object) -> Any:
                if worker.reason is not None:
                    raise BenchmarkError(worker.reason)
                return found

            heard(worker.receive())
            heard(worker.ask("open"))
            yield lambda images: heard(worker.ask("logits", images))
