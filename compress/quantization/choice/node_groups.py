"""Groups of an ONNX graph's nodes that are taken to int8 together or not at all.

By hand: Conv(3x3)-Relu-MaxPool-Conv(1x1)-Relu-Gemm on 28x28 images gives "first layer" (Conv, Relu, MaxPool), "pointwise at 14x14"
(Conv, Relu) and "last layer" (Gemm). A group is the kind of a layer and the resolution that it writes, as that is what its speed depends
on: a depthwise convolution at 28x28 may lose by int8 what a pointwise one at 7x7 gains. What follows a layer as its only reader and reads
nothing else (an activation, a pool, a reshape) goes with it, because a border between the two costs a conversion.

A gate is what lies between a tensor and its product with a sigmoid made of it: the squeeze-excite of SENet, both gates of CBAM. ``x *
sigmoid(x)``, with nothing in between, is an activation and no gate.

Source: Woo et al. 2018, arXiv:1807.06521 (gates); the kinds are those whose int8 kernels differ in ONNX Runtime.
"""

from collections.abc import Collection, Mapping

import onnx
import onnx_ir as ir

from ...graphs.floats import is_weighted
from ...graphs.index import constant, index, is_a, maker, reached, readers, settings, sizes

SIGMOIDS = ("Sigmoid", "HardSigmoid")


def node_groups(model: onnx.ModelProto, names: Collection[str | None]) -> dict[str, tuple[str, ...]]:
    """The nodes called ``names``, such as those that a quantizer takes, in groups: name of the group to names of its nodes.

    ``model``: a float32 graph whose nodes have names and whose shapes are inferred; its order is that of groups and nodes.
    """
    graph = index(model)
    layers = [node for node in graph if node.name in names and is_weighted(node)]
    gates = _gates(graph)
    kinds: dict[ir.Node, str] = {}
    for node in graph:
        if node.name not in names:
            continue
        before = _only_read(node)
        if node in gates:
            kinds[node] = gates[node]
        elif layers and node is layers[0]:
            kinds[node] = "first layer"
        elif layers and node is layers[-1]:
            kinds[node] = "last layer"
        elif before is not None and before in kinds and before not in gates:
            kinds[node] = kinds[before]
        else:
            kinds[node] = f"{_kind(node)} at {_resolution(node)}"
    groups: dict[str, list[str]] = {}
    for node, kind in kinds.items():
        groups.setdefault(kind, []).append(str(node.name))
    return {kind: tuple(members) for kind, members in groups.items()}


def borders(model: onnx.ModelProto, groups: Mapping[str, Collection[str]]) -> tuple[tuple[str, str], ...]:
    """Pairs of ``groups`` (name of the group to names of its nodes) of which one reads what the other makes, each once, in their order."""
    order = list(groups)
    owner = {node: at for at, name in enumerate(order) for node in groups[name]}
    pairs: set[tuple[int, int]] = set()
    for node in index(model):
        for other in node.predecessors():
            one, two = sorted((owner.get(str(node.name), -1), owner.get(str(other.name), -1)))
            if -1 < one < two:
                pairs.add((one, two))
    return tuple((order[one], order[two]) for one, two in sorted(pairs))


def _only_read(node: ir.Node) -> ir.Node | None:
    """The maker of the one tensor that ``node`` reads, if nobody else reads it and ``node`` is no layer."""
    tensors = [value for value in node.inputs if value is not None and value.const_value is None]
    alone = len(tensors) == 1 and {node} == set(readers(tensors[0])) and not tensors[0].is_graph_output()
    return maker(tensors[0]) if alone and not is_weighted(node) else None


def _kind(node: ir.Node) -> str:
    if not is_weighted(node):
        return {"Add": "sum", "Sum": "sum", "Mul": "product", "Concat": "concatenation"}.get(node.op_type, node.op_type)
    if is_a(node, "Gemm", "MatMul"):
        return "linear"
    weight = constant(node.inputs[1])
    _, in_channels, *kernel = (0, 0) if weight is None else weight.shape
    if settings(node).get("group", 1) > 1:
        return f"{'depthwise' if in_channels == 1 else 'grouped'} {'x'.join(map(str, kernel))}"
    return "pointwise" if set(kernel) <= {1} else f"convolution {'x'.join(map(str, kernel))}"


def _resolution(node: ir.Node) -> str:
    shape = sizes(node.outputs[0])
    return "x".join(map(str, shape[2:])) if len(shape) > 2 else "the end"


def _gates(graph: ir.Graph) -> dict[ir.Node, str]:
    """The nodes of all gates, products included: "spatial gates at 7x7" where the factor has one channel, else "channel gates"."""
    found: dict[ir.Node, str] = {}
    for product in [node for node in graph if is_a(node, "Mul")]:
        for factor in product.inputs:
            sigmoid = maker(factor, *SIGMOIDS)
            gated = [value for value in product.inputs if value is not factor]
            inside = _between(graph, gated[0], sigmoid) if sigmoid is not None and len(gated) == 1 else []
            if inside and sigmoid is not None:
                kind = "spatial gates" if sizes(sigmoid.outputs[0])[1:2] == (1,) else "channel gates"
                found |= dict.fromkeys([*inside, sigmoid, product], f"{kind} at {_resolution(product)}")
    return found


def _between(graph: ir.Graph, tensor: ir.Value | None, last: ir.Node) -> list[ir.Node]:
    """The nodes on the ways from ``tensor`` to ``last``, both ends left out."""
    behind = reached(graph, lambda node: tensor in node.inputs, ir.Node.predecessors)
    inside = reached(reversed(behind), lambda node: node is last, ir.Node.successors)
    return [node for node in inside if node is not last]
