"""Who may import whom, read from every file, folder by folder; and the reason for it, a project whose folders have the names of ours.

::

    cli > api > stages, serve > plots, artifacts > quantization, channels, codegen > graphs, pruning > errors, files

A room imports from floors below it, and from itself. ``models``, ``train`` and ``benchmarks`` stand alone; ``artifacts`` and what lies
above may use them, the algorithms below may not. Only ``cli`` knows click, and prints.
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
FLOORS = (
    ("cli",),
    ("api",),
    ("stages", "serve"),
    ("plots", "artifacts"),
    ("litert",),
    ("quantization", "channels", "codegen"),
    ("graphs", "pruning"),
    ("errors", "files"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ACROSS = {room for room, number in FLOOR.items() if number <= FLOOR["artifacts"]}  # may use models, train and benchmarks
WITHOUT_TORCH = (
    "api.files",
    "api.network",
    "artifacts.artifact",
    "artifacts.context",
    "artifacts.project",
    "artifacts.recipe",
    "artifacts.records",
    "serve.page.folder",
    "serve.settings",
    "serve.worker",
    "stages.benchmark",
    "stages.predict",
    "stages.quantize",
    "stages.report",
    "stages.verify",
    "cli.main",
)
MOST = {"compress": 4, "compress/stages": 20}  # Python files directly in a folder; 12 elsewhere


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


def room_of(module: str) -> str:
    """``cli`` for ``compress.cli.main``, ``errors`` for ``compress.errors``; ``compress`` itself and ``__main__`` are of cli's floor."""
    second = module.removeprefix("compress").lstrip(".").partition(".")[0]
    return "cli" if second in ("", "__main__", "__init__", "__version__") else second


def broken_rules(path: str, source: str) -> list[str]:
    me = module_of(path)
    part, room = part_of(me), room_of(me)
    broken = []
    for found in imports_of(path, source):
        name, other = found.name, part_of(found.name)
        foreign = other not in FOLDERS and other not in sys.stdlib_module_names
        if name.split(".")[0] in STANDALONE:
            broken.append(f"{name}: that name is the user's; say it relatively")
        elif part in STANDALONE and other in FOLDERS and other != part:
            broken.append(f"{name}: {part} stands alone")
        elif part == "models" and foreign and other != "torch" and path != "models/packages.py":
            broken.append(f"{name}: models needs torch only")
        elif part == "benchmarks" and found.on_load and foreign and other not in ("numpy", "onnxruntime", "msgspec"):
            broken.append(f"{name}: benchmarks runs where only numpy, onnxruntime and msgspec are; import it in the function")
        elif part == "compress" and other == "click" and room != "cli":
            broken.append(f"{name}: only cli talks to the terminal")
        elif part == "compress" and other in STANDALONE and room not in ACROSS:
            broken.append(f"{name}: an algorithm is handed what it needs of {other}")
        elif part == "compress" and other == "compress" and name != "compress.__version__":
            there = room_of(name)
            if there not in FLOOR:
                broken.append(f"{name}: {there} is no room; see FLOORS")
            elif there != room and FLOOR[there] <= FLOOR[room] and room_of(me) != "cli":
                broken.append(f"{name}: {room} lies below {there}, or beside it")
    return broken


