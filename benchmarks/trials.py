"""Tries the benchmark on pairs whose right answer is known, and counts how often it finds it.

::

    python -m compress.benchmarks.trials --trials 40 --out trials       (a made-up network, or --model FILE.onnx)

Each trial is one whole benchmark, as ``compress benchmark`` does it, of a model, the same file once more (A/A: neither is faster), and the
model with about 10% of work added: a branch of small matrix products whose result, always zero, is added to the logits, so that no
optimiser can leave it out and no answer changes. How much slower that really is, is measured before, by a benchmark of 30 launches that the
trials have no part in. Written are ``trials.json`` (after each trial) and ``trials.md``, the table for ``docs/experiments.md``.

Neighbouring trials also stand for ``compress compare``: the same file then and now, and then the slowed one, unpaired.

Refused: a model whose input or output has no fixed shape but for the batch, fewer than one trial. Needs the ``onnx`` package, to write
models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .compare import unpaired_speedup
from .errors import BenchmarkError
from .records import BenchmarkConfig
from .results import Measurement, Result
from .run import run_benchmark
from .runtimes import Candidate
from .statistics import MOST_LAUNCHES, Speedup
from .verdict import is_faster, is_slower

SIDE = 48  # of the square matrices in the added branch: small steps, and little cache taken from the model
SLOWER = 1.10
CI_LIMIT = 1.05  # what `compress compare --fail-if-slower 5%` allows


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one benchmark said of the model against itself, and of the slowed one; unpaired: against the trial before, if there is one."""

    same: Speedup
    same_verdict: str
    slowed: Speedup
    slowed_verdict: str
    unpaired_same: Speedup | None
    unpaired_slowed: Speedup | None


