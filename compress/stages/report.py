"""The stage ``report``: which variant to ship and why, from the results of benchmarks. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.artifact import find_artifacts
from ..artifacts.payloads import read_results
from ..artifacts.records import checked
from ..benchmarks.report import write_report
from ..benchmarks.results import Result
from ..benchmarks.verdict import Limits, Verdict
from ..errors import CompressError


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a report says: one result and one verdict per machine, and where its files lie."""

    folder: Path
    results: tuple[Result, ...]
    verdicts: tuple[Verdict, ...]


def report(files: Sequence[Path], folder: Path, limits: Mapping[str, Any]) -> Outcome:
    """Write the report of benchmark results into ``folder``; ``limits`` are those fields of :class:`Limits` that were given."""
    allowed = checked(Limits, limits, "[report]")
    results = tuple(read_results(path) for path in files)
    return Outcome(folder=folder, results=results, verdicts=write_report(results, folder, allowed))


def newest_result(folder: Path) -> Path:
    """The newest benchmark in ``folder`` (``runs/<model>``)."""
    found = find_artifacts(folder / "benchmark")
    if not found:
        raise CompressError(f"{folder} has no benchmark yet; run `compress benchmark` first, or name a benchmark.json")
    return found[0].payload
