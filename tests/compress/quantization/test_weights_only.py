from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compress.errors import CompressError
from compress.quantization.int8 import quantize_dynamic
from compress.quantization.weights_only import store_weights

node = onnx.helper.make_node


def graph(path: Path, nodes: list[onnx.NodeProto], *, opset: int = 18, **weights: np.ndarray) -> Path:
    """From float32 ``x`` (N, 4, 6, 6) to ``y``."""
    content = onnx.helper.make_graph(
        nodes,
        "by_hand",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 4, 6, 6])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * (4 if nodes[-1].op_type == "Conv" else 2))],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(content, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.helper.set_model_props(model, {"labels": "a b"})
    onnx.save(model, path)
    return path


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def network(path: Path) -> Path:
    """A convolution, a shared linear layer as Gemm with transB, a MatMul whose weight is not transposed, biases."""
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
        node("Flatten", ["a"], ["f"]),
        node("Gemm", ["f", "v"], ["g"], transB=1),
        node("Gemm", ["g", "shared"], ["h"], transB=1),
        node("Gemm", ["h", "shared"], ["i"], transB=1),
        node("MatMul", ["i", "u"], ["j"]),
        node("Mul", ["j", "small"], ["y"]),
    ]
    shapes = {"w": (8, 4, 3, 3), "b": (8,), "v": (12, 288), "shared": (12, 12), "u": (12, 20), "small": (1, 20)}
    return graph(path, nodes, **{name: random(*shape) for name, shape in shapes.items()})


def run(path: Path, x: np.ndarray, optimised: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # that an optimised file is for this machine only
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(path, options).run(None, {"x": x})[0]


def constants(path: Path) -> dict[str, np.ndarray]:
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("bits", ["int8", "fp16"])
def test_the_file_computes_what_its_weights_say_at_float_speed(bits: str, tmp_path: Path) -> None:
    """ONNX Runtime computes the weights while loading: in its graph no Cast is left, and no Mul but that of the network."""
    source, target = network(tmp_path / "net.onnx"), tmp_path / "small.onnx"
    stored = store_weights(source, target, bits=bits)
    assert sorted(stored.weights) == ["shared", "u", "v", "w"]
    assert (stored.bytes_before, stored.bytes_after) == (source.stat().st_size, target.stat().st_size)
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 6)).astype(np.float32)
    found = run(target, x, tmp_path / "optimised.onnx")
    optimised = [entry.op_type for entry in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "Cast" not in optimised
    assert optimised.count("Mul") == 1
    # The same network with the rounded weights in float32, written down independently.
    rounded = {}
    for name, value in constants(source).items():
        if name not in stored.weights:
            rounded[name] = value
        elif bits == "fp16":
            rounded[name] = value.astype(np.float16).astype(np.float32)
        else:
            channels = value if name != "u" else value.T
            flat = channels.reshape(len(channels), -1)
            scale = np.abs(flat).max(1, keepdims=True) / np.float32(127)
            back = (np.rint(flat / scale) * scale).reshape(channels.shape).astype(np.float32)
            rounded[name] = back if name != "u" else back.T.copy()
    expected = graph(tmp_path / "rounded.onnx", list(onnx.load(source).graph.node), **rounded)
    np.testing.assert_array_equal(found, run(expected, x))
    assert np.abs(found - run(source, x)).max() < 0.03 * np.ptp(found)


@pytest.mark.parametrize(("bits", "share"), [("int8", 0.3), ("fp16", 0.52)])
def test_the_file_is_a_quarter_or_half(bits: str, share: float, tmp_path: Path) -> None:
    source = graph(tmp_path / "net.onnx", [node("Conv", ["x", "w"], ["y"])], w=random(256, 4, 6, 6))
    stored = store_weights(source, tmp_path / "small.onnx", bits=bits)
    assert stored.bytes_after < share * stored.bytes_before


def test_a_channel_by_hand(tmp_path: Path) -> None:
    """The example of the docstring, 16 times over; zeros stay zeros, and a channel of zeros too."""
    weight = np.zeros((2, 4, 4, 3), np.float32)
    weight[0] = np.tile(np.float32([-2, 0.5, 0]), 16).reshape(4, 4, 3)
    source = graph(tmp_path / "net.onnx", [node("Conv", ["x", "w"], ["y"])], w=weight)
    stored = store_weights(source, tmp_path / "small.onnx", bits="int8")
    found = constants(tmp_path / "small.onnx")
    assert found["w_int8"].dtype == np.int8
    assert found["w_int8"][0].ravel()[:3].tolist() == [-127, 32, 0]
    assert not found["w_int8"][1].any()
    np.testing.assert_allclose(found["w_scale"].ravel(), [2 / 127, 1], rtol=1e-6)
    error = 0.5 - 32 * 2 / 127
    assert stored.weights["w"] == pytest.approx(10 * np.log10((4 + 0.25) / error**2), rel=1e-4)


def test_weights_that_lose_nothing_have_no_noise(tmp_path: Path) -> None:
    source = graph(tmp_path / "net.onnx", [node("Conv", ["x", "w"], ["y"])], w=np.full((4, 4, 3, 3), 0.5, np.float32))
    assert store_weights(source, tmp_path / "small.onnx", bits="fp16").weights == {"w": None}


def test_one_extreme_channel_does_not_coarsen_the_others(tmp_path: Path) -> None:
    weight = random(4, 4, 3, 3)
    weight[0] *= 1000
    stored = store_weights(graph(tmp_path / "net.onnx", [node("Conv", ["x", "w"], ["y"])], w=weight), tmp_path / "small.onnx", bits="int8")
    found = constants(tmp_path / "small.onnx")
    error = found["w_int8"] * found["w_scale"] - weight
    assert (np.abs(error).max((1, 2, 3)) / np.abs(weight).max((1, 2, 3)) < 0.51 / 127).all()
    assert stored.weights["w"] is not None
    assert stored.weights["w"] > 35


def test_storing_again_gives_the_same_bytes_and_keeps_the_metadata(tmp_path: Path) -> None:
    source = network(tmp_path / "net.onnx")
    before = source.read_bytes()
    for name in ("one.onnx", "two.onnx"):
        store_weights(source, tmp_path / name, bits="int8")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert source.read_bytes() == before
    found = {entry.key: entry.value for entry in onnx.load(tmp_path / "one.onnx").metadata_props}
    assert found == {"labels": "a b", "quantization.mode": "weights", "quantization.weights": "int8"}


def test_external_data_comes_into_the_file(tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "net.onnx"))
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    stored = store_weights(tmp_path / "net.onnx", tmp_path / "small.onnx", bits="int8")
    assert stored.bytes_before > (tmp_path / "net.data").stat().st_size
    (tmp_path / "net.data").unlink()
    assert run(tmp_path / "small.onnx", np.zeros((1, 4, 6, 6), np.float32)).shape == (1, 20)
    with pytest.raises(CompressError, match=r'net\.onnx" keeps its weights in another file that cannot be read'):
        store_weights(tmp_path / "net.onnx", tmp_path / "out.onnx", bits="int8")


