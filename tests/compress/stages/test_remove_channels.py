"""The stage that removes channels: goals are met, steps follow each other, a killed run ends the same, and what cannot be is refused."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiled_c import needs_gcc
from safetensors.torch import load_file, save_file
from stand_ins import Silent, recorded, with_parts
from torch import nn

from compress.artifacts import cost
from compress.artifacts.artifact import Artifact, InputSpec, find_artifacts, read_artifact
from compress.artifacts.cost import count_cost
from compress.artifacts.load import load_network
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.parts import Rounded, Rounding
from compress.artifacts.project import New, Project, variant_name
from compress.artifacts.recipe import Tutoring, load_recipe
from compress.artifacts.records import checked
from compress.benchmarks.boards.known import latency_file
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.place import HERE, Place
from compress.benchmarks.statistics import Interval
from compress.channels.choose import Choice
from compress.channels.groups import Groups
from compress.channels.reconstruct import Repaired
from compress.cli.tables import artifact_text
from compress.errors import CompressError, NetworkError
from compress.stages import finetune
from compress.stages import remove_channels as removal
from compress.stages.boards.memory import needs_of
from compress.stages.export import ExportConfig, export
from compress.stages.finetune import ease_dropout
from compress.stages.prune import PruneConfig, prune
from compress.stages.removal import plan as removal_plan
from compress.stages.removal import trial as removal_trial
from compress.stages.removal.plan import Cutter
from compress.stages.remove_channels import RemoveConfig, remove_in_steps
from compress.stages.train import train
from compress.train.data_set import DataSet, Part
from compress.train.settings import DistilConfig, FitConfig
from compress.train.sources import load_data

FIT = FitConfig(epochs=1, batch=64, lr=0.002)
GOAL = RemoveConfig(max_macs=0.5, importance="l2", round_to=1, steps=1, epochs=0, floor=0)
TUTORING = Tutoring(training=FIT, distil=DistilConfig())
RECIPE = load_recipe(None, model="emnist")
Trained = dict[str, tuple[Project, Artifact]]
EMNIST = ModelReference(reference="emnist", options={"channels": [8, 12], "hidden": 16})
K49 = ModelReference(reference="k49", options={"widths": [8, 16], "depths": [1, 2], "reduction": 4})


class CountingClock:
    """Says that latency goes with the number of parameters, and counts how often it was asked.

    ``noise``: by how much each measurement is off at most, its interval as wide; ``told``: for single widths, what they take instead.
    """

    asked, noise = 0, 0.0
    generator = np.random.default_rng(0)

    def __init__(self, baseline: nn.Module, spec: InputSpec, folder: Path, *, classes: bool = True, place: Place = HERE) -> None:
        self.whole = sum(p.numel() for p in baseline.parameters())

    def ratio(self, network: nn.Module, *, goal: float | None = None, rounds: int | None = None) -> Interval:
        CountingClock.asked += 1
        off = self.noise * (12 / (rounds or 12)) ** 0.5
        value = self.truth(network) * (1 + off / 2 * self.generator.standard_normal())
        return Interval(value=value, low=value * (1 - off), high=value * (1 + off))

    def truth(self, network: nn.Module) -> float:
        return sum(p.numel() for p in network.parameters()) / self.whole

    def expected(self, networks: int, rounds: int | None = None) -> float:
        return 0.0


@pytest.fixture(autouse=True)
def quick_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cost, "Clock", CountingClock)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # no latency table of whoever runs this


def few() -> DataSet:
    data = load_data("digits")
    parts = {
        name: Part(getattr(data, name).images[:count], getattr(data, name).labels[:count])
        for name, count in (("train", 320), ("validation", 60), ("test", 60))
    }
    return with_parts(data, **parts)


def project_in(folder: Path, model: ModelReference, **options: Any) -> Project:
    source = recorded("digits")
    about = {"folder": folder / model.slug, "model": model, "spec": InputSpec(), "data": few(), "source": source, "console": Silent()}
    return Project(**about | options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    made = {}
    for model in (EMNIST, K49):
        project = project_in(tmp_path_factory.mktemp("runs"), model)
        root = train(project, FIT)
        assert root is not None
        made[model.reference] = project, root
    return made


REAL_CLOCK = cost.Clock


def macs(artifact: Artifact) -> int:
    return int(artifact.manifest.facts.macs)


@pytest.mark.parametrize("model", ["emnist", "k49"])
def test_a_goal_is_met_and_what_was_made_reloads_and_exports(model: str, trained: Trained) -> None:
    project, root = trained[model]
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, epochs=1), TUTORING, RECIPE)
    assert 0.35 * macs(root) < macs(made) <= 0.5 * macs(root)
    about = made.manifest.metrics
    assert about.gains.macs == macs(made) / macs(root)
    network = load_network(made)
    stored = load_file(made.payload)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
    assert count_cost(network, torch.zeros(2, 1, 28, 28)).macs == macs(made)
    graph = export(project, made, ExportConfig(parity_images=60))
    assert graph.manifest.metrics.parity.largest_difference < 1e-4
    assert variant_name(graph) == "0.5x MACs"


def test_steps_are_artifacts_that_shrink_evenly_and_are_made_once(trained: Trained) -> None:
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=0.3, steps=3, between=0)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    steps = [step for step in made.steps if step.stage == "remove-channels"]
    assert [step.settings.max_macs for step in steps] == pytest.approx([0.3 ** (1 / 3), 0.3 ** (2 / 3), 0.3])
    assert macs(made) <= 0.3 * macs(root)
    assert variant_name(made) == "0.3x MACs"
    before = made.payload.stat().st_mtime_ns
    again = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert (again.path, again.payload.stat().st_mtime_ns) == (made.path, before)


def test_all_goals_are_met_together(trained: Trained) -> None:
    project, root = trained["emnist"]
    goals = {"max_macs": 0.6, "max_size": 0.3, "max_latency": 0.25}  # the clock says what the size is
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, **goals), TUTORING, RECIPE)
    gains = made.manifest.metrics.gains
    assert gains.macs <= 0.6 and gains.size <= 0.25 and gains.latency.value <= 0.25
    assert gains.size > 0.2


def test_sparsity_counts_channels_of_the_teacher_through_steps(trained: Trained) -> None:
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=None, sparsity=0.5, steps=2, between=0)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    widths = made.manifest.metrics.widths
    assert {name: before for name, (before, _) in widths.items()} == {"conv1": 8, "conv2": 12, "fc1": 16}
    assert sum(now for _, now in widths.values()) == 18


def test_what_makes_up_for_the_channels_is_the_best_that_was_tried_and_is_told(trained: Trained) -> None:
    """The artifact holds the network of the smallest loss, which without training reads better than as it was cut."""
    project, root = trained["emnist"]
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=0.4), TUTORING, RECIPE)
    repair = made.manifest.metrics.repair
    assert repair.importance == "l2 per cost" and not repair.importances
    assert set(repair.losses) == {"cut", "least squares"}, "there is no batch norm"
    assert repair.how == min(repair.losses, key=repair.losses.__getitem__) == "least squares"
    score = finetune.Bench(project=project, solved_on=1024).score
    assert score(load_network(made)) == pytest.approx(repair.losses["least squares"], rel=1e-5)
    assert "least squares       " in (text := artifact_text(made)) and "before fine-tuning  " in text
    assert "balanced accuracy before fine-tuning" not in text, "as nothing was fine-tuned"


def test_importance_auto_takes_the_one_whose_reconstructed_network_is_best(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    project, root = trained["k49"]
    config = dataclasses.replace(GOAL, max_macs=0.6, importance="auto")
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    repair = made.manifest.metrics.repair
    kinds = ("l2", "bn", "fluctuation", "bn-fluctuation", "taylor")
    every = {f"{kind}{how}" for kind in kinds for how in ("", " per cost")} - {"taylor"}
    assert {"l2", "l2 per cost"} < repair.importances.keys() <= every and len(repair.importances) > 5, "two that say the same are one"
    assert repair.importance == min(repair.importances, key=repair.importances.__getitem__)
    kind, per_cost, _ = repair.importance.partition(" per cost")
    alone = remove_in_steps(project, root, dataclasses.replace(config, importance=kind, per_cost=bool(per_cost)), TUTORING, RECIPE)
    assert made.payload.read_bytes() == alone.payload.read_bytes()


def test_importance_auto_chooses_with_a_goal_in_latency_by_macs_and_measures_for_the_best_alone(trained: Trained) -> None:
    project, root = trained["emnist"]
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=None, max_latency=0.4, importance="auto"), TUTORING, RECIPE)
    metrics = made.manifest.metrics
    assert metrics.gains.latency.value <= 0.4 and len(metrics.repair.importances) == 4, "without batch norm, bn is l2"


def test_importance_auto_ends_with_the_time_and_says_so(trained: Trained) -> None:
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=0.55, importance="auto", time_limit=1e-3)
    repair = remove_in_steps(project, root, config, TUTORING, RECIPE).manifest.metrics.repair
    assert repair.importances.keys() == {"l2 per cost"}, "the first is tried in any case"
    told = "the time limit is over; takes the best importance of 1 tried so far"
    assert any(told in line for line in project.console.said)  # type: ignore[attr-defined]


def test_what_is_left_and_slower_than_before_says_what_to_ask_for() -> None:
    def told(low: float, final: dict[str, float], **limits: float) -> str:
        job: Any = SimpleNamespace(final=final)
        return removal._missed(job, RemoveConfig(**limits), Interval(value=low + 0.01, low=low, high=low + 0.02))  # type: ignore[arg-type]

    assert told(1.2, {"max_macs": 0.8}, max_macs=0.8) == (
        "what is left is slower than before, 1.21x (1.2 to 1.22); ask for widths in multiples of 8 (--round-to 8), "
        "or for a latency (--max-latency 0.9x)"
    )
    assert told(0.99, {"max_macs": 0.8}, max_macs=0.8) == "", "not surely"
    assert told(1.2, {"max_macs": 0.4}, max_macs=0.8) == "", "a step before the last"


def test_floors_are_those_of_the_teachers_widths(trained: Trained) -> None:
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=None, sparsity=0.5, steps=3, between=0, floor=0.5)
    widths = remove_in_steps(project, root, config, TUTORING, RECIPE).manifest.metrics.widths
    assert widths == {"conv1": (8, 4), "conv2": (12, 6), "fc1": (16, 8)}


def as_cut(bench: finetune.Bench, network: nn.Module, cut: nn.Module, *_: Any) -> Repaired:
    """Nothing makes up for what was removed."""
    return Repaired(network=cut, how="cut", losses={})


def test_features_name_the_teachers_channels(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was cut, the classifier's columns are the teacher's."""
    monkeypatch.setattr(finetune.Bench, "repaired", as_cut)
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=None, sparsity=0.6, scope="group", steps=2, between=0)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    kept = made.manifest.metrics.features["fc2"]
    assert 0 < len(kept) < 16
    assert torch.equal(load_network(made).get_parameter("fc2.weight"), load_network(root).get_parameter("fc2.weight")[:, kept])


