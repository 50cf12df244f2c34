"""Hold out part of every class, the same images for the same seed on every machine."""

import numpy as np

from .errors import TrainError


def held_out(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Mark ``fraction`` of each class: bool (N,) for int labels (N,).

    A class of n >= 2 images gives round(n * fraction), but at least 1 and at most n - 1; a class of one image gives none. Example:
    labels [0 0 0 0 1 1 2] and fraction 0.5 mark two of the 0s, one of the 1s and not the 2.
    """
    # Raw words of PCG64, because numpy (NEP 19) promises that they never change, and does not promise it of Generator.permutation.
    keys = np.random.PCG64(seed).random_raw(len(labels))
    order = np.lexsort((keys, labels))
    held = np.zeros(len(labels), bool)
    start = 0
    for count in np.bincount(labels):
        if count >= 2:
            held[order[start : start + min(max(round(count * fraction), 1), count - 1)]] = True
        start += count
    return held


def stratified_sample(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` indices into ``labels``, as equal a number of each class as there are; int64 (count,), sorted.

    Labels 0 0 0 1 1 2 and count 4 take one or two of each of 0 and 1, and the only 2.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for value in np.unique(labels):
        mine = order[labels[order] == value]
        rank[mine] = np.arange(len(mine))
    # By rank within the class, ties in random order: every class gives its first image before any gives its second.
    return np.sort(order[np.argsort(rank[order], kind="stable")][:count])


def divide(labels: np.ndarray, fraction: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Which of the images stay, and which are held out: their positions, int64, ascending."""
    held = held_out(labels, fraction, seed)
    if not held.any():
        raise TrainError(f"data (={name}) has no class with two images, so none can be held out; at least one class needs two")
    return np.flatnonzero(~held), np.flatnonzero(held)
