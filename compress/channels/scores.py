"""Scores for the units of channel groups, which say what goes first.

Sources: Li et al. 2017, arXiv:1608.08710 (norms); Liu et al. 2017, "Network Slimming", arXiv:1708.06519 (batch-norm scale); Molchanov et
al. 2019, arXiv:1906.10771 (first-order Taylor, squared per batch).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import CompressError
from ..pruning.masks import backward_each
from .groups import ChannelGroup, Cut, Groups

KINDS = ("l2", "bn", "taylor")


def importance(network: nn.Module, groups: Groups, kind: str = "l2", losses: Iterable[Tensor] = ()) -> dict[str, Tensor]:
    """Score every unit of every group.

    Args:
        network: the one the groups were found in; its gradients are as before afterwards.
        kind: "l2", the norm of all weights that would go, divided by its mean over the group; "bn", the mean magnitude of the unit's
            batch-norm scales, divided likewise (a group without batch norm gets its "l2"); "taylor", the squared first-order change of the
            loss when the unit's contribution goes (``w * gradient`` summed over the weights that read it), summed over the losses.
        losses: for "taylor": scalar losses of this network, one per batch; a generator computes each when it is needed.

    Returns:
        Group name to scores float64 (width,), at least 0.

    Raises:
        CompressError: another kind, "taylor" without losses, or scores that are not finite.
    """
    if kind not in KINDS:
        raise CompressError(f'importance (="{kind}") must be one of {", ".join(KINDS)}')
    stored = network.state_dict()
    if kind == "taylor":
        scores = _taylor(network, groups, losses)
    else:
        scores = {group.name: _norm(group, stored) for group in groups}
        if kind == "bn":
            scores |= {group.name: scale for group in groups if (scale := _scale(group, network, stored)) is not None}
        scores = {name: score / score.mean().clamp_min(torch.finfo(torch.float64).tiny) for name, score in scores.items()}
    for name, score in scores.items():
        if not score.isfinite().all():
            raise CompressError(f'importance (="{kind}") of "{name}" is not finite; its weights or gradients hold NaN or infinity')
    return scores


def _norm(group: ChannelGroup, stored: Mapping[str, Tensor]) -> Tensor:
    squares = [
        _by_unit(cut, stored[cut.parameter].double().square())
        for cut in group.cuts
        if cut.role != "each" and stored[cut.parameter].dim() > 1
    ]
    return torch.stack(squares).sum(0).sqrt()


def _scale(group: ChannelGroup, network: nn.Module, stored: Mapping[str, Tensor]) -> Tensor | None:
    found = [
        _by_unit(cut, stored[cut.parameter].double().abs()) / len(cut.positions[0])
        for cut in group.cuts
        if cut.parameter.endswith("weight")
        and isinstance(network.get_submodule(cut.parameter.rpartition(".")[0]), nn.modules.batchnorm._BatchNorm)
    ]
    return torch.stack(found).mean(0) if found else None


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


def _by_unit(cut: Cut, values: Tensor) -> Tensor:
    """Sums of ``values`` (the parameter's shape) over what each unit takes of it, (width,) on the CPU."""
    lines = values.movedim(cut.dim, 0).flatten(1).sum(1).cpu() if values.dim() > 1 else values.cpu()
    return lines[torch.tensor(cut.positions)].sum(1)
