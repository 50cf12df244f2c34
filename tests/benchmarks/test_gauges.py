from pathlib import Path

import pytest

from compress.benchmarks import gauges


@pytest.fixture
def rapl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up tree of the kernel's: one package with a part that must not count twice."""
    for name, energy in (("intel-rapl:0", 1_000), ("intel-rapl:0:0", 400), ("intel-rapl:1", 990)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000\n")
    monkeypatch.setattr(gauges, "POWERCAP", tmp_path)
    return tmp_path


def test_energy_is_that_of_whole_packages_and_a_wrapped_counter_counts_on(rapl: Path) -> None:
    assert gauges.energy_source() == "RAPL, packages: 2"
    watch = gauges.Watch()
    (rapl / "intel-rapl:0" / "energy_uj").write_text("1500\n")
    (rapl / "intel-rapl:1" / "energy_uj").write_text("20\n")
    assert watch.stop().energy_uj == 500 + (1000 - 990 + 20)


def test_unreadable_or_missing_counters_say_why(rapl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (rapl / "intel-rapl:1" / "energy_uj").unlink()
    assert gauges.energy_source() == "not available: the RAPL counters can be read by root only"
    assert gauges.Watch().stop().energy_uj is None
    monkeypatch.setattr(gauges, "POWERCAP", tmp_path / "none")
    assert gauges.energy_source() == "not available: this kernel shows no RAPL counters"


def test_stolen_time_is_the_eighth_column_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    given = iter(["cpu  1 2 3 4 5 6 7 100 9 10\ncpu0 1", "cpu  1 2 3 4 5 6 7 103 9 10\ncpu0 1"])
    monkeypatch.setattr(gauges, "read_text", lambda path: next(given) if path == Path("/proc/stat") else "")
    monkeypatch.setattr(gauges, "PROCESSORS", Path("/nowhere"))
    monkeypatch.setattr(gauges, "POWERCAP", Path("/nowhere"))
    monkeypatch.setattr(gauges.os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    turn = gauges.Watch().stop()
    assert (turn.stolen_ms, turn.khz, turn.energy_uj) == (30, None, None)


def test_where_the_system_tells_nothing_all_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "read_text", lambda path: "")
    turn = gauges.Watch().stop()
    assert (turn.stolen_ms, turn.khz, turn.energy_uj, gauges.peak_memory()) == (None, None, None, None)
    assert turn.wall_ns > 0


def test_heat_is_that_of_the_hottest_sensor_and_only_a_slowed_clock_is_throttling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "THERMAL", tmp_path)
    assert (gauges.Watch().stop().celsius, gauges.Watch().stop().throttled) == (None, None)
    for name, told in {
        "thermal_zone0/temp": "61200", "thermal_zone1/temp": "84900",
        "cooling_device0/type": "Fan", "cooling_device0/cur_state": "3",
        "cooling_device1/type": "cpufreq-cpu0", "cooling_device1/cur_state": "0",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{told}\n")
    turn = gauges.Watch().stop()
    assert (turn.celsius, turn.throttled) == (84.9, False)
    (tmp_path / "cooling_device1" / "cur_state").write_text("2\n")
    assert gauges.Watch().stop().throttled is True


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_holds_what_was_freed_again() -> None:
    before = gauges.peak_memory()
    assert before is not None
    block = bytearray(b"x") * (before + 50_000_000)
    del block
    assert (gauges.peak_memory() or 0) >= before + 50_000_000


def test_clock_step_is_a_positive_number_of_nanoseconds() -> None:
    assert gauges.clock_step() >= 1
