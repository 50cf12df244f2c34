"""Measures candidates side by side: latency in turns, accuracy on the same images, size, and the machine it was done on.

A launch starts one fresh process per candidate and warms each up until steady. Then come rounds: in each, every candidate takes a turn in
random order, and only one computes at a time. Several launches, since a process keeps its luck (see `statistics`). A candidate that
cannot load or dies is "not measured: reason" and stops no other.

Refused: no candidates, two of the same name, runtime and device, an unknown baseline, images that are not uint8 or do not fit the labels,
settings out of range.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from . import cost
from .errors import BenchmarkError
from .machine import machine_facts
from .results import Measurement, Result
from .runtimes import Candidate
from .statistics import MOST_LAUNCHES, latency, speedup
from .worker import WARM_RULE, Worker

Score = Callable[[np.ndarray, np.ndarray, int], dict[str, float]]
Progress = Callable[[str, int, int], None]

PREDICT_BATCH = 256
DISTINCT_INPUTS = 32  # timed calls cycle over so many different inputs


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How to measure.

    Args:
        threads: CPU threads of each runtime. batch: images per timed call.
        launches: fresh processes per candidate, 2 to 30. rounds: turns per launch. samples: timed calls per turn.
        seed: of the order of turns and the choice of timed images.

    Raises:
        BenchmarkError: a value out of range.
    """

    threads: int = 1
    batch: int = 1
    launches: int = 5
    rounds: int = 4
    samples: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("threads", "batch", "rounds", "samples"):
            if getattr(self, name) < 1:
                raise BenchmarkError(f"{name} (={getattr(self, name)}) must be at least 1; leave it out for the default")
        if not 2 <= self.launches <= MOST_LAUNCHES:
            raise BenchmarkError(f"launches (={self.launches}) must lie in 2 to {MOST_LAUNCHES}; an interval needs two, 5 is the default")
        if self.seed < 0:
            raise BenchmarkError(f"seed (={self.seed}) must not be negative; 0 is the default")


@dataclass
class _Record:
    """What has been gathered of one candidate so far."""

    reason: str | None = None
    providers: list[str] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    warmup: list[np.ndarray] = field(default_factory=list)
    unsteady: int = 0
    samples: list[np.ndarray] = field(default_factory=list)


def run_benchmark(
    candidates: Sequence[Candidate],
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    score: Score,
    config: BenchmarkConfig,
    *,
    baseline: str,
    data: Mapping[str, Any],
    progress: Progress | None = None,
) -> Result:
    """Measure all candidates.

    Args:
        candidates: in the order in which the report shows them.
        images, labels: the test set, uint8 ``(N, C, H, W)`` and integers ``(N,)``.
        classes: K. score: ``score(labels, predictions, classes)``, fractions with ``balanced_accuracy`` among them.
        baseline: the name of the candidate to compare with; where several runtimes have it, ONNX Runtime's on the CPU.
        data: name and fingerprint of the test set, passed through.
        progress: told what is done, how much of it, and how much there is.

    Raises:
        BenchmarkError: as the module says.
    """
    _check(candidates, images, labels)
    index = _baseline_index(candidates, baseline)
    records = [_Record() for _ in candidates]
    generator = np.random.default_rng(config.seed)
    picked = generator.integers(0, len(images), (DISTINCT_INPUTS, config.batch))
    inputs = [np.ascontiguousarray(images[pick]) for pick in picked]
    machine, created = machine_facts(), datetime.now(UTC).isoformat(timespec="seconds")
    order = np.arange(len(candidates))
    for launch in range(config.launches):
        # A file against itself, always started first and barely warmed up, came out 0.6% slower in 23 of 24 benchmarks. So the order is
        # drawn anew for every second launch and reversed in the next: that takes such an effect out of the mean and into the interval.
        order = order[::-1] if launch % 2 else generator.permutation(len(candidates))
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            pairs = []
            for number in order.tolist():
                if records[number].reason is None:
                    log = Path(folder, str(number))
                    worker = Worker(candidates[number], inputs=inputs, classes=classes, threads=config.threads, log=log)
                    pairs.append((stack.enter_context(worker), records[number]))
            for worker, record in pairs:
                record.providers = worker.receive() or []
            if launch == 0:
                _predict(pairs, images, progress)
            _time(pairs, launch, config, generator, progress)
            for worker, record in pairs:
                record.reason = worker.reason
    return Result(
        created=created,
        machine=machine,
        data={**data, "images": len(images), "classes": classes, "shape": list(images.shape[1:])},
        settings={**asdict(config), "warm_up": WARM_RULE},
        baseline=index,
        measurements=tuple(
            _measurement(candidate, record, records[index], labels, classes, score, config)
            for candidate, record in zip(candidates, records, strict=True)
        ),
    )


