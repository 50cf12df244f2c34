"""Images on disk: the truth is the array that was written to the file, and what the process took of memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compress.train.data_set import Part
from compress.train.errors import TrainError
from compress.train.stored import Stored, joined

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 3, 4, 5), dtype=np.uint8)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    IMAGES.tofile(tmp_path / "images")
    return Stored(tmp_path / "images", (3, 4, 5))


@pytest.mark.parametrize("which", [slice(None), slice(3, 20, 4), slice(28, 99), [5, 2, 5], np.arange(30) % 7 == 0, 4, -1, np.arange(0)])
def test_an_index_gives_what_it_gives_of_the_array(stored: Stored, which: object) -> None:
    np.testing.assert_array_equal(stored[which], IMAGES[which], strict=True)
    turned = np.arange(30)[::-1]
    np.testing.assert_array_equal(stored.take(turned)[which], IMAGES[turned][which], strict=True)
    assert stored.shape == IMAGES.shape and len(stored) == 30 and np.array_equal(np.asarray(stored), IMAGES)


def test_parts_of_it_are_divided_and_joined_without_a_read(stored: Stored) -> None:
    part = Part(stored, np.arange(30))
    first, second = part.take(np.arange(30) < 10), part.take(np.arange(10, 30)).take(np.arange(20)[::-1])
    whole = joined([first.images, second.images])
    assert isinstance(whole, Stored) and isinstance(second.images, Stored)
    np.testing.assert_array_equal(whole[:], np.concatenate([IMAGES[:10], IMAGES[10:][::-1]]))
    np.testing.assert_array_equal(second.read().images, IMAGES[second.labels])


def test_a_file_that_is_removed_is_read_on_and_one_that_is_cut_short_is_told(stored: Stored) -> None:
    stored.will_need([0, 1])
    stored.path.rename(stored.path.with_name("old"))
    np.testing.assert_array_equal(stored[29], IMAGES[29])
    with stored.path.with_name("old").open("rb+") as file:
        file.truncate(100)
    with pytest.raises(TrainError, match="images was cut short while it was used; run the command again"):
        stored[29]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_is_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "images").open("wb") as file:
        file.truncate(300 << 20)
    script = """
import sys
from pathlib import Path
from compress.train.stored import Stored
images = Stored(Path(sys.argv[1]), (3, 64, 64))
def peak():  # ru_maxrss would begin with what the parent's process holds
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
assert sum(int(images[start : start + 64].any()) for start in range(0, len(images), 64)) == 0
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "images"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "kB, of 300 MB"
