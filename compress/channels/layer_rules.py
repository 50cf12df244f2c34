"""What layers with weights do to the labels of channels: convolutions, linear layers, normalisations. More in compress/rules.py."""

import math

import torch
from torch import Tensor, nn

from .identities import along
from .trace import Call, Trace


def batch_norm(trace: Trace, call: Call) -> list[Tensor]:
    source = call.args[0]
    labels = along(trace.labels(source), 1, source.shape[1])
    tensors = [call.get(i, name) for i, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1)]
    if labels is None or (call.name == "instance_norm" and all(t is None for t in tensors)):
        return trace.leave_whole(call, f"{call.name} at {call.where} has no value of its own for each of them")
    trace.identities.freeze_means(labels, f"their mean is used by {call.name} at {call.where}")
    for tensor in tensors:
        labels = trace.tie(tensor, 0, labels, "each", call.where)
    return [labels.view([-1 if d == 1 else 1 for d in range(source.dim())])]


def group_norm(trace: Trace, call: Call) -> list[Tensor]:
    """Each group of a group norm stays or goes as a whole: the statistics of a part would be others."""
    source, count = call.args[0], call.get(1, "num_groups")
    labels = along(trace.labels(source), 1, source.shape[1])
    if labels is None or count == 1 or not isinstance(call.module, nn.GroupNorm):
        return trace.leave_whole(call, f"group_norm at {call.where} takes its statistics over all of them")
    rows = labels.view(count, -1)
    trace.identities.join(rows, rows[:, :1], f"group_norm at {call.where} takes its statistics over some that must stay")
    trace.identities.freeze_means(labels, f"their mean is used by group_norm at {call.where}")
    for i, name in ((2, "weight"), (3, "bias")):
        labels = trace.tie(call.get(i, name), 0, labels, "each", call.where)
    return [labels.view([-1 if d == 1 else 1 for d in range(source.dim())])]


def convolution(trace: Trace, call: Call) -> list[Tensor]:
    source, weight, bias = call.args[0], call.get(1, "weight"), call.get(2, "bias")
    transposed = call.name.startswith("conv_transpose")
    groups = call.get(6, "groups", 1)
    width = source.shape[1] if source.dim() == weight.dim() else -1
    labels = along(trace.labels(source), 1, width) if width > 0 else None
    if labels is None or id(weight) not in trace.owned:
        return trace.leave_whole(
            call, f"{call.name} at {call.where} has a computed weight, or takes its channels from several dimensions", named=True
        )
    name, spatial = trace.owned[id(weight)], (source if transposed else call.results[0]).shape[2:]
    trace.uses.append((name, tuple(weight.shape), math.prod(spatial) * len(source) / trace.batch))
    shape = [-1 if d == 1 else 1 for d in range(source.dim())]
    if groups == 1:
        labels = trace.tie(weight, 0 if transposed else 1, labels, "input", call.where)
        call.mixes = labels.view(shape)
        return [_outputs(trace, call, weight, 1 if transposed else 0, bias).view(shape)]
    trace.identities.freeze_means(labels, f"their mean is used by {call.name} at {call.where}")
    outputs = _outputs(trace, call, None if transposed else weight, 0, bias, call.results[0].shape[1])
    if transposed:
        trace.tie(weight, 0, labels, "each", call.where)
    # A group goes with all its inputs and outputs (one of each if the convolution is depthwise), so that its width stays.
    rows = torch.cat([labels.view(groups, -1), outputs.view(groups, -1)], dim=1)
    trace.identities.join(rows, rows[:, :1], f"they share a group at {call.where} with some that must stay")
    return [outputs.view(shape)]


def _outputs(trace: Trace, call: Call, weight: Tensor | None, dim: int, bias: Tensor | None, width: int = 0) -> Tensor:
    """The identities of a layer's outputs: the same ones at each use of the layer, so that its users share them."""
    owner = bias if weight is None else weight
    slot = trace.slots.get((trace.owned.get(id(owner), ""), dim)) if owner is not None else None
    outputs = slot.labels if slot else trace.identities.fresh(weight.shape[dim] if weight is not None else width)
    trace.tie(weight, dim, outputs, "output", call.where)
    return trace.tie(bias, 0, outputs, "output", call.where)


def linear(trace: Trace, call: Call) -> list[Tensor]:
    source, weight, bias = call.args[0], call.get(1, "weight"), call.get(2, "bias")
    labels = along(trace.labels(source), source.dim() - 1, source.shape[-1])
    if labels is None or id(weight) not in trace.owned:
        return trace.leave_whole(
            call, f"{call.name} at {call.where} has a computed weight, or takes its inputs from several dimensions", named=True
        )
    trace.uses.append((trace.owned[id(weight)], tuple(weight.shape), source.numel() / source.shape[-1] / trace.batch))
    shape = [1] * (source.dim() - 1) + [-1]
    labels = trace.tie(weight, 1, labels, "input", call.where)
    call.mixes = labels.view(shape)
    return [_outputs(trace, call, weight, 0, bias).view(shape)]


def prelu(trace: Trace, call: Call) -> list[Tensor]:
    source, weight = call.args[0], call.get(1, "weight")
    if weight.numel() == 1:
        return [trace.labels(source)]
    return batch_norm(trace, Call(**{**vars(call), "args": (source, None, None, weight)}))
