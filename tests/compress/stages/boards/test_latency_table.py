"""Latency tables, on a machine whose layers take what is known by hand: what is measured, what is foretold, what is refused."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.artifacts.records import write_record
from compress.benchmarks.boards.known import latency_file
from compress.benchmarks.place import HERE, Here
from compress.benchmarks.turns import in_turns, random_images
from compress.cli.main import main
from compress.errors import CompressError
from compress.stages.boards.latency_table import LatencyTable, Timed, layers_of, measured, read_table, table_for
from compress.stages.boards.layer_kinds import IMAGE, KINDS, Layer, chain, features, longer, sampled, weighted

FIGURES = {kind: np.array([2e-6, 1e-10, 2e-11, 5e-10, 1e-10]) * (1 + place) for place, kind in enumerate(KINDS)}


def takes(layer: Layer) -> float:
    """What a layer takes there, and back."""
    return sum(float(features(one) @ FIGURES[one.kind]) for one in (layer, layer.back) if one)


def table(layers: Sequence[Layer], overhead: float = 5e-6, **machine: Any) -> LatencyTable:
    timed = tuple(Timed(kind=one.kind, weight=one.weight, positions=one.positions, seconds=takes(one)) for one in layers)
    return LatencyTable(created="2026-01-02T03:04:05+00:00", machine={"cpu": "Toy", **machine}, overhead=overhead, layers=timed)  # type: ignore[typeddict-item]


def net(path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, tuple[int, ...]], shape: tuple[int, ...] = (1, 4, 8, 8)) -> Path:
    constants = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in weights.items()]
    entry = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    end = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "net", [entry], [end], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_kinds_and_features_by_hand() -> None:
    """10 outputs and 3 inputs are blocks of 16 and 8: 16 * 8 * 9 * 4 multiplications for 2 x 2 places."""
    layer = weighted((10, 3, 3, 3), 4)
    assert layer.kind == "conv" and layer.macs == 10 * 27 * 4
    assert features(layer).tolist() == [1, 16 * 8 * 9 * 4, 270, 40, 12]
    assert layer.back == Layer(kind="conv", weight=(3, 10, 3, 3), positions=4)
    deep = weighted((12, 1, 5, 5), 9)
    assert (deep.kind, deep.back, features(deep).tolist()) == ("depthwise", None, [1, 16 * 25 * 9, 300, 108, 9])
    assert [weighted(shape, 1).kind for shape in ((8, 4, 1, 1), (10, 64), (1, 1, 3, 3))] == ["pointwise", "matmul", "conv"]


def test_every_kind_is_measured_in_shapes_that_end() -> None:
    layers = sampled()
    assert {kind: sum(one.kind == kind for one in layers) for kind in KINDS} == dict.fromkeys(KINDS, 20)
    assert all(one.macs <= 2e7 and one.macs * (1 + longer(one)) <= 2e8 for one in layers) and layers == sampled()


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_is_so_many_layers_and_runs(kind: str, tmp_path: Path) -> None:
    layer = next(one for one in sampled() if one.kind == kind and one.positions > 1)
    wanted = {"matmul": "MatMul", "activation": "Sigmoid", "arithmetic": "Add", "pool": "MaxPool"}.get(kind, "Conv")
    times, before = (2 if layer.back else 1), (kind == "arithmetic")
    for count in (1, 3):
        model = chain(layer, count)
        assert sum(node.op_type == wanted for node in model.graph.node) == times * count + before
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, tmp_path / f"{count}.onnx")
    images = random_images(IMAGE, True, np.random.default_rng(0))
    assert in_turns([tmp_path / "1.onnx"], images, 1, np.random.default_rng(0)).shape == (1, 1)
    own = {node.input[1] for node in model.graph.node if node.op_type == wanted and len(node.input) > 1}
    assert kind in ("activation", "pool") or len(own) == 3 * times + before, "weights of their own"


class Toy(Here):
    """Layers take what the figures say, a call 5 us and what goes before and after another 3 us; the clock is a little noisy."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers, self.calls = list(layers), 0

    def turns(self, files: Sequence[Path], images: list[Any], rounds: int, generator: Any, runtime: Any = None) -> Any:
        some, self.layers = self.layers[: len(files) // 2], self.layers[len(files) // 2 :]
        self.calls += 1
        assert images[0].shape == (1, *IMAGE) and images[0].dtype == np.float32
        seconds = [5e-6] + [8e-6 + count * takes(one) for one in some for count in (1, 1 + longer(one))]
        return np.array(seconds) * (1 + 0.001 * generator.standard_normal((rounds, len(seconds))))


def test_a_machine_is_measured_as_it_is() -> None:
    layers, steps = sampled(), list[tuple[str, int, int]]()
    place = Toy(layers)
    found = measured(place, lambda *step: steps.append(step))
    assert found.overhead == pytest.approx(5e-6, rel=0.01) and found.machine == HERE.machine() | {
        "load_average": found.machine["load_average"]
    }
    for one, layer in zip(found.layers, layers, strict=True):
        assert one.seconds == pytest.approx(takes(layer), rel=0.05)
    assert steps[-1] == ("layers timed", 140, 140) and place.calls == 14
    unseen = sampled(seed=1)
    off = [abs(math.log(found.seconds(one) / float(features(one) @ FIGURES[one.kind]))) for one in unseen]
    assert np.median(off) < 0.03 and found.error < 0.05


def test_a_real_machine_is_measured(tmp_path: Path) -> None:
    """Figures are not asserted; larger layers of a kind take longer than those of a hundredth of them."""
    layers = [weighted((64, 64, 3, 3), 16), weighted((64, 64, 3, 3), 400), weighted((8, 8, 3, 3), 16)]
    found = measured(HERE, lambda *_: None, layers)
    small, large, tiny = (one.seconds for one in found.layers)
    assert tiny < small < large and found.overhead > 1e-9
    write_record(tmp_path / "here.json", found)
    assert read_table(tmp_path / "here.json") == found


def test_a_network_is_the_sum_of_its_layers(tmp_path: Path) -> None:
    """A call, a convolution whose ReLU is part of it, a sigmoid, a pool, a mean over 2 x 2, and a linear layer; Flatten takes nothing."""
    conv = helper.make_node("Conv", ["image", "w"], ["a"], pads=[1] * 4)
    nodes = [
        conv,
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["d"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["h"], transB=1),
    ]
    file = net(tmp_path / "net.onnx", nodes, {"w": (6, 4, 3, 3), "g": (10, 6)})
    wanted = [
        Layer(kind="conv", weight=(6, 4, 3, 3), positions=64),
        Layer(kind="activation", weight=(1,), positions=6 * 64),
        Layer(kind="pool", weight=(1,), positions=6 * 4),
        Layer(kind="arithmetic", weight=(1,), positions=6 * 4),
        Layer(kind="matmul", weight=(10, 6), positions=1),
    ]
    assert layers_of(file) == wanted
    known = table(sampled())
    assert known.of_graph(file) == pytest.approx(5e-6 + sum(float(features(one) @ FIGURES[one.kind]) for one in wanted), rel=1e-3)
    alone = net(tmp_path / "relu.onnx", [helper.make_node("Relu", ["image"], ["a"])], {})
    assert layers_of(alone) == [Layer(kind="arithmetic", weight=(1,), positions=256)], "of no convolution's"


def test_int8_and_kinds_that_were_not_measured_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("QuantizeLinear", ["image", "s"], ["a"], name="q"), helper.make_node("DequantizeLinear", ["a", "s"], ["b"])]
    file = net(tmp_path / "int8.onnx", nodes, {"s": ()})
    with pytest.raises(CompressError, match=r'int8.onnx: node "q" \(QuantizeLinear\) is of int8, and a latency table has float32'):
        layers_of(file)
    with pytest.raises(CompressError, match=r"the latency table has no layer of the kind pool; run `compress board profile` again"):
        table([weighted((8, 8), 1)]).seconds(Layer(kind="pool", weight=(1,), positions=4))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_of_another_processor_is_not_used_and_that_is_said(config: Path) -> None:
    said: list[str] = []
    assert table_for(HERE, said.append) is None and not said
    latency_file("here").parent.mkdir(parents=True)
    facts = HERE.machine()
    write_record(latency_file("here"), table(sampled(), cpu=facts["cpu"], architecture=facts["architecture"]))
    assert table_for(HERE, said.append) is not None and not said
    write_record(latency_file("here"), table(sampled(), cpu="Another", architecture=facts["architecture"]))
    assert table_for(HERE, said.append) is None
    assert said == [f"{latency_file('here')} is of another processor, and not used; run `compress board profile` again"]


