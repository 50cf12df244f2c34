"""What the picture is made of; that it can be read was looked at."""

import io
import math

import pytest
from PIL import Image

from compress.plots.noise import draw_noise, layer_names
from compress.quantization.noise import LayerNoise


def row(name: str, weights: str | None, output_db: float = 30.0, own_db: float | None = 40.0) -> LayerNoise:
    return LayerNoise(name=name, kind="Conv", weights=weights, output_db=output_db, own_db=own_db, weight_db=40.0, clipped=0.0)


def test_names_lose_what_all_have_in_common_by_hand() -> None:
    rows = [row("n0", "net.a.weight"), row("n1", "net.b.weight"), row("n2", "net.b.weight"), row("logits", None)]
    assert layer_names(rows) == ["a", "b", "b (2)", "logits"]
    assert layer_names([row("n0", "weight"), row("n1", "net.b.weight")]) == ["weight", "net.b"]
    assert layer_names([row("n0", "only.one.weight")]) == ["one"]


@pytest.mark.parametrize(("count", "timed"), [(1, False), (3, True), (70, True)])
def test_a_picture_grows_with_the_layers_and_holds_infinite_and_lost_ratios(count: int, timed: bool) -> None:
    ratios = (math.inf, -math.inf, -5.0, 30.0)
    rows = [row(f"n{index}", f"net.block{index}.weight", ratios[index % 4], (None, math.inf, 40.0)[index % 3]) for index in range(count)]
    times = {f"n{index}": 3.0 for index in range(count)} | {"(ReorderOutput)": 4.0}
    png = draw_noise([*rows, row("pool", None), row("logits", None)], "net: $all$ in int8", (times, times) if timed else None)
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
    assert height > 20 * count and (width > 800) == timed
