"""What ships and why, on results made up by hand."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from compress.benchmarks.answers import as_text
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.paired import Drop
from compress.benchmarks.results import Result, Scoring, damage
from compress.benchmarks.statistics import Speedup, speedup
from compress.benchmarks.verdict import Limits, between, decide, surely_faster, surely_slower

SLOWER, SAME, FASTER = (0.87, 0.84, 0.90), (1.01, 0.98, 1.04), (1.25, 1.20, 1.30)


def few(result: Result, images: int, lost: int, gained: int = 0) -> Result:
    """The same with so many test images of one class, of which the second variant loses and gains some."""
    before, after = np.arange(images) % 20 == 0, np.arange(images) % 20 == 0  # what is misread
    after[np.flatnonzero(~before)[:lost]] = True
    after[np.flatnonzero(before)[:gained]] = False
    first, second, *others = result.measurements
    scores = [{"balanced_accuracy": float(1 - wrong.mean())} for wrong in (before, after)]
    told = [
        dataclasses.replace(one, answers=as_text(wrong, 2), scores=score)
        for one, wrong, score in zip((first, second), (before, after), scores, strict=True)
    ]
    told += [dataclasses.replace(one, answers=as_text(before, 2), scores=scores[0]) for one in others]
    about = {**result.data, "images": images, "classes": 2}
    return dataclasses.replace(result, measurements=tuple(told), labels=as_text(np.zeros(images, int), 2), data=about)


def test_faster_variant_within_the_drop_ships(made: Any) -> None:
    verdict = decide(
        made.result(
            made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, balanced=0.969, size_bytes=300_000), made.one("pruned", ratio=SAME)
        ),
        Limits(),
    )
    assert (verdict.ship, verdict.path, verdict.decided, verdict.unproved) == ("int8", "runs/int8/model.onnx", "bound", None)
    assert str(verdict) == verdict.headline
    assert verdict.headline == (
        "Ship int8: it is faster than fp32 (1.25x, 95% interval 1.20 to 1.30), loses 0.10 points of balanced accuracy (97.00% to 96.90%, "
        "at most 0.14 lost with 95% confidence) and its file has 300 kB instead of 1.00 MB. The file: runs/int8/model.onnx."
    )
    assert verdict.reasons == (
        "fp32: the baseline, 1.00 ms.",
        "pruned: not chosen, it is not clearly faster or slower than fp32 (1.01x, 95% interval 0.98 to 1.04).",
    )
    assert verdict.loss is not None and verdict.loss.paired and verdict.loss.drop.value == pytest.approx(0.1)


def test_fastest_of_several_faster_ones_ships(made: Any) -> None:
    verdict = decide(made.result(made.one("fp32"), made.one("a", 9e-4, ratio=FASTER), made.one("b", 8e-4, ratio=FASTER)), Limits())
    assert verdict.ship == "b"
    assert any(reason.startswith("a: not chosen, it is faster than fp32") for reason in verdict.reasons)


def test_of_two_that_are_as_fast_the_smaller_ships(made: Any) -> None:
    big = made.one("big", 7.9e-4, ratio=(1.27, 1.21, 1.32), samples_ns=made.samples(7.7e-4, 8.1e-4))
    small = made.one("small", 8e-4, ratio=FASTER, size_bytes=300_000, samples_ns=made.samples(8e-4, 8e-4))
    fp32 = made.one("fp32", samples_ns=made.samples(1e-3, 1e-3))
    verdict = decide(made.result(fp32, big, small), Limits())
    assert verdict.ship == "small"
    assert any(reason.endswith("but not clearly faster than small, and larger.") for reason in verdict.reasons)
    surely = made.one("big", 5e-4, ratio=(2.0, 1.9, 2.1), samples_ns=made.samples(5e-4, 5.1e-4))
    assert decide(made.result(fp32, surely, small), Limits()).ship == "big"


def noisy(truth: float, shared: np.ndarray, generator: np.random.Generator) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Five launches of four rounds of five calls; ``shared`` is the noise of the machine in each launch, the same for all files."""
    own = generator.normal(0, 0.004, (5, 1, 1)) + generator.normal(0, 0.004, (5, 4, 5))
    return tuple(tuple(map(tuple, launch)) for launch in (1e9 * truth * np.exp(shared + own)).astype(np.int64).tolist())


