"""What stages do for a network whose outputs are no classes: they score it by the user's own function, one image at a time.

Nothing is trained here, as only the user knows by what loss: what takes epochs is refused. Settings of quantization are chosen by how far
outputs move on training images, and files are proved on validation images by the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts.parts import OwnScore
from ..artifacts.project import Project
from ..artifacts.task.classes import to_ask
from ..artifacts.task.score import Task
from ..benchmarks.paired import Drop
from ..benchmarks.place import HERE
from ..benchmarks.runtimes import Candidate, open_model
from ..benchmarks.scored import Judge, Outputs, Scored, images_to_prove, lost
from ..errors import CompressError
from ..quantization.records import Certified
from ..train.data_set import Part

if TYPE_CHECKING:
    from torch import Tensor, nn

Asked = Callable[[Path], Path | Candidate]
ALIKE = 1e-3  # of the largest number
PROVED_ON = 64  # validation images
SCORED = 10_000  # validation images at most
SEEN, SEEN_BYTES = 256, 5e8  # training images on which outputs are compared, and bytes of these
USUAL_DROP = 0.003  # of what float32 scores


def refuse_training(project: Project, epochs: int) -> None:
    """Raise CompressError where a network is to be trained of which nobody here knows the loss."""
    if epochs and project.score is not None:
        told = f"training is for classifiers, and {project.score.name} of your own scores this network"
        raise CompressError(f"epochs (={epochs}): {told}; take --epochs 0, and train it further in code of yours")


def refuse_compiled(project: Project, runtime: str) -> None:
    """Raise CompressError where candidates are to be compiled here and timed elsewhere."""
    if runtime == "c" and project.place is not HERE:
        raise CompressError(f"runtime (=c) is compiled for this machine, and on (={project.place.name}) is another; leave one of them out")


def outputs_of(project: Project, file: Path | Candidate, images: Any) -> Iterator[Outputs]:
    """All that an ONNX file gives for each of the images, one at a time; they are as the graphs of this toolkit take them."""
    run = open_model(replace(to_ask(project, file), whole=True), project.spec.shape, None, threads=1).predict
    for at in range(len(images)):
        yield tuple(map(np.atleast_1d, run(images[at : at + 1])))


def outputs_in_torch(project: Project, network: nn.Module, images: Any) -> Iterator[Outputs]:
    """The same of a torch network, on the project's device."""
    import torch

    from ..artifacts.load import Prepare
    from ..pruning.passes import evaluating, tensors_in
    from ..train.fit import choose_device

    device = choose_device(project.device)
    prepare = Prepare(project.spec).to(device)
    network.to(device)
    with evaluating(network):
        for at in range(len(images)):
            with torch.inference_mode():
                made = network(prepare(torch.tensor(images[at : at + 1], device=device)))
            yield tuple(one.float().cpu().numpy() for one in tensors_in(made))
    network.cpu()


def score_of(project: Project, file: Path) -> OwnScore:
    """What an ONNX file scores on the validation images."""
    part = _validation(project)
    return own_score(project, _judge(project, part).of(_told(project, outputs_of(project, file, part.images), len(part.labels))))


def score_network(project: Project, network: nn.Module, part: Part | None = None) -> Scored:
    """What a torch network scores on a part, the validation images where none is given."""
    part = part or _validation(project)
    return _judge(project, part).of(outputs_in_torch(project, network, part.images))


def value_of(project: Project, network: nn.Module, part: Part) -> float:
    """The same alone, of not many images."""
    return _judge(project, part).value(outputs_in_torch(project, network, part.images))


def lost_in_torch(project: Project, teacher: nn.Module, network: nn.Module) -> Drop:
    """How much of the score the network loses beside its teacher, on the validation images."""
    part = _validation(project)
    judge = _judge(project, part)
    before, after = (judge.of(outputs_in_torch(project, one, part.images)) for one in (teacher, network))
    return lost(before, after)


def outputs_loss(made: Any, seed: int) -> Tensor:
    """What to differentiate where no loss is known: the sum of all outputs, each by its spread and with a random sign.

    The mean square of its gradient is the diagonal of J'J, with J the outputs by the weights: by how much the squared error of the outputs
    rises beside what they are, and the Fisher information of a normal distribution around them. Source: Martens, "New insights and
    perspectives on the natural gradient method", JMLR 21 (2020), section 9; Hutchinson's estimate of a diagonal.
    """
    import torch

    from ..pruning.passes import tensors_in

    parts, generator = [], torch.Generator().manual_seed(seed)
    for one in tensors_in(made):
        if one.is_floating_point():
            signs = torch.randint(0, 2, one.shape, generator=generator).to(one) * 2 - 1
            spread = one.detach().std().clamp_min(torch.finfo(one.dtype).tiny) if one.numel() > 1 else 1.0
            parts.append((one * signs).sum() / spread / (len(one) * max(1, one[0].numel()) ** 0.5))
    return torch.stack(parts).sum()


