"""What a function of the user's own gives, in every form it may have, and what is refused of it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from compress.artifacts.task import data
from compress.artifacts.task.data import load, pick
from compress.artifacts.task.function import Function, FunctionError

IMAGES = np.random.default_rng(0).integers(0, 256, (100, 1, 4, 4)).astype(np.uint8)
TARGETS = np.arange(100) * 2
Given = Callable[[Any], Function]


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    """A function that gives what the test says, which its file asks for."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own.py").write_text("def load():\n    return MAKE()\n", encoding="utf-8")

    def give(make: Any) -> Function:
        function = Function("data", f"{tmp_path / 'own.py'}:load")
        found = function._function
        found.__globals__["MAKE"] = make if callable(make) else lambda: make  # type: ignore[attr-defined]
        return function

    return give


def said(_: str) -> None: ...


def batches(images: Any = IMAGES, targets: Any = TARGETS, size: int = 30) -> list[tuple[Any, Any]]:
    return [(images[at : at + size], targets[at : at + size]) for at in range(0, len(images), size)]


def test_three_parts_share_no_image_and_have_their_own_targets(given: Given) -> None:
    found = load(given((IMAGES, TARGETS)), 0, 0.3, said)
    parts = found.train, found.validation, found.test
    assert found.about.counts == tuple(len(part.labels) for part in parts) == (56, 24, 20)
    assert sorted(np.concatenate([part.labels for part in parts])) == list(range(100)) and found.classes == ()
    for part in parts:
        np.testing.assert_array_equal(part.images, IMAGES[pick(found.targets, part.labels.tolist()) // 2])


def test_the_test_part_is_the_same_for_every_seed(given: Given) -> None:
    one, other = (load(given((IMAGES, TARGETS)), seed, 0.3, said) for seed in (0, 1))
    assert one.test.labels.tolist() == other.test.labels.tolist()
    assert one.train.labels.tolist() != other.train.labels.tolist() and one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "form",
    [
        lambda: batches(),
        lambda: iter(batches()),
        lambda: (torch.from_numpy(IMAGES), torch.from_numpy(TARGETS)),
        lambda: DataLoader(TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(TARGETS)), batch_size=7),
        lambda: [IMAGES, TARGETS],
    ],
)
def test_every_form_gives_the_same_data(given: Given, form: Callable[[], Any]) -> None:
    found, expected = load(given(form), 0, 0.3, said), load(given((IMAGES, TARGETS)), 0, 0.3, said)
    assert found.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(found.targets, TARGETS)


def test_targets_of_any_kind(given: Given) -> None:
    boxes = [np.full((number % 3, 4), number) for number in range(100)]
    named = {"boxes": boxes, "kind": TARGETS, "text": [str(one) for one in TARGETS]}
    found = load(given((IMAGES, named)), 0, 0.3, said).targets
    some = pick(found, [4, 2])
    assert [one.shape for one in some["boxes"]] == [(1, 4), (2, 4)] and some["kind"].tolist() == [8, 4] and some["text"] == ["8", "4"]
    in_batches = [(IMAGES[at : at + 50], {key: column[at : at + 50] for key, column in named.items()}) for at in (0, 50)]
    again = load(given(in_batches), 0, 0.3, said)
    assert pick(again.targets, [4])["text"] == ["8"] and again.fingerprint == load(given((IMAGES, named)), 0, 0.3, said).fingerprint


@dataclass
class Box:
    corner: int


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (TARGETS, TARGETS + 1),
        (list(map(str, TARGETS)), list(map(str, TARGETS + 1))),
        ([Box(number) for number in range(100)], [Box(number + 1) for number in range(100)]),
        ({"a": TARGETS}, {"b": TARGETS}),
    ],
)
def test_other_targets_are_other_data(given: Given, one: Any, other: Any) -> None:
    assert load(given((IMAGES, one)), 0, 0.3, said).fingerprint != load(given((IMAGES, other)), 0, 0.3, said).fingerprint


def test_channels_that_come_last_are_put_first(given: Given) -> None:
    colour = np.repeat(IMAGES, 3, axis=1)
    assert load(given((colour.transpose(0, 2, 3, 1), TARGETS)), 0, 0.3, said).shape == (3, 4, 4)


def test_floats_stay_what_they_are(given: Given) -> None:
    found = load(given((IMAGES.astype(np.float64) / 7 - 3, TARGETS)), 0, 0.3, said)
    assert found.train.images[:].dtype == np.float32 and found.train.images[:].min() < -2


def test_what_never_ends_is_taken_up_to_a_limit_and_that_is_said(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_IMAGES", 90)

    def forever() -> Any:
        while True:
            yield IMAGES[:20], TARGETS[:20]

    told: list[str] = []
    assert sum(load(given(forever), 0, 0.3, told.append).about.counts) == 100
    assert told == ["data: load gave 100 images in 5 batches, as many as are taken; it is asked for no more"]


def test_nothing_that_never_ends_is_refused(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_BATCHES", 50)

    def forever() -> Any:
        while True:
            yield IMAGES[:0], TARGETS[:0]

    with pytest.raises(FunctionError, match="gave no images, in 50 batches"):
        load(given(forever), 0, 0.3, said)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: None, r"gave a NoneType; images uint8 or float \(N, C, H, W\) and N targets, or an iterable of such batches are needed"),
        (list, "gave no images, in 0 batches"),
        (lambda: IMAGES, r"batch 1, is a ndarray; \(images, targets\) is needed"),
        (lambda: (IMAGES[:20], TARGETS[:20]), "gave 20 images; at least 60 are needed"),
        (lambda: (IMAGES, TARGETS[:99]), "has 100 images, and 99 targets; one for each is needed"),
        (lambda: (IMAGES, {"boxes": TARGETS[:99]}), "has 100 images, and 99 boxes"),
        (lambda: (IMAGES, {}), "a dict of targets with nothing in it"),
        (lambda: (IMAGES, 5), "has targets of type int; one target per image is needed"),
        (lambda: (IMAGES, "x" * 100), "has targets of type str"),
        (lambda: (IMAGES.astype(int), TARGETS), r"has images of int64 \(100, 1, 4, 4\); uint8 or float"),
        (lambda: (IMAGES.reshape(100, 16), TARGETS), r"has images of uint8 \(100, 16\)"),
        (lambda: (IMAGES / np.where(np.arange(100) == 7, 0, np.nan)[:, None, None, None], TARGETS), "NaN or infinity"),
        (lambda: [*batches(), (IMAGES[:, :, :2], TARGETS)], r"batch 5, has images uint8 \(1, 2, 4\), and the first uint8 \(1, 4, 4\)"),
        (lambda: [*batches(), (IMAGES / 2, TARGETS)], "batch 5, has images float32"),
        (lambda: [(IMAGES, {"a": TARGETS}), (IMAGES, {"b": TARGETS})], "have other names each"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(given: Given, made: Callable[[], Any], told: str) -> None:
    with pytest.raises(FunctionError, match=told) as caught, np.errstate(all="ignore"):
        load(given(made), 0, 0.3, said)
    assert str(caught.value).startswith("data (=") and "\n" not in str(caught.value)
