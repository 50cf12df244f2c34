"""Remove channels: cut a network to the channels that are kept, prove the cut, and rebuild a cut network from stored shapes.

Contribution. A channel contributes to what the layers that mix channels make of it: convolutions, linear layers, sums, means and maxima
over channels. Its contribution is zero when it arrives there as zero. By hand: A -> sigmoid -> B, with channel 3 of A all zero. B reads
0.5 from it, so removing it does change B's output: its contribution is not zero. It is if channel 3 is zero after the sigmoid. That is
what ``surgery_error`` makes of the original: it zeroes the removed channels where they are mixed, and nothing else.

A mean over C channels of which k are kept is the same sum divided by k instead of C. So that the network computes the same, the weights
which read the mean are multiplied by k/C when it is cut. A maximum over channels stays the same only over values that are not negative.

A layer norm takes its mean and variance over channels. Its channels can be removed all the same: what the rest is compared with is then the
original whose layer norms take them over the channels that stay, which is what the cut network does.

Refuses: a cut network that computes something of another shape than expected anywhere; nothing half-cut is returned.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NetworkError
from ..pruning.attention.heads import separate_heads
from ..pruning.passes import evaluating, tensors_in
from .groups import Groups
from .identities import ANY
from .trace import NETWORK_FAILURES, Operation, Watch, name_of, run

Keep = Mapping[str, Sequence[int]]
NORMS = (nn.LayerNorm, nn.RMSNorm)


class Mismatch(Exception):
    """The cut network left the path of the original at operation ``index``."""

    def __init__(self, index: int, told: str) -> None:
        super().__init__(told)
        self.index = index


def remove_channels(network: nn.Module, groups: Groups, keep: Keep) -> nn.Module:
    """A copy of the network without the channels that are not kept.

    Args:
        network: the one that ``groups`` were found in; it is not changed.
        keep: group name to the sorted units that stay, at least one; groups that it does not name stay whole.

    Returns:
        The cut copy, its weights, shapes and attributes (``out_channels``, ``num_features``, ``groups``, ...) adapted; no gradients.

    Raises:
        CompressError: ``keep`` names no group, or other units than it has.
        NetworkError: the cut network does not run, or something in it came out in another shape than was due.
    """
    pruned = cut(network, groups, keep)
    try:
        check(pruned, groups, keep)
    except Mismatch as mismatch:
        raise NetworkError(
            f"network cannot be cut so: {mismatch}; compute widths from shapes in forward, or keep the group whole"
        ) from None
    return pruned


def surgery_error(network: nn.Module, pruned: nn.Module, groups: Groups, keep: Keep, example: Tensor | None = None) -> float:
    """How far the cut network is from the original with the contribution of the removed channels zeroed.

    Args:
        example: float32 (B, C, H, W), B at least 2; the one that the groups were found with if not given.

    Returns:
        The largest absolute difference of any output in eval mode, divided by the largest magnitude of the original's outputs: about
        1e-6 for a correct cut in float32.
    """
    example = groups.example if example is None else example
    with evaluating(network), evaluating(pruned):
        wanted = tensors_in(run(network, example, _Replay(network, groups, keep, masking=True)))
        with torch.no_grad():
            got = tensors_in(pruned(example.clone()))
    largest = max(float(tensor.abs().max()) for tensor in wanted)
    return max(float((a - b).abs().max()) for a, b in zip(wanted, got, strict=True)) / max(largest, torch.finfo(torch.float32).tiny)


def cut(network: nn.Module, groups: Groups, keep: Keep) -> nn.Module:
    """The cut copy, without the proof that it runs."""
    stored = network.state_dict(keep_vars=True)
    kept = groups.kept(keep)
    changed: dict[str, Tensor] = {}
    for mean in groups.means:
        factor = float(kept[mean.units].double().mean())
        if factor < 1:
            weight = changed.setdefault(mean.parameter, stored[mean.parameter].detach().clone())
            weight.select(mean.dim, mean.index).mul_(factor)
    for (name, dim), gone in groups.removed(keep).items():
        value = changed.get(name, stored[name].detach())
        stay = torch.tensor([i for i in range(value.shape[dim]) if i not in gone], device=value.device)
        changed[name] = value.index_select(dim, stay)
    memo: dict[int, Any] = {id(stored[name]): _like(stored[name], value) for name, value in changed.items()}
    pruned = copy.deepcopy(network, memo)
    for module in pruned.modules():
        adapt(module)
    return pruned


def cut_to(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> nn.Module:
    """Cut a freshly built network to the shapes that a cut one was stored in, so that its weights load strictly.

    Args:
        network: what the factory returns, at full width; it is changed. Its weights are arbitrary afterwards.
        shapes: the shape of every entry of the stored state dict, by name.

    Raises:
        NetworkError: an entry that is missing on either side, of another number of dimensions, or larger than the network's own.
    """
    separate_heads(network, lambda name: f"{name}.qkv.weight" in shapes)
    stored = network.state_dict(keep_vars=True)
    if differ := sorted(stored.keys() ^ shapes.keys()):
        raise NetworkError(
            f"weights: {', '.join(differ[:4])} is in the network or in the weights, not in both; use the factory they were made with"
        )
    for name, value in stored.items():
        shape = tuple(shapes[name])
        if len(shape) != value.dim() or (
            any(not 0 < new <= old for new, old in zip(shape, value.shape, strict=True)) and shape != value.shape
        ):
            raise NetworkError(
                f"weights: {name} has shape {shape}, which {tuple(value.shape)} cannot be cut to; use the factory they were made with"
            )
    smaller: dict[int, Tensor] = {}  # tied weights stay tied
    for name, value in stored.items():
        if tuple(shapes[name]) != tuple(value.shape):
            owner, _, attribute = name.rpartition(".")
            part = _like(value, value.detach()[tuple(slice(size) for size in shapes[name])].clone())
            setattr(network.get_submodule(owner), attribute, smaller.setdefault(id(value), part))
    for module in network.modules():
        adapt(module)
    return network


def adapt(module: nn.Module) -> None:
    """Make a layer's attributes say what its weights are.

    A group of a grouped convolution keeps its width, so there are fewer of them; ``groups`` is 1 before and after in any other, also in
    a first convolution with a single input channel, whose weight looks like that of a depthwise one.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        width = (module.in_channels if module.transposed else module.out_channels) // module.groups
        module.groups = module.weight.shape[0] // width if module.groups > 1 else 1
        ends = module.weight.shape[0], module.weight.shape[1] * module.groups
        module.in_channels, module.out_channels = ends if module.transposed else ends[::-1]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        known = next((t for t in (module.weight, module.running_mean) if t is not None), None)
        module.num_features = module.num_features if known is None else len(known)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        width = module.num_channels // module.num_groups
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // width
    elif isinstance(module, NORMS) and module.weight is not None and len(module.normalized_shape) == 1:
        module.normalized_shape = (len(module.weight),)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(getattr(module, "hidden_dim", None), int) and isinstance(patches := getattr(module, "conv_proj", None), nn.Conv2d):
        module.hidden_dim = patches.weight.shape[0]  # type: ignore[assignment]  # torchvision's VisionTransformer reshapes by it


