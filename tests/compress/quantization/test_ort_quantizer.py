import logging
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from static_int8 import OLD, VNNI

from compress.benchmarks.runtimes import Candidate, onnx_session
from compress.errors import CompressError
from compress.graphs.floats import fold
from compress.graphs.index import index
from compress.quantization.int8 import quantize_dynamic
from compress.quantization.ort_quantizer import held_back, insert_qdq, this_cpu
from compress.quantization.records import Types, types_for

ARM = Types(activations="int8", reduce_range=False)


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", ["sse4_2", "avx2", "avx512f", "avx512_vnni"], VNNI),
        ("AMD64", ["avx2", "avx_vnni"], VNNI),
        ("x86_64", ["sse4_2", "avx2", "avx512f", "avx512bw"], OLD),
        ("x86_64", [], OLD),
        ("aarch64", ["fp", "asimd", "asimddp"], ARM),
        ("arm64", [], ARM),
        ("armv7l", ["half", "thumb", "neon", "vfpv4"], ARM),
        ("armv6l", [], ARM),
        ("riscv64", [], OLD),
    ],
)
def test_types_by_the_flags_of_a_cpu(machine: str, flags: list[str], expected: Types) -> None:
    assert types_for(machine, flags) == expected


def test_the_flags_of_this_cpu_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for line, expected in (("flags\t\t: fpu avx2 avx_vnni", VNNI), ("flags\t\t: fpu avx2", OLD), ("model name\t: vnni", OLD)):
        monkeypatch.setattr(Path, "read_text", lambda path, line=line: f"processor\t: 0\n{line}\n")
        assert this_cpu() == expected

    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert this_cpu() == OLD


def test_two_products_of_weights_of_7_bits_fit_into_16_bits() -> None:
    """The largest sum that an x86 CPU without VNNI forms in 16 bits (microsoft/onnxruntime#12072)."""
    assert 2 * 255 * 127 > np.iinfo(np.int16).max >= 2 * 255 * 64


def saturating(types: Types) -> onnx.ModelProto:
    """A linear layer whose products are all as large as they get."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w"], ["y"], name="gemm")],
        "saturating",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 8])],
        [onnx.numpy_helper.from_array(np.ones((64, 8), np.float32), "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model)
    return insert_qdq(inferred, index(inferred), {"x": (0, 1), "y": (0, 64)}, ["gemm"], types, per_channel=False)


@pytest.mark.parametrize("types", [VNNI, OLD, ARM])
def test_sums_do_not_saturate_with_the_types_that_fit(types: Types) -> None:
    model = saturating(types)
    weights = next(onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer if entry.name == "w_quantized")
    assert weights.max() == (64 if types.reduce_range else 127)
    if types.reduce_range or types == this_cpu():
        session = onnxruntime.InferenceSession(model.SerializeToString())
        np.testing.assert_allclose(session.run(None, {"x": np.ones((2, 64), np.float32)})[0], 64, rtol=0.01)


@pytest.mark.parametrize("types", [VNNI, ARM, Types(activations="int8", reduce_range=False, target="cortex-a53")])
def test_sums_are_exact_on_any_processor_where_that_is_asked_for(types: Types, tmp_path: Path) -> None:
    """64 products of the largest weight and activation: without VNNI each pair of them saturates, unless sums are to be precise."""
    path, images = tmp_path / "net.onnx", {"x": np.ones((2, 64), np.float32)}
    onnx.save(saturating(types), path)
    made = Candidate(name="net", path=path, precise=True)
    np.testing.assert_allclose(onnx_session(made, 1).run(None, images)[0], 64, rtol=0.01)
    usual = onnx_session(replace(made, precise=False), 1).run(None, images)[0]
    assert np.allclose(usual, 64, rtol=0.01) is not this_cpu().reduce_range


def test_dynamic_sums_are_exact_too(tmp_path: Path) -> None:
    """Whose operators are integers' in the file itself, so that leaving optimisations out changes nothing."""
    source, target = tmp_path / "float.onnx", tmp_path / "dynamic.onnx"
    weight = numpy_helper.from_array(np.ones((64, 8), np.float32), "w")
    entry, output = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in (("x", ["N", 64]), ("y", ["N", 8]))
    )
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")], "net", [entry], [output], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), source)
    quantize_dynamic(source, target, Types(activations="int8", reduce_range=False, target="cortex-a53"))
    images = {"x": np.ones((2, 64), np.float32)}
    sessions = {precise: onnx_session(Candidate(name="net", path=target, precise=precise), 1) for precise in (True, False)}
    np.testing.assert_allclose(sessions[True].run(None, images)[0], 64, rtol=0.01)
    assert np.allclose(sessions[False].run(None, images)[0], 64, rtol=0.01) is not this_cpu().reduce_range
    notes = sessions[True].get_modelmeta().custom_metadata_map
    assert notes["quantization.target"] == "cortex-a53" and notes["quantization.latency"] == "unknown on cortex-a53"


def test_what_the_quantizer_prints_and_trips_over_becomes_one_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(CompressError, match=r"the graph holds something that onnxruntime.quantization cannot take \(TypeError: odd\)"),
        held_back("the graph"),
    ):
        print("progress")  # noqa: T201 - as the quantizer does
        raise TypeError("odd\nand more")
    assert capsys.readouterr() == ("", "")
    assert not logging.getLogger().filters


def test_weights_are_checked_before_all_else() -> None:
    graph = saturating(VNNI)
    with pytest.raises(CompressError, match="it has no Conv, ConvTranspose, Gemm, MatMul with constant float32 weights; there is nothing"):
        fold(graph, "it")
