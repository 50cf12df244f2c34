"""Completion as shells ask for it, and its words against those that the stages take."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.benchmarks.runtimes import RUNTIMES
from compress.cli.completion import PLACES, VALUES, completion, script
from compress.codegen.target import TARGETS
from compress.quantization.records import METHODS
from compress.stages.benchmark import CHOICES
from compress.train.sources import NAMES


def completed(words: str, cwd: Path) -> list[str]:
    """What bash is told for the last of the words."""
    given = {"_COMPRESS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    root = str(Path(__file__).parents[3])
    environment = os.environ | given | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", "compress"], env=environment, cwd=cwd, capture_output=True, text=True)
    assert not done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_options_and_values_are_completed(tmp_path: Path) -> None:
    for name, folder in (("k49", "quantize/aa"), ("k49", "train/bb"), ("emnist", "train/cc")):
        (tmp_path / "runs" / name / folder).mkdir(parents=True)
        (tmp_path / "runs" / name / folder / "artifact.json").write_text("{}")
    assert completed("compress rem", tmp_path) == ["remove-channels"]
    assert completed("compress quantize --mo", tmp_path) == ["--mode", "--model"]
    assert completed("compress quantize --mode st", tmp_path) == ["static"]
    assert completed("compress train --model em", tmp_path) == ["emnist"]
    assert completed("compress train --recipe k49-s", tmp_path) == ["k49-second", "k49-sparse"]
    assert set(completed("compress prune --model k49 --from runs/", tmp_path)) == {"runs/k49/quantize/aa", "runs/k49/train/bb"}
    assert completed("compress prune --log m", tmp_path) == ["mlflow"]
    assert completed("compress completion z", tmp_path) == ["zsh"]


def test_the_words_are_those_that_are_taken() -> None:
    assert VALUES["method"] == METHODS and set(VALUES["target"]) == set(TARGETS)
    assert VALUES["runtimes"] == (*CHOICES, "all") and set(CHOICES) <= set(RUNTIMES)
    assert set(VALUES["data"]) == set(NAMES)


@pytest.mark.parametrize("shell", list(PLACES))
def test_the_script_is_one_that_the_shell_reads(shell: str, tmp_path: Path) -> None:
    text = script(shell)
    assert f"_COMPRESS_COMPLETE={shell}_complete" in text
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; it would read the script")
    (tmp_path / "script").write_text(text)
    assert subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True).returncode == 0


def test_it_is_installed_where_the_shell_looks_and_another_shell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    told = CliRunner().invoke(completion, ["fish", "--install"])
    assert told.exit_code == 0 and (tmp_path / ".config/fish/completions/compress.fish").read_text() == script("fish") + "\n"
    refused = CliRunner().invoke(completion, ["tcsh"])
    assert str(refused.exception) == "shell (=tcsh) must be bash, zsh, fish; on another, complete by hand"
