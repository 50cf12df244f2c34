"""Graphs as .tflite files, in LiteRT: ONNX's own node tests, every tensor of whole networks, integers, and what is refused."""

import math
from pathlib import Path
from typing import Any

import c_networks as networks
import numpy as np
import onnx
import pytest
from node_tests import cases, one_input
from onnx import helper, parser

from compress.errors import CompressError
from compress.graphs.probe import with_outputs
from compress.litert.convert import NODES, Converted, convert
from compress.litert.file import notes_of, schema

COUNTS = {
    "Abs": 1, "Add": 2, "AveragePool": 10, "BatchNormalization": 2, "Clip": 9, "Concat": 12, "Conv": 6, "Div": 3, "Dropout": 4, "Elu": 1,
    "Erf": 1, "Exp": 2, "Expand": 2, "Flatten": 9, "Gelu": 4, "Gemm": 6, "GlobalAveragePool": 2, "GlobalMaxPool": 2, "HardSigmoid": 3,
    "HardSwish": 1, "Identity": 2, "LeakyRelu": 3, "MatMul": 1, "Max": 3, "MaxPool": 10, "Min": 3, "Mul": 3, "Neg": 2, "PRelu": 0,
    "Pad": 3, "Pow": 1, "ReduceMax": 8, "ReduceMean": 8, "ReduceMin": 8, "ReduceSum": 8, "Relu": 1, "Reshape": 9, "Resize": 12,
    "Sigmoid": 2, "Slice": 6, "Softmax": 5, "Split": 14, "Sqrt": 2, "Squeeze": 2, "Sub": 3, "Sum": 2, "Tanh": 2, "Transpose": 7,
    "Unsqueeze": 7,
}  # fmt: skip


class Lite:
    """A file in LiteRT, fed as the graph is: one image, channels first."""

    def __init__(self, made: Converted) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_content=made.content, num_threads=1)
        self.interpreter.allocate_tensors()

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        [port] = self.interpreter.get_input_details()
        self.interpreter.set_tensor(port["index"], image.transpose(0, 2, 3, 1) if image.ndim == 4 else image)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(one["index"]) for one in self.interpreter.get_output_details()]


KINDS = frozenset(NODES) - {"QuantizeLinear", "Cast"}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_node_gives_what_onnx_expects(kind: str) -> None:
    count, refused = 0, {}
    for case in cases(KINDS)[kind]:
        inputs, outputs = case.data_sets[0]
        try:
            if not all(isinstance(one, np.ndarray | np.generic) for one in (*inputs, *outputs)) or not (inputs[0].size and outputs[0].size):
                raise CompressError("sequences, types that numpy lacks, and tensors without numbers")
            run = Lite(convert(one_input(case.model, list(inputs))))
        except CompressError as error:
            refused[case.name] = str(error)
            continue
        count += 1
        for found, expected in zip(run(inputs[0]), outputs, strict=False):
            assert found.shape == expected.shape, case.name
            np.testing.assert_allclose(found, expected, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5), err_msg=case.name)
    assert count == COUNTS[kind], refused


