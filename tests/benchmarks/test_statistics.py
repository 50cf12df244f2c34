import math

import numpy as np
import pytest
from scipy import stats

from compress.benchmarks.statistics import MOST_LAUNCHES, T_QUANTILES, latency, over_launches, percentile, speedup, t_quantile


def test_quantiles_of_student_are_those_of_printed_tables() -> None:
    assert (T_QUANTILES[0], T_QUANTILES[3], T_QUANTILES[9], T_QUANTILES[28]) == (12.706, 2.776, 2.228, 2.045)
    assert MOST_LAUNCHES == 30
    assert [t_quantile(freedom) for freedom in range(1, 30)] == list(T_QUANTILES)
    assert [t_quantile(freedom) for freedom in range(1, 200)] == pytest.approx(stats.t.ppf(0.975, range(1, 200)), abs=6e-4)
    assert [t_quantile(freedom) for freedom in range(30, 200)] == pytest.approx(stats.t.ppf(0.975, range(30, 200)), abs=1.2e-4)


@pytest.mark.parametrize(("rank", "least"), [(90, 64), (99, 662)])
def test_percentile_needs_the_samples_that_loadgen_asks_for(rank: int, least: int) -> None:
    assert percentile(np.arange(least - 1.0), rank) is None
    assert percentile(np.arange(float(least)), rank) == pytest.approx(rank / 100 * (least - 1))


def test_one_figure_per_launch_by_hand() -> None:
    found = over_launches([1, 2])
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx((0.01729, 1.41421, 115.67), rel=1e-3)
    assert over_launches([1]) is None


def test_latency_of_two_launches_by_hand() -> None:
    found = latency(np.array([[[1_000_000, 1_000_000]], [[2_000_000, 2_000_000]]]))
    # Logarithms 0 and ln 2: mean ln 2 / 2, standard deviation ln 2 / sqrt 2, margin 12.706 * that / sqrt 2.
    assert found.p50 == pytest.approx(0.001 * math.sqrt(2))
    assert found.high == pytest.approx(found.p50 * math.exp(12.706 * math.log(2) / 2))
    assert found.low == pytest.approx(found.p50 / math.exp(12.706 * math.log(2) / 2))
    assert (found.p90, found.p99, found.samples) == (None, None, 4)


def test_percentiles_of_a_latency_are_of_all_its_samples() -> None:
    """1 to 800 microseconds over two launches: rank 0.9 * 799 and 0.99 * 799, from 1 on; of 400 the 99th is not told."""
    samples = 1_000 * np.arange(1, 801).reshape(2, 20, 20)
    found = latency(samples)
    assert (found.p90, found.p99, found.samples) == pytest.approx((720.1e-6, 792.01e-6, 800))
    assert latency(samples[:1].reshape(2, 10, 20)).p99 is None


def test_speedup_is_baseline_over_candidate_and_one_disturbed_round_costs_nothing() -> None:
    baseline = np.full((3, 3, 5), 2_000)
    candidate = np.full((3, 3, 5), 1_000)
    candidate[1, 2] = 90_000
    found = speedup(baseline, candidate)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert speedup(candidate, baseline).value == pytest.approx(0.5)


def test_a_disturbed_call_in_every_round_costs_a_speedup_nothing() -> None:
    disturbed, quiet = np.full((3, 4, 5), 2_000), np.full((3, 4, 5), 1_000)
    disturbed[:, :, 0] = 90_000
    assert speedup(disturbed, quiet).value == pytest.approx(2)
    assert speedup(quiet, disturbed).value == pytest.approx(0.5)


def test_a_disturbed_call_costs_a_latency_nothing() -> None:
    samples = np.full((2, 3, 5), 1_000_000)
    samples[:, 0, 0] = 90_000_000
    assert latency(samples).p50 == pytest.approx(1e-3)
    samples[1] *= 4
    assert latency(samples).p50 == pytest.approx(2e-3)


def test_interval_lies_around_the_mean_of_the_logarithms() -> None:
    found = over_launches([1, 1, 8])
    assert found is not None and found.value == pytest.approx(2)
    assert found.value**2 == pytest.approx(found.low * found.high)
    launches = np.array([[[1_000]], [[1_000]], [[8_000]]])
    assert latency(launches).p50 == pytest.approx(2e-6)
    assert speedup(np.full((3, 1, 1), 1_000), launches).value == pytest.approx(0.5)


@pytest.mark.parametrize("skewed", ["lognormal", "ratios of gamma noise"])
@pytest.mark.parametrize("rounds", [5, 12, 30, 48])
def test_intervals_of_skewed_samples_hold_the_truth_as_often_as_they_say(skewed: str, rounds: int) -> None:
    """Lognormal with a mean logarithm of 0; ratios of two latencies, each with waits on top that only ever add."""
    generator = np.random.default_rng(rounds)
    shape = (10_000, rounds)
    if skewed == "lognormal":
        samples = generator.lognormal(0, 0.6, shape)
    else:
        samples = (1 + generator.gamma(2, 0.1, shape)) / (1 + generator.gamma(2, 0.1, shape))
    found = [over_launches(one) for one in samples]
    assert 0.94 <= np.mean([one is not None and one.low <= 1 <= one.high for one in found]) <= 0.965


def test_intervals_hold_the_truth_although_launches_differ() -> None:
    """400 made-up benchmarks of a file 10% slower than the baseline; a launch shifts each by 1%, a round by 0.5%, a call by 2%."""
    generator = np.random.default_rng(0)

    def sample(truth: float) -> np.ndarray:
        shifts = [generator.normal(0, sd, shape) for sd, shape in ((0.01, (5, 1, 1)), (0.005, (5, 4, 1)), (0.02, (5, 4, 20)))]
        return (truth * np.exp(sum(shifts))).astype(np.int64)

    found = [speedup(sample(1_000_000), sample(1_100_000)) for _ in range(400)]
    held = sum(one.low <= 1 / 1.1 <= one.high for one in found)
    assert 0.925 <= held / 400 <= 0.975  # three standard deviations of a share of 0.95
    assert sum(one.high < 1 for one in found) >= 396
