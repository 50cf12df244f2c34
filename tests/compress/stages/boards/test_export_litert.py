"""Graphs as .tflite files, whole: from a file of another tool to an artifact that is proved, read and measured; what answers otherwise."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from stand_ins import Silent

import compress
from compress.artifacts.artifact import Artifact
from compress.artifacts.classifier.opened import open_artifact, open_file
from compress.artifacts.context import Context
from compress.errors import CompressError
from compress.litert import convert as converting
from compress.stages.verify import verify


def net(folder: Path, seed: int = 0, name: str = "net.onnx") -> Path:
    """A product of the pixels with random weights, ten classes."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 1, 28, 28] image) => (float[N, 10] logits) {
        flat = Flatten (image) logits = Gemm <transB = 1> (flat, w) }""")
    weights = np.random.default_rng(seed).normal(size=(10, 784)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.checker.check_model(model)
    onnx.save(model, folder / name)
    return folder / name


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> compress.Network:
    monkeypatch.chdir(tmp_path)
    return compress.open(data="digits", runs=tmp_path / "runs", console=Silent())


def made(opened: compress.Network, file: Path) -> Artifact:
    return opened.export_litert(onnx=file, parity_images=60)


def test_the_file_is_proved_read_and_says_what_it_is(opened: compress.Network, tmp_path: Path) -> None:
    artifact = made(opened, net(tmp_path))
    about = artifact.manifest
    assert (about.kind, about.stage, artifact.payload.name) == ("litert", "export-litert", "model.tflite")
    assert about.metrics.parity.agreement == 1 and about.metrics.parity.images == 60
    assert (artifact.path / "labels.txt").read_text().split() == list(about.classes) == [str(digit) for digit in range(10)]
    proof = verify(artifact.path)
    assert proof.holds and [check.name for check in proof.checks] == ["hash", "loads", "logits", "answers"]
    assert made(opened, net(tmp_path)).path == artifact.path
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 28, 28), np.uint8)
    ours, its = open_artifact(artifact, Context()), open_file(artifact.payload, Context())
    assert list(its.classes) == list(about.classes), "from its metadata"
    np.testing.assert_allclose(ours.sure(images).sum(1), 1, rtol=1e-5)
    np.testing.assert_array_equal(ours.run(images), its.run(images))


def test_images_without_labels_prove_it_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)
    np.savez(tmp_path / "some.npz", images)
    without = compress.open(runs=tmp_path / "runs", console=Silent())
    artifact = without.export_litert(onnx=net(tmp_path), calibrate=tmp_path / "some.npz", parity_images=5)
    assert artifact.manifest.metrics.parity.images == 5 and verify(artifact.path).holds
    with pytest.raises(CompressError, match=r"net.onnx\) does not say which images .* --calibrate"):
        without.export_litert(onnx=net(tmp_path))


def test_it_is_measured_beside_the_graph(opened: compress.Network, tmp_path: Path) -> None:
    artifact = made(opened, net(tmp_path))
    result = opened.benchmark(artifact.path, tmp_path / "net.onnx", quick=True, rounds=2, samples=20).result
    rows = {one.runtime: one for one in result.measurements}
    assert rows.keys() == {"litert", "onnxruntime"} and all(one.reason is None for one in rows.values())
    assert rows["litert"].scores == rows["onnxruntime"].scores


def test_a_changed_file_is_not_proved(opened: compress.Network, tmp_path: Path) -> None:
    artifact = made(opened, net(tmp_path))
    artifact.payload.write_bytes(artifact.payload.read_bytes() + b"\0")
    with pytest.raises(CompressError, match=r"is damaged: model\.tflite has SHA-256"):
        verify(artifact.path)


def test_a_file_that_answers_otherwise_is_refused_and_nothing_stays(
    opened: compress.Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = converting.convert(net(tmp_path, seed=1, name="other.onnx"))
    monkeypatch.setattr(converting, "convert", lambda model: dataclasses.replace(other))
    with pytest.raises(CompressError, match=r"LiteRT does not compute what .* does: logits differ by .*, on 60 images"):
        made(opened, net(tmp_path))
    assert not [*(tmp_path / "runs").rglob("*.tflite")]


def test_a_file_of_another_tool_needs_no_vectors(opened: compress.Network, tmp_path: Path) -> None:
    (alone := tmp_path / "alone.tflite").write_bytes(made(opened, net(tmp_path)).payload.read_bytes())
    proof = verify(alone)
    assert proof.holds and [check.name for check in proof.checks] == ["loads", "finite", "plain"]
    alone.write_bytes(alone.read_bytes()[:200])
    assert not verify(alone).holds
    with pytest.raises(CompressError, match=r"onnx \(=.*alone\.tflite\): it is no whole \.tflite file"):
        open_file(alone, Context())