def test_ratios_of_the_same_rounds_decide_between_two_that_are_faster(made: Any) -> None:
    """A file 2.5% slower and smaller: the intervals over the baseline overlap, and round by round it is slower. It used to ship."""
    generator, overlapped, shipped = np.random.default_rng(0), 0, 0
    for _ in range(100):
        shared = generator.normal(0, 0.01, (5, 1, 1))
        times = {"fp32": 1e-3, "fast": 5e-4, "small": 5.125e-4}
        samples = {name: noisy(truth, shared if name != "fp32" else shared * 0, generator) for name, truth in times.items()}
        ratios = {name: speedup(np.array(samples["fp32"]), np.array(samples[name])) for name in times}
        rows = [
            made.one(name, truth, samples_ns=samples[name], size_bytes=size, ratio=dataclasses.astuple(ratios[name]))
            for (name, truth), size in zip(times.items(), (900, 900, 300), strict=True)
        ]
        overlapped += ratios["small"].high >= ratios["fast"].low
        shipped += decide(made.result(*rows), Limits()).ship == "small"
    assert overlapped > 50 and shipped <= 10


def test_between_any_two_is_the_ratio_of_their_rounds(made: Any) -> None:
    one, other = made.one("a", samples_ns=made.samples(1e-3, 3e-3)), made.one("b", samples_ns=made.samples(5e-4, 1.5e-3))
    assert (between(one, other).value, between(other, one).value) == pytest.approx((2, 0.5))
    assert between(one, other).low == pytest.approx(2)


def test_slower_int8_does_not_ship(made: Any) -> None:
    verdict = decide(made.result(made.one("fp32"), made.one("int8", 1.15e-3, ratio=SLOWER, size_bytes=300_000)), Limits())
    assert (verdict.ship, verdict.decided, verdict.headline) == (
        "fp32",
        "bound",
        "Ship fp32: int8 is slower here (0.87x, 95% interval 0.84 to 0.90). The file: runs/fp32/model.onnx.",
    )


@pytest.mark.parametrize("ratio", [SAME, (1.008, 1.005, 1.011)])
def test_lower_median_is_not_faster_while_the_interval_holds_one_or_the_gain_is_under_one_percent(made: Any, ratio: Any) -> None:
    assert decide(made.result(made.one("fp32"), made.one("int8", 9.9e-4, ratio=ratio)), Limits()).ship == "fp32"


def test_smaller_variant_that_is_not_slower_is_the_alternative_for_size(made: Any) -> None:
    one = made.result(made.one("fp32"), made.one("int8", ratio=SAME, size_bytes=300_000))
    verdict = decide(one, Limits())
    assert verdict.ship == "fp32"
    assert (
        " If size counts more, take int8: it keeps balanced accuracy (97.00% to 97.00%, at most 0.01 lost with 95% confidence) and its "
        "file has 300 kB instead of 1.00 MB, and it is not clearly slower (1.01x, 95% interval 0.98 to 1.04): runs/int8/model.onnx."
        in verdict.headline
    )
    assert (
        "1.04), but it is not proved within 0.5 points with 360 images: 0.00 lost as counted" in decide(few(one, 360, 0), Limits()).headline
    )