def _check(candidates: Sequence[Candidate], images: np.ndarray, labels: np.ndarray) -> None:
    seen = set()
    for candidate in candidates:
        key = (candidate.name, candidate.runtime, candidate.device)
        if key in seen:
            raise BenchmarkError(f"candidate (={candidate.name}) stands twice for {' on '.join(key[1:])}; give each file a name of its own")
        seen.add(key)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise BenchmarkError(
            f"images (={images.dtype} {images.shape}) must be uint8 (N, C, H, W) with N of at least 1; hand in the test set"
        )
    if labels.shape != (len(images),):
        raise BenchmarkError(f"labels (={labels.shape}) must be one per image, ({len(images)},); hand in the labels of the same images")


def _baseline_index(candidates: Sequence[Candidate], name: str) -> int:
    named = [index for index, candidate in enumerate(candidates) if candidate.name == name]
    if not named:
        known = ", ".join(candidate.name for candidate in candidates) or "none"
        raise BenchmarkError(f"baseline (={name}) is none of the candidates; choose one of: {known}")
    onnx = [index for index in named if (candidates[index].runtime, candidates[index].device) == ("onnxruntime", "cpu")]
    return (onnx or named)[0]


def _predict(pairs: list[tuple[Worker, _Record]], images: np.ndarray, progress: Progress | None) -> None:
    for start in range(0, len(images), PREDICT_BATCH):
        for worker, _ in pairs:
            worker.send("predict", images[start : start + PREDICT_BATCH])
        for worker, record in pairs:  # no clock runs here, so all compute at once
            answer = worker.receive()
            if answer is not None:
                record.predictions.append(answer)
        if progress:
            progress("test images read", min(start + PREDICT_BATCH, len(images)), len(images))


def _time(
    pairs: list[tuple[Worker, _Record]], launch: int, config: BenchmarkConfig, generator: np.random.Generator, progress: Progress | None
) -> None:
    for worker, record in pairs:
        answer = worker.ask("warm up")
        if answer is not None:
            record.warmup.append(answer[0])
            record.unsteady += not answer[1]
    for turn in range(config.rounds):
        for number in generator.permutation(len(pairs)):
            worker, record = pairs[number]
            answer = worker.ask("time", (launch * config.rounds + turn) * config.samples, config.samples)
            if answer is not None:
                record.warmup.append(answer[0])
                record.samples.append(answer[1])
        if progress:
            progress("rounds", launch * config.rounds + turn + 1, config.launches * config.rounds)


def _measurement(
    candidate: Candidate, record: _Record, baseline: _Record, labels: np.ndarray, classes: int, score: Score, config: BenchmarkConfig
) -> Measurement:
    measured, comparable = record.reason is None, record.reason is None and baseline.reason is None
    size, zipped = cost.sizes(candidate.path)
    shape = (config.launches, config.rounds, config.samples)
    samples = np.concatenate(record.samples).reshape(shape) if measured else np.empty((0, 0, 0), np.int64)
    predictions = np.concatenate(record.predictions) if measured else None
    doubts = [f"never became steady in {record.unsteady} of {config.launches} warm-ups"] if record.unsteady else []
    return Measurement(
        name=candidate.name,
        runtime=candidate.runtime,
        device=candidate.device,
        stage=candidate.stage,
        artifact=candidate.artifact,
        file=candidate.path.name,
        facts=dict(candidate.facts),
        size_bytes=size,
        gzip_bytes=zipped,
        reason=record.reason,
        providers=tuple(record.providers),
        latency=latency(samples) if measured else None,
        speedup=speedup(np.concatenate(baseline.samples).reshape(shape), samples) if comparable else None,
        scores=score(labels, predictions, classes) if predictions is not None else {},
        agreement=float(np.mean(predictions == np.concatenate(baseline.predictions))) if comparable else None,
        doubts=tuple(doubts),
        warmup_ns=tuple(np.concatenate(record.warmup).tolist()) if record.warmup else (),
        samples_ns=tuple(tuple(map(tuple, launch)) for launch in list(samples.tolist())),
    )
