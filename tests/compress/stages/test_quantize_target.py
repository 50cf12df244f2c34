"""quantize for a processor that is not here: nothing is timed, its types are taken, and answers are found with its sums."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from stand_ins import Commands

import compress
from compress.artifacts.artifact import Artifact, read_artifact
from compress.artifacts.classifier.opened import open_artifact, open_file
from compress.artifacts.context import Context
from compress.artifacts.payloads import Search, read_payload
from compress.artifacts.project import variant_name
from compress.artifacts.vectors import read_vectors
from compress.benchmarks.place import Here
from compress.cli.tables import artifact_text, next_commands
from compress.errors import CompressError
from compress.quantization.ort_quantizer import this_cpu

needs_16_bit_sums = pytest.mark.skipif(not this_cpu().reduce_range, reason="this processor adds products of 8 bits in 32 bits")


def notes(path: Path) -> dict[str, str]:
    return {one.key: one.value for one in onnx.load(path).metadata_props}


def test_nothing_is_timed_and_the_choice_is_one_for_that_processor(
    network: compress.Network, graph: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Here, "turns", lambda *_: pytest.fail("it was timed"))
    monkeypatch.setattr(Here, "machine", lambda *_: pytest.fail("it hangs on this machine"))
    made = network.quantize(graph, images=64, accept_unproved=True, target="cortex-a53")
    chosen = made.manifest.metrics.choice
    assert chosen and chosen.target == "cortex-a53" and chosen.verdict.startswith("For cortex-a53: ")
    assert "Latency is unknown on cortex-a53" in chosen.verdict
    table = read_payload(read_artifact(Path(chosen.artifact), "choice"), Search)
    assert table.target == "cortex-a53" and table.machine == {}
    assert {one.ratio for one in (*table.finalists, *table.tried)} == {None}
    assert {"float32", "static", "dynamic", "int8-weights", "fp16-weights"} == {one.mode for one in table.finalists}
    assert "unknown" in artifact_text(made) and "made for  " in artifact_text(made)
    assert next_commands(made)[1] == f"compress benchmark {made.path} --on BOARD"
    assert network.quantize(graph, images=64, accept_unproved=True, target="cortex-a53").path == made.path
    other = network.quantize(graph, images=64, accept_unproved=True, target="cortex-a72")
    assert other.path != made.path and other.manifest.config["target"] == "cortex-a72"


@pytest.mark.parametrize(
    ("target", "activations", "reduced"),
    [("cortex-a53", "int8", "false"), ("cortex-a76", "int8", "false"), ("x86-64-v2", "uint8", "true"), ("x86-64-v4", "uint8", "true")],
)
def test_types_are_those_of_the_target_also_by_hand(
    network: compress.Network, graph: Artifact, target: str, activations: str, reduced: str
) -> None:
    made = network.quantize(graph, images=64, mode="static", target=target)
    found = notes(made.payload)
    assert (found["quantization.activations"], found["quantization.reduce_range"]) == (activations, reduced)
    assert found["quantization.target"] == target and found["quantization.latency"] == f"unknown on {target}"
    assert variant_name(made) == f"static int8 for {target}"
    assert compress.verify(made.path).holds


def saturating(path: Path) -> Path:
    """A network of which every sum of two products leaves 16 bits: weights and images are all positive and large."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(np.abs(generator.normal(1, 0.2, shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "w1"], ["c1"], name="conv", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Conv", ["c1", "w2"], ["c2"], name="pointwise", kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["c2"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        helper.make_node("Gemm", ["flat", "w3"], ["logits"], name="dense", transB=1),
    ]
    weights = [weight("w1", 8, 1, 3, 3), weight("w2", 16, 8, 1, 1), weight("w3", 10, 16)]
    entry = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["B", 1, 28, 28])
    graph = helper.make_graph(nodes, "net", [entry], [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 10])], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def bright(path: Path) -> Path:
    """Images of high values, which no class is known of."""
    np.savez(path, np.random.default_rng(1).integers(128, 256, (400, 28, 28), np.uint8))
    return path


