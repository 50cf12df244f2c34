"""What a graph computes, for one image: a list of typed nodes, constants folded, every shape known, for whatever writes it in another form.

ONNX Runtime's basic optimisation folds what is constant, batch norm included, as in ``graphs.floats.fold``. int8 constants stay what they
are, with their scales: ``Quantized``. By hand: ``DequantizeLinear([4, 8], 0.5, 0)`` is ``Quantized([4, 8], 0.5)``, not ``[2.0, 4.0]``.

Refuses: several inputs, inputs that are neither uint8 nor float32, branches, shapes that are not known before the image.
"""

import json
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import CompressError, shown
from ..graphs.file import Level, image_inputs, open_session, read_onnx
from ..graphs.index import constant, index, maker, settings, sizes


class CodegenError(CompressError):
    """A graph that cannot be written; the message names the node."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """An integer constant and what it stands for: ``(values - zero) * scale``, scale and zero along ``axis`` where they are several."""

    values: NDArray[Any]
    scale: NDArray[np.float32]
    zero: NDArray[Any]
    axis: int

    def along(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Scale or zero in a shape that broadcasts."""
        return numbers.reshape([-1 if axis == self.axis else 1 for axis in range(self.values.ndim)]) if numbers.ndim else numbers

    def numbers(self) -> NDArray[np.float32]:
        """What it stands for."""
        return (self.values.astype(np.float32) - self.along(self.zero).astype(np.float32)) * self.along(self.scale)


Constant = NDArray[Any] | Quantized


@dataclass(frozen=True, eq=False)
class Node:
    """One operator, as the ``opset`` has it; "" where an input is left out. ``form``: what it is written in, for messages."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: dict[str, Any]
    form: str = "as C"
    opset: int = 13

    def refuse(self, why: str) -> CodegenError:
        """The error that says so."""
        return CodegenError(f'node "{shown(self.name)}" ({self.kind}) cannot be written {self.form}: {why}')


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in the order of computation. ``readers``: how many inputs of nodes and outputs of the graph a tensor is."""

    nodes: tuple[Node, ...]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, np.dtype[Any]]
    constants: dict[str, Constant]
    input: str
    outputs: tuple[str, ...]
    readers: Counter[str]
    labels: tuple[str, ...]


def read(model: onnx.ModelProto | Path, form: str = "as C") -> Graph:
    """The graph of a model or file; ``form``: what it is to be written in, for messages. Raises CompressError, see the module."""
    folded = _folded(read_onnx(model) if isinstance(model, Path) else model)
    graph = index(folded)
    if any(graph.subgraphs()):
        raise CodegenError("the graph has branches (If, Loop, Scan); export it without")
    constants: dict[str, Constant] = {}
    shapes, types, nodes = {}, {}, []
    opset = next((one.version for one in folded.opset_import if one.domain in ("", "ai.onnx")), 13)
    [image] = image_inputs(folded)
    for value in (*graph.inputs, *(value for node in graph for value in (*node.inputs, *node.outputs) if value is not None)):
        name, found = str(value.name), constant(value)
        if found is not None:
            constants[name] = np.asarray(found)
        if value.shape is not None and value.dtype is not None:
            shapes[name], types[name] = sizes(value), np.dtype(value.dtype.numpy())
    for number, node in enumerate(graph):
        inputs = tuple(str(value.name) if value is not None else "" for value in node.inputs)
        domain = "" if node.domain in ("", "ai.onnx", "com.microsoft") else f"{node.domain}."
        one = Node(
            node.name or f"{node.op_type}_{number}",
            domain + node.op_type,
            inputs,
            tuple(str(o.name) for o in node.outputs),
            settings(node),
            form,
            opset,
        )
        if one.kind == "DequantizeLinear" and inputs[0] in constants:
            constants[one.outputs[0]] = _quantized(one, constants)
        else:
            nodes.append(one)
        for output, value in zip(one.outputs, node.outputs, strict=True):
            if maker(value) is not None and output and (output not in shapes or 0 in shapes[output]) and value.uses():
                raise one.refuse("the shape of its output is not known before the image")
    outputs = tuple(str(value.name) for value in graph.outputs)
    readers = Counter([name for node in nodes for name in node.inputs if name] + list(outputs))
    return Graph(tuple(nodes), shapes, types, constants, image.name, outputs, readers, _labels(folded))


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model for one image, with constants folded and shapes inferred."""
    entries = image_inputs(model)
    if len(entries) != 1:
        raise CodegenError(f"the graph's inputs ({', '.join(shown(e.name) for e in entries)}) must be one; make constants of the others")
    one = onnx.ModelProto()
    one.CopyFrom(model)
    [entry] = image_inputs(one)
    kind, dims = entry.type.tensor_type.elem_type, entry.type.tensor_type.shape.dim
    if kind not in (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT):
        raise CodegenError(f'input "{shown(entry.name)}" (={onnx.TensorProto.DataType.Name(kind)}) must be UINT8 or FLOAT; export it so')
    for place, dim in enumerate(dims):
        if not dim.dim_value:
            if place:
                raise CodegenError(
                    f'input "{shown(entry.name)}" leaves axis {place} open; only the batch may be; export it with a fixed size'
                )
            dim.dim_value = 1
    for output in one.graph.output:
        if output.type.tensor_type.elem_type:
            output.type.tensor_type.ClearField("shape")
    del one.graph.value_info[:]
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        file = Path(folder) / "folded.onnx"
        open_session(one, "the graph", graph_optimization_level=Level.ORT_ENABLE_BASIC, optimized_model_filepath=str(file))
        folded = onnx.load(file)
    return onnx.shape_inference.infer_shapes(folded, data_prop=True)


def _quantized(node: Node, constants: dict[str, Constant]) -> Quantized:
    found = [one for name in node.inputs if isinstance(one := constants.get(name), np.ndarray)]
    if len(found) < len([name for name in node.inputs if name]) or found[1].ndim > 1:
        raise node.refuse("scale and zero point must be constants, one or one per channel")
    values, scale = found[:2]
    zero = found[2] if len(found) > 2 else np.zeros(scale.shape, np.int32)
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    return Quantized(values, scale.astype(np.float32), zero, node.settings.get("axis", 1) % max(1, values.ndim))


def _labels(model: onnx.ModelProto) -> tuple[str, ...]:
    found = next((entry.value for entry in model.metadata_props if entry.key == "compress.classes"), None)
    return tuple(map(str, json.loads(found))) if found else ()
