"""What each operation does to the labels of channels: the rules behind trace.py. What has no rule here is frozen and named."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..pruning.attention.attend import Attention
from ..pruning.passes import tensors_in
from .cut import NORMS
from .identities import ANY, FIXED, across, aligned, along
from .trace import Call, Trace

CREATES = (
    "zeros ones full empty rand randn zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty"
)
ONE = """clone contiguous detach to type type_as float double half bfloat16 int long short char byte bool cpu cuda data requires_grad
    dropout dropout1d dropout2d dropout3d"""
HOMOGENEOUS = f"{ONE} relu leaky_relu neg"  # a positive factor passes through, unless whole numbers come out
NONNEGATIVE = "relu relu6 sigmoid hardsigmoid softmax softplus abs square exp"
ELEMENTWISE = f"""{HOMOGENEOUS} {NONNEGATIVE} add radd sub rsub mul rmul div rdiv rtruediv truediv true_divide pow rpow sqrt rsqrt log log1p
    expm1 tanh hardtanh hardswish silu gelu elu celu selu mish softsign logsigmoid clamp clip clamp_min clamp_max minimum maximum where lerp
    addcmul addcdiv reciprocal erf sin cos sign floor round ceil masked_fill eq ne gt ge lt le logical_and logical_or logical_not bernoulli
    threshold hardshrink softshrink isnan isfinite nan_to_num alpha_dropout fill zero uniform normal copy rrelu"""
CHOOSES = "getitem select narrow index_select chunk split tensor_split split_with_sizes unbind"
STRUCTURE = f"""{CHOOSES} view reshape flatten unflatten permute transpose t T mT swapaxes swapdims movedim moveaxis unsqueeze squeeze
    expand expand_as view_as reshape_as repeat tile repeat_interleave cat concat concatenate stack flip roll pixel_shuffle
    pixel_unshuffle"""
WRAPPING = (torch.int8, torch.int16, torch.int32, torch.int64)  # 200 as int8 is -56
POOLS = """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d interpolate upsample lp_pool2d max_pool2d_with_indices"""
REDUCES = "mean sum amax max amin min std var prod logsumexp median argmax argmin all any"
KEEP_SIGN = f"{STRUCTURE} {POOLS} {ONE} mul rmul add radd div maximum sqrt mean sum amax max"


def follow(trace: Trace, call: Call) -> list[Tensor]:
    """The labels of the call's results; nothing where no channel is in it."""
    tensors = call.tensors()
    if call.name in CREATES.split():
        return [torch.full((1,) * result.dim(), ANY) for result in call.results]
    if call.name in STRUCTURE.split() and len(tensors) == 1 and id(tensors[0]) in trace.owned and sum(n > 1 for n in tensors[0].shape) == 1:
        _label_parameter(trace, tensors[0], call.where)
    elif not any(trace.is_followed(t) for t in tensors):
        return []
    if (rule := RULES.get(call.name)) is None:
        return trace.leave_whole(call, f"there is no rule for {call.name} at {call.where}", named=True)
    call.nonnegative = _nonnegative(trace, call)
    return rule(trace, call)


def _nonnegative(trace: Trace, call: Call) -> bool:
    if call.name in NONNEGATIVE.split():
        return True
    if call.name in ("clamp", "clip", "clamp_min"):
        low = call.get(1, "min")
        return isinstance(low, int | float) and low >= 0
    arithmetic = call.name in ("mul", "rmul", "add", "radd", "div")
    numbers = [v for v in (*call.args, *call.kwargs.values()) if isinstance(v, int | float)] if arithmetic else []
    tensors = [t for t in call.tensors() if t.is_floating_point() or trace.is_followed(t)]
    sign_kept = call.name in KEEP_SIGN.split() and call.kwargs.get("mode") != "bicubic" and call.results[0].dtype not in WRAPPING
    return sign_kept and all(n >= 0 for n in numbers) and all(trace.is_nonnegative(t) for t in tensors)


