import subprocess

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


def test_it_is_found_for_real_and_is_none_where_the_process_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (peak.gemm_peak(1) or 0) > 1e7
    monkeypatch.setattr(peak.sys, "executable", "/nowhere/python")
    assert peak.gemm_peak(1) is None
