"""Two results side by side: Welch's interval against scipy, the limits of CI, and what may not be compared."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from compress.benchmarks.accuracy import ScoreInterval
from compress.benchmarks.answers import as_text
from compress.benchmarks.compare import compare, rows, unpaired_speedup
from compress.benchmarks.drops import points_lost
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.results import Measurement, Result


def launches(*medians: float) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Samples in nanoseconds of which every launch has the given median in microseconds."""
    return tuple(((round(1e3 * median),) * 3,) * 2 for median in medians)


def score(value: float, margin: float = 0.004) -> dict[str, ScoreInterval]:
    return {"balanced_accuracy": ScoreInterval(value=value, low=value - margin, high=value + margin)}


def measured(made: Any, name: str, *medians: float, balanced: float = 0.97, margin: float = 0.004, **other: Any) -> Measurement:
    p50, scores = 1e-6 * float(np.median(medians)), score(balanced, margin)
    return made.one(name, p50, samples_ns=launches(*medians), intervals=scores, balanced=balanced, **other)


def older(result: Result) -> Result:
    """As a version wrote it that kept no answers."""
    without = tuple(dataclasses.replace(one, answers=None) for one in result.measurements)
    return dataclasses.replace(result, labels=None, measurements=without)


def test_interval_is_that_of_welch() -> None:
    """Seven launches against seven of another spread: 8.68 degrees of freedom, of which the 8 whole ones count."""
    generator = np.random.default_rng(2)
    logs = [generator.normal(13, sd, 7) for sd in (0.01, 0.03)]
    found = unpaired_speedup(*(np.round(np.exp(one)).astype(np.int64)[:, None, None] for one in logs))
    welch = stats.ttest_ind(*logs, equal_var=False)
    whole = math.floor(welch.df)
    assert found.value == pytest.approx(math.exp(logs[0].mean() - logs[1].mean()), rel=1e-5)
    margin = (logs[0].mean() - logs[1].mean()) / welch.statistic * stats.t.ppf(0.975, whole)
    assert math.log(found.high / found.value) == pytest.approx(margin, rel=1e-3)
    assert math.log(found.value / found.low) == pytest.approx(margin, rel=1e-3)
    exact = welch.confidence_interval(0.95)
    assert math.log(found.low) <= exact.low and exact.high <= math.log(found.high)


@pytest.mark.parametrize(("medians", "expected"), [(((1, 1), (2, 2)), (0.5, 0.5, 0.5)), (((3, 3), (3, 3)), (1, 1, 1))])
def test_speedup_by_hand(medians: tuple[tuple[float, ...], tuple[float, ...]], expected: tuple[float, ...]) -> None:
    found = unpaired_speedup(*(np.array(launches(*one)) for one in medians))
    assert (found.value, found.low, found.high) == pytest.approx(expected)


def test_interval_holds_the_truth_in_95_of_100_pairs_of_runs() -> None:
    generator, held = np.random.default_rng(0), 0
    for _ in range(1000):
        old, new = (np.exp(generator.normal(math.log(mean), sd, (5, 1, 1))) * 1e9 for mean, sd in ((1.0, 0.01), (1.1, 0.02)))
        found = unpaired_speedup(old, new)
        held += found.low <= 1 / 1.1 <= found.high
    assert 0.94 <= held / 1000 <= 0.98  # whole degrees of freedom make it a little too wide


def test_points_lost_by_hand() -> None:
    found = points_lost(ScoreInterval(value=0.97, low=0.967, high=0.974), ScoreInterval(value=0.96, low=0.956, high=0.963))
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1 - math.hypot(0.3, 0.3), 1 + math.hypot(0.4, 0.4)))


@pytest.mark.parametrize(
    ("medians", "limit", "too_slow"),
    [
        ((110, 110.2, 109.8), 5.0, True),
        ((110, 110.2, 109.8), 10.5, False),  # slower, but not by so much
        ((110, 160, 90), 5.0, False),  # on average by much, but not surely
        ((104, 104.2, 103.8), 5.0, False),
        ((100.5, 100.5, 100.5), 0.0, True),
        ((90, 90, 90), 0.0, False),
        ((200, 200, 200), None, False),
    ],
)
def test_only_a_whole_interval_beyond_the_limit_is_too_slow(
    made: Any, medians: tuple[float, ...], limit: float | None, too_slow: bool
) -> None:
    old, new = (made.result(measured(made, "fp32", *values)) for values in ((100, 100.2, 99.8), medians))
    found = compare(old, new, slower=limit)
    assert (found.changes[0].too_slow, found.fails) == (too_slow, too_slow)


@pytest.mark.parametrize(("balanced", "limit", "fails"), [(0.95, 1.0, True), (0.95, 1.5, False), (0.98, 0.0, False), (0.5, None, False)])
def test_only_a_sure_loss_is_too_inaccurate_without_answers(made: Any, balanced: float, limit: float | None, fails: bool) -> None:
    """97% and 95%, both +- 0.4: 2 points, +- 0.57."""
    old, new = (older(made.result(measured(made, "fp32", 100, 101, balanced=value))) for value in (0.97, balanced))
    found = compare(old, new, less_accurate=limit)
    assert found.fails is fails and not found.changes[0].paired
    assert found.remarks[1].endswith("which is too wide: the old result and the new result kept no answers; measure again.")