def prove_graph(project: Project, network: nn.Module, file: Path) -> None:
    """Raise CompressError where a graph does not compute on validation images what torch does."""
    images = project.data.validation.images[:PROVED_ON]
    pairs = zip(outputs_in_torch(project, network, images), outputs_of(project, file, images), strict=True)
    far = [float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-30)) for both in pairs for one, other in zip(*both, strict=True)]
    if not max(far) <= ALIKE:
        told = f"gives outputs that differ by {max(far):.2g} of the largest from what torch computes"
        raise CompressError(f"the graph {told}; please report this network")


def own_score(project: Project, found: Scored) -> OwnScore:
    """What an artifact says of a score."""
    return replace(_task(project).named, value=found.value, images=found.images)


class OwnAnswers:
    """What files give beside the float32 one, as ``int8_files.Answers`` is for classes.

    Args:
        float32: the file that the others were made of.
        calibrated: positions of the training images that calibrate; others are taken where there are enough.
        max_drop: of the score, that may be lost; a share of what float32 scores where none is given.
        asked: how a file is asked on validation images; in ONNX Runtime.
    """

    def __init__(
        self, project: Project, float32: Path, calibrated: NDArray[np.int64], max_drop: float | None, asked: Asked = lambda file: file
    ) -> None:
        self.project, self._float32, self._found, self._asked = project, float32, dict[Path, Scored](), asked
        train, self.part = project.data.train, _validation(project)
        others = np.setdiff1d(np.arange(len(train.labels)), calibrated)
        pool = others if len(others) >= len(calibrated) // 4 else calibrated
        first = next(outputs_of(project, float32, train.images[pool[:1]]))
        seen = int(max(1, min(SEEN, SEEN_BYTES // sum(one.nbytes for one in first))))
        self.images = train.images[pool[:seen]]
        self._exact = list(outputs_of(project, float32, self.images))
        self.judge = _judge(project, self.part)
        self.max_drop = USUAL_DROP * abs(self.of(float32).value) if max_drop is None else max_drop

    def of(self, file: Path) -> Scored:
        """What a file scores, asked once."""
        if file not in self._found:
            self._found[file] = self.judge.of(
                _told(self.project, outputs_of(self.project, self._asked(file), self.part.images), len(self.part.labels))
            )
        return self._found[file]

    def scores(self, file: Path) -> OwnScore:
        return own_score(self.project, self.of(file))

    def moved(self, file: Path) -> float:
        """By how many percent outputs move, each by its root mean square, on average over training images and outputs."""
        found = outputs_of(self.project, file, self.images)
        return 100 * float(np.mean([_moved(*pair) for both in zip(self._exact, found, strict=True) for pair in zip(*both, strict=True)]))

    def certify(self, file: Path, error: float) -> Certified:
        """The drop that the validation images show, and its bound, which is wrong with the probability ``error`` at most."""
        before, after = self.of(self._float32), self.of(file)
        drop = lost(before, after, error=error)
        tells = images_to_prove(before, after, self.max_drop, error=error) if drop.bound > self.max_drop else None
        return Certified(drop=drop.value, bound=drop.bound, images=drop.images, tells=tells)


def _moved(exact: np.ndarray, found: np.ndarray) -> float:
    """Of two outputs, as a share of the first; all of it where they have other shapes, as two lists of detections may."""
    if exact.shape != found.shape:
        return 1.0
    whole, change = (float(np.square(one.astype(np.float64)).sum()) for one in (exact, exact.astype(np.float64) - found))
    return (change / whole) ** 0.5 if whole else float(change > 0)


def _task(project: Project) -> Task:
    assert project.task is not None, "only such projects come here"
    return project.task


def _judge(project: Project, part: Part) -> Judge:
    return _task(project).judge(part)


def _validation(project: Project) -> Part:
    part = project.data.validation
    return part if len(part.labels) <= SCORED else part.sample(SCORED, 0)


def _told(project: Project, answers: Iterator[Outputs], count: int) -> Iterator[Outputs]:
    """The same, with progress."""
    for done, one in enumerate(answers):
        project.console.progress(f"{_task(project).score.name} of validation images", done, count)
        yield one