@pytest.mark.parametrize(("lost", "limit", "ships"), [(129, 0.5, "int8"), (130, 0.5, "fp32"), (150, 0.6, "int8"), (0, 0.0, "fp32")])
def test_the_bound_decides_and_not_the_drop_as_counted(made: Any, lost: int, limit: float, ships: str) -> None:
    """129 of 30,000 are 0.430 points, and at most 0.4975; 130 are 0.433, at most 0.5011."""
    rows = made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, balanced=0.97 - lost / 30_000, answers=made.answering(lost))
    verdict = decide(made.result(*rows), Limits(max_drop=limit))
    assert (verdict.ship, verdict.decided) == (ships, "bound")
    accepted = decide(made.result(*rows), Limits(max_drop=limit, accept_unproved=True))
    assert (accepted.ship, accepted.decided) == ("int8", "bound" if ships == "int8" else "point estimate")


@pytest.mark.parametrize(("lost", "ships"), [(150, "int8"), (153, "fp32")])
def test_drop_of_exactly_the_limit_is_allowed_where_the_drop_as_counted_decides(made: Any, lost: int, ships: str) -> None:
    rows = made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, balanced=0.97 - lost / 30_000)
    verdict = decide(made.result(*rows), Limits(accept_unproved=True))
    assert verdict.ship == ships
    if ships == "fp32":
        assert "but loses 0.51 points of balanced accuracy, 0.5 are allowed" in verdict.headline


def test_what_few_images_cannot_prove_is_named_with_what_would_tell(made: Any) -> None:
    one = few(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, size_bytes=300_000)), 360, 1)
    verdict = decide(one, Limits())
    assert (verdict.ship, verdict.path, verdict.decided) == ("fp32", "runs/fp32/model.onnx", "bound")
    assert (verdict.unproved, verdict.unproved_path) == ("int8", "runs/int8/model.onnx")
    assert verdict.headline == (
        "Ship fp32: nothing faster is proved. int8 is faster (1.25x, 95% interval 1.20 to 1.30), but not proved within 0.5 points with 360 "
        "images: 0.28 lost as counted, at most 1.31 lost with 95% confidence; about 2,900 images would tell. `compress report "
        "--accept-unproved` ships int8: runs/int8/model.onnx. The file of fp32: runs/fp32/model.onnx."
    )
    accepted = decide(one, Limits(accept_unproved=True))
    assert (accepted.ship, accepted.decided, accepted.unproved) == ("int8", "point estimate", None)
    assert accepted.headline.startswith("Ship int8: it is faster than fp32 (1.25x, 95% interval 1.20 to 1.30), loses 0.28 points")
    assert " It is not proved within 0.5 points with 360 images: 0.28 lost as counted, at most 1.31 lost" in accepted.headline
    assert accepted.headline.endswith("about 2,900 images would tell; that was accepted. The file: runs/int8/model.onnx.")


def test_a_gain_that_proves_nothing_is_told_as_a_gain(made: Any) -> None:
    one = few(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER)), 360, 0, gained=1)
    assert "not proved within 0.5 points with 360 images: 0.28 gained as counted, at most 0.59 lost" in decide(one, Limits()).headline


def test_a_proved_variant_ships_and_the_faster_unproved_one_is_named(made: Any) -> None:
    rows = made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER), made.one("tiny", 4e-4, ratio=(2.5, 2.4, 2.6), balanced=0.9653)
    verdict = decide(made.result(*rows), Limits())
    assert (verdict.ship, verdict.unproved, verdict.unproved_path) == ("int8", "tiny", "runs/tiny/model.onnx")
    assert "tiny is faster than fp32 (2.50x, 95% interval 2.40 to 2.60), but not proved within 0.5 points with 30,000" in verdict.headline
    assert verdict.reasons[1].startswith(
        "tiny: not chosen, it is faster than fp32 (2.50x, 95% interval 2.40 to 2.60) and not proved within"
    )
    assert decide(made.result(*rows), Limits(accept_unproved=True)).ship == "tiny"


