import itertools
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.figure import Figure

from compress.benchmarks.plot import MARKERS, draw, pareto_front, shown
from compress.benchmarks.runtimes import RUNTIMES


def test_front_of_three_points_by_hand() -> None:
    assert pareto_front([(1, 90), (2, 95), (3, 94)]) == [0, 1]
    assert pareto_front([(3, 94), (1, 90), (1, 91)]) == [2, 0]
    assert pareto_front([(2, 90), (2, 90)]) == [0]


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Draws, and gives the axes as they are when the picture is saved."""
    seen: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **more: (seen.append(figure), save(figure, *args, **more))[1])

    def drawn(result: Any, axis: str = "latency", ship: str | None = None) -> Any:
        assert draw(result, axis, ship).startswith(b"\x89PNG")
        [found] = seen.pop().axes
        return found

    return drawn


def points(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """What is marked, by its entry in the legend."""
    return {one.get_label(): [tuple(point) for point in one.lines[0].get_xydata()] for one in axes.containers}


def test_points_bars_and_front_lie_where_the_figures_are(made: Any, axes: Callable[..., Any]) -> None:
    result = made.result(made.one("fp32"), made.one("int8", 8e-4, balanced=0.96), made.one("worse", 2e-3, balanced=0.95, runtime="torch"))
    drawn = axes(result)
    assert points(drawn) == {
        "onnxruntime, cpu": [pytest.approx((1.0, 97.0)), pytest.approx((0.8, 96.0))],
        "torch, cpu": [pytest.approx((2.0, 95.0))],
    }
    [bars] = drawn.containers[0].lines[2]
    assert [(*bar[:, 0], *bar[:, 1]) for bar in bars.get_segments()] == [
        pytest.approx((0.99, 1.01, 97.0, 97.0)),
        pytest.approx((0.792, 0.808, 96.0, 96.0)),
    ]
    assert drawn.lines[0].get_xydata().tolist() == [pytest.approx([0.8, 96.0]), pytest.approx([1.0, 97.0])]
    assert (drawn.get_xlabel(), drawn.get_xscale()) == ("p50 latency in ms", "linear")


def test_what_ships_has_a_ring_around_it(made: Any, axes: Callable[..., Any]) -> None:
    result = made.result(made.one("fp32"), made.one("int8", 8e-4, balanced=0.96), made.one("int8", 2e-3, runtime="torch"))
    rings = [line for line in axes(result, "latency", "int8").lines if line.get_label() == "ship"]
    assert [tuple(line.get_xydata()[0]) for line in rings] == [pytest.approx((0.8, 96.0))]


@pytest.mark.parametrize("axis", ["latency", "size"])
def test_names_cover_neither_each_other_nor_a_point_and_stay_inside(made: Any, axes: Callable[..., Any], axis: str) -> None:
    names = ["a$x$b", "<b>", "n" * 300, "near a", "nearer a"]
    latencies, sizes = (1e-1, 1e-2, 1e-3, 0.98e-1, 0.99e-1), (100_000, 2_000, 500, 98_000, 99_000)
    many = [
        made.one(name, p50, balanced=0.9 + index / 1000, size_bytes=size)
        for index, (name, p50, size) in enumerate(zip(names, latencies, sizes, strict=True))
    ]
    drawn = axes(made.result(*many), axis)
    told = [text for text in drawn.texts if text.get_text()]
    assert {text.get_text() for text in told} == {"a$x$b", "<b>", "n" * 31 + "…", "near a", "nearer a"}
    renderer = drawn.get_figure().canvas.get_renderer()
    boxes, frame = [text.get_window_extent(renderer) for text in told], drawn.get_window_extent(renderer)
    assert not [(one, other) for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
    spots = [drawn.transData.transform(point) for found in points(drawn).values() for point in found]
    assert not [spot for spot in spots for box in boxes if box.contains(*spot)]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert drawn.get_xscale() == "log" and drawn.get_xlabel().endswith(", log scale")


def test_one_point_alone_is_drawn_with_its_name(made: Any, axes: Callable[..., Any]) -> None:
    drawn = axes(made.result(made.one("fp32")), "size")
    assert points(drawn) == {"onnxruntime, cpu": [(1000.0, 97.0)]}
    assert [text.get_text() for text in drawn.texts] == ["fp32"] and drawn.get_xlabel() == "size in kB"


def test_every_runtime_has_a_sign_of_its_own() -> None:
    assert set(MARKERS) == {(runtime, device) for runtime, devices in RUNTIMES.items() for device in devices}
    assert len(set(MARKERS.values())) == len(MARKERS)


def test_against_size_each_file_appears_once(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("fp32", device="cuda"), made.one("int8", size_bytes=9), made.missing("x", "no"))
    assert [len(shown(result, axis)) for axis in ("latency", "size")] == [3, 2]
