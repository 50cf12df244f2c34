import pytest

from compress.benchmarks.formats import MISSING, Units, count, milliseconds, percent, size, times
from compress.benchmarks.statistics import Speedup


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.00119, "1.19 ms"), (9.254e-5, "0.0925 ms"), (0.1126, "113 ms"), (0.0123, "12.3 ms"), (None, MISSING)]
)
def test_latency_has_three_significant_digits(seconds: float | None, text: str) -> None:
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(812, "812 bytes"), (56_279, "56.3 kB"), (1_050_000, "1.05 MB"), (250_000_000, "250 MB")])
def test_size_is_decimal(count: int, text: str) -> None:
    assert size(count) == text


def test_counts_and_shares() -> None:
    assert (count(258_123), count(2.4e7), count("?"), percent(0.98291)) == ("258,123", "24,000,000", "?", "98.29%")


def test_third_decimal_where_two_would_hide_the_side_of_one() -> None:
    assert times(Speedup(value=0.87, low=0.84, high=0.90)) == "0.87x, 95% interval 0.84 to 0.90"
    assert times(Speedup(value=1.0051, low=1.0011, high=1.0092)) == "1.005x, 95% interval 1.001 to 1.009"


@pytest.mark.parametrize(
    ("lost", "points", "of_iou"), [(-0.001, "0.00", "-0.001"), (-0.0, "0.00", "0"), (-0.2, "-0.20", "-0.2"), (1.234, "1.23", "1.23")]
)
def test_nothing_lost_has_no_sign(lost: float, points: str, of_iou: str) -> None:
    assert (Units().drop(lost), Units("iou").drop(lost)) == (points, of_iou)
