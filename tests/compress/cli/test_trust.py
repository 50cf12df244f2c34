"""Whose code runs: this package's, and that of a file which the user named on this command line, or when training in this --runs."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_ins import Commands

from compress.artifacts.model_reference import ModelReference

NET = """
from pathlib import Path
from torch import nn
{more}
Path("executed").touch()

def make(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))
"""
FROM = [["predict", "--random", "2"], ["export-onnx"], ["prune", "--epochs", "1"], ["benchmark", "--quick"]]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Commands) -> Path:
    """A network of the user's own, trained in runs/, and what its file leaves behind when it is run, taken away."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET.format(more=f"# {tmp_path}"))  # a file of its own: what was run once in this process is not run again
    made = run.done("train", "--model", "net.py:make", "--data", "digits", "--epochs", "1")
    Path("executed").unlink()
    [name] = [one for one in sys.modules if one.startswith("_network_net_") and sys.modules[one].__file__ == str(tmp_path / "net.py")]
    del sys.modules[name]  # the next command is one of a process that has not run it
    return Path(made["artifact"])


def command(arguments: list[str], place: Path, *more: str) -> list[str]:
    first, *rest = arguments
    return [first, *([str(place)] if first == "benchmark" else ["--from", str(place)]), *rest, *more]


@pytest.mark.parametrize("arguments", FROM, ids=lambda arguments: arguments[0])
def test_code_of_an_artifact_from_elsewhere_runs_only_where_its_file_is_named(arguments: list[str], trained: Path, run: Commands) -> None:
    elsewhere = Path("sent/by/somebody")
    shutil.copytree(trained, elsewhere)
    code, _, err = run(*command(arguments, elsewhere))
    told = f"compress: {elsewhere} comes from elsewhere, and its network is made by running {Path('net.py').resolve()}; if you trust that "
    assert code == 2 and err.splitlines()[-1] == f"{told}file, name it: --model net.py:make"
    assert not Path("executed").exists()
    Path("mine").mkdir()
    shutil.move("net.py", "mine/net.py")  # it may lie somewhere else here than where it was trained
    assert run(*command(arguments, elsewhere, "--model", "mine/net.py:make"))[0] == 0
    assert Path("executed").exists()


def test_a_network_whose_file_is_on_another_machine_is_told_how_to_name_it_here(trained: Path, run: Commands) -> None:
    shutil.copytree(trained, "sent")
    Path("net.py").unlink()
    code, _, err = run("export-onnx", "--from", "sent")
    assert code == 2 and "if you trust that file, name it: --model net.py:make" in err


def test_a_file_that_is_named_must_be_the_one_that_it_was_trained_with(trained: Path, run: Commands) -> None:
    shutil.copytree(trained, "sent")
    Path("other.py").write_text(NET.format(more="# another"))
    code, _, err = run("export-onnx", "--from", "sent", "--model", "other.py:make")
    assert (code, err.splitlines()[-1][:49]) == (2, "compress: other.py:make was changed since sent wa")
    assert not Path("executed").exists()


def test_what_was_trained_here_is_found_and_its_file_is_not_run_once_it_was_changed(trained: Path, run: Commands) -> None:
    Path("net.py").write_text(NET.format(more="open('changed', 'w')"))
    code, _, err = run("export-onnx", "--from", str(trained))
    assert code == 2 and "net.py:make was changed since" in err
    assert not Path("executed").exists() and not Path("changed").exists()


def test_a_folder_that_brings_its_code_into_runs_is_from_elsewhere_too(trained: Path, run: Commands) -> None:
    """With right hashes, as whoever sends it can make them: what lies in --runs is data."""
    within = trained.parent / "net.py"
    Path("net.py").rename(within)
    Path("runs/net-make/train").rename("aside")
    Path("net.py").symlink_to("aside/net.py")
    Path("aside").rename("runs/net-make/train")
    Path("net.py").unlink()
    Path("net.py").symlink_to(within.resolve())
    code, _, err = run("export-onnx", "--from", str(trained))
    assert code == 2 and "comes from elsewhere" in err and not Path("executed").exists()
    code, _, err = run("export-onnx", "--model", "net.py:make")
    assert code == 0, err


def test_a_graph_needs_no_code(trained: Path, run: Commands) -> None:
    graph = run.done("export-onnx", "--from", str(trained))["artifact"]
    shutil.move(graph, "sent")
    shutil.rmtree("runs")
    Path("net.py").unlink()
    Path("executed").unlink()
    assert run("predict", "--from", "sent", "--random", "2")[0] == 0
    assert run("quantize", "--from", "sent", "--mode", "dynamic")[0] == 0
    assert not Path("executed").exists()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)

    def write(**sources: str) -> str:
        for name, source in sources.items():
            path = Path(name if name.endswith(".so") else f"{name}.py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        made = ModelReference(reference="net.py:make").identity()["source"]
        assert isinstance(made, str)
        return made

    return write


@pytest.mark.parametrize(
    ("net", "part"),
    [
        ("import part", "part"),
        ("import pack.part", "pack/part"),
        ("import pack.part", "pack/__init__"),
        ("from pack import part", "pack/part"),
        ("from pack.part import block", "pack/part"),
        ("def make():\n    from part import block", "part"),
        ("if True:\n    try:\n        import part as p\n    except ImportError: ...", "part"),
        ("from pack import other", "pack/deep"),
        ("import fast", "fast.abi3.so"),
    ],
)
def test_the_hash_is_that_of_every_file_that_would_run(net: str, part: str, files: Callable[..., str]) -> None:
    sources = {"net": f"open('executed', 'w')\n{net}\n", "pack/other": "from . import deep", "unrelated": "1", part: "1"}
    before = files(**sources)
    assert files(**sources) == before == files(unrelated="2")
    assert files(**{part: "2"}) != before
    assert not Path("executed").exists()
