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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BenchmarkError
from .statistics import Latency, Speedup

SCHEMA = "compress-benchmark"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one candidate. Where `reason` is not None it was not measured, and `latency`, `speedup` and `scores` are empty.

    Args:
        file: the file's name. artifact: the artifact's hash. providers: what the runtime really used.
        size_bytes, gzip_bytes: bytes on disk, and after gzip.
        scores: fractions in [0, 1], ``balanced_accuracy`` among them. agreement: fraction of images classified as the baseline does.
        doubts: what makes the numbers doubtful, in words.
        warmup_ns: calls before the clock counted. samples_ns: nanoseconds, by launch, round and call.
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
    providers: tuple[str, ...]
    latency: Latency | None
    speedup: Speedup | None
    scores: Mapping[str, float]
    agreement: float | None
    doubts: tuple[str, ...]
    warmup_ns: tuple[int, ...]
    samples_ns: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark on one machine.

    Args:
        created: UTC, ISO 8601. machine: see `machine_facts`. data: name, fingerprint and number of images.
        settings: those of `BenchmarkConfig`, and the rule for the warm-up.
        baseline: the index in `measurements` that speedups, drops and agreement refer to.
    """

    created: str
    machine: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any]
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
        return tuple(_build(arguments[0], value, f"{where}[{index}]") for index, value in enumerate(raw))
    if origin is Mapping and isinstance(raw, dict):
        return {name: _build(arguments[1], value, f"{where}.{name}") for name, value in raw.items()}
    if origin is types.UnionType:  # only `X | None` occurs
        return None if raw is None else _build(arguments[0], raw, where)
    if (hint is float and type(raw) in (int, float) and math.isfinite(raw)) or (hint in (int, str) and type(raw) is hint):
        return raw
    raise TypeError(f"{where} must be {getattr(hint, '__name__', hint)}")
