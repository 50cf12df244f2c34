"""Measures candidates side by side: latency in turns, accuracy on the same images, size, and the machine it was done on.

A launch starts one fresh process per candidate and warms each up until steady. Then come rounds: in each, every candidate takes a turn in
random order, and only one computes at a time. Several launches, since a process keeps its luck (see `statistics`). A candidate that
cannot load or dies is "not measured: reason" and stops no other.

Refused: no candidates, two of the same name, runtime and device, an unknown baseline, images that are not uint8 or do not fit the labels,
settings out of range.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .answers import as_text
from .errors import BenchmarkError
from .machine import Machine
from .place import HERE, Asked, Place, Surroundings
from .records import Answers, BenchmarkConfig, Precision, Record, Score, measurement
from .results import Data, Result, Scoring
from .runtimes import Candidate
from .scored import Judge, Outputs
from .statistics import MOST_LAUNCHES, speedup
from .sweep import points_of
from .worker import WARM_RULE

Progress = Callable[[str, int, int], None]
Pairs = list[tuple[Asked, Record]]
Own = tuple[Judge, Mapping[str, Any]]  # what scores in place of labels, and its name and source

PREDICT_BATCH, PREDICT_BYTES = 256, 2**21  # images at a time, and bytes of pixels
DISTINCT_INPUTS = 32  # timed calls cycle over so many different inputs


def run_benchmark(
    candidates: Sequence[Candidate],
    images: Any,
    labels: np.ndarray | None,
    classes: int | None,
    score: Score,
    config: BenchmarkConfig,
    *,
    baseline: str,
    data: Data,
    progress: Progress | None = None,
    own: Own | None = None,
    precision: Precision | None = None,
    place: Place = HERE,
) -> Result:
    """Measure all candidates.

    Args:
        candidates: in the order in which the report shows them.
        images, labels: the test set, uint8 ``(N, C, H, W)``, or float32 as the files take it, or indexed like such an array, and
            ``(N,)``; or no labels, and no scores.
        classes: K, None without labels. score: ``score(labels, predictions, classes)``, fractions with ``balanced_accuracy`` among them.
        baseline: the name of the candidate to compare with; where several runtimes have it, ONNX Runtime's on the CPU.
        data: name and fingerprint of the test set, passed through.
        progress: told what is done, how much of it, and how much there is. place: the machine that measures.
        precision: ``precision(labels, logits)``, a mean average precision, for files whose labels do not exclude each other.
        own: what scores them in place of labels, and its name and source, see `results.Scoring`; candidates are then ``whole``.

    Raises:
        BenchmarkError: as the module says.
    """
    _check(candidates, images, labels, np.uint8 if own is None else np.float32)
    index = baseline_index(candidates, baseline)
    records = [Record(candidate=one, points=points_of(one, config.threads) if config.sweeps else []) for one in candidates]
    generator = np.random.default_rng(config.seed)
    inputs = [np.ascontiguousarray(images[pick]) for pick in generator.integers(0, len(images), (DISTINCT_INPUTS, config.batch))]
    around, created = place.surroundings(config.threads), datetime.now(UTC).isoformat(timespec="seconds")
    order, launch, until = np.arange(len(candidates)), 0, time.monotonic() + config.time_limit
    while launch < config.launches or (launch < MOST_LAUNCHES and time.monotonic() < until and _too_wide(records, records[index], config)):
        # A file against itself, always started first and barely warmed up, came out 0.6% slower in 23 of 24 benchmarks. So the order is
        # drawn anew for every second launch and reversed in the next: that takes such an effect out of the mean and into the interval.
        order = order[::-1] if launch % 2 else generator.permutation(len(candidates))
        how: dict[str, Any] = {"inputs": inputs, "classes": classes, "threads": config.threads}
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            logs = [(number, Path(folder, str(number))) for number in order.tolist() if records[number].reason is None]
            pairs = [(stack.enter_context(place.worker(records[one].candidate, **how, log=log)), records[one]) for one, log in logs]
            _open(pairs)
            if launch == 0:
                _read(pairs, images, labels is not None, own, progress)
            _time(pairs, launch, config, generator, around.cores, progress)
            for worker, record in pairs:
                record.reason = worker.reason
            _look_around(pairs, launch, config, generator, progress)  # can no longer disturb the comparison, or undo it where it fails
        launch += 1
    judged: dict[str, Any] = {"images": images, "labels": labels, "classes": classes, "score": score, "seed": config.seed}
    answers = Answers(**judged, precision=precision) if labels is not None else None
    settings, peak = {**asdict(config), "launches": launch, "warm_up": WARM_RULE}, around.peak
    seen = {**data, "images": len(images), "classes": classes or 0, "shape": list(images.shape[1:])}
    about: dict[str, Any] = {"created": created, "machine": _named(place, around), "data": seen, "settings": settings, "peak": peak}
    return Result(**about, energy=around.energy, baseline=index, **_found(records, index, answers, own, config, peak))


def _named(place: Place, around: Surroundings) -> Machine:
    """What measured, by the name that the user has for it."""
    return Machine(board=place.name, **around.machine) if place.name else around.machine


def _found(
    records: Sequence[Record], index: int, answers: Answers | None, own: Own | None, config: BenchmarkConfig, peak: float | None
) -> dict[str, Any]:
    """The measurements, and by what they were scored."""
    scoring = Scoring(**own[1], by_image=bool(own[0].by_image)) if own is not None else None
    measurements = tuple(measurement(record, records[index], answers or scoring, config, peak) for record in records)
    labels = as_text(answers.labels, answers.classes) if answers else None
    return {"measurements": measurements, "labels": labels, "scoring": scoring}


def _check(candidates: Sequence[Candidate], images: Any, labels: np.ndarray | None, other: type) -> None:
    seen = set()
    for candidate in candidates:
        key = (candidate.name, candidate.runtime, candidate.device)
        if key in seen:
            raise BenchmarkError(f"candidate (={candidate.name}) stands twice for {' on '.join(key[1:])}; give each file a name of its own")
        seen.add(key)
    if images.dtype not in (np.uint8, other) or images.ndim != 4 or not len(images):
        raise BenchmarkError(
            f"images (={images.dtype} {images.shape}) must be uint8 (N, C, H, W) with N of at least 1; hand in the test set"
        )
    if labels is not None and labels.shape != (len(images),):
        raise BenchmarkError(f"labels (={labels.shape}) must be one per image, ({len(images)},); hand in the labels of the same images")


def baseline_index(candidates: Sequence[Candidate], name: str) -> int:
    """The candidate called `name`; where several runtimes have it, ONNX Runtime's on the CPU."""
    named = [index for index, candidate in enumerate(candidates) if candidate.name == name]
    if not named:
        known = ", ".join(candidate.name for candidate in candidates) or "none"
        raise BenchmarkError(f"baseline (={name}) is none of the candidates; choose one of: {known}")
    onnx = [index for index in named if (candidates[index].runtime, candidates[index].device) == ("onnxruntime", "cpu")]
    return (onnx or named)[0]


