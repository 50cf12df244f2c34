import json
import platform

import numpy as np
import pytest

from compress.benchmarks import machine


def test_facts_are_those_of_this_process_and_fit_into_json() -> None:
    facts = machine.machine_facts()
    assert facts["python"] == platform.python_version()
    assert facts["libraries"]["numpy"] == np.__version__
    assert facts["cores"] >= 1
    assert facts["cpu"]
    assert json.loads(json.dumps(facts)) == facts


def test_flags_that_decide_kernels_are_kept_and_no_others() -> None:
    given = "fpu avx2 avx512_vnni avx_vnni smep smap sse2 amx_int8 asimddp i8mm sve2 sme2 rdrand"
    kept = [flag for flag in given.split() if machine.RELEVANT_FLAGS.fullmatch(flag)]
    assert kept == ["avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve2", "sme2"]


def test_unreadable_fact_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_text", lambda path: "")
    monkeypatch.setenv("PATH", "")
    facts = machine.machine_facts()
    assert not {"flags", "governor", "memory_bytes", "gpu"} & facts.keys()
    assert facts["cpu"]


@pytest.mark.parametrize(
    ("architecture", "cpuinfo", "kernel", "wanted"),
    [
        ("aarch64", "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: avx2\n", "6.1.0", True),  # qemu's user mode
        ("aarch64", "CPU implementer\t: 0x41\n", "6.1.0-18-amd64", True),
        ("aarch64", "CPU implementer\t: 0x41\nFeatures\t: asimddp\n", "6.1.0-rpi8-rpi-v8", False),
        ("x86_64", "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: avx2\n", "6.1.0-18-amd64", False),
        ("riscv64", "", "6.6.0", False),
    ],
)
def test_a_processor_that_another_imitates_is_known_and_has_none_of_its_flags(
    architecture: str, cpuinfo: str, kernel: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "read_text", lambda path: cpuinfo if path.name == "cpuinfo" else "")
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(platform, "release", lambda: kernel)
    facts = machine.machine_facts()
    assert machine.emulated() == wanted == facts.get("emulated", False)
    assert not wanted or ("AMD" not in facts["cpu"] and "flags" not in facts)


def test_machines_differ_where_it_decides_about_speed() -> None:
    here = {"cpu": "A", "flags": ["avx2"], "cores": 2, "load_average": 0.1}
    assert machine.differences(here, {**here, "load_average": 3.0, "python": "3.12"}) == []
    assert machine.differences(here, {**here, "flags": [], "gpu": "B"}) == ["flags", "gpu"]
