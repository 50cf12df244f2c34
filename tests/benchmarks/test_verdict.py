from typing import Any

import pytest

from compress.benchmarks.verdict import Limits, decide

SLOWER, SAME, FASTER = (0.87, 0.84, 0.90), (1.01, 0.98, 1.04), (1.25, 1.20, 1.30)


def test_faster_variant_within_the_drop_ships(made: Any) -> None:
    verdict = decide(
        made.result(
            made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, balanced=0.969, size_bytes=300_000), made.one("pruned", ratio=SAME)
        ),
        Limits(),
    )
    assert verdict.ship == "int8"
    assert verdict.headline == (
        "Ship int8: it is faster than fp32 (1.25x, 95% interval 1.20 to 1.30), loses 0.10 points of balanced accuracy (97.00% to 96.90%) "
        "and its file has 300 kB instead of 1.00 MB."
    )
    assert verdict.reasons == (
        "fp32: the baseline, 1.00 ms.",
        "pruned: not chosen, it is not clearly faster or slower than fp32 (1.01x, 95% interval 0.98 to 1.04).",
    )


def test_fastest_of_several_faster_ones_ships(made: Any) -> None:
    verdict = decide(made.result(made.one("fp32"), made.one("a", 9e-4, ratio=FASTER), made.one("b", 8e-4, ratio=FASTER)), Limits())
    assert verdict.ship == "b"
    assert any(reason.startswith("a: not chosen, it is faster than fp32") for reason in verdict.reasons)


def test_of_two_that_are_as_fast_the_smaller_ships(made: Any) -> None:
    big, small = made.one("big", 7.9e-4, ratio=(1.27, 1.21, 1.32)), made.one("small", 8e-4, ratio=FASTER, size_bytes=300_000)
    verdict = decide(made.result(made.one("fp32"), big, small), Limits())
    assert verdict.ship == "small"
    assert any(reason.endswith("but not clearly faster than small, and larger.") for reason in verdict.reasons)
    surely = made.one("big", 5e-4, ratio=(2.0, 1.9, 2.1))
    assert decide(made.result(made.one("fp32"), surely, small), Limits()).ship == "big"


def test_slower_int8_does_not_ship(made: Any) -> None:
    verdict = decide(made.result(made.one("fp32"), made.one("int8", 1.15e-3, ratio=SLOWER, size_bytes=300_000)), Limits())
    assert (verdict.ship, verdict.headline) == ("fp32", "Ship fp32: int8 is slower here (0.87x, 95% interval 0.84 to 0.90).")


@pytest.mark.parametrize("ratio", [SAME, (1.008, 1.005, 1.011)])
def test_lower_median_is_not_faster_while_the_interval_holds_one_or_the_gain_is_under_one_percent(made: Any, ratio: Any) -> None:
    assert decide(made.result(made.one("fp32"), made.one("int8", 9.9e-4, ratio=ratio)), Limits()).ship == "fp32"


def test_smaller_variant_that_is_not_slower_is_the_alternative_for_size(made: Any) -> None:
    verdict = decide(made.result(made.one("fp32"), made.one("int8", ratio=SAME, size_bytes=300_000)), Limits())
    assert verdict.ship == "fp32"
    assert "If size counts more, take int8: it keeps balanced accuracy (97.00% to 97.00%)" in verdict.headline


@pytest.mark.parametrize(("balanced", "ships"), [(0.965, "int8"), (0.9649, "fp32")])
def test_drop_of_exactly_the_limit_is_allowed(made: Any, balanced: float, ships: str) -> None:
    verdict = decide(made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER, balanced=balanced)), Limits(max_drop=0.5))
    assert verdict.ship == ships
    if ships == "fp32":
        assert "but loses 0.51 points of balanced accuracy, 0.5 are allowed" in verdict.headline


def test_limit_that_the_baseline_breaks_ships_what_keeps_it_and_says_that_it_is_slower(made: Any) -> None:
    one = made.result(made.one("fp32"), made.one("int8", 1.15e-3, ratio=SLOWER, size_bytes=300_000))
    verdict = decide(one, Limits(max_size=400_000))
    assert verdict.ship == "int8"
    assert (
        "for the limits, not for speed (0.87x, 95% interval 0.84 to 0.90 against fp32): fp32 takes 1.00 MB, 400 kB are" in verdict.headline
    )


def test_limits_that_nothing_keeps_name_the_nearest(made: Any) -> None:
    one = made.result(made.one("fp32"), made.one("int8", 8e-4, ratio=FASTER), made.one("bad", 1e-4, ratio=FASTER, balanced=0.5))
    verdict = decide(one, Limits(max_latency=0.5))
    assert (verdict.ship, verdict.headline) == (
        None,
        "Ship nothing yet: no variant keeps the limits. Nearest is int8: it takes 0.800 ms, 0.5 ms are allowed.",
    )
    assert len(verdict.reasons) == 3


def test_only_onnx_files_on_the_cpu_are_chosen_from(made: Any) -> None:
    torch, cuda = made.one("fp32", 1e-5, ratio=FASTER, runtime="torch"), made.one("int8", 1e-5, ratio=FASTER, device="cuda")
    verdict = decide(made.result(made.one("fp32"), torch, cuda, made.missing("broken", "no")), Limits())
    assert (verdict.ship, verdict.headline) == ("fp32", "Ship fp32: nothing else was measured in ONNX Runtime on the CPU.")


def test_no_verdict_without_a_baseline(made: Any) -> None:
    verdict = decide(made.result(made.missing("fp32", "no such file"), made.one("int8", speedup=None)), Limits())
    assert (verdict.ship, verdict.headline) == (None, "No verdict: the baseline, fp32, was not measured: no such file.")
    assert decide(made.result(made.one("fp32", runtime="torch")), Limits()).ship is None
