"""The stage ``export-litert``: a graph becomes a ``.tflite`` file for LiteRT, proved to answer as the graph does.

What is compared is what ONNX Runtime says of the graph and LiteRT of the file, on up to 1,000 validation images, products of 8 bits being
added up in 32 bits by both, whatever this processor does: in float32 logits differ
by no more than sums in another order do; in int8 two kernels round differently, so the share of equal answers counts. The graph's metadata,
labels among them, are those of the file; beside it are ``labels.txt`` and test vectors, which ``compress verify`` asks again.

Refused: a network for another task, operators that LiteRT has not, and a file that answers otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ...artifacts.artifact import PAYLOAD, Artifact
from ...artifacts.parts import Metrics
from ...artifacts.project import Project, data_identity, making, stage_key
from ...artifacts.vectors import TOLERANCE, write_vectors
from ...benchmarks.run import scoring_batch
from ...benchmarks.runtimes import Candidate, open_model
from ...errors import CompressError
from ...files import write_whole
from ...graphs.records import Parity

STAGE, WRITER = "export-litert", 1  # of what is written, for keys
AGREEING = 0.97  # share of the answers that int8 in another runtime must give alike
Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ExportLitertConfig:
    """``parity_images``: how many validation images prove that LiteRT answers as ONNX Runtime does."""

    parity_images: Annotated[int, Meta(ge=1, description="1000 is the default")] = 1000


def export_litert(project: Project, parent: Artifact, config: ExportLitertConfig, out: Path | None = None) -> Artifact:
    """Write the graph ``parent`` as a .tflite file and prove it."""
    if project.task is not None:
        raise CompressError(f"export-litert proves the answers of classifiers; {parent.path} is for another task")
    key = stage_key(STAGE, config, parent=parent.content, data=data_identity(project), writer=WRITER)
    with making(project, "litert", STAGE, key, config, parent, out) as new:
        if not new.wanted:
            return new.artifact
        from ...litert.convert import convert

        made = convert(parent.payload)
        target = new.folder / PAYLOAD["litert"]
        write_whole(target, made.content)
        (new.folder / "labels.txt").write_text("".join(f"{label}\n" for label in parent.manifest.classes), encoding="utf-8")
        for why in dict.fromkeys(made.left.values()):
            names = [name for name, one in made.left.items() if one == why]
            project.console.say(f"{STAGE}: {len(names)} of the graph's int8 nodes compute in float32, {names[0]} first: {why}")
        images = project.data.validation.images[: config.parity_images]
        spec, classes = parent.manifest.input, len(parent.manifest.classes)
        theirs, ours = (
            open_model(
                Candidate(name=runtime, path=path, runtime=runtime, precise=runtime == "onnxruntime"), spec.shape, classes, threads=1
            ).predict
            for runtime, path in (("onnxruntime", parent.payload), ("litert", target))
        )
        new.metrics = Metrics(parity=_parity(theirs, ours, images, int8=made.int8 > 0, parent=parent))
        new.facts = parent.manifest.facts
        tolerance = TOLERANCE["quantize" if made.int8 else "export"]
        write_vectors(new.folder, theirs, project.data.validation.images, tolerance, PAYLOAD["litert"])
    return new.artifact


def _parity(theirs: Run, ours: Run, images: NDArray[np.uint8], *, int8: bool, parent: Artifact) -> Parity:
    """Raises CompressError where the file answers otherwise."""
    size = scoring_batch(images[0].nbytes)
    pairs = [(theirs(part), ours(part)) for part in (images[at : at + size] for at in range(0, len(images), size))]
    expected, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
    difference, same = float(np.abs(expected - found).max()), float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())
    allowed = TOLERANCE["export"] * float(np.abs(expected).max())
    if not (same >= AGREEING if int8 else difference <= allowed):
        told = f"{100 * same:.1f}% of the answers are the same, {100 * AGREEING:g}% is the least"
        told = told if int8 else f"logits differ by {difference:.2g}, {allowed:.2g} is allowed"
        where = f"on {len(images)} images; please report this with the graph"
        raise CompressError(f"LiteRT does not compute what {parent.path} does: {told}, {where}")
    return Parity(images=len(images), largest_difference=difference, agreement=same, probabilities=None)
