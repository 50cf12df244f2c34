"""Latency while pruning, on a clock that only the calls move: what comes out is known by hand, on a machine as busy as it may be."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import UNSET
from torch import Tensor, nn

from compress.artifacts import cost as latency
from compress.artifacts.artifact import InputSpec
from compress.artifacts.cost import Clock, fastest_rounding
from compress.benchmarks import turns
from compress.errors import CompressError

SPEC = InputSpec(shape=(1, 8, 8))


def net(channels: int) -> nn.Module:
    middle = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), middle, nn.Flatten(), nn.Linear(64 * channels, 3))


class Script:
    """In the place of the exporter and the runtime: graph number ``n`` takes ``seconds[n]``, repeated over the rounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.exported: list[nn.Module] = []
        self.opened: list[str] = []
        self.timed: list[str] = []
        monkeypatch.setattr(latency.Template, "write", lambda template, network, file: self.exported.append(network))
        monkeypatch.setattr(turns, "_size", lambda file: 0)
        monkeypatch.setattr(turns, "onnx_session", self.open)
        monkeypatch.setattr(turns, "_turn", self.turn)

    def open(self, candidate: turns.Candidate, threads: int) -> str:
        assert threads == 1
        self.opened.append(candidate.path.stem)
        return candidate.path.stem

    def turn(self, session: str, images: list[Any]) -> float:
        self.timed.append(session)
        known = self.seconds.get(session, [1.0])
        return known[self.timed.count(session) % len(known)]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch)