def _label_parameter(trace: Trace, tensor: Tensor, where: str) -> None:
    """A parameter such as a layer scale, reshaped before it is used: its elements are channels of their own until joined."""
    dim = max(range(tensor.dim()), key=lambda d: tensor.shape[d])
    labels = trace.own(tensor, dim, tensor.shape[dim])
    trace.tie(tensor, dim, labels, "each", where)
    trace.note(tensor, across(labels, dim, tensor.dim()))


def _elementwise(trace: Trace, call: Call) -> list[Tensor]:
    result, ids = call.results[0], trace.identities
    operands = call.tensors()[:1] if call.name in ONE.split() else call.tensors()
    dims = result.dim()
    homogeneous = call.name in HOMOGENEOUS.split() and result.is_floating_point()
    if not homogeneous and not (call.name in ("mul", "div", "truediv", "rmul") and len(operands) == 1):
        for operand in operands:
            ids.freeze_means(trace.labels(operand), f"their mean is used by {call.name} at {call.where}")
    short = [labels.view(aligned(labels.shape, dims)) for labels in map(trace.labels, operands)]
    varying = {d for labels in short for d in range(dims) if labels.shape[d] > 1}
    joined = torch.full((1,) * dims, ANY)
    for operand, labels in zip(operands, short, strict=True):
        sizes = aligned(operand.shape, dims)
        if any(sizes[d] == 1 < result.shape[d] for d in varying):
            ids.freeze(labels, f"one value is spread over many channels at {call.where}")
        elif id(operand) in trace.owned and not trace.is_followed(operand) and len(varying) == 1:
            [d] = varying
            whole = next(s for s in short if s.shape[d] > 1).flatten()
            tied = trace.tie(operand, d - (dims - operand.dim()), whole, "each", call.where)
            joined = ids.join(joined, across(tied, d, dims), call.where)
        else:
            joined = ids.join(joined, labels, f"they meet something that must stay at {call.where}")
    return [joined] * len(call.results)


def _structure(trace: Trace, call: Call) -> list[Tensor]:
    """The operation itself, run on the labels."""
    ids = trace.identities
    every = call.name in ("cat", "concat", "concatenate", "stack")

    def of(value: Tensor) -> Tensor:
        return trace.labels(value).expand(value.shape).contiguous() if every or trace.is_followed(value) else value.cpu()

    source = next(t for t in call.tensors() if every or trace.is_followed(t))
    before = trace.labels(source)
    if any(trace.is_followed(t) for t in tensors_in(call.args[1:])) and call.name in ("getitem", "index_select", "repeat_interleave"):
        return trace.leave_whole(call, f"{call.name} at {call.where} chooses by the data")
    if call.name in ("expand", "expand_as") and before.numel() == 1 and call.results[0].shape[-source.dim() :] != source.shape:
        ids.freeze(before, f"one value is spread over many channels at {call.where}")
        return [torch.full((1,) * call.results[0].dim(), ANY)]
    args, kwargs = tree_map_only(Tensor, of, (call.args, call.kwargs))
    found = tensors_in(call.function(*args, **kwargs))
    if call.name in CHOOSES.split():
        _choose(trace, call, before, found, source)
    return [ids.rectangular(labels, f"they are rearranged at {call.where}") for labels in found]


def _choose(trace: Trace, call: Call, before: Tensor, found: list[Tensor], source: Tensor) -> None:
    """Halves (thirds, ...) of the channels lose the same positions, so that the cut stays at the half; other choices stay whole."""
    ids = trace.identities
    [dim] = [d for d in range(before.dim()) if before.shape[d] > 1] or [-1]
    if dim < 0 or all(set(before.flatten().tolist()) <= set(piece.flatten().tolist()) for piece in found):
        return
    # ``before`` varies along ``dim`` only, and a choice does not change that.
    pieces = [p[tuple(slice(None) if d == dim else 0 for d in range(p.dim()))] for p in found if p.dim() == before.dim()]
    sizes = {len(piece) for piece in pieces}
    if len(pieces) == len(found) and len(sizes) == 1 and before.numel() % (size := sizes.pop()) == 0:
        rows = before.view(-1, size)
        if all((rows == piece).all(1).any() for piece in pieces):
            ids.join(rows, rows[:1], f"they are taken apart at {call.where}")
            return
    ids.freeze(before, f"{call.name} at {call.where} takes some of them by their number")


