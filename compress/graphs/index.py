"""The one index of an ONNX graph: who makes a tensor, who reads it, what is constant, which names are free. ``onnx_ir`` keeps it.

The rule: functions hand each other a ``ModelProto``, because that is what files, sessions and ONNX Runtime's quantizer take, byte for byte.
Where one looks inside, it opens the graph once, with ``index`` to look or ``edited`` to change it, and its helpers get the open
``ir.Graph``. So nothing that onnx_ir does not know (sparse weights) or writes otherwise (notes of shapes) is lost on the way.

By hand: in ``image -> Conv(weight) -> a -> Relu -> b``, the tensor ``a`` is made by the Conv, ``maker(a)``, and read by the Relu alone,
``only_reader(a)``; ``constant(weight)`` is an array, and ``constant(a)`` None. A new tensor that wants to be called "b" becomes "b_".

Source: onnx.ai/ir-py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..errors import CompressError, first_line

_FIELDS = ("node", "initializer", "input", "output", "value_info")
_OPERATORS = ("", "com.microsoft")  # the domains whose operators do what their names say


def index(model: onnx.ModelProto) -> ir.Graph:
    """The main graph of a model, to look at; what is changed in it changes nothing. Raises CompressError for one that cannot be read."""
    try:
        return ir.from_proto(model).graph
    except ir.serde.SerdeError as error:
        told = first_line(error.__cause__ or error)
        raise CompressError(f"the graph has a part that is not read here ({told}); make dense constants of sparse ones") from error


@contextmanager
def edited(model: onnx.ModelProto) -> Iterator[ir.Graph]:
    """The main graph of a model, to change: what was done to it stands in ``model`` afterwards, unless an exception was raised.

    Notes of shapes are kept of the tensors that are still those that they were.
    """
    graph = index(model)
    before = named(graph)
    yield graph
    for weight in [weight for part in graph.subgraphs() for weight in part.initializers.values()]:
        weight.type = weight.shape = None  # else onnx_ir notes them, which the file did not
    after = ir.to_proto(graph)
    del after.value_info[:]
    for note in model.graph.value_info:
        value = before.get(note.name)
        if value is not None and value.name == note.name and value.graph is graph:
            after.value_info.append(note)
    for field in _FIELDS:
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(getattr(after, field))


def named(graph: ir.Graph) -> dict[str, ir.Value]:
    """The tensors of the graph by name, without those inside branches."""
    return ir.convenience.create_value_mapping(graph, include_subgraphs=False)


def is_a(node: ir.Node, *kinds: str) -> bool:
    """Whether the node is an operator of one of these types."""
    return node.op_type in kinds and node.domain in _OPERATORS


def maker(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that makes the tensor, if it is one of these types; of any type where none are named."""
    node = value.producer() if value is not None else None
    return node if node is not None and (not kinds or is_a(node, *kinds)) else None


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read the tensor, inside branches too; one that reads it twice stands there twice."""
    return [use.node for use in value.uses()]


def only_reader(value: ir.Value, *kinds: str) -> ir.Node | None:
    """The node that alone, and once, reads a tensor that is no output, if it is one of these types."""
    found = readers(value)
    alone = len(found) == 1 and not value.is_graph_output()
    return found[0] if alone and (not kinds or is_a(found[0], *kinds)) else None


def reached(
    nodes: Iterable[ir.Node], begins: Callable[[ir.Node], bool], neighbours: Callable[[ir.Node], Sequence[ir.Node]]
) -> dict[ir.Node, None]:
    """Of nodes in the order of a way, those where it begins and all that lie behind them: with ``ir.Node.predecessors`` as neighbours the
    way of computation, with ``successors`` the way back.
    """
    found: dict[ir.Node, None] = {}
    for node in nodes:
        if begins(node) or not found.keys().isdisjoint(neighbours(node)):
            found[node] = None
    return found


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What the tensor holds, if that stands in the file."""
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def settings(node: ir.Node) -> dict[str, Any]:
    """The attributes of a node by name, as numbers, text, arrays and tuples of them."""
    return {entry.name: entry.value for entry in node.attributes.values()}


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape as far as it is known, 0 for a size that is free; () where nothing is known."""
    return tuple(dim if isinstance(dim, int) else 0 for dim in value.shape or ())


def fresh(graph: ir.Graph, name: str, *, of_node: bool = False) -> str:
    """``name``, or one like it that nothing in the graph has; every name that a pass adds comes from here."""
    if "names" not in graph.meta:
        inner = [value for part in graph.subgraphs() for value in (*part.inputs, *part.initializers.values())]
        tensors = {*ir.convenience.create_value_mapping(graph), *(value.name for value in inner)}
        graph.meta["names"] = tensors, {node.name for node in graph.all_nodes()}
    taken = graph.meta["names"][of_node]
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Call the tensor ``name``; another of that name gets out of the way."""
    other = named(graph).get(name, value)
    if other is not value:
        other.name = fresh(graph, f"{name}_")
    value.name = name


def add_constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """A new constant, called ``name`` or like it."""
    name = fresh(graph, name)
    value = ir.Value(name=name, const_value=ir.tensor(values, name=name))
    graph.register_initializer(value)
    return value


def make(
    graph: ir.Graph, kind: str, inputs: Sequence[ir.Value | None], output: str | ir.Value, name: str | None = None, /, **attributes: Any
) -> ir.Node:
    """A node for the graph, not in it yet.

    Args:
        output: what its tensor is called, or like it; or the tensor whose place and name it will take.
        name: of the node, or like it; by default that of its tensor and its type.
        attributes: numbers, lists of them, or ``ir.Attr``.
    """
    made = ir.Value(name=fresh(graph, output) if isinstance(output, str) else output.name)
    name = fresh(graph, name or f"{made.name}_{kind}", of_node=True)
    return ir.node(kind, inputs, dict(sorted(attributes.items())), outputs=[made], name=name)


def sweep(graph: ir.Graph) -> None:
    """Drop the nodes that lead to no output, and the constants that nothing reads."""
    RemoveUnusedNodesPass()(ir.Model(graph, ir_version=onnx.IR_VERSION))


def set_constants(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Put numbers in the place of those that constants hold, in place and in their types."""
    for weight in model.graph.initializer:
        if weight.name in values:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
            weight.CopyFrom(onnx.numpy_helper.from_array(values[weight.name].astype(dtype), weight.name))
