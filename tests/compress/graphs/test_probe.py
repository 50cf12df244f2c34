import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.graphs.index import index, named
from compress.graphs.probe import run_in_batches, steady_tensors, stored_constant


def model_of(batch: str | int) -> onnx.ModelProto:
    constants = [
        numpy_helper.from_array(np.array([[4], [8]], np.int8), "stored"),
        numpy_helper.from_array(np.array([0.5, 0.25], np.float32), "scale"),
        numpy_helper.from_array(np.array([0, 2], np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["stored", "scale", "zero"], ["weight"], axis=0),
        helper.make_node("Mul", ["x", "weight"], ["y"]),
    ]
    entry, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 1, 2, 1]) for name in "xy")
    return helper.make_model(
        helper.make_graph(nodes, "g", [entry], [result], constants), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )


def test_a_constant_behind_a_dequantization_by_hand() -> None:
    np.testing.assert_array_equal(stored_constant(named(index(model_of("N")))["weight"]), [[2.0], [1.5]])


@pytest.mark.parametrize(("fixed", "sizes"), [("N", [3, 3, 1]), (2, [2, 2, 2])])
def test_all_images_run_in_order_and_a_fixed_batch_is_kept(fixed: str | int, sizes: list[int]) -> None:
    images = np.arange(14, dtype=np.float32).reshape(7, 1, 2, 1)
    found = list(run_in_batches(model_of(fixed), images, 3))
    assert [count for count, _ in found] == sizes
    np.testing.assert_array_equal(np.concatenate([values for _, [values] in found]), images[: sum(sizes)] * np.float32([[2], [1.5]]))


def gated(gate: list[onnx.NodeProto], *outputs: str, batch: str | int = "N") -> onnx.ModelProto:
    """``gate`` makes ``g`` of x (batch, 2, 2, 1), or of its ``mean`` (batch, 2, 1, 1), and x is multiplied by it."""
    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["mean"]), *gate, helper.make_node("Mul", ["x", "g"], ["y"])]
    constants = [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("tiny", 1e-3), ("half", 0.5))]
    constants.append(numpy_helper.from_array(np.array([1, 2, 2, 1]), "shape"))
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2, 2, 1])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", *outputs)]
    made = helper.make_graph(nodes, "g", [entry], results, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


NEVER = [helper.make_node("Mul", ["mean", "zero"], ["nothing"]), helper.make_node("Add", ["nothing", "half"], ["g"])]
HARDLY = [helper.make_node("Mul", ["mean", "tiny"], ["little"]), helper.make_node("Add", ["little", "half"], ["g"])]
SEEN = np.random.default_rng(0).random((40, 2, 2, 1), np.float32)


@pytest.mark.parametrize("batch", ["N", 4])
def test_the_last_of_what_is_the_same_for_all_images_is_found(batch: str | int) -> None:
    """``nothing`` is constant too, but only the gate that follows from it is read beside something that varies."""
    [found] = steady_tensors(gated(NEVER, batch=batch), SEEN, 0.02)
    assert (found.name, found.varies, found.mean.shape) == ("g", 0.0, (1, 1, 1, 1))
    assert found.mean == np.float32(0.5)


def test_how_much_a_tensor_varies_by_hand() -> None:
    """0.5 + a thousandth of the mean over the pixels: its variance over the images, as a share of its mean square."""
    [found] = steady_tensors(gated(HARDLY), SEEN, 0.02)
    gate = 0.5 + 1e-3 * SEEN.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(found.mean, gate.mean(axis=0, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(found.varies, gate.var(axis=0).sum() / np.square(gate.mean(axis=0)).sum(), rtol=1e-3)
    assert steady_tensors(gated(HARDLY), SEEN, found.varies / 2) == []


def test_a_factor_of_nearly_one_is_one_unless_it_never_varies() -> None:
    nearly = [*HARDLY[:1], helper.make_node("Add", ["little", "half"], ["less"]), helper.make_node("Add", ["less", "half"], ["g"])]
    [found] = steady_tensors(gated(nearly), SEEN, 0.02)
    assert found.varies > 0 and found.mean.tolist() == [[[[1.0]]]]
    never = [*NEVER[:1], helper.make_node("Sub", ["half", "nothing"], ["less"]), helper.make_node("Add", ["less", "half"], ["a"])]
    [found] = steady_tensors(gated([*never, helper.make_node("Sub", ["a", "tiny"], ["g"])]), SEEN, 0.02)
    assert (found.varies, found.mean.item()) == (0.0, np.float32(0.999))


@pytest.mark.parametrize(
    "model",
    [
        gated(NEVER, "g"),
        gated([helper.make_node("Sigmoid", ["mean"], ["g"])]),
        gated([helper.make_node("Expand", ["half", "shape"], ["g"])]),
        gated([*NEVER[:1], helper.make_node("Concat", ["nothing", "mean"], ["c"], axis=2), helper.make_node("Sigmoid", ["c"], ["g"])]),
    ],
    ids=["an output", "it varies", "not made of the image", "read by what does not broadcast"],
)
def test_what_is_no_constant_is_not_found(model: onnx.ModelProto) -> None:
    assert steady_tensors(model, SEEN, 1e-3) == []