def make_model(path: Path) -> None:
    """Write a small convolutional network with fixed random weights: uint8 ``(B, 1, 28, 28)`` to ten logits, 15 million MACs."""
    from onnx import TensorProto, helper, numpy_helper, save

    generator = np.random.default_rng(0)
    shapes = {"first": (32, 1, 3, 3), "second": (64, 32, 3, 3), "last": (64, 10)}
    weights = {name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["pixels", "first"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("GlobalAveragePool", ["d"], ["e"]),
            helper.make_node("Flatten", ["e"], ["f"]),
            helper.make_node("MatMul", ["f", "last"], ["logits"]),
        ],
        "trial",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def slow_down(source: Path, target: Path, products: int) -> None:
    """Write ``source`` with a branch of ``products`` matrix products added that changes no logit.

    The brightest value of the input, which is not below zero, times a constant matrix above zero, times that matrix again and again; the
    smaller of the result's largest value and zero is zero, and is added to the logits.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(source)
    graph, output = model.graph, model.graph.output[0].name
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["trial.logits" if name == output else name for name in names]
    square = np.full((SIDE, SIDE), 1 / SIDE, np.float32)  # its rows sum to 1: nothing grows, nothing dwindles
    constants: dict[str, np.ndarray] = {"trial.square": square, "trial.zero": np.zeros((), np.float32), "trial.all": np.array([-1])}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Cast", [graph.input[0].name], ["trial.float"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["trial.float", "trial.all"], ["trial.flat"]),
            helper.make_node("ReduceMax", ["trial.flat"], ["trial.brightest"], keepdims=0),
            helper.make_node("Mul", ["trial.square", "trial.brightest"], ["trial.0"]),
            *(helper.make_node("MatMul", [f"trial.{i}", "trial.square"], [f"trial.{i + 1}"]) for i in range(products)),
            helper.make_node("ReduceMax", [f"trial.{products}"], ["trial.most"], keepdims=0),
            helper.make_node("Min", ["trial.most", "trial.zero"], ["trial.nothing"]),
            helper.make_node("Add", ["trial.logits", "trial.nothing"], [output]),
        ]
    )
    onnx.save(model, target)


def shape_of(path: Path) -> tuple[tuple[int, int, int], int]:
    """``(C, H, W)`` of the images that a model takes, and K, the number of logits it gives.

    Raises:
        BenchmarkError: it does not say so in numbers.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise BenchmarkError(f"model (={path}) does not exist; name an .onnx file, or leave it out")
    try:
        graph = onnx.load(path).graph
    except DecodeError:
        raise BenchmarkError(f"model (={path}) is truncated or no ONNX file; name a whole one") from None
    entry, logits = (
        [dim.dim_value for dim in value[0].type.tensor_type.shape.dim] if value else [] for value in (graph.input, graph.output)
    )
    if len(entry) != 4 or len(logits) != 2 or not all((*entry[1:], logits[1])):
        raise BenchmarkError(f"model (={path}) must map (B, C, H, W) to (B, K) with all but B in numbers; export it so")
    return (entry[1], entry[2], entry[3]), logits[1]


def benchmark(files: Mapping[str, Path], config: BenchmarkConfig) -> Result:
    """Measure the files on random images; the first is the baseline."""
    shape, classes = shape_of(next(iter(files.values())))
    images = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
    candidates = [Candidate(name=name, path=path) for name, path in files.items()]
    labels = np.zeros(len(images), np.int64)
    result = run_benchmark(candidates, images, labels, classes, _score, config, baseline=candidates[0].name, data={"name": "random images"})
    for one in result.measurements:
        if one.reason is not None:
            raise BenchmarkError(f"model (={one.name}) was not measured: {one.reason}; try another")
        assert one.agreement == 1, "the added branch changes no answer"
    return result


def calibrate(model: Path, folder: Path, config: BenchmarkConfig) -> tuple[Path, int]:
    """Write the model slowed by about 10%; returns the file and the number of products it took.

    What a branch costs is a line through two lengths of it: 8 products for 20 microseconds and 24 for 52 are 2 each, and 4 for the rest.
    """
    files = {"model": model} | {str(products): folder / f"slowed-{products}.onnx" for products in (8, 24)}
    for products in (8, 24):
        slow_down(model, files[str(products)], products)
    base, short, long = (one.latency.p50 for one in benchmark(files, config).measurements if one.latency)
    needed = max(1, round(8 + (SLOWER * base - short) / max((long - short) / 16, 1e-9)))
    for path in list(files.values())[1:]:
        path.unlink()
    target = folder / "slowed.onnx"
    slow_down(model, target, needed)
    return target, needed


def run_trial(files: Mapping[str, Path], config: BenchmarkConfig, before: Result | None) -> tuple[Trial, Result]:
    """One benchmark of the model, itself and the slowed one."""
    result = benchmark(files, config)
    _, same, slowed = result.measurements
    assert same.speedup is not None and slowed.speedup is not None, "all were measured"
    first = None if before is None else _samples(before.measurements[0])
    trial = Trial(
        same=same.speedup,
        same_verdict=_verdict(same),
        slowed=slowed.speedup,
        slowed_verdict=_verdict(slowed),
        unpaired_same=None if first is None else unpaired_speedup(first, _samples(result.measurements[0])),
        unpaired_slowed=None if first is None else unpaired_speedup(first, _samples(slowed)),
    )
    return trial, result


def summary(trials: Sequence[Trial], truth: Speedup) -> dict[str, dict[str, float | int]]:
    """How often what was said, for each kind of pair; ``truth`` is the true speedup of the slowed model."""

    def counts(found: Sequence[Speedup], verdicts: Sequence[str], true: float) -> dict[str, float | int]:
        return {
            "true speedup": round(true, 4),
            "pairs": len(found),
            **{verdict: list(verdicts).count(verdict) for verdict in ("faster", "slower", "unclear")},
            "interval without 1": sum(not one.low <= 1 <= one.high for one in found),
            "interval holds the truth": sum(one.low <= true <= one.high for one in found),
            "median width, %": round(100 * float(np.median([one.high / one.low - 1 for one in found])), 2) if found else 0,
        }

    unpaired = {
        "the same file, two runs": ([one.unpaired_same for one in trials if one.unpaired_same], 1.0),
        "slowed, two runs": ([one.unpaired_slowed for one in trials if one.unpaired_slowed], truth.value),
    }
    return {
        "the same file": counts([one.same for one in trials], [one.same_verdict for one in trials], 1.0),
        "slowed": counts([one.slowed for one in trials], [one.slowed_verdict for one in trials], truth.value),
        **{
            # Two runs are judged as in CI: slower only if surely by more than 5%.
            name: counts(found, ["slower" if one.high < 1 / CI_LIMIT else "unclear" for one in found], true)
            for name, (found, true) in unpaired.items()
        },
    }


def markdown(counted: Mapping[str, Mapping[str, float | int]], about: Mapping[str, Any]) -> str:
    """The table for ``docs/experiments.md``."""
    columns = list(next(iter(counted.values())))
    lines = [f"| pair | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(str(row[column]) for column in columns)} |" for name, row in counted.items()]
    truth, machine = about["truth"], about["machine"]
    words = (
        f"True speedup of the slowed model: {truth['value']:.4f} ({truth['low']:.4f} to {truth['high']:.4f}), from "
        f"{about['truth_launches']} launches; {about['products']} products of {SIDE}x{SIDE} added to {about['p50_ms']:.3f} ms.",
        f"Two runs are called slower only beyond {CI_LIMIT:g}x.",
        f"{machine.get('cpu', 'unnamed CPU')}, onnxruntime {machine['libraries']['onnxruntime']}, {about['created']}.",
    )
    return "\n".join([*lines, "", *words]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m compress.benchmarks.trials", description="How often the benchmark is right.")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--model", type=Path, help="an .onnx file; without one a small network is made up")
    parser.add_argument("--out", type=Path, default=Path("trials"), help="folder for trials.json and trials.md")
    parser.add_argument("--launches", type=int, default=BenchmarkConfig.launches)
    parser.add_argument("--truth-launches", type=int, default=MOST_LAUNCHES)
    given = parser.parse_args(arguments)
    try:
        run_trials(given.trials, given.model, given.out, given.launches, given.truth_launches)
    except BenchmarkError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    return 0


def run_trials(trials: int, model: Path | None, folder: Path, launches: int, truth_launches: int) -> None:
    """Calibrate, measure the truth, run the trials and write what was found."""
    if trials < 1:
        raise BenchmarkError(f"trials (={trials}) must be at least 1; 40 is the default")
    if wrong := [one for one in (launches, truth_launches) if not 2 <= one <= MOST_LAUNCHES]:
        raise BenchmarkError(f"launches (={wrong[0]}) must lie in 2 to {MOST_LAUNCHES}; an interval needs two, 5 is the default")
    config = BenchmarkConfig(launches=launches, sweeps=False)
    folder.mkdir(parents=True, exist_ok=True)
    source = model or folder / "model.onnx"
    if model is None:
        make_model(source)
    shape_of(source)  # refuses a wrong file before anything is made of it
    slowed, products = calibrate(source, folder, config)
    long = benchmark(
        {"model": source, "slowed": slowed}, dataclasses.replace(config, launches=truth_launches, rounds=4 * config.rounds, seed=10_000)
    )
    latency, truth = long.measurements[0].latency, long.measurements[1].speedup
    assert latency is not None and truth is not None, "both were measured"
    about: dict[str, Any] = {
        "created": long.created,
        "machine": long.machine,
        "settings": {**long.settings, "launches": launches},
        "truth": dataclasses.asdict(truth),
        "truth_launches": truth_launches,
        "products": products,
        "p50_ms": 1e3 * latency.p50,
    }
    done: list[Trial] = []
    before: Result | None = None
    for number in range(trials):
        trial, before = run_trial({"model": source, "itself": source, "slowed": slowed}, dataclasses.replace(config, seed=number), before)
        done.append(trial)
        counted = summary(done, truth)
        record = about | {"summary": counted, "trials": [dataclasses.asdict(one) for one in done]}
        (folder / "trials.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (folder / "trials.md").write_text(markdown(counted, about), encoding="utf-8")
        sys.stderr.write(f"{number + 1} of {trials}: itself {trial.same_verdict}, slowed {trial.slowed_verdict}\n")


def _verdict(one: Measurement) -> str:
    return "faster" if is_faster(one) else "slower" if is_slower(one) else "unclear"


def _samples(one: Measurement) -> np.ndarray:
    return np.array(one.samples_ns, np.int64)


def _score(labels: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
    return {"balanced_accuracy": float(np.mean(labels == predictions))}


if __name__ == "__main__":
    sys.exit(main())