def _too_wide(records: Sequence[Record], baseline: Record, config: BenchmarkConfig) -> bool:
    """Whether a speedup that decides is known less well than it has to be."""
    if baseline.reason is not None:
        return False
    rivals = [one for one in records if one is not baseline and one.reason is None and one.candidate.decides]
    known = (speedup(baseline.timed(config), one.timed(config)) for one in rivals)
    return any(found.high / found.low - 1 > config.within for found in known)


def _open(pairs: Pairs) -> None:
    for worker, _ in pairs:
        worker.receive()  # imports, all at once
    for worker, record in pairs:
        record.facts += [facts] if (facts := worker.ask("open")) else []


def _read(pairs: Pairs, images: Any, labelled: bool, own: Own | None, progress: Progress | None) -> None:
    if labelled:
        _predict(pairs, images, progress)
    if own is not None:
        _score(pairs, images, own[0], progress)


def _predict(pairs: Pairs, images: Any, progress: Progress | None) -> None:
    """One worker after the other: what a batch takes in memory, no two take at once, and none keeps."""
    batch = scoring_batch(images[0].nbytes)
    for number, (worker, record) in enumerate(pairs):
        for start in range(0, len(images), batch):
            answer = worker.ask("predict", images[start : start + batch])
            if answer is not None:
                record.predictions.append(answer[0])
                record.logits += [] if answer[1] is None else [answer[1]]
            if progress:
                progress("test images read", number * len(images) + min(start + batch, len(images)), len(pairs) * len(images))
        worker.ask("release")


