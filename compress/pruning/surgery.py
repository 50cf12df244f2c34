"""Which weights of a layer its outputs miss least, where those that stay make up for those that go.

By hand: three inputs of which the first two are always equal, and the weights 1, 1 and 0.5. By magnitude the third would go first, and
half of that input would be missed; here the first goes, the second becomes 2, and nothing is missed.

In each row the weights go one after the other, always that with the least ``w ** 2 / inverse[w, w]``, which is by how much the squared
error rises, and all that are left are updated. Then the whole layer's zeros are shared out among its rows: those go whose step raised the
error least. It takes about n ** 3 multiplications and n ** 2 numbers for each row of n inputs.

Source: Frantar and Alistarh 2022, "Optimal Brain Compression", arXiv:2208.11580, sections 4 and 5.
"""

import torch
from torch import Tensor

from .least_squares import AT_ONCE, Moments, ridge

DAMPING = 1e-3  # times the mean square of the inputs, as a ridge
WORK = 2e9  # multiplications for one layer, beyond which it keeps the zeros that it has


def affordable(may: Tensor) -> bool:
    """Whether a layer with these weights, (G, n, k), is within :data:`WORK`."""
    return may.numel() * may.shape[1] ** 2 <= WORK


def staying(seen: Moments, weights: Tensor, may: Tensor, zeros: int, *, free: bool) -> Tensor:
    """Which weights of one layer stay, bool (G, n, k).

    Args:
        seen: what the layer reads, and what it should give. weights, free: as for :func:`compress.pruning.least_squares.ridge`.
        may: bool (G, n, k), which may stay; ``zeros``: how many of these go.
    """
    square = seen.square_of_inputs(free=free)
    size = DAMPING * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
    square = square + size[:, None, None] * torch.eye(square.shape[1]).to(square)
    full = ridge(seen, weights, DAMPING, free=free, stay=may)[:, :-1]
    rows, values = may.transpose(1, 2).flatten(0, 1), full.transpose(1, 2).flatten(0, 1)  # (G * k, n)
    group = torch.arange(len(square), device=square.device).repeat_interleave(may.shape[2])
    some = max(1, int(AT_ONCE / square[0].numel()))
    parts = zip(group.split(some), values.split(some), rows.split(some), strict=True)
    rises = torch.cat([_rises(square[at], row, left) for at, row, left in parts])
    stay = rows.flatten()
    stay[rises.flatten().argsort(stable=True)[:zeros]] = False
    return stay.view_as(rows).unflatten(0, (len(square), -1)).transpose(1, 2)


def _rises(square: Tensor, values: Tensor, left: Tensor) -> Tensor:
    """By how much the error of its row rises in the step in which a weight goes, or in the worst before: (R, n), growing from step to step.

    ``square``: (R, n, n); ``values`` and ``left``: (R, n), the weights and which of them are there; infinite where they are not.
    """
    row, rises, worst = torch.arange(len(values), device=values.device), torch.full_like(values, torch.inf), torch.zeros_like(values[:, 0])
    square = (square * (left[:, :, None] & left[:, None, :])).diagonal_scatter(
        square.diagonal(dim1=1, dim2=2).where(left, 1), dim1=1, dim2=2
    )
    # Not torch.linalg.inv: of a batch it fails in MKL as soon as there are two threads ("incorrect on entry to DLASWP").
    inverse, values = torch.cholesky_solve(torch.eye(values.shape[1]).to(square), torch.linalg.cholesky_ex(square)[0]), values * left
    for _ in range(values.shape[1]):
        own = inverse.diagonal(dim1=1, dim2=2)
        rise, at = (values.square() / own).masked_fill(~left, torch.inf).min(1)
        worst = torch.nextafter(torch.maximum(worst, rise), torch.full_like(worst, torch.inf))
        rises[row, at] = torch.where(left[row, at], worst, rises[row, at])  # rows that have none left stand still
        column = inverse[row, :, at] / own[row, at, None]
        values = values - column * values[row, at, None]
        inverse.baddbmm_(column[:, :, None], inverse[row, at][:, None, :], alpha=-1)
        left = left.scatter(1, at[:, None], False)
        values = values * left
        inverse.diagonal(dim1=1, dim2=2).masked_fill_(~left, 1)
    return rises