def test_bypassed_modules_stay_out(trained: Trained) -> None:
    project, root = trained["k49"]
    config = RemoveConfig(bypass=("blocks.*.cbam.spatial",), steps=1, epochs=0)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    network = load_network(made)
    assert all(isinstance(block.cbam.spatial, nn.Identity) for block in network.blocks)  # type: ignore[union-attr]
    assert made.bypassed == [f"blocks.{i}.cbam.spatial" for i in range(3)]
    assert variant_name(made) == "modules left out"
    further = remove_in_steps(project, made, GOAL, dataclasses.replace(TUTORING, teacher=root), RECIPE)
    assert further.bypassed == made.bypassed
    assert further.manifest.metrics.gains.macs == macs(further) / macs(root) <= 0.5
    load_network(further)


def test_what_was_left_out_is_made_up_for_even_where_no_channel_goes(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least squares of the layers behind it are nearer to the network with the module, on images that were not solved on."""
    project, root = trained["k49"]
    config = RemoveConfig(bypass=("blocks.1.cbam",), steps=1, epochs=0)
    repair = remove_in_steps(project, root, config, TUTORING, RECIPE).manifest.metrics.repair
    assert repair.losses.keys() == {"cut", "batch norm", "least squares", "both"}
    assert min(repair.losses["least squares"], repair.losses["both"]) < repair.losses["cut"] and repair.how != "cut"
    whole, seen = load_network(root), list[nn.Module]()

    def repaired(bench: finetune.Bench, network: nn.Module, cut: nn.Module, *_: Any) -> Repaired:
        seen.append(network)
        return Repaired(network=cut, how="cut", losses={})

    monkeypatch.setattr(finetune.Bench, "repaired", repaired)
    remove_in_steps(dataclasses.replace(project, force=True), root, config, TUTORING, RECIPE)
    [network] = seen
    assert network.state_dict().keys() == whole.state_dict().keys(), "what it is to give is that of the network before"


def test_bypass_auto_leaves_out_what_is_measured_to_be_cheap_and_what_is_named_besides(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, root = trained["k49"]
    monkeypatch.setattr(removal, "spare_modules", lambda project, recipe, parent, limit: ["blocks.0.cbam.spatial"])
    config = RemoveConfig(bypass=("auto", "blocks.2"), steps=1, epochs=0)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert made.bypassed == ["blocks.0.cbam.spatial", "blocks.2"]
    assert any("leaves out blocks.0.cbam.spatial" in line for line in project.console.said)  # type: ignore[attr-defined]


def test_scope_sensitivity_takes_what_each_group_bears(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves that say that fc1 bears nothing and the convolutions everything."""
    project, root = trained["emnist"]
    curves = {"conv1": {0.5: 0.0, 0.9: 0.1}, "conv2": {0.5: 0.0, 0.9: 0.1}, "fc1": {0.5: 9.0, 0.9: 10.0}}
    monkeypatch.setattr(removal_plan, "loss_curves", lambda project, recipe, parent, limit: curves)
    config = dataclasses.replace(GOAL, max_macs=0.4, scope="sensitivity")
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    widths = made.manifest.metrics.widths
    assert widths["fc1"] == (16, 16)
    assert macs(made) <= 0.4 * macs(root)


def test_rounding_is_measured_and_kept_for_later_steps(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    project, root = trained["emnist"]
    tried: list[list[int]] = []

    def fastest(networks: dict[int, nn.Module], clock: Any, until: float) -> Rounding:
        tried.append(list(networks))
        return Rounding(round_to=4, measured=())

    monkeypatch.setattr(removal_plan, "MULTIPLES", (1, 4, 64))
    monkeypatch.setattr(removal_trial, "MULTIPLES", (1, 4, 64))
    monkeypatch.setattr(removal_trial, "fastest_rounding", fastest)
    config = dataclasses.replace(GOAL, max_macs=0.4, round_to=0, steps=2, between=0)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert tried == [[1, 4]], "with multiples of 64 no width can shrink, so the goal is out of reach"
    assert all(now % 4 == 0 for _, now in made.manifest.metrics.widths.values())
    assert made.manifest.metrics.rounding.round_to == 4


def test_with_a_latency_goal_the_rounding_is_measured_at_the_same_share_of_macs(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    project, root = trained["emnist"]
    tried: list[int] = []

    def fastest(networks: dict[int, nn.Module], clock: Any, until: float) -> Rounding:
        tried.append(count_cost(networks[1], torch.zeros(2, 1, 28, 28)).macs)
        return Rounding(round_to=1, measured=())

    monkeypatch.setattr(removal_trial, "fastest_rounding", fastest)
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=None, max_latency=0.4, round_to=0), TUTORING, RECIPE)
    assert 0.3 * macs(root) < tried[0] <= 0.4 * macs(root)
    assert made.manifest.metrics.gains.latency.value <= 0.4


@pytest.mark.parametrize(
    ("losses", "ratios", "taken"),
    [
        ({8: 2.0, 4: 1.0, 1: 1.5}, {8: 0.4, 4: 0.5, 1: 0.9}, 4),
        ({8: 2.0, 4: 1.0, 1: 0.9}, {8: 0.4, 4: 0.5, 1: 0.55}, 1),
        ({8: 2.0, 4: 3.0, 1: 1.0}, {8: 0.4, 4: 0.5, 1: 0.55}, 1),
        ({8: 2.0, 4: 2.0, 1: 2.5}, {8: 0.4, 4: 0.5, 1: 0.55}, 8),  # no better
        ({8: 2.0, 4: 0.1, 1: 0.1}, {8: 0.4, 4: 1.0, 1: 1.1}, 8),  # no cut makes widths that gain nothing as fast
        ({8: 2.0, 4: 0.1, 1: 0.1}, {8: 0.05, 4: 0.9, 1: 0.95}, 8),  # 0.2 * 0.95 / 0.1 is more than there is
    ],
)
def test_widths_that_are_fast_must_pay_for_what_they_lose(
    losses: dict[int, float], ratios: dict[int, float], taken: int, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: multiples of 8 take 0.4x and those of 4 take 0.5x, so these lose 0.6 / 0.5 as much: 0.6 of the MACs where half was asked."""
    project, root = trained["emnist"]
    rows = tuple(Rounded(round_to=one, ratio=ratio, low=ratio, high=ratio, macs=1) for one, ratio in ratios.items())
    left: dict[int, float] = {}

    def loss(jury: Any, trial: Cutter, keep: Any) -> float:
        left[trial.rounding.round_to] = trial.costs["max_macs"](keep)
        return losses[trial.rounding.round_to]

    monkeypatch.setattr(removal_trial, "fastest_rounding", lambda *_: Rounding(round_to=8, measured=rows))
    monkeypatch.setattr(removal_trial._Jury, "loss", loss)
    monkeypatch.setattr(removal_plan.Cutter, "reaching", lambda cutter, multiples, limits: [1, 4, 8])
    shutil.rmtree(project.folder / "remove-channels", ignore_errors=True)  # the same settings, measured otherwise
    project.console.said.clear()  # type: ignore[attr-defined]
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=0.8, round_to=0), TUTORING, RECIPE)
    assert made.manifest.metrics.rounding.round_to == taken and all(now % taken == 0 for _, now in made.manifest.metrics.widths.values())
    assert macs(made) <= 0.8 * macs(root)
    if 4 in left:
        assert left[4] <= 1 - 0.2 * 0.6 / 0.5
    told = "cut until they are as fast, they lose less (cross-entropy"
    assert any(told in line for line in project.console.said) == (taken != 8)  # type: ignore[attr-defined]


def coarsest(networks: dict[int, nn.Module], clock: Any, until: float) -> Rounding:
    return Rounding(round_to=max(networks), measured=())


def test_a_multiple_that_reaches_the_first_goal_but_not_the_last_is_not_taken(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiples of 8 leave 0.77 of the MACs at least, enough for the first step's goal of 0.79, and not for the last."""
    project, root = trained["emnist"]
    monkeypatch.setattr(removal_trial, "fastest_rounding", coarsest)
    config = dataclasses.replace(GOAL, max_macs=0.5, round_to=0, steps=3, between=0)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert macs(made) <= 0.5 * macs(root) and made.manifest.metrics.rounding.round_to == 4
    said = project.console.said  # type: ignore[attr-defined]
    assert "remove-channels: leaves out widths in multiples of 8 and 16, with which the goal is out of reach" in said


def test_later_steps_fall_back_to_a_finer_multiple_where_the_measured_one_is_too_coarse(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, root = trained["emnist"]
    monkeypatch.setattr(removal_trial, "fastest_rounding", coarsest)
    first = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=0.85, round_to=0), TUTORING, RECIPE)
    assert first.manifest.metrics.rounding.round_to == 8
    taught = dataclasses.replace(TUTORING, teacher=root)
    made = remove_in_steps(project, first, dataclasses.replace(GOAL, max_macs=0.4, round_to=0), taught, RECIPE)
    assert macs(made) <= 0.4 * macs(root) and made.manifest.metrics.rounding.round_to == 4
    said = project.console.said  # type: ignore[attr-defined]
    assert "remove-channels: widths in multiples of 8 no longer reach the goal; takes multiples of 4" in said


def test_a_latency_that_only_coarse_widths_reach_is_reached(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that are no multiples of four take three times as long, at the floor too."""

    def truth(clock: CountingClock, network: nn.Module) -> float:
        odd = any(len(value) % 4 for name, value in network.named_parameters() if name.endswith("weight") and "fc2" not in name)
        return (3 if odd else 1) * sum(p.numel() for p in network.parameters()) / clock.whole

    project, root = trained["emnist"]
    monkeypatch.setattr(CountingClock, "truth", truth)
    monkeypatch.setattr(removal_trial, "fastest_rounding", coarsest)
    config = dataclasses.replace(GOAL, max_macs=None, max_latency=0.3, round_to=0, floor=0.3)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert made.manifest.metrics.gains.latency.value <= 0.3
    assert all(now % 4 == 0 for _, now in made.manifest.metrics.widths.values())


def test_a_latency_goal_holds_for_what_comes_out_although_measurements_are_noisy(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measurement is off by 3% (one standard deviation); the truth of what comes out is known here."""
    project, root = trained["emnist"]
    again = dataclasses.replace(project, force=True)
    monkeypatch.setattr(finetune.Bench, "repaired", as_cut)  # what it computes does not count here
    monkeypatch.setattr(CountingClock, "noise", 0.06)
    monkeypatch.setattr(CountingClock, "generator", np.random.default_rng(0))
    config = dataclasses.replace(GOAL, max_macs=None, max_latency=0.5)
    truths = []
    for _ in range(20):
        made = remove_in_steps(again, root, config, TUTORING, RECIPE)
        truths.append(made.manifest.facts.params / root.manifest.facts.params)
    assert sum(truth > 0.5 for truth in truths) <= 1
    assert np.mean(truths) > 0.4, "and not by removing far more than was asked for"


def test_by_how_much_a_latency_goal_was_missed_is_said(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured anew after cutting, everything takes a tenth longer than in the search."""
    project, root = trained["emnist"]
    measure = CountingClock.ratio

    def ratio(clock: CountingClock, network: nn.Module, *, goal: float | None = None, rounds: int | None = None) -> Interval:
        found = measure(clock, network, goal=goal, rounds=rounds)
        return found if goal else Interval(value=1.1 * found.value, low=1.05 * found.low, high=1.15 * found.high)

    monkeypatch.setattr(CountingClock, "ratio", ratio)
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=None, max_latency=0.45, floor=0.01), TUTORING, RECIPE)
    latency = made.manifest.metrics.gains.latency
    by = 100 * (latency.value / 0.45 - 1)
    said = [line for line in project.console.said if "is missed by" in line][-1]  # type: ignore[attr-defined]
    assert by > 5 and said.startswith(f"remove-channels: max_latency (=0.45x) is missed by {by:.1f}%: {latency.value:.3g}x (")


def test_when_the_time_is_over_the_best_so_far_is_taken_and_that_is_said(trained: Trained) -> None:
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=None, max_latency=0.42, floor=0.2, time_limit=0.0001)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert made.manifest.metrics.widths == {"conv1": (8, 2), "conv2": (12, 3), "fc1": (16, 4)}, "the floor is all that is sure"
    assert any("the time limit is over; takes the best of 0 networks so far" in line for line in project.console.said)  # type: ignore[attr-defined]


def test_a_latency_table_is_asked_for_a_goal_in_latency_alone(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged one stops that, in a line, and nothing else."""
    project, root = trained["emnist"]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    latency_file("here").parent.mkdir(parents=True)
    latency_file("here").write_text("{")
    again = dataclasses.replace(project, force=True)
    assert macs(remove_in_steps(again, root, GOAL, TUTORING, RECIPE)) <= 0.5 * macs(root)
    with pytest.raises(CompressError, match=r"here.json .*run `compress board profile` again"):
        remove_in_steps(again, root, dataclasses.replace(GOAL, max_macs=None, max_latency=0.5), TUTORING, RECIPE)


def test_time_is_shared_by_the_steps() -> None:
    steps = dataclasses.replace(GOAL, steps=3, time_limit="1.5m").in_steps()
    assert [step.time_limit for step in steps] == [30.0, 30.0, 30.0]
    with pytest.raises(
        CompressError, match=r"time_limit \(=soon\) must be a time above 0, such as 90s, 5m or 1h; a plain number is seconds"
    ):
        checked(RemoveConfig, {"max_macs": 0.5, "time_limit": "soon"}, "[remove-channels]")


def test_what_was_not_cut_short_is_taken_where_it_is_there(trained: Trained) -> None:
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=0.55)
    limited = remove_in_steps(project, root, dataclasses.replace(config, time_limit=5), TUTORING, RECIPE)
    whole = remove_in_steps(project, root, config, TUTORING, RECIPE)
    again = remove_in_steps(project, root, dataclasses.replace(config, time_limit=5), TUTORING, RECIPE)
    assert limited.path != whole.path == again.path


def test_groups_that_there_was_no_time_to_measure_bear_what_the_most_sensitive_does(trained: Trained) -> None:
    """Of three groups the first is measured."""
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=0.61, scope="sensitivity", time_limit=0.0001)
    made = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert macs(made) <= 0.61 * macs(root)
    shares = [now / was for was, now in made.manifest.metrics.widths.values()]
    assert max(shares) - min(shares) < 0.15, "all by the same curve"
    assert "sensitivity: the time limit is over; 1 parts were measured, the last conv1" in project.console.said  # type: ignore[attr-defined]
    remove_in_steps(project, root, dataclasses.replace(config, time_limit=None), TUTORING, RECIPE)
    assert len(list(project.folder.glob("sensitivity/*/artifact.json"))) == 2, "measured whole, and kept beside what was cut short"


def test_a_sparsity_out_of_reach_is_refused_before_the_first_step(trained: Trained) -> None:
    project, root = trained["emnist"]
    before = len(find_artifacts(project.folder / "remove-channels"))
    with pytest.raises(CompressError, match=r"sparsity \(=0.77\) cannot be reached: with floor 0.5 at most 0.5 of the 36 channels"):
        remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=None, sparsity=0.77, floor=0.5, steps=3), TUTORING, RECIPE)
    assert len(find_artifacts(project.folder / "remove-channels")) == before


