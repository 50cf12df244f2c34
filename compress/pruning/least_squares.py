"""Ridge least squares for the weights of one layer, from what it reads at some places of some images to what it should give there.

By hand: from 1, 2, 3 to 2, 4, 6 the weight is 2 and the error 0. What is kept are sums in float64, to which places are added in any number
of calls: memory goes with the square of a layer's inputs, and not with the images. The ridge pulls towards the weights that are there.

Dimensions: G groups of channels, n inputs of one group, k outputs of one group, P places (images times positions).

Source: He et al. 2017, arXiv:1707.06168, section 3.2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

AT_ONCE = 2**21  # numbers in the square matrices of columns that are solved at once, each on unknowns of its own
RIDGES = (1e-10, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # times the mean square of the inputs


@dataclass(kw_only=True)
class Moments:
    """Sums over places, float64: ``square`` (G, n + 1, n + 1) of inputs and a one, ``cross`` (G, n + 1, k), ``power`` (G, k) of targets."""

    count: int = 0
    square: Any = 0
    cross: Any = 0
    power: Any = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """``inputs`` (G, P, n) and ``targets`` (G, P, k), of any type and on one device."""
        x = inputs.new_ones(*inputs.shape[:2], inputs.shape[2] + 1, dtype=torch.float64)
        x[:, :, :-1] = inputs
        y = targets.double()
        self.count += x.shape[1]
        self.square = self.square + x.transpose(1, 2) @ x
        self.cross = self.cross + x.transpose(1, 2) @ y
        self.power = self.power + y.square().sum(1)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            count=self.count + other.count,
            square=self.square + other.square,
            cross=self.cross + other.cross,
            power=self.power + other.power,
        )

    def square_of_inputs(self, *, free: bool) -> Tensor:
        """(G, n, n); ``free``: about their means."""
        square, mean = self.square[:, :-1, :-1], self.square[:, :-1, -1:] / self.count
        return square - self.count * mean @ mean.transpose(1, 2) if free else square

    @property
    def finite(self) -> bool:
        return bool(self.square.isfinite().all() and self.cross.isfinite().all() and self.power.isfinite().all())

    def error(self, weights: Tensor) -> Tensor:
        """The share of each target's variance that ``weights``, float64 (G, n + 1, k), the last row of them the offset, miss: (G, k).

        Of a target that hardly varies beside the others, such as the gate of a channel that never closes, it is a share of what they do.
        """
        wrong = self.power - 2 * (weights * self.cross).sum(1) + (weights * (self.square @ weights)).sum(1)
        spread = self.power - self.cross[:, -1].square() / self.count
        return wrong.clamp_min(0) / spread.clamp_min(1e-3 * float(spread.mean()) + torch.finfo(torch.float32).tiny)


def best_ridge(fit: Moments, judge: Moments, before: Tensor, *, free: bool, stay: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The weights of the ridge of :data:`RIDGES` that is best on places that were not solved on; each group has its own, or stays as it is.

    Args:
        fit: of the places to solve on; ``judge``: of others, which choose. What is chosen is solved again on all of them.
        before: the weights as they are, float64 (G, n + 1, k), the last row of them the offset.
        free: whether the offset may change.
        stay: bool (G, n, k), which weights may change; all others are as before, zero say. None: all.

    Returns:
        The weights, float64 (G, n + 1, k), and the mean error of each group on the others before they were solved on, (G,).
    """
    best, least = before.new_full((len(before),), math.nan), judge.error(before).mean(1)
    for strength in RIDGES:
        error = judge.error(ridge(fit, before, strength, free=free, stay=stay)).mean(1)
        better = error < least  # what is not a number is not
        best, least = torch.where(better, strength, best), torch.where(better, error, least)
    found = ridge(fit + judge, before, best, free=free, stay=stay)
    return torch.where(found.isfinite().flatten(1).all(1)[:, None, None], found, before), least


def ridge(fit: Moments, before: Tensor, strength: float | Tensor, *, free: bool, stay: Tensor | None = None) -> Tensor:
    """The weights of the least squared error plus ``strength`` times the mean square of the inputs times the squared change of the weights.

    ``strength``: one, or one for each group. The rest is as for :func:`best_ridge`. Not a number in groups whose strength is not a number,
    or whose equations are not positive definite.
    """
    left = fit.cross - fit.square @ before
    square, cross, off = fit.square_of_inputs(free=free), left[:, :-1], left[:, -1:] / fit.count
    mean = fit.square[:, :-1, -1:] / fit.count
    if free:  # solved about the means, and the offset is what is left of them: it has no ridge
        cross = cross - fit.count * mean @ off
    size = strength * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(torch.float32).tiny)
    square = square + size.nan_to_num()[:, None, None] * torch.eye(square.shape[1]).to(square)
    change = (_solved(square, cross) if stay is None or stay.all() else _solved_on(square, cross, stay)).masked_fill(
        size.isnan()[:, None, None], math.nan
    )
    shift = off - (mean * change).sum(1, keepdim=True) if free else torch.zeros_like(off)
    return before + torch.cat([change, shift], 1)