def test_a_result_without_answers_is_judged_by_two_intervals_and_says_so(made: Any) -> None:
    rows = [dataclasses.replace(one, answers=None) for one in (made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER))]
    one = dataclasses.replace(made.result(*rows), labels=None)
    verdict = decide(one, Limits(max_drop=0.4))
    assert verdict.ship == "fp32" and verdict.unproved == "int8"
    assert (
        "at most 0.50 lost with 95% confidence; this benchmark kept no answers to compare one by one, `compress benchmark"
        in verdict.headline
    )
    assert decide(one, Limits(max_drop=0.5)).ship == "int8"
    blind = dataclasses.replace(one, measurements=tuple(dataclasses.replace(row, intervals={}) for row in rows))
    assert decide(blind, Limits(max_drop=50)).ship == "fp32"


def test_doubts_of_the_two_rows_stand_in_the_sentence_with_what_to_do(made: Any) -> None:
    busy, steps = "had to wait for the processor 20% of the time, other programs were running", "the clock's steps of 9 ns are 2% of a call"
    fp32, other = made.one("fp32", doubts=("drifts", busy)), made.one("slow", 2e-3, ratio=SLOWER, doubts=("two heaps",))
    verdict = decide(made.result(fp32, made.one("int8", 8e-4, ratio=FASTER), other), Limits())
    assert (
        "it is faster than fp32 (1.25x, 95% interval 1.20 to 1.30; doubtful, fp32: drifts and 1 more; measure again with nothing else "
        "running: `compress benchmark --force`), keeps" in verdict.headline
    )
    assert verdict.doubts == ("fp32: drifts", f"fp32: {busy}")
    assert verdict.cure == "measure again with nothing else running: `compress benchmark --force`"
    both = decide(made.result(fp32, made.one("int8", 8e-4, ratio=FASTER, doubts=(steps,))), Limits())
    assert (
        "; doubtful, int8: the clock's steps of 9 ns are 2% of a call, fp32: drifts and 1 more; measure again with more images"
        in both.headline
    )
    calm = decide(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER), other), Limits())
    assert (calm.doubts, calm.cure) == ((), None) and "doubt" not in calm.headline


@pytest.mark.parametrize("ratio", [SLOWER, SAME, FASTER])
def test_doubts_stand_in_every_kind_of_verdict(made: Any, ratio: Any) -> None:
    rows = made.one("fp32", doubts=("drifts",)), made.one("int8", 8e-4, ratio=ratio, size_bytes=300_000)
    for one, limits in (
        (made.result(*rows), Limits()),
        (few(made.result(*rows), 360, 1), Limits()),
        (made.result(*rows), Limits(max_size=400_000)),
    ):
        assert "; doubtful, fp32: drifts; measure again with nothing else running" in decide(one, limits).headline
        assert decide(one, limits).doubts == ("fp32: drifts",)


def test_limit_that_the_baseline_breaks_ships_what_keeps_it_and_says_that_it_is_slower(made: Any) -> None:
    one = made.result(made.one("fp32"), made.one("int8", 1.15e-3, ratio=SLOWER, size_bytes=300_000))
    verdict = decide(one, Limits(max_size=400_000))
    assert verdict.ship == "int8"
    assert (
        "for the limits, not for speed (0.87x, 95% interval 0.84 to 0.90 against fp32): fp32 takes 1.00 MB, 400 kB are" in verdict.headline
    )
    assert " allowed. int8 takes 1.15 ms and keeps balanced accuracy (97.00% to 97.00%" in verdict.headline


def test_limits_that_nothing_keeps_name_the_nearest(made: Any) -> None:
    one = made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER), made.one("bad", 1e-4, ratio=FASTER, balanced=0.5))
    verdict = decide(one, Limits(max_latency=0.5))
    assert (verdict.ship, verdict.headline) == (
        None,
        "Ship nothing yet: no variant keeps the limits. Nearest is int8: it takes 0.800 ms, 0.5 ms are allowed.",
    )
    assert len(verdict.reasons) == 3 and verdict.decided is None and verdict.path is None


