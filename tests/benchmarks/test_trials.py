"""The trials: the slowed model answers the same and computes more, and the counting is right. No test asserts on a time."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.benchmarks import place, trials
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.records import BenchmarkConfig
from compress.benchmarks.statistics import Speedup
from compress.benchmarks.trials import SIDE, Trial, main, make_model, shape_of, slow_down, summary


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.mark.parametrize("value", [0, 255, None])
def test_slowed_model_answers_bit_for_bit_the_same(tmp_path: Path, value: int | None) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "slowed.onnx"
    make_model(source)
    slow_down(source, target, 7)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    images = images if value is None else np.full_like(images, value)
    np.testing.assert_array_equal(logits(target, images), logits(source, images))


def test_added_work_survives_the_optimiser(tmp_path: Path) -> None:
    """Of the graph that ONNX Runtime really runs: all 7 products are there, and none has become a constant."""
    make_model(tmp_path / "model.onnx")
    slow_down(tmp_path / "model.onnx", tmp_path / "slowed.onnx", 7)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that such a file suits this machine only
    onnxruntime.InferenceSession(str(tmp_path / "slowed.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    products = [node for node in graph.node if node.op_type == "MatMul" and "trial.square" in node.input]
    assert len(products) == 7
    [square] = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name == "trial.square"]
    assert square.shape == (SIDE, SIDE)


def test_shape_is_read_and_must_be_fixed(tmp_path: Path) -> None:
    make_model(tmp_path / "model.onnx")
    assert shape_of(tmp_path / "model.onnx") == ((1, 28, 28), 10)
    free = onnx.load(tmp_path / "model.onnx")
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    onnx.save(free, tmp_path / "free.onnx")
    with pytest.raises(BenchmarkError, match=r"model \(=.*free.onnx\) must map \(B, C, H, W\) to \(B, K\) with all but B in numbers"):
        shape_of(tmp_path / "free.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "model.onnx").read_bytes()[:1000])
    with pytest.raises(BenchmarkError, match=r"model \(=.*cut.onnx\) is truncated or no ONNX file; name a whole one"):
        shape_of(tmp_path / "cut.onnx")


def speedup(value: float, low: float, high: float) -> Speedup:
    return Speedup(value=value, low=low, high=high)


def test_counting_by_hand() -> None:
    """Three trials, true speedup 0.91: one A/A pair is wrongly called slower, one slowed pair is missed, one interval misses the truth."""
    quiet, wrong = speedup(1.0, 0.99, 1.01), speedup(0.98, 0.97, 0.99)
    found, missed, off = speedup(0.91, 0.90, 0.92), speedup(0.95, 0.89, 1.02), speedup(0.94, 0.93, 0.95)
    nothing = {"unpaired_same": None, "unpaired_slowed": None}
    unpaired = {"unpaired_same": wrong, "unpaired_slowed": found}
    trials = [
        Trial(same=quiet, same_verdict="unclear", slowed=found, slowed_verdict="slower", **nothing),
        Trial(same=wrong, same_verdict="slower", slowed=missed, slowed_verdict="unclear", **unpaired),
        Trial(same=quiet, same_verdict="unclear", slowed=off, slowed_verdict="slower", **unpaired),
    ]
    counted = summary(trials, speedup(0.91, 0.905, 0.915))
    wanted = ("pairs", "faster", "slower", "unclear", "interval without 1", "interval holds the truth")
    assert {name: tuple(row[column] for column in wanted) for name, row in counted.items()} == {
        "the same file": (3, 0, 1, 2, 1, 2),
        "slowed": (3, 0, 2, 1, 2, 2),
        "the same file, two runs": (2, 0, 0, 2, 2, 0),  # 2% slower, surely, but CI allows 5%
        "slowed, two runs": (2, 0, 2, 0, 2, 2),
    }


def test_trials_run_and_write_what_they_found(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In short benchmarks, that do not go on until they know more."""
    usual, asked = trials.run_benchmark, list[BenchmarkConfig]()

    def briefly(*given: Any, **how: Any) -> Any:
        *others, config = given
        asked.append(config)
        return usual(*others, dataclasses.replace(config, time_limit=0, rounds=1, samples=5), **how)

    monkeypatch.setattr(trials, "run_benchmark", briefly)
    monkeypatch.setattr(place, "gemm_peak", lambda threads: 5e10)
    assert main(["--trials", "1", "--launches", "2", "--truth-launches", "2", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert len(found["trials"]) == found["summary"]["slowed"]["pairs"] == 1
    assert found["products"] >= 1 and found["truth"]["low"] <= found["truth"]["value"] <= found["truth"]["high"]
    table = (tmp_path / "out" / "trials.md").read_text().splitlines()
    assert table[2].startswith("| the same file | 1.0 | 1 | ") and table[3].startswith("| slowed | ")
    assert capfd.readouterr().err.startswith("1 of 1: itself ")
    whole = BenchmarkConfig(launches=2, sweeps=False)
    truth = dataclasses.replace(whole, rounds=4 * whole.rounds, seed=10_000)
    assert asked == [whole, truth, whole], "calibration, truth and trial are as `compress benchmark` does it"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--trials", "0"], "trials (=0) must be at least 1; 40 is the default"),
        (["--model", "none.onnx"], "model (=none.onnx) does not exist; name an .onnx file, or leave it out"),
        (["--launches", "1"], "launches (=1) must lie in 2 to 30"),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert not out and line in err and len(err.splitlines()) == 1
