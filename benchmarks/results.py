"""What a benchmark found, and its file ``benchmark.json``: raw samples and machine facts included, written at once, never changed.

Its types are what whoever reads it holds it to (the toolkit does so in ``artifacts/payloads.py``), and :func:`damage` says what types
do not: a variant that was measured has a latency, scores, and samples of as many launches, rounds and calls throughout.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

import numpy as np
from msgspec import Meta

from .accuracy import Comparison, ScoreInterval
from .answers import from_text
from .gauges import Turn
from .machine import Machine
from .pictures import Flip
from .runtimes import SHIPPED
from .scored import GROUPS, Scored
from .statistics import MOST_LAUNCHES, Count, Interval, Latency, Share, Speedup
from .sweep import Sweep

Kind = TypeVar("Kind", dict[str, Any], list[Any])
SCHEMA = "compress-benchmark"
VERSION = 6


@dataclass(frozen=True, kw_only=True)
class LayerZeros:
    """How many of one layer's weights a pruned network kept."""

    name: str
    weights: Annotated[int, Meta(ge=1)]
    nonzeros: Count

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, 0 to 1."""
        return 1 - self.nonzeros / self.weights


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """One way to quantize a graph: latency as a fraction of float32's with its 95% interval, points of balanced accuracy lost, bytes.

    ``ratio``, ``low``, ``high``: None where nothing was timed. ``bound``: at most so many points lost, with 95% confidence; None where
    nobody asked.
    """

    what: str
    ratio: float | None
    low: float | None
    high: float | None
    drop: float | None
    size: int
    bound: float | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a variant was chosen: why, out of how many that were tried, and the last ones, measured side by side on validation images."""

    verdict: str
    tried: int
    finalists: tuple[Finalist, ...]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """A score of the user's own, higher is better: ``name``, the hash of its ``source``, and whether it is a mean over images."""

    name: str
    source: str
    by_image: bool


class Facts(TypedDict, total=False):
    """What its maker knows of a candidate: its cost, of a pruned network its layers, and how it was chosen, where it was."""

    params: Count
    nonzeros: Count
    macs: Count
    layers: tuple[LayerZeros, ...]
    choice: Choice


