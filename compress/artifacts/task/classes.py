"""What a file answers where its outputs are classes: logits and probabilities of many images, in ONNX Runtime or as a candidate says,
on the machine that ``--on`` names, as 8-bit kernels round otherwise there. For a processor that is not here sums are exact, see `to_ask`.
"""

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...benchmarks.inputs import Predict
from ...benchmarks.place import HERE, answering
from ...benchmarks.run import scoring_batch
from ...benchmarks.runtimes import Candidate, Opened, check_logits, open_model
from ...train.metrics import softmax
from ...train.stored import Images
from ..project import Project


def to_ask(project: Project, file: Path | Candidate) -> Candidate:
    """A file as it is to be opened here. For a ``target`` products of 8 bits are added up in 32 bits, as there, whatever this CPU does:
    either it does that itself, or its weights have 7 bits, whose sums fit into 16.
    """
    if isinstance(file, Candidate):
        return file
    return Candidate(name=file.stem, path=file, precise=project.target is not None)


def logits_of(project: Project, file: Path | Candidate, images: Images) -> NDArray[np.float32]:
    """What a file says of images uint8 (N, C, H, W), in ONNX Runtime or as the candidate says: float32 (N, K)."""
    if project.place is HERE or isinstance(file, Candidate):
        return _read(project, _opened(project, file).predict, images)
    with _there(project, file) as told:
        return _read(project, lambda part: told(part)[0], images)


def sure_of(project: Project, file: Path, images: Images) -> NDArray[np.float32]:
    """As :func:`logits_of`, its probabilities."""
    if project.place is HERE:
        return _read(project, _opened(project, file).sure, images)
    with _there(project, file) as told:
        return _read(project, lambda part: sure_from(*told(part)), images)


def sure_from(logits: NDArray[Any], probabilities: NDArray[Any] | None) -> NDArray[Any]:
    """Probabilities (B, K): those that the file gives, else the softmax of its logits."""
    return softmax(logits) if probabilities is None else probabilities


def _there(project: Project, file: Path) -> AbstractContextManager[Any]:
    return answering(project.place, Candidate(name=file.stem, path=file), project.spec.shape, project.classes)


def _opened(project: Project, file: Path | Candidate) -> Opened:
    return open_model(to_ask(project, file), project.spec.shape, project.classes, threads=1)


def _read(project: Project, run: Predict, images: Images) -> NDArray[np.float32]:
    size = min(64, scoring_batch(math.prod(project.spec.shape)))
    batches = np.array_split(np.arange(len(images)), max(1, len(images) // size))
    parts = (images[rows[0] : rows[-1] + 1] for rows in batches)
    return np.concatenate([check_logits(run(part), len(part), project.classes) for part in parts])
