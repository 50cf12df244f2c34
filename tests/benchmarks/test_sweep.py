from pathlib import Path

import numpy as np
import pytest

from compress.benchmarks import sweep
from compress.benchmarks.runtimes import Candidate
from compress.benchmarks.sweep import calls_within, points_of, summarise


def candidate(runtime: str = "onnxruntime", device: str = "cpu") -> Candidate:
    return Candidate(name="a", path=Path("a"), runtime=runtime, device=device, load=lambda path: (None, None))


def test_points_are_batches_on_the_threads_asked_for_and_both_ends_on_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "usable_cores", lambda: 4)
    batches = [(1, 1), (8, 1), (64, 1)]
    assert points_of(candidate(), 1) == [*batches, (1, 4), (64, 4)]
    assert points_of(candidate(), 4) == [(1, 4), (8, 4), (64, 4), (1, 1), (64, 1)]
    assert points_of(candidate(device="cuda"), 1) == points_of(candidate("torch.compile"), 1) == batches
    monkeypatch.setattr(sweep, "usable_cores", lambda: 1)
    assert points_of(candidate(), 1) == batches


def test_slow_calls_are_few_and_very_slow_ones_are_not_repeated() -> None:
    assert [calls_within(ns) for ns in (0, 1_000, 2_500_000, 100_000_000, 400_000_000)] == [50, 50, 20, 3, 0]


def test_each_point_is_summarised_over_launches_by_hand() -> None:
    launches = [[np.array([1_000_000, 3_000_000, 2_000_000]), np.array([8_000_000])]] * 2
    first, second = summarise([(1, 1), (8, 2)], launches)
    assert (first.batch, first.threads, first.samples_ns) == (1, 1, ((1_000_000, 3_000_000, 2_000_000),) * 2)
    assert (first.latency.low, first.latency.value, first.latency.high) == pytest.approx((0.002, 0.002, 0.002))
    assert second.images_per_second == pytest.approx(1000)
    assert summarise([(1, 1)], [[np.array([1])]]) == (), "one launch bounds nothing"
