"""The stages: keys, lineage, sampling, and what happens to a run that is killed at any moment."""

import dataclasses
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from processes import Running
from real_data import few_digits
from safetensors.torch import load_file
from stand_ins import Silent, recorded

from compress.artifacts.artifact import Artifact, InputSpec, read_artifact
from compress.artifacts.load import load_network, load_runner
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.project import Project, find_parent, variant_name, variants_of
from compress.artifacts.recipe import Tutoring
from compress.artifacts.vectors import VECTORS, read_vectors
from compress.cli.tables import artifact_text
from compress.errors import ArtifactError
from compress.pruning.masks import nonzero_masks, pattern_masks, squared_gradients, weight_masks
from compress.pruning.repair import Repaired
from compress.stages import finetune
from compress.stages import prune as pruning
from compress.stages.benchmark import candidates_of
from compress.stages.export import ExportConfig, export
from compress.stages.finetune import Bench, affordable, batch_losses
from compress.stages.import_network import import_weights
from compress.stages.prune import PruneConfig, prune
from compress.stages.quantize import QuantizeConfig, quantize
from compress.stages.train import train
from compress.stages.verify import verify
from compress.train.settings import DistilConfig, FitConfig
from compress.train.sources import load_data
from compress.train.split import stratified_sample

FIT = FitConfig(epochs=1, batch=64, lr=0.002)
TUTORING = Tutoring(training=FIT, distil=DistilConfig())
STATIC = QuantizeConfig(mode="static", images=64)
PRUNE = PruneConfig(sparsity=0.8, epochs=1, lr=0.001)


def project_in(folder: Path, **options: object) -> Project:
    data = load_data("digits")
    source = recorded("digits", data.fingerprint)
    model = ModelReference(reference="emnist", options={"channels": [4, 8], "hidden": 16})
    about = {"folder": folder / "emnist", "model": model, "spec": InputSpec(), "data": data, "source": source, "console": Silent()}
    return Project(**about | options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Artifact]]:
    """Every stage once on a tiny network."""
    project = project_in(tmp_path_factory.mktemp("runs"))
    root = train(project, FIT)
    pruned = prune(project, root, PRUNE, TUTORING)
    dense, sparse = (export(project, network, ExportConfig()) for network in (root, pruned))
    static = quantize(project, dense, STATIC, TUTORING)
    both = quantize(project, sparse, STATIC, TUTORING)
    dynamic = quantize(project, dense, QuantizeConfig(mode="dynamic"), TUTORING)
    return project, {"root": root, "pruned": pruned, "dense": dense, "sparse": sparse, "static": static, "both": both, "dynamic": dynamic}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Artifact]:
    """A network that reads most digits."""
    project = project_in(tmp_path_factory.mktemp("runs"))
    return project, train(project, dataclasses.replace(FIT, epochs=12, lr=0.005))


def test_names_say_what_the_lineage_did(made: tuple[Project, dict[str, Artifact]]) -> None:
    names = {key: variant_name(artifact) for key, artifact in made[1].items()}
    assert names == {
        "root": "fp32",
        "pruned": "pruned 80%",
        "dense": "fp32",
        "sparse": "pruned 80%",
        "static": "static int8",
        "both": "pruned 80%, static int8",
        "dynamic": "dynamic int8",
    }


def test_training_on_starts_from_the_weights_given_and_is_a_root_of_its_own(made: tuple[Project, dict[str, Artifact]]) -> None:
    """At a learning rate of next to nothing, the weights hardly change."""
    project, artifacts = made
    still = dataclasses.replace(FIT, epochs=1, lr=1e-6, weight_decay=0.0)
    further = train(project, still, start=artifacts["root"])
    assert further is not None
    before, after = (load_file(artifact.payload) for artifact in (artifacts["root"], further))
    for name, value in before.items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-4)
    assert [step.stage for step in further.steps] == ["train", "train"]
    graph = export(project, further, ExportConfig())
    assert [one.path for one in variants_of(project, further)] == [graph.path]
    assert graph.path not in [one.path for one in variants_of(project, artifacts["root"])]
    shutil.rmtree(graph.path)
    shutil.rmtree(further.path)  # the other tests go on with the network made first


