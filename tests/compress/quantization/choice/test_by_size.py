"""The choice for a processor that is not here, among made-up files whose sizes and losses are known by hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from compress.errors import CompressError
from compress.quantization.choice.by_size import choose_by_size
from compress.quantization.choice.latency_model import Groups
from compress.quantization.choice.search import ERROR, Readers
from compress.quantization.records import Certified, Choice, Setting, Tried

NAMES = ("first", "middle", "gates", "last")


@dataclass
class Files:
    """Float32 takes 400 bytes, a static file 100 and 2 for each group in int8; ``others``: size and points lost of further modes.

    ``drops``: points that each group loses in int8, by which answers move too. ``margin``: what the bound adds.
    """

    folder: Path
    drops: Mapping[str, float]
    others_: Mapping[str, tuple[int, float]] = field(default_factory=lambda: {"int8-weights": (102, 0.0), "fp16-weights": (200, 0.0)})
    margin: float = 0.0
    groups: Sequence[str] = NAMES
    borders = ()

    def __post_init__(self) -> None:
        self.held: dict[Path, float] = {}
        self.asked: list[tuple[str, float]] = []

    def write(self, name: str, size: int, lost: float) -> Path:
        path = self.folder / name
        path.write_bytes(bytes(size))
        self.held[path] = lost
        return path

    @property
    def float32(self) -> Path:
        return self.write("float32", 400, 0.0)

    def sketch(self, groups: Groups) -> Path:
        raise AssertionError("what is not timed needs no sketch")

    def static(self, groups: Groups, setting: Setting) -> Path:
        name = "".join("1" if one in groups else "0" for one in self.groups) + str(setting)
        return self.write(name.replace(" ", ""), 100 + 2 * len(groups), sum(self.drops.get(one, 0.0) for one in groups))

    def others(self) -> dict[str, Path]:
        return {mode: self.write(mode, *about) for mode, about in self.others_.items()}

    def certify(self, path: Path, error: float) -> Certified:
        self.asked.append((path.name, error))
        return Certified(drop=self.held[path], bound=self.held[path] + self.margin, images=1_000, tells=4_000 if self.margin else None)

    def choose(self, accept_unproved: bool = False, late: Callable[[], bool] = lambda: False) -> Choice:
        readers = Readers(moved=self.held.__getitem__, certify=self.certify, progress=lambda told: None, late=late)
        return choose_by_size(self, readers, target="cortex-a53", max_drop=0.3, accept_unproved=accept_unproved)


def test_of_files_as_small_the_one_with_most_in_int8_that_keeps_the_limit(tmp_path: Path) -> None:
    """Everything loses 0.5; without the worst of four groups 0.1, and that is proved before anything smaller in int8 is asked."""
    files = Files(tmp_path, {"gates": 0.4, "last": 0.1})
    found = files.choose()
    assert found.best.groups == ("first", "middle", "last") and found.best.proved and found.best.drop == pytest.approx(0.1)
    assert [name[:4] for name, _ in files.asked] == ["1111", "1101"]
    assert {error for _, error in files.asked} == {ERROR / 5}  # float32 needs no proof; five others might be asked
    assert found.complete and found.decided == "bound" and len(found.tried) >= 8


def test_where_a_quarter_is_not_enough_half_of_the_groups_are_left_out(tmp_path: Path) -> None:
    files = Files(tmp_path, {"gates": 0.5, "last": 0.4})
    assert files.choose().best.groups == ("first", "middle")
    assert [name[:4] for name, _ in files.asked] == ["1111", "1101", "1100"]


def test_no_latency_is_said_and_that_it_is_unknown_is(tmp_path: Path) -> None:
    found = Files(tmp_path, {"gates": 0.4}).choose()
    assert all((one.ratio, one.low, one.high, one.rounds) == (None, None, None, 0) for one in (*found.finalists, *found.tried))
    assert found.verdict == (
        "For cortex-a53: compute first, middle, last in int8 (minmax, per channel): 0.00 points lost (at most 0.00 with 95% confidence), "
        "0.27x of float32's size. Latency is unknown on cortex-a53, and int8 is slower than float32 on some processors: this was chosen "
        "by size and accuracy alone, so measure it there."
    )


def test_where_all_sets_lose_too_much_weights_are_stored_small(tmp_path: Path) -> None:
    found = Files(tmp_path, dict.fromkeys(NAMES, 0.4)).choose()
    assert found.best.mode == "int8-weights"
    assert found.verdict.startswith("For cortex-a53: store the weights as int8 and compute in float32: 0.00 points lost")
    assert "slower" not in found.verdict and "Latency is unknown on cortex-a53: this was chosen" in found.verdict


def test_what_is_much_larger_is_not_taken_for_its_arithmetic(tmp_path: Path) -> None:
    """A static file has 108 bytes: more than 1.1 times 80."""
    assert Files(tmp_path, {}, {"int8-weights": (80, 0.0)}).choose().best.mode == "int8-weights"
    assert Files(tmp_path, {}, {"int8-weights": (99, 0.0)}).choose().best.mode == "static"


def test_what_is_not_proved_is_told_and_may_be_accepted(tmp_path: Path) -> None:
    files = Files(tmp_path, {"gates": 0.1}, margin=0.5)
    found = files.choose()
    assert found.best.mode == "float32" and found.decided == "bound"
    assert found.verdict.startswith(
        "For cortex-a53: keep the float32 file: 0.00 points lost, 1.00x of float32's size. First, middle, gates"
    )
    assert "not proved within 0.3 points with 1,000 images: 0.10 lost as counted" in found.verdict
    taken = files.choose(accept_unproved=True)
    assert taken.best.groups == NAMES and taken.decided == "point estimate" and "that was accepted" in taken.verdict


def test_a_search_that_is_cut_short_says_so(tmp_path: Path) -> None:
    found = Files(tmp_path, {"gates": 0.4}).choose(late=lambda: True)
    assert not found.complete and found.verdict.endswith("The search was cut short; with more time it may find a better file.")
    assert found.best.mode == "int8-weights"  # nobody knows which group hurts


def test_of_one_group_there_is_nothing_to_leave_out(tmp_path: Path) -> None:
    files = Files(tmp_path, {"dense": 0.4}, groups=("dense",))
    assert files.choose().best.mode == "int8-weights"
    assert [name[:1] for name, _ in files.asked] == ["1", "i"]


def test_a_latency_is_known_with_its_interval_or_not_at_all() -> None:
    with pytest.raises(CompressError, match="ratio, low and high must be known together"):
        Tried(mode="float32", ratio=1.0)
