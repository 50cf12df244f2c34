"""The training loop: one network, the best epoch kept.

All images lie on the device as uint8 for the whole run, or on disk where there are too many; a batch is an index into them. After every
epoch the network is scored on the validation images and the state is saved, so that a killed run goes on where it stopped and ends with the
same weights, bit for bit (on one CPU): everything random in an epoch follows from the seed and the epoch's number alone.

Sources: Szegedy et al. 2015, arXiv:1512.00567 (label smoothing); Menon et al. 2020, arXiv:2007.07314 (logit adjustment); Polyak and
Juditsky 1992, doi:10.1137/0330046 (weight averaging); the rest in ``augment`` and ``settings``. What a network answers beside its logits
in training, as GoogLeNet and Inception do, are auxiliary heads: they learn the labels too, and are not scored.

Used by ``compress train``, and by ``compress prune`` for fine-tuning, which passes ``after_step`` to put its masks back.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from .allocator import freed_memory_kept
from .augment import distort, draw_grid, draw_mix, draw_seeds, mix, vary
from .data_set import Part
from .distil import Lessons, Teacher
from .distributed import Team, this_team
from .errors import TrainError
from .metrics import score
from .settings import AugmentConfig, FitConfig, heads
from .state import Snapshot, State, fits, read_snapshot, save_snapshot, take_snapshot, take_up
from .stored import Images, Stored

Prepare = Callable[[Tensor], Tensor]
Progress = Callable[[int, int, int, float], None]
Criterion = Callable[[Tensor, Tensor], Tensor]
Arrays = tuple[Images, NDArray[np.int64]]

_MOST_PIXELS = 1 << 21  # values of images that are read at once: 13 of 3x224x224
OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came out: the network holds the weights of ``best_epoch`` (counted from 1); ``history`` has one row per epoch."""

    history: tuple[dict[str, float], ...]
    best_epoch: int

    @property
    def best(self) -> dict[str, float]:
        return self.history[self.best_epoch - 1]


@dataclass(frozen=True, kw_only=True)
class _Loop:
    """What stays the same from step to step. ``network``: as the team trains it. ``images``: on the device, or on disk."""

    network: nn.Module
    team: Team
    images: Tensor | Stored
    labels: Tensor
    config: FitConfig
    prepare: Prepare
    criterion: Criterion
    lessons: Lessons | None
    after_step: Callable[[], None] | None
    progress: Progress | None


