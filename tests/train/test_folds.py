"""Folds: counts by hand, and agreement with what a split must be."""

import re

import numpy as np
import pytest

from compress.train.errors import TrainError
from compress.train.folds import mean_and_spread, stratified_folds, worst_pairs

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [50, 31, 12, 7]))


@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_every_image_is_held_out_once_and_counts_differ_by_one_at_most(folds: int) -> None:
    masks = stratified_folds(LABELS, folds, seed=3)
    assert len(masks) == folds
    assert (np.sum(masks, axis=0) == 1).all()
    sizes = [mask.sum() for mask in masks]
    assert max(sizes) - min(sizes) <= 1
    counts = np.array([np.bincount(LABELS[mask], minlength=4) for mask in masks])
    assert (np.ptp(counts, axis=0) <= 1).all()


def test_folds_repeat_with_their_seed_and_never_change() -> None:
    first, same, other = (stratified_folds(LABELS, 5, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    # Written down once: another version of numpy must give the same folds.
    [mask, _] = stratified_folds(np.array([0, 1, 0, 1, 0, 1, 0, 0]), 2, seed=7)
    assert np.flatnonzero(mask).tolist() == [0, 5, 6, 7]


def test_impossible_numbers_of_folds_are_told() -> None:
    for folds in (1, 0, -3):
        with pytest.raises(TrainError, match=rf"folds \(={folds}\) must be at least 2; 5 trains five networks"):
            stratified_folds(LABELS, folds, seed=0)
    stratified_folds(LABELS, 7, seed=0)
    with pytest.raises(TrainError, match=r"folds \(=8\) must be at most 7, the number of images of class d; add images or take fewer"):
        stratified_folds(LABELS, 8, seed=0, names=tuple("abcd"))
    with pytest.raises(TrainError, match=re.escape("of class 3;")):
        stratified_folds(LABELS + (LABELS == 2) * 3, 8, seed=0)  # 2 becomes 5: the absent class is not the smallest


def test_mean_and_sample_standard_deviation_by_hand() -> None:
    mean, spread = mean_and_spread([{"a": 1.0, "b": 0.5}, {"a": 2.0, "b": 0.5}, {"a": 6.0, "b": 0.5}])
    assert mean == {"a": 3.0, "b": 0.5}
    assert spread == {"a": pytest.approx(7**0.5), "b": 0.0}


def test_the_worst_pairs_are_the_largest_counts_off_the_diagonal() -> None:
    labels, predictions = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 1, 0, 2, 2])
    assert worst_pairs(labels, predictions, 3) == [(0, 1, 2), (0, 2, 1), (1, 0, 1)]
    assert worst_pairs(labels, predictions, 3, most=1) == [(0, 1, 2)]
    assert worst_pairs(labels, labels, 3) == []
