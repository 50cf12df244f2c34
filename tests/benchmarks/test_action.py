"""What the GitHub Action runs, run as it does: the table is in the job's summary, and the exit code is that of `compress compare`."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from compress.benchmarks.results import write_results

ROOT = Path(__file__).parents[2]


def ran(tmp_path: Path, **inputs: str) -> tuple[int, str, str]:
    """Exit code, what the job prints, and its summary."""
    summary = tmp_path / "summary.md"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    given = {"PYTHON": sys.executable, "PYTHONPATH": paths, "GITHUB_STEP_SUMMARY": str(summary), **inputs}
    done = subprocess.run(["bash", str(ROOT / ".ci" / "compare.sh")], env=os.environ | given, cwd=tmp_path, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, summary.read_text() if summary.exists() else ""


def test_the_table_is_in_the_summary_and_a_limit_fails_the_job(made: Any, tmp_path: Path) -> None:
    slow = made.one("int8", 1.5e-3, samples_ns=made.samples(1.49e-3, 1.5e-3, 1.51e-3))
    for name, result in (("old", made.result(made.one("int8"))), ("new", made.result(slow))):
        write_results(result, tmp_path / f"{name}.json")
    code, said, summary = ran(tmp_path, OLD="old.json", NEW="new.json", SLOWER="5%", HTML="page.html")
    assert code == 1, said
    assert (
        summary.startswith("**1 of 1 fail: int8 (onnxruntime, cpu) is too slow.**")
        and "| int8 (onnxruntime, cpu) | 1.00 ms | 1.50 ms |" in summary
    )
    assert "int8" in said and (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert ran(tmp_path, OLD="old.json", NEW="old.json", SLOWER="5%")[0] == 0


def test_what_cannot_be_compared_says_so_in_the_summary(tmp_path: Path) -> None:
    code, _, summary = ran(tmp_path, OLD="old.json; touch evil", NEW="$(touch evil)")
    assert code == 2 and "**The two results were not compared**" in summary and "there is no such file" in summary
    assert not (tmp_path / "evil").exists()


def test_every_input_reaches_the_script() -> None:
    action, script = (ROOT / "action.yml").read_text(), (ROOT / ".ci" / "compare.sh").read_text()
    declared = set(re.findall(r"^  ([\w-]+):\n    description", action, re.MULTILINE))
    handed = dict(re.findall(r"^        (\w+): \$\{\{ inputs\.([\w-]+) \}\}$", action, re.MULTILINE))
    assert set(handed.values()) == declared and all(f"{name}:" in script or f"${name}" in script for name in handed)
    assert "${{" not in action.partition("      run: ")[2]
