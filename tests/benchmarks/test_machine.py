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
    monkeypatch.setattr(machine, "_read", lambda path: "")
    monkeypatch.setenv("PATH", "")
    facts = machine.machine_facts()
    assert not {"flags", "governor", "memory_bytes", "gpu"} & facts.keys()
    assert facts["cpu"]
