"""Metrics against scikit-learn and against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics

from compress.train.metrics import confusion_matrix, mean_average_precision, score


def test_hand_worked_example_of_the_docstring() -> None:
    got = score(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]), 2)
    assert got["accuracy"] == 0.75
    assert got["balanced_accuracy"] == 0.5
    assert got["macro_precision"] == 0.375
    assert got["macro_f1"] == pytest.approx((2 * 0.75 / 1.75) / 2)


def test_rows_are_true_classes_and_columns_predicted_ones() -> None:
    assert confusion_matrix(np.array([0, 1, 1]), np.array([1, 1, 0]), 3).tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]


# Every class occurs once in the labels: scikit-learn warns otherwise.
@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.randoms(use_true_random=False))
def test_agrees_with_scikit_learn(extra: list[int], random: object) -> None:
    labels = np.array([0, 1, 2, 3, 4, *extra])
    predictions = np.array([random.randrange(5) for _ in labels])  # type: ignore[attr-defined]
    got = score(labels, predictions, 5)
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert got["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predictions))
    assert got["macro_f1"] == pytest.approx(metrics.f1_score(labels, predictions, average="macro", zero_division=0))
    assert got["macro_precision"] == pytest.approx(metrics.precision_score(labels, predictions, average="macro", zero_division=0))


def test_classes_that_occur_nowhere_do_not_count() -> None:
    assert score(np.array([0, 1]), np.array([0, 1]), 47)["macro_f1"] == 1.0


def test_average_precision_by_hand() -> None:
    """Class 0 ranks its two images first and third: (1 + 2/3) / 2; class 2 its one second: 1/2; class 1 has no image and does not count."""
    labels, logits = np.array([0, 2, 0]), np.array([[3.0, 0, 9], [2, 0, 5], [1, 0, 0]])
    assert mean_average_precision(labels, logits) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
