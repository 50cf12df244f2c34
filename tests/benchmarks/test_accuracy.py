"""Intervals and comparisons against scipy, scikit-learn, exact binomials and values by hand."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from compress.benchmarks.accuracy import compare_predictions, mcnemar, score_intervals
from compress.benchmarks.errors import BenchmarkError


def score(labels: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
    """Written once more, so that the intervals are not checked with what they are used with."""
    recalls = [float(np.mean(predictions[labels == label] == label)) for label in range(classes) if (labels == label).any()]
    return {"accuracy": float(np.mean(labels == predictions)), "balanced_accuracy": float(np.mean(recalls))}


def read(sizes: list[int], recalls: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and predictions that are right by chance, else the next class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    right = np.random.default_rng(seed).random(len(labels)) < np.repeat(recalls, sizes)
    return labels, np.where(right, labels, (labels + 1) % len(sizes))


def test_interval_has_the_width_of_the_binomial() -> None:
    """Of 3 classes with 400, 100 and 100 images: the standard error of each recall by hand, put together as the mean of the recalls."""
    labels, predictions = read([400, 100, 100], [0.9, 0.8, 0.6])
    shares = np.array([np.mean(predictions[labels == label] == label) for label in range(3)])
    variances = shares * (1 - shares) / [400, 100, 100]
    found = score_intervals(labels, predictions, 3, score, resamples=4000)
    for name, weights in {"accuracy": np.array([400, 100, 100]) / 600, "balanced_accuracy": np.full(3, 1 / 3)}.items():
        assert found[name].value == pytest.approx(float(weights @ shares))
        width = 2 * 1.96 * float(np.sqrt(weights**2 @ variances))
        assert found[name].high - found[name].low == pytest.approx(width, rel=0.05)


def test_intervals_hold_the_truth_in_95_of_100_test_sets() -> None:
    truth, held = np.mean([0.95, 0.9, 0.85, 0.8]), 0
    for seed in range(200):
        found = score_intervals(*read([100] * 4, [0.95, 0.9, 0.85, 0.8], seed), 4, score, resamples=200)["balanced_accuracy"]
        held += found.low <= truth <= found.high
    assert 0.9 <= held / 200 <= 0.985  # three standard deviations of a share of 0.95


def test_a_rare_class_is_never_lost_and_the_order_of_images_does_not_matter() -> None:
    seen = []

    def watching(labels: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
        seen.append(np.bincount(labels, minlength=classes).tolist())
        return score(labels, predictions, classes)

    labels, predictions = read([50, 1, 9], [0.9, 1.0, 0.5])
    found = score_intervals(labels, predictions, 3, watching, resamples=100)
    assert seen == [[50, 1, 9]] * 101
    # Within a class the order of right and wrong stays, so that the same images are drawn.
    mixed = np.argsort(np.tile(range(3), 20)[np.argsort(labels, kind="stable")], kind="stable")
    assert score_intervals(labels[mixed], predictions[mixed], 3, score, resamples=100)["accuracy"].value == found["accuracy"].value
    assert score_intervals(labels, predictions, 3, score, resamples=100) == score_intervals(labels, predictions, 3, score, resamples=100)
    assert score_intervals(labels, predictions, 3, score, seed=1, resamples=100) != found


def test_all_right_is_bounded_by_the_exact_binomial() -> None:
    labels = np.arange(360) % 10
    found = score_intervals(labels, labels, 10, score, resamples=100)["accuracy"]
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(stats.binomtest(360, 360).proportion_ci(0.95, "exact").low)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (2, 0), (3, 3), (5, 12), (40, 41), (1200, 1000), (4000, 1000)])
def test_mid_p_is_the_exact_p_less_half_of_both_ends(b: int, c: int) -> None:
    exact = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    ends = stats.binom.pmf(min(b, c), b + c, 0.5) * (1 if b != c else 0)
    assert mcnemar(b, c) == mcnemar(c, b) == pytest.approx(exact - ends, rel=1e-9, abs=1e-300)


def test_published_value_of_mid_p() -> None:
    """Fagerland et al. 2013, the data of table 1 (airway hyper-responsiveness in 21 children): b 1, c 7; exact 0.0703, mid-p 0.0391."""
    assert mcnemar(1, 7) == pytest.approx(0.0391, abs=5e-5)


def test_equal_models_are_called_different_in_5_of_100_trials() -> None:
    generator = np.random.default_rng(0)
    low = [mcnemar(b, 60 - b) < 0.05 for b in generator.binomial(60, 0.5, 2000).tolist()]
    assert 0.03 <= np.mean(low) <= 0.06


def test_comparison_by_hand() -> None:
    labels, before, after = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 0, 1, 0, 2])
    found = compare_predictions(labels, before, after, 4)
    assert (found.images, found.lost, found.gained) == (6, (0, 1), (2,))
    assert found.p_value == mcnemar(2, 1)
    assert [(one.label, one.images, one.before, one.after) for one in found.recalls] == [(0, 3, 2, 1), (1, 2, 1, 1), (2, 1, 1, 1)]
    assert found.recalls[0].change == pytest.approx(-1 / 3)
    assert found.worse_confusions == ((0, 1, 1, 2), (1, 0, 0, 1))


def test_comparison_agrees_with_the_confusion_matrices_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 2000)
    before, after = (np.where(generator.random(2000) < 0.8, labels, generator.integers(0, 6, 2000)) for _ in range(2))
    found = compare_predictions(labels, before, after, 6)
    was, now = (metrics.confusion_matrix(labels, predictions) for predictions in (before, after))
    assert len(found.lost) - len(found.gained) == np.trace(was) - np.trace(now)
    recalls = {one.label: one.after / one.images for one in found.recalls}
    assert [recalls[label] for label in range(6)] == pytest.approx(metrics.recall_score(labels, after, average=None))
    worse = {(int(i), int(j)): (int(was[i, j]), int(now[i, j])) for i, j in np.argwhere(now > was) if i != j}
    assert {(true, said): counts for true, said, *counts in map(list, found.worse_confusions)} == {
        cell: list(counts) for cell, counts in worse.items()
    }
    added = [now_ - was_ for _, _, was_, now_ in found.worse_confusions]
    assert added == sorted(added, reverse=True)


RIGHT = np.array([0, 1, 2])


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        (RIGHT[:0], RIGHT[:0], r"labels \(=\(0,\)\) must be one per image, \(N,\) with N of at least 1"),
        (RIGHT, RIGHT[:2], r"predictions \(=\(2,\)\) must be one per label, \(3,\); hand in those of the same images"),
        (RIGHT, np.array([0, 1, 3]), r"predictions \(=int64 0\.\.3\) must be class indices in 0\.\.2"),
        (RIGHT, np.array([0, 1, -1]), r"predictions \(=int64 -1\.\.1\) must be class indices in 0\.\.2"),
        (np.array([0.0, 1.0]), RIGHT[:2], r"labels \(=float64 0\.0\.\.1\.0\) must be class indices"),
    ],
)
def test_what_does_not_fit_is_refused(labels: np.ndarray, predictions: np.ndarray, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        score_intervals(labels, predictions, 3, score)
    with pytest.raises(BenchmarkError, match=message.replace("predictions", "baseline")):
        compare_predictions(labels, predictions, predictions, 3)


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(BenchmarkError, match=r"resamples \(=10\) must be at least 100 for the ends of a 95% interval"):
        score_intervals(RIGHT, RIGHT, 3, score, resamples=10)
