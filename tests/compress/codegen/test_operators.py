"""ONNX's own node tests of every operator that is written as C: the truth is the expected output that ONNX ships with each.

What is left out is not of this kind of network: other types than float32 and uint8, three-dimensional pools, cubic resizing. The counts
stand here, so that a case that begins to be refused is noticed.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compiled_c import Compiled, library, needs_gcc
from node_tests import cases, one_input
from onnx import numpy_helper, parser

from compress.codegen.nodes import NODES
from compress.codegen.program import Program, generate
from compress.codegen.target import TARGETS
from compress.errors import CompressError
from compress.graphs.file import open_session

COUNTS = {
    "Abs": 1, "Add": 2, "AveragePool": 14, "BatchNormalization": 2, "Cast": 0, "Clip": 9, "Concat": 12, "Conv": 6, "DequantizeLinear": 1,
    "Div": 3, "Dropout": 4, "Elu": 3, "Erf": 1, "Exp": 2, "Expand": 2, "Flatten": 9, "Gelu": 4, "Gemm": 11, "GlobalAveragePool": 2,
    "GlobalMaxPool": 2, "HardSigmoid": 3, "HardSwish": 1, "Identity": 2, "LeakyRelu": 3, "MatMul": 4, "Max": 4, "MaxPool": 13, "Min": 4,
    "Mul": 3, "Neg": 2, "PRelu": 2, "Pad": 3, "QuantizeLinear": 1, "ReduceMax": 8, "ReduceMean": 8, "ReduceMin": 8, "ReduceSum": 10,
    "Relu": 1, "Reshape": 9, "Resize": 21, "Sigmoid": 2, "Slice": 7, "Softmax": 7, "Split": 14, "Sqrt": 2, "Squeeze": 2, "Sub": 3,
    "Tanh": 2, "Transpose": 7, "Unsqueeze": 7,
}  # fmt: skip


KINDS = frozenset(NODES)


def written(kind: str) -> tuple[list[tuple[Any, Program]], dict[str, str]]:
    """The cases of an operator that become C, and why the others do not."""
    programs, refused = [], {}
    for number, case in enumerate(cases(KINDS)[kind]):
        inputs, outputs = case.data_sets[0]
        try:
            if not all(isinstance(one, np.ndarray | np.generic) for one in (*inputs, *outputs)) or not (inputs[0].size and outputs[0].size):
                raise CompressError("sequences, types that numpy lacks, and tensors without numbers")
            model = one_input(case.model, list(inputs))
            programs.append((case, generate(model, name=f"{kind.lower()}{number}", target=TARGETS["native"])))
        except CompressError as error:
            refused[case.name] = str(error)
    return programs, refused


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[tuple[Any, Compiled]], dict[str, str]]]:
    """What is written of every operator, compiled in one go."""
    found = {kind: written(kind) for kind in sorted(KINDS)}
    programs = [program for some, _ in found.values() for _, program in some]
    runs = iter(library(programs, tmp_path_factory.mktemp("operators"), ["-O1", *TARGETS["native"].flags]))
    return {kind: ([(case, next(runs)) for case, _ in some], refused) for kind, (some, refused) in found.items()}


@needs_gcc
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_node_gives_what_onnx_expects(kind: str, operators: dict[str, tuple[list[tuple[Any, Compiled]], dict[str, str]]]) -> None:
    runs, refused = operators[kind]
    assert len(runs) == COUNTS[kind], refused
    for case, run in runs:
        inputs, outputs = case.data_sets[0]
        for found, expected in zip(run(inputs[0]), outputs, strict=False):
            assert found.shape == expected.shape, case.name
            np.testing.assert_allclose(found, expected.astype(np.float32), rtol=case.rtol, atol=case.atol, err_msg=case.name)


def compiled(model: str, folder: Path) -> tuple[onnx.ModelProto, Compiled]:
    """A graph as onnx's parser reads it, its weights random, and the same as C."""
    made = parser.parse_model(model)
    generator = np.random.default_rng(0)
    known = {one.name for one in made.graph.input}
    for name, shape in {"w": (4, 3, 3, 3), "a": (3, 4, 3, 3), "b": (3, 4, 1, 1), "d": (4, 1, 3, 3)}.items():
        if any(name in node.input for node in made.graph.node) and name not in known:
            made.graph.initializer.append(numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name))
    [run] = library([generate(made, name="net", target=TARGETS["native"])], folder, ["-O1", *TARGETS["native"].flags])
    return made, run


