"""k-fold cross-validation: which images make which fold, and what the folds say together. numpy only.

Refused: fewer than two folds, and more folds than the smallest class has images, as one of them could not be scored on that class.

Source: Kohavi 1995, "A study of cross-validation and bootstrap for accuracy estimation and model selection", IJCAI (stratified folds).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import TrainError
from .metrics import confusion_matrix


def check_folds(folds: int) -> None:
    """Refuse a number of folds that no data could have."""
    if folds < 2:
        raise TrainError(f"folds (={folds}) must be at least 2; 5 trains five networks, each on four fifths of the images")


def stratified_folds(labels: NDArray[np.int64], folds: int, seed: int, names: Sequence[str] = ()) -> list[NDArray[np.bool_]]:
    """For each fold which images it holds out: ``folds`` masks, bool (N,), that together mark every image once.

    The images of each class are shuffled by ``seed`` and dealt out in turn, and the next class goes on where the last one stopped: the
    folds' sizes differ by one at most, and so do their counts of any class. Labels 0 0 0 0 1 1 in two folds: two 0s and one 1 each.

    Args:
        labels: int64 (N,), 0..K-1; a class may be absent. names: of the K classes, for messages.
    """
    check_folds(folds)
    counts = np.bincount(labels)
    smallest = int(np.argmin(np.where(counts > 0, counts, len(labels))))
    if counts[smallest] < folds:
        name = names[smallest] if names else smallest
        raise TrainError(
            f"folds (={folds}) must be at most {counts[smallest]}, the number of images of class {name}; add images or take fewer"
        )
    # Raw words of PCG64, because numpy (NEP 19) promises that they never change, and does not promise it of Generator.permutation.
    order = np.lexsort((np.random.PCG64(seed).random_raw(len(labels)), labels))
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return [fold == index for index in range(folds)]


def mean_and_spread(rows: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample standard deviation (ddof 1) of each entry over at least two ``rows`` of the same keys.

    The spread is that of the folds, not the error of their mean: the networks of two folds share training images, so it has no
    unbiased estimate (Bengio and Grandvalet 2004, JMLR 5).
    """
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {name: float(v.mean()) for name, v in values.items()}, {name: float(v.std(ddof=1)) for name, v in values.items()}


def worst_pairs(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int, most: int = 8) -> list[tuple[int, int, int]]:
    """(true class, predicted class, how often) of the most frequent confusions, at most ``most``; among equals the lower class first."""
    matrix = confusion_matrix(labels, predictions, classes)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    return [(int(cell // classes), int(cell % classes), int(matrix.flat[cell])) for cell in order if matrix.flat[cell]]
