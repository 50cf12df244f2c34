from typing import Any

import pytest

from compress.benchmarks.plot import MARKERS, _shown, draw, pareto_front
from compress.benchmarks.runtimes import RUNTIMES


def test_front_of_three_points_by_hand() -> None:
    assert pareto_front([(1, 90), (2, 95), (3, 94)]) == [0, 1]
    assert pareto_front([(3, 94), (1, 90), (1, 91)]) == [2, 0]
    assert pareto_front([(2, 90), (2, 90)]) == [0]


def test_plot_is_the_same_bytes_each_time_and_holds_no_address(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("int8", 8e-4, balanced=0.96))
    picture = draw(result, "svg", "narrow", "dark")
    assert picture == draw(result, "svg", "narrow", "dark")
    assert picture.startswith(b"<?xml") and b"<image" not in picture and b"<script" not in picture


@pytest.mark.parametrize("axis", ["latency", "size"])
@pytest.mark.parametrize("names", [["a$x$b", "<b>", "n" * 300], ["fp32"]])
def test_any_names_and_a_wide_range_of_latencies_draw(made: Any, names: list[str], axis: str) -> None:
    many = [made.one(name, 10.0**-index, balanced=0.5) for index, name in enumerate(names, start=1)]
    assert draw(made.result(*many), "png", "wide", "light", axis).startswith(b"\x89PNG")


def test_every_runtime_has_a_sign_of_its_own() -> None:
    assert set(MARKERS) == {(runtime, device) for runtime, devices in RUNTIMES.items() for device in devices}
    assert len(set(MARKERS.values())) == len(MARKERS)


def test_against_size_each_file_appears_once(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("fp32", device="cuda"), made.one("int8", size_bytes=9), made.missing("x", "no"))
    assert [len(_shown(result, axis)) for axis in ("latency", "size")] == [3, 2]
