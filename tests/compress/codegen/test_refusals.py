"""What is refused, by name and before anything is written."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.codegen.program import generate
from compress.codegen.target import TARGETS, target_of, unmeasured
from compress.errors import CompressError

NATIVE = TARGETS["native"]


def model(nodes: list[onnx.NodeProto], kind: int = TensorProto.FLOAT, shape: tuple[object, ...] = ("batch", 3, 4, 4)) -> onnx.ModelProto:
    entry, output = helper.make_tensor_value_info("x", kind, shape), onnx.ValueInfoProto(name="y")
    weights = [numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")]
    graph = helper.make_graph(nodes, "net", [entry], [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([helper.make_node("Sin", ["x"], ["y"], name="wave")], r'node "wave" \(Sin\) cannot be written as C: there is no kernel'),
        ([helper.make_node("Cast", ["x"], ["y"], name="to", to=TensorProto.INT32)], r'node "to" \(Cast\) .*: from float32 to int32'),
        (
            [helper.make_node("MatMul", ["x", "x"], ["a"]), helper.make_node("Conv", ["x", "a"], ["y"], name="own")],
            '"own".*weights must be',
        ),
    ],
)
def test_a_node_is_refused_by_name(nodes: list[onnx.NodeProto], told: str) -> None:
    with pytest.raises(CompressError, match=told):
        generate(model(nodes), name="net", target=NATIVE)


def test_inputs_that_are_no_image_are_refused() -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    with pytest.raises(CompressError, match='input "x" leaves axis 2 open; only the batch may be'):
        generate(model(relu, shape=("batch", 3, "h", 4)), name="net", target=NATIVE)
    with pytest.raises(CompressError, match=r'input "x" \(=DOUBLE\) must be UINT8 or FLOAT'):
        generate(model(relu, TensorProto.DOUBLE), name="net", target=NATIVE)
    two = model([helper.make_node("Add", ["x", "z"], ["y"])])
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ("batch", 3, 4, 4)))
    with pytest.raises(CompressError, match=r"the graph's inputs \(x, z\) must be one"):
        generate(two, name="net", target=NATIVE)


@pytest.mark.parametrize("name", ["", "1net", "a-b", "a b", "é"])
def test_a_name_is_a_c_identifier(name: str) -> None:
    with pytest.raises(CompressError, match=r"name \(=.*\) must be a C identifier"):
        generate(model([helper.make_node("Relu", ["x"], ["y"])]), name=name, target=NATIVE)


def test_an_unknown_target_is_told_the_nearest() -> None:
    assert target_of("cortex-m4").lanes == 4
    with pytest.raises(CompressError, match=r'target \(="cortex-m44"\) .* did you mean cortex-m4\?'):
        target_of("cortex-m44")


def test_a_processor_whose_8_bit_types_are_known() -> None:
    """x86-64-v4 is AVX-512 without VNNI: two products of 8 bits are added in 16 there."""
    known = {name: (one.activations, one.reduce_range) for name, one in TARGETS.items() if one.activations}
    x86, arm = ("uint8", True), ("int8", False)
    assert known == dict.fromkeys(["x86-64-v2", "x86-64-v3", "x86-64-v4"], x86) | dict.fromkeys(
        ["aarch64", "aarch64+dotprod", "cortex-a53", "cortex-a72", "cortex-a76"], arm
    )
    assert all(unmeasured(name) is TARGETS[name] for name in known)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("native", r"^target \(=native\) is this machine, where candidates are timed; leave it out$"),
        ("cortex-m7", r"^target \(=cortex-m7\) is not known to run ONNX Runtime; leave it out, and name it when `compress export-c`"),
        ("portable", r"^target \(=portable\) is not known to run ONNX Runtime"),
        ("cortex-a5", r'^target \(="cortex-a5"\) must be a processor whose 8-bit types are known; did you mean cortex-a53\?'),
    ],
)
def test_a_target_whose_types_nobody_knows_is_refused(name: str, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        unmeasured(name)


def test_labels_and_names_cannot_leave_their_place() -> None:
    """A label that closes a string, and a node that closes a comment, stay text."""
    made = model([helper.make_node("Conv", ["x", "w"], ["y"], name="a*/ int b; /*")])
    entry = made.metadata_props.add()
    entry.key, entry.value = "compress.classes", '["\\"; int c; //", "\\u3042", "a\\nb", "??/"]'
    text = generate(made, name="net", target=NATIVE).files["net.c"]
    assert r'{"\042; int c; //", "\343\201\202", "a\012b", "\077\077/"}' in text
    assert "a* / int b; / *" in text and "a*/" not in text
