"""Who may import whom, read from every file; and the reason for it, a user's project whose folders have the names of ours.

``models``, ``train`` and ``benchmarks`` stand alone; the algorithms of ``compress`` know none of the three; only the command line and what
lies behind it import across, inside the commands.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "train", "benchmarks", "compress")
STANDALONE = FOLDERS[:3]
FILES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Of the toolkit: those that put everything together, and those that know nothing but each other. The rest lies in between.
ACROSS = {
    f"compress.{name}"
    for name in (
        "__main__",
        "cli",
        "cli_looking",
        "cli_making",
        "cli_pruning",
        "cli_quantize",
        "config",
        "crossval",
        "explain",
        "latency",
        "measure",
        "noise_plot",
        "noise_stage",
        "onnx_stage",
        "opening",
        "pipeline",
        "project",
        "quantizing",
        "reading",
        "removal",
        "sensitivity_plot",
        "sensitivity_stage",
        "ship",
        "show",
        "throughput",
        "tune_plots",
        "tune_results",
        "tuning",
        "verify",
        "whole",
    )
}
ALGORITHMS = {
    f"compress.{name}"
    for name in (
        "adopt",
        "artifact",
        "bias",
        "bypass",
        "calibration",
        "channels",
        "choose",
        "cost",
        "equalise",
        "errors",
        "export",
        "fake_quantize",
        "gates",
        "graph",
        "graph_network",
        "graph_operators",
        "groups",
        "importance",
        "labels",
        "layer_rules",
        "node_groups",
        "node_times",
        "noise",
        "onnxfile",
        "probe",
        "prune",
        "regrow",
        "quantize",
        "rewrite",
        "rules",
        "sensitivity",
        "static",
        "storage",
        "surgery",
        "tracing",
    )
}
WITHOUT_TORCH = ("artifact", "config", "measure", "opening", "predict", "project", "reading", "reference", "verify")


@dataclass(frozen=True)
class Import:
    """``name`` is absolute (``compress.train.fit``); ``on_load``: it happens when the file is imported, not in a function."""

    name: str
    on_load: bool


def imports_of(path: str, source: str) -> Iterator[Import]:
    """What the file ``path`` imports, names made absolute: ``from .a import b`` is ``compress.a``, ``from . import c`` ``compress.c``."""

    def visit(node: ast.AST, on_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, on_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_of(path).split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (Import(".".join([*base, name]), on_load) for name in names)
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        lazy |= isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, on_load and not lazy)

    return visit(ast.parse(source), True)


def module_of(path: str) -> str:
    """``models/k49.py`` is imported as ``compress.models.k49``."""
    name = path.removesuffix(".py").replace("/", ".")
    return name if name.startswith("compress.") else f"compress.{name}"


def part_of(module: str) -> str:
    """``models``, ``train``, ``benchmarks`` or ``compress`` for this project's modules, else the name of the library."""
    first, _, rest = module.partition(".")
    second = rest.partition(".")[0]
    return second if first == "compress" and second in STANDALONE else first


def broken_rules(path: str, source: str) -> list[str]:
    me = module_of(path)
    part = part_of(me)
    broken = []
    for found in imports_of(path, source):
        name, other = found.name, part_of(found.name)
        foreign = other not in FOLDERS and other not in sys.stdlib_module_names
        if name.split(".")[0] in STANDALONE:
            broken.append(f"{name}: that name is the user's; say it relatively")
        elif part in STANDALONE and other in FOLDERS and other != part:
            broken.append(f"{name}: {part} stands alone")
        elif part == "models" and foreign and other != "torch":
            broken.append(f"{name}: models needs torch only")
        elif part == "benchmarks" and found.on_load and foreign and other not in ("numpy", "onnxruntime", "msgspec"):
            broken.append(f"{name}: benchmarks runs where only numpy, onnxruntime and msgspec are; import it in the function")
        elif part == "compress" and me not in ACROSS and (other in STANDALONE or name in ACROSS):
            broken.append(f"{name}: only {', '.join(sorted(ACROSS))} import across")
        elif me in ALGORITHMS and other == "compress" and name not in ALGORITHMS:
            broken.append(f"{name}: an algorithm knows other algorithms only")
    return broken


