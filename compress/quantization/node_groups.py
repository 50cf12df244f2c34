"""Groups of an ONNX graph's nodes that are taken to int8 together or not at all.

By hand: Conv(3x3)-Relu-MaxPool-Conv(1x1)-Relu-Gemm on 28x28 images gives "first layer" (Conv, Relu, MaxPool), "pointwise at 14x14"
(Conv, Relu) and "last layer" (Gemm). A group is the kind of a layer and the resolution that it writes, as that is what its speed depends
on: a depthwise convolution at 28x28 may lose by int8 what a pointwise one at 7x7 gains. What follows a layer as its only reader and reads
nothing else (an activation, a pool, a reshape) goes with it, because a border between the two costs a conversion.

A gate is what lies between a tensor and its product with a sigmoid made of it: the squeeze-excite of SENet, both gates of CBAM. ``x *
sigmoid(x)``, with nothing in between, is an activation and no gate.

Source: Woo et al. 2018, arXiv:1807.06521 (gates); the kinds are those whose int8 kernels differ in ONNX Runtime.
"""

from collections.abc import Collection

import onnx

SIGMOIDS = ("Sigmoid", "HardSigmoid")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def node_groups(model: onnx.ModelProto, names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The nodes called ``names`` in groups, in the order of the graph: name of the group to names of its nodes.

    Args:
        model: a float32 graph whose nodes have names and whose shapes are inferred.
        names: the nodes to group, such as those that a quantizer takes; the others are left out.
    """
    graph = _Graph(model)
    layers = [node.name for node in model.graph.node if node.name in names and graph.is_layer(node)]
    gates = graph.gates()
    kinds: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in names:
            continue
        before = graph.only_reads(node)
        if node.name in gates:
            kinds[node.name] = gates[node.name]
        elif layers and node.name == layers[0]:
            kinds[node.name] = "first layer"
        elif layers and node.name == layers[-1]:
            kinds[node.name] = "last layer"
        elif before is not None and before.name in kinds and before.name not in gates:
            kinds[node.name] = kinds[before.name]
        else:
            kinds[node.name] = f"{graph.kind(node)} at {graph.resolution(node)}"
    groups: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    return {kind: tuple(members) for kind, members in groups.items()}


class _Graph:
    """Who makes and who reads which tensor, and of what shape it is."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.weights = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
        self.makers = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in set(node.input):
                self.readers.setdefault(name, []).append(node)
        values = (*model.graph.value_info, *model.graph.output, *model.graph.input)
        self.shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in values}
        self.outputs = {value.name for value in model.graph.output}

    def is_layer(self, node: onnx.NodeProto) -> bool:
        return node.op_type in LAYERS and not self.weights.keys().isdisjoint(node.input[:2])

    def only_reads(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The maker of the one tensor that ``node`` reads, if nobody else reads it and ``node`` is no layer."""
        tensors = [name for name in node.input if name and name not in self.weights]
        alone = len(tensors) == 1 and len(self.readers[tensors[0]]) == 1 and tensors[0] not in self.outputs
        return self.makers.get(tensors[0]) if alone and not self.is_layer(node) else None

    def kind(self, node: onnx.NodeProto) -> str:
        if not self.is_layer(node):
            return {"Add": "sum", "Sum": "sum", "Mul": "product", "Concat": "concatenation"}.get(node.op_type, node.op_type)
        if node.op_type in ("Gemm", "MatMul"):
            return "linear"
        (_, in_channels, *kernel), groups = self.weights.get(node.input[1], (0, 0)), _attribute(node, "group", 1)
        if groups > 1:
            return f"{'depthwise' if in_channels == 1 else 'grouped'} {'x'.join(map(str, kernel))}"
        return "pointwise" if set(kernel) <= {1} else f"convolution {'x'.join(map(str, kernel))}"

    def resolution(self, node: onnx.NodeProto) -> str:
        shape = self.shapes.get(node.output[0], ())
        return "x".join(map(str, shape[2:])) if len(shape) > 2 else "the end"

    def gates(self) -> dict[str, str]:
        """The nodes of all gates, products included: "spatial gates at 7x7" where the factor has one channel, else "channel gates"."""
        found: dict[str, str] = {}
        for product in self.nodes:
            for sigmoid in (self.makers.get(name) for name in product.input) if product.op_type == "Mul" else ():
                gated = [name for name in product.input if sigmoid is None or name not in sigmoid.output]
                if sigmoid is None or sigmoid.op_type not in SIGMOIDS or len(gated) != 1:
                    continue
                inside = self._between(gated[0], sigmoid)
                if inside:
                    shape = self.shapes.get(sigmoid.output[0], ())
                    kind = "spatial gates" if shape[1:2] == (1,) else "channel gates"
                    found |= dict.fromkeys([*inside, sigmoid.name, product.name], f"{kind} at {self.resolution(product)}")
        return found

    def _between(self, tensor: str, last: onnx.NodeProto) -> list[str]:
        """The names of the nodes on the ways from ``tensor`` to ``last``, both ends left out."""
        behind, reached = [], {tensor}
        for node in self.nodes:  # in the order of computation
            if not reached.isdisjoint(node.input):
                reached.update(node.output)
                behind.append(node)
        wanted, inside = set(last.input), []
        for node in reversed(behind):
            if node is not last and not wanted.isdisjoint(node.output):
                wanted.update(node.input)
                inside.append(node.name)
        return inside if tensor in wanted else []


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)