def _pool(trace: Trace, call: Call) -> list[Tensor]:
    source = call.args[0] if call.args else call.tensors()[0]
    labels = trace.labels(source)
    changed = [d for d in range(source.dim()) if labels.shape[d] > 1 and d >= source.dim() - max(1, source.dim() - 2)]
    if changed or call.results[0].dim() != source.dim():
        return trace.leave_whole(call, f"{call.name} at {call.where} runs across them")
    return [labels] * len(call.results)


def _pad(trace: Trace, call: Call) -> list[Tensor]:
    source, amounts = call.args[0], call.get(1, "pad")
    labels = trace.labels(source)
    if call.get(3, "value"):
        trace.identities.freeze_means(labels, f"their mean is padded at {call.where}")
    padded = {source.dim() - 1 - i // 2 for i, amount in enumerate(amounts) if amount}
    [dim] = [d for d in range(labels.dim()) if labels.shape[d] > 1] or [-1]
    if dim not in padded:
        return [labels]
    if call.get(2, "mode", "constant") != "constant":
        return trace.leave_whole(call, f"pad at {call.where} mirrors them")
    at = 2 * (source.dim() - 1 - dim)
    return [torch.nn.functional.pad(labels, [0] * at + list(amounts[at : at + 2]), value=FIXED)]


def _across(trace: Trace, call: Call) -> list[Tensor]:
    """Operations along some dimensions that are elementwise for the others: fine unless those are the channels."""
    source = call.args[0]
    labels = trace.labels(source)
    if call.name in ("layer_norm", "rms_norm"):
        dims = list(range(source.dim() - len(call.get(1, "normalized_shape")), source.dim()))
    else:
        dims = [d % source.dim() for d in [call.get(1, "dim")] if isinstance(d, int)] or list(range(source.dim()))
    if any(labels.shape[d] > 1 for d in dims):
        return trace.leave_whole(call, f"{call.name} at {call.where} runs over all of them: without some, the others come out different")
    trace.identities.freeze_means(labels, f"their mean is used by {call.name} at {call.where}")
    return [labels] * len(call.results)


def _reduce(trace: Trace, call: Call) -> list[Tensor]:
    source, ids = call.args[0], trace.identities
    second = call.get(1, "dim", call.kwargs.get("axis"))
    if isinstance(second, Tensor):
        return _elementwise(trace, call)
    given = range(source.dim()) if second is None or isinstance(second, bool) else [second] if isinstance(second, int) else second
    dims = {d % source.dim() for d in given}
    before = trace.labels(source)
    crossed = [d for d in dims if before.shape[d] > 1]
    labels = before
    if crossed:
        labels = torch.full((1,) * source.dim(), FIXED)
        if call.name == "mean":
            labels = ids.mean_of(before).view(labels.shape)
        elif call.name not in ("sum", "amax", "max") or (call.name != "sum" and not trace.is_nonnegative(source)):
            why = "of values that may be negative" if call.name in ("amax", "max") else "changes when some go"
            ids.freeze(before, f"{call.name} over the channels at {call.where} {why}")
        call.mixes = before
    if crossed or call.name not in ("mean", "sum", "amax", "max"):
        ids.freeze_means(before, f"their mean is used by {call.name} at {call.where}")
    if call.results[0].dim() != source.dim():
        labels = labels.reshape([labels.shape[d] for d in range(source.dim()) if d not in dims])
    return [labels] * len(call.results)


def _batch_norm(trace: Trace, call: Call) -> list[Tensor]:
    tensors = [call.get(i, name) for i, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1)]
    labels = along(trace.labels(call.args[0]), 1, call.args[0].shape[1])
    if labels is None or (call.name == "instance_norm" and all(t is None for t in tensors)):
        return trace.leave_whole(call, f"{call.name} at {call.where} has no value of its own for each of them")
    return _each(trace, call, labels, tensors)


