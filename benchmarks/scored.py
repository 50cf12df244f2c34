"""A score of the user's own, on outputs of any kind: what each image adds to it, and how much of it a second network loses, how surely.

A score is a number, higher is better, that a function gives for the outputs and targets of some images. By hand: of three images it gives
1, 0.5 and 0.9 each alone, and 0.8 of all together, which is their mean; so each image's *share* is what it gives alone. Where it is
no such mean, as mean average precision or an IoU of all pixels, the shares are the pseudo-values of a jackknife: with the images in 50
groups (each image by itself where there are fewer), a group's share is ``score + (groups - 1) * (score - score without the group)``, of
which the mean is the score but for a small bias. Whether it is a mean is tried out on some images, with their own targets and with others'.

Two networks that saw the same images are compared share by share: Student's t, one-sided, on the differences. It would call a loss that
happened on none of 200 images impossible, so, as `paired` does of counts, one event more is added, as large as the largest that was seen,
and as much again as skewness takes away: ``(z² + 2) / 3`` of them in all. Where nothing differs, the largest is what an image has to lose
at most. A test simulates how often the bound holds the truth: for rare losses and frequent ones, small ones of all images, and IoU and
average precision over a set. Numpy only, and nothing of this package but its error and `Drop`.

Refused: fewer than ten images, scores of other images.

Sources: Tukey, "Bias and confidence in not-quite large samples", Annals of Mathematical Statistics 29 (1958); Johnson, "Modified t tests
and confidence intervals for asymmetrical populations", Journal of the American Statistical Association 73 (1978); Abramowitz and Stegun
26.7.5 for the quantiles of t.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from .accuracy import ScoreInterval
from .errors import BenchmarkError
from .paired import ERROR, MOST_IMAGES, Drop

Outputs = tuple[np.ndarray, ...]  # what a network gives for a batch of one image
Score = Callable[[Sequence[Outputs], Sequence[int]], float]  # of so many images, whose targets stand at these positions

LEAST = 10  # images
GROUPS = 50  # of a jackknife: each costs the score of nearly all images, and 49 degrees of freedom are near to all there could be
PROBED = 16  # images on which it is tried whether a score is a mean
SAME = 1e-6  # of the largest: rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A score of so many images, and the shares that images, or groups of them, have in it, float64 ``(P,)``."""

    value: float
    shares: np.ndarray
    images: int

    @property
    def interval(self) -> ScoreInterval:
        """It holds the score of all images of the kind with 95% confidence; all of 100 right leave room for some that are not."""
        apart = self.shares - self.shares.mean()
        margin = _margin(apart, float(np.abs(apart).max()) or self.largest, 0.025)
        return ScoreInterval(value=self.value, low=self.value - margin, high=self.value + margin)

    @property
    def largest(self) -> float:
        """What one image can lose at most: the largest share of one, in that of its group."""
        return float(np.abs(self.shares).max()) * len(self.shares) / self.images


