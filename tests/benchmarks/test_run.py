"""The whole measurement with real processes. No test asserts on a time."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from compress.artifacts.payloads import read_results
from compress.benchmarks import machine, place, run, sweep, worker
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.records import Record
from compress.benchmarks.results import Result, write_results
from compress.benchmarks.run import BenchmarkConfig, baseline_index, run_benchmark, scoring_batch
from compress.benchmarks.runtimes import Candidate

Make = Callable[..., Path]
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
LABELS = IMAGES.reshape(300, 16)[:, :3].argmax(axis=1)
QUICK = BenchmarkConfig(launches=2, rounds=2, samples=20, sweeps=False, time_limit=0)
LOADS = """
    import os
    import sys

    def as_it_is(images):
        return images

    def first_three(images):
        return images.flatten(1)[:, :3].float()

    def brightest(path):
        return as_it_is, first_three

    def aborting(path):
        os.abort()

    def failing_in_large_batches(path):
        def few(images):
            assert len(images) != 64, "no room for 64"
            return first_three(images)
        return as_it_is, few

    def chatty(path):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        raise KeyError("features.0.weight")
"""


@pytest.fixture(autouse=True)
def peak_of_50_gmacs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one takes half a second and has tests of its own."""
    monkeypatch.setattr(place, "gemm_peak", lambda threads: 5e10)


def score(labels: np.ndarray, predictions: np.ndarray, classes: int) -> dict[str, float]:
    return {"balanced_accuracy": float(np.mean([(predictions[labels == k] == k).mean() for k in range(classes)]))}


def measure(*candidates: Candidate, baseline: str = "fp32", config: BenchmarkConfig = QUICK, **other: object) -> Result:
    return run_benchmark(candidates, IMAGES, LABELS, 3, score, config, baseline=baseline, data={"name": "toy"}, **other)


