"""A graph as a network: an ONNX classifier, float32 or quantized, becomes a torch module whose weights can be trained.

Quantization-aware fine-tuning usually guesses where a quantizer will round. Here the quantized (QDQ) graph itself is trained: each
QuantizeLinear with its DequantizeLinear is one *fake-quantize*, which rounds as ONNX does, so that what was trained is what runs. By hand,
``x -> QuantizeLinear -> DequantizeLinear -> Conv(weight int8 [64], scale 0.5)`` is ``conv(round(x), round(w / 0.5) * 0.5)``, for an
activation of scale 1, with one parameter ``w``, 32 at first.

Scales and zero points stay what the quantizer chose, those of the weights too: a weight cannot grow beyond the largest that its scale can
store. So ``to_onnx`` puts back numbers and nothing else, int32 biases keep the scale (input times weight) that int8 kernels rely on, and
the graph before the first step is the quantizer's, bit for bit.

Trained are the constants that reach a convolution, a matrix product or the sum behind it; a weight that several nodes share is one
parameter. Zeros stay zero where the caller multiplies with ``zero_masks`` after each step.

A parameter has the scale at which it was learnt. Where a convolution reads pixels of 0 to 255, as 1/255 was folded into its weights
(``graphs.rewrite``), the parameter is 256 times the weight: Adam moves each parameter by the learning rate whatever its size, so three
steps at 1e-4 would move such a layer by a quarter and others by 0.3%. By 256, not 255, as a power of two rounds nothing.

Refuses: operators without a torch function (``graph_operators``), grids that cannot be trained on (``fake_quantize``), a DequantizeLinear
that reads otherwise than QuantizeLinear wrote, opset below 13, a graph without weights, weights of another shape or of another graph.

Source: Jacob et al. 2018, arXiv:1712.05877 (training on the integer grid).
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass
from torch import Tensor, nn

from ...errors import CompressError
from ...graphs.as_torch.operators import CHOOSING, INSTEAD, VIEWS, label_of, make_function
from ...graphs.as_torch.steps import Function, Step, let_go, walk
from ...graphs.file import opset_of
from ...graphs.index import edited, fresh, index, is_a, maker, set_constants, sweep
from .fake_quantize import FakeQuantize, Grid, grid_of

_FOLDED = 256.0  # parameter / weight where 1/255 was folded into the weight
_SUFFIX = "_quantized"  # what ONNX Runtime's quantizer appends to the name of a weight


@dataclass(kw_only=True)
class _Plan:
    """What is found on the way through the graph, in terms of the names of its values."""

    graph: ir.Graph
    constants: dict[str, np.ndarray]
    trained: Collection[str]  # of the constants
    steps: list[Step] = field(default_factory=list)
    grids: dict[str, Grid] = field(default_factory=dict)  # of the values that lie on one
    stored: dict[str, Grid | None] = field(default_factory=dict)  # trained constant to its grid in the file, None for float32
    held: dict[str, Tensor] = field(default_factory=dict)  # constants that the steps read

    def add(self, function: Function, inputs: Sequence[str], outputs: Sequence[str], grid: Grid | None = None) -> None:
        """Note a step, and the grid that its outputs lie on."""
        self.steps.append(Step(function=function, inputs=inputs, outputs=outputs))
        if grid is not None:
            self.grids.update(dict.fromkeys(outputs, grid))

    def hold(self, name: str, value: Tensor) -> str:
        """Note a constant that the file has not; the name that it gets."""
        name = fresh(self.graph, name)
        self.held[name] = value
        return name


class GraphNetwork(nn.Module):
    """An ONNX classifier as a torch module: images (B, C, H, W) to logits float32 (B, K), the graph's first output.

    Args:
        model: a graph with one input, an image, float32 or with QuantizeLinear and DequantizeLinear; kept as it is.
        weights: float32 weights by the name that they had before quantization, to start from instead of the rounded ones; biases, which
            int32 stores exactly enough, and a weight that is missing here start from what the graph holds.

    Raises:
        CompressError: for what the module refuses.
    """

    def __init__(self, model: onnx.ModelProto, *, weights: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__()
        self._model = copy.deepcopy(model)
        with edited(self._model) as graph:
            LiftConstantsToInitializersPass(size_limit=0)(ir.Model(graph, ir_version=model.ir_version))
        constants = {weight.name: onnx.numpy_helper.to_array(weight) for weight in self._model.graph.initializer}
        plan = _make_plan(self._model, constants)
        self._entry, self._exit = self._model.graph.input[0].name, self._model.graph.output[0].name
        self._stored = plan.stored
        self._quantized = bool(plan.grids)
        starts = {name: _start(name, constants[name], grid, weights or {}) for name, grid in plan.stored.items()}
        read_pixels = _weights_of_pixels(index(self._model))
        self._scales = [_FOLDED if name in read_pixels and _is_folded(start) else 1.0 for name, start in starts.items()]
        self.weights = nn.ParameterList(nn.Parameter(scale * start) for scale, start in zip(self._scales, starts.values(), strict=True))
        if weights and not any(_float_name(name) in weights for name in plan.stored):
            raise CompressError(
                f"weights ({', '.join(list(weights)[:3])}, ...) are none of this graph's; take those of the graph it was made from"
            )
        self._held, self._steps = list(plan.held), let_go(plan.steps, [self._exit])
        for count, value in enumerate(plan.held.values()):
            self.register_buffer(f"constant_{count}", value, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits float32 (B, K) of images uint8, or float32 in 0..255 where the graph takes uint8, (B, C, H, W)."""
        values: dict[str, Any] = dict(zip(self._held, self._buffers.values(), strict=True))
        values.update(zip(self._stored, self._unscaled(), strict=True))
        # In bfloat16 the steps of an int8 tensor cannot be told apart.
        with torch.autocast(image.device.type, enabled=False) if self._quantized else nullcontext():
            values[self._entry] = image.float()
            walk(self._steps, values, {})
        return values[self._exit]

    def _unscaled(self) -> list[Tensor]:
        """The weights as the graph has them."""
        return [weight if scale == 1 else weight / scale for weight, scale in zip(self.weights, self._scales, strict=True)]

    def zero_masks(self) -> dict[str, Tensor]:
        """Parameter name to bool mask, True where it is not zero now; of the weights (not biases) that have zeros."""
        named = {name: parameter.detach() != 0 for name, parameter in self.named_parameters() if parameter.ndim > 1}
        return {name: mask for name, mask in named.items() if not mask.all()}

    def to_onnx(self) -> onnx.ModelProto:
        """The graph with the weights as they are now, in the numbers that the forward pass computes with; all else is unchanged."""
        model, values = copy.deepcopy(self._model), {}
        for (name, grid), weight in zip(self._stored.items(), self._unscaled(), strict=True):
            value = weight.detach().cpu()
            values[name] = value.numpy() if grid is None else grid.write(value)
        set_constants(model, values)
        return model