class Judge:
    """Scores networks on the same images, whose targets stand at ``positions``; one image may be held in memory at a time if it is a mean.

    ``by_image``: whether it is; None before a network was scored.
    """

    def __init__(self, score: Score, positions: Sequence[int]) -> None:
        if len(positions) < LEAST:
            raise BenchmarkError(f"images (={len(positions)}) to score must be at least {LEAST}, as fewer say nothing; hand in more")
        self.score, self.positions = score, positions
        self.by_image: bool | None = None

    def value(self, answers: Iterable[Outputs]) -> float:
        """The score alone; all answers are held in memory."""
        return self.score(list(answers), self.positions)

    def of(self, answers: Iterable[Outputs]) -> Scored:
        """What one network scores, by its answers to all images, in their order."""
        iterator = iter(answers)
        first = list(itertools.islice(iterator, PROBED))
        if self.by_image is None:
            self.by_image = self._is_mean(first)
        waiting = itertools.chain(first, iterator)
        if self.by_image:
            shares = np.array([self.score([one], [at]) for one, at in zip(waiting, self.positions, strict=True)])
            return Scored(value=float(shares.mean()), shares=shares, images=len(shares))
        return self._jackknifed(list(waiting))

    def _jackknifed(self, answers: Sequence[Outputs]) -> Scored:
        count, value = len(self.positions), self.score(answers, self.positions)
        groups = np.array_split(np.random.default_rng(0).permutation(count), min(GROUPS, count))
        shares = []
        for group in groups:
            rest = np.setdiff1d(np.arange(count), group)
            without = self.score([answers[at] for at in rest], [self.positions[at] for at in rest])
            shares.append(value + (count - len(group)) / len(group) * (value - without))
        return Scored(value=value, shares=np.array(shares), images=count)

    def _is_mean(self, answers: Sequence[Outputs]) -> bool:
        """Whether the score of some images is the mean of each alone: with their own targets, as perfect answers are 1 by any score,
        and with those of others, where that can be scored."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a single image much is undefined
                return all(self._same(answers, np.roll(self.positions[: len(answers)], shift).tolist()) for shift in (0, 1))
        except BenchmarkError:  # what can be scored of all images need not be of each
            return False

    def _same(self, answers: Sequence[Outputs], positions: Sequence[int]) -> bool:
        whole = self.score(answers, positions)
        alone = [self.score([one], [at]) for one, at in zip(answers, positions, strict=True)]
        return abs(whole - float(np.mean(alone))) <= SAME * max(map(abs, alone))


def lost(before: Scored, after: Scored, *, error: float = ERROR) -> Drop:
    """How much of the score the second network loses, in the score's own units; negative where it gains.

    Shares 1, 0.5 and 0.9, then 1, 0.5 and 0.6: 0.1 lost.

    Args:
        error: how often ``bound`` may lie under the truth, in (0, 0.5].

    Raises:
        BenchmarkError: as the module says.
    """
    value, differences = _differences(before, after)
    event = _event(before, after, differences)
    low, (high, bound) = _margin(-differences, event, 0.025), (_margin(differences, event, one) for one in (0.025, error))
    return Drop(value=value, low=value - low, high=value + high, bound=value + bound, images=before.images)


def images_to_prove(before: Scored, after: Scored, limit: float, *, error: float = ERROR) -> int | None:
    """How many images of the kind would bound the drop by ``limit``; two digits, rounded up; None where the drop itself reaches it."""
    value, differences = _differences(before, after)
    room = limit - value
    if room <= 0:
        return None
    event, parts = _event(before, after, differences), len(differences)
    fixed, spread = _parts_of_margin(differences, event, error)
    # fixed / parts + spread / sqrt(parts) = room, solved for the number of parts
    root = (spread + math.sqrt(spread**2 + 4 * fixed * room)) / (2 * room)
    needed = max(2, math.ceil(root**2 * before.images / parts))
    unit = 10 ** max(0, len(str(needed)) - 2)
    return -(-needed // unit) * unit if needed <= MOST_IMAGES else None


def quantile(error: float, freedom: int) -> float:
    """What Student's t exceeds with the probability ``error``: 1.677 for 0.05 and 49 degrees of freedom."""
    if not 0 < error <= 0.5:
        raise BenchmarkError(f"error (={error:g}) must lie in (0, 0.5]; 0.05 is 95% confidence")
    z = NormalDist().inv_cdf(1 - error)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def _differences(before: Scored, after: Scored) -> tuple[float, np.ndarray]:
    if before.images != after.images or before.shares.shape != after.shares.shape:
        raise BenchmarkError(f"scores are of {before.images} and {after.images} images; compare those of the same ones")
    return before.value - after.value, before.shares - after.shares


def _event(before: Scored, after: Scored, differences: np.ndarray) -> float:
    """The largest difference of a share, or where there is none what one image can lose."""
    return float(np.abs(differences).max()) or max(before.largest, after.largest)


def _margin(differences: np.ndarray, event: float, error: float) -> float:
    fixed, spread = _parts_of_margin(differences, event, error)
    return fixed / len(differences) + spread / math.sqrt(len(differences))


def _parts_of_margin(differences: np.ndarray, event: float, error: float) -> tuple[float, float]:
    """What is divided by the number of shares, and by its square root."""
    z = NormalDist().inv_cdf(1 - error)
    return (z**2 + 2) / 3 * event, quantile(error, len(differences) - 1) * float(np.append(differences, event).std(ddof=1))