@pytest.mark.parametrize("path", FILES)
def test_no_file_breaks_an_import_rule(path: str) -> None:
    assert broken_rules(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "told"),
    [
        ("models/k49.py", "import numpy as np", "models needs torch only"),
        ("models/k49.py", "from ..train.fit import fit", "models stands alone"),
        ("models/k49.py", "def f():\n    from .. import prune", "models stands alone"),
        ("train/fit.py", "from compress.artifact import Artifact", "train stands alone"),
        ("train/fit.py", "from .. import models", "train stands alone"),
        ("train/fit.py", "from models.k49 import make", "the user's"),
        ("train/fit.py", "try:\n    import benchmarks\nexcept ImportError:\n    pass", "the user's"),
        ("benchmarks/run.py", "import torch", "only numpy, onnxruntime and msgspec"),
        ("benchmarks/report.py", "class A:\n    import jinja2", "only numpy, onnxruntime and msgspec"),
        ("benchmarks/run.py", "def f():\n    from ..train import metrics", "benchmarks stands alone"),
        ("compress/prune.py", "from .train.fit import fit", "import across"),
        ("compress/prune.py", "def f():\n    from .models import k49", "import across"),
        ("compress/export.py", "from .pipeline import train", "import across"),
        ("compress/export.py", "from . import cli", "import across"),
        ("compress/cost.py", "from .networks import build_network", "other algorithms only"),
        ("compress/networks.py", "if TYPE_CHECKING:\n    from .benchmarks.run import Result", "import across"),
        ("compress/new.py", "async def f():\n    import compress.train.sources", "import across"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, told: str) -> None:
    assert [told in line for line in broken_rules(path, source)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/k49.py", "import math\nfrom torch import nn\nfrom .errors import ModelError"),
        ("benchmarks/runtimes.py", "import numpy\ndef f():\n    import torch\nif TYPE_CHECKING:\n    import jinja2"),
        ("compress/cli.py", "def f():\n    from .train.fit import fit\n    from . import pipeline"),
        ("compress/prune.py", "import torch\nfrom .errors import CompressError"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert broken_rules(path, source) == []


def run(code: str, cwd: Path, *arguments: str) -> str:
    """What the program prints."""
    done = subprocess.run([sys.executable, *(["-c", code] if code else []), *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "use", ["import compress.cli", "from compress.cli import main; sys.argv = ['compress', '--help']; assert main() == 0"]
)
def test_help_loads_no_large_library(use: str, tmp_path: Path) -> None:
    heavy = (
        "{'torch', 'torchvision', 'onnx', 'onnxruntime', 'onnxscript', 'numpy', 'sklearn', 'matplotlib', 'jinja2', 'safetensors', 'PIL'}"
    )
    output = run(
        f"import sys\n{use}\nassert 'compress.cli.main' in sys.modules\nprint('loaded', sorted({heavy} & set(sys.modules)))", tmp_path
    )
    assert output.splitlines()[-1] == "loaded []"


def test_what_runs_on_a_board_loads_no_torch(tmp_path: Path) -> None:
    modules = ", ".join(f"compress.{name}" for name in WITHOUT_TORCH)
    heavy = "{'torch', 'torchvision', 'onnx', 'onnxscript', 'sklearn', 'matplotlib', 'jinja2', 'safetensors', 'PIL'}"
    assert run(f"import sys, {modules}\nprint(sorted({heavy} & set(sys.modules)))", tmp_path) == "[]\n"


BACKBONE = """
from torch import nn

class Backbone(nn.Sequential):
    def __init__(self, width):
        super().__init__(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, width), nn.ReLU())
"""
NET = """
from models.backbone import Backbone
from torch import nn

def make_net(classes, width=8):
    return nn.Sequential(Backbone(width), nn.Linear(width, classes))
"""
# Run from the project's folder as notebooks/try.py: compress and the user's own models in one process, before and after a reload.
NOTEBOOK = """
import sys
from pathlib import Path

import compress.pipeline
import compress.models.k49
import compress.train.fit
from compress.artifact import find_artifacts
from compress.networks import load_network

[artifact] = find_artifacts(Path("runs/net-make_net/train"))
network = load_network(artifact)

import models
from models.backbone import Backbone

assert Path(models.__file__).resolve() == Path("models/__init__.py").resolve(), models.__file__
assert type(network[0]) is Backbone and network[0] is not None
assert "train" not in sys.modules and "benchmarks" not in sys.modules
weights = {name: tuple(value.shape) for name, value in network.state_dict().items()}
print(len(artifact.manifest.classes), weights["0.2.weight"], models.OWNER)
"""


def test_a_project_with_its_own_models_train_and_benchmarks(tmp_path: Path) -> None:
    for name, content in {
        "models/__init__.py": "OWNER = 'user'",
        "models/backbone.py": BACKBONE,
        "train.py": "raise RuntimeError('the train.py of the user was imported')",
        "benchmarks.py": "raise RuntimeError('the benchmarks.py of the user was imported')",
        "net.py": NET,
        "notebooks/try.py": NOTEBOOK,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    run(
        "",
        tmp_path,
        "-m",
        "compress",
        "train",
        "--model",
        "net.py:make_net",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--option",
        "width=6",
        "--json",
    )
    assert run("", tmp_path, os.path.join("notebooks", "try.py")) == "10 (6, 16) user\n"  # noqa: PTH118 - an argument, not a path of ours