class Data(TypedDict, total=False):
    """The images that were read: where from, how many, their shape, and what the classes are called."""

    name: str
    network: str
    fingerprint: str
    part: str
    class_names: list[str]
    images: int
    classes: int
    shape: list[int]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one candidate. Where `reason` is not None it was not measured, and all that follows it is empty.

    What could not be found out is None or empty, never estimated. Times are seconds unless their name says nanoseconds.

    Args:
        file: the file's name. artifact: the artifact's hash. facts: what its maker knows of it.
        path: where the file, or for torch its folder, lay, as the caller named it; before version 3 nobody knows.
        size_bytes, gzip_bytes: bytes on disk, and after gzip.
        providers: what the runtime really used. placement: nodes per operator per provider, see `profile.Profile`.
        load, first: from the file to a model that can be called; its first call.
        on_device: on a GPU, one call without the way to and from host memory.
        sweeps: other batch sizes and numbers of threads. sweep_reason: why there are none, where there should be.
        memory_bytes: the most that a process held that only timed calls. activation_bytes: see `profile.Profile`.
        energy: joules per image of the whole processor package. peak_share: of the machine's float32 matrix product, `Result.peak`.
        scores: fractions in [0, 1], ``balanced_accuracy`` among them, or none without labels; intervals: the same names, with bounds.
        answers: the class that it says of each test image, as `answers.as_text` writes them; a result before version 3 has none.
        score: by a score of the user's own, and shares: what each image, or group of images, has in it, see `scored`; then no answers.
        agreement: fraction of images classified as the baseline does. comparison, flips: what is read differently than by the baseline.
        doubts: what makes the latency doubtful, in words.
        warmup_ns: calls before the clock counted. samples_ns: nanoseconds, by launch, round and call. turns: one per launch and round.
        load_ns, first_ns: one per launch. device_ns: by launch and call.
    """

    name: str
    runtime: str
    device: str
    stage: str
    artifact: str
    file: str
    facts: Facts
    size_bytes: Count
    gzip_bytes: Count
    reason: str | None
    path: str | None = None
    providers: tuple[str, ...] = ()
    placement: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    latency: Latency | None = None
    speedup: Speedup | None = None
    load: Interval | None = None
    first: Interval | None = None
    on_device: Interval | None = None
    sweeps: tuple[Sweep, ...] = ()
    sweep_reason: str | None = None
    memory_bytes: Count | None = None
    activation_bytes: Count | None = None
    energy: float | None = None
    peak_share: float | None = None
    scores: Mapping[str, Share] = field(default_factory=dict)
    intervals: Mapping[str, ScoreInterval] = field(default_factory=dict)
    answers: str | None = None
    score: float | None = None
    shares: tuple[float, ...] = ()
    agreement: float | None = None
    comparison: Comparison | None = None
    flips: tuple[Flip, ...] = ()
    doubts: tuple[str, ...] = ()
    warmup_ns: tuple[int, ...] = ()
    samples_ns: tuple[tuple[tuple[Annotated[int, Meta(ge=1)], ...], ...], ...] = ()
    turns: tuple[Turn, ...] = ()
    load_ns: tuple[int, ...] = ()
    first_ns: tuple[int, ...] = ()
    device_ns: tuple[tuple[int, ...], ...] = ()

    @property
    def throughput(self) -> Sweep | None:
        """The point of the sweeps at which it reads the most images per second."""
        return max(self.sweeps, key=lambda sweep: sweep.images_per_second, default=None)

    @property
    def may_ship(self) -> bool:
        """Whether a verdict may choose it: a file that was measured where one ships."""
        return self.runtime in SHIPPED and self.device == "cpu" and self.reason is None

    @property
    def called(self) -> str:
        """Its name, and the runtime where that is not ONNX Runtime: ``int8 static in LiteRT``."""
        return self.name + SHIPPED.get(self.runtime, "")

    @property
    def layers(self) -> tuple[LayerZeros, ...]:
        """The layers of a pruned network, in its order; of any other none."""
        return self.facts.get("layers", ())

    @property
    def choice(self) -> Choice | None:
        """How it was chosen, if it was."""
        return self.facts.get("choice")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark on one machine.

    Args:
        created: UTC, ISO 8601.
        settings: those of `BenchmarkConfig`, and the rule for the warm-up.
        peak: multiply-accumulates per second of a float32 matrix product on as many threads; None where it could not be measured.
        energy: where the energy comes from, or why there is none.
        baseline: the index in `measurements` that speedups, drops and agreement refer to.
        labels: the true class of each test image, as `answers.as_text` writes them; None where there are none.
        scoring: the user's own score, by which the variants were scored; None for balanced accuracy.
    """

    created: str
    machine: Machine
    data: Data
    settings: Mapping[str, bool | int | float | str]
    peak: float | None
    energy: str
    baseline: int
    measurements: tuple[Measurement, ...]
    labels: str | None = None
    scoring: Scoring | None = None

    @property
    def scored(self) -> bool:
        """Whether there were labels to score by; else latency and size are all that is known."""
        return self.labels is not None or any(one.scores or one.shares for one in self.measurements)

    @property
    def true_labels(self) -> np.ndarray | None:
        """The true class of each test image, int64 ``(N,)``; None in a result before version 3."""
        return self._decoded(self.labels)

    def answers_of(self, one: Measurement) -> np.ndarray | None:
        """What a candidate says of each test image, int64 ``(N,)``; None where it was not measured, or before version 3."""
        return self._decoded(one.answers)

    def shares_of(self, one: Measurement) -> Scored | None:
        """How a candidate did by the user's own score; None where there is none, or it was not measured."""
        if self.scoring is None or one.score is None:
            return None
        return Scored(value=one.score, shares=np.array(one.shares), images=self.data.get("images", 0))

    def _decoded(self, text: str | None) -> np.ndarray | None:
        return None if text is None else from_text(text, self.data.get("images", 0), self.data.get("classes", 0))


