"""From nodes to calls, one kind of node after the other: ``NODES`` has a function for each. Refused, by name: all others."""

import numpy as np

from ..calls import Call, Loop
from ..expressions import Tensor, constant, function, number
from ..read import Graph, Quantized
from .functions import FUNCTIONS, Lower
from .lowering import Lowering
from .maps import MAPS
from .moves import MOVES
from .weights import WEIGHTS

NODES: dict[str, Lower] = {**FUNCTIONS, **MAPS, **MOVES, **WEIGHTS}
_INTEGERS = {"QuantizeLinear", "Cast", "Dropout", "Identity", "MaxPool", *MOVES}  # may give integers


def lower(graph: Graph) -> tuple[list[Call], Tensor, list[Tensor]]:
    """The calls for a graph, the image, and its outputs. Raises CodegenError for what is refused."""
    lowering = Lowering(graph)
    for node in graph.nodes:
        if node.kind not in NODES:
            raise node.refuse("there is no kernel for this operator")
        for name in node.outputs:
            if node.kind not in _INTEGERS and graph.types.get(name, np.dtype(np.float32)) != np.float32:
                raise node.refuse(f"its output is {graph.types[name]}; that only {', '.join(sorted(_INTEGERS))} may be")
        if node not in lowering.done:
            NODES[node.kind](lowering, node)
        if unknown := [name for name in node.outputs[1:] if graph.readers[name] and name not in lowering.values]:
            raise node.refuse(f'its output "{unknown[0]}" is not computed')
    outputs = []
    for name in graph.outputs:
        if name in lowering.values:
            source = lowering.usable(lowering.values[name], name)
        else:
            found = graph.constants[name]
            source = constant(found.numbers() if isinstance(found, Quantized) else found, name)
        if graph.types.get(name) == np.int8:
            source = function("sub", source, number(128))
        outputs.append(Tensor(name, graph.shapes[name], kind="plain", place="outputs"))
        lowering.add(Loop(name=name, writes=[outputs[-1]], source=source))
    return lowering.calls, lowering.image, outputs
