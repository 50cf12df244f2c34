"""Search spaces: what is read from TOML, and what is refused with which words."""

import tomllib
from typing import Any

import pytest

from compress.train.errors import TrainError
from compress.train.space import Choices, Range, as_plain, parse_space

KNOWN = {"train.lr": float, "train.batch": int, "train.schedule": str, "augment.rotate": float, "model-options.widths": tuple}


def parse(text: str, **more: Any) -> Any:
    return parse_space(tomllib.loads(text), KNOWN, "space.toml", **more)


def test_ranges_and_choices_take_the_type_of_the_setting() -> None:
    text = (
        '"train.lr" = {low = 1e-4, high = 1, log = true}\ntrain.batch = {low = 32, high = 96, step = 32}\n'
        "augment.rotate = {low = 0, high = 20}"
    )
    assert parse(text) == {
        "train.lr": Range(low=1e-4, high=1.0, log=True),
        "train.batch": Range(low=32, high=96, step=32, whole=True),
        "augment.rotate": Range(low=0.0, high=20.0),
    }
    assert isinstance(parse(text)["augment.rotate"].high, float)


def test_dotted_names_and_tables_of_names_are_the_same() -> None:
    assert parse('"train.batch" = {choices = [64, 128]}') == parse("[train.batch]\nchoices = [64, 128]")


def test_lists_are_choices_and_known_to_storages_as_text() -> None:
    [choices] = parse("model-options.widths = {choices = [[16, 64], [8], 5]}").values()
    assert choices == Choices(values=([16, 64], [8], 5))
    assert choices.keys == ("[16, 64]", "[8]", 5)
    assert as_plain({"a": choices}) == {"a": {"values": ([16, 64], [8], 5)}}


def test_an_unknown_setting_of_an_open_table_is_taken_as_it_is_written() -> None:
    text = "model-options.k = {low = 1, high = 9}\nmodel-options.p = {low = 0, high = 0.5}"
    assert parse(text, open_tables=("model-options",)) == {
        "model-options.k": Range(low=1, high=9, whole=True),
        "model-options.p": Range(low=0.0, high=0.5),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.lrr = {low = 1, high = 2}", "train.lrr in space.toml is unknown; did you mean train.lr?"),
        ("rotate = {low = 1, high = 2}", "did you mean augment.rotate?"),
        ("zzz = {low = 1, high = 2}", "known: train.lr, train.batch"),
        ("train.lr = {low = 2, high = 1}", r"low \(=2\) must not be above high \(=1\)"),
        ("train.lr = {low = 0, high = 1, log = true}", r"log needs a low \(=0\) above 0"),
        ("train.lr = {low = 0.1, high = 1, log = true, step = 0.1}", "log and step exclude each other"),
        ("train.lr = {low = 0, high = 1, step = 0.3}", "plus a multiple of step"),
        ("train.lr = {low = 0, high = 1, step = 0}", r"step \(=0\) must be positive"),
        ("train.lr = {low = nan, high = 1}", "must be numbers"),
        ("train.lr = {low = true, high = 1}", "must be numbers"),
        ("train.lr = {low = 0.1, high = 1, log = 1}", r"log \(=1\) must be true or false"),
        ("train.batch = {low = 0.5, high = 2}", "must be whole numbers"),
        ("train.schedule = {low = 0, high = 2}", "is no number; give it {choices"),
        ("train.batch = {choices = []}", r"has no choices \(=\[\]\)"),
        ("train.batch = {choices = 64}", r"has no choices \(=64\)"),
        ("train.batch = {choices = [64, 128, 64]}", r"train.batch \(=64\) in space.toml is there twice"),
        ("train.batch = {choices = [{a = 1}]}", "a choice is a number, a text"),
        ("train.batch = {low = 1}", "must be {low = ..., high = ...}"),
        ("train.batch = {low = 1, high = 2, choices = [1]}", "must be {low = ..., high = ...}"),
        ("train.batch = {low = 1, high = 2, stepp = 1}", "must be {low = ..., high = ...}"),
        ("train.batch = 64", "must be {low = ..., high = ...}"),
        ("", "tunes nothing"),
    ],
)
def test_a_wrong_space_is_one_line(text: str, told: str) -> None:
    with pytest.raises(TrainError, match=told) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
