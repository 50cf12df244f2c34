"""What the command line writes otherwise than Python does. The truth is what the same option takes in Python."""

from pathlib import Path
from typing import Any

import click
import pytest

from compress.api.calls import takes
from compress.api.options import ServeOptions
from compress.cli import options
from compress.errors import CompressError


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (options.PERCENT, "5%", 5.0),
        (options.PERCENT, "2.5", 2.5),
        (options.PERCENT, " 3 % ", 3.0),
        (options.SHARE, "0.35x", 0.35),
        (options.SHARE, "0.35", 0.35),
        (options.SHAPE, "3x32x24", (3, 32, 24)),
        (options.NUMBERS, "0.5", (0.5,)),
        (options.NUMBERS, "0.485,0.456,0.406", (0.485, 0.456, 0.406)),
        (options.SETTING, "widths=[8,16]", {"widths": [8, 16]}),
    ],
)
def test_a_value_is_read_as_people_write_it(kind: click.ParamType, text: str, value: Any) -> None:
    assert kind.convert(text, None, None) == value
    assert kind.convert(value, None, None) == value, "a default is taken as it is"


@pytest.mark.parametrize(
    ("kind", "text", "told"),
    [
        (options.PERCENT, "much", r"^value \(=much\) must be a percentage, such as 5%$"),
        (options.SHARE, "half", r"^value \(=half\) must be a share of what the unpruned network costs, such as 0.35x$"),
        (options.SHAPE, "28x28", r"^value \(=28x28\) must be CxHxW, such as 1x28x28$"),
        (options.NUMBERS, "a,b", r"^value \(=a,b\) must be one number or one per channel"),
        (options.SETTING, "widths", r"^value \(=widths\) must be NAME=VALUE with a TOML value"),
    ],
)
def test_a_value_that_is_something_else_is_one_line(kind: click.ParamType, text: str, told: str) -> None:
    with pytest.raises(CompressError, match=told):
        kind.convert(text, None, None)


def test_a_command_that_needs_no_network_is_given_the_options_that_a_network_has_too() -> None:
    """``serve`` and ``page`` have --runs, --model and --image-shape of their own; those of a network go to what opens it."""
    given: dict[str, Any] = {}

    @takes(ServeOptions)
    def listen(*sources: str, **options: Any) -> dict[str, Any]:
        """Nothing."""
        given.update(options)
        return given

    made = options.command(listen, "compress listen")(lambda result, as_json: None)
    made.main(["a", "--runs", "other", "--image-shape", "1x2x3", "--mean", "0.5", "--port", "1"], standalone_mode=False)
    assert given == {"runs": Path("other"), "image_shape": (1, 2, 3), "mean": (0.5,), "port": 1}
