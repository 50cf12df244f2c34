"""Constants folded at export: a gate that never closes is gone and no answer changes; what is not proved stays, and that is said."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from stand_ins import Commands, Silent, recorded, with_parts

from compress.artifacts.artifact import Artifact, InputSpec, read_artifact
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.project import Project, variant_name
from compress.cli.tables import artifact_text
from compress.stages import export as stage
from compress.stages.export import ExportConfig, export
from compress.stages.train import train
from compress.stages.verify import verify
from compress.train.data_set import Part
from compress.train.settings import FitConfig
from compress.train.sources import load_data

# The gate moves for images that are brighter than ``above`` on average; without it there is none. ``hardly``: one that hardly moves.
NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes, above, hardly):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.Linear(8 * 36, classes)
        self.out, self.above, self.hardly = nn.Conv2d(1, 8, 1), above, hardly
        with torch.no_grad():
            self.out.weight.fill_(40.0)

    def forward(self, x):
        y = torch.nn.functional.avg_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        if self.above is not None:
            hidden = torch.relu(x.mean((2, 3), keepdim=True) - self.above)
            y = y * torch.sigmoid(self.out(hidden) - 8 * torch.sign(hidden))
        if self.hardly:
            y = y * (0.8 + 0.3 * x.mean((2, 3), keepdim=True))
        return self.head(y.flatten(1))

def make(classes, above=None, hardly=False):
    return Net(classes, above, hardly)
"""
FOLD = ExportConfig(fold_constants=True, parity_images=100)
Make = Callable[..., tuple[Project, Artifact]]


@pytest.fixture
def trained(tmp_path: Path) -> Make:
    def make(validation: Part | None = None, **options: Any) -> tuple[Project, Artifact]:
        (tmp_path / "net.py").write_text(NETWORK)
        data = load_data("digits")
        data = with_parts(data, validation=validation) if validation is not None else data
        model = ModelReference(reference=f"{tmp_path / 'net.py'}:make", options=options)
        project = Project(
            folder=tmp_path / "runs",
            model=model,
            spec=InputSpec(),
            data=data,
            source=recorded("digits", data.fingerprint),
            console=Silent(),
            device="cpu",
        )
        root = train(project, FitConfig(epochs=2, batch=64, lr=0.01))
        assert root is not None
        return project, root

    return make


def kinds(artifact: Artifact) -> list[str]:
    return [node.op_type for node in onnx.load(artifact.payload).graph.node]


