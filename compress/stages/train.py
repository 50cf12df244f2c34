"""The stage ``train``: a new network, or one further; the best epoch on the validation images is kept."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts.artifact import Artifact
from ..artifacts.project import New, Project, data_identity, is_made, making, network_identity, place_of, stage_key
from ..errors import CompressError, processes, shown
from ..train.settings import FitConfig

if TYPE_CHECKING:
    from torch import nn


def train(project: Project, config: FitConfig, out: Path | None = None, start: Artifact | None = None) -> Artifact | None:
    """Train a new network, or the one of ``start`` further; initial weights and everything random follow from ``config.seed``.

    Processes that torchrun started train it together. Only the first of them reads and writes artifacts; the others get None.
    """
    key = training_key(project, config, start)
    if processes() == 1:
        return _train(project, config, key, out, start, bool)
    processes(("RANK", "LOCAL_RANK", "MASTER_PORT"))
    from ..train.distributed import joined
    from ..train.fit import choose_device

    with joined(choose_device(project.device).type == "cuda") as team:
        if team.from_first(key) != key:
            raise CompressError(
                f"process {team.rank} does not train what the first one does; start all with the same command, code and data"
            )
        if team.rank == 0:
            return _train(project, config, key, out, start, team.from_first)
        if team.from_first(False):
            with tempfile.TemporaryDirectory() as folder:
                _fit(project, New(stage="train", key=key, folder=Path(folder), wanted=True), config, _network(project, config, start))
        return None


def training_key(project: Project, config: FitConfig, start: Artifact | None = None) -> str:
    begun = {} if start is None else {"start": start.content}
    return stage_key("train", config, data=data_identity(project), **network_identity(project), **begun)


def _train(
    project: Project, config: FitConfig, key: str, out: Path | None, start: Artifact | None, told: Callable[[bool], bool]
) -> Artifact:
    """Train unless it was done before; ``told``: tells the other processes which, and returns it."""
    # Built before anything is said or written, as the options of its factory may be wrong.
    network = None if is_made(project, place_of(project, "train", key, out)) else _network(project, config, start)
    if start is None and project.told:
        project.console.say(f"train: a new network on {project.told}")
    with making(project, "network", "train", key, config, start, out) as new:
        if told(new.wanted):
            _fit(project, new, config, network)
    return new.artifact


def _network(project: Project, config: FitConfig, start: Artifact | None) -> "nn.Module":
    from ..artifacts.load import load_network
    from .finetune import new_network

    return new_network(project, config.seed) if start is None else load_network(start)


def unseen(project: Project) -> str:
    """Which classes no training image has, in a line; nothing where each has one, or there are none."""
    if project.task is not None:
        return ""
    names, seen = project.data.classes, set(project.data.train.labels.tolist())
    missing = [shown(name, 20) for number, name in enumerate(names) if number not in seen]
    if not missing and len(names) > 1:
        return ""
    if len(names) == 1:
        return "train: there is one class, so every answer is right; a classifier tells two or more apart"
    some = f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}"
    return f"train: {len(missing)} of {len(names)} classes have no training image ({some}); labels count from 0 without gaps as a rule"


def _fit(project: Project, new: New, config: FitConfig, network: "nn.Module | None") -> None:
    from .finetune import fit_and_save

    assert network is not None, "it is wanted"
    if told := unseen(project):
        project.console.say(told)
    fit_and_save(project, new, network, config)
