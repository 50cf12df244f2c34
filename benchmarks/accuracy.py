"""How sure an accuracy is, and what a variant reads differently than the baseline; numpy only, so that it runs on a board.

Intervals come from a bootstrap within each class (stratified): how many test images a class has was decided by whoever made the test set,
so it is no source of chance, and no resample loses a rare class, which would make balanced accuracy a mean over fewer classes. Two models
that read the same images are compared by the images on which they differ (McNemar), which is far sharper than two intervals side by side.

Refused: arrays of unequal length, no images, class indices outside 0..K-1.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13; Fagerland, Lydersen and Laake, "The McNemar test for
binary matched-pairs data: mid-p and asymptotic are better than exact conditional", BMC Medical Research Methodology 13:91 (2013).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from .errors import BenchmarkError
from .statistics import Count, Share

Score = Callable[[np.ndarray, np.ndarray, int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class ScoreInterval:
    """A score, and the bounds that hold it with 95% confidence on another test set of as many images per class."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RecallChange:
    """Of one true class: how many images it has, and how many of them the baseline (`before`) and the candidate (`after`) read right."""

    label: Count
    images: Annotated[int, Meta(ge=1)]
    before: Count
    after: Count

    @property
    def change(self) -> float:
        """The recall gained, in [-1, 1]; negative where it was lost."""
        return (self.after - self.before) / self.images


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a candidate reads differently than the baseline.

    Args:
        images: N, the number of test images.
        lost, gained: indices of images that only the baseline, and only the candidate, reads right; their numbers are McNemar's b and c.
        p_value: McNemar's mid-p, two-sided: how often two models of equal accuracy would differ at least as much as b and c do.
        recalls: one for each class that has images, the one that lost most recall first.
        worse_confusions: ``(true, predicted, before, after)``, the wrong answers that the candidate gives more often, most added first.
    """

    images: Count
    lost: tuple[Count, ...]
    gained: tuple[Count, ...]
    p_value: Share
    recalls: tuple[RecallChange, ...]
    worse_confusions: tuple[tuple[Count, Count, Count, Count], ...]


def score_intervals(
    labels: np.ndarray, predictions: np.ndarray, classes: int, score: Score, *, seed: int = 0, resamples: int = 1000
) -> dict[str, ScoreInterval]:
    """Bound every score with 95% confidence: percentiles of the score over resamples of the images of each class.

    All of N images right says little of a bootstrap, as every resample is right too. The lower bound is then the exact one of a share:
    the accuracy at which N of N happen with probability 2.5%, ``0.025 ** (1 / N)``; 0.990 for 360 images.

    Args:
        labels, predictions: class indices ``(N,)`` in 0..K-1. classes: K.
        score: ``score(labels, predictions, classes)``, fractions in [0, 1]; 1 only if everything is right.
        seed: of the resamples. resamples: at least 100.

    Raises:
        BenchmarkError: as the module says, or too few resamples.
    """
    _check(labels, classes, predictions=predictions)
    if resamples < 100:
        raise BenchmarkError(f"resamples (={resamples}) must be at least 100 for the ends of a 95% interval; 1000 is the default")
    found = score(labels, predictions, classes)
    order = np.argsort(labels, kind="stable")
    labels, predictions = labels[order], predictions[order]
    sizes = np.bincount(labels, minlength=classes)
    first, size = (np.cumsum(sizes) - sizes)[labels], sizes[labels]  # of each image's class, in the order of the sorted labels
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(resamples):
        picked = first + (generator.random(len(labels)) * size).astype(np.int64)
        for name, value in score(labels, predictions[picked], classes).items():
            drawn[name].append(value)
    surest = 0.025 ** (1 / len(labels))
    intervals = {}
    for name, value in found.items():
        low, high = np.quantile(drawn[name], (0.025, 0.975)).tolist()
        intervals[name] = ScoreInterval(value=value, low=min(low, value, surest if value == 1 else 1), high=max(high, value))
    return intervals


def compare_predictions(labels: np.ndarray, baseline: np.ndarray, candidate: np.ndarray, classes: int) -> Comparison:
    """Compare two models that read the same images.

    Labels 0 0 0 1, baseline 0 0 1 1, candidate 1 0 0 1: the first image is lost, the third gained, p is 1, no recall changed, and no
    confusion got worse (0 was read as 1 once before and once after).

    Args:
        labels, baseline, candidate: class indices ``(N,)`` in 0..K-1, the latter two as predicted. classes: K.

    Raises:
        BenchmarkError: as the module says.
    """
    _check(labels, classes, baseline=baseline, candidate=candidate)
    right = [predictions == labels for predictions in (baseline, candidate)]
    lost, gained = (np.flatnonzero(one & ~other) for one, other in (right, right[::-1]))
    before, after = (
        np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes**2).reshape(classes, classes)
        for predictions in (baseline, candidate)
    )
    recalls = [
        RecallChange(label=label, images=int(before[label].sum()), before=int(before[label, label]), after=int(after[label, label]))
        for label in np.unique(labels).tolist()
    ]
    added = after - before
    np.fill_diagonal(added, 0)
    cells = sorted(np.argwhere(added > 0).tolist(), key=lambda cell: (-int(added[cell[0], cell[1]]), cell))
    return Comparison(
        images=len(labels),
        lost=tuple(lost.tolist()),
        gained=tuple(gained.tolist()),
        p_value=mcnemar(len(lost), len(gained)),
        recalls=tuple(sorted(recalls, key=lambda one: (one.change, one.label))),
        worse_confusions=tuple((true, said, int(before[true, said]), int(after[true, said])) for true, said in cells),
    )


def mcnemar(b: int, c: int) -> float:
    """McNemar's mid-p, two-sided: b and c are tosses of a fair coin if the two models are equally accurate.

    b = 0, c = 2 gives 2 * (0.25 / 2) = 0.25: of the four outcomes of two tosses the extreme one counts half, on either side. b = c gives 1.
    """
    tosses, fewer = b + c, min(b, c)
    ways, upto = 1, 0  # of `wins` wins, and of fewer than that; whole numbers, so that nothing rounds
    for wins in range(fewer):
        upto += ways
        ways = ways * (tosses - wins) // (wins + 1)
    return (2 * upto + ways) / 2**tosses


def _check(labels: np.ndarray, classes: int, **predictions: np.ndarray) -> None:
    if labels.ndim != 1 or not len(labels):
        raise BenchmarkError(f"labels (={labels.shape}) must be one per image, (N,) with N of at least 1; hand in the test set's")
    for name, values in {"labels": labels, **predictions}.items():
        if values.shape != labels.shape:
            raise BenchmarkError(f"{name} (={values.shape}) must be one per label, {labels.shape}; hand in those of the same images")
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= classes:
            raise BenchmarkError(
                f"{name} (={values.dtype} {values.min()}..{values.max()}) must be class indices in 0..{classes - 1}; "
                "hand in those of the same data"
            )
