"""Where candidates are timed: on this machine, or on one that `remote` reaches. What measures asks a place, and does not know which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

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

    def surroundings(self, threads: int) -> Surroundings: ...

    def worker(self, candidate: Candidate, *, inputs: list[np.ndarray], classes: int | None, threads: int, log: Path) -> Asked: ...

    def turns(
        self, files: Sequence[Path], images: list[np.ndarray], rounds: int, generator: np.random.Generator, runtime: Runtime = ONNX_RUNTIME
    ) -> np.ndarray: ...


class Here(Place):
    """This machine."""

    name = ""

    def surroundings(self, threads: int) -> Surroundings:
        return Surroundings(machine=machine_facts(), peak=gemm_peak(threads), energy=energy_source(), cores=strongest_cores(threads))

    def worker(self, candidate: Candidate, *, inputs: list[np.ndarray], classes: int | None, threads: int, log: Path) -> Asked:
        return Worker(candidate, inputs=inputs, classes=classes, threads=threads, log=log)

    def turns(
        self, files: Sequence[Path], images: list[np.ndarray], rounds: int, generator: np.random.Generator, runtime: Runtime = ONNX_RUNTIME
    ) -> np.ndarray:
        return in_turns(files, images, rounds, generator, runtime)


HERE = Here()
