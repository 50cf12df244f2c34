"""What this machine's processor could do: multiply-accumulates per second of a float32 matrix product, by numpy, in a process of its own.

    python -m compress.benchmarks.peak 1

The share of it that a network reaches says how much room is left for better kernels. int8 kernels may exceed it, since their own peak is
higher. Best of several products, as whatever disturbs one only makes it slower.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

# The small one takes a millisecond, which a busy machine leaves in one piece (768 alone gave 42 instead of 68 GMAC/s on one); the large one
# is for many cores.
SIDES, LEAST, SECONDS = (384, 1024), 5, 0.15
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def gemm_peak(threads: int) -> float | None:
    """Multiply-accumulates per second on so many threads; None where it could not be measured."""
    # numpy's BLAS reads its number of threads once, when it is loaded; hence a fresh process.
    environment = os.environ | dict.fromkeys(VARIABLES, str(threads))
    command = [sys.executable, "-P", "-m", "compress.benchmarks.peak", str(threads)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def measure() -> float:
    """The same, in this process, on as many threads as numpy has."""
    import numpy as np

    best = 0.0
    for side in SIDES:
        matrix, out = np.full((side, side), 0.5, np.float32), np.empty((side, side), np.float32)
        count, end = 0, time.perf_counter() + SECONDS
        while count < LEAST or time.perf_counter() < end:
            begin = time.perf_counter()
            np.matmul(matrix, matrix, out=out)
            best, count = max(best, side**3 / (time.perf_counter() - begin)), count + 1
    return best


if __name__ == "__main__":
    sys.stdout.write(f"{measure()}\n")