def _make_plan(model: onnx.ModelProto, constants: dict[str, np.ndarray]) -> _Plan:
    if (opset := opset_of(model)) < 13:
        raise CompressError(f"model has opset {opset}, but training a graph needs at least 13; export it again with a newer opset")
    graph = index(model)
    del graph.outputs[1:]
    sweep(graph)
    trained = _trained(graph)
    stored: dict[str, Grid | None] = {name: None for name in trained if constants[name].dtype == np.float32}
    plan = _Plan(graph=graph, constants=constants, trained=trained, stored=stored)
    for node in graph:
        if is_a(node, "DequantizeLinear"):
            _add_dequantize(plan, node, model.graph.input[0].name)
        elif is_a(node, "QuantizeLinear"):
            _add_quantize(plan, node, grid_of(node))
        else:
            _add_function(plan, node)
    if not plan.stored:
        raise CompressError(f"model has no constant weights of convolutions or matrix products, so there is nothing to train; {INSTEAD}")
    return plan


def _trained(graph: ir.Graph) -> dict[str, None]:
    """The names of the constants that are weights or biases, in the order of the nodes that use them."""
    found: dict[str, None] = {}
    for node in graph:
        sums = is_a(node, "Add") and any(maker(_behind(value, "DequantizeLinear", "QuantizeLinear"), "MatMul") for value in node.inputs)
        if not is_a(node, "Conv", "Gemm", "MatMul") and not sums:
            continue
        for value in node.inputs[1:] if is_a(node, "Conv", "Gemm") else node.inputs:
            origin = _origin(value)
            if origin is not None and origin.const_value is not None:
                found[str(origin.name)] = None
    return found


