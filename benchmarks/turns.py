"""Latency of many graphs side by side in one process, as a search of them needs it: fast, and as a ratio to the first.

This only steers; what a finished file gains, `run_benchmark` says, with processes of its own for each file. In each round every file is
loaded anew and gets one turn, in random order and in every second round backwards; a round gives one ratio, and the 95% interval over the
rounds is Student's t on logarithms. Loading anew matters, as a session keeps the luck of its memory layout: of k49 against itself, 25 times
in 12 rounds, the interval held 1 in 64% of the cases with sessions kept, in 92% loaded anew. Large files are loaded a few at a time.

Source of the statistics: `statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .runtimes import Candidate, onnx_session
from .statistics import Interval, over_launches
from .worker import WAKE_CALLS, time_calls

INPUTS = 32  # timed calls cycle over so many different images
TURN_SECONDS, LEAST_CALLS, MOST_CALLS = 0.03, 5, 200
MOST_BYTES = 32e6  # of files that are open at once: a session of ONNX Runtime takes several times what its file does
OPEN_SECONDS = 0.02  # to load a file; with it a turn of a small network takes as long as it says here


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where graphs are timed. ``opening`` gives for a file what is called as a session of ONNX Runtime is; ``ready`` readies files before
    that, in ``seconds`` each.
    """

    opening: Callable[[Path], Any]
    ready: Callable[[Sequence[Path]], None] = lambda files: None
    seconds: float = 0.0


def _in_onnx_runtime(file: Path) -> Any:
    return onnx_session(Candidate(name="", path=file), threads=1)


ONNX_RUNTIME = Runtime(opening=_in_onnx_runtime)


def in_turns(
    files: Sequence[Path], images: list[np.ndarray], rounds: int, generator: np.random.Generator, runtime: Runtime = ONNX_RUNTIME
) -> np.ndarray:
    """Median seconds per call of each graph in each round, float64 ``(rounds, files)``, all in turns as the module says.

    Args:
        files: graphs with one input, uint8 or float32 in [0, 1]. images: uint8 ``(1, C, H, W)`` each; the calls cycle over them.
    """
    runtime.ready(files)
    seconds = np.empty((rounds, len(files)))
    order = list(range(len(files)))
    for number, row in enumerate(seconds):
        # Whatever comes first may gain or lose by it, so every second round goes backwards.
        order = order[::-1] if number % 2 else generator.permutation(len(files)).tolist()
        for some in _fitting(files, order):
            row[some] = _turns([runtime.opening(files[index]) for index in some], images)
    return seconds


def _fitting(files: Sequence[Path], order: Sequence[int]) -> Iterator[list[int]]:
    """``order`` in parts whose files have no more than :data:`MOST_BYTES`, or are one."""
    part, size = list[int](), 0
    for index in order:
        more = _size(files[index])
        if part and size + more > MOST_BYTES:
            yield part
            part, size = [], 0
        part, size = [*part, index], size + more
    if part:
        yield part


def _size(file: Path) -> int:
    return file.stat().st_size


def _turns(sessions: Sequence[Any], images: list[np.ndarray]) -> list[float]:
    return [_turn(session, images) for session in sessions]


def random_images(shape: Sequence[int], floats: bool, generator: np.random.Generator) -> list[np.ndarray]:
    """What timed calls cycle over: images of noise, uint8 ``(1, C, H, W)``, or float32 in [0, 1) where the network takes such."""
    if floats:
        return [generator.random((1, *shape), dtype=np.float32) for _ in range(INPUTS)]
    return [generator.integers(0, 256, (1, *shape), dtype=np.uint8) for _ in range(INPUTS)]


def ratios_to_first(seconds: np.ndarray) -> list[Interval]:
    """The latency of every file but the first as a fraction of the first's, with its 95% interval; of seconds ``(rounds, files)``."""
    return [interval_of(other / seconds[:, 0]) for other in seconds.T[1:]]


def interval_of(ratios: np.ndarray) -> Interval:
    """The middle of the ratios of two rounds or more, with its 95% interval."""
    interval = over_launches(ratios.tolist())
    assert interval is not None, "there are two rounds and more"
    return interval


def _turn(session: Any, images: list[np.ndarray]) -> float:
    """Median seconds of calls with one image, as many as fit into a turn."""
    [entry] = session.get_inputs()
    timed = partial(time_calls, lambda image: session.run(None, {entry.name: image})[0], [_fed(entry.type, image) for image in images])
    calls = int(np.clip(TURN_SECONDS * 1e9 / float(np.median(timed(0, WAKE_CALLS))), LEAST_CALLS, MOST_CALLS))
    return float(np.median(timed(WAKE_CALLS, calls))) / 1e9


def _fed(kind: str, images: np.ndarray) -> np.ndarray:
    """Images uint8 as an input takes them; floats stay as they are."""
    if images.dtype == np.uint8 and kind == "tensor(float)":
        images = images.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(images)
