"""Classification metrics from a confusion matrix, in numpy alone so that they also run on a board without scikit-learn; but for average
precision, which is scikit-learn's.

Balanced accuracy (the mean of the per-class recalls) is what Kuzushiji-49 asks for, as its classes are unequal in size. Every figure
agrees with scikit-learn's (tests compare them); classes that occur neither in the labels nor in the predictions do not count.
"""

import math
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Row(TypedDict):
    """One epoch, from 1: the losses, the scores of the validation images in 0..1, and the speed."""

    epoch: int
    train_loss: float
    validation_loss: float
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    macro_precision: float
    images_per_second: float


def confusion_matrix(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Counts, int64 (K, K): row = true class, column = predicted class; ``labels`` and ``predictions`` are (N,) in 0..K-1."""
    return np.bincount(labels.astype(np.int64) * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def score(labels: NDArray[np.int64], predictions: NDArray[np.int64], classes: int) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro F1 and macro precision, each in 0..1.

    Three images of class 0, one of class 1, everything read as class 0: accuracy 0.75, balanced accuracy (1 + 0) / 2 = 0.5, macro
    precision (0.75 + 0) / 2 = 0.375, macro F1 (2 * 0.75 / 1.75 + 0) / 2 = 0.4286.
    """
    matrix = confusion_matrix(labels, predictions, classes)
    hits, true, predicted = np.diag(matrix).astype(float), matrix.sum(axis=1), matrix.sum(axis=0)
    occurs = (true + predicted) > 0
    return {
        "accuracy": float(hits.sum() / max(1, matrix.sum())),
        "balanced_accuracy": float(np.mean(hits[true > 0] / true[true > 0])) if matrix.any() else 0.0,
        "macro_f1": float(np.mean(2 * hits[occurs] / (true + predicted)[occurs])) if matrix.any() else 0.0,
        "macro_precision": float(np.mean(hits[occurs] / np.maximum(1, predicted[occurs]))) if matrix.any() else 0.0,
    }


def mean_average_precision(labels: NDArray[np.int64], logits: NDArray[np.floating]) -> float:
    """Of a head whose labels do not exclude each other: the mean over the classes that have images of scikit-learn's average precision.

    Args:
        labels: (N,) in 0..K-1: the label that is known of each image. logits: (N, K), or what rises with them; each class is ranked alone.
    """
    from sklearn.metrics import average_precision_score

    there = np.unique(labels)
    return float(average_precision_score(labels[:, None] == there, logits[:, there], average="macro"))


def tempered_loss(labels: NDArray[np.int64], logits: NDArray[np.floating]) -> float:
    """Mean cross-entropy in nats of logits (N, K) times the best of some factors: how sure a network is of itself does not count.

    Certain and wrong once in two: as it is that costs much; halved and halved again it comes to ln 2, what not to know costs.
    Infinity where a logit is not finite. Source: Guo et al. 2017, arXiv:1706.04599 (temperature scaling).
    """
    if not np.isfinite(logits).all():
        return math.inf
    rows = np.arange(len(labels))
    losses = [-np.log(softmax(logits * factor)[rows, labels].clip(1e-30)).mean() for factor in 2.0 ** np.arange(-4, 2.25, 0.25)]
    return float(min(losses))


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities (N, K) of logits (N, K), in double precision."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities (N, K) of labels that do not exclude each other, in double precision."""
    powers: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return powers
