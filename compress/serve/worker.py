"""The process that computes, ``python -m compress.serve.worker``: loads one model once, with one thread, and answers over a pipe.

It measures on loading whether a batch of images costs less than as many alone, and computes in the batches that pay; one by one where an
image would get another answer in a batch (dynamic int8, whose scales are those of a batch), so no answer depends on who else asks.

It ends when its pipe does, so it outlives neither its service nor a signal that is meant for that. Loads no torch but for a network.
"""

import base64
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..artifacts.artifact import MANIFEST, read_artifact, sha256_of
from ..artifacts.classifier.opened import Classifier, Run, numbered, open_artifact, open_file
from ..artifacts.context import Context
from ..benchmarks.errors import BenchmarkError
from ..errors import CompressError, first_line, onnxruntime_errors, shown
from ..graphs.evidence.occlusion import occlusion
from ..models.errors import ModelError
from ..train.errors import TrainError
from .decode import Refused, images_of
from .drawing import habits_beside
from .frames import Answer, Hello, Job, Ready, frame, read_frame
from .settings import LABELS, Source, model_in

SIZES = (2, 4, 8, 16, 32)  # batches that are tried
PAYS, ALIKE = 0.9, 1e-3  # of the time of an image alone; of the largest number that a file gives
MOST_SECONDS = 0.05  # that a batch may take, as others wait for it
_ROUNDS = 7
USER_ERRORS = (CompressError, BenchmarkError, ModelError, TrainError)


class Late(Exception):
    """Nobody waits for the answer any more."""


def load(source: Source) -> Classifier:
    """The classifier that ``source`` names; raises one of ``USER_ERRORS`` where it is none."""
    path = Path(source.path)
    how = {name: getattr(source, name) for name in ("image_shape", "mean", "std", "model")}
    context = Context(**how, runs=Path(source.runs))
    if (path / MANIFEST).is_file():
        artifact = context.trusted(read_artifact(path))
        if artifact.manifest.kind not in ("network", "graph", "litert") or not artifact.manifest.classes:
            raise CompressError(f"{path} holds no classifier (kind {artifact.manifest.kind}); name a network or a graph that reads classes")
        return open_artifact(artifact, context)
    model = open_file(model_in(path), context)
    if (labels := path / LABELS).is_file() and model.classes == numbered(len(model.classes)):
        names = labels.read_text(encoding="utf-8").splitlines()
        if len(names) != len(model.classes):
            raise CompressError(f"{labels} names {len(names)} classes, the model has {len(model.classes)}; mend or remove it")
        return Classifier(run=model.run, sure=model.sure, classes=names, spec=model.spec, file=model.file)
    return model


def measured(run: Run, shape: tuple[int, int, int]) -> tuple[int, float]:
    """How many images to compute at once, and the seconds of one alone (the fastest: other processes load at the same time)."""
    images = np.random.default_rng(0).integers(0, 256, (SIZES[-1], *shape), np.uint8)

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        run(images[:count])
        return time.perf_counter() - begin

    seconds(1)
    single = min(seconds(1) for _ in range(_ROUNDS))
    apart = np.concatenate([run(images[at : at + 1]) for at in range(SIZES[0])])
    if not np.allclose(run(images[: SIZES[0]]), apart, rtol=0, atol=ALIKE * float(np.abs(apart).max())):
        return 1, single
    sizes = [1, *(size for size in SIZES if size * single <= MOST_SECONDS)]
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(_ROUNDS):
        for size in sizes:
            times[size].append(seconds(size) / size)
    best, least = 1, min(times[1])
    for size in sizes[1:]:
        if min(times[size]) < PAYS * least:
            best, least = size, min(times[size])
    return best, min(single, *times[1])


