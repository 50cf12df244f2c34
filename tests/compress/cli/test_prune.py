"""prune, remove-channels and sensitivity as a user runs them: on a network of one's own, with mistakes, and one after the other."""

from pathlib import Path

import pytest
from stand_ins import Commands

# A network with a shared layer in a residual, and one whose forward has a width written into it.
NETS = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, classes, written=0, control=False):
        super().__init__()
        self.stem, self.mid, self.late = nn.Conv2d(1, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(12, classes)
        self.written, self.control = written, control

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.mid(x))
        if self.control and x.mean() > 0.5:
            x = x * 2
        x = torch.relu(self.late(x)).mean(dim=(2, 3))
        return self.head(x.view(-1, self.written) if self.written else x)

def make(classes, **options):
    return Own(classes, **options)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_network_of_ones_own_goes_the_whole_way(here: Path, run: Commands) -> None:
    trained = run.done("train", "--model", "net.py:make", "--data", "digits", "--epochs", "3", "--lr", "0.005")
    common = ("--model", "net.py:make")
    groups = run.done("remove-channels", *common, "--groups")
    assert [(group["name"], group["width"]) for group in groups["groups"]] == [("stem", 8), ("late", 12)]
    assert "removes" in groups["groups"][0]["example"]
    curves = run.done("sensitivity", *common, "--sparsity", "0.5", "--images", "100")
    assert [curve["name"] for curve in curves["curves"]] == ["stem", "late"]
    cut = run.done("remove-channels", *common, "--max-macs", "0.4x", "--round-to", "2", "--steps", "2", "--epochs", "1")
    assert cut["facts"]["macs"] <= 0.4 * trained["facts"]["macs"]
    assert cut["metrics"]["gains"]["latency"]["value"] > 0
    pruned = run.done("prune", "--from", cut["artifact"], "--teacher", trained["artifact"], "--pattern", "2:4", "--epochs", "1")
    assert pruned["facts"]["nonzeros"] < cut["facts"]["nonzeros"]
    graph = run.done("export-onnx", "--from", cut["artifact"])
    assert graph["metrics"]["parity"]["agreement"] == 1.0
    run.done("quantize", "--from", graph["artifact"], "--images", "64")
    code, out, _ = run("remove-channels", *common, "--max-macs", "0.4x", "--round-to", "2", "--steps", "2", "--epochs", "1")
    assert code == 0
    assert "Of the teacher's: MACs 0." in out and "latency on this machine" in out and "group" in out
    code, out, _ = run("remove-channels", *common, "--scope", "sensitivity", "--max-size", "0.6x", "--round-to", "1", "--epochs", "0")
    assert code == 0, "the curves of each step's network are measured"


def test_a_width_written_into_forward_is_left_whole_and_named(here: Path, run: Commands) -> None:
    run.done("train", "--model", "net.py:make", "--option", "written=12", "--data", "digits", "--epochs", "1")
    code, out, _ = run(
        "remove-channels", "--model", "net.py:make", "--max-macs", "0.6x", "--round-to", "1", "--steps", "1", "--epochs", "0"
    )
    assert code == 0
    assert "late: 12 channels left whole:" in out
    assert "stem" in out


def test_control_flow_on_data_is_refused_in_one_line(here: Path, run: Commands) -> None:
    run.done("train", "--model", "net.py:make", "--option", "control=true", "--data", "digits", "--epochs", "1")
    before = sorted(here.rglob("*"))
    code, out, err = run("remove-channels", "--model", "net.py:make", "--max-macs", "0.5x")
    assert (code, out) == (2, "")
    assert "makes a Python value of the data" in err.splitlines()[-1] and "net.py:15" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert [path for path in sorted(here.rglob("*")) if path not in before and path.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["prune", "--pattern", "4:2"], 'pattern (="4:2")'),
        (["prune", "--pattern", "2:4", "--sparsity", "0.7"], 'sparsity (=0.7) cannot be chosen beside pattern (="2:4")'),
        (["prune", "--pattern", "2:4", "--regrow"], 'regrow needs a sparsity, not pattern (="2:4"); leave one out'),
        (["prune", "--regrow", "--steps", "3"], "steps (=3) must be 1 with regrow: what was zeroed too early comes back by itself"),
        (["prune", "--regrow", "--epochs", "0"], "regrow needs fine-tuning, but epochs (=0) is zero; 10 and more do well"),
        (["prune", "--steps", "0"], "steps (=0) must be at least 1"),
        (["prune", "--distil", "2"], "weight (=2.0) must lie in [0, 1]; 0.7 is the default"),
        (["remove-channels", "--sparsity", "0"], "sparsity (=0.0) must lie in (0, 1); 0.5 removes half of the channels"),
        (["remove-channels", "--sparsity", "1"], "sparsity (=1.0) must lie in (0, 1)"),
        (["remove-channels", "--sparsity", "1.2"], "sparsity (=1.2) must lie in (0, 1)"),
        (["remove-channels", "--sparsity", "-0.5"], "sparsity (=-0.5) must lie in (0, 1)"),
        (["remove-channels", "--sparsity", "nan"], "sparsity (=nan) must lie in (0, 1)"),
        (["remove-channels", "--max-macs", "a third"], "max-macs (=a third) must be a share of what the unpruned network costs"),
        (["remove-channels", "--max-latency", "1.5x"], "max_latency (=1.5) must lie in (0, 1); times what the teacher costs"),
        (["remove-channels", "--max-latency", "nan"], "max_latency (=nan) must lie in (0, 1)"),
        (["remove-channels", "--importance", "size"], "importance (=size) must be auto, l2, bn, taylor, fluctuation or bn-fluctuation"),
        (["remove-channels", "--model", "emnist"], "has no network yet (looked in train, import); run `compress train` first"),
        (["sensitivity", "--granularity", "row"], "granularity (=row) must be"),
        (["sensitivity", "--sparsity", "1"], "sparsities"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(arguments: list[str], line: str, here: Path, run: Commands) -> None:
    before = sorted(here.rglob("*"))
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert line in err
    assert err.startswith("compress: ") and len(err.splitlines()) == 1
    assert sorted(here.rglob("*")) == before


def test_what_cannot_be_bypassed_and_who_cannot_teach(here: Path, run: Commands) -> None:
    tiny = ("--option", "widths=[4,8]", "--option", "depths=[1,1]", "--data", "digits", "--epochs", "1")
    run.done("train", "--model", "k49", *tiny)
    code, _, err = run("remove-channels", "--model", "k49", "--bypass", "blocks.0.cbam.spatail", "--epochs", "0")
    assert code == 2
    assert "bypass (=blocks.0.cbam.spatail) matches no module that can be bypassed; did you mean blocks.0.cbam.spatial?" in err
    code, _, err = run("prune", "--model", "k49", "--teacher", "nowhere")
    assert (code, "nowhere is not an artifact" in err) == (2, True)
    code, _, err = run("remove-channels", "--model", "k49", "--max-macs", "0.001x", "--round-to", "1", "--epochs", "0")
    assert code == 2
    assert "max_macs (=0.001x) cannot be reached: with every channel group at its floor (=0.1)" in err.splitlines()[-1]
