"""One export for many networks: the graph of a network, into which the weights of others with the same modules are filled.

An export takes seconds, most of them to trace what is the same in every network that was cut from one. A cut network differs from it in
the shapes of its weights, and in how many groups its grouped convolutions have. By hand: ``Conv(image, w)`` with ``w`` of (4, 1, 3, 3) is
the graph of the cut network too, once ``w`` is its (3, 1, 3, 3).

A width that stands in a reshape, 64 in ``(-1, 64)``, is made that of what comes in. What else the exporter wrote as a number is found out
by running the graph beside the network: unless it gives the same logits, the network is exported by itself.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import CompressError
from .export import deployed, finished, trace
from .file import RUNTIME_ERRORS, open_session, write_onnx
from .index import edited, sweep

INSIDE = "network."  # the exporter calls a weight as the deployed module does
TOLERANCE = 1e-3  # of the largest logit; a graph that computes something else is off by much more


class Template:
    """The graphs that ``export_onnx`` would write, but for metadata, and for the batch: they take as many images as the example has.

    A batch of any size would take twice as long to trace.

    Args:
        prepare, example, classes: as for :func:`compress.graphs.export.export_onnx`; those of all networks.
    """

    def __init__(self, prepare: nn.Module, example: Tensor, *, classes: bool = True) -> None:
        self._prepare, self._example, self._classes = prepare, example, classes
        self._traced: dict[Any, onnx.ModelProto] = {}

    def write(self, network: nn.Module, target: Path) -> bool:
        """Write the graph of ``network``; whether it took an export of its own, as no graph is known that its weights fit into.

        Args:
            network: as for ``export_onnx``; it is not changed.

        Raises:
            CompressError: it cannot be exported.
        """
        kinds = tuple((name, type(module)) for name, module in network.named_modules())
        if kinds in self._traced and (model := self._filled(self._traced[kinds], network)) is not None:
            write_onnx(model, target)
            return False
        traced = trace(deployed(self._prepare, network), self._example, optimise=False, classes=self._classes, free=False)
        write_onnx(_optimised(traced, self._classes), target)
        del traced.graph.value_info[:]  # shapes, which change with the weights
        self._traced.setdefault(kinds, traced)
        return True

    def _filled(self, traced: onnx.ModelProto, network: nn.Module) -> onnx.ModelProto | None:
        """The graph with the weights of ``network``, or None where it does not compute what the network does."""
        model, values = onnx.ModelProto(), network.state_dict()
        model.CopyFrom(traced)
        grouped: dict[str, tuple[int, int]] = {}  # rows before and now
        for weight in model.graph.initializer:
            value = values.get(weight.name.removeprefix(INSIDE))
            if weight.name.startswith(INSIDE) and value is not None:
                if value.dim():
                    grouped[weight.name] = weight.dims[0], len(value)
                weight.CopyFrom(onnx.numpy_helper.from_array(value.detach().cpu().contiguous().numpy(), weight.name))
        for node in model.graph.node:
            if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in grouped:
                before, now = grouped[node.input[1]]
                for attribute in node.attribute:
                    if attribute.name == "group" and attribute.i > 1:
                        attribute.i = attribute.i * now // before
        try:
            model = _optimised(model, self._classes, fit=True)
            made = open_session(model, "the graph").run(["logits"] if self._classes else None, {"image": self._example.numpy()})
        except (CompressError, ValueError, *RUNTIME_ERRORS):  # a number that does not fit these weights
            return None
        with torch.inference_mode():
            wanted = [one.numpy() for one in tree_leaves(deployed(self._prepare, network)(self._example))]
        pairs = zip(made, wanted, strict=True)
        near = (one.shape == want.shape and np.abs(one - want).max() <= TOLERANCE * np.abs(want).max() for one, want in pairs)
        return model if all(near) else None


def _optimised(model: onnx.ModelProto, classes: bool, fit: bool = False) -> onnx.ModelProto:
    """What the exporter and ``export_onnx`` make of a traced graph; ``fit``: its reshapes to the weights that it has now."""
    program = torch.onnx.ONNXProgram(ir.from_proto(model), None)
    program.optimize()
    made = program.model_proto
    if fit:
        _fit_reshapes(made)
    finished(made, classes=classes)
    return made


def _fit_reshapes(model: onnx.ModelProto) -> None:
    """Give each reshape as many values as come in, by the first number behind the batch with which that comes out; the earlier first."""
    stored = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    joined = {node.output[0]: node.input for node in model.graph.node if node.op_type == "Concat"}
    for node in [node for node in model.graph.node if node.op_type == "Reshape"]:
        parts = joined.get(node.input[1], node.input[1:2])
        if any(part not in stored for part in parts[1 if len(parts) > 1 else 0 :]):
            continue
        _, *said = np.concatenate([stored.get(part, [-1]) for part in parts]).tolist()  # what is not stored is the batch
        del model.graph.value_info[:]
        known = onnx.shape_inference.infer_shapes(model).graph
        sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*known.value_info, *known.input)}
        due, count = math.prod(sizes.get(node.input[0], [0, 0])[1:]), math.prod(said)
        at = next((at for at, size in enumerate(said) if count > 0 and size * due % count == 0), None)
        if due > 0 and at is not None:
            said[at] = said[at] * due // count
            node.input[1] = f"{node.output[0]}_shape"
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, *said]), node.input[1]))
    with edited(model) as graph:
        sweep(graph)