def test_limits_that_nothing_is_proved_to_keep_name_what_keeps_them_as_counted(made: Any) -> None:
    one = few(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, size_bytes=300_000)), 360, 0)
    verdict = decide(one, Limits(max_size=400_000))
    assert (verdict.ship, verdict.unproved) == (None, "int8")
    assert verdict.headline.startswith(
        "Ship nothing yet: no variant is proved to keep the limits. int8 is not proved within 0.5 points with"
    )
    assert verdict.headline.endswith("about 600 images would tell. `compress report --accept-unproved` ships int8: runs/int8/model.onnx.")


def test_a_file_ships_in_the_runtime_in_which_it_is_fast(made: Any) -> None:
    lite = made.one("int8", 7e-4, ratio=(1.43, 1.40, 1.46), runtime="litert", path="runs/int8/model.tflite", size_bytes=300_000)
    as_c = made.one("int8", 5e-4, ratio=(2.0, 1.9, 2.1), runtime="c", size_bytes=290_000)
    onnx = made.one("int8", 8e-4, ratio=FASTER)
    verdict = decide(made.result(made.one("fp32"), onnx, lite), Limits())
    assert (verdict.ship, verdict.runtime, verdict.called, verdict.path) == ("int8", "litert", "int8 in LiteRT", "runs/int8/model.tflite")
    assert verdict.headline.startswith("Ship int8 in LiteRT: it is faster than fp32 (1.43x, 95% interval 1.40 to 1.46), keeps balanced")
    assert [verdict.ships(one) for one in (onnx, lite, as_c)] == [False, True, False]
    assert any(reason.startswith("int8: not chosen, it is faster than fp32 (1.25x") for reason in verdict.reasons)
    assert decide(made.result(made.one("fp32"), onnx, lite, as_c), Limits()).called == "int8 as C"


def test_of_one_file_that_is_as_fast_in_two_runtimes_onnx_runtime_ships(made: Any) -> None:
    """Whatever the order, and although OpenVINO's median is a little less: there is nothing else to install."""
    onnx = made.one("int8", 8e-4, ratio=FASTER, samples_ns=made.samples(8e-4, 8.1e-4))
    openvino = made.one("int8", 7.99e-4, ratio=FASTER, runtime="openvino", samples_ns=made.samples(8.1e-4, 7.9e-4))
    for order in ((onnx, openvino), (openvino, onnx)):
        assert decide(made.result(made.one("fp32", samples_ns=made.samples(1e-3, 1e-3)), *order), Limits()).runtime == "onnxruntime"


def test_a_baseline_in_another_runtime_is_called_by_it(made: Any) -> None:
    rows = made.one("net", runtime="litert"), made.one("small", 2e-3, ratio=(0.5, 0.4, 0.6), runtime="litert")
    verdict = decide(made.result(*rows), Limits())
    assert verdict.headline.startswith("Ship net in LiteRT: small in LiteRT is slower here (0.50x, 95% interval 0.40 to 0.60)")


def test_only_files_on_the_cpu_are_chosen_from(made: Any) -> None:
    torch, cuda = made.one("fp32", 1e-5, ratio=FASTER, runtime="torch"), made.one("int8", 1e-5, ratio=FASTER, device="cuda")
    verdict = decide(made.result(made.one("fp32"), torch, cuda, made.missing("broken", "no")), Limits())
    told = "Ship fp32: nothing else was measured that ships. The file: runs/fp32/model.onnx."
    assert (verdict.ship, verdict.headline) == ("fp32", told)


def test_no_verdict_without_a_baseline(made: Any) -> None:
    verdict = decide(made.result(made.missing("fp32", "no such file"), made.one("int8", speedup=None)), Limits())
    assert (verdict.ship, verdict.headline) == (None, "No verdict: the baseline, fp32, was not measured: no such file.")
    assert decide(made.result(made.one("fp32", runtime="torch")), Limits()).ship is None


