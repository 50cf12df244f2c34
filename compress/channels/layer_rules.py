"""What layers with weights do to the labels of channels: convolutions, linear layers, normalisations. More in operator_rules.py."""

import torch
from torch import Tensor, nn

from .identities import across, along
from .trace import Call, Trace


def batch_norm(trace: Trace, call: Call) -> list[Tensor]:
    tensors = [call.get(i, name) for i, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1)]
    labels = along(trace.labels(call.args[0]), 1, call.args[0].shape[1])
    if labels is None or (call.name == "instance_norm" and all(t is None for t in tensors)):
        return trace.leave_whole(call, f"{call.name} at {call.where} has no value of its own for each of them")
    return _each(trace, call, labels, tensors)


def group_norm(trace: Trace, call: Call) -> list[Tensor]:
    """Each group of a group norm stays or goes as a whole: the statistics of a part would be others."""
    labels, count = along(trace.labels(call.args[0]), 1, call.args[0].shape[1]), call.get(1, "num_groups")
    if labels is None or count == 1 or not isinstance(call.module, nn.GroupNorm):
        return trace.leave_whole(call, f"group_norm at {call.where} takes its statistics over all of them")
    rows = labels.view(count, -1)
    trace.identities.join(rows, rows[:, :1], f"group_norm at {call.where} takes its statistics over some that must stay")
    return _each(trace, call, labels, [call.get(2, "weight"), call.get(3, "bias")])


def _each(trace: Trace, call: Call, labels: Tensor, tensors: list[Tensor | None]) -> list[Tensor]:
    """Each channel by its own element of ``tensors``."""
    trace.identities.freeze_means(labels, f"their mean is used by {call.name} at {call.where}")
    for tensor in tensors:
        labels = trace.tie(tensor, 0, labels, "each", call.where)
    return [across(labels, 1, call.args[0].dim())]


def layer(trace: Trace, call: Call) -> list[Tensor]:
    """Convolutions, and linear layers, whose channels are the last dimension."""
    source, weight, bias, groups = call.args[0], call.get(1, "weight"), call.get(2, "bias"), call.get(6, "groups", 1)
    transposed, linear = call.name.startswith("conv_transpose"), call.name == "linear"
    dim, dims = source.dim() - 1 if linear else 1, source.dim()
    labels = along(trace.labels(source), dim, source.shape[dim]) if linear or dims == weight.dim() else None
    if labels is None or id(weight) not in trace.owned:
        read = "inputs" if linear else "channels"
        return trace.leave_whole(
            call, f"{call.name} at {call.where} has a computed weight, or takes its {read} from several dimensions", named=True
        )
    places = source if transposed else call.results[0]
    trace.uses.append((trace.owned[id(weight)], tuple(weight.shape), places.numel() / places.shape[dim] / trace.batch))
    if groups == 1:
        labels = trace.tie(weight, 0 if transposed else 1, labels, "input", call.where)
        call.mixes = across(labels, dim, dims)
    else:
        trace.identities.freeze_means(labels, f"their mean is used by {call.name} at {call.where}")
    made, at = (None if transposed and groups > 1 else weight), int(transposed and groups == 1)
    outputs = trace.own(bias if made is None else made, at, call.results[0].shape[dim])
    trace.tie(made, at, outputs, "output", call.where)
    outputs = trace.tie(bias, 0, outputs, "output", call.where)
    if groups > 1:
        if transposed:
            trace.tie(weight, 0, labels, "each", call.where)
        # A group goes with all its inputs and outputs (one of each if the convolution is depthwise), so that its width stays.
        rows = torch.cat([labels.view(groups, -1), outputs.view(groups, -1)], dim=1)
        trace.identities.join(rows, rows[:, :1], f"they share a group at {call.where} with some that must stay")
    return [across(outputs, dim, dims)]


def prelu(trace: Trace, call: Call) -> list[Tensor]:
    source, weight = call.args[0], call.get(1, "weight")
    if weight.numel() == 1:
        return [trace.labels(source)]
    return batch_norm(trace, Call(**{**vars(call), "args": (source, None, None, weight)}))
