"""The training loop: one network, arrays in memory, the best epoch kept.

All images lie on the device as uint8 for the whole run; a batch is an index into them. After every epoch the network is scored on the
validation images and the state is saved, so that a killed run goes on where it stopped and ends with the same weights, bit for bit (on one
CPU): everything random in an epoch follows from the seed and the epoch's number alone.

Used by ``compress train``, and by ``compress prune`` for fine-tuning, which passes ``after_step`` to put its masks back.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from .errors import TrainError
from .metrics import score

Prepare = Callable[[Tensor], Tensor]
Progress = Callable[[int, int, int, float], None]
Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a network is trained.

    ``batch`` is at most a 32nd of the training images, so that small data still gets 32 steps per epoch, which batch norm's running
    averages need. ``warmup`` is the fraction of all steps in which the learning rate rises linearly.
    """

    epochs: int = 10
    batch: int = 256
    optimiser: str = "adam"
    lr: float = 0.001
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            (self.epochs >= 1, "epochs", "must be at least 1"),
            (self.batch >= 2, "batch", "must be at least 2, as batch norm needs two images; 256 is the default"),
            (self.optimiser in OPTIMISERS, "optimiser", f"must be one of {', '.join(OPTIMISERS)}"),
            (0 < self.lr < math.inf, "lr", "must be a positive number; 0.001 is a good start for Adam"),
            (0 <= self.weight_decay < math.inf, "weight_decay", "must be zero or a positive number"),
            (self.schedule in ("constant", "cosine"), "schedule", "must be constant or cosine"),
            (0 <= self.warmup < 1, "warmup", "must lie in [0, 1); 0.1 warms up over the first tenth of the steps"),
            (0 <= self.label_smoothing < 1, "label_smoothing", "must lie in [0, 1); 0.1 is usual"),
            (self.precision in ("auto", "fp32", "bf16"), "precision", "must be auto (bf16 on CUDA, fp32 on the CPU), fp32 or bf16"),
            (0 <= self.seed < 2**31, "seed", "must lie in 0 to 2147483647"),
        ]
        for holds, name, rule in rules:
            if not holds:
                raise TrainError(f"{name} (={getattr(self, name)}) {rule}")


OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came out: the network holds the weights of ``best_epoch`` (counted from 1); ``history`` has one row per epoch."""

    history: tuple[dict[str, float], ...]
    best_epoch: int

    @property
    def best(self) -> dict[str, float]:
        return self.history[self.best_epoch - 1]


@dataclass
class _State:
    """Everything that the next epoch depends on, besides the configuration and the data."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0


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
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Train ``network`` in place and leave it, in eval mode and on the CPU, with the weights of its best epoch.

    ``training`` and ``validation``: images uint8 (N, C, H, W), labels int64 (N,) in 0..classes-1. ``prepare`` maps uint8 images to the
    network's float32 input. With ``state_file`` the state is saved after each epoch; a state there whose ``key`` is the same is taken
    up, any other is ignored and replaced. ``progress(epoch, step, steps, loss)`` is called about ten times a second at most. Raises
    :class:`TrainError` when the loss is no longer finite.
    """
    images, labels = _to_device(training, device)
    network.to(device).to(memory_format=torch.channels_last)
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    state = _State(network, OPTIMISERS[config.optimiser](network.parameters(), **options))  # type: ignore[arg-type]
    if state_file is not None:
        _load_state(state, state_file, key)
    while len(state.history) < config.epochs:
        epoch = len(state.history) + 1
        started = time.perf_counter()
        with _seeded(config.seed, epoch, device):
            loss = _train_epoch(state, images, labels, config, prepare, epoch, after_step, progress)
        seconds = time.perf_counter() - started
        logits = predict_logits(network, validation[0], prepare=prepare, device=device)
        row = {"epoch": epoch, "train_loss": loss, "validation_loss": _cross_entropy(logits, validation[1])}
        row |= score(validation[1], logits.argmax(axis=1), classes) | {"images_per_second": len(images) / seconds}
        state.history.append(row)
        if not state.best_weights or row["balanced_accuracy"] > state.history[state.best_epoch - 1]["balanced_accuracy"]:
            state.best_epoch = epoch
            state.best_weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        if state_file is not None:
            _save_state(state, state_file, key)
    network.load_state_dict(state.best_weights)
    network.cpu().to(memory_format=torch.contiguous_format).eval()
    return Fitted(history=tuple(state.history), best_epoch=state.best_epoch)


def predict_logits(
    network: nn.Module, images: NDArray[np.uint8], *, prepare: Prepare, device: torch.device, batch: int = 512
) -> NDArray[np.float32]:
    """Logits float32 (N, K) of ``network`` in eval mode for images uint8 (N, C, H, W); its training flag is restored."""
    was_training = network.training
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


def _train_epoch(
    state: _State,
    images: Tensor,
    labels: Tensor,
    config: FitConfig,
    prepare: Prepare,
    epoch: int,
    after_step: Callable[[], None] | None,
    progress: Progress | None,
) -> float:
    """One pass over the images in random order; returns the mean loss. The last incomplete batch waits for another epoch's order."""
    network, optimiser, device = state.network.train(), state.optimiser, images.device
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    order = torch.randperm(len(images)).to(device)
    batch = max(2, min(config.batch, len(images) // 32))
    steps = max(1, len(images) // batch)
    total = torch.zeros((), device=device)
    shown = 0.0
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config, (epoch - 1) * steps + step, config.epochs * steps)
        x = prepare(images[chosen]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = network(x)
        loss = functional.cross_entropy(logits.float(), labels[chosen], label_smoothing=config.label_smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if after_step is not None:
            after_step()
        total += loss.detach()
        # Reading the loss waits for a GPU, so it is read only when it will be shown.
        if progress is not None and (time.monotonic() - shown > 0.1 or step + 1 == steps):
            shown = time.monotonic()
            progress(epoch, step + 1, steps, float(total) / (step + 1))
    mean = float(total) / steps
    if not math.isfinite(mean):
        raise TrainError(f"the loss became {mean} in epoch {epoch} with lr (={config.lr}); take a smaller --lr or --warmup 0.1")
    return mean


def _to_device(arrays: Arrays, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(arrays[0]).to(device), torch.from_numpy(arrays[1]).to(device)


def _cross_entropy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)))


@contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Torch's generators set from seed and epoch, and given back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + epoch)
        yield


def _save_state(state: _State, path: Path, key: str) -> None:
    """Write the state as one safetensors file, atomically."""
    tensors = {f"network.{name}": value for name, value in state.network.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
    for index, values in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
    about = {"key": key, "history": json.dumps(state.history), "best_epoch": str(state.best_epoch)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, partial, metadata=about)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _load_state(state: _State, path: Path, key: str) -> None:
    """Take up the state in ``path`` if it belongs to ``key``; a missing, damaged or other run's file changes nothing."""
    if not path.is_file():
        return
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError:
        return
    if about.get("key") != key:
        return
    moments: dict[int, dict[str, Tensor]] = {}
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "best": {}}
    for full_name, value in tensors.items():
        part, name = full_name.split(".", 1)
        if part == "optimiser":
            index, entry = name.split(".", 1)
            moments.setdefault(int(index), {})[entry] = value
        else:
            parts[part][name] = value
    state.network.load_state_dict(parts["network"])
    state.optimiser.load_state_dict({"state": moments, "param_groups": state.optimiser.state_dict()["param_groups"]})
    device = next(state.network.parameters()).device
    state.best_weights = {name: value.to(device) for name, value in parts["best"].items()}
    state.history = json.loads(about["history"])
    state.best_epoch = int(about["best_epoch"])
