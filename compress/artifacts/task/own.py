"""Data and a score of the user's own in a project: what goes together, and what image the network takes that is to be scored by them.

Refused: one without the other, images of another shape than the network takes, what normalises images that are floats already, and an
artifact of the other kind. Both functions have to be named each time, as nothing is run that was not named on this command line.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import UNSET

from ...errors import CompressError
from ...train.data_set import DataSet
from ..artifact import Artifact, InputSpec
from ..parts import Data, Images
from .data import load
from .function import Function, is_function

if TYPE_CHECKING:
    from ..context import Context

VALIDATION = 0.3  # of the images that are not tested: nobody is trained on the others


def refuse_half(context: Context) -> None:
    """Raise CompressError for a score without targets."""
    if context.score is not None and not is_function(context.data):
        given = f", and data (={context.data}) has classes" if context.data is not None else ""
        raise CompressError(
            f"score (={context.score}) compares outputs with targets{given}; name what gives them: --data path/data.py:load"
        )


def load_own(context: Context, source: Any, seed: int) -> tuple[DataSet, Data]:
    """What the user's function gives, and what artifacts record of it."""
    if context.score is None:
        told = "is a function of your own, and what its targets are is not known"
        next_step = "where nothing is trained, name what compares outputs with them: --score path/score.py:function"
        raise CompressError(f"data (={source}) {told}; {next_step}")
    function = Function("data", str(source))
    key = "own", str(source), function.source, Function("score", str(context.score)).source, seed
    if key not in context.loaded:
        context.loaded.clear()
        context.loaded[key] = load(function, seed, VALIDATION, context.console.say)
    data: DataSet = context.loaded[key]
    counts = Images(**dict(zip(("train", "validation", "test"), data.about.counts, strict=True)))
    how: dict[str, Any] = {"seed": seed, "validation": VALIDATION, "images": counts}
    return data, Data(source=str(source), name=data.name, fingerprint=data.fingerprint, **how)


def fitting(context: Context, spec: InputSpec, data: DataSet, known: bool) -> InputSpec:
    """The image as the data have it; ``known``: its shape is the network's, not a default."""
    if known and data.shape != spec.shape:
        told = " and ".join("x".join(map(str, shape)) for shape in (data.shape, spec.shape))
        raise CompressError(f"data (={context.data}) and the network have images of {told}; give such as the network takes")
    if data.train.images[:1].dtype == np.uint8:
        return dataclasses.replace(spec, shape=data.shape, pixels=UNSET)
    if context.mean is not None or context.std is not None:
        name = "mean" if context.mean is not None else "std"
        told = f"normalises pixels, and data (={context.data}) gives floats, which are fed as they are"
        raise CompressError(f"{name} (={getattr(context, name)}) {told}; leave it out, or give uint8")
    return InputSpec(shape=data.shape, pixels="float32")


def refuse_other(context: Context, parent: Artifact) -> None:
    """Raise CompressError where an artifact and what was named are of two kinds."""
    task = parent.manifest.task
    if task and context.score is None:
        raise CompressError(
            f"{parent.path} is scored by {task.name}, a function of your own; name it and what it compares with: --score, --data"
        )
    if not task and context.score is not None:
        raise CompressError(f"score (={context.score}): {parent.path} reads classes, and was made with such; leave --score out")
