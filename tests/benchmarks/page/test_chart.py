import itertools
import re
from typing import Any

import numpy as np
import pytest

from compress.benchmarks.limits import Limits
from compress.benchmarks.page.chart import SIZES, Scale, chart
from compress.benchmarks.plot import MARKERS


def drawn(
    made: Any, result: Any, axis: str = "latency", ship: str | None = None, limits: Limits | None = None
) -> dict[tuple[str, str], tuple[str, str]]:
    """The SVG and the key of each layout and shape."""
    found = chart(result, limits or Limits(), ship, axis, {})
    return {(layout, shape): (svg, key) for layout, shape, svg, key in found.pictures}


def marks(svg: str) -> dict[str, tuple[float, float]]:
    """Where the points lie."""
    found = re.findall(r'<g class="point[^"]*" data-name="(.*?)" data-kind="(.*?)"[^>]*>.*?class="reach" cx="([\d.]+)" cy="([\d.]+)"', svg)
    return {f"{name}, {kind}": (float(x), float(y)) for name, kind, x, y in found}


def test_scales_go_from_figures_to_pixels_by_hand() -> None:
    assert [Scale(low=0, high=10, start=100, end=200)(value) for value in (0, 5, 10)] == [100, 150, 200]
    assert [Scale(low=1, high=100, start=0, end=100, kind="log")(value) for value in (1, 10, 100)] == [0, 50, 100]
    assert [Scale(low=0, high=99, start=0, end=100, kind="error")(value) for value in (0, 90, 99)] == [0, 50, 100]
    assert Scale(low=0, high=10, start=100, end=200).ticks == [0, 2, 4, 6, 8, 10]
    assert Scale(low=0.9, high=110, start=0, end=100, kind="log").ticks == [1, 2, 5, 10, 20, 50, 100]
    assert Scale(low=40, high=99.4, start=0, end=100, kind="error").ticks == [99, 98, 95, 90, 80, 50]


def test_axes_are_logarithmic_where_the_figures_lie_far_apart(made: Any) -> None:
    far = made.result(made.one("fp32"), made.one("slow", 2e-2), made.one("broken", balanced=0.4))
    near = made.result(made.one("fp32"), made.one("slow", 2e-3), made.one("worse", balanced=0.93))
    for result, scales in ((far, ["log", "error"]), (near, ["linear", "linear"])):
        svg = drawn(made, result)["all", "wide"][0]
        assert [found.split()[-1] for found in re.findall(r'data-[xy]="(.*?)"', svg)] == scales
    assert "log scale of what is misread" in drawn(made, far)["all", "wide"][0]


@pytest.mark.parametrize(("axis", "seed"), list(itertools.product(["latency", "size"], range(4))))
def test_names_cover_neither_each_other_nor_a_point(made: Any, axis: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    many = [
        made.one(f"variant {'of a long name ' * (n % 3)}{n}", float(p50), balanced=float(score), size_bytes=int(1e9 * p50))
        for n, (p50, score) in enumerate(zip(generator.uniform(1e-3, 1.4e-3, 14), generator.normal(0.96, 0.001, 14), strict=True))
    ]
    for (_, shape), (svg, key) in drawn(made, made.result(*many), axis, many[0].name).items():
        words = re.findall(r'<g class="name.*?<text x="([\d.]+)" y="([\d.]+)" class="mid">(.*?)</text>', svg)
        boxes = []
        for x, y, text in words:
            wide = 0.6 * 12 * len(text)
            boxes.append((float(x) - wide / 2, float(y) - 10, float(x) + wide / 2, float(y) + 2))
        apart = [a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for a, b in itertools.combinations(boxes, 2)]
        assert all(apart)
        assert not [box for box in boxes for x, y in marks(svg).values() if box[0] < x < box[2] and box[1] < y < box[3]]
        assert all(box[0] >= 0 and box[2] <= SIZES[shape][0] for box in boxes)
        told = [text for *_, text in words]
        assert len(told) == 14 and {text for text in told if text.isdigit()} == set(re.findall(r"(?:^|; )(\d+) variant", key))


def test_a_runtime_that_squeezes_the_rest_has_a_layout_without_it(made: Any) -> None:
    slow = made.one("fp32", 5e-3, runtime="torch", providers=())
    found = chart(made.result(made.one("fp32"), made.one("int8", 8e-4), slow), Limits(), None, "latency", {})
    assert [(kind, hidden) for kind, _, hidden in found.legend] == [("onnxruntime, cpu", False), ("torch, cpu", True)]
    pictures = {(layout, shape): svg for layout, shape, svg, _ in found.pictures}
    assert "torch, cpu" in pictures["all", "narrow"] and "torch, cpu" not in pictures["rest", "narrow"]
    quick = chart(made.result(made.one("fp32"), made.one("fp32", 1.5e-3, runtime="torch")), Limits(), None, "latency", {})
    assert {layout for layout, *_ in quick.pictures} == {"all"}


def test_limits_are_lines_where_their_figures_lie(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("int8", 8e-4, balanced=0.96))
    svg = drawn(made, result, limits=Limits(max_drop=0.5, max_latency=0.9))["all", "wide"][0]
    at = marks(svg)
    x, y = re.findall(r'class="limit" data-limit="[xy]" d=".*?" transform="translate\(([\d.]+) ([\d.]+)\)"/>', svg)
    middle = [sum(ends) / 2 for ends in zip(at["fp32, onnxruntime, cpu"], at["int8, onnxruntime, cpu"], strict=True)]
    assert float(x[0]) == pytest.approx(middle[0], abs=0.2) and float(y[1]) == pytest.approx(middle[1], abs=0.2)
    assert 'data-limit="x" d="M0,12V394" transform="translate(0 0)" display="none"' in drawn(made, result)["all", "wide"][0]


def test_what_a_point_tells_is_escaped_and_has_its_figures(made: Any) -> None:
    result = made.result(made.one("<fp32>", doubts=("never became steady",)))
    found = chart(result, Limits(), None, "latency", {"<fp32> (onnxruntime, cpu)": "drop 0.00"})
    told = re.findall(r"<title>(.*?)</title>", found.pictures[0][2])
    assert told == ["&lt;fp32&gt; (onnxruntime, cpu): 1.00 ms (0.990 to 1.01), balanced accuracy 97.00%, drop 0.00, 1.00 MB; doubtful"]
    assert not any("<fp32>" in svg for *_, svg, _ in found.pictures)


def test_every_runtime_has_a_sign(made: Any) -> None:
    signs = set()
    for runtime, device in MARKERS:
        [(_, sign, _)] = chart(made.result(made.one("a", runtime=runtime, device=device)), Limits(), None, "latency", {}).legend
        signs.add(sign)
    assert len(signs) == len(MARKERS)


def test_only_the_file_that_ships_is_marked_not_the_same_name_elsewhere(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("fp32", 5e-4, runtime="c"), made.one("fp32", 5e-3, runtime="torch"))
    for ship, kind in (("fp32", "onnxruntime, cpu"), ("fp32 as C", "c, cpu")):
        svg = drawn(made, result, ship=ship)["all", "wide"][0]
        marked = re.findall(r'<g class="(?:point|name) ship" data-name="fp32" data-kind="(.*?)" data-ships="\[&quot;(.*?)&quot;\]"', svg)
        assert marked == [(kind, ship)] * 2
        assert svg.count('<g class="point" data-name="fp32" data-kind="torch, cpu">') == 1, "no script marks what cannot ship"