def test_the_same_images_are_compared_one_by_one(made: Any) -> None:
    """200 lost and 60 gained of 14,100 are 0.77 to 1.22 points; as two intervals of 0.45 points each, 0.36 to 1.63."""
    truth, read = np.zeros(14_100, int), np.ones(14_100, bool)
    read[:700] = False
    now = read.copy()
    now[640:900] = np.arange(260) < 60
    assert (np.count_nonzero(read & ~now), np.count_nonzero(now & ~read)) == (200, 60)
    results = []
    for right in (read, now):
        one = measured(made, "fp32", 100, 101, balanced=float(right.mean()), margin=0.0045, answers=as_text(~right, 2))
        result = dataclasses.replace(made.result(one), labels=as_text(truth, 2))
        results.append(dataclasses.replace(result, data={**result.data, "images": 14_100, "classes": 2}))
    found = compare(*results, less_accurate=0.5)
    drop = found.changes[0].drop
    assert (drop.value, drop.low, drop.high) == pytest.approx((0.993, 0.77, 1.22), abs=0.01)
    assert found.changes[0].paired and found.fails and len(found.remarks) == 1
    assert not compare(*results, less_accurate=0.8).fails
    for pair in ((older(results[0]), results[1]), (results[0], older(results[1]))):
        strangers = compare(*pair, less_accurate=0.5)
        drop = strangers.changes[0].drop
        assert (drop.low, drop.high) == pytest.approx((0.36, 1.63), abs=0.01)
        assert not strangers.fails and "too wide: the " in strangers.remarks[1]


def test_other_labels_under_one_name_are_refused(made: Any) -> None:
    old = made.result(measured(made, "fp32", 1, 2))
    with pytest.raises(BenchmarkError, match=r"labels of the two results differ although their data have one name; measure both"):
        compare(old, dataclasses.replace(old, labels=as_text(np.zeros(30_000, int), 3)))


def test_table_and_remarks_say_what_a_reader_must_know(made: Any) -> None:
    old = made.result(
        measured(made, "fp32", 100, 100.4), made.missing("fp32", "no CUDA device", device="cuda"), measured(made, "int8", 50, 50, 50)
    )
    new = made.result(
        measured(made, "int8", 60, 60, 60, doubts=("drifts",)),
        measured(made, "fp32", 99, 103, balanced=0.965), measured(made, "new", 1, 2),
        libraries={"numpy": "2.5"},
    )  # fmt: skip
    found = compare(old, new, slower=5)
    columns = ("candidate", "p50 old", "p50 new", "balanced acc. old", "new", "verdict")
    assert [tuple(row[column] for column in columns) for row in rows(found)] == [
        ("fp32 (onnxruntime, cpu)", "0.100 ms", "0.101 ms", "97.00%", "96.50%", "no clear change"),
        ("int8 (onnxruntime, cpu)", "0.0500 ms", "0.0600 ms", "97.00%", "97.00%", "too slow"),
    ]
    assert rows(found)[1]["speedup (95%)"] == "0.83x (0.83 to 0.83)"
    assert rows(found)[1]["points lost (95%)"] == "0.00 (-0.01 to 0.01)"
    assert found.remarks[0].startswith("Intervals are unpaired: two runs at different times")
    assert found.remarks[1:] == (
        "fp32 (onnxruntime, cuda): was not measured before: no CUDA device",
        "int8 (onnxruntime, cpu), new: drifts",
        "new (onnxruntime, cpu): new, nothing to compare it with",
        "libraries differ: numpy was 2.4, is 2.5",
    )


def with_changes(result: Result, part: str, **changes: Any) -> Result:
    return dataclasses.replace(result, **{part: {**getattr(result, part), **changes}})


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "machine",
            {"cpu": "Other"},
            r"machines of the two results differ: cpu was Toy CPU, is Other; measure both results on one machine",
        ),
        ("machine", {"flags": ["avx2", "fma"]}, r"machines of the two results differ: flags lost none, gained fma; measure"),
        ("machine", {"cores": 4}, r"machines of the two results differ: cores was not known, is 4"),
        ("settings", {"threads": 2}, r"settings of the two results differ: threads was 1, is 2; measure both with the same ones"),
        ("data", {"fingerprint": "beef"}, r"data of the two results differ: fingerprint was f00d, is beef; measure both on the same test"),
    ],
)
def test_unlike_results_are_refused(made: Any, part: str, changes: dict[str, Any], message: str) -> None:
    old = made.result(measured(made, "fp32", 1, 2))
    with pytest.raises(BenchmarkError, match=message):
        compare(old, with_changes(old, part, **changes))


