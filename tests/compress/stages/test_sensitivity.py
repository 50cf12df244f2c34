"""The stage: every figure again by hand, a second run that measures nothing, its files, and what the command refuses."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from stand_ins import Silent

from compress.artifacts import load
from compress.artifacts.artifact import Artifact
from compress.artifacts.context import Context
from compress.artifacts.load import Prepare, load_network
from compress.artifacts.parts import Baseline
from compress.artifacts.payloads import Curve, Point, Sensitivity, read_payload
from compress.artifacts.project import Project
from compress.artifacts.records import checked
from compress.benchmarks.statistics import Interval
from compress.channels.bypass import bypass
from compress.channels.cut import remove_channels
from compress.channels.find import channel_groups
from compress.channels.scores import importance
from compress.cli.commands import sensitivity
from compress.cli.views import sensitivity_text
from compress.errors import CompressError
from compress.models.emnist import make as make_emnist
from compress.plots.sensitivity import cell, draw_heat_map
from compress.pruning.masks import apply_masks, weight_masks
from compress.stages import sensitivity as stage
from compress.stages.finetune import Bench
from compress.stages.import_network import import_weights
from compress.stages.sensitivity import SensitivityConfig, cheap_modules, measure_sensitivity
from compress.stages.train import train
from compress.train.metrics import score
from compress.train.settings import FitConfig
from compress.train.split import stratified_sample

Made = tuple[Project, Artifact]
CONFIG = {"sparsities": (0.5, 0.8), "images": 60, "seed": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A small network of random weights, large enough that what is cut counts, and its project."""
    runs = tmp_path_factory.mktemp("runs")
    options = Context(model="emnist", options={"channels": [4, 8], "hidden": 12}, data="digits", runs=runs, device="cpu")
    project = options.project(options.load_recipe())
    torch.manual_seed(0)
    network = make_emnist(10, channels=(4, 8), hidden=12)
    file = runs / "weights.pt"
    torch.save({name: 3 * value for name, value in network.state_dict().items()}, file)
    return project, import_weights(project, file)


def scored(project: Project, network: torch.nn.Module) -> tuple[float, float]:
    """Balanced accuracy and mean cross-entropy on the sample, by torch's own sums."""
    chosen = stratified_sample(project.data.train.labels, 60, 3)
    images, labels = project.data.train.images[chosen], project.data.train.labels[chosen]
    with torch.no_grad():
        probabilities = network.eval()(Prepare(project.spec)(torch.from_numpy(images))).softmax(1).numpy()
    loss = -np.log(probabilities[np.arange(60), labels]).mean()
    return score(labels, probabilities.argmax(1), 10)["balanced_accuracy"], float(loss)


def result_of(artifact: Artifact) -> dict[str, Any]:
    return json.loads((artifact.path / "sensitivity.json").read_text(encoding="utf-8"))


def point_of(artifact: Artifact, name: str, sparsity: float) -> tuple[float, float]:
    curve = next(curve for curve in result_of(artifact)["curves"] if curve["name"] == name)
    point = next(point for point in curve["points"] if point["sparsity"] == sparsity)
    return point["balanced_accuracy"], point["cross_entropy"]


def test_weights_by_hand(made: Made) -> None:
    project, parent = made
    found = measure_sensitivity(project, parent, SensitivityConfig(granularity="weight", **CONFIG))
    network = load_network(parent)
    baseline = result_of(found)["baseline"]
    assert (baseline["balanced_accuracy"], baseline["cross_entropy"]) == pytest.approx(scored(project, network), rel=1e-5)
    apply_masks(network, {"fc1.weight": weight_masks(network, 0.8, scope="layer")["fc1.weight"]})
    assert point_of(found, "fc1", 0.8) == pytest.approx(scored(project, network), rel=1e-5)
    assert [curve["name"] for curve in result_of(found)["curves"]] == ["conv1", "conv2", "fc1", "fc2"]
    rises = read_payload(found, Sensitivity).rises["fc1"]
    assert rises.keys() == {0.5, 0.8}
    assert rises[0.8] == pytest.approx(scored(project, network)[1] - baseline["cross_entropy"], rel=1e-4)