def test_where_sensitivity_no_longer_reaches_the_goal_later_steps_rank_all_channels(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step's curves reach 0.9, as measured up to a half; those of the second only to a tenth."""
    project, root = trained["emnist"]
    names = ("conv1", "conv2", "fc1")
    found = iter([{name: {0.5: 0.1} for name in names}, {name: {0.1: 0.1} for name in names}])
    monkeypatch.setattr(removal_plan, "loss_curves", lambda project, recipe, parent, limit: next(found))
    made = remove_in_steps(
        project, root, dataclasses.replace(GOAL, max_macs=0.42, scope="sensitivity", steps=2, between=0), TUTORING, RECIPE
    )
    assert macs(made) <= 0.42 * macs(root)
    assert any(
        "ranks all channels together, as by their sensitivity a goal (=1) cannot be reached" in line for line in project.console.said
    )  # type: ignore[attr-defined]


def test_importance_counts_by_what_a_unit_saves(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """All units matter the same, so those go first that save most: of conv2, 20,000 MACs each; one of fc1 saves 300."""
    project, root = trained["emnist"]
    same = {"conv1": torch.ones(8), "conv2": torch.ones(12), "fc1": torch.ones(16)}
    monkeypatch.setattr(removal_plan, "importance", lambda *_: {name: value.double() for name, value in same.items()})
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=0.61), TUTORING, RECIPE)
    widths = made.manifest.metrics.widths
    assert widths["fc1"] == (16, 16) and widths["conv1"][1] < 8