def test_what_cannot_be_compared_is_refused(made: Any) -> None:
    good, gone = measured(made, "fp32", 1, 2), made.missing("fp32", "the process ended by SIGABRT")
    with pytest.raises(
        BenchmarkError, match=r"candidate \(=fp32 \(onnxruntime, cpu\)\) of the old result is missing in the new one; measure"
    ):
        compare(made.result(good), made.result(measured(made, "int8", 1, 2)))
    with pytest.raises(BenchmarkError, match=r"candidate \(=fp32 .*\) was measured before and is not now: the process ended by SIGABRT"):
        compare(made.result(good), made.result(gone))
    with pytest.raises(BenchmarkError, match=r"old result \(=nothing measured\) has no candidate"):
        compare(made.result(gone), made.result(good))
    with pytest.raises(BenchmarkError, match=r"samples \(of fp32 .*\) must be of at least 2 launches for an interval"):
        compare(made.result(good), made.result(measured(made, "fp32", 1)))
    with pytest.raises(BenchmarkError, match=r"balanced_accuracy \(of fp32 .*\) has no interval to compare by"):
        compare(older(made.result(good)), made.result(dataclasses.replace(good, intervals={})))
    with pytest.raises(BenchmarkError, match=r"fail if slower \(=-1\) must be 0 or more"):
        compare(made.result(good), made.result(good), slower=-1)
    for limit in (math.inf, math.nan):
        with pytest.raises(BenchmarkError, match=rf"fail if less accurate \(={limit}\) must be 0 or more"):
            compare(made.result(good), made.result(good), less_accurate=limit)


def test_one_candidate_that_fails_is_enough(made: Any) -> None:
    old = made.result(measured(made, "fp32", 100, 100.2, 99.8), measured(made, "int8", 50, 50.1, 49.9))
    new = made.result(measured(made, "fp32", 100, 100.2, 99.8), measured(made, "int8", 60, 60.1, 59.9))
    found = compare(old, new, slower=5)
    assert ([one.too_slow for one in found.changes], found.fails) == ([False, True], True)
    assert [row["verdict"] for row in rows(found)] == ["no clear change", "too slow"]
    still = made.result(measured(made, "fp32", 100, 100))
    assert [row["verdict"] for row in rows(compare(still, still))] == ["no clear change"]
    assert [row["verdict"] for row in rows(compare(old, new))] == ["no clear change", "slower"]
    assert [row["verdict"] for row in rows(compare(new, old))] == ["no clear change", "faster"]
    both = compare(
        old, made.result(measured(made, "fp32", 200, 200), measured(made, "int8", 50, 50, balanced=0.9)), slower=5, less_accurate=1
    )
    assert [row["verdict"] for row in rows(both)] == ["too slow", "too inaccurate"]


def test_a_disturbed_call_costs_nothing_and_few_launches_are_believed_little() -> None:
    quiet, disturbed = np.full((3, 2, 5), 1_000), np.full((3, 2, 5), 1_000)
    disturbed[:, 0, 0] = 90_000
    assert unpaired_speedup(quiet, disturbed).value == pytest.approx(1)
    # Logarithms 0 and 0.02 of two launches, 0 and 0 of the others: one degree of freedom, deviation 0.02 / sqrt 2, margin 12.706 * 0.01.
    two = (1e9 * np.exp([0, 0.02])).astype(np.int64)[:, None, None]
    found = unpaired_speedup(two, np.full((2, 1, 1), 10**9))
    assert math.log(found.high / found.value) == pytest.approx(12.706 * 0.01, rel=1e-5)


@pytest.mark.parametrize("samples", [(((1, 2),), ()), (((1, 2),), ((),)), (((1, 2), ()), ((1, 2), (3, 4)))])
def test_launches_without_samples_are_refused(made: Any, samples: Any) -> None:
    good = made.result(measured(made, "fp32", 1, 2))
    bad = made.result(dataclasses.replace(good.measurements[0], samples_ns=samples))
    with pytest.raises(BenchmarkError, match=r"samples \(of fp32 .*\) must be of at least 2 launches for an interval"):
        compare(good, bad)


def test_a_fact_that_only_one_machine_tells_is_a_difference(made: Any) -> None:
    old = made.result(measured(made, "fp32", 1, 2))
    with pytest.raises(BenchmarkError, match=r"flags was \['avx2'\], is not known"):
        compare(old, with_changes(old, "machine", flags=None))
    with pytest.raises(BenchmarkError, match=r"flags was not known, is \['avx2'\]"):
        compare(with_changes(old, "machine", flags=None), old)


def test_libraries_that_only_one_result_tells_are_a_remark(made: Any) -> None:
    old = made.result(measured(made, "fp32", 1, 2))
    new = dataclasses.replace(old, machine={name: fact for name, fact in old.machine.items() if name != "libraries"})
    assert compare(old, new).remarks[1:] == ("libraries differ: numpy was 2.4, is not known",)
    assert compare(new, old).remarks[1:] == ("libraries differ: numpy was not known, is 2.4",)
