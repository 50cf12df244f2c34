"""Turns of many files: whose time stands where, and how many are open at once."""

import weakref
from pathlib import Path

import numpy as np
import pytest

from compress.benchmarks import turns
from compress.benchmarks.turns import Runtime, in_turns


class Session:
    """Stands for one of a file that says how long its calls take."""

    def __init__(self, file: Path) -> None:
        self.seconds = float(file.read_text().split()[0])


@pytest.mark.parametrize(("room", "most"), [(250, 2), (1000, 5), (10, 1)])
def test_files_are_open_as_many_at_a_time_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, room: float, most: int
) -> None:
    """By hand: of files of 100 bytes two fit into 250; one that is larger than the room is opened alone."""
    files = [tmp_path / f"{number}.onnx" for number in range(5)]
    for number, file in enumerate(files):
        file.write_text(f"{number + 1}".ljust(100))
    alive, counts, opened = weakref.WeakSet[Session](), list[int](), list[Path]()

    def opening(file: Path) -> Session:
        session = Session(file)
        alive.add(session)
        opened.append(file)
        counts.append(len(alive))
        return session

    monkeypatch.setattr(turns, "MOST_BYTES", room)
    monkeypatch.setattr(turns, "_turn", lambda session, images: session.seconds)
    seconds = in_turns(files, [np.zeros((1, 1, 2, 2), np.uint8)], 3, np.random.default_rng(0), Runtime(opening=opening))
    assert max(counts) == most and len(alive) == 0
    assert seconds.tolist() == [[1, 2, 3, 4, 5]] * 3
    assert sorted(opened) == sorted(files * 3) and opened[5:10] == opened[:5][::-1]
