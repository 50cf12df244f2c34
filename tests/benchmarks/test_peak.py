import subprocess
import time

import numpy as np
import pytest

from compress.benchmarks import peak


def test_peak_is_the_best_of_a_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    # For each side: the end is set, then three products of 1, 0.25 and 1 seconds, and after the third a look at the clock.
    ticks = iter([0.0, 1.0, 2.0, 3.0, 3.25, 4.0, 5.0, 99.0, 0.0, 1.0, 9.0, 10.0, 18.0, 19.0, 27.0, 99.0])
    monkeypatch.setattr(peak, "SIDES", (10, 20))
    monkeypatch.setattr(peak, "LEAST", 3)
    monkeypatch.setattr(peak.time, "perf_counter", lambda: next(ticks))
    assert peak.measure() == 10**3 / 0.25  # the larger ones take 8 seconds for 8000


def test_another_process_measures_with_the_threads_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        seen.update({"command": command, **options})
        return subprocess.CompletedProcess(command, 0, "5e10\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert peak.gemm_peak(3) == 5e10
    assert seen["env"]["OMP_NUM_THREADS"] == seen["env"]["OPENBLAS_NUM_THREADS"] == "3"


def test_every_side_is_tried_at_least_so_often_and_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only products move, by a tenth of a second each: 0.15 s are over after two, and five are taken; 0.75 s are eight."""
    now, sides = [0.0], []

    def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        assert a.dtype == out.dtype == np.float32 and a.shape == b.shape == out.shape
        sides.append(len(a))
        now[0] += 0.1

    monkeypatch.setattr(np, "matmul", matmul)
    monkeypatch.setattr(peak.time, "perf_counter", lambda: now[0])
    assert peak.measure() == pytest.approx(1024**3 / 0.1)
    assert sides == [384] * 5 + [1024] * 5
    sides.clear()
    monkeypatch.setattr(peak, "SECONDS", 0.75)
    peak.measure()
    assert sides == [384] * 8 + [1024] * 8


def test_it_is_that_of_a_product_here_give_or_take_a_busy_machine() -> None:
    """Wrong by the side of the matrix or by seconds in its unit would be wrong by hundreds."""
    matrix = np.full((256, 256), 0.5, np.float32)
    begin = time.perf_counter()
    for _ in range(20):
        matrix @ matrix
    here = 20 * 256**3 / (time.perf_counter() - begin)
    found = peak.gemm_peak(1)
    assert found is not None and here / 60 < found < 60 * here


@pytest.mark.parametrize(
    "failure",
    [
        subprocess.CalledProcessError(1, "python"),
        subprocess.TimeoutExpired("python", 60),
        FileNotFoundError("python"),
        subprocess.CompletedProcess([], 0, "no number\n", ""),
    ],
)
def test_it_is_none_where_the_process_fails(monkeypatch: pytest.MonkeyPatch, failure: object) -> None:
    def run(command: list[str], **options: object) -> object:
        assert options["check"] and options["timeout"]
        if isinstance(failure, BaseException):
            raise failure
        return failure

    monkeypatch.setattr(subprocess, "run", run)
    assert peak.gemm_peak(1) is None
