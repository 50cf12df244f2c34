"""A latency table: how long layers of each kind and shape take on one machine, measured once, and what that says of whole networks.

``compress board profile NAME`` measures and writes it; it can be passed on, so that who has no such board can ask it. By hand: where a call
costs 5 us and layers of one kind 1 us and 0.1 ns per multiplication, a network of two of them with 10,000 each takes 5 + 2 (1 + 1) = 9 us.
Of each kind the time is a sum of what ``layer_kinds.features`` says, each times a figure that is not negative, found by least squares of
relative errors.

A graph is what ``codegen.read`` reads of it. What ONNX Runtime computes together with the node before it (ReLU and Clip after a
convolution) or does not compute at all (Reshape) takes nothing. What is foretold is the time of one image on one thread, float32, and no
measurement: docs/experiments.md says how far off it was.

Refused: files that are no such table, and graphs with int8 inside, of whose layers it knows nothing.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ...artifacts.records import read_record
from ...benchmarks.boards.known import THIS, latency_file
from ...benchmarks.machine import Machine
from ...benchmarks.place import Place
from ...benchmarks.statistics import Positive
from ...benchmarks.turns import random_images
from ...errors import CompressError, shown
from .layer_kinds import DIMENSIONS, IMAGE, KINDS, Kind, Layer, chain, features, longer, sampled, weighted

ROUNDS = 6
AT_ONCE = 10  # layers that are timed in turns with each other
LEAST = 1e-9  # seconds, where noise says that a layer takes nothing
FREE = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Constant")
FUSED = ("Relu", "Clip", "LeakyRelu")
CURVED = {"Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Erf", "Gelu", "FastGelu", "QuickGelu", "Exp", "HardSwish", "Softplus", "Elu", "Mish"}
CURVED |= {"LayerNormalization", "InstanceNormalization", "LpNormalization"}
POOLS, MEANS = ("MaxPool", "AveragePool"), ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum")
Size = Annotated[int, Meta(ge=1, le=2**40)]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A layer and the seconds that it takes; there and back where it changes the number of channels."""

    kind: Kind
    weight: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=5)]
    positions: Size
    seconds: Positive

    def __post_init__(self) -> None:
        if len(self.weight) != DIMENSIONS[self.kind]:
            raise CompressError(f"weight (={list(self.weight)}) must be {DIMENSIONS[self.kind]} sizes for {self.kind}")


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """``overhead``: seconds of a call of a graph that computes nothing. ``created``: UTC, ISO 8601."""

    schema: Literal["compress-latency-table"] = "compress-latency-table"
    version: Literal[1] = 1
    created: str
    machine: Machine
    overhead: Positive
    layers: Annotated[tuple[Timed, ...], Meta(min_length=1, max_length=10_000)]

    @cached_property
    def figures(self) -> dict[Kind, NDArray[np.float64]]:
        """For each kind that was measured, what each of its features costs, in seconds."""
        return {kind: _fitted(some) for kind in KINDS if (some := [one for one in self.layers if one.kind == kind])}

    def seconds(self, layer: Layer) -> float:
        """What a layer probably takes."""
        if layer.kind not in self.figures:
            raise CompressError(f"the latency table has no layer of the kind {layer.kind}; run `compress board profile` again")
        return float(features(layer) @ self.figures[layer.kind])

    def of_graph(self, file: Path) -> float:
        """Seconds that one image probably takes in an .onnx file."""
        return self.overhead + sum(map(self.seconds, layers_of(file)))

    @property
    def error(self) -> float:
        """By which factor less one a layer is off in the middle of all, each foretold from the others of its kind."""
        off = []
        for kind in self.figures:
            some = [one for one in self.layers if one.kind == kind]
            for left_out in some if len(some) > 1 else ():
                others = _fitted([one for one in some if one is not left_out])
                off.append(abs(math.log(max(float(_unit(left_out) @ others), LEAST) / left_out.seconds)))
        return math.expm1(float(np.median(off))) if off else 0.0


def read_table(path: Path) -> LatencyTable:
    """The table in a file. Raises CompressError where it is none."""
    return read_record(path, LatencyTable, again="run `compress board profile` again")


