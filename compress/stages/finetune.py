"""What stages that train have in common: fine-tuning with a teacher, scoring, and saving the network with its cost."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from ..artifacts.artifact import PAYLOAD, Artifact
from ..artifacts.cost import count_cost
from ..artifacts.load import Prepare, build_network
from ..artifacts.parts import SCORES, Facts, Metrics, Scores
from ..artifacts.project import New, Project, state_file
from ..artifacts.records import write_csv
from ..artifacts.task.classes import logits_of
from ..artifacts.vectors import TOLERANCE, write_vectors
from ..channels.cut import Keep
from ..channels.groups import Groups
from ..channels.reconstruct import reconstruct, repair
from ..errors import CompressError
from ..files import write_whole
from ..graphs.as_torch.network import OnnxNetwork
from ..graphs.file import ALIKE, write_onnx
from ..graphs.records import Parity
from ..pruning.layerwise import Zeros, most_images, solve
from ..pruning.masks import nonzero_masks
from ..pruning.passes import at_once, evaluating
from ..pruning.repair import Repaired, make_up
from ..train.allocator import freed_memory_given_back, give_back_freed_memory
from ..train.data_set import Part
from ..train.distributed import this_team
from ..train.fit import Fitted, choose_device, fit, predict_logits
from ..train.metrics import score, tempered_loss
from ..train.settings import MOST_AT_ONCE, FitConfig, usual_batch
from ..train.stored import Images
from .own_task import outputs_loss, own_score, prove_graph, score_network, value_of

PROVED_ON = 1000  # validation images on which a graph is compared with torch
JUDGED_BY = 2048  # training images that judge what was made of a pruned network; 512 took the worse of two by chance
DIFFERENTIATED = 16e6  # bytes of the largest activation of a batch whose activations all stay
OWN_JUDGED_BY = 256  # the same by a score of the user's own: all their outputs are held in memory
MOST_CHUNKS, FEW_CHUNKS = 8, 1  # of images that a network is solved on, and for a trial (see ``pruning.layerwise``)
PIXELS = 2**24  # of all images that importance looks at, or that judge or are solved on: 2,048 of 90 by 90, 334 of 224 by 224


def new_network(project: Project, seed: int) -> nn.Module:
    """A network of the project's model with the initial weights of ``seed``; torch's own generator stays where it is."""
    assert project.model is not None, "only files are measured without a model"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(project.model, project.classes, project.spec)


def affordable(count: int, project: Project, least: int = 256) -> int:
    """So many images, or fewer large ones, which show more places each and take longer, but no fewer than ``least``."""
    return min(count, max(least, PIXELS // math.prod(project.spec.shape[1:])))


def zeros_kept(parent: Artifact, network: nn.Module) -> dict[str, Tensor]:
    """Masks of the zeros in ``network``, made of ``parent``, if it was pruned before; fine-tuning must not fill them."""
    return nonzero_masks(network) if any(step.stage == "prune" for step in parent.steps) else {}


def ease_dropout(network: nn.Module, teacher: nn.Module) -> None:
    """Lower every dropout by the square root of the share of the teacher's weights that are left: less can be learnt by heart.

    Source: Han et al. 2015, arXiv:1506.02626, section 3.2.
    """
    left, whole = (sum(int(torch.count_nonzero(value)) for value in one.parameters()) for one in (network, teacher))
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p *= math.sqrt(min(1.0, left / max(1, whole)))


def batch_losses(project: Project, network: nn.Module, part: Part, batch: int = 64) -> Iterator[Tensor]:
    """The mean cross-entropy of each batch of ``part`` in eval mode, without distortions, to be differentiated; on the project's device.

    Of a network whose outputs are no classes :func:`outputs_loss`.

    Of large pictures a batch has fewer, as all activations stay until it is differentiated.
    """
    device = choose_device(project.device)
    network.to(device).eval()
    prepare = Prepare(project.spec).to(device)
    with torch.no_grad():
        batch = min(batch, at_once(network, prepare(torch.from_numpy(part.images[:2]).to(device)), DIFFERENTIATED))
    for start in range(0, len(part.labels), batch):
        project.console.progress("importance", start, len(part.labels))
        images, labels = (torch.from_numpy(of[start : start + batch]).to(device) for of in (part.images, part.labels))
        made = network(prepare(images))
        yield functional.cross_entropy(made, labels) if project.score is None else outputs_loss(made, start)
    project.console.progress("importance", len(part.labels), len(part.labels))


def fit_and_save(
    project: Project, new: New, network: nn.Module, config: FitConfig, *, finish: Callable[[], None] | None = None, **how: Any
) -> None:
    """Train as :func:`fit_network` does, ``finish`` and save; the state file beside the artifact's place goes when the artifact is made."""
    fitted = fit_network(project, new, network, config, **how)
    if finish is not None:
        finish()
    scores = Scores(**{name: fitted.best[name] for name in SCORES})
    save_network(project, new, network, Metrics(validation=scores, best_epoch=fitted.best_epoch))
    if this_team().rank == 0:
        state_file(project, new.stage, new.key).unlink(missing_ok=True)


