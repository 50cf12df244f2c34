"""Bounds of a drop against counts by hand and published quantiles, and how often they hold a truth that was made up."""

import numpy as np
import pytest
from scipy import stats

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.paired import drop_of_counts, images_to_tell, paired_drop

Answers = tuple[np.ndarray, np.ndarray, np.ndarray]


def answers(images: int, lost: int, gained: int) -> Answers:
    """One class, of which the second model loses and gains so many images."""
    before, after = np.zeros(images, int), np.zeros(images, int)
    after[:lost] = 1
    before[lost : lost + gained] = 1
    return np.zeros(images, int), before, after


def test_drop_is_that_of_the_mean_recall() -> None:
    """Recalls 3/3 to 2/3 and 1/1 to 1/1; then the other way round."""
    labels, before, after = np.array([0, 0, 0, 7]), np.array([0, 0, 0, 7]), np.array([0, 0, 3, 7])
    assert paired_drop(labels, before, after).value == pytest.approx(100 / 6)
    assert paired_drop(labels, after, before).value == pytest.approx(-100 / 6)
    assert paired_drop(labels, before, before).images == 4


def test_two_hundred_lost_and_sixty_gained_of_14100() -> None:
    found = paired_drop(*answers(14_100, 200, 60))
    assert (found.value, found.low, found.high) == pytest.approx((0.993, 0.77, 1.22), abs=0.01)
    assert found.value < found.bound < found.high


@pytest.mark.parametrize("images", [100, 1_000, 100_000])
def test_nothing_lost_bounds_the_drop_by_three_in_n_and_not_by_nothing(images: int) -> None:
    found = paired_drop(*answers(images, 0, 0))
    assert found.value == 0 and found.low < 0
    assert found.bound == pytest.approx(100 * stats.chi2.ppf(0.95, 2) / 2 / images, rel=0.02)
    all_lost = paired_drop(*answers(images, images, 0))
    assert (all_lost.value, all_lost.high) == (100, 100) and all_lost.low < 100


def test_without_gains_the_bounds_are_those_of_a_poisson_count() -> None:
    """Garwood's exact ones, from chi-squared; of one image lost among 10,000 the gains, too, might have been up to three."""
    for lost in (1, 4, 20):
        found = drop_of_counts(np.array([lost]), np.array([0]), np.array([10_000]))
        assert found.bound == pytest.approx(stats.chi2.ppf(0.95, 2 * lost + 2) / 200, rel=0.01)
        low, none = stats.chi2.ppf(0.025, 2 * lost) / 200, stats.chi2.ppf(0.975, 2) / 200
        assert found.low == pytest.approx(lost / 100 - np.hypot(lost / 100 - low, none), abs=1e-3)


def test_gains_and_losses_change_places() -> None:
    one, other = paired_drop(*answers(500, 20, 7)), paired_drop(*answers(500, 7, 20))
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@pytest.mark.parametrize("images", [(100_000,), (40_000, 90_000), (300_000, 30_000, 3_000)])
def test_many_events_are_bounded_as_by_the_normal_distribution(images: tuple[int, ...]) -> None:
    """30% lost and 5% gained in each class: the variance of a mean of differences of shares, multinomial within each class, by hand."""
    sizes = np.array(images, float)
    lost, gained = 0.3 * sizes, 0.05 * sizes
    found = drop_of_counts(lost, gained, sizes)
    deviation = 100 * np.sqrt(((0.35 - 0.25**2) / sizes).sum()) / len(sizes)
    assert found.value == pytest.approx(25)
    assert found.bound - found.value == pytest.approx(1.645 * deviation, rel=0.02)
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.02)


def test_all_ten_lost_might_have_been_seven() -> None:
    """Garwood's bounds of 10 and 0, narrowed by sqrt(1 - 10² / (12 * 11)); and the same for all gained, which cannot be more than all."""
    found, other = paired_drop(*answers(10, 10, 0)), paired_drop(*answers(10, 0, 10))
    margin = np.hypot(10 - stats.chi2.ppf(0.025, 20) / 2, stats.chi2.ppf(0.975, 2) / 2) * np.sqrt(1 - 100 / 132)
    assert found.low == pytest.approx(100 - 10 * margin, rel=0.02)
    assert (found.high, found.bound, other.low, other.value) == (100, 100, -100, -100)


FLAT, STEEP = np.full(10, 0.1), 0.7 ** np.arange(10) / (0.7 ** np.arange(10)).sum()