def test_cut_further_without_naming_the_teacher_everything_counts_from_what_was_given(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.Bench, "repaired", as_cut)
    project, root = trained["emnist"]
    first = remove_in_steps(project, root, GOAL, TUTORING, RECIPE)
    tutorings = [dataclasses.replace(TUTORING, teacher=teacher) for teacher in (None, root)]
    alone, taught = (remove_in_steps(project, first, GOAL, tutoring, RECIPE) for tutoring in tutorings)
    assert macs(alone) <= 0.5 * macs(first) < macs(taught) <= 0.5 * macs(root)
    now = {name: width for name, (_, width) in first.manifest.metrics.widths.items()}
    assert {name: before for name, (before, _) in alone.manifest.metrics.widths.items()} == now
    assert max(alone.manifest.metrics.features["fc2"]) < now["fc1"]
    of_first = load_network(first).get_parameter("fc2.weight")[:, alone.manifest.metrics.features["fc2"]]
    assert torch.equal(load_network(alone).get_parameter("fc2.weight"), of_first)


class Stopping(Silent):
    """Ctrl-C in the second epoch."""

    def progress(self, label: str, done: int, total: int) -> None:
        if "epoch 2" in label:
            raise KeyboardInterrupt


def test_killed_and_resumed_is_bit_identical_and_asks_the_clock_no_more_for_its_choice(tmp_path: Path) -> None:
    config = dataclasses.replace(GOAL, max_macs=None, max_latency=0.4, epochs=2)
    payloads = []
    for name, console in (("whole", Silent()), ("killed", Stopping())):
        project = project_in(tmp_path / name, EMNIST)
        root = train(project, FIT)
        assert root is not None
        stopped = dataclasses.replace(project, console=console)
        if name == "killed":
            with pytest.raises(KeyboardInterrupt):
                remove_in_steps(stopped, root, config, TUTORING, RECIPE)
            assert not list(project.folder.glob("remove-channels/*/artifact.json"))
            assert len(list(project.folder.glob("remove-channels/.*.plan.json"))) == 1
            CountingClock.asked = 0
        made = remove_in_steps(project, root, config, TUTORING, RECIPE)
        payloads.append(made.payload.read_bytes())
        assert sorted(path.name for path in made.path.parent.iterdir()) == [made.path.name]
    assert CountingClock.asked == 1, "once, for what was gained"
    assert payloads[0] == payloads[1]


