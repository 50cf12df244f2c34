"""Tables for people. The truth is written by hand."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from c_folders import graph_artifact
from stand_ins import recorded

from compress.artifacts.artifact import Artifact, InputSpec, Manifest
from compress.artifacts.parts import Metrics, Model
from compress.benchmarks.results import LayerZeros
from compress.cli.tables import artifact_text, next_commands, table


def text(folder: Path, layers: list[dict[str, Any]]) -> str:
    (folder / "weights.safetensors").write_bytes(b"")
    model = Model(reference="k49", options={}, source=None)
    about: dict[str, Any] = {"model": model, "input": InputSpec(), "classes": (), "config": {"sparsity": 0.5}, "data": recorded("digits")}
    metrics = Metrics(layers=tuple(LayerZeros(**layer) for layer in layers)) if layers else Metrics()
    manifest = Manifest(kind="network", stage="prune", key="", metrics=metrics, **about)
    return artifact_text(Artifact(path=folder, manifest=manifest))


def test_layers_of_a_pruned_network_from_the_densest_to_the_sparsest(tmp_path: Path) -> None:
    layers = [{"name": "a.weight", "weights": 1200, "nonzeros": 300}, {"name": "b", "weights": 9, "nonzeros": 9}]
    assert text(tmp_path, layers).splitlines()[-6:] == [
        "",
        "layer   weights   nonzeros   sparsity",
        "─────────────────────────────────────",
        "b       9         9          0.00%",
        "a       1,200     300        75.00%",
        "Zeros make the gzipped file smaller. Dense runtimes run no faster for them, and the file on disk is no smaller.",
    ]
    assert "sparsity" not in text(tmp_path, [])


def test_of_many_layers_the_two_ends_are_shown(tmp_path: Path) -> None:
    layers = [{"name": f"conv{number}.weight", "weights": 100, "nonzeros": number} for number in range(31)]
    names = [line.partition("  ")[0] for line in text(tmp_path, layers).splitlines()[5:-1]]
    densest, sparsest = [f"conv{number}" for number in (30, 29, 28, 27, 26)], [f"conv{number}" for number in (4, 3, 2, 1, 0)]
    assert names == [*densest, "... 21 more, --json has all", *sparsest]
    # One line more would be saved at best: eleven are shown.
    assert "more" not in text(tmp_path, layers[:11])


def test_what_does_not_fit_is_wrapped_between_words_and_spare_columns_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"variant": "pruned 70%, static int8", "runtime": "onnxruntime cpu", "p50": "0.873 ms", "p90": "1.080 ms", "size": "98.6 kB"}
    monkeypatch.setenv("COLUMNS", "100")
    assert len(table([row], spare=("p90",)).splitlines()) == 3 and "1.080 ms" in table([row], spare=("p90",))
    monkeypatch.setenv("COLUMNS", "50")
    narrow = table([row], spare=("p90", "size"))
    assert "p90" not in narrow and "98.6 kB" in narrow
    assert all(word in narrow for word in ("onnxruntime", "0.873 ms", "pruned", "static")), "no word is cut"
    assert max(map(len, narrow.splitlines())) <= 50


def test_the_next_commands_can_be_pasted(tmp_path: Path) -> None:
    artifact = graph_artifact(tmp_path / "my runs")
    quantize, verify = next_commands(artifact)
    assert shlex.split(quantize) == ["compress", "quantize", "--from", str(artifact.path), "--runs", str(tmp_path / "my runs")]
    assert shlex.split(verify) == ["compress", "verify", str(artifact.path)]


def test_where_things_usually_lie_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifact = graph_artifact(Path("runs"))
    assert next_commands(artifact)[0] == f"compress quantize --from {artifact.path}"


def test_a_table_that_is_wrapped_loses_no_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = [
        {"variant": "fp32", "p50": "0.0463 ms (?)", "speedup (95%)": "0.10 (0.10 to 0.10)", "balanced acc.": "14.29%", "size": "8.25 kB"}
    ]
    lines = table([one | {"gzipped": "6.76 kB"} for one in rows]).splitlines()
    assert max(map(len, lines)) <= 60
    assert set(" ".join(lines).replace("─", "").split()) >= {"6.76", "kB", "gzipped", "balanced", "0.0463", "speedup"}
