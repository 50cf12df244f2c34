"""What is said of the labels before a training."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.stages.train import unseen


def project(labels: list[int], classes: tuple[str, ...], task: Any = None) -> Any:
    return SimpleNamespace(task=task, data=SimpleNamespace(classes=classes, train=SimpleNamespace(labels=np.array(labels))))


@pytest.mark.parametrize(
    ("labels", "classes", "told"),
    [
        ([0, 1, 2], tuple("abc"), ""),
        (
            [2, 7, 9],
            tuple("0123456789"),
            "train: 7 of 10 classes have no training image (0, 1, 3 ...); labels count from 0 without gaps as a rule",
        ),
        ([1, 2], tuple("abc"), "train: 1 of 3 classes have no training image (a); labels count from 0 without gaps as a rule"),
        ([0, 0], ("only",), "train: there is one class, so every answer is right; a classifier tells two or more apart"),
    ],
)
def test_classes_without_images_are_named(labels: list[int], classes: tuple[str, ...], told: str) -> None:
    assert unseen(project(labels, classes)) == told


def test_of_other_tasks_nothing_is_said() -> None:
    assert unseen(project([], (), task=object())) == ""
