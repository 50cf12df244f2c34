"""From the nodes of a graph to operators of LiteRT: where each tensor is, in which layout, and whether in floats or in integers.

Maps are stored with the channels last, everything else as it is; where a node needs the other, it is turned. In int8 is what the graph
has between DequantizeLinear and QuantizeLinear, where LiteRT's kernels can: by hand, DequantizeLinear, Conv, Relu, QuantizeLinear is one
CONV_2D on int8. What they cannot, such as a scale beyond what they multiply by, is computed in floats between DEQUANTIZE and QUANTIZE,
and named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.read import Graph, Node, Quantized
from .file import File, Quantization

Shape = tuple[int, ...]
LAST = (0, 2, 3, 1)  # from channels first to channels last
FIRST = (0, 3, 1, 2)
ACTIVATIONS = {"": 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}
LIMITS = {(0.0, None): "RELU", (0.0, np.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the file: its number, its shape as the graph has it, whether it is stored with the channels last; of integers their
    ``scale``, 0 of floats, and ``zero``."""

    at: int
    shape: Shape
    last: bool = False
    scale: float = 0.0
    zero: int = 0

    @property
    def stored(self) -> Shape:
        return tuple(self.shape[axis] for axis in LAST) if self.last else self.shape

    def axis(self, axis: int) -> int:
        """Where an axis of the graph is stored."""
        axis %= len(self.shape)
        return LAST.index(axis) if self.last else axis


@dataclass(frozen=True, eq=False)
class End:
    """What a node gives at last: ``name`` of the tensor, whose ``nodes`` are computed with it, an activation, and QuantizeLinear's scale
    and zero point (0, 0 of floats)."""

    name: str
    nodes: tuple[Node, ...] = ()
    activation: str = ""
    scale: float = 0.0
    zero: int = 0