def _weights_of_pixels(graph: ir.Graph) -> set[str]:
    """The names of the weights of convolutions that read the uint8 image with nothing between but a change of type."""
    direct = [node for node in graph if is_a(node, "Conv")]
    images = {node: _behind(node.inputs[0], "Cast", "Identity", "QuantizeLinear", "DequantizeLinear") for node in direct}
    reading = [node for node, one in images.items() if one is not None and one.is_graph_input() and one.dtype == ir.DataType.UINT8]
    return {str(origin.name) for node in reading if (origin := _origin(node.inputs[1])) is not None}


def _is_folded(weight: Tensor) -> bool:
    """Whether its size is nearer to 1/255 of what a layer keeps its signal with, 1 / sqrt(inputs) each, than to that itself.

    A layer that was trained on pixels of 0 to 255 by somebody else is at its own scale already.
    """
    return float(weight.square().mean()) * weight[0].numel() < 1 / 255


def _behind(value: ir.Value | None, *kinds: str) -> ir.Value | None:
    """What ``value`` is made of, with operators of these types between."""
    while (node := maker(value, *kinds)) is not None:
        value = node.inputs[0]
    return value


def _origin(value: ir.Value | None) -> ir.Value | None:
    return _behind(value, "DequantizeLinear", "Identity", *VIEWS)


def _add_dequantize(plan: _Plan, node: ir.Node, image: str) -> None:
    (name, output), grid = _ends(node), grid_of(node)
    if name in plan.trained:
        if not grid.same(plan.stored.setdefault(name, grid)):
            raise CompressError(f'{label_of(node)} reads "{name}" with other scales than another node does; quantize with this toolkit')
        _add_quantize(plan, node, grid)
    elif name in plan.constants:
        plan.held[output] = grid.read(plan.constants[name])
    elif name == image:
        # The image is its own quantized form; what a distortion made of it is not rounded.
        plan.add(lambda x, scale: (x - grid.zero_point) * scale, [name, plan.hold(f"{output} scale", grid.scale)], [output])
    elif grid.same(plan.grids.get(name)):
        plan.add(lambda x: x, [name], [output], grid)
    else:
        raise CompressError(f'{label_of(node)} reads "{name}" otherwise than a QuantizeLinear wrote it; quantize with this toolkit')


def _add_quantize(plan: _Plan, node: ir.Node, grid: Grid) -> None:
    name, output = _ends(node)
    if grid.same(plan.grids.get(name)):  # rounding again changes nothing
        plan.add(lambda x: x, [name], [output], grid)
    else:
        scale = plan.hold(f"{output} scale", grid.scale)
        plan.add(lambda x, scale: FakeQuantize.apply(x, scale, grid.low, grid.high, grid.wide), [name, scale], [output], grid)


def _ends(node: ir.Node) -> tuple[str, str]:
    """The names of what the node reads first and makes first."""
    assert node.inputs[0] is not None, "the first input of these operators is none that may be left out"
    return str(node.inputs[0].name), str(node.outputs[0].name)


def _add_function(plan: _Plan, node: ir.Node) -> None:
    function, inputs = make_function(node)
    plan.held |= {name: torch.tensor(plan.constants[name]) for name in inputs if name in plan.constants and name not in plan.stored}
    grid = plan.grids.get(inputs[0])
    same = is_a(node, *CHOOSING) and grid is not None and all(grid.same(plan.grids.get(name)) for name in inputs)
    plan.add(function, inputs, [str(value.name) for value in node.outputs], grid if same else None)


def _start(name: str, value: np.ndarray, grid: Grid | None, weights: Mapping[str, np.ndarray]) -> Tensor:
    tensor = torch.tensor(value) if grid is None else grid.read(value)
    chosen = weights.get(_float_name(name)) if grid is None or not grid.wide else None
    if chosen is not None and chosen.shape != value.shape:
        raise CompressError(
            f'weights: "{_float_name(name)}" is {chosen.shape}, but {value.shape} in the graph; take the graph it was made from'
        )
    return tensor if chosen is None else torch.tensor(chosen, dtype=torch.float32)


def _float_name(name: str) -> str:
    return name.removesuffix(_SUFFIX)
