"""Graphs compiled for `compress benchmark --runtime c`: they answer as ONNX Runtime does, and where there is none the row says why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_folders import HEIGHT, WIDTH, net
from compiled_c import needs_gcc
from stand_ins import Commands

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.runtimes import Candidate, open_model
from compress.stages import benchmark
from compress.stages.boards import library as boards_library
from compress.stages.boards.library import compiled, written


def silent(label: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def candidate(path: Path, folder: Path, **how: Any) -> Candidate:
    [made] = compiled([Candidate(name="net", path=path, runtime="c", **how)], folder, silent)
    return made


@needs_gcc
@pytest.mark.parametrize(
    "how", [{}, {"end": "both"}, {"channels": 3, "floats": True, "last": True}, {"channels": 3, "floats": True}], ids=str
)
def test_it_answers_as_onnx_runtime_alone_and_in_a_batch(how: dict[str, Any], tmp_path: Path) -> None:
    path, normal = net(tmp_path / "net.onnx", **how), {"mean": (0.5,), "std": (0.25,)} if how.get("floats") else {}
    shape = (how.get("channels", 1), HEIGHT, WIDTH)
    ours = open_model(candidate(path, tmp_path, **normal), shape, 3, threads=1)
    theirs = open_model(Candidate(name="net", path=path, **normal), shape, 3, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (7, *shape), np.uint8)
    expected = theirs.predict(images)
    np.testing.assert_allclose(ours.predict(images), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(np.concatenate([ours.predict(one[None]) for one in images]), ours.predict(images))
    if how.get("end"):
        assert ours.probabilities is not None and theirs.probabilities is not None
        np.testing.assert_allclose(ours.probabilities(images), theirs.probabilities(images), rtol=0, atol=1e-6)
    else:
        assert ours.probabilities is None


@needs_gcc
def test_of_other_tasks_it_gives_every_output(tmp_path: Path) -> None:
    path = net(tmp_path / "net.onnx", end="both")
    image = np.random.default_rng(0).integers(0, 256, (1, 1, HEIGHT, WIDTH), np.uint8)
    both = [open_model(one, (1, HEIGHT, WIDTH), None, threads=1).predict(image) for one in
            (candidate(path, tmp_path, whole=True), Candidate(name="net", path=path, whole=True))]  # fmt: skip
    for one, other in zip(*both, strict=True):
        assert one.shape == other.shape == (1, 3)
        np.testing.assert_allclose(one, other, rtol=1e-5)


@needs_gcc
def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"does not fit images of shape \(1, 9, 9\)"):
        open_model(candidate(net(tmp_path / "net.onnx"), tmp_path), (1, 9, 9), 3, threads=1)


def measured(run: Commands, *files: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = run.done("benchmark", *files, "--runtime", "onnxruntime", "--runtime", "c", "--quick", "--samples", "3", "--rounds", "1")
    return {(one["name"], one["runtime"]): one for one in found["variants"]}


@needs_gcc
def test_a_benchmark_has_rows_of_c_beside_those_of_onnx_runtime(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of such a row is that of the library; a graph that cannot be C says by which node, and stops no other."""
    monkeypatch.chdir(tmp_path)
    net(Path("net.onnx"))
    net(Path("odd.onnx"), odd="Sin")
    rows = measured(run, "net.onnx", "odd.onnx")
    one = rows["net", "c"]
    assert one["reason"] is None and one["latency"]["p50"] > 0 and one["speedup"]["low"] > 0
    assert one["size_bytes"] != rows["net", "onnxruntime"]["size_bytes"]
    assert rows["odd", "c"]["reason"].startswith('node "the odd one" (Sin) cannot be written as C: ')
    assert rows["odd", "onnxruntime"]["reason"] is None


def test_without_a_compiler_the_row_says_so(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    net(Path("net.onnx"))
    rows = measured(run, "net.onnx")
    assert rows["net", "c"]["reason"] == "no C compiler" and rows["net", "onnxruntime"]["reason"] is None


def test_what_the_compiler_says_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cc = tmp_path / "gcc"
    cc.write_text("#!/bin/sh\necho 'net.c:1:1: error: no room' >&2\nexit 1\n")
    cc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert candidate(net(tmp_path / "net.onnx"), tmp_path / "new").compiled == "gcc: net.c:1:1: error: no room"


def test_a_candidate_that_nobody_compiled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="it was not compiled"):
        open_model(Candidate(name="net", path=net(tmp_path / "net.onnx"), runtime="c"), (1, HEIGHT, WIDTH), 3, threads=1)


@needs_gcc
def test_another_compiler_measures_again_where_c_is_measured_and_nowhere_else(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net(Path("net.onnx"))
    quick = ("--quick", "--samples", "3", "--rounds", "1")

    def artifacts() -> list[str]:
        runtimes: list[tuple[str, ...]] = [("--runtime", "onnxruntime"), ("--runtime", "onnxruntime", "--runtime", "c")]
        return [run.done("benchmark", "net.onnx", *runtime, *quick)["artifact"] for runtime in runtimes]

    plain, in_c = artifacts()
    assert artifacts() == [plain, in_c]
    monkeypatch.setattr(benchmark, "toolchain", lambda: {"compiler": "gcc: 99"})
    again = artifacts()
    assert again[0] == plain and again[1] != in_c


@needs_gcc
@pytest.mark.parametrize(("factor", "told"), [(1.0, ""), (np.nan, "by inf of the largest number"), (1.01, "by 0.01 of the largest number")])
def test_nothing_and_a_hundredth_too_much_are_told_from_what_is_right(
    factor: float, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = boards_library.open_compiled

    def scaled(*arguments: Any, **how: Any) -> Any:
        every, *others = real(*arguments, **how)
        return (lambda images: tuple(part * np.float32(factor) for part in every(images)), *others)

    monkeypatch.setattr(boards_library, "open_compiled", scaled)
    found = boards_library.library(net(tmp_path / "net.onnx"), tmp_path / "new")
    assert told in found if isinstance(found, str) else told == ""


@needs_gcc
def test_c_that_answers_otherwise_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the weights had been written otherwise: the file of another network is asked."""
    path = net(tmp_path / "net.onnx")
    monkeypatch.setattr(boards_library, "written", lambda file: written(net(tmp_path / "other.onnx", end="Softmax")))
    told = boards_library.library(path, tmp_path / "new")
    assert isinstance(told, str) and told.startswith("the C answers otherwise than ONNX Runtime, by ")
