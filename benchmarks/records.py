"""How to measure, what was gathered of one candidate, and the measurement that it amounts to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from . import cost, results
from .accuracy import compare_predictions, score_intervals
from .answers import as_text
from .doubts import doubts
from .gauges import Turn
from .pictures import flips
from .profile import Profile
from .results import Measurement, Scoring
from .runtimes import Candidate
from .scored import Scored
from .statistics import MOST_LAUNCHES, latency, over_launches, speedup
from .sweep import Point, summarise
from .worker import Facts

Score = Callable[[np.ndarray, np.ndarray, int], dict[str, float]]
Precision = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How to measure.

    Args:
        threads: CPU threads of each runtime. batch: images per timed call.
        launches: fresh processes per candidate, 2 to 30, and more of them, up to 30, as long as the interval of a speedup in ONNX Runtime
            on the CPU is wider than `within` (0.02 is 2% from end to end) and `time_limit` seconds have not passed. Only the width counts,
            not on which side of 1 it lies, so this does not look until it has found something.
        rounds: turns per launch. samples: timed calls per turn.
        seed: of the order of turns and the choice of timed images.
        sweeps: whether to measure other batch sizes and numbers of threads too, at the end of each launch.
    """

    threads: Annotated[int, Meta(ge=1)] = 1
    batch: Annotated[int, Meta(ge=1)] = 1
    launches: Annotated[int, Meta(ge=2, le=MOST_LAUNCHES, description="an interval needs two, 5 is the default")] = 5
    within: Annotated[float, Meta(gt=0, description="0.02 is an interval of 2% from end to end")] = 0.02
    time_limit: Annotated[float, Meta(ge=0, description="seconds, 0 for no launch more than asked for")] = 60
    rounds: Annotated[int, Meta(ge=1)] = 4
    samples: Annotated[int, Meta(ge=1)] = 50
    seed: Annotated[int, Meta(ge=0)] = 0
    sweeps: bool = True


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The test set, to judge predictions by; see `run_benchmark` for the arguments."""

    images: Any
    labels: np.ndarray
    classes: int
    score: Score
    seed: int
    precision: Precision | None = None

    def of(self, predictions: np.ndarray, baseline: np.ndarray | None, itself: bool, logits: np.ndarray | None = None) -> dict[str, Any]:
        """Those fields of a measurement that follow from its predictions, and the baseline's where there are any.

        ``logits``: of labels that do not exclude each other.
        """
        found: dict[str, Any] = {
            "scores": dict(self.score(self.labels, predictions, self.classes)),
            "answers": as_text(predictions, self.classes),
            "intervals": score_intervals(self.labels, predictions, self.classes, self.score, seed=self.seed),
        }
        if logits is not None and self.precision is not None:
            found["scores"]["mean_average_precision"] = self.precision(self.labels, logits)
        if baseline is not None:
            found["agreement"] = float(np.mean(predictions == baseline))
        if baseline is not None and not itself:
            compared = compare_predictions(self.labels, baseline, predictions, self.classes)
            found["comparison"] = compared
            found["flips"] = flips(compared, self.images, self.labels, baseline, predictions)
        return found


def own_score(scored: Scored, scoring: Scoring) -> dict[str, Any]:
    """Those fields of a measurement that follow from a score of the user's own."""
    return {"score": scored.value, "shares": tuple(scored.shares.tolist()), "intervals": {scoring.name: scored.interval}}


@dataclass
class Record:
    """What has been gathered of one candidate so far."""

    candidate: Candidate
    points: list[Point]
    reason: str | None = None
    sweep_reason: str | None = None
    facts: list[Facts] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    scored: Scored | None = None
    warmup: list[np.ndarray] = field(default_factory=list)
    unsteady: int = 0
    samples: list[np.ndarray] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    device: list[np.ndarray] = field(default_factory=list)
    profile: Profile | None = None
    sweeps: list[list[np.ndarray]] = field(default_factory=list)

    def timed(self, config: BenchmarkConfig) -> np.ndarray:
        """All samples, int64 nanoseconds ``(launches, rounds, samples)``."""
        return np.concatenate(self.samples).reshape(-1, config.rounds, config.samples)


def measurement(
    record: Record, baseline: Record, answers: Answers | Scoring | None, config: BenchmarkConfig, peak: float | None
) -> Measurement:
    """What a record amounts to, beside the baseline's record; `peak` as `Result` has it; without `answers` there are no scores."""
    candidate = record.candidate
    size, zipped = cost.sizes(candidate.weighed)
    about = Measurement(
        name=candidate.name,
        runtime=candidate.runtime,
        device=candidate.device,
        stage=candidate.stage,
        artifact=candidate.artifact,
        file=candidate.path.name,
        path=str(candidate.path),
        facts=results.Facts(**candidate.facts),  # type: ignore[typeddict-item]
        size_bytes=size,
        gzip_bytes=zipped,
        reason=record.reason,
        warmup_ns=tuple(np.concatenate(record.warmup).tolist()) if record.warmup else (),
    )
    if record.reason is not None:
        return about
    samples, profile = record.timed(config), record.profile
    found, compared = latency(samples), baseline.reason is None
    alone, step = candidate.device == "cpu" and config.threads == 1, max(facts.clock_step for facts in record.facts)
    macs, images = candidate.facts.get("macs"), config.samples * config.batch
    judged: dict[str, Any] = {}
    if isinstance(answers, Answers):
        theirs = np.concatenate(baseline.predictions) if compared else None
        logits = np.concatenate(record.logits) if record.logits else None
        judged = answers.of(np.concatenate(record.predictions), theirs, record is baseline, logits)
    elif answers is not None and record.scored is not None:
        judged = own_score(record.scored, answers)
    energies = [turn.energy_uj for turn in record.turns if turn.energy_uj is not None]
    return replace(
        about,
        providers=record.facts[0].providers,
        placement=profile.placement if profile else {},
        latency=found,
        speedup=speedup(baseline.timed(config), samples) if compared else None,
        load=over_launches([facts.load_ns / 1e9 for facts in record.facts]),
        first=over_launches([facts.first_ns / 1e9 for facts in record.facts]),
        on_device=over_launches([float(np.median(calls)) / 1e9 for calls in record.device]),
        sweeps=summarise(record.points, record.sweeps),
        sweep_reason=record.sweep_reason,
        memory_bytes=max(record.memory, default=None),
        activation_bytes=profile.activation_bytes if profile else None,
        energy=sum(energies) / 1e6 / (len(energies) * images) if energies else None,
        peak_share=cost.peak_share(macs, found.p50 / config.batch, peak) if candidate.device == "cpu" else None,
        doubts=doubts(samples, record.turns, unsteady=record.unsteady, resolution_ns=step, alone=alone, emulated=record.facts[0].emulated),
        samples_ns=tuple(tuple(map(tuple, launch)) for launch in list(samples.tolist())),
        turns=tuple(record.turns),
        load_ns=tuple(facts.load_ns for facts in record.facts),
        first_ns=tuple(facts.first_ns for facts in record.facts),
        device_ns=tuple(tuple(calls.tolist()) for calls in record.device),
        **judged,
    )
