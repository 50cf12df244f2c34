"""A score of the user's own, ``--score path/score.py:iou``: a function of outputs and targets that gives a number, higher is better.

::

    def iou(outputs, targets):        # of any number of images, of one too where the score is a mean over images
        return float(...)

``outputs``: float (N, ...) of a network with one output, a tuple of such in the order of the file where it has several. The network
sees one image at a time, so an output whose size differs from image to image is a list of N arrays. ``targets``: as the data have them.

Refused: what is no finite number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...benchmarks.scored import Judge, Outputs
from ...errors import shown
from ...train.data_set import Part
from ..parts import OwnScore
from .data import pick
from .function import Function, FunctionError


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is good for: ``score`` of its outputs beside the ``targets``."""

    score: Function
    targets: Any

    @property
    def identity(self) -> dict[str, str]:
        """What artifacts record, so that another score is noticed."""
        return {"name": self.score.name, "source": self.score.source}

    @property
    def named(self) -> OwnScore:
        """The same, without a value."""
        return OwnScore(name=self.score.name, source=self.score.source)

    def judge(self, part: Part) -> Judge:
        """Scores networks on the images of a part."""
        return Judge(_Scores(task=self), part.labels.tolist())


@dataclass(kw_only=True)
class _Scores:
    """``unbatched``: outputs that were seen to have no place for the batch; ``uneven``: those of another size for each image."""

    task: Task
    unbatched: set[int] = field(default_factory=set)
    uneven: set[int] = field(default_factory=set)

    def __call__(self, answers: Sequence[Outputs], positions: Sequence[int]) -> float:
        columns = list(zip(*answers, strict=True))
        self.unbatched |= {at for at, column in enumerate(columns) if any(len(one) != 1 for one in column)}
        self.uneven |= {at for at, column in enumerate(columns) if any(one.shape != column[0].shape for one in column)}
        outputs = tuple(self._joined(at, column) for at, column in enumerate(columns))
        found = self.task.score(outputs if len(outputs) > 1 else outputs[0], pick(self.task.targets, positions))
        return _number(found, self.task.score)

    def _joined(self, at: int, column: Sequence[np.ndarray]) -> Any:
        if at in self.unbatched:
            return list(column)
        return [one[0] for one in column] if at in self.uneven else np.concatenate(column)


def _number(found: Any, score: Function) -> float:
    value = found.item() if getattr(found, "shape", None) == () and hasattr(found, "item") else found
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        told = f"an array of shape {tuple(found.shape)}" if hasattr(found, "shape") else f"a {type(value).__name__}, {shown(value, 40)}"
        raise FunctionError(f"{score.told} gave {told}; one number is needed, and higher must be better")
    if not math.isfinite(value):
        raise FunctionError(f"{score.told} gave {value}; a finite number is needed")
    return float(value)
