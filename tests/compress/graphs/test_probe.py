import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.graphs.index import index, named
from compress.graphs.probe import run_in_batches, stored_constant


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
