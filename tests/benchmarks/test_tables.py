import csv
import json
from typing import Any

import pytest

from compress.benchmarks.accuracy import Comparison
from compress.benchmarks.formats import MISSING
from compress.benchmarks.report import placed
from compress.benchmarks.tables import RAW, as_csv, as_json, p_value, tables
from compress.benchmarks.verdict import Limits, decide

COMPARED = Comparison(images=100, lost=(1, 2, 3), gained=(4,), p_value=0.375, recalls=(), worse_confusions=())


@pytest.fixture
def result(made: Any) -> Any:
    int8 = made.one("int8", 8e-4, ratio=(1.25, 1.2, 1.3), comparison=COMPARED, doubts=("the launches lie 20% apart",), sweeps=())
    return made.result(made.one("fp32"), int8, made.missing("gpu", "no CUDA device", device="cuda"))


def cell(result: Any, title: str, name: str, column: str) -> tuple[str, str]:
    (table,) = [table for table in tables(result, decide(result, Limits())) if table.title == title]
    (row,) = [row for row in table.rows if row.name == name]
    return next((value, interval) for label, value, interval in row.cells if label == column)


@pytest.mark.parametrize(
    ("title", "name", "column", "told"),
    [
        ("Variants", "int8", "p50, ms", ("0.800 (?)", "0.792 to 0.808")),
        ("Variants", "fp32", "p50, ms", ("1.00", "0.990 to 1.01")),
        ("Variants", "int8", "Speedup", ("1.25x", "1.20 to 1.30")),
        ("Variants", "fp32", "Balanced accuracy", ("97.00%", "96.70 to 97.40")),
        ("Scores", "int8", "Images lost and gained", ("-3 +1", "")),
        ("Scores", "int8", "McNemar's p", ("0.375", "")),
        ("Scores", "fp32", "Macro F1", (MISSING, "")),
        ("Other ways to run", "fp32", "Load, ms", ("20.0", "19.0 to 21.0")),
        ("Other ways to run", "fp32", "8 images, 1 thread, ms", ("4.00", "3.60 to 4.40")),
        ("Other ways to run", "fp32", "Most images/s", ("2,000", "batch 8, 1 thread")),
        ("Other ways to run", "int8", "Most images/s", (MISSING, "")),
        ("Cost", "fp32", "Activation memory", ("151 kB", "")),
        ("Cost", "fp32", "Share of the fp32 peak", ("48%", "")),
        ("Cost", "fp32", "Energy per image", ("12.5 mJ", "")),
    ],
)
def test_cells_by_hand(result: Any, title: str, name: str, column: str, told: tuple[str, str]) -> None:
    assert cell(result, title, name, column) == told


def test_not_measured_stands_in_the_first_table_only(result: Any) -> None:
    first, *others = tables(result, decide(result, Limits()))
    assert [(row.name, row.reason) for row in first.rows] == [("fp32", None), ("int8", None), ("gpu", "no CUDA device")]
    assert all([row.name for row in table.rows] == ["fp32", "int8"] for table in others)
    assert all(len(row.cells) == len(table.columns) for table in (first, *others) for row in table.rows if row.reason is None)


def test_time_on_the_gpu_alone_has_a_column_only_where_there_is_one(result: Any, made: Any) -> None:
    from compress.benchmarks.statistics import Interval

    column = "On the GPU alone, ms"
    columns = [table.columns for table in tables(result, decide(result, Limits()))][2]
    assert column not in columns
    gpu = made.one("gpu", device="cuda", on_device=Interval(value=1e-4, low=9e-5, high=1.1e-4))
    assert cell(made.result(made.one("fp32"), gpu), "Other ways to run", "gpu", column) == ("0.100", "0.0900 to 0.110")


def test_csv_has_plain_numbers_and_empty_fields_for_what_is_not_known(result: Any) -> None:
    lines = list(csv.DictReader(as_csv([result, result]).splitlines()))
    assert [line["name"] for line in lines] == ["fp32", "int8", "gpu"] * 2
    assert (lines[1]["latency_p50_s"], lines[1]["speedup_low"], lines[1]["lost"], lines[1]["mcnemar_p"]) == ("0.0008", "1.2", "3", "0.375")
    assert (lines[0]["balanced_accuracy_low"], lines[0]["images_per_s"], lines[0]["energy_j"]) == ("0.967", "2000.0", "0.0125")
    assert (lines[2]["reason"], lines[2]["latency_p50_s"], lines[2]["lost"], lines[2]["size_bytes"]) == (
        "no CUDA device",
        "",
        "",
        "1000000",
    )


def test_json_holds_everything_but_raw_samples_and_pictures(result: Any) -> None:
    found = json.loads(json.dumps(as_json(result, decide(result, Limits()))))
    assert found["verdict"]["ship"] == "int8" and found["machine"]["cpu"] == "Toy CPU"
    assert found["variants"][1]["comparison"]["lost"] == [1, 2, 3]
    assert not set(RAW) & found["variants"][0].keys() and "samples_ns" not in found["variants"][0]["sweeps"][0]


def test_chance_needs_no_more_digits_than_anyone_reads() -> None:
    assert (p_value(0.0309), p_value(4e-16), p_value(1.0)) == ("0.031", "< 0.001", "1.000")


def test_fallbacks_to_the_cpu_are_named(made: Any) -> None:
    placement = {"CPUExecutionProvider": {"QLinearConv": 2, "Cast": 1}, "CUDAExecutionProvider": {"Conv": 40}}
    assert (
        placed(made.one("a", device="cuda", placement=placement)) == "CUDA 40 nodes; fell back to the CPU: 3 nodes (QLinearConv 2, Cast 1)"
    )
    assert placed(made.one("a")) == "CPU 67 nodes"
    assert placed(made.one("a", placement={}, providers=("OpenVINO CPU",))) == "OpenVINO CPU"