@pytest.mark.parametrize("images", [1_000, 10_000])
@pytest.mark.parametrize("shares", [FLAT, STEEP], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize(("lost", "gained"), [(0.0005, 0.0), (0.009, 0.003), (0.02, 0.018), (0.06, 0.01), (0.3, 0.05)])
def test_bounds_hold_the_truth_as_often_as_they_say(images: int, shares: np.ndarray, lost: float, gained: float) -> None:
    """1,000 pairs of models that lose and gain an image with these probabilities; three standard errors are 2%."""
    generator = np.random.default_rng(images)
    sizes = np.round(images * shares).astype(int)
    losses = generator.binomial(sizes, lost, (1_000, 10))
    gains = generator.binomial(sizes - losses, gained / (1 - lost))
    found = [drop_of_counts(*counts, sizes) for counts in zip(losses, gains, strict=True)]
    truth = 100 * (lost - gained)
    assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.935
    assert np.mean([truth <= one.bound for one in found]) >= 0.935
    if shares is FLAT and images * lost > 50:  # where images are many enough, not more often either: a bound too high proves nothing
        assert np.mean([truth <= one.bound for one in found]) <= 0.98


def test_a_true_drop_of_twice_the_limit_is_proved_in_one_of_twenty_at_most() -> None:
    """0.60 points lost where 0.30 are allowed; and 0.05, with 10,000 images and 0.5 allowed, is nearly always."""

    def proved(images: int, lost: float, gained: float, limit: float) -> float:
        sizes, generator = np.full(10, images // 10), np.random.default_rng(images)
        losses = generator.binomial(sizes, lost, (1_000, 10))
        gains = generator.binomial(sizes - losses, gained)
        return float(np.mean([drop_of_counts(*counts, sizes).bound <= limit for counts in zip(losses, gains, strict=True)]))

    for images in (1_000, 10_000):
        assert proved(images, 0.009, 0.003, 0.3) <= 0.05
    assert proved(10_000, 0.0015, 0.001, 0.5) >= 0.99


def test_a_bound_that_may_be_wrong_less_often_lies_higher() -> None:
    """Garwood's exact ones for 5 lost of 10,000; none lost of 1,000 are 3.0, 4.6 and 5.3 in a thousand."""
    for error in (0.05, 0.01, 0.05 / 7):
        found = paired_drop(*answers(10_000, 5, 0), error=error)
        assert found.bound == pytest.approx(stats.chi2.ppf(1 - error, 12) / 200, rel=0.02)
        assert (found.low, found.high) == (paired_drop(*answers(10_000, 5, 0)).low, paired_drop(*answers(10_000, 5, 0)).high)
        assert paired_drop(*answers(1_000, 0, 0), error=error).bound == pytest.approx(-np.log(error) / 10, rel=0.02)
        needed = images_to_tell(*answers(1_000, 0, 0), limit=0.1, error=error)
        assert needed == pytest.approx(-np.log(error) * 1_000, rel=0.05)
    for error in (0, 0.6):
        with pytest.raises(BenchmarkError, match=r"error \(=0(\.6)?\) must lie in \(0, 0\.5\]; 0\.05 is 95% confidence"):
            paired_drop(*answers(10, 0, 0), error=error)


def test_images_to_tell_by_hand() -> None:
    """None lost: three in n. Nothing helps where the drop itself reaches the limit. Two digits, upwards."""
    assert images_to_tell(*answers(1_000, 0, 0), limit=0.1) == 3_000
    assert images_to_tell(*answers(360, 0, 0), limit=0.5) == 600
    assert images_to_tell(*answers(100, 0, 0), limit=7) == 43
    assert images_to_tell(*answers(1_000, 5, 0), limit=0.5) is None
    assert (images_to_tell(*answers(1_000, 5, 0), limit=0.503) or 0) > 1_000_000
    assert images_to_tell(*answers(1_000, 5, 0), limit=0.5 + 1e-7) is None, "a billion would not do"
    needed = images_to_tell(*answers(1_000, 3, 1), limit=0.5)
    assert needed is not None and needed > 1_000
    many, few = (paired_drop(*answers(size, 3 * size // 1000, size // 1000)) for size in (needed, needed - 400))
    assert many.bound <= 0.5 < few.bound


def test_images_that_already_tell_are_enough() -> None:
    assert (images_to_tell(*answers(10_000, 3, 1), limit=0.5) or 0) <= 10_000


@pytest.mark.parametrize("shape", [(0, 0, 0), (3, 3, 2), (3, 2, 3)])
def test_answers_to_other_images_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(BenchmarkError, match=r"labels and answers \(=.*\) must be one per image, \(N,\) each with N of at least 1; take"):
        paired_drop(*(np.zeros(size, int) for size in shape))