@pytest.mark.parametrize("name", networks.SHAPES)
def test_every_tensor_is_that_of_onnx_runtime(name: str) -> None:
    model = onnx.shape_inference.infer_shapes(networks.model(name))
    every = with_outputs(model, dict.fromkeys(value.name for value in (*model.graph.output, *model.graph.value_info)))
    run, batch = Lite(convert(every)), networks.images(name)[:3]
    for image, expected in zip(batch, networks.answers(every, batch, as_written=True), strict=True):
        for found, wanted in zip(run(image[None]), expected, strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", networks.SHAPES)
def test_int8_answers_are_those_of_the_graph_as_it_is_written(name: str) -> None:
    """Kernels round differently, by a step here and there; almost all nodes compute in int8."""
    model, batch = networks.model(name, int8=True), networks.images(name)[:100]
    made = convert(model)
    run = Lite(made)
    found = np.concatenate([run(image[None])[0] for image in batch])
    wanted = np.concatenate([one[0] for one in networks.answers(model, batch, as_written=True)])
    assert np.abs(found - wanted).max() <= 0.1 * np.abs(wanted).max()
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.97
    share = 0.25 if name == "mixed" else 0.5  # gates and GELU, step by step in integers, which LiteRT has not
    assert made.int8 > share * made.operators and len(made.content) < 0.6 * len(convert(networks.model(name)).content), made.left


def qdq(scale_out: float, scale_in: float = 0.1) -> onnx.ModelProto:
    """A convolution of 1 by 1 between integers of these scales, whose weight is 1."""
    made = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 2, 3, 3] image) => (float[1, 2, 3, 3] y) <
        float s = {{{scale_in!r}}}, float t = {{{scale_out!r}}}, int8 z = {{0}}, float u = {{0.0078125}}> {{
        q = QuantizeLinear (image, s, z)
        d = DequantizeLinear (q, s, z)
        v = DequantizeLinear (w, u, z)
        c = Conv (d, v)
        r = QuantizeLinear (c, t, z)
        y = DequantizeLinear (r, t, z)
    }}""")
    made.graph.initializer.append(helper.make_tensor("w", onnx.TensorProto.INT8, (2, 2, 1, 1), [127, 0, 0, 127]))
    return made


def test_a_scale_beyond_what_kernels_multiply_by_stays_in_floats_and_is_named() -> None:
    """By hand: 0.1 / 128 / 1e-7 is 7812; XNNPACK takes less than 256, and refused the whole file."""
    assert not convert(qdq(0.1)).left
    made = convert(qdq(1e-7))
    [why] = made.left.values()
    assert "multiplied by 7.81e+03, and XNNPACK takes 2**-32 to 256" in why
    image = np.zeros((1, 2, 3, 3), np.float32)
    assert np.abs(Lite(made)(image)[0]).max() == 0


def test_the_file_says_what_the_graph_does_and_constants_are_aligned(tmp_path: Path) -> None:
    model = networks.model("emnist")
    entry = model.metadata_props.add()
    entry.key, entry.value = "compress.classes", '["a", "\u3042"]'
    made = convert(model)
    del model.metadata_props[:]
    assert notes_of(made.content) == {"compress.classes": '["a", "\u3042"]'.encode()}
    assert made.content == convert(_with_note(model, '["a", "\u3042"]')).content and made.content[4:8] == b"TFL3"
    found = schema().Model.GetRootAs(made.content, 0)
    starts = [
        found.Buffers(at)._tab.Vector(found.Buffers(at)._tab.Offset(4))
        for at in range(found.BuffersLength())
        if found.Buffers(at).DataLength()
    ]
    assert starts and all(start % 16 == 0 for start in starts)


def _with_note(model: onnx.ModelProto, value: str) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    entry = made.metadata_props.add()
    entry.key, entry.value = "compress.classes", value
    return made


def graph(text: str) -> Any:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4, 6, 6] image) => (float[1, 4, 6, 6] y) {{ {text} }}')


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("y = Sin (image)", r'node "Sin_0" \(Sin\) cannot be written for LiteRT: LiteRT has no such operator'),
        ("y = Elu <alpha = 2.0> (image)", "alpha must be 1"),
        ("y = Softmax <axis = 2> (image)", r"axis \(=2\) must be the last, or the channels of a map"),
    ],
)
def test_what_litert_has_not_is_refused_by_the_name_of_the_node(text: str, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        convert(graph(text))


@pytest.mark.parametrize(
    "order", ["a = Mul (image, h) m = Mul (a, e)", "a = Mul (image, e) m = Mul (h, a)", "a = Mul (e, image) m = Div (a, two)"]
)
def test_gelu_in_whichever_order_is_one_operator(order: str) -> None:
    text = f"""<float r = {{{math.sqrt(2)!r}}}, float one = {{1.0}}, float h = {{0.5}}, float two = {{2.0}}>
        {{ d = Div (image, r) f = Erf (d) e = Add (f, one) {order} y = Identity (m) }}"""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g (float[1, 4, 6, 6] image) => (float[1, 4, 6, 6] y) {text}')
    made, image = convert(model), np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)
    assert made.operators <= 3
    np.testing.assert_allclose(Lite(made)(image)[0], networks.answers(model, image, as_written=True)[0][0], rtol=1e-4, atol=1e-5)


def test_damaged_metadata_is_refused_in_words() -> None:
    content = bytearray(convert(_with_note(networks.model("emnist"), "[]")).content)
    place = content.index(b"compress.classes") - 4
    content[place : place + 4] = b"\xff\xff\xff\x7f"
    with pytest.raises(CompressError, match="its metadata is damaged"):
        notes_of(bytes(content[: place + 30]))
