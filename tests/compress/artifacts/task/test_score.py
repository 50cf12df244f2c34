"""What a score of the user's own is called with, and which numbers it may give."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from compress.artifacts.task.function import Function, FunctionError
from compress.artifacts.task.score import Task
from compress.train.data_set import Part

PART = Part(np.zeros((12, 1, 2, 2), np.uint8), np.arange(12) + 3)


class Stand:
    """In the place of a function in a file."""

    told, name, source = "score (=own.py:score)", "score", "s"

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def scores(call: Callable[..., Any]) -> Callable[..., float]:
    return Task(score=cast(Function, Stand(call)), targets=np.arange(20) * 10).judge(PART).score


def test_one_output_is_an_array_and_targets_are_those_of_the_images() -> None:
    def score(outputs: Any, targets: Any) -> float:
        assert outputs.shape == (2, 5) and targets.tolist() == [30, 50]
        return 0.5

    assert scores(score)([(np.ones((1, 5)),)] * 2, [3, 5]) == 0.5


def test_several_outputs_are_a_tuple_in_their_order() -> None:
    def score(outputs: Any, _: Any) -> float:
        boxes, sure = outputs
        assert boxes.shape == (3, 4, 2) and sure.shape == (3, 4)
        return 1

    assert scores(score)([(np.ones((1, 4, 2)), np.ones((1, 4)))] * 3, [0, 1, 2]) == 1


def test_outputs_of_another_size_for_each_image_are_a_list_then_and_later() -> None:
    """(1, n, 2) is a list of (n, 2), and (n, 2), of a file that has no place for the batch, too: also of one image alone."""
    seen: list[Any] = []

    def score(outputs: Any, _: Any) -> float:
        seen.append([[one.shape for one in output] for output in outputs])
        return 1

    call = scores(score)
    call([(np.ones((1, n, 2)), np.ones((n, 2))) for n in (1, 3)], [0, 1])
    call([(np.ones((1, 1, 2)), np.ones((1, 2)))], [0])
    assert seen == [[[(1, 2), (3, 2)]] * 2, [[(1, 2)]] * 2]


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.array(0.25), torch.tensor(0.25)])
def test_a_number_is_one_in_whichever_library(value: Any) -> None:
    assert scores(lambda *_: value)([(np.ones((1, 2)),)], [0]) == 0.25


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "gave nan; a finite number is needed"),
        (-np.inf, "gave -inf"),
        (np.ones(3), r"gave an array of shape \(3,\); one number is needed, and higher must be better"),
        ("good", "gave a str, good; one number"),
        (None, "gave a NoneType, None"),
        (True, "gave a bool, True"),
        ((1.0, 2.0), "gave a tuple"),
    ],
)
def test_anything_else_is_refused(value: Any, told: str) -> None:
    with pytest.raises(FunctionError, match=rf"score \(=own.py:score\) {told}"):
        scores(lambda *_: value)([(np.ones((1, 2)),)], [0])
