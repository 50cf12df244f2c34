"""Models whose right answer is known without running them, and results made up by hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress.benchmarks.accuracy import ScoreInterval
from compress.benchmarks.answers import as_text
from compress.benchmarks.gauges import Turn
from compress.benchmarks.results import Measurement, Result
from compress.benchmarks.statistics import Interval, Latency, Speedup
from compress.benchmarks.sweep import Sweep

CLASSES, IMAGES = 3, 30_000
TRUTH = np.arange(IMAGES) % CLASSES


@pytest.fixture
def pixel_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes an ONNX file whose logit k is pixel number `offset` + k, so that its answer is the brightest of three pixels.

    It takes `(batch, 1, 4, 4)` of the given type; `scale` multiplies the logits, `work` puts needless 200x200 products beside them.
    """

    def make(name: str, *, offset: int = 0, batch: Any = "B", kind: int = TensorProto.UINT8, scale: float = 1.0, work: int = 0) -> Path:
        weights = np.zeros((16, CLASSES), np.float32)
        weights[range(offset, offset + CLASSES), range(CLASSES)] = scale
        constants = {"weights": weights, "flat": np.array([-1, 16], np.int64), "square": np.full((200, 200), 1e-3, np.float32)}
        nodes = [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["float", "flat"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "weights"], ["read"]),
            helper.make_node("ReduceMax", ["float"], ["load0"], keepdims=0),
            helper.make_node("Mul", ["square", "load0"], ["heavy0"]),
        ]
        nodes += [helper.make_node("MatMul", [f"heavy{i}", "square"], [f"heavy{i + 1}"]) for i in range(work)]
        nodes += [
            helper.make_node("ReduceMax", [f"heavy{work}"], ["most"], keepdims=0),
            helper.make_node("Min", ["most", "zero"], ["nothing"]),
            helper.make_node("Add", ["read", "nothing"], ["logits"]),
        ]
        constants["zero"] = np.array(0, np.float32)
        graph = helper.make_graph(
            nodes,
            "pixels",
            [helper.make_tensor_value_info("images", kind, [batch, 1, 4, 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
            [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        return path

    return make


def samples(*launches: float) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Two rounds of two calls in each launch, which takes so many seconds per call."""
    return tuple(((round(1e9 * seconds),) * 2,) * 2 for seconds in launches)


def measurement(
    name: str, p50: float = 1e-3, *, balanced: float = 0.97, ratio: tuple[float, float, float] | None = None, **other: Any
) -> Measurement:
    """A candidate measured at `p50` seconds; `ratio` is its speedup with its interval; its answers are those of `balanced`."""
    made = Measurement(
        name=name,
        runtime="onnxruntime",
        device="cpu",
        stage="export",
        artifact="0123abcd",
        file="model.onnx",
        path=f"runs/{name}/model.onnx",
        facts={"params": 258_123, "nonzeros": 51_625, "macs": 24_000_000},
        size_bytes=1_000_000,
        gzip_bytes=900_000,
        reason=None,
        providers=("CPUExecutionProvider",),
        latency=Latency(p50=p50, low=0.99 * p50, high=1.01 * p50, p90=1.2 * p50, p99=None, samples=100),
        speedup=Speedup(**dict(zip(("value", "low", "high"), ratio or (1.0, 1.0, 1.0), strict=True))),
        placement={"CPUExecutionProvider": {"Conv": 66, "Gemm": 1}},
        load=Interval(value=0.02, low=0.019, high=0.021),
        first=Interval(value=0.003, low=0.002, high=0.004),
        sweeps=tuple(
            Sweep(batch=batch, threads=1, latency=Interval(value=seconds, low=0.9 * seconds, high=1.1 * seconds), samples_ns=((1, 2), (3,)))
            for batch, seconds in ((1, p50), (8, 4 * p50))
        ),
        memory_bytes=70_000_000,
        activation_bytes=150_528,
        energy=0.0125,
        peak_share=0.48,
        scores={"accuracy": balanced + 0.001, "balanced_accuracy": balanced},
        intervals={"balanced_accuracy": ScoreInterval(value=balanced, low=balanced - 0.003, high=balanced + 0.004)},
        answers=answering(round(max(0.0, 0.97 - balanced) * IMAGES), round(max(0.0, balanced - 0.97) * IMAGES)),
        agreement=1.0,
        warmup_ns=(1, 2),
        samples_ns=samples(p50, p50, p50),
        turns=(Turn(wall_ns=9, thread_ns=8, stolen_ms=None, khz=None, energy_uj=None),) * 4,
        load_ns=(1, 2),
        first_ns=(3, 4),
    )
    return dataclasses.replace(made, **other)


def unmeasured(name: str, reason: str, **other: Any) -> Measurement:
    """A candidate that could not be measured: nothing is known but what it is and how large."""
    known = ("runtime", "device", "stage", "artifact", "file", "facts", "size_bytes", "gzip_bytes")
    like = measurement(name, **other)
    return Measurement(name=name, reason=reason, **{field: getattr(like, field) for field in known})


def answering(lost: int = 0, gained: int = 0) -> str:
    """Answers to the 30,000 images of `result`: of the 900 that the baseline misreads so many are gained, and so many others are lost."""
    read = np.arange(IMAGES) >= 900 - gained
    read[900 : 900 + lost] = False
    return as_text(np.where(read, TRUTH, (TRUTH + 1) % CLASSES), CLASSES)


def result(*measurements: Measurement, baseline: int = 0, **machine: Any) -> Result:
    return Result(
        created="2026-01-02T03:04:05+00:00",
        machine={"cpu": "Toy CPU", "flags": ["avx2"], "libraries": {"numpy": "2.4"}, **machine},
        data={
            "name": "toy",
            "network": "k49",
            "fingerprint": "f00d",
            "images": IMAGES,
            "classes": CLASSES,
            "class_names": ["あ", "|b|", "<c>"],
        },
        settings={"threads": 1, "batch": 1, "launches": 2, "rounds": 2, "samples": 2, "seed": 0, "warm_up": "none"},
        peak=5e10,
        energy="RAPL, packages: 1",
        baseline=baseline,
        measurements=measurements,
        labels=as_text(TRUTH, CLASSES),
    )


@pytest.fixture
def made() -> Any:
    """The functions above, for tests that pytest imports without a package."""

    class Made:
        one = staticmethod(measurement)
        missing = staticmethod(unmeasured)
        result = staticmethod(result)
        answering = staticmethod(answering)
        samples = staticmethod(samples)

    return Made