def test_the_nearest_goal_that_can_be_reached_is_named(trained: Trained) -> None:
    project, root = trained["emnist"]
    with pytest.raises(CompressError, match=r"max_macs \(=0.01x\) cannot be reached: .* floor \(=0.5\) [0-9.]+x is left; ask for") as told:
        remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=0.01, floor=0.5), TUTORING, RECIPE)
    nearest = float(str(told.value).partition(") ")[2].partition("(=0.5) ")[2].partition("x is left")[0])
    made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=nearest, floor=0.5), TUTORING, RECIPE)
    assert macs(made) <= nearest * macs(root)
    assert not list(project.folder.glob("remove-channels/.*"))


def test_stored_shapes_that_do_not_fit_are_refused(trained: Trained, tmp_path: Path) -> None:
    project, root = trained["emnist"]
    made = remove_in_steps(project, root, GOAL, TUTORING, RECIPE, out=tmp_path / "cut")
    weights = load_file(made.payload) | {"conv1.weight": torch.zeros(99, 1, 3, 3)}
    save_file(weights, made.payload)
    forged = dataclasses.replace(read_artifact(root.path), manifest=made.manifest, path=made.path)
    with pytest.raises(NetworkError, match=r"conv1.weight.*99"):
        load_network(forged)


def test_pruning_in_steps_is_cubic_and_masks_are_kept(trained: Trained) -> None:
    project, root = trained["emnist"]
    made = prune(project, root, PruneConfig(sparsity=0.8, steps=2, between=1, epochs=1), TUTORING)
    steps = [step.settings.sparsity for step in made.steps if step.stage == "prune"]
    assert steps == pytest.approx([0.7, 0.8])
    assert variant_name(made) == "pruned 80%"
    first = next(one for one in find_artifacts(made.path.parent) if one.manifest.hash == made.manifest.parent)
    early, late = load_file(first.payload), load_file(made.payload)
    for name, value in early.items():
        if name.endswith("weight"):
            assert torch.equal(late[name][value == 0], torch.zeros(int((value == 0).sum())))