def test_pruned_weights_stay_zero_through_fine_tuning(made: tuple[Project, dict[str, Artifact]]) -> None:
    weights = load_file(made[1]["pruned"].payload)
    prunable = [value for name, value in weights.items() if name.endswith("weight") and value.ndim > 1]
    zeros, total = sum(int((value == 0).sum()) for value in prunable), sum(value.numel() for value in prunable)
    assert zeros >= round(0.8 * total)
    assert not torch.equal(weights["fc2.bias"], load_file(made[1]["root"].payload)["fc2.bias"]), "nothing was fine-tuned"


@pytest.mark.parametrize("scope", ["lamp", "fisher"])
def test_weights_come_back_within_what_an_earlier_pruning_left(made: tuple[Project, dict[str, Artifact]], scope: str) -> None:
    project, artifacts = made
    config = PruneConfig(sparsity=0.9, scope=scope, regrow=True, epochs=2, lr=0.003)
    regrown = load_file(prune(project, artifacts["pruned"], config, TUTORING).payload)
    first = load_file(artifacts["pruned"].payload)
    assert regrown.keys() == first.keys()
    at_once = dataclasses.replace(config, regrow=False, epochs=0)
    masks = nonzero_masks(load_network(prune(project, artifacts["pruned"], at_once, TUTORING)))
    assert sum(int((regrown[name] == 0).sum()) for name in masks) == round(0.9 * sum(mask.numel() for mask in masks.values()))
    assert all(not regrown[name][first[name] == 0].any() for name in masks), "what was zeroed before must stay so"
    assert any((regrown[name][~mask] != 0).any() for name, mask in masks.items()), "nothing came back"


