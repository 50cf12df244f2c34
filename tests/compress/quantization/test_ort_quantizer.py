import logging
import platform
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from static_int8 import OLD, VNNI

from compress.errors import CompressError
from compress.graphs.floats import fold
from compress.graphs.index import index
from compress.quantization.ort_quantizer import Types, held_back, insert_qdq, this_cpu, types_for

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