def test_a_path_from_a_file_stays_on_its_line(made: Any) -> None:
    verdict = decide(made.result(made.one("fp32", path="runs/\n\x1b[2Jx.onnx")), Limits())
    assert verdict.headline.endswith("The file: runs/??[2Jx.onnx.")
    assert decide(made.result(made.one("fp32", path=None, artifact="0123456789abcdef")), Limits()).headline.endswith(
        "model.onnx of 0123456789ab."
    )


@pytest.mark.parametrize(("ratio", "faster", "slower"), [((1.25, 1.0, 1.5), False, False), ((0.8, 0.7, 1.0), False, False)])
def test_an_interval_that_ends_at_one_says_nothing(ratio: Any, faster: bool, slower: bool) -> None:
    value, low, high = ratio
    touching, clear = Speedup(value=value, low=low, high=high), Speedup(value=value, low=low + 1e-9, high=high - 1e-9)
    assert (surely_faster(touching), surely_slower(touching)) == (faster, slower)
    assert (surely_faster(clear), surely_slower(clear)) == (value > 1, value < 1)


def test_a_change_of_exactly_one_percent_is_worth_the_name() -> None:
    assert surely_faster(Speedup(value=1.01, low=1.001, high=1.02)) and not surely_faster(Speedup(value=1.0099, low=1.001, high=1.02))
    assert surely_slower(Speedup(value=0.99, low=0.98, high=0.999)) and not surely_slower(Speedup(value=0.9901, low=0.98, high=0.999))


def test_the_baseline_loses_nothing_for_sure(made: Any) -> None:
    found = decide(made.result(made.one("fp32"), made.one("int8", 1.15e-3, ratio=SLOWER)), Limits(max_drop=0.0))
    assert found.ship == "fp32" and found.decided == "bound" and found.loss is not None
    assert found.loss.drop == Drop(value=0.0, low=0.0, high=0.0, bound=0.0, images=30_000)


def test_limits_are_allowed_to_be_reached(made: Any) -> None:
    """0.8 ms and 300,000 bytes."""
    one = made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, size_bytes=300_000))
    assert decide(one, Limits(max_latency=0.8, max_size=300_000)).ship == "int8"
    assert decide(one, Limits(max_latency=0.799)).ship is None
    assert decide(one, Limits(max_size=299_999)).ship is None
    told = decide(one, Limits(max_latency=0.799, max_size=299_999)).headline
    assert told.endswith("Nearest is int8: it takes 0.800 ms, 0.799 ms are allowed and takes 300 kB, 300 kB are allowed.")


@pytest.mark.parametrize(
    ("limits", "nearest"),
    [
        (Limits(max_latency=0.5), "quick"),  # 0.6, 0.8 and 1 ms
        (Limits(max_size=100_000), "small"),  # 900, 300 and 1000 kB
        (Limits(max_latency=0.5, max_size=250_000), "small"),  # 1.2 and 3.6 times too much, 1.6 and 1.2 times
        (Limits(max_latency=0.1, max_size=250_000), "quick"),  # 6 and 3.6 times too much, 8 and 1.2 times
        (Limits(max_latency=0.5, max_drop=0.05), "small"),  # quick loses too much besides
        (Limits(max_latency=0.5, max_drop=0.1), "quick"),
    ],
)
def test_nearest_misses_by_the_smallest_factor(made: Any, limits: Limits, nearest: str) -> None:
    quick = made.one("quick", 6e-4, ratio=(1.6, 1.5, 1.7), size_bytes=900_000, balanced=0.969)
    small = made.one("small", 8e-4, ratio=FASTER, size_bytes=300_000)
    verdict = decide(made.result(made.one("fp32"), quick, small), limits)
    assert verdict.ship is None and f" Nearest is {nearest}: it " in verdict.headline