def _group_norm(trace: Trace, call: Call) -> list[Tensor]:
    """Each group of a group norm stays or goes as a whole: the statistics of a part would be others."""
    labels, count = along(trace.labels(call.args[0]), 1, call.args[0].shape[1]), call.get(1, "num_groups")
    if labels is None or count == 1 or not isinstance(call.module, nn.GroupNorm):
        return trace.leave_whole(call, f"group_norm at {call.where} takes its statistics over all of them")
    rows = labels.view(count, -1)
    trace.identities.join(rows, rows[:, :1], f"group_norm at {call.where} takes its statistics over some that must stay")
    return _each(trace, call, labels, [call.get(2, "weight"), call.get(3, "bias")])


def _layer_norm(trace: Trace, call: Call) -> list[Tensor]:
    """Over channels with a value of its own for each, its statistics are those of the channels that stay (see cut.py)."""
    source, weight = call.args[0], call.get(2, "weight")
    labels, last = trace.labels(source), source.dim() - 1
    rows = along(labels, last, source.shape[last]) if labels.shape[last] > 1 and len(call.get(1, "normalized_shape")) == 1 else None
    if rows is None or id(weight) not in trace.owned or not isinstance(call.module, NORMS):
        return _across(trace, call)
    trace.identities.freeze_means(rows, f"their mean is used by {call.name} at {call.where}")
    for tensor in (weight, call.get(3, "bias") if call.name == "layer_norm" else None):
        rows = trace.tie(tensor, 0, rows, "each", call.where)
    return [across(rows, last, source.dim())]


def _each(trace: Trace, call: Call, labels: Tensor, tensors: list[Tensor | None]) -> list[Tensor]:
    """Each channel by its own element of ``tensors``."""
    trace.identities.freeze_means(labels, f"their mean is used by {call.name} at {call.where}")
    for tensor in tensors:
        labels = trace.tie(tensor, 0, labels, "each", call.where)
    return [across(labels, 1, call.args[0].dim())]


def _layer(trace: Trace, call: Call) -> list[Tensor]:
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


def _attend(trace: Trace, call: Call) -> list[Tensor]:
    """A head goes as a whole, with its queries, keys and values: without one of its channels the products of the others would differ."""
    width, tensors = call.args[3], call.args[:3]
    rows = []
    for tensor in tensors:
        labels = along(trace.labels(tensor), tensor.dim() - 1, tensor.shape[-1]) if trace.is_followed(tensor) else None
        if labels is None:
            return trace.leave_whole(call, f"attention at {call.where} takes its channels from several dimensions")
        rows.append(labels.view(-1, width))
    if isinstance(call.module, Attention):  # its two products take so many MACs for each channel of the values
        weight, (query, key) = call.module.qkv.weight, tensors[:2]
        products = 2 * query.shape[-2] * key.shape[-2] * query[..., 0, 0].numel() / trace.batch
        trace.uses.append((trace.owned[id(weight)], (len(weight),), products / 3))
    together = torch.cat(rows, dim=1)
    trace.identities.freeze_means(together.flatten(), f"their mean is used by attention at {call.where}")
    joined = trace.identities.join(together, together[:, :1], f"they share a head at {call.where} with some that must stay")
    for tensor, dim in call.kwargs.get("of_heads", ()):
        trace.tie(tensor, dim, joined[:, 0], "each", call.where)
    return [across(joined[:, -width:].flatten(), call.results[0].dim() - 1, call.results[0].dim())]


def _prelu(trace: Trace, call: Call) -> list[Tensor]:
    source, weight = call.args[0], call.get(1, "weight")
    if weight.numel() == 1:
        return [trace.labels(source)]
    return _batch_norm(trace, Call(**{**vars(call), "args": (source, None, None, weight)}))


RULES: dict[str, Callable[[Trace, Call], list[Tensor]]] = {
    **dict.fromkeys(ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(STRUCTURE.split(), _structure),
    **dict.fromkeys(POOLS.split(), _pool),
    **dict.fromkeys(REDUCES.split(), _reduce),
    **dict.fromkeys(("softmax", "log_softmax", "cumsum"), _across),
    **dict.fromkeys(("linear", *(f"{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3))), _layer),
    **dict.fromkeys(("batch_norm", "instance_norm"), _batch_norm),
    "group_norm": _group_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "attend": _attend,
    "prelu": _prelu,
    "pad": _pad,
}
