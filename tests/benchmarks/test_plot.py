from typing import Any

import pytest

from compress.benchmarks.plot import draw, pareto_front


def test_front_of_three_points_by_hand() -> None:
    assert pareto_front([(1, 90), (2, 95), (3, 94)]) == [0, 1]
    assert pareto_front([(3, 94), (1, 90), (1, 91)]) == [2, 0]
    assert pareto_front([(2, 90), (2, 90)]) == [0]


def test_plot_is_the_same_bytes_each_time_and_holds_no_address(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("int8", 8e-4, balanced=0.96))
    picture = draw(result, "svg", "narrow", "dark")
    assert picture == draw(result, "svg", "narrow", "dark")
    assert picture.startswith(b"<?xml") and b"<image" not in picture and b"<script" not in picture


@pytest.mark.parametrize("names", [["a$x$b", "<b>", "n" * 300], ["fp32"]])
def test_any_names_and_a_wide_range_of_latencies_draw(made: Any, names: list[str]) -> None:
    many = [made.one(name, 10.0**-index, balanced=0.5) for index, name in enumerate(names, start=1)]
    assert draw(made.result(*many), "png", "wide", "light").startswith(b"\x89PNG")
