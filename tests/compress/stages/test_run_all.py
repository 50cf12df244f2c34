"""What `compress run` refuses before it trains."""

import importlib.util
from pathlib import Path

import pytest
from stand_ins import Commands

RECIPE = 'model = "emnist"\ndata = "digits"\n[model-options]\nchannels = [8, 16]\nhidden = 16\n[train]\nepochs = 1\n[remove-channels]\n'


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("max_macs = 0.001\n", "max_macs (=0.001x) cannot be reached: with every channel group at its floor (=0.1)"),
        ("max_size = 0.001\nround_to = 4\n", "max_size (=0.001x) cannot be reached: with every channel group at its floor (=0.1) in mult"),
        ("max_macs = 0.5\n[quantize]\nimages = 16\n", "images (=16) must be at least 32"),
    ],
)  # fmt: skip
def test_what_the_last_stages_cannot_do_is_refused_before_the_first(setting: str, line: str, run: Commands, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE + setting)
    code, out, err = run("run", "--recipe", str(tmp_path / "recipe.toml"), "--runs", str(tmp_path / "runs"))
    assert (code, out) == (2, "") and line in err.splitlines()[-1]
    assert "train:" not in err and not list(tmp_path.glob("runs/emnist"))


def test_a_package_that_only_the_report_needs_is_asked_for_first(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more))
    code, _, err = run("run", "--model", "emnist", "--data", "digits", "--runs", str(tmp_path / "runs"))
    told = "this needs matplotlib, which is not installed here; pip install 'compress-edge[train]', or do this on another machine"
    assert code == 2 and err == f"compress: {told}\n"
