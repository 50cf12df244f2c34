"""The stage ``export``: a network becomes an ONNX file, proved on real images to compute what torch does.

With ``fold_constants`` tensors that are the same for all images, such as a gate that never closes, become constants, and what only they
needed is gone. Which those are is seen on training images without labels. On others a tensor is let go only while answers hardly move.
Then the validation images, that chose nothing, are asked once: where every tensor never varies, all answers must be the same; else what is
lost must be proved to be at most ``MOST_DROP``. What is not proved stays in, and that is said.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from .. import __version__
from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.parts import Constant, Folded, Metrics
from ..artifacts.project import Project, data_identity, making, stage_key
from ..artifacts.records import plain
from ..artifacts.vectors import TOLERANCE, write_vectors
from ..benchmarks.errors import BenchmarkError
from ..benchmarks.run import scoring_batch
from ..errors import CompressError, onnxruntime_errors
from ..train.split import stratified_sample

if TYPE_CHECKING:
    from torch import nn

    from ..graphs.probe import Steady
    from .int8_files import Answers

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """ONNX: ``opset`` of the graph, its ``input``, uint8 or float32 in [0, 1], and how many real images prove its parity with torch.

    ``fold_constants``: tensors that are nearly the same for all images become constants where that is proved to lose next to nothing.
    """

    opset: Annotated[int, Meta(ge=18, le=23, description="18 is what older runtimes on boards read too")] = 18
    input: Annotated[Literal["uint8", "float32"], Meta(description="uint8 takes the pixels as a camera or file has them")] = "uint8"
    parity_images: Annotated[int, Meta(ge=1, description="1000 is the default")] = 1000
    fold_constants: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result; what is not asked for is not among them, so that older artifacts are found."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "fold_constants" or value}


# Float32 sums in another order differ by about 1e-6 of the largest logit; a wrong graph is wrong by far more.
PARITY_TOLERANCE = 1e-3
OWN_ROUNDINGS, MOST_ROUNDING = 4, 1e-2  # so many times what float32 makes of the network in torch, where that is more; but at most
# Folding: training images that are looked at, what a tensor may vary to be tried, how far answers may move (points of probability), and
# points of balanced accuracy that may be lost, as a 95% bound.
LOOKED_AT, MOST_VARIANCE, MOST_MOVED, MOST_DROP = 512, 0.02, 0.1, 0.3


def export(project: Project, parent: Artifact, config: ExportConfig, out: Path | None = None) -> Artifact:
    """Export ``parent`` to ONNX (images in, logits and probabilities out) and prove on real images that it computes the same."""
    settings = config.settings
    key = stage_key("export", settings, parent=parent.content, data=data_identity(project), vectors=TOLERANCE["export"])

    with making(project, "graph", "export", key, settings, parent, out) as new:
        if not new.wanted:
            return new.artifact
        from ..artifacts.load import load_network
        from .own_task import score_of

        network = load_network(parent)
        new.metrics, new.facts = _exported(project, parent, network, config, new.folder), parent.manifest.facts
        if project.score is not None:
            own = score_of(project, new.folder / PAYLOAD["graph"])
            new.metrics = dataclasses.replace(new.metrics, score=own, units=own.name)
    return new.artifact


def _exported(project: Project, parent: Artifact, network: "nn.Module", config: ExportConfig, folder: Path) -> Metrics:
    """Write the graph into ``folder``, with its test vectors, and prove it."""
    import torch

    from ..artifacts.load import Prepare, as_runner
    from ..graphs.export import export_onnx, own_rounding, parity
    from .own_task import prove_graph

    prepare, target = Prepare(parent.manifest.input), folder / PAYLOAD["graph"]
    images = _real_images(project, config.parity_images)
    example, metadata = torch.from_numpy(images[:2].copy()), graph_metadata(parent, config)
    how: dict[str, Any] = {"opset": config.opset, "image": config.input, "classes": project.score is None}
    rewrites = export_onnx(network, target, prepare=prepare, example=example, metadata=metadata, **how)
    if project.score is not None:
        if config.fold_constants:
            raise CompressError("fold_constants (=True) is proved by the answers of a classifier; leave it out")
        prove_graph(project, network, target)
        return Metrics(rewrites=rewrites)
    size = scoring_batch(images[0].nbytes)
    proof = parity(network, prepare, target, images, batch=size)
    worst, allowed = max(proof.largest_difference, proof.probabilities if isinstance(proof.probabilities, float) else 0.0), PARITY_TOLERANCE
    if worst > allowed:
        allowed = max(allowed, min(MOST_ROUNDING, OWN_ROUNDINGS * own_rounding(network, prepare, images, batch=size)))
    if worst > allowed or not math.isfinite(worst):
        raise CompressError(
            f"the exported graph does not compute what {parent.path} does: logits differ by {proof.largest_difference:.2g} "
            f"on {proof.images} images, {allowed:.2g} is allowed; please report this with the network"
        )
    expected, metrics = as_runner(torch.nn.Sequential(prepare, network)), Metrics(parity=proof, rewrites=rewrites)
    if config.fold_constants:
        folded, expected = fold_constants(project, "export", target, expected)
        if folded.tensors:
            folded = dataclasses.replace(folded, parity=parity(network, prepare, target, images, batch=size))
        metrics = dataclasses.replace(metrics, constants=folded)
    write_vectors(folder, expected, project.data.validation.images, TOLERANCE["export"])
    return metrics


def fold_constants(project: Project, stage: str, target: Path, expected: Run) -> tuple[Folded, Run]:
    """Fold what is constant in the graph ``target``, in place and as the module says; where nothing is, the file stays as it is.

    Args:
        expected: what the graph was proved to answer.

    Returns:
        What was folded, and what the graph is to answer now: a folded one what it answers here.
    """
    from ..benchmarks.runtimes import Candidate, open_model
    from ..graphs.file import read_onnx
    from ..graphs.probe import steady_tensors
    from .int8_files import Answers

    model, train = read_onnx(target), project.data.train
    chosen = stratified_sample(train.labels, min(LOOKED_AT, len(train.labels)), seed=0)
    found = steady_tensors(model, train.images[chosen], MOST_VARIANCE)
    if not found:
        left = f"nothing that is computed is constant on {len(chosen)} training images"
        project.console.say(f"{stage}: {left}; the graph is the one without fold_constants")
        return Folded(nodes=(_nodes(target), _nodes(target)), left=left), expected
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folding = _Folding(project, target, Path(scratch), Answers(project, target, chosen, MOST_DROP))
        folded = folding.proved(folding.bearable(found))
    if folded.left:
        project.console.say(f"{stage}: {folded.left}")
    if not folded.tensors:
        return folded, expected
    return folded, open_model(Candidate(name="folded", path=target), project.spec.shape, project.classes, threads=1).predict


class _Folding:
    """Tries what can be folded in the graph ``source``, by what the ``answers`` say; files lie in ``folder``."""

    def __init__(self, project: Project, source: Path, folder: Path, answers: "Answers") -> None:
        self.project, self.source, self.folder, self.answers = project, source, folder, answers
        self._files: dict[tuple[str, ...], Path] = {}

    def bearable(self, found: "Sequence[Steady]") -> "list[Steady]":
        """One after the other, those that vary least first: all with which answers move by at most ``MOST_MOVED``."""
        taken: list[Steady] = []
        for done, one in enumerate(found):
            self.project.console.progress(f"constant {one.name}", done, len(found))
            try:
                moved = self.answers.moved(self._file([*taken, one]))
            except (CompressError, BenchmarkError, *onnxruntime_errors()):  # a product of two constants, say, has lost the batch
                continue
            if moved <= MOST_MOVED:
                taken.append(one)
        self.project.console.progress("constants", len(found), len(found))
        return taken

    def proved(self, taken: "Sequence[Steady]") -> Folded:
        """All of ``taken``, or those of them that never vary, or none: the first that the validation images prove, put into its place."""
        before = _nodes(self.source)
        told = [] if taken else [f"nothing is constant enough: without any of them answers move by more than {MOST_MOVED} points"]
        for some in filter(None, dict.fromkeys((tuple(taken), tuple(one for one in taken if not one.varies)))):
            file, loose = self._file(some), [one.name for one in some if one.varies]
            found = self.answers.certify(file, error=0.05)
            if found.bound <= MOST_DROP if loose else np.array_equal(self.answers.of(file), self.answers.of(self.source)):
                self.source.write_bytes(file.read_bytes())
                tensors = tuple(Constant(name=one.name, shape=one.mean.shape, varies=one.varies) for one in some)
                return Folded(
                    tensors=tensors,
                    nodes=(before, _nodes(file)),
                    moved=self.answers.moved(file),
                    drop=found.drop,
                    bound=found.bound,
                    images=found.images,
                    left="; ".join(told),
                )
            lost = f"{found.drop:.2f} points lost (at most {found.bound:.2f} with 95% confidence) on {found.images} validation images"
            rule = f"at most {MOST_DROP} may be" if loose else "none of their answers may change"
            tells = f"; {found.tells:,} images would do" if loose and found.tells else ""
            names = loose or [one.name for one in some]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            told.append(f"{', '.join(names[:5])}{more} left in: {lost}, {rule}{tells}")
        return Folded(nodes=(before, before), left="; ".join(told))

    def _file(self, some: "Sequence[Steady]") -> Path:
        from ..graphs.file import note, read_onnx, write_onnx
        from ..graphs.rewrite import fold_tensors

        names = tuple(one.name for one in some)
        if names not in self._files:
            model, target = read_onnx(self.source), self.folder / f"{len(self._files)}.onnx"
            folded = fold_tensors(model, {one.name: one.mean for one in some})
            note(folded, model, {"compress.constants": json.dumps(names)})
            write_onnx(folded, target)
            self._files[names] = target
        return self._files[names]


def _nodes(file: Path) -> int:
    from ..graphs.file import read_onnx

    return len(read_onnx(file).graph.node)


def _real_images(project: Project, count: int) -> NDArray[np.uint8]:
    """The first ``count`` validation images, and training images where those are too few; the proof needs no unseen ones."""
    validation, train = project.data.validation.images, project.data.train.images
    images = np.concatenate([validation[:count], train[: max(0, count - len(validation))]])
    if len(images) < count:
        project.console.say(f"export: the data has {len(images)} images for the proof of parity, fewer than parity_images (={count})")
    return images


def graph_of(project: Project, parent: Artifact, config: ExportConfig) -> Artifact:
    """``parent`` itself if it is a graph, else its export."""
    return parent if parent.manifest.kind == "graph" else export(project, parent, config)


def graph_metadata(parent: Artifact, config: ExportConfig) -> dict[str, str]:
    """What an ONNX file says of itself: everything here follows from the inputs, so that the same export gives the same bytes.

    ``compress.image`` is what to feed it; ``values``: which values the ends of its range stand for, of data that were no bytes.
    ``compress.input`` is what the graph makes of the image itself: nobody else has to normalise.
    """
    import torch

    about = parent.manifest
    image: dict[str, Any] = {
        "dtype": config.input,
        "shape": ["batch", *about.input.shape],
        "range": [0, 255] if config.input == "uint8" else [0, 1],
    }
    if about.input.pixels:
        image = {"dtype": about.input.pixels, "shape": image["shape"]}
    if about.input.range:
        image["values"] = list(about.input.range)
    output = {"dtype": "float32", "shape": ["batch", len(about.classes)]}
    outputs = {"compress.outputs": json.dumps({"logits": output, "probabilities": output})} if about.classes else {}
    lineage = [{"stage": step.stage, "config": step.config} for step in parent.steps]
    return {
        "compress.version": __version__,
        "compress.versions": json.dumps({"torch": torch.__version__, "onnx": version("onnx"), "opset": config.opset}),
        "compress.classes": json.dumps(about.classes, ensure_ascii=False),
        "compress.image": json.dumps(image),
        "compress.input": json.dumps(plain(about.input)),
        **outputs,
        "compress.model": json.dumps(plain(about.model)),
        "compress.lineage": json.dumps(lineage),
        "compress.data": json.dumps({"name": about.data.name, "fingerprint": about.data.fingerprint}),
    }
