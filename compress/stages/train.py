"""The stage ``train``: a new network, or one further; the best epoch on the validation images is kept."""

import tempfile
from pathlib import Path

from ..artifacts.artifact import Artifact
from ..artifacts.load import load_network
from ..artifacts.project import New, Project, data_identity, making, network_identity, stage_key
from ..errors import CompressError
from ..train.distributed import joined
from ..train.fit import choose_device
from ..train.settings import FitConfig
from .finetune import fit_and_save, new_network


def train(project: Project, config: FitConfig, out: Path | None = None, start: Artifact | None = None) -> Artifact | None:
    """Train a new network, or the one of ``start`` further; initial weights and everything random follow from ``config.seed``.

    Processes that torchrun started train it together. Only the first of them reads and writes artifacts; the others get None.
    """
    begun = {} if start is None else {"start": start.content}
    key = stage_key("train", config, data=data_identity(project), **network_identity(project), **begun)
    with joined(choose_device(project.device).type == "cuda") as team:
        if team.from_first(key) != key:
            raise CompressError(
                f"process {team.rank} does not train what the first one does; start all with the same command, code and data"
            )
        network = new_network(project, config.seed) if start is None else load_network(start)
        if start is None and project.told:
            project.console.say(f"train: a new network on {project.told}")
        if team.rank:
            if team.from_first(False):
                with tempfile.TemporaryDirectory() as folder:
                    fit_and_save(project, New(stage="train", key=key, folder=Path(folder), wanted=True), network, config)
            return None
        with making(project, "network", "train", key, config, start, out) as new:
            if team.from_first(new.wanted):
                fit_and_save(project, new, network, config)
        return new.artifact
