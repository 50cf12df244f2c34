import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.errors import CompressError
from compress.graphs.as_torch.operators import OPERATORS, make_function
from compress.graphs.index import index

NUMBERS = np.random.default_rng(0)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def real(*shape: int) -> np.ndarray:
    return NUMBERS.normal(size=shape).astype(np.float32)


IMAGES = (2, 3, 7, 6)
NONE = np.array([], np.float32)  # an input that is left out
CASES: list[tuple[str, list[np.ndarray | tuple[int, ...]], dict[str, object]]] = [
    # Operator, inputs (a tuple is the shape of a tensor, an array a constant), attributes.
    ("Add", [IMAGES, (3, 1, 1)], {}),
    ("Sub", [IMAGES, (6,)], {}),
    ("Mul", [IMAGES, (2, 3, 1, 1)], {}),
    ("Div", [IMAGES, ()], {}),
    ("Relu", [IMAGES], {}),
    ("Sigmoid", [IMAGES], {}),
    ("HardSigmoid", [IMAGES], {}),
    ("HardSigmoid", [IMAGES], {"alpha": 1 / 6, "beta": 0.4}),
    ("HardSwish", [IMAGES], {}),
    ("Identity", [IMAGES], {}),
    ("Cast", [IMAGES], {"to": TensorProto.FLOAT}),
    ("Clip", [IMAGES, np.float32(-0.5), np.float32(0.25)], {}),
    ("Clip", [IMAGES, np.array([], np.float32), np.float32(0.25)], {}),
    ("Clip", [IMAGES], {}),
    ("Conv", [IMAGES, real(4, 3, 3, 3), real(4)], {}),
    ("Conv", [IMAGES, real(4, 3, 3, 2)], {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ("Conv", [IMAGES, real(6, 1, 3, 3), real(6)], {"group": 3, "pads": [2, 1, 2, 1], "dilations": [2, 1]}),
    ("Conv", [(2, 3, 9), real(4, 3, 3)], {"pads": [1, 2]}),
    ("Conv", [IMAGES, real(4, 3, 3, 3)], {"auto_pad": "VALID"}),
    ("Gemm", [(5, 4), real(4, 3)], {}),
    ("Gemm", [(5, 4), real(3, 4), real(3)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [(4, 5), real(4, 3), real(1, 3)], {"transA": 1}),
    ("MatMul", [(2, 5, 4), real(4, 3)], {}),
    ("MaxPool", [IMAGES], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", [IMAGES], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", [IMAGES], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", [IMAGES], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0]}),
    ("AveragePool", [IMAGES], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", [IMAGES], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", [IMAGES], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [IMAGES], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    *(
        ("AveragePool", [IMAGES], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "count_include_pad": count, "ceil_mode": ceil})
        for pads in ([0, 0, 1, 1], [1, 0, 0, 1])
        for count in (0, 1)
        for ceil in (0, 1)
    ),
    ("GlobalAveragePool", [IMAGES], {}),
    ("GlobalMaxPool", [IMAGES], {}),
    ("ReduceMean", [IMAGES, whole(2, 3)], {"keepdims": 0}),
    ("ReduceMean", [IMAGES, whole(-1)], {}),
    ("ReduceMean", [IMAGES], {}),
    ("ReduceMean", [IMAGES], {"noop_with_empty_axes": 1}),
    ("ReduceMax", [IMAGES, whole(1)], {"keepdims": 1}),
    ("ReduceSum", [IMAGES, whole(1, 2)], {"keepdims": 0}),
    ("Concat", [IMAGES, (2, 1, 7, 6), (2, 2, 7, 6)], {"axis": 1}),
    ("Split", [(2, 5, 3)], {"axis": 1, "num_outputs": 2}),
    ("Split", [(2, 5, 3), whole(1, 4)], {"axis": 1}),
    ("Slice", [IMAGES, whole(1), whole(3)], {}),
    ("Slice", [IMAGES, whole(1, 0), whole(-1, 2**62), whole(2, 3), whole(2, 1)], {}),
    ("Reshape", [IMAGES, whole(0, -1)], {}),
    ("Reshape", [IMAGES, whole(-1, 6)], {"allowzero": 1}),
    ("Flatten", [IMAGES], {}),
    ("Flatten", [IMAGES], {"axis": 2}),
    ("Transpose", [IMAGES], {"perm": [0, 2, 3, 1]}),
    ("Transpose", [IMAGES], {}),
    ("Squeeze", [(2, 1, 3, 1), whole(1, -1)], {}),
    ("Squeeze", [(2, 1, 3, 1)], {}),
    ("Unsqueeze", [(2, 3), whole(-1, 1)], {}),
    ("Softmax", [IMAGES], {"axis": 1}),
    ("Softmax", [IMAGES], {}),
    ("Abs", [IMAGES], {}),
    ("Dropout", [IMAGES, np.float32(0.3)], {}),
    ("Elu", [IMAGES], {"alpha": 0.7}),
    ("Erf", [IMAGES], {}),
    ("Exp", [IMAGES], {}),
    ("Gelu", [IMAGES], {}),
    ("Gelu", [IMAGES], {"approximate": "tanh"}),
    ("LRN", [IMAGES], {"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.5}),
    ("LayerNormalization", [IMAGES, real(6), real(6)], {"epsilon": 0.1}),
    ("LayerNormalization", [IMAGES, real(7, 6)], {"axis": 2}),
    ("LeakyRelu", [IMAGES], {"alpha": 0.2}),
    ("Log", [IMAGES], {}),
    ("LogSoftmax", [IMAGES], {"axis": 1}),
    ("LogSoftmax", [IMAGES], {}),
    ("Max", [IMAGES, IMAGES, (6,)], {}),
    ("Min", [IMAGES, (3, 1, 1)], {}),
    ("Neg", [IMAGES], {}),
    ("Pad", [IMAGES, whole(0, 0, 1, 2, 0, 1, 0, 3), np.float32(0.5)], {}),
    ("Pad", [IMAGES, whole(1, 2), np.float32(0), whole(-1)], {}),
    ("Pow", [IMAGES, np.float32(2)], {}),
    ("Reciprocal", [IMAGES], {}),
    ("Softplus", [IMAGES], {}),
    ("Sqrt", [IMAGES], {}),
    ("Sum", [IMAGES, IMAGES, (3, 1, 1)], {}),
    ("Tanh", [IMAGES], {}),
    ("Ceil", [IMAGES], {}),
    ("Floor", [IMAGES], {}),
    ("Round", [IMAGES], {}),
    ("Sign", [IMAGES], {}),
    ("Sin", [IMAGES], {}),
    ("Cos", [IMAGES], {}),
    ("Celu", [IMAGES], {"alpha": 0.6}),
    ("Selu", [IMAGES], {}),
    ("Selu", [IMAGES], {"alpha": 1.2, "gamma": 0.8}),
    ("Mish", [IMAGES], {}),
    ("Softsign", [IMAGES], {}),
    ("Mean", [IMAGES, IMAGES, (3, 1, 1)], {}),
    ("ReduceL2", [IMAGES, whole(1)], {}),
    ("ReduceMin", [IMAGES, whole(2, 3)], {"keepdims": 0}),
    ("InstanceNormalization", [IMAGES, real(3), real(3)], {"epsilon": 0.1}),
    ("DepthToSpace", [(2, 12, 3, 4)], {"blocksize": 2}),
    ("DepthToSpace", [(2, 12, 3, 4)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [(2, 3, 4, 6)], {"blocksize": 2}),
    ("ConvTranspose", [IMAGES, real(3, 4, 2, 2), real(4)], {"strides": [2, 2]}),
    ("ConvTranspose", [IMAGES, real(3, 4, 3, 3)], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("ConvTranspose", [(2, 4, 5, 6), real(4, 3, 3, 2), real(6)], {"group": 2, "dilations": [2, 1]}),
    ("ConvTranspose", [(2, 3, 9), real(3, 4, 3)], {"pads": [1, 1]}),
    *(
        ("Resize", [IMAGES, NONE, scales], how)
        for scales in (np.float32([1, 1, 2, 3]), np.float32([1, 1, 0.5, 0.5]), np.float32([1, 1, 1.3, 1.7]))
        for how in (
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"mode": "linear"},
            {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
            {"mode": "cubic"},
        )
    ),
    *(
        ("Resize", [IMAGES, NONE, NONE, sizes], {"mode": "linear", "coordinate_transformation_mode": corners} | how)
        for sizes, how in ((whole(2, 3, 12, 14), {}), (whole(5, 9), {"axes": [2, 3]}))
        for corners in ("half_pixel", "align_corners")
    ),
    ("Resize", [IMAGES, NONE, NONE, whole(2, 3, 5, 11)], {"nearest_mode": "round_prefer_ceil"}),
    ("Resize", [IMAGES, NONE, NONE, whole(2, 3, 10, 4)], {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", [(2, 3, 7), NONE, np.float32([1, 1, 2])], {"mode": "linear"}),
]


@pytest.mark.parametrize(("kind", "inputs", "attributes"), CASES, ids=[f"{case[0]}-{index}" for index, case in enumerate(CASES)])
def test_operator_computes_what_onnx_runtime_does(kind: str, inputs: list[np.ndarray | tuple[int, ...]], attributes: dict) -> None:
    names = ["" if isinstance(value, np.ndarray) and value.shape == (0,) else f"i{index}" for index, value in enumerate(inputs)]
    constants = {name: np.asarray(value) for name, value in zip(names, inputs, strict=True) if name and not isinstance(value, tuple)}
    tensors = {name: real(*value) for name, value in zip(names, inputs, strict=True) if isinstance(value, tuple)}
    outputs = ["y", "z"] if kind == "Split" else ["y"]
    node = helper.make_node(kind, names, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in tensors.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", 20 if kind == "Gelu" else 18)  # which is younger than the others
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, tensors)
    function, taken = make_function(index(model)[0])
    found = function(*[torch.tensor(tensors[name] if name in tensors else constants[name]) for name in taken])
    for one, other in zip(found if isinstance(found, tuple) else (found,), expected, strict=True):
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-5, atol=1e-5)


def test_every_operator_is_compared_with_onnx_runtime() -> None:
    assert {case[0] for case in CASES} == set(OPERATORS)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (
            helper.make_node("Det", ["x"], ["y"], name="odd"),
            'Det "odd" is an operator that has no torch function.*known are Abs, .*fine-tune',
        ),
        (helper.make_node("Relu", ["x"], ["y"], domain="com.microsoft"), 'Relu "y" is an operator that has no torch function'),
        (helper.make_node("Reshape", ["x", "shape"], ["y"]), 'Reshape "y" takes "shape" from the graph, but it must be constant; fold'),
        (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.INT64), "casts to INT64, but must cast to FLOAT; fine-tune"),
        (helper.make_node("Pad", ["x", "from"], ["y"], mode="edge"), 'has mode .="edge".*must pad with a number'),
        (helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER"), 'auto_pad .="SAME_UPPER".*pads as numbers'),
        (helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]), "is dilated, which torch cannot"),
        (helper.make_node("Resize", ["x", "", "twice"], ["y"]), "resizes by nearest, half_pixel, round_prefer_floor, which torch's"),
        (
            helper.make_node("Resize", ["x", "", "twice"], ["y"], mode="linear", coordinate_transformation_mode="asymmetric"),
            "resizes by linear, asymmetric, which torch's interpolate does not; fine-tune",
        ),
        (helper.make_node("Resize", ["x", "", "twice"], ["y"], mode="linear", antialias=1), "antialiases, .*which torch cannot"),
        (helper.make_node("Resize", ["x", "", "twice"], ["y"], mode="cubic", cubic_coeff_a=-0.5), "cubic_coeff_a .=-0.5., but torch has"),
        (helper.make_node("Resize", ["x", "", "wide"], ["y"], mode="linear"), "changes other sizes than those behind the channels"),
        (helper.make_node("Resize", ["x", "", "sizes"], ["y"], mode="linear"), 'takes "sizes" from the graph, but it must be constant'),
        (helper.make_node("ConvTranspose", ["x", "w"], ["y"], pads=[0, 1, 0, 0]), "pads that differ from side to side, which torch cannot"),
        (helper.make_node("Slice", ["x", "from", "to", "axis", "step"], ["y"]), "steps .=.-1.., but torch needs them positive"),
    ],
)
def test_what_torch_cannot_do_is_refused(node: onnx.NodeProto, told: str) -> None:
    constants = {"twice": np.float32([1, 1, 2, 2]), "wide": np.float32([1, 2, 2, 2])}
    constants |= {"from": whole(3), "to": whole(0), "axis": whole(1), "step": whole(-1)}
    graph = helper.make_graph([node], "one", [], [], [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(CompressError, match=told):
        make_function(index(model)[0])