class Session:
    """In the place of ONNX Runtime: each call moves the clock by the next of ``milliseconds``, over and over; remembers its images."""

    def __init__(self, clock: list[int], milliseconds: list[float], kind: str = "tensor(uint8)") -> None:
        self.clock, self.milliseconds, self.kind, self.fed = clock, milliseconds, kind, []

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images", type=self.kind)]

    def run(self, outputs: None, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.clock[0] += round(1e6 * self.milliseconds[len(self.fed) % len(self.milliseconds)])
        self.fed.append(fed["images"])
        return [np.zeros((1, 3), np.float32)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nanoseconds that only calls move."""
    now = [0]
    monkeypatch.setattr("compress.benchmarks.worker.time.perf_counter_ns", lambda: now[0])
    return now


IMAGES = [np.full((1, 1, 8, 8), value, np.uint8) for value in range(7)]


@pytest.mark.parametrize(("milliseconds", "calls"), [(1.0, 30), (0.01, 200), (20.0, 5), (4.0, 7)])
def test_a_turn_is_the_median_of_as_many_calls_as_fit_after_a_few_to_wake_up(clock: list[int], milliseconds: float, calls: int) -> None:
    """30 ms of calls, at least 5 and at most 200, after 5 that do not count; they cycle over the images."""
    session = Session(clock, [milliseconds])
    assert turns._turn(session, IMAGES) == pytest.approx(milliseconds / 1e3)
    assert len(session.fed) == 5 + calls
    assert [int(image.flat[0]) for image in session.fed] == [number % 7 for number in range(5 + calls)]


def test_calls_to_wake_up_do_not_count_and_a_disturbed_one_costs_nothing(clock: list[int]) -> None:
    slow_start = Session(clock, [9.0, 9.0, 9.0, 9.0, 9.0] + [1.0] * 8)
    assert turns._turn(slow_start, IMAGES) == pytest.approx(1e-3)
    disturbed = Session(clock, [2.0, 2.0, 2.0, 2.0, 500.0])
    assert turns._turn(disturbed, IMAGES) == pytest.approx(2e-3)


def test_images_are_fed_as_the_graph_takes_them(clock: list[int]) -> None:
    session = Session(clock, [1.0], "tensor(float)")
    turns._turn(session, [np.full((1, 1, 8, 8), 255, np.uint8)])
    assert session.fed[0].dtype == np.float32 and session.fed[0].max() == 1


def test_a_real_network_is_exported_once_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the exporter and ONNX Runtime, with the number of logits in the place of the seconds."""
    monkeypatch.setattr(turns, "_turn", lambda session, images: float(np.prod(session.run(None, {"image": images[0]})[0].shape)))
    clock = Clock(net(64), SPEC, tmp_path, rounds=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.onnx"]
    assert clock.ratio(net(4)).value == pytest.approx(1)  # three logits of either
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.onnx", "1.onnx"]


def test_a_ratio_is_candidate_over_baseline_of_the_same_round(script: Script) -> None:
    """The machine is twice as slow in every second round. A file at half the time is 0.5 in each, with no doubt at all."""
    clock = Clock(net(8), SPEC, Path("none"), rounds=4)
    script.seconds = {"0": [2.0, 4.0], "1": [1.0, 2.0], "2": [6.0, 4.0]}
    steady, other = clock.ratios([net(4), net(2)])
    assert (steady.value, steady.low, steady.high) == pytest.approx((0.5, 0.5, 0.5))
    # Ratios 3, 1, 3, 1: the geometric mean of 3 and 1; Student's t for 3 degrees of freedom is 3.182.
    margin = 3.182 * np.std(np.log([3, 1, 3, 1]), ddof=1) / 2
    assert (other.value, other.low) == pytest.approx((3**0.5, 3**0.5 * np.exp(-margin)))


def test_every_round_opens_and_times_each_file_once_in_random_order_then_backwards(script: Script) -> None:
    clock = Clock(net(8), SPEC, Path("none"), rounds=12)
    clock.ratios([net(4), net(2)])
    assert script.opened == script.timed
    rounds = [script.timed[i : i + 3] for i in range(0, 36, 3)]
    assert len(script.timed) == 36
    assert {tuple(sorted(order)) for order in rounds} == {("0", "1", "2")}
    assert rounds[1::2] == [order[::-1] for order in rounds[::2]]
    assert len({tuple(order) for order in rounds[::2]}) > 1


def test_the_order_follows_from_the_seed(script: Script) -> None:
    orders = []
    for seed in (0, 0, 1):
        Clock(net(8), SPEC, Path("none"), seed=seed).ratio(net(4))
        orders.append(script.timed[:])
        script.timed.clear()
    assert orders[0] == orders[1] != orders[2]


def test_the_same_shapes_are_exported_and_timed_once(script: Script) -> None:
    clock = Clock(net(8), SPEC, Path("none"), rounds=2)
    first, again = clock.latencies([net(4), net(4)])[:, 1:].T
    clock.ratio(net(4))
    assert len(script.exported) == 2
    assert script.timed.count("1") == 4
    assert first.tolist() == again.tolist()


def test_the_baseline_can_be_measured_against_itself(script: Script) -> None:
    """Two sessions of one file, not one number divided by itself."""
    clock = Clock(net(8), SPEC, Path("none"), rounds=2)
    clock.ratio(net(8))
    assert len(script.exported) == 1
    assert script.timed == ["0"] * 4


def test_a_bypassed_module_is_another_network(script: Script) -> None:
    clock = Clock(net(8), SPEC, Path("none"), rounds=2)
    bypassed = net(8)
    assert isinstance(bypassed, nn.Sequential)
    bypassed[1] = nn.Identity()  # the state dict has the shapes that it had
    clock.ratio(bypassed)
    assert script.exported[1] is bypassed


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: [5.0], 4: [4.0], 8: [3.0]}, 8),
        ({1: [3.0], 4: [4.0], 8: [5.0]}, 1),
        ({1: [3.03], 4: [5.0], 8: [3.0]}, 1),  # 1% is not worth the coarser widths
        ({1: [3.3], 4: [3.0], 8: [3.0]}, 4),
        ({1: [2.0, 4.0], 4: [4.0], 8: [2.9]}, 1),  # 0.7 and 1.4 of the fastest: as fast in the middle
        ({1: [3.0, 12.0], 4: [3.0], 8: [3.0]}, 4),  # a wide interval is no reason to take it
        ({1: [2.0, 4.0], 4: [4.0], 8: [1.0, 2.0]}, 8),  # twice the fastest in each round, though both vary
    ],
)
def test_the_smallest_multiple_that_is_about_as_fast_is_best(script: Script, seconds: dict[int, list[float]], best: int) -> None:
    clock = Clock(net(16), SPEC, Path("none"), rounds=4)
    script.seconds = {str(number): times for number, times in enumerate(seconds.values(), 1)}
    found = fastest_rounding({multiple: net(multiple) for multiple in seconds}, clock)
    assert found.round_to == best
    assert [row.round_to for row in found.measured] == list(seconds)


