"""The stage ``train``: a new network, or one further; the best epoch on the validation images is kept."""

import tempfile
from pathlib import Path

from ..artifacts.artifact import Artifact
from ..artifacts.load import load_network
from ..artifacts.project import Made, Project, data_identity, network_identity, run_stage, stage_key
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
                    fit_and_save(project, network, config, key, "train", Path(folder))
            return None
        told = False

        def make(folder: Path) -> Made:
            nonlocal told
            told = team.from_first(True)
            return fit_and_save(project, network, config, key, "train", folder)

        artifact = run_stage(project, "network", "train", key, config, start, out, make)
        if not told:  # it was there already
            team.from_first(False)
        return artifact
