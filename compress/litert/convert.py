"""A graph as a ``.tflite`` file: raw image in, channels last, and what the graph gives, in floats.

By hand: a graph with an input uint8 (1, 3, 32, 32) takes uint8 (1, 32, 32, 3) there, one image at a time. What normalises it is part of the
file, as in the graph. int8 stays int8, with the scales of the graph, so answers differ by what two kernels round differently; where LiteRT
has no such kernel a node is computed in floats, and named.

Refused, by the name of the node: operators without counterpart, and what :mod:`compress.codegen.read` refuses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..codegen.read import Node, read
from ..graphs.file import read_onnx
from .file import File
from .functions import FUNCTIONS, dequantize
from .gelu import gelu
from .layers import LAYERS
from .lowering import Lowering, Value
from .moves import MOVES

NODES = {**LAYERS, **FUNCTIONS, **MOVES}
FUSING = ("Conv", "Gemm", "Add", "Sub", "Mul", "Div")  # those that can end with an activation


@dataclass(frozen=True, kw_only=True)
class Converted:
    """``content`` of the file. ``left``: the nodes that the graph has in int8 and the file in floats, and why. ``int8``: how many operators
    compute in int8, ``operators``: all."""

    content: bytes
    left: Mapping[str, str]
    int8: int
    operators: int


def convert(model: onnx.ModelProto | Path) -> Converted:
    """The file for a model, with its metadata. Raises CompressError, see the module."""
    model = read_onnx(model) if isinstance(model, Path) else model
    notes = {entry.key: entry.value.encode() for entry in model.metadata_props}
    graph = read(model, "for LiteRT")
    low, shape = Lowering(graph, File()), graph.shapes[graph.input]
    entry = Value(-1, shape, len(shape) == 4)
    at = low.file.tensor(graph.input, entry.stored, graph.types[graph.input])
    low.values[graph.input] = Value(at, shape, entry.last)
    for node in graph.nodes:
        if node not in low.done and not gelu(low, node):
            _lower(low, node)
    given = [low.plain(low.floats(name)) for name in graph.outputs]
    content = low.file.write([at], [one.at for one in given], notes)
    int8 = low.file.schema.TensorType.INT8
    computing = [one for one in low.file.operators if all(low.file.tensors[at].type == int8 for at in (one.inputs[0], one.outputs[0]))]
    return Converted(content=content, left=low.left, int8=len(computing), operators=len(low.file.operators))


def _lower(low: Lowering, node: Node) -> None:
    if node.kind == "DequantizeLinear":
        dequantize(low, node)
        return
    if node.kind not in NODES:
        raise node.refuse("LiteRT has no such operator")
    for name in node.outputs:
        if node.kind != "QuantizeLinear" and name and low.graph.types.get(name, np.dtype(np.float32)) != np.float32:
            raise node.refuse(f"its output is {low.graph.types[name]}")
    lower, unfit, most = NODES[node.kind]
    names = [name for name in node.inputs[:most] if name]
    ends = low.end(node, fuses=node.kind in FUSING, int8=True)
    ints = [low.integers.get(name) for name in names]
    computed = [one for name, one in zip(names, ints, strict=True) if not low.is_constant(name)]
    if ends.scale and computed and all(one is not None for one in computed):
        quantized = [one for one in ints if one is not None]
        why = "LiteRT has no kernel for it, or none is used" if unfit is None else unfit(low, node, quantized, ends)
        if not why:
            lower(low, node, quantized, ends)
            return
        low.left[node.name] = why
    end = low.end(node, fuses=node.kind in FUSING, int8=False)
    lower(low, node, [low.floats(name) for name in names], end)
