"""What a training depends on besides its configuration and data: taken down after every epoch, and taken up again.

One safetensors file, written beside its place and renamed, so that a kill leaves the old state or the new one. It carries the SHA-256 of
what it says: a state in which a bit has flipped is refused, as a training from it would end well and be wrong.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .errors import TrainError
from .metrics import Row


@dataclass
class State:
    """The network, its optimiser, the moving average of its weights (if any), the best weights so far, and one row per epoch."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    averaged: dict[str, Tensor] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A state as tensors by name, ``part.name``, and what goes beside them."""

    tensors: dict[str, Tensor]
    history: list[dict[str, float]]
    best_epoch: int


def take_snapshot(state: State) -> Snapshot:
    parts = {"network": state.network.state_dict(), "averaged": state.averaged, "best": state.best_weights}
    tensors = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
    for index, values in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in values.items()}
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    return Snapshot(kept, list(state.history), state.best_epoch)


def fits(state: State, snapshot: Snapshot) -> bool:
    """Whether the snapshot has exactly the tensors that ``state`` takes up, in their shapes, and its best epoch among those it had."""
    shapes = {name: value.shape for name, value in state.network.state_dict().items()}
    parts = ("network", "best", "averaged") if state.averaged else ("network", "best")
    wanted = {f"{part}.{name}": shape for part in parts for name, shape in shapes.items()}
    found = {name: value.shape for name, value in snapshot.tensors.items()}
    for index, parameter in enumerate(state.network.parameters()):  # those that had no gradient have no moments
        moments = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        wanted |= {f"optimiser.{index}.{name}": shape for name, shape in moments.items()} if f"optimiser.{index}.step" in found else {}
    return found == wanted and 1 <= snapshot.best_epoch <= len(snapshot.history)


def take_up(state: State, snapshot: Snapshot) -> None:
    """Make ``state`` what the snapshot was taken of; its network and optimiser are filled in place."""
    moments: dict[int, dict[str, Tensor]] = {}
    parts: dict[str, dict[str, Tensor]] = {"network": {}, "averaged": {}, "best": {}}
    for full_name, value in snapshot.tensors.items():
        part, name = full_name.split(".", 1)
        if part == "optimiser":
            index, entry = name.split(".", 1)
            moments.setdefault(int(index), {})[entry] = value
        else:
            parts[part][name] = value
    state.network.load_state_dict(parts["network"])
    settings: Any = state.optimiser.state_dict()["param_groups"]
    state.optimiser.load_state_dict({"state": moments, "param_groups": settings})
    # A fused optimiser goes through a weight and its moments in the order of memory, so they must lie in memory alike.
    for parameter, own in state.optimiser.state.items():
        for name, value in own.items():
            if value.shape == parameter.shape:
                own[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    device = next(state.network.parameters()).device
    state.averaged, state.best_weights = ({name: value.to(device) for name, value in parts[part].items()} for part in ("averaged", "best"))
    state.history, state.best_epoch = list(snapshot.history), snapshot.best_epoch


def save_snapshot(snapshot: Snapshot, path: Path, key: str) -> None:
    """Write the snapshot of the training ``key`` to ``path``, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    about = {"history": json.dumps(snapshot.history), "best_epoch": str(snapshot.best_epoch), "key": key}
    content = save(snapshot.tensors, metadata=about | {"sha256": _digest(snapshot.tensors, about)})
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_snapshot(path: Path, key: str) -> Snapshot | None:
    """The snapshot in ``path``; None where there is none, or another training's.

    Raises :class:`TrainError` for a file that is damaged or none of this toolkit's.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if about.pop("sha256") != _digest(tensors, about):
            raise ValueError("its SHA-256 does not fit")
        history: Any = msgspec.json.decode(about["history"], type=list[Row])
        return Snapshot(tensors, history, int(about["best_epoch"])) if about["key"] == key else None
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise TrainError(f"{path} is damaged ({str(error)[:80]}); training starts anew") from error


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of all values and of what is said beside them, in the order of their names."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