def choose_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one; asking for ``cuda`` where there is none is an error, never a silent CPU run."""
    if name not in ("auto", "cpu", "cuda"):
        raise TrainError(f"device (={name}) must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("device (=cuda) was asked for, but torch sees no CUDA device here; take --device auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def fit(
    network: nn.Module,
    training: Arrays,
    validation: Arrays,
    config: FitConfig,
    *,
    classes: int,
    prepare: Prepare,
    device: torch.device,
    state_file: Path | None = None,
    key: str = "",
    say: Callable[[str], None] | None = None,
    teacher: Teacher | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
    after_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fitted:
    """Train ``network`` in place and leave it, in eval mode and on the CPU, with the weights of its best epoch.

    ``training`` and ``validation``: images uint8 (N, C, H, W), labels int64 (N,) in 0..classes-1. ``prepare`` maps uint8 images to the
    network's float32 input. With ``state_file`` the state is saved after each epoch; a state there whose ``key`` is the same is taken
    up, any other is replaced; ``say`` is told which, in words. A ``teacher`` is learnt from besides the labels.
    ``progress(epoch, step, steps, loss)`` is called about ten times a second at most; ``after_epoch`` gets each new row of the history once
    it is saved, and what it raises ends the training. Raises :class:`TrainError` when the loss is no longer finite.
    """
    team = this_team()
    if config.batch % team.size:
        raise TrainError(f"batch (={config.batch}) must be a multiple of the {team.size} processes, which share it")
    network.to(device).to(memory_format=torch.channels_last)
    criterion = _criterion(config, np.bincount(training[1], minlength=classes), device)
    lessons = Lessons(teacher, network, device) if teacher is not None and teacher.config.teaches else None
    with freed_memory_kept(), team.sharing(network) as shared, lessons or nullcontext():
        options = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
        state = State(network, OPTIMISERS[config.optimiser](network.parameters(), **options))  # type: ignore[arg-type]
        state.averaged = _copy(network) if config.ema else {}
        mine = state_file if team.rank == 0 else None
        if (saved := team.from_first(_saved(mine, key, state, say))) is not None:
            take_up(state, saved)
        images = training[0] if isinstance(training[0], Stored) else torch.from_numpy(training[0][:]).to(device)
        labels = torch.from_numpy(training[1]).to(device)
        loop = _Loop(
            network=shared, team=team, images=images, labels=labels, config=config, prepare=prepare, criterion=criterion,
            lessons=lessons, after_step=after_step, progress=progress,
        )  # fmt: skip
        while len(state.history) < config.epochs and not (config.patience and len(state.history) - state.best_epoch >= config.patience):
            row = _epoch(state, loop, validation, classes)
            if mine is not None:
                save_snapshot(take_snapshot(state), mine, key)
            if after_epoch is not None:
                after_epoch(row)
    network.load_state_dict(state.best_weights)
    network.cpu().to(memory_format=torch.contiguous_format).eval()
    return Fitted(history=tuple(state.history), best_epoch=state.best_epoch)


def _saved(file: Path | None, key: str, state: State, say: Callable[[str], None] | None) -> Snapshot | None:
    """The state in ``file`` that this training goes on from, if there is one; ``say`` is told so, or why not."""
    try:
        saved = read_snapshot(file, key) if file is not None else None
        if saved is not None and not fits(state, saved):
            raise TrainError(f"{file} is damaged (it is of another network or optimiser); training starts anew")
    except TrainError as error:
        saved, told = None, str(error)
    else:
        told = f"goes on from {file}, epoch {len(saved.history)}; --fresh starts anew" if saved is not None else ""
    if told and say is not None:
        say(told)
    return saved


def predict_logits(network: nn.Module, images: Images, *, prepare: Prepare, device: torch.device, batch: int = 64) -> NDArray[np.float32]:
    """Logits float32 (N, K) of ``network`` in eval mode for images uint8 (N, C, H, W), fewer at a time where they are large."""
    was_training = network.training
    batch = max(1, min(batch, _MOST_PIXELS // math.prod(images.shape[1:])))
    network.to(device).eval()
    try:
        with torch.no_grad():
            parts = [
                network(prepare(torch.from_numpy(images[i : i + batch]).to(device))).float().cpu() for i in range(0, len(images), batch)
            ]
    finally:
        network.train(was_training)
    return torch.cat(parts).numpy()


def learning_rate(config: FitConfig, step: int, steps: int) -> float:
    """Learning rate of ``step`` (from 0) among ``steps``: linear warm-up, then constant or a cosine down to zero."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def steps_in_epoch(config: FitConfig, images: int) -> int:
    """Steps of one pass over so many images; the last incomplete batch is left out."""
    return max(1, images // _batch_size(config, images))


def _batch_size(config: FitConfig, images: int) -> int:
    """What was asked for, or less where an epoch would have fewer than 32 steps; a multiple of the processes that share it."""
    size = this_team().size
    batch = max(2, min(config.batch, images // 32))
    return max(size, batch - batch % size)


def _epoch(state: State, loop: _Loop, validation: Arrays, classes: int) -> dict[str, float]:
    """Train for one epoch, score what would be kept, and keep it if it is the best so far; returns the new row of the history."""
    network, team, device = state.network, loop.team, loop.labels.device
    epoch = len(state.history) + 1
    started = time.perf_counter()
    with _seeded(loop.config.seed, epoch, device):
        loss = _train(state, loop, epoch)
    seconds = time.perf_counter() - started
    kept = state.averaged or _copy(network)
    with _holding(network, kept):
        rows = np.array_split(np.arange(len(validation[1])), team.size)[team.rank]
        part = validation[0] if team.size == 1 else Part(*validation).take(rows).images
        logits = team.gather(predict_logits(network, part, prepare=loop.prepare, device=device))
    row = {"epoch": epoch, "train_loss": loss, "validation_loss": _cross_entropy(logits, validation[1])}
    row |= score(validation[1], logits.argmax(axis=1), classes) | {"images_per_second": len(loop.labels) / seconds}
    row = team.from_first(row)
    state.history.append(row)
    if not state.best_weights or row["balanced_accuracy"] > state.history[state.best_epoch - 1]["balanced_accuracy"]:
        state.best_epoch = epoch
        state.best_weights = {name: value.clone() for name, value in kept.items()}
    return row


def _train(state: State, loop: _Loop, epoch: int) -> float:
    """One pass over the images in random order; returns the mean loss. The last incomplete batch waits for another epoch's order."""
    config, team, device = loop.config, loop.team, loop.labels.device
    loop.network.train()
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    order = torch.randperm(len(loop.labels)).to(device)
    batch, steps = _batch_size(config, len(order)), steps_in_epoch(config, len(order))
    total = torch.zeros((), device=device)
    shown = 0.0
    for step in range(steps):
        done = (epoch - 1) * steps + step
        for group in state.optimiser.param_groups:
            group["lr"] = learning_rate(config, done, config.epochs * steps)
        augment = config.augment if epoch <= config.epochs - config.plain_epochs else AugmentConfig()
        x, labels = _batch(loop, order[step * batch : (step + 1) * batch], augment)
        if isinstance(loop.images, Stored):
            loop.images.will_need(order[(step + 1) * batch : (step + 2) * batch].cpu().numpy())
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = loop.network(x.clone() if loop.lessons else x)  # the network may prepare it in place, and the teacher takes it next
            answers = [(weight, head.float()) for weight, head in heads(output)]
            parts = (weight * share * loop.criterion(logits, y) for weight, logits in answers for share, y in labels)
            loss = sum(parts, start=torch.zeros((), device=device))
            if loop.lessons is not None:
                loss = loop.lessons.loss(x, answers[0][1], loss)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        state.optimiser.step()
        if loop.after_step is not None:
            loop.after_step()
        if state.averaged:
            _average(state.averaged, state.network, min(config.ema, (1 + done) / (10 + done)))
        total += loss.detach()
        # Reading the loss waits for a GPU, so it is read only when it will be shown.
        if loop.progress is not None and (time.monotonic() - shown > 0.1 or step + 1 == steps):
            shown = time.monotonic()
            loop.progress(epoch, step + 1, steps, float(total) / (step + 1))
    mean = float(team.mean(total)) / steps
    if not math.isfinite(mean):
        raise TrainError(f"the loss became {mean} in epoch {epoch} with lr (={config.lr}); take a smaller --lr or --warmup 0.1")
    return mean


def _batch(loop: _Loop, chosen: Tensor, config: AugmentConfig) -> tuple[Tensor, list[tuple[float, Tensor]]]:
    """This process's share of the ``chosen`` images, augmented and prepared, and their labels with the share of the loss of each."""
    rows = loop.team.rows(len(chosen))
    mine = chosen[rows]
    seeds = draw_seeds(config, len(chosen))

    def images(positions: Tensor | slice) -> Tensor:
        found = _images(loop, chosen[positions])
        return found if seeds is None else vary(found, seeds[positions], config)

    x, labels = images(rows), [(1.0, loop.labels[mine])]
    height, width = x.shape[2:]
    how = draw_mix(config, len(chosen), height, width)
    if how is not None:
        other = how.partner[rows]
        partner = chosen[other.to(chosen.device)]
        x = mix(x.float(), images(other).float(), how)
        labels = [(how.share, loop.labels[mine]), (1 - how.share, loop.labels[partner])]
    if config.distorts:
        x = distort(x.float(), draw_grid(config, len(chosen), height, width, x.device, rows))
    return loop.prepare(x).contiguous(memory_format=torch.channels_last), labels


def _images(loop: _Loop, chosen: Tensor) -> Tensor:
    if isinstance(loop.images, Stored):
        return torch.from_numpy(loop.images[chosen.cpu().numpy()]).to(chosen.device)
    return loop.images[chosen]


def _criterion(config: FitConfig, counts: NDArray[np.int64], device: torch.device) -> Criterion:
    """The loss of logits (B, K) against labels (B,), for training images of which ``counts`` (K,) are of each class."""
    frequency = torch.from_numpy(np.maximum(counts, 1) / counts.sum()).float().to(device)

    def criterion(logits: Tensor, labels: Tensor) -> Tensor:
        if config.imbalance == "logit-adjusted":
            logits = logits + frequency.log()
        if config.imbalance != "weighted":
            return functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        losses = functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="none")
        return (losses / (frequency[labels] * len(frequency))).mean()

    return criterion


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _average(averaged: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move ``averaged`` towards the network's weights; whole numbers (batch norm's counters) are copied."""
    own = network.state_dict()
    moving = [name for name, value in averaged.items() if value.is_floating_point()]
    torch._foreach_lerp_([averaged[name] for name in moving], [own[name] for name in moving], 1 - decay)
    for name in averaged.keys() - set(moving):
        averaged[name].copy_(own[name])


@contextmanager
def _holding(network: nn.Module, weights: dict[str, Tensor]) -> Iterator[None]:
    """The network with ``weights`` for a while."""
    own = _copy(network)
    network.load_state_dict(weights)
    try:
        yield
    finally:
        network.load_state_dict(own)


def _cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Torch's generators set from seed and epoch, and given back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + epoch)
        yield
