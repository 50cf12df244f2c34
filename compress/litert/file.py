"""A ``.tflite`` file with one graph: its tensors and operators, as LiteRT's own schema has them.

Constants begin at multiples of 16 bytes, as kernels read them in place; the same calls give the same bytes. Needs ai-edge-litert.

Source: the schema of TensorFlow Lite, version 3, and its quantization specification.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CompressError

KINDS = {"float32": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "int32": "INT32", "bool": "BOOL"}
INT8_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "RESHAPE": 1, "QUANTIZE": 1}  # of operators on int8; else 2
VERSIONS = {"BROADCAST_TO": 2}  # on floats; else 1
DESCRIPTION = "made by compress export-litert"


def schema() -> Any:
    """LiteRT's schema. Raises CompressError where it is not installed."""
    try:
        from ai_edge_litert import schema_py_generated
    except ModuleNotFoundError as error:
        raise CompressError("ai-edge-litert is not installed; `pip install 'compress-edge[litert]'`") from error
    return schema_py_generated


@dataclass(frozen=True, eq=False)
class Quantization:
    """What integers stand for, ``(q - zero) * scale``: one scale, or one for each place along ``axis`` with a zero of 0."""

    scale: float | NDArray[np.float32]
    zero: int = 0
    axis: int = 0


@dataclass(eq=False)
class File:
    """What is written so far."""

    schema: Any = field(default_factory=schema)
    tensors: list[Any] = field(default_factory=list)
    operators: list[Any] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    buffers: list[NDArray[Any] | bytes] = field(default_factory=lambda: [b""])
    versions: dict[str, int] = field(default_factory=dict)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: Any = np.float32,
        *,
        data: NDArray[Any] | None = None,
        quantization: Quantization | None = None,
    ) -> int:
        """The number of a new tensor; ``data`` of a constant."""
        one = self.schema.TensorT()
        one.name, one.shape = name.encode(), np.array(shape, np.int32)
        one.type, one.buffer = getattr(self.schema.TensorType, KINDS[np.dtype(dtype).name]), 0
        if data is not None:
            one.buffer = len(self.buffers)
            self.buffers.append(np.ascontiguousarray(data, dtype))
        self.tensors.append(one)
        if quantization is not None:
            self.quantize(len(self.tensors) - 1, quantization)
        return len(self.tensors) - 1

    def quantize(self, at: int, quantization: Quantization) -> None:
        """Say what the integers of a tensor stand for."""
        one = self.schema.QuantizationParametersT()
        scale = np.atleast_1d(np.asarray(quantization.scale, np.float32))
        one.scale, one.zeroPoint = scale, np.full(len(scale), quantization.zero, np.int64)
        one.quantizedDimension, self.tensors[at].quantization = quantization.axis, one

    def constant(self, name: str, data: NDArray[Any]) -> int:
        """The number of a constant."""
        return self.tensor(name, data.shape, data.dtype, data=data)

    def add(self, code: str, inputs: Sequence[int], outputs: Sequence[int], kind: str = "", /, **options: Any) -> None:
        """One operator; ``kind``: of its ``options``, as the schema calls them."""
        if code not in self.codes:
            self.codes.append(code)
        if any(self.tensors[at].type == self.schema.TensorType.INT8 for at in (*inputs, *outputs)):
            self.versions[code] = INT8_VERSIONS.get(code, 2)
        one = self.schema.OperatorT()
        one.opcodeIndex, one.inputs, one.outputs = self.codes.index(code), np.array(inputs, np.int32), np.array(outputs, np.int32)
        if kind:
            one.builtinOptionsType, one.builtinOptions = getattr(self.schema.BuiltinOptions, kind), getattr(self.schema, f"{kind}T")()
            vars(one.builtinOptions).update(options)
        self.operators.append(one)

    def write(self, inputs: Sequence[int], outputs: Sequence[int], notes: Mapping[str, bytes]) -> bytes:
        """The file, with ``notes`` among its metadata."""
        import flatbuffers  # type: ignore[import-untyped]

        graph, model = self.schema.SubGraphT(), self.schema.ModelT()
        graph.tensors, graph.operators, graph.name = self.tensors, self.operators, b"main"
        graph.inputs, graph.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        model.version, model.description, model.subgraphs = 3, DESCRIPTION.encode(), [graph]
        model.metadata = []
        for name, note in notes.items():
            entry = self.schema.MetadataT()
            entry.name, entry.buffer = name.encode(), len(self.buffers)
            self.buffers.append(note)
            model.metadata.append(entry)
        model.operatorCodes = [self._code(code) for code in self.codes]
        model.buffers = [_Buffer(one if isinstance(one, bytes) else one.tobytes(), self.schema) for one in self.buffers]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _code(self, code: str) -> Any:
        one, number = self.schema.OperatorCodeT(), getattr(self.schema.BuiltinOperator, code)
        one.builtinCode, one.deprecatedBuiltinCode, one.version = number, min(number, 127), self.versions.get(code, VERSIONS.get(code, 1))
        return one


@dataclass(frozen=True)
class _Buffer:
    """Bytes that begin at a multiple of 16, which the schema's own packing in Python does not see to."""

    content: bytes
    schema: Any

    def Pack(self, builder: Any) -> Any:  # flatbuffers' name
        at = None
        if self.content:
            builder.StartVector(1, len(self.content), 16)
            builder.head -= len(self.content)
            builder.Bytes[builder.head : builder.head + len(self.content)] = self.content
            at = builder.EndVector()
        self.schema.BufferStart(builder)
        if at is not None:
            self.schema.BufferAddData(builder, at)
        return self.schema.BufferEnd(builder)


def notes_of(content: bytes) -> dict[str, bytes]:
    """The metadata of a file by name; of anybody's. Raises CompressError where it is damaged."""
    found = {}
    try:
        model = schema().Model.GetRootAs(content, 0)
        for at in range(model.MetadataLength()):
            entry = model.Metadata(at)
            data = model.Buffers(entry.Buffer())
            found[(entry.Name() or b"").decode(errors="replace")] = data.DataAsNumpy().tobytes() if data.DataLength() else b""
    except (struct.error, ValueError, TypeError, AttributeError, IndexError, MemoryError) as error:  # offsets that lead elsewhere
        raise CompressError(f"its metadata is damaged ({type(error).__name__}); make the file again") from error
    return found