def test_a_row_says_what_was_measured_and_what_it_computes(script: Script) -> None:
    """Two channels: 9 * 64 * 2 for the first layer, 9 * 64 * 2 * 2 for the second, 128 * 3 for the last."""
    clock = Clock(net(16), SPEC, Path("none"), rounds=2)
    script.seconds = {"0": [4.0], "1": [1.0]}
    found = fastest_rounding({4: net(2)}, clock)
    assert found.round_to == 4
    [row] = found.measured
    assert (row.round_to, row.ratio, row.low, row.high) == pytest.approx((4, 0.25, 0.25, 0.25))
    assert row.macs == 1152 + 2304 + 384


def test_what_is_surely_slower_drops_out_and_measuring_ends_when_the_answer_is_clear(script: Script) -> None:
    """4 is as fast as 8 and taken; 1 takes three times as long and is timed in the first four rounds only."""
    clock = Clock(net(16), SPEC, Path("none"), rounds=12)
    script.seconds = {"0": [4.0], "1": [9.0], "2": [3.0], "3": [3.0]}
    found = fastest_rounding({1: net(1), 4: net(4), 8: net(8)}, clock)
    assert (found.round_to, found.doubt) == (4, UNSET)
    assert {graph: script.timed.count(graph) for graph in "0123"} == {"0": 4, "1": 4, "2": 4, "3": 4}
    script.timed.clear()
    script.seconds["2"] = [3.0, 3.3]  # 4 may be slower than 8 by more than 5% or not, whichever is the truth
    fastest_rounding({1: net(1), 4: net(4), 8: net(8)}, clock)
    assert script.timed.count("1") == 4 and script.timed.count("2") == script.timed.count("3") > 4


def test_what_is_not_clear_after_all_rounds_is_a_doubt_in_the_answer(script: Script) -> None:
    clock = Clock(net(16), SPEC, Path("none"), rounds=12)
    script.seconds = {"0": [4.0], "1": [2.0, 6.0], "2": [3.0]}
    found = fastest_rounding({1: net(1), 8: net(8)}, clock)
    assert script.timed.count("1") == 12
    assert re.fullmatch(r"multiples of (1|8) may be the better ones: not clear after 12 rounds", str(found.doubt))


def test_when_the_time_is_over_what_is_known_answers(script: Script) -> None:
    clock = Clock(net(16), SPEC, Path("none"), rounds=12)
    script.seconds = {"0": [4.0], "1": [2.0, 6.0], "2": [3.0]}
    found = fastest_rounding({1: net(1), 8: net(8)}, clock, until=0.0)
    assert script.timed.count("1") == 4 and "after 4 rounds" in str(found.doubt)


def test_measuring_towards_a_goal_ends_when_the_interval_lies_on_one_side(script: Script) -> None:
    clock = Clock(net(8), SPEC, Path("none"), rounds=12)
    script.seconds = {"0": [1.0], "1": [0.49, 0.51]}
    assert clock.ratio(net(4), goal=0.6).high < 0.6 and script.timed.count("1") == 4
    script.timed.clear()
    assert clock.ratio(net(4), goal=0.4).low > 0.4 and script.timed.count("1") == 4
    script.timed.clear()
    found = clock.ratio(net(4), goal=0.5, rounds=20)
    assert found.low < 0.5 < found.high and script.timed.count("1") == 20


@pytest.mark.parametrize("rounds", [1, 31])
def test_rounds_that_give_no_interval_are_refused(rounds: int) -> None:
    with pytest.raises(CompressError, match=rf"rounds \(={rounds}\) must lie in 2 to 30; an interval needs two, 12 are the default"):
        Clock(net(8), SPEC, Path("none"), rounds=rounds)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2)) if x.sum() > 1 else x.sum(dim=(1, 2))


def test_a_network_that_cannot_be_exported_is_told_as_the_exporter_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(CompressError, match=r"network cannot be exported .*without branches on tensor values"):
        Clock(Branching(), SPEC, tmp_path)
