"""What a benchmark found, and its file ``benchmark.json``: raw samples and machine facts included, written at once, read strictly.

Refused: a missing, truncated or foreign file, another schema version, a field that is missing, unknown or of another type. A result is
never changed after it was written.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .accuracy import Comparison, ScoreInterval
from .errors import BenchmarkError
from .gauges import Turn
from .pictures import Flip
from .statistics import Interval, Latency, Speedup
from .sweep import Sweep

SCHEMA = "compress-benchmark"
VERSION = 2


@dataclass(frozen=True, kw_only=True)
class LayerZeros:
    """How many of one layer's weights a pruned network kept."""

    name: str
    weights: int
    nonzeros: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, 0 to 1."""
        return 1 - self.nonzeros / self.weights if self.weights else 0.0


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """One way to quantize a graph: latency as a fraction of float32's with its 95% interval, points of balanced accuracy lost, bytes."""

    what: str
    ratio: float
    low: float
    high: float
    drop: float | None
    size: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a variant was chosen: why, out of how many that were tried, and the last ones, measured side by side on validation images."""

    verdict: str
    tried: int
    finalists: tuple[Finalist, ...]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one candidate. Where `reason` is not None it was not measured, and all that follows it is empty.

    What could not be found out is None or empty, never estimated. Times are seconds unless their name says nanoseconds.

    Args:
        file: the file's name. artifact: the artifact's hash. facts: what its maker knows of it.
        size_bytes, gzip_bytes: bytes on disk, and after gzip.
        providers: what the runtime really used. placement: nodes per operator per provider, see `profile.Profile`.
        load, first: from the file to a model that can be called; its first call.
        on_device: on a GPU, one call without the way to and from host memory.
        sweeps: other batch sizes and numbers of threads. sweep_reason: why there are none, where there should be.
        memory_bytes: the most that a process held that only timed calls. activation_bytes: see `profile.Profile`.
        energy: joules per image of the whole processor package. peak_share: of the machine's float32 matrix product, `Result.peak`.
        scores: fractions in [0, 1], ``balanced_accuracy`` among them; intervals: the same names, with bounds.
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
    facts: Mapping[str, Any]
    size_bytes: int
    gzip_bytes: int
    reason: str | None
    providers: tuple[str, ...] = ()
    placement: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    latency: Latency | None = None
    speedup: Speedup | None = None
    load: Interval | None = None
    first: Interval | None = None
    on_device: Interval | None = None
    sweeps: tuple[Sweep, ...] = ()
    sweep_reason: str | None = None
    memory_bytes: int | None = None
    activation_bytes: int | None = None
    energy: float | None = None
    peak_share: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, ScoreInterval] = field(default_factory=dict)
    agreement: float | None = None
    comparison: Comparison | None = None
    flips: tuple[Flip, ...] = ()
    doubts: tuple[str, ...] = ()
    warmup_ns: tuple[int, ...] = ()
    samples_ns: tuple[tuple[tuple[int, ...], ...], ...] = ()
    turns: tuple[Turn, ...] = ()
    load_ns: tuple[int, ...] = ()
    first_ns: tuple[int, ...] = ()
    device_ns: tuple[tuple[int, ...], ...] = ()

    @property
    def throughput(self) -> Sweep | None:
        """The point of the sweeps at which it reads the most images per second."""
        return max(self.sweeps, key=lambda sweep: sweep.images_per_second, default=None)

    @property
    def layers(self) -> tuple[LayerZeros, ...]:
        """The layers of a pruned network, in its order; of any other none. A TypeError says what is wrong with ``facts["layers"]``."""
        return _build(tuple[LayerZeros, ...], self.facts.get("layers", []), f"layers of '{self.name}'")

    @property
    def choice(self) -> Choice | None:
        """How it was chosen, if it was. A TypeError says what is wrong with ``facts["choice"]``."""
        return _build(Choice | None, self.facts.get("choice"), f"choice of '{self.name}'")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark on one machine.

    Args:
        created: UTC, ISO 8601. machine: see `machine_facts`. data: name, fingerprint, number of images, and names of the classes.
        settings: those of `BenchmarkConfig`, and the rule for the warm-up.
        peak: multiply-accumulates per second of a float32 matrix product on as many threads; None where it could not be measured.
        energy: where the energy comes from, or why there is none.
        baseline: the index in `measurements` that speedups, drops and agreement refer to.
    """

    created: str
    machine: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
    peak: float | None
    energy: str
    baseline: int
    measurements: tuple[Measurement, ...]


