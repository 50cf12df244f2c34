"""How many points of balanced accuracy one measurement loses against another: image by image where both keep their answers, else by two
intervals as if the images were others, which is too wide rather than too narrow. Refuses nothing; `Loss.paired` says which it was.
By a score of the user's own it is how much of that score, share by share (`scored`).

Source: Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008), for the difference of
two figures with intervals of their own; `paired` has those of the other way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .accuracy import ScoreInterval
from .paired import Drop, images_to_tell, paired_drop
from .results import Measurement, Result
from .scored import images_to_prove, lost


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A drop in points, or in the units of the user's own score, and whether it was counted image by image."""

    drop: Drop
    paired: bool


def loss(old: Result, was: Measurement, new: Result, now: Measurement) -> Loss:
    """What `now` of the result `new` loses against `was` of `old`; the test images of the two are the same. Both were measured.

    Without answers and without intervals it may be anything.
    """
    if (shares := old.shares_of(was)) is not None and (theirs := new.shares_of(now)) is not None:
        return Loss(drop=lost(shares, theirs), paired=True)
    labels, before, after = old.true_labels, old.answers_of(was), new.answers_of(now)
    if labels is not None and before is not None and after is not None and labels.shape == after.shape:
        return Loss(drop=paired_drop(labels, before, after), paired=True)
    images = new.data.get("images", 0)
    value = round(100 * (was.scores["balanced_accuracy"] - now.scores["balanced_accuracy"]), 9)
    intervals = [one.intervals.get("balanced_accuracy") for one in (was, now)]
    found = points_lost(*(one for one in intervals if one)) if all(intervals) else ScoreInterval(value=value, low=-100, high=100)
    return Loss(drop=Drop(value=value, low=found.low, high=found.high, bound=found.high, images=images), paired=False)


def needed(result: Result, one: Measurement, limit: float) -> int | None:
    """How many test images like these would bound its drop by `limit`; None where that is not known, or no number would."""
    baseline = result.measurements[result.baseline]
    if (shares := result.shares_of(baseline)) is not None and (theirs := result.shares_of(one)) is not None:
        return images_to_prove(shares, theirs, limit)
    labels, before, after = result.true_labels, result.answers_of(baseline), result.answers_of(one)
    return None if labels is None or before is None or after is None else images_to_tell(labels, before, after, limit)


def points_lost(old: ScoreInterval, new: ScoreInterval) -> ScoreInterval:
    """The difference of two scores in points (1 point is 0.01), with the bounds that follow from theirs.

    97.0 (96.7 to 97.4) and then 96.0 (95.6 to 96.3): 1.0 lost, 1 - sqrt(0.3² + 0.3²) = 0.58 to 1 + sqrt(0.4² + 0.4²) = 1.57.
    """
    value = old.value - new.value
    low = value - math.hypot(old.value - old.low, new.high - new.value)
    high = value + math.hypot(old.high - old.value, new.value - new.low)
    return ScoreInterval(value=round(100 * value, 9), low=round(100 * low, 9), high=round(100 * high, 9))
