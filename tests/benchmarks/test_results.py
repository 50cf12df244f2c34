import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.artifacts.payloads import read_results
from compress.benchmarks.accuracy import compare_predictions
from compress.benchmarks.answers import as_text, from_text
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.pictures import flips
from compress.benchmarks.results import Choice, Finalist, write_results
from compress.benchmarks.statistics import Interval


def test_result_reads_back_as_it_was_written(made: Any, tmp_path: Path) -> None:
    labels, before, after = np.array([0, 1, 1, 2]), np.array([0, 1, 1, 0]), np.array([0, 2, 1, 2])
    compared = compare_predictions(labels, before, after, 3)
    pictures = flips(compared, np.zeros((4, 1, 2, 2), np.uint8), labels, before, after)
    other = made.one("int8", comparison=compared, flips=pictures, on_device=Interval(value=1.0, low=0.5, high=2.0), device_ns=((1,), (2,)))
    result = made.result(made.one("fp32"), other, made.missing("gone", "no CUDA device"), gpu=None)
    write_results(result, tmp_path / "new" / "benchmark.json")
    assert read_results(tmp_path / "new" / "benchmark.json") == result
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["benchmark.json"]
    assert json.loads((tmp_path / "new" / "benchmark.json").read_text())["version"] == 6


def test_lists_of_samples_take_one_line_and_names_stay_as_they_are(made: Any, tmp_path: Path) -> None:
    write_results(made.result(made.one("[ 1, 2 ]")), tmp_path / "benchmark.json")
    assert "[1000000,1000000]" in (tmp_path / "benchmark.json").read_text()
    assert read_results(tmp_path / "benchmark.json").measurements[0].name == "[ 1, 2 ]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"benchmark.json\): there is no such file"),
        ("", r"benchmark.json\) is damaged: Input data was truncated; write it anew with `compress benchmark`"),
        ('{"schema": "compress-bench', r"is damaged: Input data was truncated; write it anew"),
        ("[" * 100_000, r"is damaged: maximum recursion depth exceeded .*; write it anew"),
        ("\udcff", r"is damaged: .*can't decode byte 0xff.*; write it anew"),
        ("[1, 2]", "is not a benchmark's result"),
        ('{"cpu": "x"}', "is not a benchmark's result"),
        ('{"schema": "compress-benchmark", "version": 1}', "has schema version 1, this program reads version 6; write it anew"),
        ('{"schema": "compress-benchmark", "version": 3}', "is damaged: .*missing required field `?created`?; write it anew"),
    ],
)
def test_unusable_file_is_refused_in_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "benchmark.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BenchmarkError, match=message) as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("latency", {"p50": 1}, r"measurements\[0\].latency .*missing required field low"),
        ("size_bytes", "many", r"measurements\[0\].size_bytes must be int, not str"),
        ("size_bytes", True, r"measurements\[0\].size_bytes must be int, not bool"),
        ("size_bytes", -1, r"measurements\[0\].size_bytes must be int >= 0"),
        ("agreement", "all", r"measurements\[0\].agreement must be float \| null, not str"),
        ("agreement", float("nan"), r"is damaged: JSON is malformed"),
        ("scores", {"balanced_accuracy": None}, r"scores\[...\] must be float, not null"),
        ("scores", {"accuracy": 0.5}, r"'fp32' has no balanced_accuracy"),
        ("latency", None, r"'fp32' has neither a latency nor a reason"),
        ("comparison", {"images": 1}, r"comparison .*missing required field lost"),
        ("sweeps", [{"batch": 1}], r"sweeps\[0\] .*missing required field threads"),
        ("samples_ns", [[[1.5]]], r"samples_ns\[0\]\[0\]\[0\] must be int, not float"),
        ("facts", {"layers": [{"name": "conv", "weights": 4}]}, r"facts.layers\[0\] .*missing required field nonzeros"),
        ("facts", {"layers": 3}, r"facts.layers must be array, not int"),
        ("extra", 1, r"measurements\[0\]\.extra is unknown"),
    ],
)
def test_damaged_field_is_named(made: Any, tmp_path: Path, field: str, value: object, message: str) -> None:
    path = tmp_path / "benchmark.json"
    write_results(made.result(made.one("fp32")), path)
    raw = json.loads(path.read_text())
    raw["measurements"][0][field] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(BenchmarkError, match=message):
        read_results(path)


def test_baseline_must_be_a_measurement(made: Any, tmp_path: Path) -> None:
    write_results(made.result(made.one("fp32"), baseline=1), tmp_path / "benchmark.json")
    with pytest.raises(BenchmarkError, match=r"baseline names no measurement"):
        read_results(tmp_path / "benchmark.json")


def test_most_images_per_second_is_that_of_the_best_point(made: Any) -> None:
    best = made.one("fp32", 0.001).throughput
    assert (best.batch, best.images_per_second) == (8, 2000.0)
    assert made.missing("gone", "no").throughput is None


def test_answers_read_back_as_they_were_given(made: Any) -> None:
    result = made.result(made.one("fp32"), made.one("int8", answers=made.answering(lost=3, gained=2)), made.missing("gone", "no"))
    right = [
        None if answers is None else int((answers == result.true_labels).sum()) for answers in map(result.answers_of, result.measurements)
    ]
    assert right == [29_100, 29_099, None]