@pytest.fixture
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a caller's with networks of its own; workers find it on the path as they find any."""
    (tmp_path / "caller_loads.py").write_text(textwrap.dedent(LOADS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "caller_loads", raising=False)
    import caller_loads

    return caller_loads


def test_accuracy_agreement_and_samples_are_those_of_each_file(pixel_model: Make, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = measure(
        Candidate(name="fp32", path=pixel_model("right"), stage="export", artifact="ab12", facts={"params": 48}),
        Candidate(name="wrong", path=pixel_model("wrong", offset=5)),
        progress=lambda *what: told.append(what),
    )
    right, wrong = found.measurements
    agreement = (IMAGES.reshape(300, 16)[:, 5:8].argmax(axis=1) == LABELS).mean()
    assert (right.scores["balanced_accuracy"], right.agreement, wrong.agreement) == (1.0, 1.0, pytest.approx(agreement))
    assert (right.stage, right.artifact, right.facts, right.file) == ("export", "ab12", {"params": 48}, "right.onnx")
    assert np.shape(right.samples_ns) == (2, 2, 20) and len(right.warmup_ns) >= 2 * (30 + 2 * 5)
    assert right.latency is not None and right.latency.p90 is not None and right.latency.p99 is None
    assert right.latency.p50 == pytest.approx(np.exp(np.log(np.median(right.samples_ns, axis=(1, 2))).mean()) / 1e9)
    answers = found.answers_of(wrong)
    assert found.true_labels is not None and found.true_labels.tolist() == LABELS.tolist()
    assert answers is not None and answers.tolist() == IMAGES.reshape(300, 16)[:, 5:8].argmax(axis=1).tolist()
    assert right.path == str(tmp_path / "right.onnx")
    assert right.size_bytes == (tmp_path / "right.onnx").stat().st_size
    assert told[-1] == ("sweeps", 2, 2) and ("rounds", 4, 4) in told and ("test images read", 600, 600) in told
    assert right.intervals["balanced_accuracy"].value == 1.0 and right.comparison is None and right.flips == ()
    assert wrong.comparison is not None and len(wrong.comparison.lost) == round(300 * (1 - agreement)) and len(wrong.flips) == 12
    assert wrong.placement["CPUExecutionProvider"]["MatMul"] == 1 and (wrong.activation_bytes or 0) >= 200 * 200 * 4
    assert len(right.turns) == 4 and len(right.load_ns) == len(right.first_ns) == 2 and right.load is not None
    assert (right.sweeps, right.sweep_reason, right.throughput, right.on_device, right.device_ns) == ((), None, None, None, ())
    assert right.memory_bytes is None or right.memory_bytes > 10_000_000
    assert multiprocessing.active_children() == []
    write_results(found, tmp_path / "benchmark.json")
    assert read_results(tmp_path / "benchmark.json") == found


@pytest.mark.parametrize(
    ("shape", "batch"), [((1, 28, 28), 256), ((3, 32, 32), 256), ((3, 96, 96), 75), ((3, 224, 224), 13), ((3, 2048, 2048), 1)]
)
def test_images_are_read_in_batches_by_bytes(shape: tuple[int, ...], batch: int) -> None:
    assert scoring_batch(int(np.prod(shape))) == batch


def test_only_one_worker_reads_test_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker answers a batch before any other gets one, and gives its memory back before the next begins."""
    told: list[tuple[str, str]] = []

    class Told:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, command: str, *images: np.ndarray) -> tuple[np.ndarray, None] | None:
            told.append((self.name, command))
            return (np.zeros(len(images[0]), np.int64), None) if images else None

    monkeypatch.setattr(run, "PREDICT_BYTES", 16 * 100)
    records = [run.Record(candidate=Candidate(name=name, path=Path(name)), points=[]) for name in "ab"]
    run._predict([(Told(record.candidate.name), record) for record in records], IMAGES, None)  # type: ignore[misc]
    assert told == [("a", "predict")] * 3 + [("a", "release")] + [("b", "predict")] * 3 + [("b", "release")]
    assert [len(np.concatenate(record.predictions)) for record in records] == [300, 300]


def test_sweeps_are_taken_in_every_launch_and_share_of_the_peak_follows_from_latency(
    pixel_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "usable_cores", lambda: 2)
    config = BenchmarkConfig(launches=2, rounds=1, samples=5, time_limit=0)
    found = measure(Candidate(name="fp32", path=pixel_model("a"), facts={"macs": 48}), config=config)
    (one,) = found.measurements
    assert [(point.batch, point.threads) for point in one.sweeps] == [(1, 1), (8, 1), (64, 1), (1, 2), (64, 2)]
    assert all(len(point.samples_ns) == 2 and len(launch) >= 2 for point in one.sweeps for launch in point.samples_ns)
    assert one.latency is not None and found.peak == 5e10
    assert one.peak_share == pytest.approx(48 / one.latency.p50 / 5e10)


def test_a_sweep_that_fails_undoes_nothing_of_the_comparison(loads: ModuleType, tmp_path: Path) -> None:
    (one,) = measure(
        Candidate(name="fp32", path=tmp_path, runtime="torch", load=loads.failing_in_large_batches),
        config=BenchmarkConfig(launches=2, rounds=1, samples=5, time_limit=0),
    ).measurements
    assert one.reason is None and one.latency is not None and len(one.samples_ns) == 2 and one.scores["balanced_accuracy"] == 1.0
    assert (one.sweeps, one.sweep_reason) == ((), "AssertionError: no room for 64")


def test_a_file_with_much_more_work_is_measured_as_slower(pixel_model: Make) -> None:
    heavy = measure(
        Candidate(name="fp32", path=pixel_model("light")), Candidate(name="heavy", path=pixel_model("heavy", work=20))
    ).measurements[1]
    assert heavy.speedup is not None and heavy.speedup.value < 0.5


def test_what_cannot_be_measured_says_why_and_stops_nothing_else(
    pixel_model: Make, tmp_path: Path, loads: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = pixel_model("whole")
    (tmp_path / "cut.onnx").write_bytes(whole.read_bytes()[:500])
    folder = tmp_path / "artifact"
    folder.mkdir()
    torch = {"path": folder, "runtime": "torch"}
    found = measure(
        Candidate(name="fp32", path=whole),
        Candidate(name="cut", path=tmp_path / "cut.onnx"),
        Candidate(name="gone", path=tmp_path / "gone.onnx"),
        Candidate(name="dies", load=loads.aborting, **torch),
        Candidate(name="chatty", load=loads.chatty, **torch),
    )
    reasons = {(one.name, one.runtime): one.reason for one in found.measurements}
    assert reasons["fp32", "onnxruntime"] is None
    assert "failed:Protobuf parsing failed" in str(reasons["cut", "onnxruntime"])
    assert str(reasons["gone", "onnxruntime"]).endswith("gone.onnx) does not exist; export the model first")
    assert reasons["dies", "torch"] == "the process ended by SIGABRT"
    assert reasons["chatty", "torch"] == "KeyError: 'features.0.weight'"
    assert all("\n" not in str(reason) for reason in reasons.values())
    assert capfd.readouterr() == ("", "")


def test_cuda_without_a_device_is_not_measured(pixel_model: Make, tmp_path: Path, loads: ModuleType) -> None:
    import onnxruntime
    import torch

    if torch.cuda.is_available() or "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there may be a CUDA device here")
    path = pixel_model("a")
    found = measure(
        Candidate(name="fp32", path=path),
        Candidate(name="fp32", path=path, device="cuda"),
        Candidate(name="fp32", path=tmp_path, runtime="torch", device="cuda", load=loads.brightest),
    )
    assert [one.reason for one in found.measurements] == [None, "onnxruntime build without CUDAExecutionProvider", "no CUDA device"]


def test_without_its_baseline_the_rest_is_measured_but_not_compared(pixel_model: Make, tmp_path: Path) -> None:
    gone, there = measure(Candidate(name="fp32", path=tmp_path / "gone.onnx"), Candidate(name="int8", path=pixel_model("a"))).measurements
    assert gone.latency is None and there.latency is not None
    assert there.speedup is None and there.agreement is None


def test_baseline_is_the_onnx_file_on_the_cpu_where_several_have_its_name() -> None:
    places = (("torch", "cpu"), ("onnxruntime", "cuda"), ("onnxruntime", "cpu"))
    candidates = [Candidate(name="fp32", path=Path("a"), runtime=runtime, device=device, load=print) for runtime, device in places]
    assert baseline_index(candidates, "fp32") == 2
    assert baseline_index(candidates[:2], "fp32") == 0


@pytest.mark.parametrize(
    ("names", "baseline", "message"),
    [
        ((), "fp32", r"baseline \(=fp32\) is none of the candidates; choose one of: none"),
        (("a", "b"), "fp32", r"baseline \(=fp32\) is none of the candidates; choose one of: a, b"),
        (("a", "a"), "a", r"candidate \(=a\) stands twice for onnxruntime on cpu; give each file a name of its own"),
    ],
)
def test_candidates_that_cannot_be_told_apart_are_refused(names: tuple[str, ...], baseline: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        measure(*(Candidate(name=name, path=Path("a.onnx")) for name in names), baseline=baseline)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES[:0], LABELS[:0], r"images \(=uint8 \(0, 1, 4, 4\)\) must be uint8 \(N, C, H, W\) with N of at least 1"),
        (IMAGES.astype(np.float32), LABELS, r"images \(=float32 \(300, 1, 4, 4\)\) must be uint8"),
        (IMAGES, LABELS[:5], r"labels \(=\(5,\)\) must be one per image, \(300,\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        run_benchmark([Candidate(name="a", path=Path("a"))], images, labels, 3, score, QUICK, baseline="a", data={})


KILLED = """
    import sys
    from pathlib import Path
    import numpy as np
    from compress.benchmarks.run import BenchmarkConfig, run_benchmark
    from compress.benchmarks.runtimes import Candidate

    def progress(what, done, total):
        if what == "rounds" and done == 1:
            import multiprocessing
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)

    if __name__ == "__main__":
        config = BenchmarkConfig(rounds=100_000)
        images = np.zeros((4, 1, 4, 4), np.uint8)
        candidates = [Candidate(name=name, path=Path(sys.argv[1])) for name in "ab"]
        run_benchmark(candidates, images, np.zeros(4, int), 3, None, config, baseline="a", data={}, progress=progress)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_a_killed_parent(pixel_model: Make, tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "main.py").write_text(textwrap.dedent(KILLED))
    command = [sys.executable, str(tmp_path / "main.py"), str(pixel_model("a"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        os.kill(parent.pid, how)
        parent.wait(30)
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_measuring_loads_neither_torch_nor_what_the_report_needs() -> None:
    program = "import sys, compress.benchmarks.run, compress.benchmarks.worker; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())
    assert not {"torch", "onnx", "onnxruntime", "jinja2", "matplotlib", "compress.models", "compress.train"} & loaded


def record(*medians: float, runtime: str = "onnxruntime", reason: str | None = None) -> Record:
    """Launches of one round and one call each, in seconds."""
    load = (lambda path: (None, None)) if runtime == "torch" else None
    made = Record(candidate=Candidate(name="a", path=Path("a"), runtime=runtime, load=load), points=[], reason=reason)
    made.samples = [np.array([round(1e9 * seconds)], np.int64) for seconds in medians]
    return made


def test_a_speedup_is_too_wide_where_its_interval_is_and_only_of_what_may_ship() -> None:
    """Ratios 1.00 and 1.01 of two launches: Student's t gives 12.7 * 0.005, so about 13% from end to end."""
    config, base = BenchmarkConfig(launches=2, rounds=1, samples=1, within=0.1), record(1, 1)
    assert run._too_wide([base, record(1, 1.01)], base, config)
    assert not run._too_wide([base, record(1, 1.01)], base, replace(config, within=0.14))
    assert not run._too_wide([base, record(1, 1)], base, replace(config, within=1e-9))
    assert not run._too_wide([base, record(1, 1.01, runtime="torch"), record(1, 1.01, reason="died")], base, config)
    lost = record(reason="died")
    assert not run._too_wide([lost, record(1, 1.01)], lost, config)


def test_launches_go_on_while_a_speedup_is_too_wide_and_there_is_time(pixel_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False])
    monkeypatch.setattr(run, "_too_wide", lambda *_: next(answers))
    candidates = [Candidate(name=name, path=pixel_model(name)) for name in ("fp32", "int8")]
    found = measure(*candidates, config=replace(QUICK, time_limit=600))
    assert found.settings["launches"] == 3
    assert [np.shape(one.samples_ns) for one in found.measurements] == [(3, 2, 20)] * 2
    monkeypatch.setattr(run, "_too_wide", lambda *_: True)
    assert measure(*candidates).settings["launches"] == 2, "no time is left"


def test_every_turn_has_a_session_of_its_own(pixel_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    real = worker.open_model

    def opening(*arguments: object) -> object:
        opened.append(real(*arguments))  # type: ignore[arg-type]
        return opened[-1]

    monkeypatch.setattr(worker, "open_model", opening)
    session = worker.Session(Candidate(name="a", path=pixel_model("a")), [IMAGES[:1]], 3, 1)
    session.open()
    session.time(0, 2)
    session.time(0, 2)
    assert len(opened) == 3
    monkeypatch.setattr(worker, "MOST_OPENING_NS", 0)
    session.time(0, 2)
    assert len(opened) == 3, "a file that takes long to open is opened once"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot choose its core here")
def test_all_candidates_of_a_round_run_on_one_core_and_the_next_round_on_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core that is slower for a while makes a round slower, and no candidate of it slower than another."""
    asked: list[tuple[int, int | None]] = []

    class Fake:
        def __init__(self, name: int) -> None:
            self.name = name

        def ask(self, command: str, *arguments: object) -> None:
            if command == "time":
                asked.append((self.name, arguments[2]))  # type: ignore[arg-type]

    pairs: Any = [(Fake(number), SimpleNamespace(warmup=[], samples=[], turns=[], unsteady=0)) for number in range(3)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 2})
    config, generator = BenchmarkConfig(rounds=3), np.random.default_rng(0)
    for launch in range(2):
        run._time(pairs, launch, config, generator, machine.strongest_cores(1), None)
    assert [core for _, core in asked] == [core for core in (2, 5, 2, 5, 2, 5) for _ in range(3)]
    assert all({name for name, _ in asked[at : at + 3]} == {0, 1, 2} for at in range(0, len(asked), 3))
    assert machine.strongest_cores(2) == []
    monkeypatch.setattr(machine, "_strength", {2: 446, 5: 1024}.__getitem__)
    assert machine.strongest_cores(1) == [5], "not the little one"


def test_what_the_system_says_of_a_core_is_read_or_nothing() -> None:
    assert machine._strength(0) >= 0
    assert machine._strength(10**6) == 0
