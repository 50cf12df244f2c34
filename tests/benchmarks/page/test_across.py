"""Machines side by side, by results made up by hand."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from compress.artifacts.payloads import read_results
from compress.benchmarks.page.across import Across, across
from compress.benchmarks.report import write_report
from compress.benchmarks.results import Result, write_results
from compress.benchmarks.verdict import Limits, decide

EVIL = "<script>|`x`"


@pytest.fixture
def pair(made: Any) -> list[Result]:
    """A board on which int8 takes 0.8 of fp32's latency, and a workstation on which it takes 1.25 of it."""
    board = made.result(
        made.one("fp32", 1e-2), made.one("int8", 8e-3, ratio=(1.25, 1.2, 1.3), artifact="89abcdef01"), board="pi4", cpu="Cortex-A72"
    )
    workstation = made.result(
        made.one("fp32"), made.one("int8", 1.25e-3, ratio=(0.8, 0.79, 0.81), artifact="89abcdef01"), made.one("pruned", 2e-3), cpu="Xeon"
    )
    return [board, workstation]


def found(*results: Result) -> Across | None:
    return across(results, [decide(one, Limits()) for one in results])


def test_what_ships_on_each_machine_stands_in_a_sentence(pair: list[Result]) -> None:
    side = found(*pair)
    assert side is not None and side.sentence == "pi4: ship int8; Xeon: ship fp32."


def test_rows_are_those_of_the_same_file_and_runtime_with_a_cell_per_machine(made: Any, pair: list[Result]) -> None:
    other = dataclasses.replace(pair[1], measurements=(*pair[1].measurements, made.one("int8", 3e-3, artifact="ffff0123")))
    side = found(pair[0], other)
    assert side is not None and side.machines == ("pi4", "Xeon")
    rows = {(row.name, row.file): [cell and (cell.latency, cell.speedup, cell.ships) for cell in row.cells] for row in side.rows}
    assert rows["fp32", "0123abcd"] == [("10.0 ms", "baseline", False), ("1.00 ms", "baseline", True)]
    assert rows["int8", "89abcdef"] == [("8.00 ms", "1.25x, 1.20 to 1.30", True), ("1.25 ms", "0.80x, 0.79 to 0.81", False)]
    assert rows["int8", "ffff0123"][0] is None and rows["pruned", "0123abcd"][0] is None


def test_of_several_results_of_a_machine_the_newest_counts(pair: list[Result]) -> None:
    board, workstation = pair
    older = dataclasses.replace(board, created="2025-01-01T00:00:00+00:00", measurements=board.measurements[:1])
    assert found(board, older, workstation) == found(older, board, workstation) == found(board, workstation)
    assert found(board, older) is None and found(board) is None


def test_machines_of_one_name_are_told_apart(made: Any) -> None:
    one, two = (made.result(made.one("fp32"), cpu="Same", architecture=name) for name in ("x86_64", "aarch64"))
    side = found(one, two)
    assert side is not None and side.machines == ("Same, x86_64", "Same, aarch64")
    board = made.result(made.one("fp32"), board="Same", cpu="Other", architecture="x86_64")
    side = found(one, board)
    assert side is not None and side.machines == ("Same, x86_64 (1)", "Same, x86_64 (2)")


def test_what_was_not_measured_or_does_not_ship_is_said(made: Any, pair: list[Result]) -> None:
    side = found(pair[0], made.result(made.missing("fp32", "it is gone"), cpu="Xeon"))
    assert side is not None and side.sentence == "pi4: ship int8; Xeon: nothing to ship."
    assert side.rows[0].cells[1] is not None and side.rows[0].cells[1].latency == "not measured: it is gone"


def test_the_report_begins_with_it_and_whatever_was_named_is_escaped(made: Any, pair: list[Result], tmp_path: Path) -> None:
    odd = dataclasses.replace(pair[0], machine={**pair[0].machine, "board": EVIL})
    write_results(odd, tmp_path / "board.json")
    write_report([read_results(tmp_path / "board.json"), pair[1]], tmp_path, Limits())
    page, text = ((tmp_path / f"report.{kind}").read_text() for kind in ("html", "md"))
    assert page.index("Machines side by side") < page.index("<section>") and EVIL not in page and page.count("ship fp32.") == 2
    assert "1.20 to 1.30" in page and '<td data-label="Xeon" class="chosen">' in page
    assert text.startswith("# Machines side by side") and EVIL not in text and "| 8.00 ms (1.25x, 1.20 to 1.30) (ship) |" in text
    assert "No speedup is given from one section to another" in text
    side = json.loads((tmp_path / "report.json").read_text())["across"]
    assert side["sentence"] == f"{EVIL}: ship int8; Xeon: ship fp32." and len(side["rows"]) == 3
    assert (tmp_path / "report.csv").read_text().splitlines()[0].startswith("created,board,cpu,")


def test_one_machine_has_none_of_it(made: Any, tmp_path: Path) -> None:
    write_report([made.result(made.one("fp32"))], tmp_path, Limits())
    assert "side by side" not in (tmp_path / "report.html").read_text() and (tmp_path / "report.md").read_text().startswith("# k49, toy")
    assert json.loads((tmp_path / "report.json").read_text())["across"] is None