def _score(pairs: Pairs, images: Any, judge: Judge, progress: Progress | None) -> None:
    """One worker after the other, one image at a time, as an output may have another size for each."""

    def answers(worker: Asked, number: int) -> Iterator[Outputs]:
        for at in range(len(images)):
            found = worker.ask("answer", images[at : at + 1])
            if found is None:
                raise _GoneError(worker.reason)
            yield found
            if progress:
                progress("test images scored", number * len(images) + at + 1, len(pairs) * len(images))

    for number, (worker, record) in enumerate(pairs):
        if worker.reason is None:
            with suppress(_GoneError):
                record.scored = judge.of(answers(worker, number))
            worker.ask("release")


class _GoneError(Exception):
    """A worker has failed; it says why."""


def scoring_batch(image_bytes: int) -> int:
    """Images at a time: 256 of 28x28, 13 of 224x224 in colour, of which 256 may take 1.2 GB in a single layer.

    By the size of an image alone, so that it is the same everywhere: a dynamic int8 file rounds by what else is in its batch.
    """
    return max(1, min(PREDICT_BATCH, PREDICT_BYTES // image_bytes))


def _time(
    pairs: Pairs, launch: int, config: BenchmarkConfig, generator: np.random.Generator, cores: Sequence[int], progress: Progress | None
) -> None:
    for worker, record in pairs:
        answer = worker.ask("warm_up")
        if answer is not None:
            record.warmup.append(answer[0])
            record.unsteady += not answer[1]
    for turn in range(config.rounds):
        # A core whose hardware another machine uses too is slower by half for seconds: so is a whole round then, and its ratios are not.
        core = cores[(launch * config.rounds + turn) % len(cores)] if cores else None
        for number in generator.permutation(len(pairs)):
            worker, record = pairs[number]
            answer = worker.ask("time", (launch * config.rounds + turn) * config.samples, config.samples, core)
            if answer is not None:
                record.warmup.append(answer[0])
                record.samples.append(answer[1])
                record.turns.append(answer[2])
        if progress:
            progress("rounds", launch * config.rounds + turn + 1, max(config.launches, launch + 1) * config.rounds)


def _look_around(pairs: Pairs, launch: int, config: BenchmarkConfig, generator: np.random.Generator, progress: Progress | None) -> None:
    """What is measured beside the comparison, in the same processes after it: memory, time on the GPU, placement, sweeps."""
    for number in generator.permutation(len(pairs)):
        worker, record = pairs[number]
        if record.reason is not None or record.sweep_reason is not None:
            continue
        memory = worker.ask("memory")
        if launch and memory is not None:  # the first launch also read the test images, in large batches
            record.memory.append(memory)
        device = worker.ask("on_device", config.samples)
        if device is not None and len(device):
            record.device.append(device)
        if launch == 0:
            record.profile = worker.ask("profile")
        if record.points:
            answer = worker.ask("sweep", record.points)
            if answer is not None:
                record.sweeps.append(answer)
        record.sweep_reason = worker.reason
    if progress:
        progress("sweeps", launch + 1, max(config.launches, launch + 1))
