"""Scores for the units of channel groups, which say what goes first.

Sources: Li et al. 2017, arXiv:1608.08710 (norms); Liu et al. 2017, "Network Slimming", arXiv:1708.06519 (batch-norm scale); Molchanov et
al. 2019, arXiv:1906.10771 (first-order Taylor, squared per batch); An et al. 2024, "FLAP", arXiv:2312.11983 (fluctuation).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import CompressError
from ..pruning.masks import backward_each
from .groups import ChannelGroup, Cut, Groups

KINDS = ("l2", "bn", "taylor", "fluctuation", "bn-fluctuation")


def importance(network: nn.Module, groups: Groups, kind: str = "l2", losses: Iterable[Tensor] = ()) -> dict[str, Tensor]:
    """Score every unit of every group.

    Args:
        network: the one the groups were found in; its gradients are as before afterwards.
        kind: "l2", the norm of all weights that would go, divided by its mean over the group; "bn", the mean magnitude of the unit's
            batch-norm scales, divided likewise (a group without batch norm gets its "l2"); "taylor", the squared first-order change of the
            loss when the unit's contribution goes (``w * gradient`` summed over the weights that read it), summed over the losses;
            "fluctuation", how far what the unit gives to its readers strays from its mean, which a bias makes up for: the root of its
            variance times the squares of the weights that read it, divided by its mean over the group (a group whose readers are not
            called as modules gets its "l2"); "bn-fluctuation", the geometric mean of those two, of who makes a unit and who reads it.
        losses: for "taylor" and both fluctuations: scalar losses of this network, one per batch; a generator computes each when needed.

    Returns:
        Group name to scores float64 (width,), at least 0.

    Raises:
        CompressError: another kind, one that needs losses without them, or scores that are not finite.
    """
    if kind not in KINDS:
        raise CompressError(f'importance (="{kind}") must be one of {", ".join(KINDS)}')
    if kind == "bn-fluctuation":
        return both(importance(network, groups, "bn"), importance(network, groups, "fluctuation", losses))
    stored = network.state_dict()
    if kind == "taylor":
        scores = _taylor(network, groups, losses)
    else:
        scores = {group.name: _norm(group, stored) for group in groups}
        own = {"bn": _scales, "fluctuation": _fluctuations}.get(kind)
        scores |= own(network, groups, losses) if own is not None else {}
        scores = {name: score / score.mean().clamp_min(torch.finfo(torch.float64).tiny) for name, score in scores.items()}
    for name, score in scores.items():
        if not score.isfinite().all():
            raise CompressError(f'importance (="{kind}") of "{name}" is not finite; its weights or gradients hold NaN or infinity')
    return scores


def both(made: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """ "bn-fluctuation" of the scores "bn" and "fluctuation"."""
    return {name: (made[name] * read[name]).sqrt() for name in made}


def _norm(group: ChannelGroup, stored: Mapping[str, Tensor]) -> Tensor:
    squares = [
        _by_unit(cut, stored[cut.parameter].double().square())
        for cut in group.cuts
        if cut.role != "each" and stored[cut.parameter].dim() > 1
    ]
    return torch.stack(squares).sum(0).sqrt()


def _scales(network: nn.Module, groups: Groups, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Of the groups that have a batch norm."""
    stored, scales = network.state_dict(), {}
    for group in groups:
        found = [
            _by_unit(cut, stored[cut.parameter].double().abs()) / len(cut.positions[0])
            for cut in group.cuts
            if cut.parameter.endswith("weight") and isinstance(network.get_submodule(cut.layer), nn.modules.batchnorm._BatchNorm)
        ]
        if found:
            scales[group.name] = torch.stack(found).mean(0)
    return scales


def _fluctuations(network: nn.Module, groups: Groups, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Of the groups that are read by modules."""
    modules = dict(network.named_modules())
    reads = [cut for group in groups for cut in group.cuts if cut.role == "input" and cut.layer in modules]
    variances = _variances(network, {cut.layer for cut in reads}, losses)
    found: dict[str, Tensor] = {}
    for group in groups:
        squares = [
            _by_unit(cut, network.get_parameter(cut.parameter).detach().double().square(), variances[cut.layer])
            for cut in group.cuts
            if cut in reads and cut.layer in variances
        ]
        if squares:
            found[group.name] = torch.stack(squares).sum(0).sqrt()
    return found


def _variances(network: nn.Module, layers: Collection[str], losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """The variance of each channel that these layers read, float64 (C,), over all images and places that the losses see."""
    seen: dict[str, list[tuple[int, Tensor, Tensor]]] = {}

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].detach().movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
        variance, mean = torch.var_mean(channels, dim=1, correction=0)
        seen.setdefault(name, []).append((channels.shape[1], mean.double().cpu(), variance.double().cpu()))

    with ExitStack() as hooks, torch.no_grad():
        for name in layers:
            hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(partial(look, name)))
        if not sum(1 for _ in losses):
            raise CompressError('importance (="fluctuation") needs losses: one scalar loss of the network per batch')
    found = {}
    for name, batches in seen.items():
        counts, means, variances = (torch.stack([torch.as_tensor(one) for one in parts]) for parts in zip(*batches, strict=True))
        share = (counts / counts.sum()).double()[:, None]
        found[name] = (share * (variances + (means - (share * means).sum(0)).square())).sum(0)
    return found


def _taylor(network: nn.Module, groups: Groups, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters(remove_duplicate=False))
    scores = {group.name: torch.zeros(group.width, dtype=torch.float64) for group in groups}
    read = {parameters[cut.parameter] for group in groups for cut in group.cuts if cut.role == "input"}
    batches = 0
    with _differentiated(network, read):
        for _ in backward_each(network, losses):
            batches += 1
            for group in groups:
                changes = [
                    _by_unit(cut, (parameters[cut.parameter] * gradient).detach().double())
                    for cut in group.cuts
                    if cut.role == "input" and (gradient := parameters[cut.parameter].grad) is not None
                ]
                if changes:
                    scores[group.name] += torch.stack(changes).sum(0).square()
    if not batches:
        raise CompressError('importance (="taylor") needs losses: one scalar loss of the network per batch')
    return scores


@contextmanager
def _differentiated(network: nn.Module, wanted: set[nn.Parameter]) -> Iterator[None]:
    """Inside the block only these have gradients, which saves k49 a third of the time; where none of them has, nothing changes."""
    others = [one for one in network.parameters() if one.requires_grad and one not in wanted]
    others = others if any(one.requires_grad for one in wanted) else []
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _by_unit(cut: Cut, values: Tensor, times: Tensor | None = None) -> Tensor:
    """Sums of ``values`` (the parameter's shape) over what each unit takes of it, each index by its own factor; (width,) on the CPU."""
    lines = values.movedim(cut.dim, 0).flatten(1).sum(1).cpu() if values.dim() > 1 else values.cpu()
    return (lines if times is None else lines * times)[torch.tensor(cut.positions)].sum(1)
