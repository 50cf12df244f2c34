"""Each doubt from samples made up so that it must, or must not, arise."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from compress.benchmarks.doubts import cure, doubts, heaps
from compress.benchmarks.gauges import Turn

CALM = Turn(wall_ns=100_000_000, thread_ns=99_000_000, stolen_ms=0, khz=3_000_000, energy_uj=None)


def noise(launches: int = 5, rounds: int = 4, samples: int = 50, seed: int = 0) -> np.ndarray:
    return 1e6 * np.exp(np.random.default_rng(seed).normal(0, 0.01, (launches, rounds, samples)))


def found(samples: np.ndarray, turns: Sequence[Turn] = (CALM,) * 20, **other: int) -> tuple[str, ...]:
    about = {"unsteady": 0, "resolution_ns": 50, "alone": True} | other
    return doubts(samples.astype(np.int64), turns, **about)


def test_plain_noise_and_a_few_interruptions_raise_no_doubt() -> None:
    for seed in range(50):
        samples = noise(seed=seed)
        samples[:, :, 0] *= 5 if seed % 2 else 1
        assert found(samples) == ()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"thread_ns": 80_000_000}, "had to wait for the processor 20% of the time, other programs were running"),
        ({"stolen_ms": 4}, "the host took 4% of the processor time away (stolen time)"),
    ],
)
def test_what_the_system_took_is_told(change: dict[str, int], told: str) -> None:
    assert found(noise(), [dataclasses.replace(CALM, **change)] * 20) == (told,)


def test_a_single_tick_of_stolen_time_is_none_and_waiting_of_several_threads_is_not_known() -> None:
    assert (
        found(noise(), [dataclasses.replace(CALM, wall_ns=10_000_000, thread_ns=10_000_000, stolen_ms=10 * (i == 0)) for i in range(20)])
        == ()
    )
    assert found(noise(), [dataclasses.replace(CALM, thread_ns=1)] * 20, alone=False) == ()


def test_what_was_emulated_is_doubted_first_whatever_the_samples_say() -> None:
    told = found(noise(), emulated=True)
    assert told == ("emulated: another processor imitates this one, and its time says nothing of a real one",)
    assert cure(told) == "measure on a real one: `compress benchmark --force`"


def test_drift_within_launches_is_found_with_its_interval() -> None:
    samples = noise() * np.array([1, 1.02, 1.04, 1.06])[None, :, None]
    (told,) = found(samples)
    assert told.startswith("drifts: the last round of a launch took 1.06x the first, 95% interval 1.06 to 1.06")


def test_launches_far_apart_a_coarse_clock_and_unsteady_warm_ups() -> None:
    samples = noise() * np.array([1, 1, 1, 1, 1.2])[:, None, None]
    assert found(samples, unsteady=2, resolution_ns=20_000) == (
        "never became steady in 2 of 5 warm-ups",
        "the launches lie 20% apart",
        "the clock's steps of 20000 ns are 2% of a call",
    )


def test_changing_clock_rate_is_told_and_an_unknown_one_is_not() -> None:
    turns = [dataclasses.replace(CALM, khz=khz) for khz in (3_000_000, 2_400_000, 3_000_000)]
    assert found(noise(), turns) == ("the clock rate changed between 2.40 and 3.00 GHz",)
    assert found(noise(), [dataclasses.replace(CALM, khz=None, stolen_ms=None)]) == ()


def test_throttling_is_told_with_the_heat() -> None:
    turns = [dataclasses.replace(CALM, celsius=84.9, throttled=throttled) for throttled in (False, True, True, False)]
    assert found(noise(), turns) == ("the processor was slowed down for its heat in 2 of 4 turns, at 85 °C",)
    assert cure(found(noise(), turns)).startswith("let it cool")
    assert found(noise(), [dataclasses.replace(CALM, celsius=84.9)]) == ()


def test_two_heaps_are_found_with_share_and_distance() -> None:
    samples = noise()
    samples[:, :, ::2] *= 1.3
    share, factor = heaps(samples) or (0, 0)
    assert (share, factor) == (pytest.approx(0.5, abs=0.02), pytest.approx(1.3, rel=0.01))
    assert found(samples) == (f"two heaps of samples: {100 * share:.0f}% of them took 1.30x the others' time",)


def test_one_heap_of_any_usual_shape_is_not_taken_for_two() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        for one in (generator.uniform(1, 2, (5, 4, 50)), generator.lognormal(0, 0.5, (5, 4, 50)), 1 + generator.exponential(1, (5, 4, 50))):
            assert heaps(one) is None
    assert heaps(np.ones((2, 1, 1))) is None
