"""Freed memory is kept, or given back, as is asked for; in processes of their own, as it counts for all of a process."""

import subprocess
import sys

import pytest

# A tensor of a training's size, freed inside the block and after it.
KEPT = """
import numpy as np
from compress.train.allocator import freed_memory_given_back, freed_memory_kept
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
def freed(size=50_000_000):
    array, after = np.ones(size, np.uint8), np.ones(100, np.uint8)
    most = held()
    del array
    return most - held()
with freed_memory_kept():
    inside = freed()
outside = freed()
with freed_memory_given_back():
    smaller = freed(5_000_000)
print(inside, outside, smaller)
"""
# Small arrays, every second of which goes: the holes between them are smaller than what the C library gives back by itself.
HOLES = """
import numpy as np
from compress.train.allocator import give_back_freed_memory
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
arrays = [np.ones(16384, np.uint8) for _ in range(8000)]
del arrays[::2]
before = held()
assert give_back_freed_memory()
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc")
def test_holes_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 30e6  # of the 65 MB that were freed: the kernel takes whole pages only


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and glibc")
def test_memory_is_kept_as_long_as_is_said() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True)
    inside, after, smaller = map(int, done.stdout.split())
    assert inside < 1e6 and after > 49e6 and smaller > 4.9e6