def test_the_2_4_pattern_leaves_two_of_four(trained: Trained) -> None:
    project, root = trained["emnist"]
    made = prune(project, root, PruneConfig(pattern="2:4", epochs=1), TUTORING)
    weight = load_file(made.payload)["fc1.weight"]
    assert (weight.view(len(weight), -1, 4).count_nonzero(dim=2) == 2).all()
    assert variant_name(made) == "pruned 2:4"
    assert "prune: left whole, as their inputs do not fit 2:4: conv1.weight" in project.console.said  # type: ignore[attr-defined]


def test_zeros_of_a_network_that_was_pruned_before_stay_zero(trained: Trained) -> None:
    """Through channel removal, and through pruning that by itself would ask for fewer zeros, or for others."""
    project, root = trained["emnist"]
    sparse = prune(project, root, PruneConfig(sparsity=0.8, epochs=0), TUTORING)
    keep = dataclasses.replace(GOAL, max_macs=None, sparsity=0.01, epochs=1)  # too little for a single channel to go
    weights = {
        "less": load_file(prune(project, sparse, PruneConfig(sparsity=0.3, epochs=1), TUTORING).payload),
        "pattern": load_file(prune(project, sparse, PruneConfig(pattern="2:4", epochs=1), TUTORING).payload),
        "removal": load_file(remove_in_steps(project, sparse, keep, TUTORING, RECIPE).payload),
    }
    before = load_file(sparse.payload)
    for made in weights.values():
        for name in ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"):
            assert before[name].shape == made[name].shape
            assert not made[name][before[name] == 0].any()
        assert not torch.equal(made["fc1.weight"], before["fc1.weight"]), "nothing was fine-tuned"