def check(pruned: nn.Module, groups: Groups, keep: Keep) -> None:
    """Run the cut network beside the record of the original; raises Mismatch where a shape is not what it should be."""
    replay = _Replay(pruned, groups, keep, masking=False)
    with evaluating(pruned):
        try:
            run(pruned, groups.example, replay)
        except NetworkError as error:
            if isinstance(error.__cause__, NETWORK_FAILURES):
                raise Mismatch(max(replay.index - 1, 0), f"{replay.stands()[1]}: {error.__cause__}".splitlines()[0]) from error
            raise


def is_whole(network: nn.Module, pruned: nn.Module, gone: Mapping[tuple[str, int], Collection[int]]) -> bool:
    """Whether neither channels were removed (``gone``, of ``Groups.removed``) nor modules bypassed in ``pruned``, made of ``network``."""
    return not any(gone.values()) and [*map(type, network.modules())] == [*map(type, pruned.modules())]


class _Replay(Watch):
    """Goes through the record of the original, call by call: zeroes what removed channels contribute, or checks the shapes."""

    def __init__(self, network: nn.Module, groups: Groups, keep: Keep, *, masking: bool) -> None:
        super().__init__(network)
        self.groups, self.kept, self.masking, self.index = groups, groups.kept(keep), masking, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, name_of(func)
        operation = self.groups.operations[self.index] if self.index < len(self.groups.operations) else None
        if self.masking and operation is not None and operation.mixes is not None and operation.name == name:
            mask = self.kept[self.groups.units(operation.mixes)].to(args[0].device)
            args = (args[0].masked_fill(~mask, 0), *args[1:])
        try:
            if self.masking and name in ("layer_norm", "rms_norm") and operation is not None and operation.outputs:
                result = _over(self.kept[self.groups.units(operation.outputs[0])].to(args[0].device), func, args, kwargs)
            else:
                result = func(*args, **kwargs)
        except NETWORK_FAILURES as error:
            if self.masking or operation is None:
                raise
            raise Mismatch(self.index, f"{name} at {self.stands()[1]} fails ({str(error).splitlines()[0]})") from error
        if results := tensors_in(result):
            if not self.masking:
                self._compare(operation, name, results)
            self.index += 1
        return result

    def _compare(self, due: Operation | None, name: str, results: list[Tensor]) -> None:
        at = f"{name} at {self.stands()[1]}"
        if due is None or due.name != name:
            raise Mismatch(max(self.index - 1, 0), f"{at} is called only when it is cut")
        for tensor, labels, shape in zip(results, due.outputs, due.shapes, strict=False):
            stays = self.kept[self.groups.units(labels)]
            size = tuple(
                int(stays.movedim(d, 0).reshape(labels.shape[d], -1).any(1).sum()) if labels.shape[d] > 1 else shape[d]
                for d in range(labels.dim())
            )
            if tuple(tensor.shape) != size and not (labels == ANY).any():
                raise Mismatch(self.index, f"{at} gives shape {tuple(tensor.shape)} where {size} was due: a width is written into it")


def _over(stays: Tensor, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A norm over the last dimension, but its statistics are those of the channels that stay; the others come out as zeros."""
    names = (
        ("input", "normalized_shape", "weight", "bias", "eps")
        if func.__name__ == "layer_norm"
        else ("input", "normalized_shape", "weight", "eps")
    )
    own = dict(zip(names, args, strict=False)) | kwargs
    x, stays = own["input"], stays.flatten()
    if len(stays) == 1 or bool(stays.all()):
        return func(*args, **kwargs)
    own |= {name: own[name][stays] for name in ("weight", "bias") if own.get(name) is not None}
    made = torch.zeros_like(x)
    made[..., stays] = func(**own | {"input": x[..., stays], "normalized_shape": (int(stays.sum()),)})
    return made


def _like(old: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