def fit_network(
    project: Project,
    new: New,
    network: nn.Module,
    config: FitConfig,
    **how: Any,
) -> Fitted:
    """Train ``network`` in place on the project's images, with progress, a state file and ``history.csv`` among the files of ``new``.

    ``how``: what else :func:`fit_parts` takes.
    """
    _, height, width = project.spec.shape
    if config.batch == usual_batch(height, width) < MOST_AT_ONCE and this_team().rank == 0:
        told = f"{config.batch} images of {height}x{width} a step, as large ones take memory, with a learning rate of {config.lr:g} all"
        project.console.say(f"{new.stage}: {told} the same; `batch` and `lr` of a recipe's [train] say otherwise")
    state = state_file(project, new.stage, new.key) if this_team().rank == 0 else None  # the first process has it
    if state is not None and project.fresh:
        state.unlink(missing_ok=True)
    parts = (project.data.train, project.data.validation)
    fitted = fit_parts(project, network, config, parts, new.stage, state_file=state, key=new.key, **how)
    write_csv(new.folder / "history.csv", fitted.history)
    return fitted


def fit_parts(
    project: Project,
    network: nn.Module,
    config: FitConfig,
    parts: tuple[Part, Part],
    name: str,
    turn: tuple[int, int] = (0, 1),
    **how: Any,
) -> Fitted:
    """Train ``network`` in place on the first of ``parts``, scored on the second.

    ``name`` is what the progress is called; this is the training number ``turn[0]``, from 0, of ``turn[1]``. ``how``: what else
    :func:`compress.train.fit.fit` takes; images are prepared as the project says unless it says otherwise.
    """
    device = choose_device(project.device)

    def progress(epoch: int, step: int, steps: int, loss: float) -> None:
        done = (turn[0] * config.epochs + epoch - 1) * steps + step
        project.console.progress(f"{name}, epoch {epoch} of {config.epochs}, loss {loss:.3f}", done, turn[1] * config.epochs * steps)

    given = how.pop("after_epoch", None)

    def after_epoch(row: dict[str, float]) -> None:
        project.log.figures(name, turn[0] * config.epochs + int(row["epoch"]), {key: row[key] for key in row if key != "epoch"})
        if given is not None:
            given(row)

    training, validation = ((part.images, part.labels) for part in parts)
    how.setdefault("prepare", Prepare(project.spec).to(device))
    how |= {"classes": project.classes, "device": device, "progress": progress, "say": lambda text: project.console.say(f"{name}: {text}")}
    return fit(network, training, validation, config, after_epoch=after_epoch, **how)


def save_network(project: Project, new: New, network: nn.Module, metrics: Metrics) -> None:
    """Write the weights among the files of ``new``, and say its ``metrics`` and what it costs."""
    example = Prepare(project.spec)(torch.from_numpy(project.data.validation.images[:2].copy()))
    new.metrics, new.facts = metrics, Facts(**dataclasses.asdict(count_cost(network, example)))
    if isinstance(network, OnnxNetwork):
        new.metrics = dataclasses.replace(metrics, parity=_save_graph(project, new, network))
        return
    # Cloned, as safetensors refuses tensors that share memory (tied weights).
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    write_whole(new.folder / PAYLOAD["network"], save(weights))


def _save_graph(project: Project, new: New, network: OnnxNetwork) -> Parity | UnsetType:
    """Write the graph of a network that is one, with its test vectors, and prove on validation images that it computes what torch does."""
    target, images = new.folder / PAYLOAD["graph"], project.data.validation.images[:PROVED_ON]
    write_onnx(network.to_onnx(), target)
    if project.score is not None:
        prove_graph(project, network, target)
        return UNSET

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return logits_of(project, target, images)

    write_vectors(new.folder, run, images, TOLERANCE["export"])
    theirs, ours = read_logits(project, network, images), run(images)
    difference, same = float(np.abs(theirs - ours).max()), float((theirs.argmax(axis=1) == ours.argmax(axis=1)).mean())
    if not difference <= ALIKE * np.abs(theirs).max():
        raise CompressError(
            f"{new.stage}: the graph without its channels gives logits that differ by {difference:.2g} from what torch computes; "
            "please report this file"
        )
    return Parity(images=len(images), largest_difference=difference, agreement=same, probabilities=None)


