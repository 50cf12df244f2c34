"""Figures where people look while a stage works: ``--log tensorboard`` or ``--log mlflow``.

TensorBoard gets event files in ``runs/tensorboard/<stage>-<time>`` (``tensorboard --logdir runs/tensorboard``). MLflow gets a run in the
experiment ``compress``, or that of ``MLFLOW_EXPERIMENT_NAME``, where ``MLFLOW_TRACKING_URI`` says, with what was said as parameters. Of
several processes that torchrun started the first logs. A tracker that fails in the middle is told once and left alone: a training is
worth more than its log. Refused before any work: a package that is not installed, a server that does not answer.
"""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ..errors import CompressError, first_line

EXPERIMENT = "compress"


class Tracker(Protocol):
    """Takes figures; ``close`` says whether the stage was done."""

    where: str

    def figures(self, name: str, step: int, values: Mapping[str, float]) -> None: ...
    def close(self, done: bool) -> None: ...


class TensorBoard(Tracker):
    """One event file; the folder is made with the first figure."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = f"tensorboard --logdir {folder.parent}", folder
        self._writer: Any = None

    def figures(self, name: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.summary import Writer

        self._writer = self._writer or Writer(str(self._folder))
        for key, value in values.items():
            self._writer.add_scalar(f"{name}/{key}", value, step)
        self._writer.flush()

    def close(self, done: bool) -> None:
        if self._writer is not None:
            self._writer.close()


class MLflow(Tracker):
    """One run, begun with the first figure. Raises CompressError where the tracking server does not answer."""

    def __init__(self, stage: str, said: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient, get_tracking_uri
        from mlflow.exceptions import MlflowException

        self._stage, self._said, self._run = stage, said, ""
        uri, name = get_tracking_uri(), os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        self.where = f"MLflow at {uri}"
        try:
            self._client = MlflowClient()
            known = self._client.get_experiment_by_name(name)
            self._experiment = known.experiment_id if known else self._client.create_experiment(name)
        except (MlflowException, OSError, ImportError) as error:
            told = "set MLFLOW_TRACKING_URI to sqlite:///FILE or to a server that answers"
            raise CompressError(f"log (=mlflow) at {uri} failed: {first_line(error)}; {told}") from error

    def figures(self, name: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        if not self._run:
            self._run = self._client.create_run(self._experiment, run_name=self._stage).info.run_id
            self._client.log_batch(self._run, params=[Param(key, str(value)[:500]) for key, value in self._said.items()])
        plain = re.sub(r"[^\w\-. /]", "_", name)
        self._client.log_batch(self._run, metrics=[Metric(f"{plain}/{key}", value, now, step) for key, value in values.items()])

    def close(self, done: bool) -> None:
        if self._run:
            self._client.set_terminated(self._run, "FINISHED" if done else "FAILED")


class Logged:
    """See :class:`compress.artifacts.project.Log`; steps of one name only grow, where a stage begins to count anew."""

    def __init__(self, tracker: Tracker, say: Any) -> None:
        self.tracker, self._say, self.written, self._failed = tracker, say, False, False
        self._last: dict[str, int] = {}
        self._from: dict[str, int] = {}

    def figures(self, name: str, step: int, values: Mapping[str, float]) -> None:
        finite = {key: float(value) for key, value in values.items() if _is_number(value)}
        before = self._from.setdefault(name, 0)
        if before + step <= self._last.get(name, -1):
            before = self._from[name] = self._last[name]
        self._last[name] = before + step
        if finite and not self._failed:
            self._guarded(lambda: self.tracker.figures(name, before + step, finite))
            self.written = True

    def close(self, done: bool) -> None:
        self._guarded(lambda: self.tracker.close(done))
        if not self._failed:
            self._say(f"log: {self.tracker.where}" if self.written else "log: nothing was computed anew, so nothing was logged")

    def _guarded(self, act: Any) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises: work goes on without it
            self._failed = True
            self._say(f"log: {first_line(error)}; goes on without it")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def logged(context: Any, kind: str, stage: str, said: Mapping[str, Any]) -> Iterator[Any]:
    """The context with a log of this kind. ``said``: the options that were given. Raises CompressError as the module says."""
    if kind not in ("tensorboard", "mlflow"):
        raise CompressError(f"log (={kind}) must be tensorboard or mlflow")
    if not installed(kind):
        raise CompressError(f"log (={kind}) needs {kind}, which is not installed here; pip install 'compress-edge[{kind}]'")
    if os.environ.get("RANK", "0") != "0":
        yield context
        return
    folder = Path(context.runs) / "tensorboard" / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    log = Logged(TensorBoard(folder) if kind == "tensorboard" else MLflow(stage, said), context.console.say)
    done = False
    try:
        yield dataclasses.replace(context, log=log)
        done = True
    finally:
        log.close(done)
