"""Who lives: this process, a child until it is killed, and workers of other hosts by their beats."""

import subprocess
import sys
import time

from compress.train.workers import STALE, is_alive, this_worker

LONG_AGO = 0.0


def test_this_process_lives_however_long_its_last_beat_is_ago() -> None:
    assert is_alive(this_worker(), LONG_AGO)


def test_a_killed_process_is_dead_at_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    code = f"from compress.train import workers; print(workers._born({child.pid}))"
    born = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    worker = this_worker() | {"pid": child.pid, "born": born}
    assert is_alive(worker, LONG_AGO)
    child.kill()
    child.wait()
    assert not is_alive(worker, time.time())


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it() -> None:
    assert not is_alive(this_worker() | {"born": "1"}, time.time())


def test_a_worker_of_another_host_lives_as_long_as_it_beats() -> None:
    worker = this_worker() | {"host": "elsewhere"}
    assert is_alive(worker, time.time() - STALE / 2)
    assert not is_alive(worker, time.time() - 2 * STALE)