def test_of_several_that_do_not_ship_the_best_is_named(made: Any) -> None:
    slow, same = made.one("slow", 1.15e-3, ratio=SLOWER), made.one("same", 1e-3, ratio=SAME)
    assert decide(made.result(made.one("fp32"), slow, same), Limits()).headline.startswith(
        "Ship fp32: no variant is clearly faster; same is not clearly faster or slower than fp32 (1.01x, 95% interval 0.98 to 1.04). The"
    )
    slower = made.one("slower", 2e-3, ratio=(0.5, 0.4, 0.6))
    for order in ((slow, slower), (slower, slow)):
        told = decide(made.result(made.one("fp32"), *order), Limits()).headline
        assert told.startswith("Ship fp32: slow is slower here (0.87x, 95% interval 0.84 to 0.90), and the others more so.")
    lossy = made.one("lossy", 8e-4, ratio=FASTER, balanced=0.9)
    assert decide(made.result(made.one("fp32"), slow, lossy), Limits()).headline.startswith(
        "Ship fp32: lossy is faster than fp32 (1.25x, 95% interval 1.20 to 1.30) but loses 7.00 points of balanced accuracy, 0.5 are"
    )


def test_the_alternative_for_size_is_the_smallest_that_is_smaller_and_not_slower(made: Any) -> None:
    rows = [
        made.one("equal", ratio=SAME),
        made.one("half", ratio=SAME, size_bytes=500_000),
        made.one("third", ratio=SAME, size_bytes=333_000),
        made.one("slow", 1.15e-3, ratio=SLOWER, size_bytes=1_000),
        made.one("lossy", ratio=SAME, size_bytes=1_000, balanced=0.9),
    ]
    assert "take third: it" in decide(made.result(made.one("fp32"), *rows), Limits()).headline
    assert "If size counts" not in decide(made.result(made.one("fp32"), rows[0], *rows[3:]), Limits()).headline


def test_reasons_say_what_each_lacked(made: Any) -> None:
    """`big` is as fast as what ships and larger, `late` is slower than it, `twin` of the same size."""
    ships = made.one("ships", 5e-4, ratio=(2.0, 1.9, 2.1), size_bytes=300_000)
    big = made.one("big", 5.01e-4, ratio=(1.99, 1.9, 2.1), size_bytes=400_000)
    twin = made.one("twin", 5.01e-4, ratio=(1.99, 1.9, 2.1), size_bytes=300_000)
    late = made.one("late", 8e-4, ratio=FASTER, size_bytes=200_000)
    lossy = made.one("lossy", 4e-4, ratio=(2.5, 2.4, 2.6), balanced=0.9)
    reasons = dict(
        reason.split(": ", 1) for reason in decide(made.result(made.one("fp32"), ships, big, twin, late, lossy), Limits()).reasons
    )
    assert reasons == {
        "fp32": "the baseline, 1.00 ms.",
        "big": "not chosen, it is faster than fp32 (1.99x, 95% interval 1.90 to 2.10), but not clearly faster than ships, and larger.",
        "twin": "not chosen, it is faster than fp32 (1.99x, 95% interval 1.90 to 2.10), but its 0.501 ms are not the least.",
        "late": "not chosen, it is faster than fp32 (1.25x, 95% interval 1.20 to 1.30), but its 0.800 ms are not the least.",
        "lossy": "not chosen, it loses 7.00 points of balanced accuracy, 0.5 are allowed.",
    }


def test_gains_are_told_as_such(made: Any) -> None:
    """300 of 30,000 gained is a point, and surely most of it; 3 gained are 0.01, of which none is sure."""
    sure = decide(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, balanced=0.98)), Limits()).headline
    assert "gains 1.00 points of balanced accuracy (97.00% to 98.00%, at least 0.91 gained with 95% confidence)" in sure
    hardly = decide(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, balanced=0.9701)), Limits()).headline
    assert "gains 0.01 points of balanced accuracy (97.00% to 97.01%, at most 0.00 lost with 95% confidence)" in hardly