def write_results(result: Result, path: Path) -> None:
    """Write a result so that after a kill at any moment there is the old file, the new one, or none."""
    text = json.dumps({"schema": SCHEMA, "version": VERSION, **dataclasses.asdict(result)}, indent=1, allow_nan=False)
    text = re.sub(r"\[\n[\d,\s]+\]", lambda numbers: re.sub(r"\s+", "", numbers[0]), text)  # one line per list of samples
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_results(path: Path) -> Result:
    """Read a result back.

    Raises:
        BenchmarkError: as the module says, in one line that names the file.
    """
    again = "write it anew with `compress benchmark`"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BenchmarkError(f"results (={path}) cannot be read ({error.strerror}); {again}") from None
    except (ValueError, RecursionError):
        raise BenchmarkError(f"results (={path}) is not JSON, or cut short; {again}") from None
    if not isinstance(raw, dict) or raw.pop("schema", None) != SCHEMA:
        raise BenchmarkError(f"results (={path}) is not a benchmark's result; {again}")
    version = raw.pop("version", None)
    if version != VERSION:
        raise BenchmarkError(f"results (={path}) has schema version {version}, this program reads version {VERSION}; {again}")
    try:
        result = _build(Result, raw, "result")
        for one in result.measurements:
            _ = one.layers, one.choice  # of any type so far
    except TypeError as error:
        raise BenchmarkError(f"results (={path}) is damaged: {error}; {again}") from None
    if not 0 <= result.baseline < len(result.measurements):
        raise BenchmarkError(f"results (={path}) is damaged: result.baseline names no measurement; {again}")
    for one in result.measurements:
        if one.reason is None and one.latency is None:
            raise BenchmarkError(f"results (={path}) is damaged: '{one.name}' has neither a latency nor a reason; {again}")
        if one.reason is None and "balanced_accuracy" not in one.scores:
            raise BenchmarkError(f"results (={path}) is damaged: '{one.name}' has no balanced_accuracy; {again}")
    return result


def _build(hint: Any, raw: Any, where: str) -> Any:
    """Turn JSON into the type that `hint` asks for; a TypeError says where the two part.

    ``_build(tuple[int, ...], [1, 2], "x")`` gives ``(1, 2)``; ``_build(tuple[int, ...], [1, "2"], "x")`` says ``x[1] must be int``.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return raw
    if dataclasses.is_dataclass(hint) and isinstance(raw, dict):
        hints = typing.get_type_hints(hint)
        if raw.keys() != hints.keys():
            raise TypeError(f"{where} lacks or does not know {', '.join(sorted(raw.keys() ^ hints.keys()))}")
        return typing.cast(Any, hint)(**{name: _build(hints[name], value, f"{where}.{name}") for name, value in raw.items()})
    if origin is tuple and isinstance(raw, list):
        kinds = arguments[:1] * len(raw) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(raw):
            return tuple(_build(kind, value, f"{where}[{index}]") for index, (kind, value) in enumerate(zip(kinds, raw, strict=True)))
    if origin is Mapping and isinstance(raw, dict):
        return {name: _build(arguments[1], value, f"{where}.{name}") for name, value in raw.items()}
    if origin is types.UnionType:  # only `X | None` occurs
        return None if raw is None else _build(arguments[0], raw, where)
    if (hint is float and type(raw) in (int, float) and math.isfinite(raw)) or (hint in (int, str) and type(raw) is hint):
        return raw
    raise TypeError(f"{where} must be {getattr(hint, '__name__', hint)}")