@needs_gcc
@pytest.mark.parametrize(
    "body",
    [
        "one = Conv <pads = [1, 1, 1, 1]> (r, a) two = Conv (r, b) y = Concat <axis = 1> (one, two)",  # both in planes
        "one = Conv <pads = [1, 1, 1, 1]> (r, a) y = Concat <axis = 1> (r, one)",
        "one = Conv <pads = [1, 1, 1, 1]> (r, a) y = Concat <axis = 1> (one, r)",
        "one = Conv (r, b) two = Conv (r, b) y = Concat <axis = 2> (one, two)",
        "one = Conv <group = 4, pads = [1, 1, 1, 1]> (r, d) y = Concat <axis = 1> (r, one)",
        "one = Conv <group = 4, pads = [1, 1, 1, 1]> (r, d) two = Relu (c) y = Concat <axis = 1> (two, one, two)",
        "one = Conv <group = 4, pads = [1, 1, 1, 1]> (r, d) two = MaxPool <kernel_shape = [1, 1]> (r) y = Concat <axis = 1> (two, one, r)",
    ],
)
def test_channels_that_are_joined_leave_each_other_alone(body: str, tmp_path: Path) -> None:
    made, run = compiled(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 9, 7] x) => (float[1, n, h, v] y) {{
        c = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu (c) {body} }}""",
        tmp_path,
    )
    image = np.random.default_rng(1).normal(size=(1, 3, 9, 7)).astype(np.float32)
    [wanted] = open_session(made, "it").run(None, {"x": image})
    np.testing.assert_allclose(run(image)[0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@needs_gcc
@pytest.mark.parametrize("target", ["native", "portable"])
@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul (x, w) b = MatMul (x, v) y = Concat <axis = 2> (a, b)",
        "a = MatMul (x, v) b = MatMul (x, w) y = Concat <axis = 2> (a, b, x)",
    ],
)
def test_products_of_odd_widths_that_are_joined(body: str, target: str, tmp_path: Path) -> None:
    """As the heads of attention are: the last vector of a row may not reach into the next part."""
    model = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1, 5, 7] x) => (float[1, 5, n] y) {{ {body} }}""")
    generator = np.random.default_rng(0)
    for name, width in {"w": 9, "v": 5}.items():
        model.graph.initializer.append(numpy_helper.from_array(generator.normal(size=(7, width)).astype(np.float32), name))
    [run] = library([generate(model, name="net", target=TARGETS[target])], tmp_path, ["-O1", *TARGETS[target].flags])
    image = generator.normal(size=(1, 5, 7)).astype(np.float32)
    [wanted] = open_session(model, "it").run(None, {"x": image})
    np.testing.assert_allclose(run(image)[0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@needs_gcc
@pytest.mark.parametrize("axis", ["", "<axis = 2>", "<axis = 3>", "<axis = -1>"])
@pytest.mark.parametrize("opset", [11, 13])
def test_softmax_before_opset_13_goes_over_all_that_follows(axis: str, opset: int, tmp_path: Path) -> None:
    made, run = compiled(
        f"""<ir_version: 7, opset_import: ["" : {opset}]> g (float[1, 3, 4, 5] x) => (float[1, 3, 4, 5] y) {{ y = Softmax {axis} (x) }}""",
        tmp_path,
    )
    image = np.random.default_rng(1).normal(size=(1, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(run(image)[0], open_session(made, "it").run(None, {"x": image})[0], rtol=1e-5)


@needs_gcc
def test_weights_that_are_inputs_too_are_no_image(tmp_path: Path) -> None:
    made = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[4, 3, 3, 3] w, float[1, 3, 9, 7] x)
        => (float[1, 4, 7, 5] y) { y = Conv (x, w) }""")
    made.graph.initializer.append(numpy_helper.from_array(np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32), "w"))
    [run] = library([generate(made, name="net", target=TARGETS["native"])], tmp_path, ["-O1", *TARGETS["native"].flags])
    image = np.random.default_rng(1).normal(size=(1, 3, 9, 7)).astype(np.float32)
    np.testing.assert_allclose(run(image)[0], open_session(made, "it").run(None, {"x": image})[0], rtol=0, atol=1e-5)