def test_a_cut_network_can_be_pruned_and_trained_on(trained: Trained) -> None:
    project, root = trained["emnist"]
    cut = remove_in_steps(project, root, GOAL, TUTORING, RECIPE)
    pruned = prune(project, cut, PruneConfig(sparsity=0.5, epochs=1), dataclasses.replace(TUTORING, teacher=root))
    assert variant_name(pruned) == "0.5x MACs, pruned 50%"
    assert pruned.manifest.facts.nonzeros < cut.manifest.facts.nonzeros
    further = train(project, dataclasses.replace(FIT, lr=1e-5), start=cut)
    assert further is not None and macs(further) == macs(cut)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sparsity": 0.0}, r"sparsity \(=0.0\) must lie in \(0, 1\); 0.5 removes half of the channels"),
        ({"sparsity": 1.0}, r"sparsity \(=1.0\)"),
        ({"sparsity": 1.2}, r"sparsity \(=1.2\)"),
        ({"sparsity": -0.1}, r"sparsity \(=-0.1\)"),
        ({"sparsity": float("nan")}, r"sparsity \(=nan\)"),
        ({"max_macs": 1.0}, r"max_macs \(=1.0\) must lie in \(0, 1\); times what the teacher costs, 0.35x leaves about a third"),
        ({"max_latency": float("nan")}, r"max_latency \(=nan\)"),
        ({"sparsity": 0.5, "max_size": 0.5}, r"sparsity \(=0.5\) and max_size exclude each other"),
        ({"importance": "l1"}, r"importance \(=l1\) must be auto, l2, bn, taylor, fluctuation or bn-fluctuation"),
        ({"scope": "all"}, r"scope \(=all\) must be global, group or sensitivity"),
        ({"floor": 1.0}, r"floor \(=1.0\) must lie in \[0, 1\)"),
        ({"steps": 0}, r"steps \(=0\) must lie in \[1, 100\]"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(CompressError, match=told):
        checked(RemoveConfig, settings, "[remove-channels]")


def test_dropout_is_eased_by_the_root_of_what_is_left() -> None:
    """A quarter of the weights is left, so half of the dropout."""
    teacher = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Dropout(0.4))
    student = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Dropout(0.4))
    ease_dropout(student, teacher)
    assert student[1].p == pytest.approx(0.2)


@pytest.mark.parametrize("stage", ["remove-channels", "prune"])
def test_fine_tuning_runs_with_the_eased_dropout(stage: str, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    project, root = trained["emnist"]
    seen: list[float] = []

    def watch(project: Project, new: New, network: nn.Module, *arguments: Any, **options: Any) -> None:
        seen.append(network.get_submodule("dropout").p)  # type: ignore[arg-type]
        fit_and_save(project, new, network, *arguments, **options)

    fit_and_save = finetune.fit_and_save
    monkeypatch.setattr(finetune, "fit_and_save", watch)
    if stage == "prune":
        made = prune(project, root, PruneConfig(sparsity=0.6, epochs=1), TUTORING)
    else:
        made = remove_in_steps(project, root, dataclasses.replace(GOAL, max_macs=0.35, epochs=1), TUTORING, RECIPE)
    left, whole = made.manifest.facts.nonzeros, root.manifest.facts.nonzeros
    assert seen == [pytest.approx(0.34 * (left / whole) ** 0.5, rel=1e-2)]


def test_a_goal_is_needed() -> None:
    with pytest.raises(CompressError, match=r"a goal is needed: --sparsity 0.5, --max-macs 0.35x"):
        RemoveConfig().in_steps()


FUNCTIONAL = """
from torch import nn, ones
from torch.nn import functional

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.kernel = nn.Conv2d(1, 16, 3, padding=1), nn.Parameter(0.01 * ones(24, 16, 3, 3))
        self.last, self.head = nn.Conv2d(24, 16, 3, padding=1), nn.Linear(16, classes)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.relu(self.last(functional.relu(functional.conv2d(x, self.kernel, padding=1))))
        x = x.flatten(2)
        return self.head((x @ x.transpose(1, 2)).mean(2))  # a product of activations: costs, and stays whole
"""


def test_a_goal_in_macs_counts_what_the_table_counts_functions_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FUNCTIONAL)
    project = project_in(tmp_path, ModelReference(reference="net.py:Net"))
    root = train(project, FIT)
    assert root is not None
    made = remove_in_steps(project, root, GOAL, TUTORING, load_recipe(None, model="net.py:Net"))
    assert 0.45 * macs(root) < macs(made) <= 0.5 * macs(root), "as near as the widths allow"
    assert count_cost(load_network(made), torch.zeros(2, 1, 28, 28)).macs == macs(made)


