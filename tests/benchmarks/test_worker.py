import os
import time
from pathlib import Path

import numpy as np
import pytest

from compress.benchmarks import worker
from compress.benchmarks.runtimes import Candidate, Opened
from compress.benchmarks.worker import Session, on_core, reason_in, time_calls, warm_up


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ("note\nterminate called after an instance of 'std::bad_alloc'\n\n", "terminate called after an instance of 'std::bad_alloc'"),
        ('Traceback (most recent call last):\n  File "x"\ncompress.benchmarks.errors.BenchmarkError: no CUDA device\n', "no CUDA device"),
        (
            'Traceback (most recent call last):\n  File "x"\nKeyError: 1\n\nWhile\n\n'
            'Traceback (most recent call last):\n  File "y"\na.b.Fail: c\n  d\n',
            "Fail: c",
        ),
        ('Traceback (most recent call last):\n  File "x"\nMemoryError\nlater noise\n', "MemoryError"),
        ('Traceback (most recent call last):\n  File "x"\nOSError: ' + "n" * 999, "OSError: " + "n" * 291),
    ],
)
def test_reason_is_one_line_of_what_the_worker_left_behind(log: str, reason: str) -> None:
    assert reason_in(log) == reason


def test_timed_calls_cycle_over_the_inputs_from_the_first_one_on() -> None:
    seen: list[int] = []
    inputs = [np.full((1,), number) for number in range(3)]
    nanoseconds = time_calls(lambda images: seen.append(int(images[0])) or images, inputs, 2, 4)
    assert seen == [2, 0, 1, 2]
    assert nanoseconds.dtype == np.int64 and nanoseconds.shape == (4,)


def test_clock_counts_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(0, 10_000, 7))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    assert time_calls(lambda images: images, [np.zeros(1)], 0, 3).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("medians", "blocks", "steady"),
    [([100] * 9, 4, True), ([100, 80, 60, 50, 49.5], 5, True), ([100, 90, 80, 70, 60], 5, False)],
)
def test_warm_up_ends_once_a_block_gains_less_than_two_percent(
    monkeypatch: pytest.MonkeyPatch, medians: list[float], blocks: int, steady: bool
) -> None:
    given = iter([5e7, *(1e6 * median for median in medians)])  # one call fills a block's time, so a block is three calls
    monkeypatch.setattr(worker, "WARM_MOST", len(medians))
    monkeypatch.setattr(worker, "time_calls", lambda predict, inputs, first, calls: np.full(calls, next(given)))
    samples, became_steady = warm_up(lambda images: images, [])
    assert (len(samples), became_steady) == (3 + 3 * blocks, steady)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot choose its core here")
def test_a_turn_stays_on_its_core_and_leaves_the_thread_free_again() -> None:
    before = os.sched_getaffinity(0)
    with on_core(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ZeroDivisionError), on_core(max(before)):
        raise ZeroDivisionError
    with on_core(None):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("last", [False, True])
def test_images_lie_as_the_file_takes_them(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(predict=lambda images: images, providers=(), load_ns=1, first_ns=1, last=last)
    monkeypatch.setattr(worker, "open_model", lambda *_: opened)
    images = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    session = Session(Candidate(name="a", path=Path("a")), [images], None, 1)
    session.open()
    [found] = session._inputs
    np.testing.assert_array_equal(found, images)
    assert found.flags.c_contiguous is not last and found.transpose(0, 2, 3, 1).flags.c_contiguous is last