@pytest.mark.parametrize("classes", [1, 2, 256, 257, 65_536, 65_537])
def test_answers_take_as_few_bytes_as_the_classes_need(classes: int) -> None:
    indices = np.array([0, classes - 1, classes // 2, 0])
    text = as_text(indices, classes)
    assert len(base64.b64decode(text)) == 4 * (1 if classes <= 256 else 2 if classes <= 65_536 else 4)
    assert from_text(text, 4, classes).tolist() == indices.tolist()


def test_answers_by_hand() -> None:
    assert as_text(np.array([0, 1, 2]), 3) == "AAEC"
    assert as_text(np.array([1, 258]), 300) == "AQACAQ=="


def test_a_result_of_the_version_before_is_read_and_has_no_answers(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    result = made.result(made.one("fp32"), made.missing("gone", "no"))
    write_results(result, path)
    raw = json.loads(path.read_text()) | {"version": 2}
    del raw["labels"]
    for one in raw["measurements"]:
        del one["answers"], one["path"]
    path.write_text(json.dumps(raw))
    found = read_results(path)
    assert found.true_labels is None and found.answers_of(found.measurements[0]) is None
    assert [(one.name, one.latency) for one in found.measurements] == [(one.name, one.latency) for one in result.measurements]
    path.write_text(json.dumps(raw | {"version": 3}))
    with pytest.raises(BenchmarkError, match=r"is damaged: measurements\[0\]\.answers is missing|labels is missing"):
        read_results(path)
    path.write_text(json.dumps(raw | {"measurements": 3}))
    with pytest.raises(BenchmarkError, match=r"measurements must be array, not int"):
        read_results(path)


def test_a_result_of_version_5_is_read_and_has_no_temperatures(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    result = made.result(made.one("fp32"))
    write_results(result, path)
    raw = json.loads(path.read_text()) | {"version": 5}
    turns = [turn for one in raw["measurements"] for turn in one["turns"]]
    assert turns
    for turn in turns:
        del turn["celsius"], turn["throttled"]
    path.write_text(json.dumps(raw))
    assert [turn.celsius for one in read_results(path).measurements for turn in one.turns] == [None] * len(turns)
    path.write_text(json.dumps(raw | {"version": 6}))
    with pytest.raises(BenchmarkError, match=r"turns\[0\]\.celsius is missing"):
        read_results(path)


@pytest.mark.parametrize(
    ("labels", "answers", "data", "message"),
    [
        ("AAEC", "AAED", {}, r"answers of 'fp32' hold 3, and there are 3 classes"),
        ("AAEC", "AAECAAEC", {}, r"answers of 'fp32' have 8 characters, 3 images need 4"),
        ("AAEC", "", {}, r"answers of 'fp32' have 0 characters, 3 images need 4"),
        ("AAEC", "AA==", {}, r"answers of 'fp32' are not those of 3 images"),
        ("AAEC", "A!=C", {}, r"answers of 'fp32' are no base64"),
        ("/wEC", "AAEC", {}, r"labels hold 255, and there are 3 classes"),
        (None, "AAEC", {}, r"answers of 'fp32' are there without labels"),
        ("AAEC", "AAEC", {"classes": 0}, r"labels are of 0 classes"),
        ("AAEC", "AAEC", {"classes": -7}, r"labels are of -7 classes"),
        ("AAEC", "AAEC", {"images": 2**62}, r"labels have 4 characters, 4611686018427387904 images need 6148914691236517208"),
        ("AAEC", "AAEC", {"images": -3}, r"labels have 4 characters, -3 images need -4"),
    ],
)
def test_answers_that_are_none_are_refused(
    made: Any, tmp_path: Path, labels: str | None, answers: str, data: dict[str, int], message: str
) -> None:
    path = tmp_path / "benchmark.json"
    write_results(made.result(made.one("fp32", answers=answers)), path)
    raw = json.loads(path.read_text()) | {"labels": labels}
    raw["data"] |= {"images": 3, "classes": 3} | data
    path.write_text(json.dumps(raw))
    with pytest.raises(BenchmarkError, match=rf"is damaged: {message}; write it anew with `compress benchmark`") as caught:
        read_results(path)
    assert "\n" not in str(caught.value)


def test_a_result_from_before_bounds_were_kept_is_read_without_them(made: Any, tmp_path: Path) -> None:
    path, finalist = tmp_path / "benchmark.json", Finalist(what="int8", ratio=0.5, low=0.4, high=0.6, drop=0.1, size=9, bound=0.2)
    facts = {"choice": Choice(verdict="take it", tried=7, finalists=(finalist,))}
    write_results(made.result(made.one("fp32"), made.one("int8", facts=facts)), path)
    kept = read_results(path).measurements[1].choice
    assert kept is not None and kept.finalists == (finalist,)
    raw = json.loads(path.read_text()) | {"version": 3}
    del raw["measurements"][1]["facts"]["choice"]["finalists"][0]["bound"]
    path.write_text(json.dumps(raw))
    kept = read_results(path).measurements[1].choice
    assert kept is not None and kept.finalists == (dataclasses.replace(finalist, bound=None),)
    path.write_text(json.dumps(raw | {"measurements": [{"facts": {"choice": {"finalists": [7]}}}, 7]}))
    with pytest.raises(BenchmarkError, match="is damaged: "):
        read_results(path)
