"""Scores of a user's own: shares by hand and by other libraries, and how often the bound of a drop holds a truth that is known."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.scored import Judge, Outputs, Score, Scored, images_to_prove, lost, quantile

TRIALS = 400


def scored(shares: Sequence[float] | np.ndarray) -> Scored:
    values = np.asarray(shares, float)
    return Scored(value=float(values.mean()), shares=values, images=len(values))


def outputs(values: np.ndarray) -> list[Outputs]:
    return [(value[None],) for value in values]


def accuracy(targets: np.ndarray) -> Score:
    """Of answers by sign; the mean of the images'."""
    return lambda answers, at: float(np.mean((np.concatenate([one[0] for one in answers]) > 0) == targets[list(at)]))


def iou(targets: np.ndarray) -> Score:
    """Of all pixels together; no mean of the images'."""

    def score(answers: Sequence[Outputs], at: Sequence[int]) -> float:
        said, true = np.concatenate([one[0] for one in answers]) > 0, targets[list(at)]
        return float((said & true).sum() / max(1, (said | true).sum()))

    return score


def precision(targets: np.ndarray) -> Score:
    """Average precision where no two answers are the same: the mean over what is right of the share that is right from there up."""

    def score(answers: Sequence[Outputs], at: Sequence[int]) -> float:
        right = targets[list(at)][np.argsort(-np.concatenate([one[0] for one in answers], axis=None))]
        return float((np.cumsum(right) / np.arange(1, len(right) + 1))[right].mean()) if right.any() else 0.0

    return score


def test_average_precision_is_scikit_learns_which_is_judged_alike() -> None:
    """Of single images it warns, which is no matter of the user's."""
    generator = np.random.default_rng(0)
    targets, values = generator.random(100) < 0.3, generator.normal(size=100)
    both = [Judge(precision(targets), range(100)), Judge(lambda answers, at: theirs(targets[list(at)], answers), range(100))]
    ours, expected = (judge.of(outputs(values)) for judge in both)
    assert ours.value == pytest.approx(expected.value) and ours.shares == pytest.approx(expected.shares)
    assert [judge.by_image for judge in both] == [False, False]


def theirs(targets: np.ndarray, answers: Sequence[Outputs]) -> float:
    return float(average_precision_score(targets, [float(one[0][0]) for one in answers]))


def test_shares_of_a_mean_are_the_scores_of_each_image_alone() -> None:
    targets, values = np.arange(20) % 2 == 0, np.where(np.arange(20) % 2, -1.0, 1.0)
    values[3] = 1
    judge = Judge(accuracy(targets), range(20))
    found = judge.of(outputs(values))
    assert judge.by_image and found.value == 0.95 and found.shares.tolist() == [1.0] * 3 + [0.0] + [1.0] * 16


def test_a_score_of_the_set_is_none_though_perfect_answers_have_one_of_each_image_too() -> None:
    """All right, an IoU is 1 of each image and of all: so it is also tried with the targets of other images."""
    pixels = np.random.default_rng(0).random((20, 30)) < np.linspace(0.1, 0.9, 20)[:, None]
    judge = Judge(iou(pixels), range(20))
    assert judge.of(outputs(np.where(pixels, 1.0, -1.0))).value == 1 and judge.by_image is False


def test_shares_of_a_set_are_the_pseudo_values_of_tukeys_jackknife() -> None:
    """Of the variance their mean is the unbiased one, exactly (Efron and Tibshirani 1993, chapter 11)."""
    values = np.random.default_rng(0).normal(size=30)
    judge = Judge(lambda answers, _: float(np.var([one[0][0] for one in answers])), range(30))
    found = judge.of(outputs(values))
    assert judge.by_image is False and found.shares.mean() == pytest.approx(np.var(values, ddof=1))


def test_a_score_that_single_images_do_not_have_is_one_of_the_set() -> None:
    def score(answers: Sequence[Outputs], at: Sequence[int]) -> float:
        if len(answers) < 5:
            raise BenchmarkError("one class only")
        return 0.5

    assert Judge(score, range(200)).of(outputs(np.zeros(200))).shares.tolist() == [0.5] * 50


def test_a_drop_by_hand() -> None:
    """Of ten images one loses 0.3: 0.03 lost; t of 9 degrees of freedom, and one event more in the spread."""
    before = scored([1.0] * 10)
    found = lost(before, scored([1.0] * 9 + [0.7]))
    z, t, spread = stats.norm.ppf(0.95), stats.t.ppf(0.95, 9), np.std([0] * 9 + [0.3] * 2, ddof=1)
    assert found.value == pytest.approx(0.03) and found.images == 10
    assert found.bound == pytest.approx(0.03 + (z**2 + 2) / 3 * 0.3 / 10 + t * spread / np.sqrt(10), rel=1e-4)
    assert found.low < found.value < found.bound < found.high
    assert lost(scored([1.0] * 9 + [0.7]), before).value == pytest.approx(-0.03)


