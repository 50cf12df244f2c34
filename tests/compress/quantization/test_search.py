"""The search, on made-up machines whose fastest set is known by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.benchmarks.statistics import over_launches
from compress.quantization.search import CLOSE, SURE, Choice, Groups, Setting, choose

NAMES = ("first", "middle", "gates", "last")


@dataclass
class Machine:
    """Latency in milliseconds: 1 for float32, and what each group in int8 adds; ``pairs`` what two add together. Noise of 0.1%.

    A candidate's file holds its latency and its balanced accuracy, and is as long as its size.
    """

    folder: Path
    adds: Mapping[str, float]
    pairs: Mapping[frozenset[str], float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)
    other: Mapping[str, tuple[float, float, int]] = field(default_factory=dict)
    noise: float = 0.001
    groups: Sequence[str] = NAMES
    made: int = 0

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def write(self, name: str, milliseconds: float, accuracy: float, size: int) -> Path:
        path = self.folder / name
        path.write_text(f"{milliseconds} {accuracy}".ljust(size))
        return path

    @property
    def float32(self) -> Path:
        return self.write("float32", 1.0, 0.9, 400)

    def static(self, groups: Groups, setting: Setting) -> Path:
        self.made += 1
        latency = 1 + sum(self.adds[name] for name in groups)
        latency += sum(extra for pair, extra in self.pairs.items() if pair <= groups)
        lost = sum(self.drops.get(name, 0.0) for name in groups) * (0.5 if setting.method == "mse" else 1.0)
        lost *= 0.5 if setting.correct_bias else 1.0
        name = "".join("1" if one in groups else "0" for one in self.groups) + str(setting)
        return self.write(name.replace(" ", ""), latency, 0.9 - lost / 100, 400 - 60 * len(groups))

    def others(self) -> dict[str, Path]:
        return {mode: self.write(mode, *about) for mode, about in self.other.items()}

    def times(self, files: Sequence[Path], rounds: int) -> NDArray[np.float64]:
        latency = np.array([float(file.read_text().split()[0]) for file in files])
        return latency * self.generator.normal(1, self.noise, (rounds, len(files)))

    def choose(self, max_drop: float = 0.3) -> Choice:
        self.scored: list[Path] = []
        return choose(self, self.times, self.accuracy, interval=over_launches, max_drop=max_drop, progress=lambda told: None)

    def accuracy(self, path: Path) -> float:
        self.scored.append(path)
        return float(path.read_text().split()[1])


def test_finds_the_fastest_set_though_everything_and_every_single_group_is_slower(tmp_path: Path) -> None:
    # Alone each costs a conversion; the middle and the last together save more than both cost.
    machine = Machine(tmp_path, {"first": 0.2, "middle": 0.05, "gates": 0.3, "last": 0.05}, pairs={frozenset(("middle", "last")): -0.5})
    machine.groups = ("first", "gates", "middle", "last")
    choice = machine.choose()
    assert choice.best.groups == ("middle", "last")
    assert choice.best.ratio == pytest.approx(0.6, abs=0.01)
    assert choice.verdict.startswith("Compute middle, last in int8 (minmax, per channel): 0.60x of float32's latency")


def test_do_not_quantize_is_an_answer_with_its_evidence(tmp_path: Path) -> None:
    machine = Machine(tmp_path, dict.fromkeys(NAMES, 0.1))
    choice = machine.choose()
    assert choice.best.mode == "float32"
    assert choice.verdict == (
        "Do not compute in int8 on this machine: int8 everywhere takes 1.40x of float32's latency, and no set of nodes is faster than "
        "float32. Keep the float32 file."
    )


def test_a_gain_below_two_percent_is_not_worth_it(tmp_path: Path) -> None:
    choice = Machine(tmp_path, dict.fromkeys(NAMES, 0.1) | {"middle": -0.015}).choose()
    assert choice.best.mode == "float32"
    assert "the best set of nodes (middle) 0.9" in choice.verdict
    assert "at most 0.98x it would be worth it" in choice.verdict


def test_weights_stored_in_fewer_bits_win_where_nothing_is_faster(tmp_path: Path) -> None:
    machine = Machine(
        tmp_path,
        dict.fromkeys(NAMES, 0.1),
        other={"int8-weights": (1.0, 0.8995, 110), "fp16-weights": (1.0, 0.9, 200), "dynamic": (3.0, 0.9, 100)},
    )
    assert machine.choose().best.mode == "int8-weights"
    # They lose 0.05 points; where nothing may be lost the fp16 ones win, and never what is slower.
    assert machine.choose(max_drop=0.01).best.mode == "fp16-weights"


def test_a_setting_that_keeps_the_accuracy_is_found(tmp_path: Path) -> None:
    machine = Machine(tmp_path, dict.fromkeys(NAMES, -0.1), drops={"middle": 0.8})
    choice = machine.choose()
    # 0.8 points with minmax, 0.4 with mse, 0.2 with bias correction besides.
    assert choice.best.setting == Setting(method="mse", correct_bias=True)
    assert len(machine.scored) == len(set(machine.scored)), "a file was scored twice, which takes seconds"
    assert choice.best.drop == pytest.approx(0.2)
    assert choice.best.groups == NAMES


def test_the_fastest_set_that_keeps_the_accuracy_wins_over_a_faster_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"first": -0.2, "middle": -0.2, "gates": 0.1, "last": -0.05}, drops={"first": 8.0, "gates": 8.0})
    choice = machine.choose()
    assert choice.best.mode == "float32"
    assert "what is faster" in choice.verdict and "--epochs" in choice.verdict
    assert any(one.mode == "static" and one.drop is not None and one.drop > 0.3 for one in choice.finalists)


def test_a_helpful_extra_is_left_off_where_it_does_not_help(tmp_path: Path) -> None:
    choice = Machine(tmp_path, dict.fromkeys(NAMES, -0.1)).choose()
    assert choice.best.setting == Setting()
    tried = {one.setting for one in choice.tried if one.drop is not None}
    assert {Setting(method="mse"), Setting(equalise=True), Setting(correct_bias=True), Setting(per_channel=False)} <= tried


def test_every_candidate_stands_in_the_table_and_the_last_ones_were_measured_longest(tmp_path: Path) -> None:
    choice = Machine(tmp_path, dict.fromkeys(NAMES, -0.1)).choose()
    sets = {one.groups for one in choice.tried}
    assert {NAMES, NAMES[1:], NAMES[:1]} <= sets
    assert all(one.low <= one.ratio <= one.high for one in (*choice.tried, *choice.finalists))
    assert {one.rounds for one in choice.finalists} == {SURE}
    assert choice.finalists[0].mode == "float32" and choice.finalists[0].ratio == 1


def test_a_noisy_machine_does_not_make_int8_look_faster(tmp_path: Path) -> None:
    wrong = 0
    for seed in range(20):
        machine = Machine(tmp_path, dict.fromkeys(NAMES, 0.0), noise=0.02)
        machine.generator = np.random.default_rng(seed)
        wrong += machine.choose().best.mode == "static"
    assert wrong <= 2  # the best of a dozen sets of the same speed, by 12 rounds of 2% noise each


def test_few_groups_do_not_need_a_start_in_the_middle(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"only": -0.5}, groups=("only",))
    assert machine.choose().best.groups == ("only",)


def test_where_twelve_rounds_cannot_tell_more_are_taken(tmp_path: Path) -> None:
    """0.965x of the latency, with noise of 4% per measurement: an interval of 12 rounds is 3.5% wide to either side, and holds 0.98."""
    slow = dict.fromkeys(NAMES, 0.1)
    choice = Machine(tmp_path, slow | {"middle": -0.035}, noise=0.04).choose()
    assert {one.rounds for one in choice.finalists} == {CLOSE}
    assert choice.best.groups == ("middle",)
    clear = Machine(tmp_path, slow | {"middle": -0.3}, noise=0.04).choose()
    assert {one.rounds for one in clear.finalists} == {SURE}
