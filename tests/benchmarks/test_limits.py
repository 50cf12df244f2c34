"""Limits other than that of accuracy, on results made up by hand."""

from typing import Any

import pytest

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.formats import bytes_of
from compress.benchmarks.limits import Limits, Needs
from compress.benchmarks.verdict import decide

FASTER = (1.25, 1.20, 1.30)
BOARD = {"fp32": Needs(ram=154_000, flash=701_000), "int8": Needs(ram=44_416, flash=214_580)}


@pytest.mark.parametrize(
    ("text", "count"),
    [("45kB", 45_000), ("0.5MB", 500_000), ("1.5 mb", 1_500_000), ("64KiB", 65_536), ("2k", 2_000), ("300", 300), (300, 300), ("12B", 12)],
)
def test_sizes_are_read_as_people_write_them(text: str | int, count: int) -> None:
    assert bytes_of(text, "max_ram") == count


@pytest.mark.parametrize("text", ["", "kB", "-4kB", "0", "4TB", "1e6", "4 k B", "0.1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match=r"max_flash \(=.*\) must be a size above 0, such as 45kB or 0\.5MB; a plain number is bytes"):
        Limits(max_flash=text)


def rows(made: Any) -> Any:
    return made.result(made.one("fp32", artifact="fp32"), made.one("int8", 8e-4, ratio=FASTER, artifact="int8"))


def test_what_does_not_fit_the_board_does_not_ship(made: Any) -> None:
    """44,416 bytes of RAM and 214,580 of flash against limits that are met exactly, and missed by a byte."""
    limits = Limits(max_ram=44_416, max_flash=214_580, target="cortex-m7")
    verdict = decide(rows(made), limits, BOARD)
    assert verdict.ship == "int8"
    told = "fp32: not chosen, it takes 154 kB of RAM as C for cortex-m7, 44.4 kB are allowed"
    assert verdict.reasons[0].startswith(told) and "701 kB of flash" in verdict.reasons[0]
    for short in (Limits(max_ram=44_415, target="cortex-m7"), Limits(max_flash=214_579, target="cortex-m7")):
        found = decide(rows(made), short, BOARD)
        assert found.ship is None
        assert "Nearest is int8: it takes" in found.headline


def test_a_file_that_cannot_be_c_breaks_the_limit_and_says_why(made: Any) -> None:
    limits = Limits(max_ram="1MB", target="portable")
    verdict = decide(rows(made), limits, {"fp32": BOARD["fp32"], "int8": 'node "odd" (Sin) cannot be written as C'})
    assert verdict.ship == "fp32"
    assert verdict.reasons == ('int8: not chosen, it cannot be C for portable (node "odd" (Sin) cannot be written as C).',)
    assert decide(rows(made), limits).ship is None, "nobody said what they take"


def test_without_such_limits_nothing_is_asked(made: Any) -> None:
    assert decide(rows(made), Limits()).ship == "int8"
    assert Limits(max_latency=2, max_size=300_000, max_ram="45kB").told() == [
        "at most 2 ms",
        "at most 300 kB",
        "at most 45.0 kB of RAM as C for native",
    ]
