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


def test_machines_differ_where_it_decides_about_speed() -> None:
    here = {"cpu": "A", "flags": ["avx2"], "cores": 2, "load_average": 0.1}
    assert machine.differences(here, {**here, "load_average": 3.0, "python": "3.12"}) == []
    assert machine.differences(here, {**here, "flags": [], "gpu": "B"}) == ["flags", "gpu"]