@pytest.mark.parametrize(
    ("weight", "bits", "message"),
    [
        (random(4, 4, 3, 3), "int4", r'bits \(="int4"\) must be int8 or fp16'),
        (70_000 * np.ones((4, 4, 3, 3), np.float32), "fp16", r'weight "w" \(up to 7e\+04\) must lie within 65504 to be fp16; use int8'),
        (np.full((4, 4, 3, 3), np.inf, np.float32), "fp16", r'weight "w" holds values that are not finite'),
        (np.full((4, 4, 3, 3), np.nan, np.float32), "int8", r'weight "w" holds values that are not finite'),
        (random(1, 4, 3, 3), "int8", r"has no float32 weights of 64 values or more; there is nothing to store smaller"),
    ],
)
def test_weights_that_cannot_be_stored_are_refused(weight: np.ndarray, bits: str, message: str, tmp_path: Path) -> None:
    source = graph(tmp_path / "net.onnx", [node("Conv", ["x", "w"], ["y"])], w=weight)
    with pytest.raises(CompressError, match=message):
        store_weights(source, tmp_path / "small.onnx", bits=bits)
    assert not (tmp_path / "small.onnx").exists()


def test_files_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    source = network(tmp_path / "net.onnx")
    quantize_dynamic(source, tmp_path / "dynamic.onnx")
    store_weights(source, tmp_path / "stored.onnx", bits="int8")
    (tmp_path / "empty.onnx").touch()
    for name, message in (
        ("dynamic", r"is quantized already \(it has DynamicQuantizeLinear, MatMulInteger\)"),
        ("stored", r"is quantized already \(its metadata says weights\); quantize the float32 file it came from"),
        ("empty", r"is empty \(0 bytes\)"),
        ("none", "is not a file"),
    ):
        with pytest.raises(CompressError, match=rf'{name}\.onnx" {message}'):
            store_weights(tmp_path / f"{name}.onnx", tmp_path / "out.onnx", bits="int8")
    assert not (tmp_path / "out.onnx").exists()