class Worker:
    """A model that is loaded, and what it answers."""

    def __init__(self, hello: Hello) -> None:
        stamp = hello.source.stamp()
        self._model = load(hello.source)
        self._max_pixels, self._hash = hello.max_pixels, sha256_of(self._model.file)
        if hello.source.stamp() != stamp:
            raise CompressError(f"{hello.source.path} was changed while it was loaded; it is tried again once it stands still")
        self._batch, self._single = measured(self._model.run, self._model.spec.shape)

    def ready(self) -> Ready:
        model = self._model
        return Ready(
            classes=tuple(model.classes),
            shape=model.spec.shape,
            hash=self._hash,
            size=model.file.stat().st_size,
            batch=self._batch,
            latency_ms=round(1e3 * self._single, 4),
            drawing=habits_beside(model.file, model.spec.shape[0]),
        )

    def answers(self, jobs: list[Job]) -> list[Answer]:
        """One for each job; the images of all jobs are computed together."""
        answers: list[Answer] = [Answer(hash=self._hash) for _ in jobs]
        parts: list[tuple[int, Job, NDArray[np.uint8]]] = []
        for place, job in enumerate(jobs):
            begin = time.perf_counter_ns()
            try:
                images = images_of(job.content_type, job.body, self._model.spec, self._max_pixels)
                if job.task == "explain" and len(images) != 1:
                    raise Refused(400, f"{len(images)} images: evidence is of one; send one")
            except Refused as error:
                answers[place] = Answer(status=error.status, content=error.detail.encode())
                continue
            answers[place].decode_ns = time.perf_counter_ns() - begin
            answers[place].images = len(images)
            parts.append((place, job, images))
        reads = [part for part in parts if part[1].task == "predict"]
        if reads:
            self._predict(reads, answers)
        for place, job, images in parts:
            if job.task == "explain":
                self._timed(answers[place], partial(self._explain, images, job.deadline))
        return answers

    def _predict(self, parts: list[tuple[int, Job, NDArray[np.uint8]]], answers: list[Answer]) -> None:
        images = np.concatenate([part[2] for part in parts])
        found, whole = list[NDArray[Any]](), Answer()
        latest = max(job.deadline for _, job, _ in parts)

        def compute() -> bytes:
            for start in range(0, len(images), self._batch):
                found.append(self._sure(images[start : start + self._batch], latest))
            return b""

        self._timed(whole, compute)
        sure = np.concatenate(found) if whole.status == 200 else np.zeros((len(images), 1))
        start = 0
        for place, job, own in parts:
            answer = answers[place]
            answer.status, answer.compute_ns, answer.batch = whole.status, whole.compute_ns, min(self._batch, len(images))
            mine = sure[start : start + len(own)]
            answer.content = whole.content if whole.status != 200 else self._predictions(mine, own if job.seen else None)
            start += len(own)

    def _sure(self, images: NDArray[np.uint8], deadline: float) -> NDArray[Any]:
        if time.monotonic() > deadline:
            raise Late
        found = self._model.sure(images)
        if not np.isfinite(found).all():
            raise Refused(500, "the model gives NaN or infinity for this; check its file with compress verify")
        return found

    def _predictions(self, sure: NDArray[Any], seen: NDArray[np.uint8] | None) -> bytes:
        classes, rows = self._model.classes, sure.astype(np.float64).round(6).tolist()
        found: list[dict[str, Any]] = [
            {"label": classes[at], "index": at, "probability": row[at], "probabilities": row}
            for row, at in zip(rows, sure.argmax(axis=1).tolist(), strict=True)
        ]
        for one, image in zip(found, seen if seen is not None else (), strict=False):
            one["pixels"] = base64.b64encode(image.transpose(1, 2, 0).tobytes()).decode()
        return msgspec.json.encode(found)

    def _explain(self, images: NDArray[np.uint8], deadline: float) -> bytes:
        def run(covered: NDArray[np.uint8]) -> NDArray[Any]:
            if time.monotonic() > deadline:
                raise Late
            return np.concatenate([self._model.run(covered[at : at + self._batch]) for at in range(0, len(covered), self._batch)])

        sure = self._sure(images, deadline)[0]
        label = int(sure.argmax())
        patch = max(1, round(min(images.shape[2:]) / 7))
        evidence = occlusion(run, images[0], [label], patch=patch)[0]
        classes = self._model.classes
        return msgspec.json.encode(
            {"label": classes[label], "index": label, "probability": round(float(sure[label]), 6), "evidence": evidence.round(4).tolist()}
        )

    def _timed(self, answer: Answer, work: Callable[[], bytes]) -> None:
        begin = time.perf_counter_ns()
        try:
            answer.content = work()
        except Late:
            answer.status, answer.content = 503, b"it took longer than a request may; send fewer or smaller images"
        except Refused as error:
            answer.status, answer.content = error.status, error.detail.encode()
        except onnxruntime_errors() as error:
            answer.status, answer.content = 500, f"the model fails on this: {shown(first_line(error), 200)}".encode()
        answer.compute_ns = time.perf_counter_ns() - begin


def serve(entry: IO[bytes], out: IO[bytes]) -> None:
    """Load what the first record says, and answer the others until there are no more."""

    def send(record: object) -> None:
        out.write(frame(record))
        out.flush()

    hello = read_frame(entry, Hello)
    if hello is None:
        return None
    try:
        worker = Worker(hello)
        ready = worker.ready()
    except USER_ERRORS as error:
        return send(Ready(error=str(error)))
    except onnxruntime_errors() as error:
        return send(Ready(error=f"{hello.source.path} is no file that onnxruntime can load: {first_line(error)}"))
    except OSError as error:
        return send(Ready(error=f"{hello.source.path}: {error.strerror}"))
    send(ready)
    while (jobs := read_frame(entry, list[Job])) is not None:
        send(worker.answers(jobs))
    return None


def main() -> None:
    # What a library prints must not stand among the records.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for name in (
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
    ):  # a service manager sends them to the whole group; the service ends the pipe when it is done
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    serve(sys.stdin.buffer, out)


if __name__ == "__main__":
    main()