@pytest.mark.parametrize("goal", ["max_ram", "max_flash"])
def test_memory_on_a_board_is_met_and_what_is_exported_then_needs_just_that(
    goal: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than what the graph needs that `export-onnx` writes; checked against the plan of the one that it writes afterwards."""
    monkeypatch.setattr(cost, "Clock", REAL_CLOCK)
    project, root = trained["emnist"]
    whole = needs_of(export(project, root, ExportConfig()).payload, "cortex-m4")
    allowed = round(0.97 * whole.ram if goal == "max_ram" else 0.6 * whole.flash)
    goals: dict[str, Any] = {"max_macs": None, goal: allowed}
    cut = remove_in_steps(project, root, dataclasses.replace(GOAL, **goals, target="cortex-m4", precision="float32"), TUTORING, RECIPE)
    memory = cut.manifest.metrics.gains.memory
    needs = needs_of(export(project, cut, ExportConfig()).payload, "cortex-m4")
    assert memory.ram == (whole.ram, needs.ram) and memory.flash == (whole.flash, needs.flash)
    assert 0.5 * allowed < (needs.ram if goal == "max_ram" else needs.flash) <= allowed
    assert "As C for cortex-m4 in float32: " in artifact_text(cut)
    assert variant_name(cut).endswith(" kB RAM" if goal == "max_ram" else " kB flash")


def test_memory_that_is_enough_or_never_will_be_is_refused(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "Clock", REAL_CLOCK)
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, max_macs=None, target="cortex-m4", precision="float32", floor=0.5)
    with pytest.raises(CompressError, match=r"max_ram \(=9\.00 MB\) is met already, the network needs .* kB as C for cortex-m4 in float32"):
        remove_in_steps(project, root, dataclasses.replace(config, max_ram="9MB"), TUTORING, RECIPE)
    with pytest.raises(
        CompressError, match=r"max_flash \(=1\.00 kB\) cannot be reached: with every channel group at its floor .* kB is left"
    ):
        remove_in_steps(project, root, dataclasses.replace(config, max_flash="1kB"), TUTORING, RECIPE)
    with pytest.raises(CompressError, match=r"sparsity \(=0\.5\) and max_ram exclude each other"):
        RemoveConfig(sparsity=0.5, max_ram="45kB")
    with pytest.raises(BenchmarkError, match=r"max_flash \(=5XB\) must be a size above 0, such as 45kB or 0\.5MB"):
        RemoveConfig(max_flash="5XB")
    with pytest.raises(CompressError, match=r'target \(="z80"\) must be a processor that C can be written for'):
        RemoveConfig(max_ram="45kB", target="z80")


def test_bytes_shrink_in_steps_by_the_same_factor() -> None:
    """From 80 kB to 10 kB in three steps: by half in each."""
    steps = RemoveConfig(max_ram="10kB", steps=3).in_steps({"max_ram": 80_000})
    assert [step.max_ram for step in steps] == [40_000, 20_000, 10_000]


def test_the_keys_of_what_older_versions_made_are_as_they_were() -> None:
    assert not {"runtime", "max_ram", "max_flash", "target", "precision"} & RemoveConfig(max_macs=0.5).decides.keys()
    in_c = RemoveConfig(max_latency=0.5, runtime="c").decides if shutil.which("gcc") else {"runtime": "c"}
    assert in_c["runtime"] == "c"
    told = RemoveConfig(max_ram="45kB").decides
    assert told["max_ram"] == 45_000 and told["target"] == "native" and told["precision"] == "int8"


@needs_gcc
def test_latency_is_measured_as_c_where_that_is_asked_for(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cost, "Clock", REAL_CLOCK)
    project, root = trained["emnist"]
    config = dataclasses.replace(GOAL, runtime="c")
    cut = remove_in_steps(project, root, config, TUTORING, RECIPE)
    assert cut.manifest.metrics.gains.runtime == "c" and cut.manifest.config["runtime"] == "c"
    assert len(list((tmp_path / "compress-edge" / "c").glob("*.so"))) == 2, "the teacher and what is left of it"
    assert cut.path != remove_in_steps(project, root, GOAL, TUTORING, RECIPE).path


def test_a_share_of_channels_where_none_can_go_is_told() -> None:
    none = Groups(groups=(), left_whole=(), means=(), uses=(), operations=(), example=torch.zeros(1), unit_of=torch.zeros(0))
    empty: Any = SimpleNamespace(groups=none, before={}, scores={})
    with pytest.raises(CompressError, match="network has no channels that can be removed"):
        Cutter._choose_share(empty, 0.5, Choice())
