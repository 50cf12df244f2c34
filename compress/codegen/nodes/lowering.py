"""What nodes become: calls in their order, tensors that are stored, and expressions of them that wait for whoever reads them.

A Relu, Clip or QuantizeLinear goes into the call that makes what it alone reads. A product with a gate waits, as an expression, for the
Add and Relu behind it. What is read several times and is dear is stored once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calls import Call, Loop, Reduce, Window
from ..expressions import Expr, Shape, Tensor, constant, dtype_of, function, load
from ..read import Constant, Graph, Node, Quantized

_THROUGH = ("QuantizeLinear", "DequantizeLinear", "Relu", "Clip")


class Lowering:
    """The calls for a graph; ``values``: what each tensor of the graph is."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.calls: list[Call] = []
        self.values: dict[str, Expr] = {}
        self.makers: dict[Tensor, Call] = {}
        self.stored: dict[Expr, Tensor] = {}
        self.done: set[Node] = set()  # nodes that went into another
        self.making = {name: node for node in graph.nodes for name in node.outputs}
        self.reading = {name: node for node in graph.nodes for name in node.inputs}
        shape, kind = graph.shapes[graph.input], graph.types[graph.input]
        self.image = Tensor(graph.input, shape, "u8" if kind == np.uint8 else "f32", kind="plain", place="image")
        self.values[graph.input] = load(self.image)

    # What is asked of nodes
    def shape(self, node: Node, output: int = 0) -> Shape:
        return self.graph.shapes[node.outputs[output]]

    def constant(self, node: Node, place: int, what: str) -> Constant:
        """An input that must be a constant."""
        found = self.graph.constants.get(node.inputs[place])
        if found is None:
            raise node.refuse(f"{what} must be a constant")
        return found

    def numbers(self, node: Node, place: int, what: str) -> NDArray[Any]:
        """A constant as numbers."""
        found = self.constant(node, place, what)
        return found.numbers() if isinstance(found, Quantized) else found

    def get(self, node: Node, place: int = 0) -> Expr:
        """An input as an expression."""
        name = node.inputs[place]
        if name in self.graph.constants:
            values = self.numbers(node, place, name)
            if values.dtype.kind not in "fiub":
                raise node.refuse(f"constants of type {values.dtype}")
            return constant(values, name)
        if name not in self.values:
            raise node.refuse(f'its input "{name}" is of a type that is not computed here')
        found = self.values[name]
        return load(self.stored[found]) if found in self.stored else found

    # What is stored
    def add(self, call: Call) -> None:
        self.calls.append(call)
        self.makers.update(dict.fromkeys(call.writes, call))

    def fits(self, tensor: Tensor, kind: str | None, halo: bool) -> bool:
        """Whether the tensor lies, or may be laid, in memory in this way."""
        whole = tensor.whole
        fixed = whole.place != "arena" or whole.kind == "plain"
        if halo and (fixed or tensor.alias or tensor.shape[2:] != whole.shape[2:]):
            return False
        if kind is None:
            return True
        if kind == "plain" and (any(whole.halo) or tensor.inside):
            return False
        if whole.kind is None and tensor.alias is None and not fixed:
            whole.kind = kind
            return True
        simple = sum(size > 1 for size in tensor.shape) <= 1 and tensor.shape == whole.shape
        flat = len(tensor.shape) == 4 and whole.shape[1] == tensor.shape[0] == 1 and {kind, whole.kind} <= {"pixel", "tight", "planes"}
        return whole.place == "arena" and (kind == whole.kind or simple or flat)

    def store(
        self, source: Expr, name: str, kind: str | None = None, *, halo: bool = False, inside: tuple[Tensor, Shape] | None = None
    ) -> Tensor:
        """The tensor that holds an expression, in a layout of this kind, with a margin where it must have one, as a part of another."""
        known = source.tensor if source.is_whole() else self.stored.get(source)
        if known is not None and inside is None and self.fits(known, kind, halo):
            return known
        if source.op == "reshape":
            flat = self.store(source.args[0], name, "plain")
            alias = Tensor(name, source.shape, flat.dtype, alias=flat, kind="plain")
            return (
                alias if self.fits(alias, kind, halo) and inside is None else self.store(load(alias), name, kind, halo=halo, inside=inside)
            )
        tensor = Tensor(name, source.shape, dtype_of(source), kind=None if inside else kind, inside=inside)
        self.add(Loop(name=name, writes=[tensor], source=source))
        self.stored.setdefault(source, tensor)
        return tensor

    def result(self, node: Node, source: Expr) -> None:
        """What the node gives; stored at once where it is read several times and costs more than that."""
        name = node.outputs[0]
        if self.graph.readers[name] > 1 and (source.is_heavy() or source.size() > 2) and source.op not in ("dequantize", "reshape"):
            source = load(self.store(source, name))
        self.values[name] = source

    def operand(self, source: Expr, shape: Shape, name: str) -> Expr:
        """What a function of this shape reads: stored first where it would be computed again and again."""
        if source.is_heavy() and np.prod(source.shape) < np.prod(shape):
            return load(self.store(source, name))
        return self.usable(source, name)

    def usable(self, source: Expr, name: str) -> Expr:
        """An expression that other functions can read: what was put in another order is stored."""
        return load(self.store(source, name)) if source.op == "reshape" else source

    def alone(self, node: Node, *kinds: type[Call]) -> Any:
        """The call of these kinds that makes what only this node reads, or None."""
        source = self.values.get(node.inputs[0])
        if source is None or not source.is_whole() or self.graph.readers[node.inputs[0]] > 1:
            return None
        found = self.makers.get(source.tensor)  # type: ignore[arg-type]
        return found if isinstance(found, kinds) else None

    # Functions of one number after the other
    def read_once(self, name: str) -> bool:
        """Whether what a convolution gives is read in one place alone, through the steps to int8 and back."""
        while self.graph.readers[name] == 1 and name in self.making and self.making[name].kind in (*_THROUGH, "Conv"):
            if self.making[name].kind == "Conv":
                return True
            name = self.making[name].inputs[0]
        return False

    def pointwise(self, node: Node, op: str, *args: Expr, numbers: tuple[float, ...] = ()) -> Expr:
        shape = np.broadcast_shapes(*(one.shape for one in args))
        if args[0].op == "reshape" and all(one.op == "number" for one in args[1:]):
            return function(op, *args, numbers=numbers)
        return function(op, *(self.operand(one, shape, f"{node.name}_in") for one in args), numbers=numbers)

    def after(self, node: Node, change: Callable[[Expr], Expr]) -> bool:
        """Let the reduction or pool before the node compute it; whether that was possible."""
        call = self.alone(node, Reduce, Window)
        if call is None:
            return False
        place = call.writes.index(self.values[node.inputs[0]].tensor)
        call.after[place] = change(call.after[place])
        call.writes[place].dtype = dtype_of(call.after[place])
        self.values[node.outputs[0]] = self.values[node.inputs[0]]
        return True

    def parameters(self, node: Node) -> tuple[float, float, bool]:
        """Scale, zero point as of uint8, and whether the integers are signed."""
        scale = self.numbers(node, 1, "the scale")
        zero = self.numbers(node, 2, "the zero point") if len(node.inputs) > 2 and node.inputs[2] else np.zeros((), np.uint8)
        if scale.size != 1 or zero.dtype not in (np.uint8, np.int8):
            raise node.refuse("scale and zero point of activations must be one number, of uint8 or int8")
        signed = zero.dtype == np.int8
        return float(scale.reshape(())), float(zero.reshape(())) + 128 * signed, signed
