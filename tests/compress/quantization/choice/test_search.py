"""The search, on made-up machines whose fastest set is known by hand."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.benchmarks.paired import paired_drop
from compress.benchmarks.statistics import over_launches
from compress.quantization.choice.latency_model import Groups
from compress.quantization.choice.search import CLOSE, DEAR, HELPS, QUICK, SURE, Judges, choose
from compress.quantization.records import Certified, Choice, Setting

NAMES = ("first", "middle", "gates", "last")


@dataclass
class Machine:
    """Latency in milliseconds: 1 for float32, and what each group in int8 adds; ``pairs`` what two add together. Noise of 0.1%.

    ``moves``: how far the answers move with a setting, per point that is lost; 1 with those that are not named. ``margin``: what the bound
    adds to the points that are lost. ``held``: of each file its latency, the points it loses and how far its answers move; it is as long as
    its size.
    """

    folder: Path
    adds: Mapping[str, float]
    pairs: Mapping[frozenset[str], float] = field(default_factory=dict)
    drops: Mapping[str, float] = field(default_factory=dict)
    other: Mapping[str, tuple[float, float, int]] = field(default_factory=dict)
    moves: Mapping[Setting, float] = field(default_factory=dict)
    margin: float = 0.0
    noise: float = 0.001
    groups: Sequence[str] = NAMES
    made: int = 0

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.held: dict[Path, tuple[float, float, float]] = {}

    def write(self, name: str, milliseconds: float, lost: float, size: int, moved: float = 0.0) -> Path:
        path = self.folder / name
        if path not in self.held or path.stat().st_size != size:
            path.write_bytes(bytes(size))
        self.held[path] = milliseconds, lost, moved
        return path

    @property
    def borders(self) -> list[tuple[str, str]]:
        """Between those beside each other."""
        return list(itertools.pairwise(self.groups))

    @property
    def float32(self) -> Path:
        return self.write("float32", 1.0, 0.0, 400)

    def static(self, groups: Groups, setting: Setting) -> Path:
        self.made += 1
        latency = 1 + sum(self.adds[name] for name in groups)
        latency += sum(extra for pair, extra in self.pairs.items() if pair <= groups)
        lost = sum(self.drops.get(name, 0.0) for name in groups)
        moved = self.moves.get(setting, 1.0)
        name = "".join("1" if one in groups else "0" for one in self.groups) + str(setting)
        return self.write(name.replace(" ", ""), latency, lost * moved, max(400 - 60 * len(groups), 10), moved)

    def sketch(self, groups: Groups) -> Path:
        return self.static(groups, Setting()) if groups else self.float32

    def others(self) -> dict[str, Path]:
        return {mode: self.write(mode, *about) for mode, about in self.other.items()}

    def times(self, files: Sequence[Path], rounds: int) -> NDArray[np.float64]:
        latency = np.array([self.held[file][0] for file in files])
        return latency * self.generator.normal(1, self.noise, (rounds, len(files)))

    def choose(
        self, max_drop: float = 0.3, accept_unproved: bool = False, late: Callable[[], bool] = lambda: False, dear: bool = False
    ) -> Choice:
        self.asked: list[tuple[Path, float]] = []
        judges = Judges(
            times=self.times,
            interval=over_launches,
            moved=lambda path: self.held[path][2],
            certify=self.certify,
            progress=lambda told: None,
            late=late,
            dear=dear,
        )
        return choose(self, judges, max_drop=max_drop, accept_unproved=accept_unproved)

    def certify(self, path: Path, error: float) -> Certified:
        self.asked.append((path, error))
        lost = self.held[path][1]
        return Certified(drop=lost, bound=lost + self.margin, images=1_000, tells=4_000 if self.margin else None)


def test_finds_the_fastest_set_though_everything_and_every_single_group_is_slower(tmp_path: Path) -> None:
    # Alone each costs a conversion; the middle and the last together save more than both cost.
    machine = Machine(tmp_path, {"first": 0.2, "middle": 0.05, "gates": 0.3, "last": 0.05}, pairs={frozenset(("middle", "last")): -0.5})
    machine.groups = ("first", "gates", "middle", "last")
    choice = machine.choose()
    assert choice.best.groups == ("middle", "last")
    assert choice.best.ratio == pytest.approx(0.6, abs=0.01)
    assert choice.verdict.startswith("Compute middle, last in int8 (minmax, per channel): 0.60x of float32's latency")


def test_where_each_set_is_dear_few_are_timed_no_group_alone_and_the_rest_is_foretold(tmp_path: Path) -> None:
    """Of 25 groups the last fifteen gain 2% each and the others lose as much: the best set takes 0.7."""
    names = tuple(f"group {number}" for number in range(25))
    machine = Machine(tmp_path, {name: 0.02 if number < 10 else -0.02 for number, name in enumerate(names)}, groups=names)
    choice = machine.choose(dear=True)
    timed = [one for one in choice.tried if one.moved is None]
    assert len(timed) <= DEAR and not any(len(one.groups) == 1 for one in timed)
    assert choice.best.ratio <= 0.72
    assert len([one for one in machine.choose().tried if one.moved is None]) > 25


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
    assert not any(one.moved for one in choice.tried), "no setting is tried for what is not worth it"


def test_weights_stored_in_fewer_bits_win_where_nothing_is_faster(tmp_path: Path) -> None:
    machine = Machine(
        tmp_path,
        dict.fromkeys(NAMES, 0.1),
        other={"int8-weights": (1.0, 0.05, 110), "fp16-weights": (1.0, 0.0, 200), "dynamic": (3.0, 0.0, 100)},
    )
    assert machine.choose().best.mode == "int8-weights"
    # They lose 0.05 points; where nothing may be lost the fp16 ones win, and never what is slower.
    assert machine.choose(max_drop=0.01).best.mode == "fp16-weights"


def test_a_setting_that_moves_the_answers_less_is_found(tmp_path: Path) -> None:
    mse, both = Setting(method="mse"), Setting(method="mse", correct_bias=True)
    machine = Machine(tmp_path, dict.fromkeys(NAMES, -0.1), drops={"middle": 0.8}, moves={mse: 0.5, both: 0.25})
    choice = machine.choose()
    # 0.8 points with minmax, 0.4 with mse, 0.2 with bias correction besides.
    assert choice.best.setting == both
    assert choice.best.drop == pytest.approx(0.2)
    assert choice.best.groups == NAMES
    assert choice.best.moved == 0.25


def test_minmax_is_left_only_for_what_moves_the_answers_clearly_less(tmp_path: Path) -> None:
    """Entropy moves 0.95 of what minmax moves: not worth it. Of the others the least moving one wins, be it by little."""
    entropy, mse = Setting(method="entropy"), Setting(method="mse")
    adds = dict.fromkeys(NAMES, -0.1)
    assert Machine(tmp_path, adds, moves={entropy: HELPS + 0.05}).choose().best.setting == Setting()
    assert Machine(tmp_path, adds, moves={entropy: 0.5, mse: 0.49}).choose().best.setting == mse
    assert Machine(tmp_path, adds, moves={Setting(correct_bias=True): HELPS + 0.05}).choose().best.setting == Setting()
    assert Machine(tmp_path, adds, moves={Setting(correct_bias=True): HELPS - 0.05}).choose().best.setting == Setting(correct_bias=True)


def test_settings_are_chosen_without_the_images_that_prove(tmp_path: Path) -> None:
    """Only the files that are most wanted are asked, each once, and the 5% are divided among all that might have been."""
    other = {"int8-weights": (1.0, 0.05, 110), "fp16-weights": (1.0, 0.0, 200), "dynamic": (3.0, 0.0, 100)}
    machine = Machine(tmp_path, dict.fromkeys(NAMES, -0.1), other=other)
    choice = machine.choose()
    assert [path.name for path, _ in machine.asked] == ["1111minmax,perchannel"]
    assert machine.asked[0][1] == pytest.approx(0.05 / 4)  # two static files, two that store; dynamic is slower
    assert sum(one.moved is not None and one.drop is None for one in choice.tried) >= 7
    lossy = Machine(tmp_path, dict.fromkeys(NAMES, -0.1), drops={"middle": 2.0}, other=other)
    assert lossy.choose().best.groups == ("gates", "last"), "the second set, without what loses"
    assert len(lossy.asked) == len(set(lossy.asked)) and {error for _, error in lossy.asked} == {0.05 / 4}


def test_the_fastest_set_that_keeps_the_accuracy_wins_over_a_faster_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"first": -0.2, "middle": -0.2, "gates": 0.1, "last": -0.05}, drops={"first": 8.0, "gates": 8.0})
    choice = machine.choose()
    assert choice.best.mode == "float32"
    assert "what is faster (first, middle, last, 0.55x) loses 8.00 points, and 0.3 are allowed" in choice.verdict
    assert "--epochs" in choice.verdict
    assert any(one.mode == "static" and one.drop is not None and one.drop > 0.3 for one in choice.finalists)


def test_a_slower_set_that_is_proved_wins_over_a_faster_one_that_is_not(tmp_path: Path) -> None:
    """The two ways end at different sets: alone nothing but the first helps, and the last two help together."""
    machine = Machine(tmp_path, {"first": -0.1, "middle": 0.3, "gates": 0.1, "last": 0.1}, pairs={frozenset(("gates", "last")): -0.6})
    machine.drops = {"first": 1.0}
    choice = machine.choose()
    asked = [path.name for path, _ in machine.asked]
    assert asked[0] == "1011minmax,perchannel"
    assert choice.best.proved and choice.decided == "bound"


@pytest.mark.parametrize("accept", [False, True])
def test_where_the_images_cannot_tell_the_verdict_says_so_and_the_user_decides(accept: bool, tmp_path: Path) -> None:
    other = {"fp16-weights": (1.0, 0.0, 200)}
    machine = Machine(tmp_path, dict.fromkeys(NAMES, -0.1), drops={"middle": 0.1}, margin=0.45, other=other)
    choice = machine.choose(accept_unproved=accept)
    doubt = "not proved within 0.3 points with 1,000 images: 0.10 lost as counted, at most 0.55 with 95% confidence; about 4,000 would tell"
    everywhere = "first, middle, gates, last in int8 (minmax, per channel)"
    if accept:
        assert (choice.best.mode, choice.best.proved, choice.decided) == ("static", False, "point estimate")
        assert choice.verdict.startswith(f"Compute {everywhere}: 0.60x of float32's latency, 0.10 points lost, 0.40x of its size.")
        assert choice.verdict.endswith(f"It is {doubt}; that was accepted.")
    else:
        assert (choice.best.mode, choice.best.proved, choice.decided) == ("float32", True, "bound")
        assert choice.verdict == (
            f"Nothing in int8 is proved: {everywhere} takes 0.60x of float32's latency, but is {doubt}. Keep the float32 file. "
            "--accept-unproved computes it in int8."
        )
    [seen] = [one for one in choice.finalists if one.drop == pytest.approx(0.1)]
    assert (seen.bound, seen.images, seen.proved, seen.tells) == (pytest.approx(0.55), 1_000, False, 4_000)


def test_small_weights_that_are_not_proved_are_not_taken_either(tmp_path: Path) -> None:
    other = {"int8-weights": (1.0, 0.05, 110), "fp16-weights": (1.0, 0.0, 200)}
    machine = Machine(tmp_path, dict.fromkeys(NAMES, 0.1), other=other, margin=0.28)
    assert machine.choose().best.mode == "fp16-weights"
    assert machine.choose().verdict.endswith(
        "Weights stored as int8 is not proved within 0.3 points with 1,000 images: 0.05 lost as counted, at most 0.33 with 95% confidence; "
        "about 4,000 would tell; --accept-unproved takes it."
    )
    assert machine.choose(accept_unproved=True).best.mode == "int8-weights"
    machine.margin = 0.5
    assert machine.choose().best.mode == "float32"


def test_what_loses_too_much_as_counted_is_not_accepted_either(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"only": -0.4}, drops={"only": 0.31}, groups=("only",))
    assert machine.choose(accept_unproved=True).best.mode == "float32"
    machine.drops = {"only": 0.3}
    assert machine.choose().best.mode == "static"
    machine.margin = 0.1
    assert machine.choose(accept_unproved=True).best.mode == "static"


def test_what_gains_less_than_a_percent_is_not_looked_at_twice(tmp_path: Path) -> None:
    machine = Machine(tmp_path, dict.fromkeys(NAMES, -0.003), noise=1e-5)
    looks: list[int] = []
    times = machine.times

    def counted(files: Sequence[Path], rounds: int) -> NDArray[np.float64]:
        looks.append(rounds)
        return times(files, rounds)

    machine.times = counted  # type: ignore[method-assign]
    machine.choose()
    assert looks.count(SURE) == 2, "the two ends, and the last ones"


class Flattering(Machine):
    """Its short measurements make two sets look 3% faster than they are."""

    flattered = ("1000minmax,perchannel", "1001minmax,perchannel")

    def times(self, files: Sequence[Path], rounds: int) -> NDArray[np.float64]:
        return super().times(files, rounds) * [0.97 if rounds == QUICK and file.name in self.flattered else 1.0 for file in files]


def test_a_step_that_a_longer_measurement_finds_slower_is_not_taken(tmp_path: Path) -> None:
    """The last group gives 0.5; the first beside it looks like 0.500, and alone like 0.985, but it adds 0.015."""
    machine = Flattering(tmp_path, {"first": 0.015, "middle": 0.1, "gates": 0.1, "last": -0.5}, noise=1e-4)
    choice = machine.choose()
    assert choice.best.groups == ("last",)
    assert any(one.groups == ("first", "last") and one.rounds == SURE for one in choice.tried), "it was looked at twice"


def test_time_that_is_up_gives_the_best_so_far_and_says_so(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"first": -0.1, "middle": -0.1, "gates": 0.3, "last": -0.1})
    whole = machine.choose()
    assert whole.complete and "cut short" not in whole.verdict and whole.best.groups == ("first", "middle", "last")
    made, machine.made = machine.made, 0
    short = machine.choose(late=lambda: machine.made >= 4)
    assert not short.complete and machine.made < made
    assert short.best.groups in (("first",), ("middle",)), "the fastest of the few that were measured"
    assert short.verdict.endswith("The search was cut short; with more time it may find a faster file.")
    at_once = machine.choose(late=lambda: True)
    assert not at_once.complete and at_once.best.mode in ("float32", "static")


@pytest.mark.parametrize("images", [1_000, 10_000])
def test_a_whole_search_takes_a_file_that_loses_twice_the_limit_in_one_of_twenty_at_most(images: int, tmp_path: Path) -> None:
    """Every file loses 0.60 points where 0.30 are allowed: 0.9% of the images lost, 0.3% gained, drawn anew for each file and search.

    And that is not because nothing is ever taken: where 0.02 points are lost, 10,000 images prove it nearly always.
    """

    def searches(count: int, lost: float, gained: float) -> float:
        generator, labels = np.random.default_rng(images), np.arange(images) % 10
        other = {mode: (1.0, 0.0, size) for mode, size in (("int8-weights", 110), ("fp16-weights", 200))}
        machine = Machine(tmp_path, {"first": -0.2, "middle": 0.3, "last": -0.1}, other=other | {"dynamic": (0.9, 0.0, 150)}, noise=1e-4)
        machine.groups = ("first", "middle", "last")
        before = np.where(generator.random(images) < 0.05, labels + 1, labels)

        def certify(path: Path, error: float) -> Certified:
            draw, right = generator.random(images), before == labels
            after = np.where(right & (draw < lost / 0.95), labels + 2, np.where(~right & (draw < gained / 0.05), labels, before))
            found = paired_drop(labels, before, after, error=error)
            return Certified(drop=found.value, bound=found.bound, images=images)

        machine.certify = certify  # type: ignore[method-assign]
        return float(np.mean([machine.choose().best.mode != "float32" for _ in range(count)]))

    assert searches(200, 0.009, 0.003) <= 0.05
    assert searches(400, 0.0063, 0.0033) <= 0.05, "just at the limit"
    if images == 10_000:
        assert searches(20, 0.0007, 0.0005) >= 0.9


def test_every_candidate_stands_in_the_table_and_the_last_ones_were_measured_longest(tmp_path: Path) -> None:
    choice = Machine(tmp_path, dict.fromkeys(NAMES, -0.1)).choose()
    sets = {one.groups for one in choice.tried}
    assert {NAMES, NAMES[2:], NAMES[:1]} <= sets
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


def test_no_more_rounds_are_taken_than_it_needs_to_tell(tmp_path: Path) -> None:
    """With noise of 4% the interval around 0.955 is 3.5% wide to either side after 12 rounds, 2.4% after 24: it rarely takes 48 to tell."""
    taken = []
    for seed in range(10):
        machine = Machine(tmp_path, dict.fromkeys(NAMES, 0.1) | {"middle": -0.045}, noise=0.04)
        machine.generator = np.random.default_rng(seed)
        taken += [one.rounds for one in machine.choose().tried if one.groups == ("middle",) and one.moved is None]
    assert SURE < np.mean(taken) < CLOSE / 2
    assert set(taken) <= {QUICK, SURE, 24, 36, CLOSE}
    assert taken.count(QUICK) <= 1, "three rounds of that noise rarely say that it does not gain"


def test_most_sets_of_many_groups_are_foretold_and_not_timed(tmp_path: Path) -> None:
    """Of 25 groups every one alone and every fifth start; the twelve that gain are then found together in a few steps."""
    names = tuple(f"g{number:02}" for number in range(25))
    adds = {name: 0.08 if number < 13 else -0.03 for number, name in enumerate(names)}
    machine = Machine(tmp_path, adds | {"g03": -0.01, "g20": 0.3}, groups=names)
    choice = machine.choose()
    assert choice.best.groups == ("g03", *(name for name in names[13:] if name != "g20"))
    starts = {len(names) - len(one.groups) for one in choice.tried if one.groups == names[-len(one.groups) :]}
    assert {0, 5, 10, 15, 20, 24} == starts
    assert len({one.groups for one in choice.tried}) <= 40


def test_where_twelve_rounds_cannot_tell_more_are_taken(tmp_path: Path) -> None:
    """0.965x of the latency, with noise of 4% per measurement: an interval of 12 rounds is 3.5% wide to either side, and holds 0.98."""
    slow = dict.fromkeys(NAMES, 0.1)
    choice = Machine(tmp_path, slow | {"middle": -0.035}, noise=0.04).choose()
    rounds = {one.groups: one.rounds for one in choice.finalists}
    assert rounds[()] == rounds[NAMES] == SURE and SURE < rounds["middle",] <= CLOSE
    assert choice.best.groups == ("middle",)
    clear = Machine(tmp_path, dict.fromkeys(NAMES, 0.2) | {"middle": -0.3}, noise=0.04).choose()
    assert {one.rounds for one in clear.finalists} == {SURE}