def compress(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["compress", *words])
    return main()


def test_networks_are_foretold_on_the_command_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    net(Path("a.onnx"), [helper.make_node("Sigmoid", ["image"], ["b"])], {})
    net(Path("b.onnx"), [helper.make_node("Conv", ["image", "w"], ["b"])], {"w": (64, 4, 3, 3)})
    write_record(Path("pi4.json"), table(sampled()))
    assert compress(monkeypatch, "board", "foretell", "pi4.json", "a.onnx", "b.onnx", "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert told["machine"] == {"cpu": "Toy"} and told["seconds"]["a.onnx"] == pytest.approx(table(sampled()).of_graph(Path("a.onnx")))
    assert compress(monkeypatch, "board", "foretell", "pi4.json", "a.onnx", "b.onnx") == 0
    said = capfd.readouterr().out
    assert "of the first" in said and "1.00x" in said and "On Toy: foretold from layers, not measured." in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("foretell", "pi4", "a.onnx"), "pi4.json) does not exist; `compress board profile pi4` makes it"),
        (("foretell", "no.json", "a.onnx"), "table (=no.json) does not exist; name a file that `compress board profile` wrote"),
        (("foretell", "odd.json", "a.onnx"), "run `compress board profile` again"),
        (("foretell", "flat.json", "a.onnx"), "weight (=[4]) must be 4 sizes for conv"),
        (("profile", "pi4"), "name (=pi4) is no board that is known (none), nor here; `compress board add NAME ssh://user@host`"),
        (("profile", "ssh://pi@pi4"), "name (=ssh://pi@pi4) is no board that is known (none), nor here"),
        (("add", "here", "ssh://pi@pi4"), 'such as pi4, and not "here", which is this machine'),
        (("profile", "here", "--out", "none/here.json"), "out (=none/here.json) lies in a folder that does not exist; make it first"),
    ],
)
def test_what_is_no_table_and_no_board_is_one_line(
    words: tuple[str, ...], line: str, config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    flat = dataclasses.asdict(table([weighted((8, 8, 3, 3), 4)]))
    flat["layers"] = [{"kind": "conv", "weight": [4], "positions": 1, "seconds": 1.0}]
    Path("flat.json").write_text(json.dumps(flat))
    Path("odd.json").write_text('{"schema": "compress-latency-table", "version": 1, "layers": []}')
    assert compress(monkeypatch, "board", *words) == 2
    out, err = capfd.readouterr()
    assert not out and line in err and len(err.splitlines()) == 1