@pytest.mark.parametrize("kind", ["l2", "taylor"])
def test_channels_by_hand(made: Made, kind: str) -> None:
    project, parent = made
    found = measure_sensitivity(project, parent, SensitivityConfig(granularity="channel", importance=kind, reconstruct=False, **CONFIG))
    network = load_network(parent)
    prepare = Prepare(project.spec)
    groups = channel_groups(network, prepare(torch.from_numpy(project.data.train.images[:2])))
    chosen = stratified_sample(project.data.train.labels, 60, 3)
    images, labels = (torch.from_numpy(part[chosen]) for part in (project.data.train.images, project.data.train.labels))
    scores = importance(network, groups, kind, iter([torch.nn.functional.cross_entropy(network(prepare(images)), labels)]))
    keep = {"conv2": tuple(sorted(scores["conv2"].argsort()[4:].tolist()))}
    cut = remove_channels(network, groups, keep)
    assert point_of(found, "conv2", 0.5) == pytest.approx(scored(project, cut), rel=1e-5)


def test_what_is_left_makes_up_for_removed_channels_unless_it_is_not_to(made: Made) -> None:
    """By hand: the same images are solved on; on those that are scored the loss is that of the network so made, and lower."""
    project, parent = made
    config = SensitivityConfig(granularity="channel", **CONFIG)
    found, bare = (measure_sensitivity(project, parent, dataclasses.replace(config, reconstruct=how)) for how in (True, False))
    network = load_network(parent)
    groups = channel_groups(network, Prepare(project.spec)(torch.from_numpy(project.data.train.images[:2])))
    keep = {"conv2": tuple(sorted(importance(network, groups, "l2")["conv2"].argsort()[4:].tolist()))}
    made_up = Bench(project=project, solved_on=256).reconstructed(network, remove_channels(network, groups, keep), groups, keep, near=True)
    assert point_of(found, "conv2", 0.5) == pytest.approx(scored(project, made_up), rel=1e-4)
    assert point_of(found, "conv2", 0.5)[1] < point_of(bare, "conv2", 0.5)[1]


def test_what_is_left_makes_up_for_a_bypassed_module_unless_it_is_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Context(model="k49", options={"widths": [8], "depths": [2]}, data="digits", runs=tmp_path, device="cpu")
    project = options.project(options.load_recipe())
    parent = train(project, FitConfig(epochs=1, batch=64, lr=0.003))
    monkeypatch.setattr(stage, "_latencies", lambda project, network, names: dict.fromkeys(names, Interval(value=1.0, low=1.0, high=1.0)))
    config = SensitivityConfig(granularity="module", **CONFIG)
    found, bare = (measure_sensitivity(project, parent, dataclasses.replace(config, reconstruct=how)) for how in (True, False))
    network, without = load_network(parent), load_network(parent)
    bypass(without, ["blocks.1"])
    assert point_of(bare, "blocks.1", 1.0) == pytest.approx(scored(project, without), rel=1e-4)
    made_up = Bench(project=project, solved_on=256).without(network, without)
    assert point_of(found, "blocks.1", 1.0) == pytest.approx(scored(project, made_up), rel=1e-4)
    assert point_of(found, "blocks.1", 1.0)[1] < point_of(bare, "blocks.1", 1.0)[1]


def test_a_network_without_modules_of_one_shape_is_told(made: Made) -> None:
    with pytest.raises(CompressError, match=r"^granularity \(=module\): no module of this network keeps the shape of its input; take"):
        measure_sensitivity(*made, SensitivityConfig(granularity="module", **CONFIG))


