"""An ONNX classifier as a torch network of modules, whose channels can be found and removed, and which becomes an ONNX graph again.

By hand: ``image -> Conv(weight (8, 3, 3, 3)) -> Relu -> Conv(weight (4, 8, 1, 1))`` is two ``nn.Conv2d``, named as their nodes are, with a
``torch.relu`` between. Channel 3 of the first is removed like that of any network; then ``to_onnx`` writes weights (7, 3, 3, 3) and
(4, 7, 1, 1) into a copy of the graph, in which nothing else has changed but the shapes that depended on them (``settle``).

Convolutions, matrix products with their sums, norms and PReLUs on constant weights are modules; what other nodes read of constants
with several numbers are parameters, which are not trained. Batch norms behind convolutions are folded into these.

Refuses: what ``floats.fold`` refuses; operators without a torch function (``operators``); weights that are computed; an output beside the
logits that is made of something else than them, as it could lose channels; answers that are not ONNX Runtime's.

Source: https://onnx.ai/onnx/operators
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ...errors import CompressError
from ..file import image_inputs, note
from ..floats import fold
from ..index import constant, edited, index, is_a, only_reader, set_constants, settings
from .operators import label_of, make_function, refusal_of
from .settle import settle
from .steps import Step, let_go, walk

INSTEAD = "take in the network that it was exported from, with --weights"
_CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Graph:
    """What copies of a network share: the graph, the steps, and where each parameter is stored. ``layers``: the
    module of each node that has one."""

    model: onnx.ModelProto
    entry: str
    exits: tuple[str, ...]
    steps: list[Step] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # constants that steps read, in the order of the buffers
    free: dict[str, str] = field(default_factory=dict)  # constants that are parameters, with the names of these
    stored: dict[str, tuple[str, bool]] = field(default_factory=dict)  # parameter to its initializer, and whether that is transposed
    layers: dict[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Graph":
        return self


class _BatchNorm(nn.BatchNorm2d):
    """Of whatever has channels in its second dimension."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class OnnxNetwork(nn.Module):
    """An ONNX classifier as a torch module: images (B, C, H, W), as the graph takes them but float32, to its first output (B, K).

    Args:
        model: a float32 graph with one input, an image of known size; kept as it is.
        name: what errors call it.
        whole: it is no classifier; what comes out are all its outputs, a tuple where there are several.

    Raises:
        CompressError: for what the module refuses.
    """

    def __init__(self, model: onnx.ModelProto, name: str, *, whole: bool = False) -> None:
        super().__init__()
        folded = fold(model, name)
        settle(folded, name)
        if not whole:
            _refuse_other_outputs(folded, name)
        note(folded, model, {})
        exits = tuple(output.name for output in folded.graph.output)
        self.about = _Graph(model=folded, entry=image_inputs(folded)[0].name, exits=exits if whole else exits[:1])
        made: dict[Any, Any] = {}
        taken: set[ir.Node] = set()  # sums that belong to the matrix product before them
        graph, steps = index(folded), list[Step]()
        for node in graph:
            if node in taken:
                continue
            try:
                steps += self._layer(node, made, taken) or self._function(node)
            except CompressError as error:
                raise CompressError(f"{name}: {str(error).partition(';')[0]}; {INSTEAD}") from error
        self.about.steps.extend(let_go(steps, self.about.exits))
        self._drop_unused()

    def forward(self, image: Tensor) -> Any:
        buffers = [self._buffers[f"held_{number}"] for number in range(len(self.about.held))]
        values: dict[str, Any] = dict(zip(self.about.held, buffers, strict=True))
        values.update({constant: self._parameters[name] for constant, name in self.about.free.items()})
        values[self.about.entry] = image.float()
        walk(self.about.steps, values, self._modules)  # type: ignore[arg-type]
        found = tuple(values[name] for name in self.about.exits)
        return found if len(found) > 1 else found[0]

    def to_onnx(self) -> onnx.ModelProto:
        """The graph with the weights, widths and groups of convolutions as they are now."""
        model, values = copy.deepcopy(self.about.model), dict[str, NDArray[Any]]()
        now = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers(remove_duplicate=False))
        ranks = {weight.name: len(weight.dims) for weight in model.graph.initializer}
        for name, (initializer, transposed) in self.about.stored.items():
            value = now[name].detach().cpu().numpy()
            value = np.ascontiguousarray(value.T) if transposed else value
            # A bias (1, K) and a slope (C, 1, 1) have one number for each channel too.
            values[initializer] = value if value.ndim == ranks[initializer] else _as_before(value, model, initializer)
        set_constants(model, values)
        with edited(model) as graph:
            for node in graph:
                if is_a(node, "Conv", "ConvTranspose") and (layer := self.about.layers.get(str(node.name))):
                    node.attributes.add(ir.AttrInt64("group", int(getattr(self, layer).groups)))
        del model.graph.value_info[:]
        return model

    def _layer(self, node: ir.Node, made: dict[Any, Any], taken: set[ir.Node]) -> list[Step]:
        """The steps of a node that becomes a module; none where it becomes none."""
        if (found := _module_of(node, taken)) is None:
            return []
        module, sources, output = found
        own = {name: value for name, value in settings(node).items() if name != "pads"}
        key = node.op_type, tuple(sources.items()), repr(sorted(own.items(), key=str)), type(module), str(module)
        if key not in made:  # several nodes may share it
            made[key] = name = self._free_name(node)
            self.add_module(name, module)
            for part, where in sources.items():
                self.about.stored[f"{name}.{part}"] = where
                if isinstance(value := getattr(module, part), nn.Parameter):
                    setattr(module, part, made.setdefault(where, value))  # of weights that several modules share
        name = made[key]
        self.about.layers[str(node.name)] = name
        source = str(node.inputs[0].name)  # type: ignore[union-attr]
        pads = settings(node).get("pads", ()) if is_a(node, "Conv") else ()
        begin, end = pads[: len(pads) // 2], pads[len(pads) // 2 :]
        if begin == end:
            return [Step(function=name, inputs=[source], outputs=[output])]
        around = [size for pair in zip(reversed(begin), reversed(end), strict=True) for size in pair]
        padded = f"{output} padded"
        pad = Step(function=lambda x: functional.pad(x, around), inputs=[source], outputs=[padded])
        return [pad, Step(function=name, inputs=[padded], outputs=[output])]

    def _function(self, node: ir.Node) -> list[Step]:
        function, inputs = make_function(node)
        for value in node.inputs:
            name = "" if value is None else str(value.name)
            if name not in inputs or (values := constant(value)) is None or name in self.about.free or name in self.about.held:
                continue
            if values.size > 1 and values.dtype == np.float32:
                self.about.free[name] = where = f"{self._free_name(node)}_{name}".replace(".", "_")
                self.register_parameter(where, nn.Parameter(torch.tensor(values), requires_grad=False))
                self.about.stored[where] = name, False
            else:
                self.register_buffer(f"held_{len(self.about.held)}", torch.tensor(values), persistent=False)
                self.about.held.append(name)
        return [Step(function=function, inputs=inputs, outputs=[str(value.name) for value in node.outputs])]

    def _free_name(self, node: ir.Node) -> str:
        """The name of the node without dots, which torch does not take, or one like it that no attribute has."""
        name = str(node.name).strip("/").replace(".", "_") or node.op_type
        while hasattr(self, name):
            name += "_"
        return name

    def _drop_unused(self) -> None:
        """What leads to other outputs than the first is no part of the network."""
        used = {step.function for step in self.about.steps if isinstance(step.function, str)}
        for name in [name for name in self._modules if name not in used]:
            del self._modules[name]
        for name in [name for name in self.about.stored if "." in name and name.partition(".")[0] not in used]:
            del self.about.stored[name]


def _module_of(node: ir.Node, taken: set[ir.Node]) -> tuple[nn.Module, dict[str, tuple[str, bool]], str] | None:
    """The module of a node, where each of its parameters is stored and whether transposed, and the name of what it makes; if it has one."""
    own = settings(node)
    weights: list[Any] = [constant(value) for value in node.inputs[1:]]
    names, output = [str(value.name) if value is not None else "" for value in node.inputs[1:]], str(node.outputs[0].name)
    if is_a(node, "Conv", "ConvTranspose") and _floats(weights):
        if told := refusal_of(node.op_type, own):
            raise CompressError(f"{label_of(node)} {told}")
        return (_convolution if is_a(node, "Conv") else _transposed)(own, weights), _sources(names), output
    if is_a(node, "BatchNormalization") and _floats(weights) and len(node.outputs) == 1:
        norm = _batch_norm(own, weights)
        return (
            norm,
            {part: (name, False) for part, name in zip(("weight", "bias", "running_mean", "running_var"), names, strict=True)},
            output,
        )
    if is_a(node, "LayerNormalization") and _floats(weights) and len(node.outputs) == 1 and own.get("axis", -1) == -1:
        layer_norm = nn.LayerNorm(weights[0].size, eps=own.get("epsilon", 1e-5), bias=len(weights) > 1)
        return _fill(layer_norm, **dict(zip(("weight", "bias"), weights, strict=False))), _sources(names), output
    if is_a(node, "PRelu") and _floats(weights) and max(weights[0].shape, default=1) == weights[0].size:
        prelu = nn.PReLU(weights[0].size)
        _fill(prelu, weight=weights[0].reshape(-1))
        return prelu, {"weight": (names[0], False)}, output
    if is_a(node, "Gemm") and _floats(weights) and (own.get("alpha", 1), own.get("beta", 1), own.get("transA", 0)) == (1, 1, 0):
        turned = not own.get("transB", 0)
        return (*_linear(weights, turned, names), output) if _is_bias(weights) else None
    if is_a(node, "MatMul") and _floats(weights[:1]) and weights[0] is not None and weights[0].ndim == 2:
        adding = only_reader(node.outputs[0], "Add")
        other = next((value for value in adding.inputs if value is not node.outputs[0]), None) if adding else None
        bias = constant(other)
        if adding is None or other is None or bias is None or not _is_bias([weights[0].T, bias]) or bias.size != weights[0].shape[1]:
            return (*_linear(weights[:1], True, names), output)
        taken.add(adding)
        return (*_linear([weights[0], bias], True, [names[0], str(other.name)]), str(adding.outputs[0].name))
    return None


def _convolution(own: dict[str, Any], weights: Sequence[Any]) -> nn.Module:
    weight = weights[0]
    pads, groups = own.get("pads", ()), int(own.get("group", 1))
    begin, end = tuple(pads[: len(pads) // 2]), tuple(pads[len(pads) // 2 :])
    rank = weight.ndim - 2
    convolution: nn.Module = _CONVOLUTIONS[weight.ndim](
        weight.shape[1] * groups,
        weight.shape[0],
        weight.shape[2:],
        stride=tuple(own.get("strides", (1,) * rank)),
        padding=begin if begin and begin == end else 0,
        dilation=tuple(own.get("dilations", (1,) * rank)),
        groups=groups,
        bias=len(weights) > 1,
    )
    return _fill(convolution, weight=weight, **({"bias": weights[1]} if len(weights) > 1 else {}))


def _transposed(own: dict[str, Any], weights: Sequence[Any]) -> nn.Module:
    weight, rank = weights[0], weights[0].ndim - 2
    groups, pads = int(own.get("group", 1)), own.get("pads", ())
    convolution: nn.Module = _TRANSPOSED[weight.ndim](
        weight.shape[0],
        weight.shape[1] * groups,
        weight.shape[2:],
        stride=tuple(own.get("strides", (1,) * rank)),
        padding=tuple(pads[:rank]) or 0,
        output_padding=tuple(own.get("output_padding", (0,) * rank)),
        dilation=tuple(own.get("dilations", (1,) * rank)),
        groups=groups,
        bias=len(weights) > 1,
    )
    return _fill(convolution, weight=weight, **({"bias": weights[1]} if len(weights) > 1 else {}))


def _linear(weights: Sequence[Any], turned: bool, names: Sequence[str]) -> tuple[nn.Module, dict[str, tuple[str, bool]]]:
    weight = weights[0].T if turned else weights[0]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=len(weights) > 1)
    _fill(linear, weight=weight, **({"bias": weights[1].reshape(-1)} if len(weights) > 1 else {}))
    return linear, {"weight": (names[0], turned)} | ({"bias": (names[1], False)} if len(weights) > 1 else {})


def _batch_norm(own: dict[str, Any], weights: Sequence[Any]) -> nn.Module:
    norm = _BatchNorm(weights[0].size, eps=own.get("epsilon", 1e-5))
    return _fill(norm, **dict(zip(("weight", "bias", "running_mean", "running_var"), weights, strict=True)))


def _fill(module: nn.Module, **values: NDArray[np.float32]) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(torch.tensor(np.ascontiguousarray(value)))
    return module


def _floats(values: Sequence[NDArray[Any] | None]) -> bool:
    """Whether there are constants, all of float32."""
    return bool(values) and all(value is not None and value.dtype == np.float32 for value in values)


def _is_bias(weights: Sequence[Any]) -> bool:
    """Whether the second of them, if there is one, has one number for each output, in the last dimension."""
    return len(weights) == 1 or (weights[1].size > 1 and weights[1].shape[-1] == weights[1].size)


def _sources(names: Sequence[str]) -> dict[str, tuple[str, bool]]:
    return {part: (name, False) for part, name in zip(("weight", "bias"), names, strict=False)}


def _as_before(value: NDArray[Any], model: onnx.ModelProto, initializer: str) -> NDArray[Any]:
    """One number for each channel, along the dimension along which the constant had them."""
    [before] = [tuple(weight.dims) for weight in model.graph.initializer if weight.name == initializer]
    along = int(np.argmax(before))
    return value.reshape([-1 if place == along else 1 for place in range(len(before))])


def _refuse_other_outputs(model: onnx.ModelProto, name: str) -> None:
    logits, *others = index(model).outputs
    for other in others:
        waiting, seen = [other], {logits}
        while waiting:
            value = waiting.pop()
            if value in seen or value.const_value is not None:
                continue
            seen.add(value)
            node = value.producer()
            if node is None:
                raise CompressError(
                    f'{name} has an output "{other.name}" beside its logits that is not made of these alone, and could lose channels; '
                    "export the classifier without it"
                )
            waiting += [one for one in node.inputs if one is not None]
