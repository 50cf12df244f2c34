"""``compress explain`` on tiny networks, from training to the picture, and its figures against what they must be."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compress.artifacts.artifact import read_artifact
from compress.artifacts.load import load_runner
from compress.cli import main as cli
from compress.graphs.evidence.gates import Gate
from compress.plots.explain import Seen, View, draw_maps, gate_names, shown_gates
from compress.stages.explain import Looked, _most_misread
from compress.train.metrics import softmax
from compress.train.sources import load_data

K49 = ["--model", "k49", "--option", "widths=[4,8]", "--option", "depths=[1,1]"]
EMNIST = ["--model", "emnist", "--option", "channels=[4,8]", "--option", "hidden=16"]
GATES = ["channel 1", "spatial 1", "channel 2", "spatial 2"]


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compress", *arguments])
        code = cli.main()
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs folder, and an artifact of each stage: of a tiny k49, and a tiny emnist, both trained for an epoch."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ["train", *K49, "--data", "digits", "--epochs", "1"],
            ["prune", "--model", "k49", "--epochs", "0"],
            ["quantize", "--model", "k49", "--mode", "static", "--images", "64"],
            ["train", *EMNIST, "--data", "digits", "--epochs", "1"],
        ):
            patch.setattr(sys, "argv", ["compress", *arguments])
            assert cli.main() == 0
    root, pruned, graph = (next((folder / "runs/k49" / stage).glob("[!.]*")) for stage in ("train", "prune", "export"))
    return {"folder": folder, "runs": folder / "runs", "root": root, "pruned": pruned, "graph": graph}


def explained(capfd: pytest.CaptureFixture[str], made: dict[str, Path], out: Path, *arguments: str) -> dict[str, Any]:
    code, text, err = run(capfd, "explain", "--runs", str(made["runs"]), "--out", str(out / "new" / "explain.png"), "--json", *arguments)
    assert code == 0, err
    found = json.loads(text)
    with Image.open(found["picture"]) as picture:
        assert picture.format == "PNG" and picture.width > 500
    return found


def test_the_newest_family_side_by_side(capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path) -> None:
    found = explained(capfd, made, tmp_path, "--model", "k49", "--index", "3", "--index", "17")
    data = load_data("digits")
    assert [one["index"] for one in found["images"]] == [3, 17]
    assert [one["truth"] for one in found["images"]] == [data.classes[k] for k in data.test.labels[[3, 17]]]
    for one in found["images"]:
        assert [network["network"] for network in one["networks"]] == ["fp32", "pruned 70%", "pruned 70%, static int8"]
        for network in one["networks"]:
            assert [gate["gate"] for gate in network["gates"]] == GATES
            assert [gate["shape"] for gate in network["gates"]] == [[4], [28, 28], [8], [14, 14]]
            assert all(0 <= gate["min"] <= gate["mean"] <= gate["max"] <= 1 for gate in network["gates"])
        first = one["networks"][0]
        assert all(gate["mean_difference"] == 0 and gate["rank_correlation"] == pytest.approx(1) for gate in first["gates"])
    logits = load_runner(read_artifact(made["root"]), "cpu", 1)(data.test.images[[3, 17]]).astype(np.float64)
    powers = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [one["networks"][0]["probability"] for one in found["images"]] == pytest.approx(powers.max(axis=1).tolist(), rel=1e-5)


def test_a_network_and_its_export_have_the_same_gates_and_evidence(
    capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path
) -> None:
    graph = made["graph"] / "model.onnx"
    found = explained(capfd, made, tmp_path, str(made["pruned"]), str(made["graph"]), str(graph), "--index", "5", "--blocks", "all")
    [image] = found["images"]
    kinds = ["pruned 70% (network ", "pruned 70% (graph ", made["graph"].name]
    assert all(one["network"].startswith(kind) for one, kind in zip(image["networks"], kinds, strict=True))
    for one in image["networks"][1:]:
        assert all(gate["mean_difference"] < 1e-5 for gate in one["gates"])
        assert one["evidence"]["correlation"] > 0.9999
        assert one["probability"] == pytest.approx(image["networks"][0]["probability"], abs=1e-5)


def test_by_default_the_misread_images_of_which_the_first_network_is_surest(
    capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path
) -> None:
    found = explained(capfd, made, tmp_path, str(made["root"]))["images"]
    test, logits = (
        load_data("digits").test,
        load_runner(read_artifact(made["root"]), "cpu", 1)(load_data("digits").test.images).astype(np.float64),
    )
    sure = np.exp(logits).max(axis=1) / np.exp(logits).sum(axis=1)
    wrong = [index for index in np.argsort(-sure) if logits[index].argmax() != test.labels[index]]
    assert [one["index"] for one in found] == wrong[:8]
    both = explained(capfd, made, tmp_path, str(made["root"]), "--index", "2", "--misread", "1")["images"]
    assert [one["index"] for one in both] == [2, wrong[0]]


def test_a_network_that_misreads_none_shows_what_it_is_least_sure_of() -> None:
    images = np.zeros((3, 1, 2, 2), np.uint8)
    logits = np.float32([[5, 0], [1, 0], [0, 3]])
    test = SimpleNamespace(images=images, labels=np.array([0, 0, 1]))
    project: Any = SimpleNamespace(data=SimpleNamespace(test=test), console=SimpleNamespace(progress=lambda *told: None))
    chosen, remarks = _most_misread(
        project, Looked(name="net", run=lambda images: logits, sure=lambda images: softmax(logits), gates=lambda images: []), 2
    )
    assert chosen == [1, 2]
    assert remarks == ["net misreads none of the 3 test images; these are the ones it is least sure of"]


def test_a_network_without_gates_is_said_to_have_none(capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "explain.png"
    code, text, _ = run(capfd, "explain", "--runs", str(made["runs"]), "--model", "emnist", "--misread", "1", "--out", str(out))
    assert code == 0
    assert text.splitlines()[-2:] == ["no network here has attention gates; only evidence is drawn", f"picture: {out}"]
    assert "Gates" not in text


def test_the_table_has_a_row_per_gate(
    capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["--runs", str(made["runs"]), "--index", "0", "--out", str(tmp_path / "explain.png")]
    code, text, _ = run(capfd, "explain", "--model", "k49", *arguments)
    assert code == 0
    assert "evidence: correlation with fp32" in text
    assert [line[:9] for line in text.splitlines() if line.startswith(("channel", "spatial"))] == GATES


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--index", "359"], "index (=359) must lie in 0 to 358; digits has 359 test images"),
        (["--index", "-1"], "index (=-1) must lie in 0 to 358"),
        (["--misread", "-2"], "misread (=-2) must lie in 1 to 240; 8 is the default"),
        (["--misread", "240"], "images (=240) times networks (=3) is 720 rows, at most 240 fit; choose fewer"),
        (["none"], "none: there is no such file; name an .onnx file or the folder of an artifact"),
        (["{folder}"], "is not an artifact: it has no artifact.json"),
        (["{root}", "--from", "{root}"], "exclude --from, --weights and --pretrained; leave one of them out"),
        (["{graph}/model.onnx"], "does not say which images to measure it with; name them with --data"),
        (["{graph}/vectors.npz", "--data", "digits"], "no ONNX file at all"),
        (["--from", "{runs}"], "is not an artifact"),
        (["--blocks", "first"], "blocks (=first) must be some or all"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], line: str, capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path
) -> None:
    given = [one.format(**made) for one in arguments]
    code, out, err = run(capfd, "explain", "--model", "k49", "--runs", str(made["runs"]), "--out", str(tmp_path / "a.png"), *given)
    assert code == 2
    assert line in err and len(err.splitlines()) == 1
    assert not out and not list(tmp_path.iterdir())


def seen(*networks: list[Gate], channels: int = 1, truth: str = "か", labels: str = "かゐ") -> Seen:
    image = np.random.default_rng(0).integers(0, 256, (channels, 8, 6), dtype=np.uint8)
    evidence = np.linspace(-1, 1, 48).reshape(8, 6)
    views = tuple(
        View(network=f"net {n}", label=labels[n % 2], probability=0.5, gates=tuple(gates), for_truth=evidence, for_label=-evidence)
        for n, gates in enumerate(networks)
    )
    return Seen(index=1, image=image, truth=truth, views=views)


def spatial(*rows: list[float]) -> Gate:
    return Gate(kind="spatial", values=np.array(rows, np.float32))


CHANNEL = Gate(kind="channel", values=np.float32([0.1, 0.9, 0.4]))


def test_of_each_size_the_gate_that_varies_most_is_shown() -> None:
    gates = [CHANNEL, spatial([0.5, 0.6]), spatial([0.1, 0.9]), spatial([1.0, 1.0]), spatial([0.2], [0.3])]
    assert shown_gates([seen(gates)], every=False) == [2, 4]
    assert shown_gates([seen(gates)], every=True) == [1, 2, 3, 4]
    assert gate_names(gates) == ["channel 1", "spatial 1", "spatial 2", "spatial 3", "spatial 4"]


@pytest.mark.parametrize("channels", [1, 3])
def test_networks_of_unlike_gates_and_any_class_name_are_drawn(channels: int, tmp_path: Path) -> None:
    """Kana without a font, no gates at all, fewer gates, gates of another kind in their place: no warning; a row more is 1.22 inches."""
    networks = [[], [CHANNEL, spatial([0.5, 0.6])], [CHANNEL], [spatial([0.5, 0.6]), CHANNEL]]
    draw_maps([seen(*networks, channels=channels)], tmp_path / "four.png")
    draw_maps([seen(*networks[:3], channels=channels, truth="$x_1")], tmp_path / "three.png", every=True)
    with Image.open(tmp_path / "four.png") as four, Image.open(tmp_path / "three.png") as three:
        assert four.height - three.height == pytest.approx(110 * 1.22, abs=1)
        assert four.width == three.width
