import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.errors import CompressError
from compress.graphs.index import index
from compress.quantization.qat.fake_quantize import FakeQuantize, Grid, grid_of


def test_fake_quantize_by_hand() -> None:
    """The figures of the module's docstring, and a number that is clamped at the upper end: (255 - 10) * 0.5."""
    x = torch.tensor([1.3, 1.25, -7.0, 500.0], requires_grad=True)
    found = FakeQuantize.apply(x, torch.tensor(0.5), -10, 245, False)
    found.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert found.tolist() == [1.5, 1.0, -5.0, 122.5]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 0.0, 0.0]


def test_gradient_passes_at_the_outermost_steps() -> None:
    x = torch.tensor([-5.0, -5.2, -5.3, 122.5, 122.7, 122.8], requires_grad=True)
    FakeQuantize.apply(x, torch.tensor(0.5), -10, 245, False).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 1, 1, 0]


def test_scales_per_channel_by_hand() -> None:
    x = torch.tensor([[0.26, 1.0], [0.26, 1.0]], requires_grad=True)
    found = FakeQuantize.apply(x, torch.tensor([[0.5], [0.25]]), -3, 3, False)
    found.sum().backward()
    assert found.tolist() == [[0.5, 1.0], [0.25, 0.75]]
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("scale", [0.0217, 1 / 255, 0.1, 3e-5])
def test_every_number_is_rounded_as_onnx_runtime_does(scale: float) -> None:
    """Ties most of all: they fall with the last bit of x / scale, which differs from that of x * (1 / scale)."""
    factor = np.float32(scale)
    random = np.random.default_rng(1).normal(scale=100, size=20_000).astype(np.float32) * factor
    ties = (np.arange(-300, 301) / 2).astype(np.float32) * factor
    x = np.concatenate([random, ties, np.nextafter(ties, np.float32(1)), np.nextafter(ties, np.float32(-1))]).reshape(-1, 1)
    nodes = (
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    )
    constants = {"s": factor, "z": np.array(77, np.uint8)}
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    grid = grid_of(index(model)[0])
    assert (grid.low, grid.high) == (-77, 178)
    found = FakeQuantize.apply(torch.from_numpy(x), grid.scale, grid.low, grid.high, grid.wide)
    np.testing.assert_array_equal(found.numpy(), expected)


def opened(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> ir.Node:
    graph = helper.make_graph(
        [node], "one", [], [], [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    )
    return index(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))[0]


def weight_grid(weight: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None = None, **attributes: int) -> Grid:
    constants = {"w": weight, "s": scale} | ({} if zero_point is None else {"z": zero_point})
    return grid_of(opened(helper.make_node("DequantizeLinear", list(constants), ["a"], **attributes), constants))


def test_grid_of_a_weight_by_hand() -> None:
    weight = np.array([[100, -3], [4, 0]], np.int8)
    grid = weight_grid(weight, np.array([0.5, 0.25], np.float32), axis=0)
    assert (grid.low, grid.high, grid.wide) == (-127, 127, False)
    assert grid.read(weight).tolist() == [[50, -1.5], [1, 0]]
    assert grid.write(torch.tensor([[50.3, -90.0], [1.125, 0.0]])).tolist() == [[101, -127], [4, 0]]


def test_range_of_a_weight_is_the_quantizers() -> None:
    scale = np.array(1, np.float32)
    bounds = {}
    for name, numbers in {"seven bits": [-64, 5], "eight": [-65, 5], "all": [-128, 5]}.items():
        grid = weight_grid(np.array(numbers, np.int8), scale)
        bounds[name] = grid.low, grid.high
    assert bounds == {"seven bits": (-64, 64), "eight": (-127, 127), "all": (-128, 127)}
    unsigned = weight_grid(np.array([3], np.uint8), scale, np.array(128, np.uint8))
    assert (unsigned.low, unsigned.high) == (-128, 127)
    assert unsigned.read(np.array([3], np.uint8)).tolist() == [-125]


def test_bias_is_stored_as_the_quantizer_stores_it() -> None:
    """In float64, so that 30 bits are exact; what int32 cannot hold is clamped rather than wrapped round."""
    grid = weight_grid(np.array([7], np.int32), np.array([0.5], np.float32))
    assert grid.wide
    assert grid.write(torch.tensor([2.0**28, -(2.0**40), 2.0**40])).tolist() == [2**29, -(2**31), 2**31 - 128]
    grid = weight_grid(np.array([7], np.int32), np.array([3e-5], np.float32))
    bias = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    expected = (bias.numpy().astype(np.float64) / np.float64(np.float32(3e-5))).round()
    np.testing.assert_array_equal(grid.write(bias), expected)


@pytest.mark.parametrize(
    ("inputs", "constants", "told"),
    [
        (["x", "s"], {}, 'QuantizeLinear "Q" takes "s" from the graph, but it must be constant; quantize statically'),
        (["x", "s", "z"], {"s": np.ones((), np.float32), "z": np.zeros((), np.bool_)}, "of type bool, but must have one type of 8, 16"),
        (["x", "s", "z"], {"s": np.ones(2, np.float32), "z": np.zeros(2, np.int8)}, "has 2 scales and 2 zero points of type int8"),
        (["w", "s", "z"], {"s": np.ones(2, np.float32), "z": np.array([0, 1], np.int8), "w": np.ones(2, np.int8)}, "one zero point"),
    ],
)
def test_grids_that_cannot_be_trained_on_are_refused(inputs: list[str], constants: dict[str, np.ndarray], told: str) -> None:
    node: onnx.NodeProto = helper.make_node("QuantizeLinear", inputs, ["q"], name="Q")
    with pytest.raises(CompressError, match=told):
        grid_of(opened(node, constants))