def measured(place: Place, progress: Callable[[str, int, int], None], layers: list[Layer] | None = None) -> LatencyTable:
    """Time ``layers``, or :func:`layer_kinds.sampled`, there; some minutes.

    Raises:
        CompressError: onnx is not installed here, which writes the graphs. BenchmarkError: the machine cannot be reached.
    """
    layers, generator = sampled() if layers is None else layers, np.random.default_rng(0)
    images, found, overheads = random_images(IMAGE, True, generator), list[Timed](), list[float]()
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        nothing = _written(Layer(kind="arithmetic", weight=(1,), positions=1), 1, Path(folder))
        for start in range(0, len(layers), AT_ONCE):
            progress("layers timed", start, len(layers))
            some = layers[start : start + AT_ONCE]
            pairs = [[_written(one, count, Path(folder)) for count in (1, 1 + longer(one))] for one in some]
            seconds = place.turns([nothing, *(file for pair in pairs for file in pair)], images, ROUNDS, generator)
            overheads.append(float(np.median(seconds[:, 0])))
            for one, (short, long) in zip(some, seconds[:, 1:].reshape(ROUNDS, -1, 2).transpose(1, 2, 0), strict=True):
                each = float(np.median(long - short)) / longer(one)
                found.append(Timed(kind=one.kind, weight=one.weight, positions=one.positions, seconds=max(each, LEAST)))
    progress("layers timed", len(layers), len(layers))
    return LatencyTable(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=place.machine(),
        overhead=float(np.median(overheads)),
        layers=tuple(found),
    )


def layers_of(file: Path) -> list[Layer]:
    """What takes time in an .onnx file; raises CompressError, see the module."""
    from ...codegen.read import read

    graph = read(file, "as layers of a latency table")
    makers = {output: node for node in graph.nodes for output in node.outputs}
    found = []
    for node in graph.nodes:
        if node.kind in ("QuantizeLinear", "DequantizeLinear") or node.kind.startswith("QLinear"):
            raise CompressError(
                f'{file}: node "{shown(node.name)}" ({node.kind}) is of int8, and a latency table has float32; name the file it was made of'
            )
        out, into = graph.shapes[node.outputs[0]], graph.shapes.get(node.inputs[0], ())
        before = makers.get(node.inputs[0])
        if node.kind in FREE or (
            node.kind in FUSED and before is not None and before.kind == "Conv" and graph.readers[node.inputs[0]] == 1
        ):
            continue
        if node.kind in ("Conv", "ConvTranspose"):
            weight = graph.shapes.get(node.inputs[1]) or np.shape(graph.constants[node.inputs[1]])  # type: ignore[arg-type]
            positions = math.prod((out if node.kind == "Conv" else into)[2:])
            found.append(weighted(tuple(weight), positions))
        elif node.kind in ("Gemm", "MatMul", "FusedMatMul"):
            found.append(weighted((out[-1], into[-1]), math.prod(out[:-1])))
        else:
            kind: Kind = "activation" if node.kind in CURVED else "pool" if node.kind in POOLS else "arithmetic"
            found.append(Layer(kind=kind, weight=(1,), positions=max(1, math.prod(into if node.kind in MEANS else out))))
    return found


def _unit(timed: Timed) -> NDArray[np.float64]:
    """The features of what was timed."""
    layer = Layer(kind=timed.kind, weight=timed.weight, positions=timed.positions)
    return features(layer) + (features(layer.back) if layer.back else 0)


def _fitted(timed: list[Timed]) -> NDArray[np.float64]:
    from scipy.optimize import nnls

    rows = np.array([_unit(one) / one.seconds for one in timed])
    scales = np.maximum(rows.max(axis=0), np.finfo(float).tiny)
    found: NDArray[np.float64] = nnls(rows / scales, np.ones(len(rows)))[0] / scales
    return found


def _written(layer: Layer, count: int, folder: Path) -> Path:
    import onnx

    file = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(chain(layer, count), file)
    return file


def table_for(place: Place, say: Callable[[str], Any]) -> LatencyTable | None:
    """The table of that machine where it was profiled; none where its processor is another one now."""
    path = latency_file(place.name or THIS)
    if place.name.startswith("ssh:") or not path.is_file():
        return None
    found = read_table(path)
    now = place.machine()
    if any(found.machine.get(fact) != now.get(fact) for fact in ("cpu", "architecture")):
        say(f"{path} is of another processor, and not used; run `compress board profile` again")
        return None
    return found