@pytest.mark.parametrize("path", FILES)
def test_no_file_breaks_an_import_rule(path: str) -> None:
    assert broken_rules(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "told"),
    [
        ("models/k49.py", "import numpy as np", "models needs torch only"),
        ("models/k49.py", "from ..train.fit import fit", "models stands alone"),
        ("models/k49.py", "def f():\n    from ..pruning import masks", "models stands alone"),
        ("train/fit.py", "from compress.artifacts.artifact import Artifact", "train stands alone"),
        ("train/fit.py", "from .. import models", "train stands alone"),
        ("train/fit.py", "from models.k49 import make", "the user's"),
        ("train/fit.py", "try:\n    import benchmarks\nexcept ImportError:\n    pass", "the user's"),
        ("benchmarks/run.py", "import torch", "only numpy, onnxruntime and msgspec"),
        ("benchmarks/report.py", "class A:\n    import jinja2", "only numpy, onnxruntime and msgspec"),
        ("benchmarks/run.py", "def f():\n    from ..train import metrics", "benchmarks stands alone"),
        ("compress/pruning/masks.py", "from ..train.fit import fit", "is handed what it needs of train"),
        ("compress/graphs/file.py", "def f():\n    from ..models import k49", "is handed what it needs of models"),
        ("compress/graphs/export.py", "from ..stages.train import train", "graphs lies below stages"),
        ("compress/graphs/export.py", "from ..quantization import int8", "graphs lies below quantization"),
        ("compress/graphs/export.py", "from ..pruning.masks import rank", "or beside it"),
        ("compress/channels/find.py", "from ..quantization.int8 import prepare", "or beside it"),
        ("compress/artifacts/load.py", "if TYPE_CHECKING:\n    from ..stages.train import train", "artifacts lies below stages"),
        ("compress/stages/train.py", "from ..cli.terminal import Terminal", "stages lies below cli"),
        ("compress/serve/worker.py", "from ..stages.predict import read", "or beside it"),
        ("compress/stages/predict.py", "from ..serve.decode import images_of", "or beside it"),
        ("compress/stages/train.py", "from ..api.network import Network", "stages lies below api"),
        ("compress/stages/train.py", "def f():\n    import click", "only cli talks"),
        ("compress/stages/train.py", "from ..misc import helper", "is no room"),
        ("compress/errors.py", "from .artifacts.artifact import Artifact", "errors lies below artifacts"),
    ],
)
def test_a_broken_rule_is_found(path: str, source: str, told: str) -> None:
    assert [told in line for line in broken_rules(path, source)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/k49.py", "import math\nfrom torch import nn\nfrom .errors import ModelError"),
        ("benchmarks/runtimes.py", "import numpy\ndef f():\n    import torch\nif TYPE_CHECKING:\n    import jinja2"),
        ("compress/cli/commands.py", "import click\nfrom ..api.network import Network\nfrom .tables import table"),
        (
            "compress/stages/train.py",
            "from ..train.fit import fit\nfrom ..artifacts.load import load_network\nfrom .finetune import validate",
        ),
        ("compress/quantization/qat/network.py", "from ...errors import CompressError\nfrom ...graphs.file import read_onnx"),
        ("compress/pruning/masks.py", "import torch\nfrom ..errors import CompressError"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert broken_rules(path, source) == []


def test_no_room_is_crowded_and_no_file_or_function_is_long() -> None:
    folders: dict[str, int] = {}
    for path in FILES:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert source.count("\n") <= 350, path
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert not [f"{path}: {one.name}" for one in functions if (one.end_lineno or 0) - one.lineno + 1 > 60]
        folder = str(Path(path).parent)
        folders[folder] = folders.get(folder, 0) + 1
    rooms = {folder: count for folder, count in folders.items() if folder.startswith("compress")}
    assert not {folder: count for folder, count in rooms.items() if count > MOST.get(folder, 12)}


def test_only_the_command_line_prints() -> None:
    printing = [path for path in FILES if "/cli/" not in path for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"]  # fmt: skip
    assert set(printing) <= {"benchmarks/trials.py"}  # a program of its own


def run(code: str, cwd: Path, *arguments: str) -> str:
    """What the program prints."""
    done = subprocess.run([sys.executable, *(["-c", code] if code else []), *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "use", ["import compress.cli.main", "from compress.cli.main import main; sys.argv = ['compress', '--help']; assert main() == 0"]
)
def test_help_loads_no_large_library(use: str, tmp_path: Path) -> None:
    heavy = (
        "{'torch', 'torchvision', 'onnx', 'onnxruntime', 'onnxscript', 'numpy', 'sklearn', 'matplotlib', 'jinja2', 'safetensors', 'PIL'}"
    )
    output = run(
        f"import sys\n{use}\nassert 'compress.cli.main' in sys.modules\nprint('loaded', sorted({heavy} & set(sys.modules)))", tmp_path
    )
    assert output.splitlines()[-1] == "loaded []"


def test_processes_of_a_benchmark_load_nothing_of_the_command_line(tmp_path: Path) -> None:
    """They import the file that was started, as processes that are not forked do, and what they compute with."""
    output = run("import sys, compress.__main__, compress.benchmarks.worker\nprint({'click', 'compress.cli'} & set(sys.modules))", tmp_path)
    assert output == "set()\n"


def test_what_chooses_on_a_board_loads_no_torch(tmp_path: Path) -> None:
    use = "import sys, compress.stages.int8_files, compress.stages.import_network, compress.graphs.adopt"
    heavy = "{'torch', 'torchvision', 'onnxscript', 'sklearn', 'matplotlib', 'safetensors', 'PIL'}"
    assert run(f"{use}\nprint(sorted({heavy} & set(sys.modules)))", tmp_path) == "[]\n"


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

import compress.stages.train
import compress.models.k49
import compress.train.fit
from compress.artifacts.artifact import find_artifacts
from compress.artifacts.load import load_network

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