def _solved(square: Tensor, cross: Tensor) -> Tensor:
    """The solution of ``square`` (G, n, n) for ``cross`` (G, n, k); not a number where it is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(square)
    return torch.cholesky_solve(cross, factor).masked_fill((failed != 0)[:, None, None], math.nan)


def _solved_on(square: Tensor, cross: Tensor, stay: Tensor) -> Tensor:
    """Each column of ``cross`` by itself, on the unknowns that ``stay`` (G, n, k) names for it; the others are 0.

    By hand: of ``[[2, 1], [1, 2]]`` and ``[4, 5]``, on the second alone, it is ``[0, 2.5]``.
    """
    rows, wanted = stay.transpose(1, 2).flatten(0, 1), cross.transpose(1, 2).flatten(0, 1)  # (G * k, n)
    group = torch.arange(len(square), device=square.device).repeat_interleave(stay.shape[2])
    counts, found = rows.sum(1), torch.zeros_like(wanted)
    for some in counts.argsort(stable=True).split(max(1, int(AT_ONCE / square[0].numel()))):
        at = rows[some].int().argsort(dim=1, descending=True, stable=True)[:, : max(1, int(counts[some].max()))]
        used = rows[some].gather(1, at)
        small = square[group[some, None, None], at[:, :, None], at[:, None, :]] * (used[:, :, None] & used[:, None, :])
        small.diagonal(dim1=1, dim2=2).masked_fill_(~used, 1)  # what is not used is 0
        found[some] = found[some].scatter(1, at, _solved(small, (wanted[some].gather(1, at) * used).unsqueeze(2)).squeeze(2))
    return found.unflatten(0, (len(square), -1)).transpose(1, 2)


def weights_of(layer: nn.Module) -> Tensor:
    """Those of a convolution or a linear layer as they are, float64 (G, n + 1, k), the last row of them the offset, 0 where it has none."""
    module: Any = layer
    weight, bias = module.weight.detach().double().flatten(1), module.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    return torch.cat([weight, bias[:, None]], 1).unflatten(0, (getattr(module, "groups", 1), -1)).transpose(1, 2)


def inputs_of(layer: nn.Module, came: Tensor, places: Callable[[int], Tensor]) -> Tensor:
    """What a convolution of any dimensions and groups, or a linear layer, reads for each of its outputs at some positions.

    Args:
        came: its input, (B, C, ...), of a linear layer (B, ..., C).
        places: how many positions there are to which of them are looked at, int64.

    Returns:
        (G, B * positions, n), positions running fastest, and the inputs in the order of the layer's weight.
    """
    module: Any = layer
    if isinstance(module, nn.Linear):
        values = positions_of(module, came)
        return values[:, :, places(values.shape[2]).to(came.device)].transpose(1, 2).flatten(0, 1).unsqueeze(0)
    if module.groups == 1 and {*module.kernel_size} == {1} and not any(module._reversed_padding_repeated_twice):
        strided: Any = (slice(None), slice(None), *(slice(None, None, stride) for stride in module.stride))
        values = came[strided].flatten(2)
        return values.index_select(2, places(values.shape[2]).to(came.device)).transpose(1, 2).flatten(0, 1).unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(came, module._reversed_padding_repeated_twice, mode).contiguous()
    axes = list(zip(padded.shape[2:], padded.stride()[2:], module.kernel_size, module.stride, module.dilation, strict=True))
    size = [(long - dilation * (kernel - 1) - 1) // stride + 1 for long, _, kernel, stride, dilation in axes]
    steps = [step * stride for _, step, _, stride, _ in axes] + [step * dilation for _, step, _, _, dilation in axes]
    windows = padded.as_strided((*padded.shape[:2], *size, *module.kernel_size), (*padded.stride()[:2], *steps))
    at: Any = (slice(None), slice(None), *torch.unravel_index(places(math.prod(size)).to(came.device), size))
    picked = windows[at]  # B, C, positions, kernel
    return picked.unflatten(1, (module.groups, -1)).movedim((1, 3), (0, 2)).flatten(3).flatten(1, 2)


def positions_of(layer: nn.Module, values: Tensor) -> Tensor:
    """What a layer reads or gives as (B, C, positions)."""
    if not isinstance(layer, nn.Linear):
        return values.flatten(2)
    return values.movedim(-1, 1).flatten(2) if values.dim() > 2 else values.unsqueeze(2)


@lru_cache(maxsize=2**13)
def some_of(count: int, wanted: int, seed: int) -> Tensor:
    """Which of ``count`` positions are looked at, int64: the same ones each time, which are not to be written to."""
    if wanted >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted].clone()
