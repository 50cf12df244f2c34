"""ONNX's own node tests of every operator that is written as C: the truth is the expected output that ONNX ships with each.

What is left out is not of this kind of network: other types than float32 and uint8, three-dimensional pools, cubic resizing. The counts
stand here, so that a case that begins to be refused is noticed.
"""

from typing import Any

import numpy as np
import pytest
from compiled_c import Compiled, library, needs_gcc
from node_tests import cases, one_input

from compress.codegen.nodes import NODES
from compress.codegen.program import Program, generate
from compress.codegen.target import TARGETS
from compress.errors import CompressError

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