def write_results(result: Result, path: Path) -> None:
    """Write a result so that after a kill at any moment there is the old file, the new one, or none."""
    text = json.dumps({"schema": SCHEMA, "version": VERSION, **dataclasses.asdict(result)}, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[\d,\s]+\]", lambda numbers: re.sub(r"\s+", "", numbers[0]), text)  # one line per list of samples
    replace(path, (text + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, under a name that no other process takes, and rename it; nothing is left of it after a failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def upgraded(found: dict[str, Any], version: int) -> dict[str, Any]:
    """The values of a file of an older version as those of this one.

    Before 3 no answers were kept and no paths, before 4 no bounds, before 5 there were no scores of a user's own, and before 6 no
    temperatures.
    """
    measurements = found.get("measurements")
    for one in measurements if isinstance(measurements, list) else ():
        if isinstance(one, dict):
            one |= ({"answers": None, "path": None} if version < 3 else {}) | ({"score": None, "shares": []} if version < 5 else {}) | one
            for turn in _inside(one, "turns", list) if version < 6 else ():
                if isinstance(turn, dict):
                    turn |= {"celsius": None, "throttled": None} | turn
            for finalist in _inside(_inside(_inside(one, "facts", dict), "choice", dict), "finalists", list):
                if isinstance(finalist, dict):
                    finalist |= {"bound": None} | finalist
    return ({"labels": None} if version < 3 else {}) | ({"scoring": None} if version < 5 else {}) | found


def _inside(values: dict[str, Any], name: str, kind: type[Kind]) -> Kind:
    """The entry ``name``, if it is of this kind; else an empty one."""
    found = values.get(name)
    return found if isinstance(found, kind) else kind()


def damage(result: Result) -> str | None:
    """What is wrong with a result whose every value is of its type, in words; None where nothing is."""
    if not 0 <= result.baseline < len(result.measurements):
        return "baseline names no measurement"
    if wrong := _wrong_answers(result):
        return wrong
    for one in result.measurements:
        launches = one.samples_ns
        if one.reason is None and one.latency is None:
            return f"'{one.name}' has neither a latency nor a reason"
        if one.reason is None and result.scored and result.scoring is None and "balanced_accuracy" not in one.scores:
            return f"'{one.name}' has no balanced_accuracy"
        if one.reason is None and result.scoring is not None and (one.score is None or len(one.shares) != _parts(result)):
            return f"'{one.name}' has no {result.scoring.name} with {_parts(result)} shares"
        if len({len(rounds) for rounds in launches}) > 1 or len({len(calls) for rounds in launches for calls in rounds}) > 1:
            return f"samples_ns of '{one.name}' are not of the same number in every launch and round"
        if one.reason is None and not (2 <= len(launches) <= MOST_LAUNCHES and launches[0] and launches[0][0]):
            return f"samples_ns of '{one.name}' must be those of 2 to {MOST_LAUNCHES} launches"
    rounds = [[len(launch) for launch in one.samples_ns] for one in result.measurements if one.reason is None]
    if any(found != rounds[0] for found in rounds):
        return "samples_ns are not of the same launches and rounds for every candidate"
    return None


def _parts(result: Result) -> int:
    """How many shares there are of the user's own score."""
    images = result.data.get("images", 0)
    return images if result.scoring and result.scoring.by_image else min(GROUPS, images)


def _wrong_answers(result: Result) -> str | None:
    told = "labels"
    try:
        known = result.true_labels is not None
        for one in result.measurements:
            told = f"answers of '{one.name}'"
            if result.answers_of(one) is not None and not known:
                return f"{told} are there without labels"
    except ValueError as error:
        return f"{told} {error}"
    return None