def test_gradients_on_training_images_say_what_fisher_zeroes(
    made: tuple[Project, dict[str, Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing makes up for it; see the next test."""
    project, artifacts = made
    monkeypatch.setattr(Bench, "made_up", lambda self, network, pruned, zeros: Repaired(network=pruned, how="cut", losses={}))
    parent = artifacts["root"]
    for sparsity in (0.5, 0.9):  # the second one of the network that the first one made
        child = prune(project, parent, PruneConfig(sparsity=sparsity, scope="fisher", epochs=0), TUTORING)
        network = load_network(parent)
        part = project.data.train  # digits has fewer than are looked at
        squares = squared_gradients(network, batch_losses(project, network, part, batch=8))
        masks = weight_masks(network, sparsity, scope="fisher", squares=squares)
        assert all(torch.equal(mask, masks[name]) for name, mask in nonzero_masks(load_network(child)).items())
        parent = child


@pytest.mark.parametrize("scope", ["fisher", "global", "layer", "lamp"])
def test_without_training_the_weights_that_stay_make_up_for_those_that_go(trained: tuple[Project, Artifact], scope: str) -> None:
    """As many zeros in each layer, those of a pruning before among them; the artifact says what was tried, and holds the best of it."""
    project, root = trained
    config = PruneConfig(sparsity=0.8, scope=scope, epochs=0)  # type: ignore[arg-type]
    child = prune(project, root, config, TUTORING)
    network, repair = load_network(child), child.manifest.metrics.repair
    assert repair.how == "least squares" and repair.losses.keys() == {"cut", "least squares"}, "there is no batch norm"
    assert repair.losses["least squares"] < 0.8 * repair.losses["cut"]
    assert Bench(project=project, solved_on=1024).score(network) == pytest.approx(repair.losses["least squares"], rel=1e-5)
    part, bare = project.data.train, load_network(root)
    squares = squared_gradients(bare, batch_losses(project, bare, part, batch=8)) if scope == "fisher" else None
    masks = weight_masks(bare, 0.8, scope=scope, squares=squares)
    assert {name: int(mask.sum()) for name, mask in nonzero_masks(network).items()} == {
        name: int(mask.sum()) for name, mask in masks.items()
    }
    assert "as zeroed " in (text := artifact_text(child)) and text.count("taken") == 1
    again = prune(project, child, dataclasses.replace(config, sparsity=0.9), TUTORING)
    assert all(not (mask & ~nonzero_masks(network)[name]).any() for name, mask in nonzero_masks(load_network(again)).items())
    payload = again.payload.read_bytes()
    shutil.rmtree(again.path)
    assert prune(project, child, dataclasses.replace(config, sparsity=0.9), TUTORING).payload.read_bytes() == payload


def test_of_a_pattern_the_zeros_stay_where_they_are_and_fine_tuning_keeps_those_that_moved(
    trained: tuple[Project, Artifact],
) -> None:
    project, root = trained
    sparse = prune(project, root, PruneConfig(pattern="2:4", epochs=0), TUTORING)
    wanted, network = pattern_masks(load_network(root)), load_network(sparse)
    assert sparse.manifest.metrics.repair.how == "least squares"
    assert all(torch.equal(network.get_parameter(name) != 0, mask) for name, mask in wanted.items())
    config = PruneConfig(sparsity=0.6, epochs=0)
    bare = prune(project, root, config, TUTORING)
    tuned = prune(project, root, dataclasses.replace(config, epochs=1, lr=0.001), TUTORING)
    masks, kept = (nonzero_masks(load_network(one)) for one in (bare, tuned))
    assert all(not (kept[name] & ~mask).any() for name, mask in masks.items())
    assert tuned.manifest.metrics.one_shot == bare.manifest.metrics.validation, "fine-tuning starts from the best"


def test_a_network_that_older_versions_pruned_is_not_taken_for_a_new_one(
    trained: tuple[Project, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, root = trained
    config = PruneConfig(sparsity=0.6, epochs=0)
    child = prune(project, root, config, TUTORING)
    assert prune(project, root, config, TUTORING).path == child.path
    monkeypatch.setattr(pruning, "MADE_UP", 0)
    other = prune(project, root, config, TUTORING)
    assert other.path != child.path


def test_what_was_made_of_a_pruned_network_carries_its_layers_to_the_report(made: tuple[Project, dict[str, Artifact]]) -> None:
    layers = made[1]["pruned"].manifest.metrics.layers
    assert [layer.name for layer in layers] == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    assert candidates_of([made[1]["both"]], "cpu")[0].facts["layers"] == layers
    assert "layers" not in candidates_of([made[1]["static"]], "cpu")[0].facts


def test_parity_is_measured_and_graphs_agree_with_torch(made: tuple[Project, dict[str, Artifact]]) -> None:
    project, artifacts = made
    assert artifacts["dense"].manifest.metrics.parity.largest_difference < 1e-4
    assert artifacts["dense"].manifest.metrics.parity.agreement == 1.0
    import onnxruntime

    images = project.data.test.images[:32]
    session = onnxruntime.InferenceSession(str(artifacts["dense"].payload), providers=["CPUExecutionProvider"])
    expected = load_runner(artifacts["root"], "cpu", 1)(images)
    np.testing.assert_allclose(session.run(["logits"], {session.get_inputs()[0].name: images})[0], expected, atol=1e-4)


def test_graphs_carry_labels_input_and_lineage(made: tuple[Project, dict[str, Artifact]]) -> None:
    import onnx

    for name, stages in (("dense", ["train"]), ("sparse", ["train", "prune"]), ("both", ["train", "prune"])):
        about = {entry.key: entry.value for entry in onnx.load(made[1][name].payload).metadata_props}
        assert json.loads(about["compress.classes"]) == list("0123456789")
        assert json.loads(about["compress.input"])["shape"] == [1, 28, 28]
        assert [step["stage"] for step in json.loads(about["compress.lineage"])] == stages


def test_unchanged_stage_is_not_run_again_and_a_changed_one_is(made: tuple[Project, dict[str, Artifact]]) -> None:
    project, artifacts = made
    before = artifacts["root"].payload.stat().st_mtime_ns
    again = train(project, FIT)
    assert again.manifest.hash == artifacts["root"].manifest.hash
    assert again.payload.stat().st_mtime_ns == before
    assert project.console.said[-1].startswith("train: unchanged")  # type: ignore[attr-defined]
    other = prune(project, artifacts["root"], PruneConfig(sparsity=0.5, epochs=0), TUTORING)
    assert other.path != artifacts["pruned"].path
    assert other.manifest.facts.nonzeros > artifacts["pruned"].manifest.facts.nonzeros


def test_same_inputs_elsewhere_give_bit_identical_weights_and_graphs(made: tuple[Project, dict[str, Artifact]], tmp_path: Path) -> None:
    root = train(project_in(tmp_path), FIT)
    assert root.payload.read_bytes() == made[1]["root"].payload.read_bytes()
    graph = export(project_in(tmp_path), root, ExportConfig())
    assert graph.payload.read_bytes() == made[1]["dense"].payload.read_bytes()
    static = quantize(project_in(tmp_path), graph, STATIC, TUTORING)
    assert static.payload.read_bytes() == made[1]["static"].payload.read_bytes()
    for found, name in ((graph, "dense"), (static, "static")):
        assert (found.path / VECTORS).read_bytes() == (made[1][name].path / VECTORS).read_bytes()


@pytest.mark.parametrize("name", ["dense", "sparse", "static", "both", "dynamic"])
def test_every_graph_has_test_vectors_that_prove_it(made: tuple[Project, dict[str, Artifact]], name: str) -> None:
    """Of an export the logits are torch's."""
    project, artifacts = made
    assert verify(artifacts[name].path).holds
    vectors = read_vectors(artifacts[name].path / VECTORS)
    assert {image.tobytes() for image in vectors.images} <= {image.tobytes() for image in project.data.validation.images}
    if name == "dense":
        expected = load_runner(artifacts["root"], "cpu", 1)(vectors.images)
        np.testing.assert_allclose(vectors.logits, expected, atol=1e-5)


def test_forced_stage_replaces_the_artifact_and_children_stay_valid(tmp_path: Path) -> None:
    project = project_in(tmp_path)
    root = train(project, FIT)
    graph = export(project, root, ExportConfig())
    forced = train(project_in(tmp_path, force=True), FIT)
    assert forced.manifest.created > root.manifest.created
    assert export(project, forced, ExportConfig()).manifest.hash == graph.manifest.hash


def test_calibration_images_are_recorded_by_index_and_hash(made: tuple[Project, dict[str, Artifact]]) -> None:
    import hashlib

    project, artifacts = made
    record = json.loads((artifacts["static"].path / "calibration.json").read_text())
    images = project.data.train.images[record["indices"]]
    assert len(record["indices"]) == 64
    assert hashlib.sha256(images.tobytes()).hexdigest() == record["sha256"] == artifacts["static"].manifest.metrics.calibration.sha256
    assert record["data"] == project.data.fingerprint


def test_stratified_sample_takes_the_classes_evenly_and_repeats() -> None:
    labels = np.array([0] * 50 + [1] * 30 + [2] * 3)
    chosen = stratified_sample(labels, 15, seed=3)
    assert np.bincount(labels[chosen]).tolist() in ([6, 6, 3], [7, 5, 3], [5, 7, 3])
    assert len(set(chosen.tolist())) == 15
    assert chosen.tolist() == stratified_sample(labels, 15, seed=3).tolist() != stratified_sample(labels, 15, seed=4).tolist()
    assert len(stratified_sample(labels, 500, seed=0)) == 83


def test_weights_from_elsewhere_come_in_and_are_scored(made: tuple[Project, dict[str, Artifact]], tmp_path: Path) -> None:
    torch.save({"state_dict": load_network(made[1]["root"]).state_dict()}, tmp_path / "theirs.pth")
    project = project_in(tmp_path)
    root = import_weights(project, tmp_path / "theirs.pth")
    assert root.manifest.metrics.validation == made[1]["root"].manifest.metrics.validation
    assert variant_name(export(project, root, ExportConfig())) == "fp32"


def test_parents_are_found_by_stage_and_data(made: tuple[Project, dict[str, Artifact]], tmp_path: Path) -> None:
    project, artifacts = made
    assert find_parent(project.folder, ("train",)).path == artifacts["root"].path
    assert {graph.path for graph in variants_of(project, artifacts["root"])} == {
        artifacts[name].path for name in ("dense", "sparse", "static", "both", "dynamic")
    }
    again = export(
        project_in(project.folder.parent, force=True), artifacts["root"], ExportConfig(), out=project.folder / "export" / "again"
    )
    assert again.content == artifacts["dense"].content
    names = [graph.path.name for graph in variants_of(project, artifacts["root"]) if variant_name(graph) == "fp32"]
    assert names == ["again"], "of the same bytes twice, the newest is a variant"
    shutil.rmtree(again.path)
    with pytest.raises(ArtifactError, match=r"has no network yet .*run `compress train` first"):
        find_parent(tmp_path / "nothing", ("train", "import"))
    with pytest.raises(ArtifactError, match="trained on digits only, none on the data given"):
        find_parent(project.folder, ("train",), fingerprint="0" * 64)


def test_another_artifact_is_not_overwritten_without_force(made: tuple[Project, dict[str, Artifact]]) -> None:
    project, artifacts = made
    with pytest.raises(ArtifactError, match=r"out \(=.*\) holds another artifact \(stage train\); --force replaces it"):
        prune(project, artifacts["root"], PruneConfig(sparsity=0.3, epochs=0), TUTORING, out=artifacts["root"].path)


class Placed(torch.nn.Module):
    """Says where it was put last."""

    place = "cpu"

    def to(self, device: torch.device) -> "Placed":  # type: ignore[override]
        self.place = str(device)
        return self

    def cpu(self) -> "Placed":
        return self.to(torch.device("cpu"))


def test_networks_are_on_the_device_while_they_are_reconstructed_and_on_the_cpu_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cuts, exports and times them expects them there."""
    bench, network, pruned = Bench(project=project_in(tmp_path), solved_on=8), Placed(), Placed()
    bench.device = torch.device("cuda")
    vars(bench).update(images=None, prepare=None)
    groups: Any = SimpleNamespace(removed=lambda keep: {})
    seen = []

    def reconstruct(*networks: Placed, **how: object) -> SimpleNamespace:
        seen.extend(one.place for one in networks[:2])
        return SimpleNamespace(network=Placed())

    monkeypatch.setattr(Bench, "_some_images", lambda *_: None)
    monkeypatch.setattr(finetune, "reconstruct", reconstruct)
    monkeypatch.setattr(finetune, "repair", reconstruct)
    bench.reconstructed(network, pruned, groups, {})
    monkeypatch.setattr(finetune, "make_up", reconstruct)
    bench.repaired(network, pruned, groups, {}, "")
    bench.made_up(network, pruned, "move")
    assert seen == ["cuda"] * 6 and [one.place for one in (network, pruned)] == ["cpu"] * 2


def test_large_pictures_are_few_as_they_take_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(Bench(project=project_in(tmp_path), solved_on=90).images) == 90, "no more than was asked for, however many are left"
    bench, seen = Bench(project=project_in(tmp_path), solved_on=400), list[int]()
    assert len(bench.images) > 160

    def reconstruct(*given: Any, **how: object) -> SimpleNamespace:
        seen.append(next(len(one) for one in given if isinstance(one, torch.Tensor)))
        return SimpleNamespace(network=Placed())

    for name in ("reconstruct", "repair", "make_up"):
        monkeypatch.setattr(finetune, name, reconstruct)
    groups: Any = SimpleNamespace(removed=lambda keep: {})
    network = torch.nn.Flatten()
    for size in (5, 100):
        monkeypatch.setattr(finetune, "most_images", lambda network, example, chunks, size=size: chunks * size)
        bench.reconstructed(network, network, groups, {})
        bench.repaired(network, network, groups, {}, "")
        bench.made_up(network, network, "move")
    assert seen == [5, 40, 40, 100, len(bench.images), len(bench.images)]


def test_fewer_large_pictures_judge_and_are_solved_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 28x28 all that are asked for; where the places of all may be 300 pictures' worth, that many, but never fewer than the least."""
    project = project_in(tmp_path)
    assert affordable(2048, project) == 2048
    monkeypatch.setattr(finetune, "PIXELS", 300 * 28 * 28)
    assert [affordable(2048, project), affordable(2048, project, least=512), affordable(90, project)] == [300, 512, 90]
    bench = Bench(project=project, solved_on=2048)
    assert (len(bench.judging.labels), len(bench.solving.labels)) == (406, 300), "half of the 812 that were drawn judge"


def test_a_batch_that_is_differentiated_has_fewer_images_where_their_activations_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = project_in(tmp_path)
    network, part = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)), project.data.train.sample(64, 0)
    assert len(list(batch_losses(project, network, part))) == 1
    monkeypatch.setattr(finetune, "DIFFERENTIATED", 4 * 784 * 20)
    assert len(losses := list(batch_losses(project, network, part))) == 4 and all(loss.requires_grad for loss in losses)


RECIPE = """
model = "emnist"
[model-options]
channels = [4, 8]
hidden = 16
[train]
epochs = 3
batch = 32
[prune]
epochs = 2
[remove-channels]
round_to = 2
steps = 2
between = 1
epochs = 2
[quantize]
images = 64
time_limit = 1
[benchmark]
launches = 2
time_limit = 0
rounds = 1
samples = 5
sweeps = false
"""
WHOLE = ("run", "--recipe", "recipe.toml", "--data", "few", "--device", "cpu")


def recipe_in(folder: Path) -> Path:
    few_digits(folder / "few")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def test_killed_at_random_moments_leaves_no_damaged_artifact_and_the_next_run_finishes(
    tmp_path: Path, start: Callable[..., Running]
) -> None:
    """What a killed run leaves is gone on from, and killed again, until it is nearly through. COMPRESS_KILLS=20 for the full count."""
    whole = recipe_in(tmp_path / "whole")
    started = time.monotonic()
    assert start(*WHOLE, cwd=whole).wait() == 0
    seconds = time.monotonic() - started
    assert (whole / "runs" / "emnist" / "report" / "report.html").is_file()
    moments, killed, attempts = random.Random(0), 0, 0
    while killed < int(os.environ.get("COMPRESS_KILLS", "2")):
        folder, left = recipe_in(tmp_path / str(attempts)), seconds
        attempts += 1
        while left > 0.1 * seconds and killed < int(os.environ.get("COMPRESS_KILLS", "2")):
            moment = moments.uniform(0.1, 0.9) * left
            process = start(*WHOLE, cwd=folder)
            if process.ends_within(moment):  # faster than the first one was, on a machine that was busy then
                seconds *= 0.7
                break
            process.signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            left -= moment
            for manifest in folder.glob("runs/*/*/[!.]*/artifact.json"):
                read_artifact(manifest.parent)
        assert start(*WHOLE, cwd=folder).wait() == 0
        weights = [sorted(base.glob("runs/emnist/*/*/weights.safetensors")) for base in (whole, folder)]
        assert len(weights[0]) == 4 and [path.read_bytes() for path in weights[0]] == [path.read_bytes() for path in weights[1]]
        assert not list(folder.glob("runs/*/*/.*")), "leftovers of the killed run"
