"""What tuning writes: TOML that reads back as it was, and the table."""

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from compress.cli.views import tuned_text
from compress.stages.tune import Tuned, _toml
from compress.train.space import Choices, Range
from compress.train.tune import Summary, Trial


@pytest.mark.parametrize("value", [1, 0.1, 1e-5, 1e30, math.pi, True, "a", 'quo"te \\ C:\\new', "か\n", [16, 64], [[1], [2.5, "x"]], []])
def test_values_read_back_as_they_were(value: Any) -> None:
    back = tomllib.loads(f"value = {_toml(value)}")["value"]
    assert back == value
    assert type(back) is type(value)


def test_the_table_has_the_best_first_and_says_why_a_trial_was_given_up() -> None:
    space = {"train.lr": Range(low=0.0, high=1.0), "model-options.widths": Choices(values=([8, 16],))}
    values = {"train.lr": 0.25, "model-options.widths": [8, 16]}
    about: dict[str, Any] = {"values": values, "epochs": 1, "seconds": 1.0, "notes": {"params": 1234, "macs": 5678}}
    trials = (
        Trial(number=0, state="pruned", score=None, reason="too large", **about),
        Trial(number=1, state="complete", score=0.5, **about),
        Trial(number=2, state="complete", score=0.75, **about),
        Trial(number=3, state="running", score=None, values={}, epochs=0, seconds=0.0),
    )
    summary = Summary(trials=trials, importances={"train.lr": 0.9, "model-options.widths": 0.1})
    text = tuned_text(Tuned(study="s", folder=Path("runs"), space=space, summary=summary))
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["trial", "balanced", "acc.", "params", "MACs", "lr", "widths"]
    assert rows[2:6] == [
        ["2", "75.00%", "1,234", "5,678", "0.25", "8-16"],
        ["1", "50.00%", "1,234", "5,678", "0.25", "8-16"],
        ["0", "-", "1,234", "5,678", "0.25", "8-16", "too", "large"],
        ["3", "-", "running"],
    ]
    assert "share in the variance of the score: train.lr 90%, model-options.widths 10%" in text
