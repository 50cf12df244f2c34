"""Two models that read the same images: how many points of balanced accuracy the second one loses, and how sure that is.

Only the images on which they differ say anything: *lost* ones, which only the first reads right, and *gained* ones. Both are rare events,
so each is bounded as a Poisson count is, weighted by class (a class of n images among K weighs 1/(Kn), as the mean of the recalls has it),
and the two bounds are put together. Of 14,100 images 200 lost and 60 gained are 0.99 points, 0.77 to 1.23 with 95% confidence. None lost
and none gained of n images bound the drop by 3/n, not by 0: what is lost once in n/3 images would not have shown in one test of twenty.

How many images a class has was decided by whoever made the test set, so it is no source of chance (as in `accuracy`). A test simulates
how often the bounds hold the truth. Numpy only, and nothing of this package but its error: whoever certifies a file takes it from here.

Refused: arrays of unequal length, no images, no probability as error.

Sources: Breslow and Day, "Statistical Methods in Cancer Research", volume II (1987), p. 69, for Byar's approximation; Tiwari, Clegg and
Zou, "Efficient interval estimation for age-adjusted cancer rates", Statistical Methods in Medical Research 15 (2006), for weighted counts,
with one event more, spread over the classes; Zou and Donner, "Construction of confidence limits about effect measures", Statistics in
Medicine 27 (2008), for a difference of two figures that have bounds of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .errors import BenchmarkError

TWO_SIDED = 1.959964  # the quantile of the normal distribution for 95%
ERROR = 0.05  # how often a one-sided bound may lie under the truth
MOST_IMAGES = 10**9  # where more would be needed, no number helps


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Points of balanced accuracy lost; negative where they were gained.

    Args:
        value: as counted. low, high: hold the true one with 95% confidence. bound: the true one is at most this, with 95% confidence,
            or that which was asked for. images: N.
    """

    value: float
    low: float
    high: float
    bound: float
    images: int


def paired_drop(labels: np.ndarray, before: np.ndarray, after: np.ndarray, *, error: float = ERROR) -> Drop:
    """Compare the answers of two models to the same images.

    Labels 0 0 1 1, before 0 0 1 1, after 0 0 1 0: one of two images of class 1 is lost, 25 points.

    Args:
        labels, before, after: integers ``(N,)``: the true class of each image, and what either model says.
        error: how often ``bound`` may lie under the truth, in (0, 0.5]. Who tries several models on the same images until one is proved
            divides 0.05 among them (Bonferroni), so that all of that goes wrong once in twenty times at most.

    Raises:
        BenchmarkError: as the module says.
    """
    return drop_of_counts(*_counts(labels, before, after), error=error)


def drop_of_counts(lost: np.ndarray, gained: np.ndarray, images: np.ndarray, *, error: float = ERROR) -> Drop:
    """The same from the numbers of images lost, gained, and all, one per class ``(K,)``; every class has images."""
    value, (low, high) = _value(lost, gained, images), _margins(lost, gained, images, TWO_SIDED)
    bound = _margins(lost, gained, images, _one_sided(error))[1]
    # Balanced accuracy cannot lose more than all.
    points = [round(100 * min(1.0, max(-1.0, one)), 9) for one in (value, value - low, value + high, value + bound)]
    return Drop(value=points[0], low=points[1], high=points[2], bound=points[3], images=int(images.sum()))


def images_to_tell(labels: np.ndarray, before: np.ndarray, after: np.ndarray, limit: float, *, error: float = ERROR) -> int | None:
    """How many images of the kind, on which as large a share is lost and gained, would bound the drop by `limit` points, with `error`.

    None lost of 1,000 and a limit of 0.1 points: 3,000. Two digits, rounded up; None where the drop itself reaches the limit.
    """
    lost, gained, images = _counts(labels, before, after)
    value = _value(lost, gained, images)
    if value >= limit / 100:
        return None
    z = _one_sided(error)

    def proves(factor: float) -> bool:
        return value + _margins(factor * lost, factor * gained, factor * images, z)[1] <= limit / 100

    low, high = 0.0, 1.0
    while not proves(high):
        low, high = high, 2 * high
        if high * len(labels) > MOST_IMAGES:
            return None
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    needed = math.ceil(high * len(labels) - 1e-6)
    unit = 10 ** max(0, len(str(needed)) - 2)
    return -(-needed // unit) * unit


def _counts(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images lost, gained, and all, of each class that has any; float64 ``(K,)``."""
    if not len(labels) or not labels.shape == before.shape == after.shape == (len(labels),):
        shapes = f"{labels.shape}, {before.shape}, {after.shape}"
        raise BenchmarkError(f"labels and answers (={shapes}) must be one per image, (N,) each with N of at least 1; take the same images")
    _, index = np.unique(labels, return_inverse=True)
    was, now = before == labels, after == labels
    lost, gained, images = (np.bincount(index, part).astype(float) for part in (was & ~now, now & ~was, np.ones(len(labels))))
    return lost, gained, images


def _one_sided(error: float) -> float:
    """1.645 for 0.05."""
    if not 0 < error <= 0.5:
        raise BenchmarkError(f"error (={error:g}) must lie in (0, 0.5]; 0.05 is 95% confidence")
    return NormalDist().inv_cdf(1 - error)


def _value(lost: np.ndarray, gained: np.ndarray, images: np.ndarray) -> float:
    return float(np.mean((lost - gained) / images))


def _margins(lost: np.ndarray, gained: np.ndarray, images: np.ndarray, z: float) -> tuple[float, float]:
    """How far the bounds lie under and above the drop, as fractions; `z` is the quantile of the normal distribution."""
    weights = 1 / (len(images) * images)
    one = float(weights.mean()), float((weights**2).mean())  # an event that may be of any class
    (lost_low, lost_high), (gained_low, gained_high) = (_bounds(counts, weights, one, z) for counts in (lost, gained))
    # A Poisson count varies more than a share of n images does: by as much as the drop within each class, squared.
    varies = float(weights**2 @ (lost + gained)) + one[1]
    narrower = math.sqrt(1 - float(weights**2 @ ((lost - gained) ** 2 / (images + 2))) / varies)
    return narrower * math.hypot(lost_low, gained_high), narrower * math.hypot(lost_high, gained_low)


def _bounds(counts: np.ndarray, weights: np.ndarray, one: tuple[float, float], z: float) -> tuple[float, float]:
    """How far the bounds of a weighted sum of counts lie under and above it: 0 and 3 for no event, weight 1 and one-sided 95%."""
    total, variance = float(weights @ counts), float(weights**2 @ counts)
    more, its_variance = total + one[0], variance + one[1]
    low = total * _byar(total**2 / variance, -z) if variance else 0.0
    return total - low, more * _byar(more**2 / its_variance, z) - total


def _byar(events: float, z: float) -> float:
    """Bound of a Poisson mean / the count, by Byar; the count grows by one for the upper bound."""
    return max(0.0, 1 - 1 / (9 * events) + z / (3 * math.sqrt(events))) ** 3