def test_what_is_expected_of_a_file_is_what_its_own_processor_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth: QuantizeLinear and DequantizeLinear as ONNX defines them, in float32, which is what runs without any fused kernel."""
    monkeypatch.chdir(tmp_path)
    net = compress.open(runs=tmp_path / "runs")
    files = {"onnx": saturating(tmp_path / "net.onnx"), "calibrate": bright(tmp_path / "images.npz")}
    made = net.quantize(**files, images=64, mode="static", target="cortex-a53")
    vectors, options = read_vectors(made.path / "vectors.npz"), onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = onnxruntime.InferenceSession(made.payload, options).run(["logits"], {"image": vectors.images})[0]
    np.testing.assert_allclose(vectors.logits, exact, atol=0.005 * np.abs(exact).max())

    for opened in (open_artifact(made, Context()), open_file(made.payload, Context())):  # as predict does
        np.testing.assert_allclose(opened.run(vectors.images), vectors.logits, atol=1e-6 * np.abs(exact).max())
    proof = compress.verify(made.path)
    loads = next(one.detail for one in proof.checks if one.name == "loads")
    assert proof.holds and "made for cortex-a53, so asked with sums of 32 bits" in loads
    assert ("do not run it here, as this machine's own sums are off by" in loads) is this_cpu().reduce_range


@needs_16_bit_sums
def test_a_file_for_sums_of_32_bits_is_not_measured_where_they_have_16(network: compress.Network, graph: Artifact) -> None:
    made, fits = (network.quantize(graph, images=64, mode="static", target=target) for target in ("cortex-a53", "x86-64-v3"))
    with pytest.raises(
        CompressError, match=r"was made for cortex-a53, and sums of 8-bit products saturate on this machine, so it computes"
    ):
        network.benchmark(made.path, quick=True, rounds=2, samples=5)
    measured = network.benchmark(quick=True, rounds=2, samples=5, runtimes=["onnxruntime"]).result.measurements
    names = {one.name for one in measured}
    assert variant_name(fits) in names and not [name for name in names if "cortex" in name]


def test_a_file_is_fine_tuned_for_it(network: compress.Network, graph: Artifact) -> None:
    made = network.quantize(graph, images=64, epochs=1, accept_unproved=True, target="cortex-a72")
    assert made.manifest.config["mode"] == "static" and notes(made.payload)["quantization.target"] == "cortex-a72"
    assert compress.verify(made.path).holds


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--runtime", "c"), "target (=cortex-a53): nothing is timed for a processor that is not here; leave runtime (=c) out"),
        (("--explain",), "explain times groups of nodes on this machine; leave target (=cortex-a53) out"),
        (("--on", "ssh://nobody@127.0.0.1:9"), "target (=cortex-a53) and on (=ssh://nobody@127.0.0.1:9) exclude each other: there files"),
        (("--target", "native"), "target (=native) is this machine, where candidates are timed; leave it out"),
        (("--target", "cortex-m4"), "target (=cortex-m4) is not known to run ONNX Runtime"),
        (("--target", "cortex-a54"), 'target (="cortex-a54") must be a processor whose 8-bit types are known; did you mean cortex-a'),
    ],
)
def test_what_times_is_refused_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Commands, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("--onnx", str(saturating(tmp_path / "net.onnx")), "--calibrate", str(bright(tmp_path / "images.npz")))
    code, out, err = run("quantize", *common, "--target", "cortex-a53", *arguments)
    lines = [line for line in err.splitlines() if line.startswith("compress: ")]
    assert code == 2 and out == "" and len(lines) == 1 and told in lines[0] and "Traceback" not in err


def test_a_run_of_everything_measures_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text('model = "emnist"\ndata = "digits"\n[quantize]\ntarget = "cortex-a72"\n')
    with pytest.raises(
        CompressError, match=r"^target \(=cortex-a72\): `compress run` measures on this machine; leave it out of \[quantize\]"
    ):
        compress.open(recipe="recipe.toml").run()