@dataclass(eq=False)
class Lowering:
    """What is lowered so far. ``values``: tensors of the graph in floats; ``integers``: those that were quantized, by the name of the
    integers and by that of what they stand for. ``flattened``: maps whose numbers a product with weights reads in the order in which they
    are stored, by the name of what it reads. ``left``: the nodes that stay in floats though the graph has them in int8, and why."""

    graph: Graph
    file: File
    values: dict[str, Value] = field(default_factory=dict)
    integers: dict[str, Value] = field(default_factory=dict)
    flattened: dict[str, Value] = field(default_factory=dict)
    done: set[Node] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reading: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                self.reading.setdefault(name, []).append(node)

    def only_reader(self, name: str) -> Node | None:
        """The node that alone reads a tensor, once, which the graph does not give."""
        return self.reading[name][0] if self.graph.readers[name] == 1 and self.reading.get(name) else None

    def end(self, node: Node, *, fuses: bool, int8: bool) -> End:
        """How far a node's result goes in one operator."""
        end = End(node.outputs[0])
        reader = self.only_reader(end.name)
        if fuses and reader is not None and (activation := self.activation(reader)):
            end = End(reader.outputs[0], (reader,), activation)
            reader = self.only_reader(end.name)
        if int8 and reader is not None and reader.kind == "QuantizeLinear":
            scale, zero = self.parameters(reader)
            return End(reader.outputs[0], (*end.nodes, reader), end.activation, scale, zero)
        return end

    def activation(self, node: Node) -> str:
        """The one that an operator can end with, or nothing."""
        if node.kind == "Relu":
            return "RELU"
        return LIMITS.get(self.limits(node), "") if node.kind == "Clip" else ""  # type: ignore[arg-type]

    def limits(self, node: Node) -> tuple[float | None, float | None]:
        """Of a Clip."""
        low, high = (
            float(self.numbers(node, at).reshape(())) if len(node.inputs) > at and node.inputs[at] else node.settings.get(key)
            for at, key in ((1, "min"), (2, "max"))
        )
        return low, high

    def parameters(self, node: Node) -> tuple[float, int]:
        """Scale and zero point of a QuantizeLinear for int8."""
        scale, zero = self.numbers(node, 1), self.numbers(node, 2) if len(node.inputs) > 2 and node.inputs[2] else np.zeros((), np.uint8)
        if scale.size != 1 or zero.dtype not in (np.int8, np.uint8):
            raise node.refuse("integers must be of 8 bits, with one scale for all")
        return float(scale.reshape(())), int(zero.reshape(())) - (128 if zero.dtype == np.uint8 else 0)

    def numbers(self, node: Node, at: int) -> NDArray[Any]:
        """A constant input."""
        found = self.graph.constants.get(node.inputs[at])
        if found is None:
            raise node.refuse(f'its input "{node.inputs[at]}" must be a constant')
        return found.numbers() if isinstance(found, Quantized) else found

    def is_constant(self, name: str) -> bool:
        return name in self.graph.constants

    def floats(self, name: str) -> Value:
        """A tensor in floats, of integers after a DEQUANTIZE."""
        if name in self.values:
            return self.values[name]
        if name in self.integers:
            source = self.integers[name]
            self.values[name] = Value(self.file.tensor(name, source.stored), source.shape, source.last)
            self.file.add("DEQUANTIZE", [source.at], [self.values[name].at], "DequantizeOptions")
        else:
            found = self.graph.constants[name]
            numbers = np.asarray(found.numbers() if isinstance(found, Quantized) else found, np.float32)
            self.values[name] = Value(self.file.constant(name, numbers), numbers.shape)
        return self.values[name]

    def output(self, node: Node, end: End, *, last: bool = False) -> Value:
        """The tensor that an operator for ``node`` writes; what it ends with is done."""
        value = self.temporary(end.name, Value(-1, self.graph.shapes[node.outputs[0]], last, end.scale, end.zero))
        (self.integers if end.scale else self.values)[end.name] = value
        self.done.update(end.nodes)
        return value

    def temporary(self, name: str, like: Value, *, last: bool | None = None, shape: Shape | None = None) -> Value:
        """A tensor between two operators, of the same kind of numbers as another."""
        value = Value(-1, like.shape if shape is None else shape, like.last if last is None else last, like.scale, like.zero)
        quantization = Quantization(like.scale, like.zero) if like.scale else None
        at = self.file.tensor(name, value.stored, np.int8 if like.scale else np.float32, quantization=quantization)
        return Value(at, value.shape, value.last, like.scale, like.zero)

    def last(self, value: Value) -> Value:
        """The same with the channels last, where it has four axes."""
        return value if value.last or len(value.shape) != 4 else self._turned(value, LAST)

    def plain(self, value: Value) -> Value:
        """The same as the graph has it."""
        return self._turned(value, FIRST) if value.last else value

    def _turned(self, value: Value, order: Sequence[int]) -> Value:
        name = f"turned_{value.at}"
        made = self.temporary(name, value, last=not value.last)
        self.file.add(
            "TRANSPOSE", [value.at, self.file.constant(f"{name}_order", np.array(order, np.int32))], [made.at], "TransposeOptions"
        )
        return made

    def reshape(self, value: Value, made: Value) -> None:
        shape = np.array(made.stored, np.int32)
        self.file.add("RESHAPE", [value.at, self.file.constant(f"shape_{made.at}", shape)], [made.at], "ReshapeOptions", newShape=shape)

    def requantized(self, value: Value, scale: float, zero: int) -> Value:
        """Integers as those of another scale."""
        if (np.float32(value.scale), value.zero) == (np.float32(scale), zero):
            return value
        name = f"rescaled_{value.at}_{len(self.file.tensors)}"
        at = self.file.tensor(name, value.stored, np.int8, quantization=Quantization(scale, zero))
        self.file.add("QUANTIZE", [value.at], [at], "QuantizeOptions")
        return Value(at, value.shape, value.last, scale, zero)


Lower = Callable[[Lowering, Node, list[Value], End], None]
Unfit = Callable[[Lowering, Node, list[Value], End], str]
