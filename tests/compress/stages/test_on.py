"""Stages whose files are timed and asked on another machine, which here is this one, over ssh: they answer as they do here."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import Host, host
from torch import nn

import compress
from compress.artifacts.artifact import Artifact, InputSpec
from compress.artifacts.payloads import read_results
from compress.artifacts.project import Silent
from compress.benchmarks.boards.remote import Board
from compress.errors import CompressError
from compress.stages.int8_files import types_of
from compress.stages.sensitivity import _latencies

QUICK: dict[str, Any] = {"quick": True, "rounds": 2, "samples": 5}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host(tmp_path_factory.mktemp("host")) as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{found.client}:{os.environ['PATH']}")
        yield found


def test_verify_and_predict_answer_there_as_here(there: Host, network: compress.Network, graph: Artifact) -> None:
    proof = compress.verify(graph.path, on=there.address)
    assert proof.holds and [one.name for one in proof.checks] == ["hash", "loads", "logits", "answers", "probabilities"]
    assert f"on {there.address}" in proof.checks[1].detail
    assert network.predict(start=graph, random=5, on=there.address) == network.predict(start=graph, random=5)


def test_a_file_that_computes_something_else_is_not_proved_there(there: Host, graph: Artifact, tmp_path: Path) -> None:
    (tmp_path / "vectors.npz").write_bytes((graph.path / "vectors.npz").read_bytes())
    (tmp_path / "model.onnx").write_bytes(graph.payload.read_bytes()[:-500])
    assert [one.name for one in compress.verify(tmp_path, on=there.address).checks if not one.passed] == ["hash", "loads"]


def test_a_choice_made_there_is_one_for_that_machine_and_found_again(there: Host, network: compress.Network, graph: Artifact) -> None:
    made = network.quantize(graph, images=64, on=there.address)
    chosen = made.manifest.metrics.choice
    assert chosen and chosen.verdict.startswith(f"On {there.address} (") and " on this machine" not in chosen.verdict
    assert network.quantize(graph, images=64, on=there.address).path == made.path
    assert compress.verify(made.path, on=there.address).holds


def test_channels_are_removed_by_what_is_fast_there(there: Host, network: compress.Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.benchmarks.place.in_turns", lambda *_: pytest.fail("it was timed here"))
    timed = Board.turns
    # What a goal of so small a network comes to hangs on the machine's other work: it is timed there, and its size is taken for the time.
    monkeypatch.setattr(
        Board, "turns", lambda board, files, *args: 0 * timed(board, files, *args) + [file.stat().st_size for file in files]
    )
    made = network.remove_channels(max_latency=0.9, epochs=0, steps=1, round_to=1, on=there.address)
    assert made.manifest.metrics.gains and made.manifest.metrics.gains.latency
    with pytest.raises(CompressError, match=r"^runtime \(=c\) is compiled for this machine, and on \(=ssh://.*\) is another; leave one of"):
        network.remove_channels(max_latency=0.9, epochs=0, runtime="c", on=there.address)


def test_modules_that_may_be_left_out_are_timed_there() -> None:
    class Place:
        def turns(self, files: list[Path], *_: Any) -> np.ndarray:
            return np.array([[2.0, 1.0]] * 12)

    class Project:
        spec, place, console = InputSpec(shape=(1, 8, 8)), Place(), Silent()

    made = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 3)).eval()
    found = _latencies(Project(), made, ["1"])  # type: ignore[arg-type]
    assert found["1"].value == pytest.approx(0.5)


def test_what_is_explained_is_of_this_machine(there: Host, network: compress.Network, graph: Artifact) -> None:
    with pytest.raises(CompressError, match=r"^explain times nodes on this machine; leave on \(=ssh://.*\) out$"):
        network.explain_int8(graph, on=there.address)


def test_a_benchmark_of_there_has_its_files_alone(there: Host, network: compress.Network, graph: Artifact) -> None:
    result = read_results(network.benchmark(graph.path, on=there.address, **QUICK).artifact.payload)
    assert [(one.runtime, one.device, one.reason) for one in result.measurements] == [("onnxruntime", "cpu", None)]
    assert result.machine["board"] == there.address
    for runtime in ("c", "torch"):
        with pytest.raises(CompressError, match=rf"runtime \(={runtime}\) is not timed on another machine"):
            network.benchmark(graph.path, on=there.address, runtimes=[runtime], **QUICK)


def test_eight_bit_types_are_those_of_the_other_processor(graph: Artifact) -> None:
    class Place:
        def __init__(self, **facts: Any) -> None:
            self.facts = facts

        def machine(self) -> dict[str, Any]:
            return self.facts

    class Project:
        target = None

        def __init__(self, **facts: Any) -> None:
            self.place = Place(**facts)

    for facts, activations, reduced in (
        ({"architecture": "aarch64", "flags": ["asimd"]}, "int8", False),
        ({"architecture": "x86_64", "flags": ["avx2"]}, "uint8", True),
        ({"architecture": "x86_64", "flags": ["avx512_vnni"]}, "uint8", False),
    ):
        found = types_of(Project(**facts))  # type: ignore[arg-type]
        assert found is not None and (found.activations, found.reduce_range) == (activations, reduced)