@dataclass(kw_only=True)
class Bench:
    """Makes up for what was cut or zeroed, and scores networks, on training images without distortions, drawn once, by a fixed seed.

    ``solved_on``: as many images at most are solved on; :data:`JUDGED_BY` others judge; fewer large ones, see :func:`affordable`, but no
    fewer than ``least`` judge.
    """

    project: Project
    solved_on: int
    least: int = 512

    def __post_init__(self) -> None:
        train = self.project.data.train
        solving, judging = affordable(self.solved_on, self.project), affordable(JUDGED_BY, self.project, self.least)
        chosen = train.sample(min(solving + judging, len(train.labels)), seed=0)
        order = np.random.default_rng(0).permutation(len(chosen.labels))
        judging = min(judging if self.project.score is None else OWN_JUDGED_BY, len(order) // 2)
        self.solving, self.judging = chosen.take(order[judging:][:solving]), chosen.take(order[:judging])
        self.device = choose_device(self.project.device)
        if self.device.type == "mps":  # which knows no float64
            self.device = torch.device("cpu")

    @property
    def measure(self) -> str:
        """What :meth:`score` is called."""
        return "cross-entropy" if self.project.score is None else f"{self.project.score.name}, negated,"

    def score(self, network: nn.Module) -> float:
        """The cross-entropy of the images that judge, whatever the network's temperature; of the user's own score its negative."""
        if self.project.score is not None:
            return -value_of(self.project, network, self.judging)
        return tempered_loss(self.judging.labels, read_logits(self.project, network, self.judging.images))

    def reconstructed(
        self, network: nn.Module, pruned: nn.Module, groups: Groups, keep: Keep, *, zeros: Zeros = "", near: bool = False
    ) -> nn.Module:
        """See :func:`compress.channels.reconstruct.reconstruct`; ``near``: only layers that read what was removed, which makes up for
        most of it where that is one group, in a seventh of the time."""
        gone = groups.removed(keep)
        fixed = [name for name, _ in network.named_parameters() if near and (name, 1) not in gone]
        with self._placed(network, pruned):
            images = self._some_images(network, FEW_CHUNKS)
            return reconstruct(network, pruned, groups, keep, images, zeros=zeros, prepare=self.prepare, fixed=fixed).network.cpu()

    def without(self, network: nn.Module, bypassed: nn.Module) -> nn.Module:
        """What the network without a module becomes when its layers make up for it; see :func:`compress.pruning.layerwise.solve`."""
        with self._placed(network, bypassed):
            return solve(network, bypassed, self._some_images(network, FEW_CHUNKS), prepare=self.prepare).network.cpu()

    def repaired(self, network: nn.Module, pruned: nn.Module, groups: Groups, keep: Keep, zeros: Zeros) -> Repaired:
        """See :func:`compress.channels.reconstruct.repair`."""
        progress = partial(self.project.console.progress, "least squares")
        with self._placed(network, pruned), freed_memory_given_back():
            images = self._some_images(network, MOST_CHUNKS)
            found = repair(network, pruned, groups, keep, images, self.score, prepare=self.prepare, zeros=zeros, progress=progress)
        found.network.cpu()
        return found

    def made_up(self, network: nn.Module, pruned: nn.Module, zeros: Zeros) -> Repaired:
        """See :func:`compress.pruning.repair.make_up`."""
        progress = partial(self.project.console.progress, "least squares")
        with self._placed(network, pruned), freed_memory_given_back():
            images = self._some_images(network, MOST_CHUNKS)
            found = make_up(network, pruned, images, self.score, zeros=zeros, prepare=self.prepare, progress=progress)
        found.network.cpu()
        return found

    @cached_property
    def images(self) -> Tensor:
        return torch.from_numpy(self.solving.images[:]).to(self.device)

    def _some_images(self, network: nn.Module, chunks: int) -> Tensor:
        """Fewer of large pictures, which have many places each, and take memory."""
        with evaluating(network), torch.no_grad():
            return self.images[: most_images(network, self.prepare(self.images[:2]), chunks)]

    @cached_property
    def prepare(self) -> Prepare:
        return Prepare(self.project.spec).to(self.device)

    @contextmanager
    def _placed(self, *networks: nn.Module) -> Iterator[None]:
        """These networks on the device, and on the CPU again afterwards, when what all the images took is given back."""
        for one in networks:
            one.to(self.device)
        yield
        for one in networks:
            one.cpu()
        give_back_freed_memory()


def validated(project: Project, network: nn.Module) -> Metrics:
    """What it scores on the validation images, by whatever its outputs are scored."""
    if project.score is not None:
        own = own_score(project, score_network(project, network))
        return Metrics(score=own, units=own.name)
    return Metrics(validation=validate(project, network))


def validate(project: Project, network: nn.Module) -> Scores:
    validation = project.data.validation
    return Scores(**score(validation.labels, read_logits(project, network, validation.images).argmax(axis=1), project.classes))


def read_logits(project: Project, network: nn.Module, images: Images) -> NDArray[np.float32]:
    """What ``network`` says of ``images``, uint8 (N, C, H, W), on the project's device: float32 (N, K); it comes back to the CPU."""
    device = choose_device(project.device)
    logits = predict_logits(network, images, prepare=Prepare(project.spec).to(device), device=device)
    network.cpu()
    return logits