def test_what_ships_for_the_limits_says_so_where_the_baseline_is_no_candidate(made: Any) -> None:
    verdict = decide(made.result(made.one("net", runtime="torch"), made.one("int8", ratio=SAME)), Limits())
    assert verdict.ship == "int8"
    assert "not for speed (1.01x, 95% interval 0.98 to 1.04 against net): net runs where no file ships." in verdict.headline


def test_of_several_that_keep_the_limits_and_are_no_faster_the_fastest_ships(made: Any) -> None:
    small = [made.one(name, p50, ratio=SLOWER, size_bytes=300_000) for name, p50 in (("slow", 1.3e-3), ("less slow", 1.15e-3))]
    for order in (small, small[::-1]):
        assert decide(made.result(made.one("fp32"), *order), Limits(max_size=400_000)).ship == "less slow"


def test_the_best_of_those_that_do_not_ship_is_told_by_its_speedup_and_not_by_a_wide_interval(made: Any) -> None:
    wide, sure = made.one("wide", ratio=(0.99, 0.5, 2.0)), made.one("sure", ratio=(1.0, 0.99, 1.01))
    assert "; sure is not clearly faster" in decide(made.result(made.one("fp32"), wide, sure), Limits()).headline


def test_what_keeps_no_accuracy_is_named_where_the_baseline_is_no_candidate(made: Any) -> None:
    one = made.result(made.one("fp32", runtime="torch"), made.one("int8", 8e-4, ratio=FASTER, balanced=0.94))
    verdict = decide(one, Limits())
    assert verdict.ship is None
    assert verdict.headline == (
        "Ship nothing yet: no variant keeps the limits. Nearest is int8: it loses 3.00 points of balanced accuracy, 0.5 are allowed."
    )


def test_a_score_of_the_users_own_decides_in_its_own_units(made: Any) -> None:
    """400 images: one loses 0.4, none another; that is 0.001 of iou, and proved within 0.01; nothing is said of points."""
    before, after = (0.8,) * 400, (*(0.8,) * 399, 0.4)
    scoring = Scoring(name="iou", source="s", by_image=True)
    rows = [
        dataclasses.replace(
            made.one(name, p50, ratio=ratio), scores={}, intervals={}, answers=None, score=float(np.mean(shares)), shares=shares
        )
        for name, p50, ratio, shares in (("fp32", 1e-3, None, before), ("int8", 8e-4, FASTER, after))
    ]
    result = made.result(*rows)
    result = dataclasses.replace(result, labels=None, scoring=scoring, data={**result.data, "images": 400})
    assert damage(result) is None
    found = decide(result, Limits(max_drop=0.01))
    assert found.ship == "int8" and found.decided == "bound" and found.units == "iou"
    assert "loses 0.001 of iou (0.8 to 0.799, at most" in found.headline and "points" not in " ".join([found.headline, *found.reasons])
    strict = decide(result, Limits(max_drop=0.0005))
    assert strict.ship == "fp32" and "loses 0.001 of iou, 0.0005 are allowed" in " ".join([strict.headline, *strict.reasons])
    assert decide(result, Limits(max_drop=250.0)).ship == "int8", "a score may have a larger scale than points"
    unsaid = decide(result, Limits())
    assert unsaid.ship == "int8" or "not proved within 0.004 of iou with 400 images" in unsaid.headline, "half a percent of 0.8"


def test_no_more_than_100_points_can_be_lost(made: Any) -> None:
    with pytest.raises(BenchmarkError, match=r"max_drop \(=101\.0\) must lie in \[0, 100\]; points, 0\.5 allows"):
        decide(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER)), Limits(max_drop=101.0))


def test_shares_that_are_not_those_of_the_images_are_damage(made: Any) -> None:
    one = dataclasses.replace(made.one("fp32"), scores={}, intervals={}, answers=None, score=0.5, shares=(0.5, 0.5))
    result = dataclasses.replace(made.result(one), labels=None, scoring=Scoring(name="iou", source="s", by_image=True))
    assert damage(result) == f"'fp32' has no iou with {result.data['images']} shares"
