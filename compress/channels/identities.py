"""Channel identities: integers that say which channel an element of a tensor belongs to, and which of them must go together.

A convolution with four output channels gives its output (B, 4, H, W) the identities ``[0, 1, 2, 3]`` along dimension 1. Labels are kept
short: an int64 tensor in the number of dimensions of the labelled one, of size 1 wherever the identity does not change, here
(1, 4, 1, 1). A residual sum of it and a tensor with ``[8, 9, 10, 11]`` joins 0 with 8, 1 with 9 and so on: from then on both have one
root. After a flatten of 2 x 2 pixels the labels are ``[0, 0, 0, 0, 1, 1, 1, 1, ...]``: the operation itself, run on them.

Besides identities a label may be FIXED (an element that must stay, such as a pixel of the input image) or ANY (a value that is the same
wherever it stands, such as ``torch.zeros``, and so fits any identity).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FIXED, ANY = -1, -2


class Identities:
    """The identities of one network: which have been joined, which are frozen (must stay, with the reason), which are means of others."""

    def __init__(self) -> None:
        self._parent = torch.zeros(0, dtype=torch.int64)
        self._frozen: dict[int, str] = {}
        self.means: dict[int, Tensor] = {}

    @property
    def count(self) -> int:
        return len(self._parent)

    def fresh(self, *shape: int) -> Tensor:
        """New identities, one for each element of ``shape``."""
        new = torch.arange(self.count, self.count + math.prod(shape))
        self._parent = torch.cat([self._parent, new])
        return new.view(shape)

    def mean_of(self, labels: Tensor) -> Tensor:
        """The identity (1,) of the mean over ``labels``: it cannot be removed, but grows by all/kept when some of those are."""
        identity = self.fresh(1)
        self.means[int(identity)] = labels.flatten()
        return identity

    def roots(self, labels: Tensor) -> Tensor:
        """One identity for each set of joined ones; FIXED and ANY stay."""
        real = labels >= 0
        at = labels[real]
        while not torch.equal(up := self._parent[at], at):
            at = up
        return labels.masked_scatter(real, at)

    def freeze(self, labels: Tensor, reason: str) -> bool:
        """These must stay. True if some of them could go until now."""
        some = False
        for identity in torch.unique(labels[labels >= 0]).tolist():
            some |= identity not in self._frozen
            self._frozen.setdefault(identity, reason)
            if identity in self.means:
                some |= self.freeze(self.means.pop(identity), reason)
        return some

    def freeze_means(self, labels: Tensor, reason: str) -> None:
        """Freeze what the means among ``labels`` are taken over: here the mean meets something that its factor does not pass through."""
        if self.means:
            self.freeze(labels[torch.isin(labels, torch.tensor(list(self.means)))], reason)

    def join(self, first: Tensor, second: Tensor, reason: str) -> Tensor:
        """Element by element these go together; ``reason`` is for those that meet a FIXED one. Returns the labels of both as one."""
        first, second = torch.broadcast_tensors(first, second)
        joined = torch.where(first == ANY, second, first)
        differ = (first != second) & (first != ANY) & (second != ANY)
        if not differ.any():
            return joined
        pairs = torch.unique(torch.stack([first[differ], second[differ]]), dim=1)
        a, b = pairs[:, [not self._same_mean(*pair) for pair in pairs.T.tolist()]]
        self.freeze_means(torch.cat([a, b]), reason)
        fixed = (a == FIXED) | (b == FIXED)
        self.freeze(torch.cat([a[fixed], b[fixed]]), reason)
        left, right = a[~fixed], b[~fixed]
        while not torch.equal(left := self.roots(left), right := self.roots(right)):
            self._parent.scatter_reduce_(0, torch.maximum(left, right), torch.minimum(left, right), "amin")
        return joined

    def _same_mean(self, first: int, second: int) -> bool:
        """Both are means over the same channels, so both change by the same factor."""
        over = [self.means.get(first), self.means.get(second)]
        return over[0] is not None and over[1] is not None and torch.equal(self.roots(over[0]), self.roots(over[1]))

    def frozen_roots(self) -> dict[int, str]:
        """The root of each set that must stay, with the first reason given."""
        frozen: dict[int, str] = {}
        if self._frozen:
            for root, reason in zip(self.roots(torch.tensor(list(self._frozen))).tolist(), self._frozen.values(), strict=True):
                frozen.setdefault(root, reason)
        return frozen

    def rectangular(self, labels: Tensor, reason: str) -> Tensor:
        """Join until the labels change along one dimension only, that which keeps most identities apart.

        A tensor can lose whole rows or whole columns, not single elements: of 6 channels viewed as (2, 3), as a channel shuffle does,
        channels 0 and 3, 1 and 4, 2 and 5 can go, each pair together.
        """
        labels = shorten(labels)
        varying = [d for d in range(labels.dim()) if labels.shape[d] > 1]
        if len(varying) <= 1:
            return labels
        trials = [self._joined_across(labels, d, reason) for d in sorted(varying, key=lambda d: -labels.shape[d])]
        best = max(trials, key=lambda trial: len(torch.unique(trial.roots(labels))))  # of equal ones the longest dimension
        vars(self).update(vars(best))
        return shorten(self.roots(labels))

    def _joined_across(self, labels: Tensor, kept: int, reason: str) -> "Identities":
        trial = Identities()
        trial._parent, trial._frozen, trial.means = self._parent.clone(), dict(self._frozen), dict(self.means)
        rows = labels.movedim(kept, 0).flatten(1)
        trial.join(rows, rows[:, :1], reason)
        return trial


def shorten(labels: Tensor) -> Tensor:
    """The same labels with size 1 in every dimension along which they do not change."""
    for d in range(labels.dim()):
        if labels.shape[d] > 1:
            first = labels.narrow(d, 0, 1)
            if labels.stride(d) == 0 or bool((labels == first).all()):
                labels = first
    return labels.clone()


def along(labels: Tensor, dim: int, size: int) -> Tensor | None:
    """The labels of dimension ``dim``, int64 (size,); None where they change along another dimension too."""
    if any(labels.shape[d] > 1 for d in range(labels.dim()) if d != dim % labels.dim()):
        return None
    return labels.flatten().expand(size).clone()


def across(labels: Tensor, dim: int, dims: int) -> Tensor:
    """Labels of one dimension, int64 (size,), as those of a tensor of ``dims`` dimensions that change along ``dim``."""
    return labels.view([-1 if d == dim else 1 for d in range(dims)])


def aligned(shape: Sequence[int], dims: int) -> tuple[int, ...]:
    """``shape`` with ones in front, as broadcasting reads it."""
    return (1,) * (dims - len(shape)) + tuple(shape)