def test_second_run_measures_nothing_and_other_settings_do(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    project, parent = made
    first = measure_sensitivity(project, parent, SensitivityConfig(granularity="weight", **CONFIG))
    console = Silent()
    monkeypatch.setattr(load, "load_network", None)
    again = Project(**{**vars(project), "console": console})
    # The importance of channels is without effect on weights.
    second = measure_sensitivity(again, parent, SensitivityConfig(granularity="weight", importance="bn", **CONFIG))
    assert second.path == first.path and console.said[-1] == f"sensitivity: unchanged, {first.path}"
    assert console.said[0].startswith(f"sensitivity: from {parent.path} (fp32, ")
    with pytest.raises(TypeError, match="not callable"):
        measure_sensitivity(again, parent, SensitivityConfig(granularity="weight", **CONFIG | {"images": 61}))


def test_files_and_text(made: Made) -> None:
    project, parent = made
    found = measure_sensitivity(project, parent, SensitivityConfig(granularity="weight", **CONFIG))
    points = [point for curve in result_of(found)["curves"] for point in curve["points"]]
    rows = list(csv.DictReader((found.path / "sensitivity.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["points_lost"]) for row in rows] == [point["points_lost"] for point in points]
    assert rows[0]["name"] == "conv1" and rows[0]["size"] == "36" and rows[0]["removed"] == "18"
    assert (found.path / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    text = sensitivity_text(found)
    assert "60 training images and without fine-tuning" in text
    last = next(line.split() for line in text.splitlines() if line.startswith("fc2"))
    assert last == ["fc2", "120", *(cell(point["points_lost"]) for point in points[-2:])]


def test_command_prints_one_object_and_finds_the_newest_network(made: Made) -> None:
    project, parent = made
    place = ["--model", "emnist", "--runs", str(project.folder.parent), "--device", "cpu", "--json"]
    arguments = [*place, "--granularity", "weight", "--sparsity", "0.5", "--images", "60"]
    done = CliRunner().invoke(sensitivity, arguments, catch_exceptions=False)
    said = json.loads(done.stdout)
    assert said["granularity"] == "weight" and len(said["curves"]) == 4
    assert json.loads((Path(said["artifact"]) / "artifact.json").read_text(encoding="utf-8"))["parent"] == parent.manifest.hash
    assert "Example:  compress sensitivity --model k49" in CliRunner().invoke(sensitivity, ["--help"]).stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--sparsity", "1.2"], r"^each of sparsities \(=\(1\.2,\)\) must lie in \(0, 1\); 0\.5 removes half of one layer or group$"),
        (["--sparsity", "0.5", "--sparsity", "0"], r"^each of sparsities \(=\(0\.5, 0\.0\)\) must lie in"),
        (["--sparsity", "nan"], r"^each of sparsities \(=\(nan,\)\) must lie in"),
        (["--sparsity", "-0.5"], r"^each of sparsities \(=\(-0\.5,\)\) must lie in"),
        (["--granularity", "layer"], r"^granularity \(=layer\) must be weight, channel or module$"),
        (["--importance", "l1"], r"^importance \(=l1\) must be l2, bn, taylor, fluctuation or bn-fluctuation$"),
        (["--images", "0"], r"^images \(=0\) must be at least 1; 2048 is the default$"),
        (["--seed", "-1"], r"^seed \(=-1\) must lie in \[0, 2147483648\)$"),
    ],
)
def test_wrong_settings_are_told_before_data_is_loaded(given: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "child", None)
    with pytest.raises(CompressError, match=told):
        CliRunner().invoke(sensitivity, given, catch_exceptions=False)


def test_sparsities_are_sorted_and_each_is_measured_once() -> None:
    assert SensitivityConfig(sparsities=(0.9, 0.5, 0.9)).sparsities == (0.5, 0.9)
    with pytest.raises(CompressError, match=r"^sparsities \(=\(\)\) must have at least 1 of them"):
        checked(SensitivityConfig, {"sparsities": ()}, "[sensitivity]")


def size_of(rows: int, columns: int) -> tuple[int, int]:
    names, shares = [f"layer.{row}" for row in range(rows)], [f"{column}%" for column in range(columns)]
    picture = draw_heat_map(names, shares, [[3.0] * columns] * rows, "title")
    return Image.open(io.BytesIO(picture)).size


def test_picture_grows_with_rows_and_columns() -> None:
    (one, low), (two, high) = size_of(1, 1), size_of(16, 2)
    assert one < two
    assert (high - low) / 15 > 20  # pixels for each row of letters


def test_cells() -> None:
    assert [cell(value) for value in (0.0, -0.001, 0.044, -0.1, 1.04, 9.96, 56.6)] == ["0.00", "0.00", "0.04", "-0.10", "1.0", "10", "57"]


def test_cheap_modules_cost_little_alone_and_surely_save_latency() -> None:
    """Of the block and its gate, both cheap, the block; the slow one costs a lot, and of the doubtful one the saving is not sure."""
    costs = {"block": (0.9, 0.7), "block.gate": (0.1, 0.9), "slow": (5.0, 0.5), "doubtful": (0.0, 0.995), "gate": (-0.2, 0.98)}
    at = {"sparsity": 1.0, "removed": 4, "balanced_accuracy": 0.9, "cross_entropy": 0.1}
    result = Sensitivity(
        granularity="module",
        images=9,
        baseline=Baseline(balanced_accuracy=0.9, cross_entropy=0.1),
        curves=tuple(Curve(name=name, size=4, points=(Point(**at, points_lost=lost),)) for name, (lost, _) in costs.items()),
        rises={name: {1.0: 0.1} for name in costs},
        latency={name: Interval(value=high - 0.01, low=high - 0.02, high=high) for name, (_, high) in costs.items()},
    )
    assert cheap_modules(result) == ["block", "gate"]
