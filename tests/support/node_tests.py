"""ONNX's own node tests: the truth is the expected output that ONNX ships with each."""

import functools
import importlib
import re
import warnings
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

# ONNX Runtime takes the size of the output for what the specification calls scale * size; so do we.
AS_ONNX_RUNTIME = {"test_resize_downsample_scales_linear_align_corners"}


@functools.cache
def cases(kinds: Collection[str]) -> dict[str, list[Any]]:
    """The node tests with data of these operators, by operator. ONNX makes its tests where their modules are imported, which takes long:
    only those that say ``class OPERATOR(Base)`` are."""
    from onnx.backend.test.case import node

    found = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in sorted(Path(node.__file__).parent.glob("*.py")):
            if not kinds.isdisjoint(re.findall(r"^class (\w+)\(Base\)", file.read_text(encoding="utf-8"), re.MULTILINE)):
                importlib.import_module(f"{node.__name__}.{file.stem}")
    for case in node._NodeTestCases:
        nodes = case.model.graph.node
        if case.data_sets and len(nodes) == 1 and case.name not in AS_ONNX_RUNTIME:
            found[nodes[0].op_type].append(case)
    return found


def one_input(model: onnx.ModelProto, values: list[np.ndarray]) -> onnx.ModelProto:
    """The model with all inputs but the first as constants."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    first, *others = list(made.graph.input)
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), entry.name) for value, entry in zip(values[1:], others, strict=True)
    )
    del made.graph.input[:]
    made.graph.input.append(first)
    if made.graph.node[0].op_type in ("QuantizeLinear", "DequantizeLinear"):
        made.opset_import[0].version = min(21, made.opset_import[0].version)  # the newest that ONNX Runtime 1.24 has
    return made