def test_nothing_that_differs_is_no_proof_that_nothing_can() -> None:
    """None of 100 lost: an exact bound of a share is 1 - 0.05 ** (1 / 100), 3.0%."""
    found = lost(scored([1.0] * 100), scored([1.0] * 100))
    assert found.value == 0 and 0.0295 <= found.bound <= 0.035


def test_all_right_leave_room_for_some_that_are_not() -> None:
    """Of 100 images an exact two-sided bound is 0.025 ** (1 / 100), 96.4%; and where shares differ, the interval is Student's or wider."""
    perfect, some = scored([1.0] * 100).interval, scored(np.linspace(0, 1, 50))
    assert 0.94 <= perfect.low <= 0.964 and perfect.value == 1
    low, high = stats.t.interval(0.95, 49, loc=0.5, scale=stats.sem(some.shares))
    assert low - 0.05 < some.interval.low < low and high < some.interval.high < high + 0.05


def test_so_many_images_would_prove_it() -> None:
    before, after = scored([1.0] * 400), scored([1.0] * 398 + [0.5] * 2)
    needed = images_to_prove(before, after, 0.004)
    assert needed is not None and lost(before, after).bound > 0.004
    more = int(np.ceil(needed / 400))
    assert lost(scored(np.tile(before.shares, more)), scored(np.tile(after.shares, more))).bound <= 0.004
    fewer = int(0.8 * needed / 400)
    assert lost(scored(np.tile(before.shares, fewer)), scored(np.tile(after.shares, fewer))).bound > 0.004
    assert images_to_prove(before, after, 0.0025) is None


@pytest.mark.parametrize("freedom", [9, 20, 49, 1000])
@pytest.mark.parametrize("error", [0.05, 0.025, 0.005])
def test_quantiles_are_scipys(freedom: int, error: float) -> None:
    assert quantile(error, freedom) == pytest.approx(stats.t.ppf(1 - error, freedom), rel=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"images \(=9\) to score must be at least 10"):
        Judge(lambda *_: 1.0, range(9))
    with pytest.raises(BenchmarkError, match="scores are of 10 and 11 images"):
        lost(scored([1.0] * 10), scored([1.0] * 11))
    with pytest.raises(BenchmarkError, match=r"error \(=0.7\) must lie in"):
        quantile(0.7, 9)


def rare(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    return np.ones(count), 1.0 - (generator.random(count) < 0.015), 0.015


def frequent(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    chance = generator.random(count)
    return (chance >= 0.05).astype(float), ((chance < 0.05) | (chance >= 0.15)).astype(float), 0.05


def small(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    before = generator.beta(8, 2, count)
    return before, before - generator.exponential(0.01, count), 0.01


@pytest.mark.parametrize("draw", [rare, frequent, small])
@pytest.mark.parametrize("error", [0.05, 0.01])
@pytest.mark.parametrize("count", [100, 400])
def test_the_bound_holds_the_truth_of_a_mean(draw: Callable[..., tuple[np.ndarray, np.ndarray, float]], error: float, count: int) -> None:
    """At least as often as it says, less three standard deviations of the count of holds."""
    generator, held = np.random.default_rng(1), 0
    for _ in range(TRIALS):
        before, after, truth = draw(generator, count)
        held += lost(scored(before), scored(after), error=error).bound >= truth
    assert held / TRIALS >= 1 - error - 3 * np.sqrt(error * (1 - error) / TRIALS)


@pytest.mark.parametrize("kind", ["iou", "precision"])
def test_the_bound_holds_the_truth_of_a_set(kind: str) -> None:
    """The truth is that of 60,000 images of the kind; images differ in how hard they are, and the second network is worse at all."""
    generator = np.random.default_rng(2)

    def draw(count: int) -> tuple[Score, np.ndarray, np.ndarray]:
        pixels = 12 if kind == "iou" else 1
        targets = generator.random((count, pixels)) < generator.beta(2, 4, (count, 1))
        first = np.where(targets, 0.8, -0.8) + generator.normal(0, 0.5, (count, 1)) + generator.normal(0, 0.8, targets.shape)
        second = first + generator.normal(0, 0.4, targets.shape)
        return (iou(targets) if kind == "iou" else precision(targets[:, 0])), first, second

    score, *both = draw(60_000)
    first, second = (score([(one,)], range(60_000)) for one in both)
    held, trials = 0, 100
    for _ in range(trials):
        score, *some = draw(120)
        judge = Judge(score, range(120))
        before, after = (judge.of(outputs(one)) for one in some)
        assert judge.by_image is False
        held += lost(before, after).bound >= first - second
    assert held >= trials * (0.95 - 3 * np.sqrt(0.05 * 0.95 / trials))