def answers(artifact: Artifact, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(artifact.payload).run(["logits"], {"image": images})[0]
    return found


def test_a_gate_that_never_closes_is_folded_and_no_answer_changes(trained: Make) -> None:
    project, root = trained(above=2.0)
    plain, folded = export(project, root, ExportConfig(parity_images=100)), export(project, root, FOLD)
    about = folded.manifest.metrics.constants
    assert [one.varies for one in about.tensors] == [0.0] and about.tensors[0].shape == (1, 8, 1, 1)
    assert "Sigmoid" in kinds(plain) and not {"Sigmoid", "ReduceMean", "Mul"} & set(kinds(folded)), "the factor is in the convolution"
    assert about.nodes == (len(kinds(plain)), len(kinds(folded)))
    images = project.data.test.images
    np.testing.assert_allclose(answers(folded, images), answers(plain, images), rtol=0, atol=1e-4)
    assert (about.drop, about.images, about.left) == (0.0, len(project.data.validation.labels), "")
    metrics = folded.manifest.metrics
    assert metrics.parity == plain.manifest.metrics.parity and about.parity.agreement == 1.0 and about.parity.images == 100
    assert verify(folded.path).holds and variant_name(folded) == "constants folded"
    noted = {entry.key: entry.value for entry in onnx.load(folded.payload).metadata_props}
    assert json.loads(noted["compress.constants"]) == [about.tensors[0].name]
    text = " ".join(artifact_text(folded).split())
    assert f"constants folded {about.tensors[0].name} nodes {about.nodes[0]} before, {about.nodes[1]} now points lost by it 0.00" in text
    assert "with 95% confidence, on 143 images parity with it largest" in text


def test_where_nothing_is_constant_the_bytes_are_those_without_the_option(trained: Make) -> None:
    project, root = trained()
    plain, folded = export(project, root, ExportConfig(parity_images=100)), export(project, root, FOLD)
    assert plain.content == folded.content and plain.path != folded.path
    told = "nothing that is computed is constant on 512 training images"
    assert f"export: {told}; the graph is the one without fold_constants" in project.console.said  # type: ignore[attr-defined]
    assert folded.manifest.metrics.constants.left == told and told in artifact_text(folded)


def test_a_gate_that_closes_on_other_images_is_left_in(trained: Make) -> None:
    """The validation images are brighter than all that were looked at: there it fires, and answers change."""
    digits = load_data("digits").validation
    project, root = trained(validation=Part(digits.images // 2 + np.uint8(128), digits.labels), above=0.45)
    plain, folded = export(project, root, ExportConfig(parity_images=100)), export(project, root, FOLD)
    about = folded.manifest.metrics.constants
    assert about.tensors == () and plain.content == folded.content
    assert "validation images, none of their answers may change" in about.left and f"export: {about.left}" in project.console.said  # type: ignore[attr-defined]


def test_what_varies_a_little_needs_a_bound_and_without_one_only_the_rest_is_folded(trained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """143 images bound what was lost by 2 points at best; some 1,000 would do."""
    project, root = trained(above=2.0, hardly=True)
    monkeypatch.setattr(stage, "MOST_MOVED", 5.0)
    about = export(project, root, FOLD).manifest.metrics.constants
    assert [one.varies for one in about.tensors] == [0.0]
    assert re.search(
        r"left in: .* points lost \(at most .*\) on 143 validation images, at most 0.3 may be; 1,000 images would do$", about.left
    )
    monkeypatch.setattr(stage, "MOST_DROP", 10.0)
    project = dataclasses.replace(project, force=True)
    made = export(project, root, FOLD)
    about = made.manifest.metrics.constants
    assert len(about.tensors) == 2 and about.tensors[1].varies > 0 and about.left == ""
    assert 0 < about.bound <= 10 and about.parity.largest_difference > 1e-3
    assert verify(made.path).holds, "the vectors are what the folded graph answers"


def test_what_moves_answers_is_not_folded_at_all(trained: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project, root = trained(hardly=True)
    monkeypatch.setattr(stage, "MOST_MOVED", -1.0)
    about = export(project, root, FOLD).manifest.metrics.constants
    assert about.tensors == () and "without any of them answers move by more than -1.0 points" in about.left


def test_without_the_option_settings_and_key_are_those_of_older_versions() -> None:
    assert ExportConfig().settings == {"opset": 18, "input": "uint8", "parity_images": 1000}
    assert ExportConfig(fold_constants=True).settings["fold_constants"] is True


def test_a_file_of_another_tool_is_folded_as_it_is_taken_in_and_a_graph_made_without_is_refused(
    tmp_path: Path, trained: Make, monkeypatch: pytest.MonkeyPatch, run: Commands
) -> None:
    project, root = trained(above=2.0)
    plain = export(project, root, ExportConfig(parity_images=100))
    monkeypatch.chdir(tmp_path)
    common = ("quantize", "--data", "digits", "--mode", "float32", "--fold-constants")
    made = run.done(*common, "--onnx", str(plain.payload))
    imported = read_artifact(next((tmp_path / "runs/model/import-onnx").iterdir()), "graph")
    about = imported.manifest.metrics.constants
    assert len(about.tensors) == 1 and about.nodes[1] < about.nodes[0] and imported.manifest.config["fold_constants"] is True
    assert "Sigmoid" not in kinds(imported) and (Path(made["artifact"]) / "model.onnx").read_bytes() == imported.payload.read_bytes()
    assert verify(imported.path).holds
    code, _, err = run(*common, "--from", str(plain.path))
    assert code == 2
    assert f"fold_constants (=True): {plain.path} was exported without it; name the network that it came from, --from NETWORK" in err
