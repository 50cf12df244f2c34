"""What was asked and how long it took, as Prometheus reads it: text format 0.0.4."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pool import Model

TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PARTS = ("decode", "wait", "compute")


@dataclass
class Histogram:
    """Seconds; a bucket counts those up to its bound."""

    buckets: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    total: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        self.total += seconds
        self.count += 1
        for place, bound in enumerate(BOUNDS):
            if seconds <= bound:
                self.buckets[place] += 1


@dataclass
class Counts:
    """Of one model: answers by task and status, images, seconds by part, workers that died, versions that were swapped in."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    images: int = 0
    seconds: dict[str, Histogram] = field(default_factory=lambda: {part: Histogram() for part in PARTS})
    died: int = 0
    swapped: int = 0


def exposition(models: Mapping[str, "Model"]) -> str:
    """All figures of all models."""
    return "\n".join(_lines(models)) + "\n"


def _lines(models: Mapping[str, "Model"]) -> Iterator[str]:
    def head(name: str, kind: str, told: str) -> Iterator[str]:
        yield f"# HELP compress_{name} {told}"
        yield f"# TYPE compress_{name} {kind}"

    yield from head("requests_total", "counter", "Requests answered, by model, task and status.")
    for name, model in models.items():
        for (task, status), count in sorted(model.counts.answers.items()):
            yield f'compress_requests_total{{model="{name}",task="{task}",status="{status}"}} {count}'
    figures = {
        "images_total": ("counter", "Images read.", lambda model: model.counts.images),
        "workers_died_total": ("counter", "Workers that ended by themselves.", lambda model: model.counts.died),
        "swaps_total": ("counter", "New versions of a file taken on.", lambda model: model.counts.swapped),
        "waiting": ("gauge", "Requests in the queue.", lambda model: model.waiting),
        "ready": ("gauge", "1 where a worker is loaded.", lambda model: int(model.ready)),
        "batch": ("gauge", "Images computed at once.", lambda model: model.about.batch),
    }
    for figure, (kind, told, of) in figures.items():
        yield from head(figure, kind, told)
        yield from (f'compress_{figure}{{model="{name}"}} {of(model)}' for name, model in models.items())
    yield from head("seconds", "histogram", "Seconds of a request, by part.")
    for name, model in models.items():
        for part, found in model.counts.seconds.items():
            labels = f'model="{name}",part="{part}"'
            pairs = (*zip(map(str, BOUNDS), found.buckets, strict=True), ("+Inf", found.count))
            yield from (f'compress_seconds_bucket{{{labels},le="{bound}"}} {count}' for bound, count in pairs)
            yield f"compress_seconds_sum{{{labels}}} {found.total:.6f}"
            yield f"compress_seconds_count{{{labels}}} {found.count}"
