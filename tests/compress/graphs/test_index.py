"""The index on graphs of a few nodes, against what can be read off them."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from by_hand import graph, kinds, node, run

from compress.graphs.index import (
    add_constant,
    constant,
    edited,
    fresh,
    index,
    is_a,
    make,
    maker,
    named,
    only_reader,
    readers,
    rename,
    set_constants,
    settings,
    sizes,
    sweep,
)

W = np.float32([[1, 2], [3, 4]])
X = np.float32([[1, -1], [0, 1]])


def layer() -> onnx.ModelProto:
    """Of the module's docstring: ``x -> Gemm(w) -> a -> Relu -> y``, and ``a`` is noted as (2, 2)."""
    model = graph(node("Gemm", ["x", "w"], ["a"], alpha=2.0, transB=1, name="linear"), node("Relu", ["a"], ["y"], name="clip"), w=W)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2, "n"]))
    return model


def with_branches() -> onnx.ModelProto:
    """``y`` is ``x + inner`` or ``x * w``; ``inner`` is a constant of the first branch."""
    then, otherwise = (
        onnx.helper.make_graph(
            [entry], name, [], [onnx.helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, [2, 2])], weights
        )
        for name, entry, weights in (
            ("then", node("Add", ["x", "inner"], ["then_y"], name="in then"), [onnx.numpy_helper.from_array(W, "inner")]),
            ("else", node("Mul", ["x", "w"], ["else_y"], name="in else"), []),
        )
    )
    return graph(node("If", ["c"], ["y"], then_branch=then, else_branch=otherwise, name="if"), c=np.array(False), w=W)


def test_who_makes_and_who_reads() -> None:
    tensors = named(index(layer()))
    gemm, relu = maker(tensors["a"]), only_reader(tensors["a"])
    assert gemm is not None and relu is not None
    assert (gemm.name, relu.name, [one.name for one in readers(tensors["w"])]) == ("linear", "clip", ["linear"])
    assert maker(tensors["a"], "MatMul") is None and maker(tensors["x"]) is None and maker(None) is None
    assert only_reader(tensors["a"], "Clip") is None and only_reader(tensors["y"]) is None
    assert settings(gemm) == {"alpha": 2.0, "transB": 1}
    np.testing.assert_array_equal(constant(tensors["w"]), W)
    assert constant(tensors["a"]) is None and constant(None) is None
    assert (sizes(tensors["a"]), sizes(tensors["w"])) == ((2, 0), (2, 2))


def test_an_output_and_what_is_read_twice_have_no_only_reader() -> None:
    tensors = named(index(graph(node("Relu", ["x"], ["a"]), node("Add", ["a", "a"], ["b"]), node("Neg", ["b"], ["y"]))))
    assert only_reader(tensors["a"]) is None and len(readers(tensors["a"])) == 2
    model = graph(node("Relu", ["x"], ["y"]), node("Neg", ["y"], ["z"]))
    assert only_reader(named(index(model))["y"]) is None


def test_an_operator_of_somebody_else_is_another_one() -> None:
    relu, other = index(graph(node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["y"], domain="custom")))
    assert is_a(relu, "Relu") and not is_a(other, "Relu")


def test_what_a_branch_reads_is_read() -> None:
    tensors = named(index(with_branches()))
    assert [one.name for one in readers(tensors["w"])] == ["in else"]
    assert "inner" not in tensors


def test_a_graph_that_is_looked_at_or_opened_without_a_change_keeps_its_bytes() -> None:
    for model in (layer(), with_branches()):
        before = model.SerializeToString(deterministic=True)
        named(index(model))["x"].name = "z"
        with edited(model):
            pass
        assert model.SerializeToString(deterministic=True) == before


def test_an_exception_leaves_the_model_as_it_was() -> None:
    model, before = layer(), layer()
    with pytest.raises(ValueError, match="stop"), edited(model) as opened:
        rename(opened, named(opened)["a"], "b")
        raise ValueError("stop")
    assert model == before


def test_notes_are_kept_of_the_tensors_that_stay() -> None:
    kept, gone = layer(), layer()
    with edited(kept) as opened:
        rename(opened, named(opened)["w"], "v")
    with edited(gone) as opened:
        rename(opened, named(opened)["a"], "b")
    assert [note.name for note in kept.graph.value_info] == ["a"]
    assert list(gone.graph.value_info) == []


def test_a_node_takes_the_place_of_another_and_what_nothing_reads_is_swept_away() -> None:
    model = layer()
    with edited(model) as opened:
        [relu] = [one for one in opened if one.op_type == "Relu"]
        doubled = make(opened, "Mul", [named(opened)["x"], add_constant(opened, "two", np.float32([2]))], "a")
        clipped = make(opened, "Relu", doubled.outputs, relu.outputs[0])
        ir.convenience.replace_nodes_and_values(opened, relu, [relu], [doubled, clipped], relu.outputs, clipped.outputs)
        sweep(opened)
    assert kinds(model) == ["Mul", "Relu"]
    assert [(one.name, one.output[0]) for one in model.graph.node] == [("a__Mul", "a_"), ("y_Relu", "y")]
    assert [weight.name for weight in model.graph.initializer] == ["two"]
    np.testing.assert_array_equal(run(model, X), [[2, 0], [0, 2]])


def test_a_fresh_name_is_none_of_the_graph_nor_of_its_branches_and_is_given_once() -> None:
    opened = index(with_branches())
    assert [fresh(opened, name) for name in ("new", "new", "x", "w", "inner", "then_y", "if")] == [
        *("new", "new_", "x_", "w_", "inner_", "then_y_", "if"),
    ]
    assert [fresh(opened, name, of_node=True) for name in ("if", "in then", "x")] == ["if_", "in then_", "x"]


def test_a_tensor_makes_way_for_one_that_gets_its_name() -> None:
    model = layer()
    with edited(model) as opened:
        rename(opened, named(opened)["a"], "w")
    assert [list(one.input) for one in model.graph.node] == [["x", "w_"], ["w"]]
    np.testing.assert_array_equal(run(model, X), run(layer(), X))


def test_numbers_are_put_in_the_place_of_others_in_their_type() -> None:
    model = graph(node("Gather", ["w", "i"], ["y"]), w=W, i=np.int64([0]))
    set_constants(model, {"i": np.array([1.0]), "nobody's": np.zeros(3)})
    held = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    assert held["i"].dtype == np.int64 and held["i"].tolist() == [1]
    np.testing.assert_array_equal(held["w"], W)
