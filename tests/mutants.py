"""Changes the modules that decide, one small thing at a time, and counts how many of the changes the tests notice.

    make mutants                                  all modules of [tool.mutants.tests] in pyproject.toml
    make mutants MODULE=benchmarks/statistics.py  one of them

mutmut makes the changes and forks a process for each: operators, comparisons, numbers, arguments, assignments. Two more kinds are added
here, since mistakes of these kinds were made: a function for its sibling (``min`` for ``max``, ``mean`` for ``median``), ``return None``.
Texts are left as they are. Whatever lies outside of functions, mutmut leaves alone; so the numbers and truth values there (``LEAST_CHANGE =
0.01``, a field's default) are changed here, each in a process of its own, and a property is rewritten so that mutmut sees a function.

Works on a copy in ``build/mutants``, where links are followed: mutmut does not, and the tests would import the module that it left alone.
Of a module with more mutants than ``--most`` as many are drawn, by seed, at most a fifth of them numbers outside of functions. A mutant
that no test runs survives; one that takes too long is killed.

Refuses: a module that has no tests in the table.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import libcst

ROOT = Path(__file__).parents[1]
SIBLINGS = (("min", "max"), ("mean", "median"), ("any", "all"), ("floor", "ceil"), ("argmin", "argmax"))
PROPERTIES = ("property", "cached_property")
LONGEST = 120  # seconds for the tests of one constant
SURVIVES = ("survived", "no tests")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one module: mutants there are, tried and killed, and the others as lines to read."""

    module: str
    there_are: int
    tried: int
    killed: int
    survivors: tuple[str, ...]


def main() -> int:
    tests = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutants"]["tests"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="as in [tool.mutants.tests] of pyproject.toml; all without one")
    parser.add_argument("--most", type=int, default=150, help="mutants per module; of more, so many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutmut", action="store_true", help=argparse.SUPPRESS)  # in the copy, a process of its own
    asked = parser.parse_args()
    if asked.mutmut:
        return run_mutmut(asked.most, asked.seed)
    if unknown := [module for module in asked.modules if module not in tests]:
        parser.error(f"module (={unknown[0]}) has no tests in [tool.mutants.tests] of pyproject.toml; known: {', '.join(tests)}")
    scores = []
    for module in asked.modules or tests:
        scores.append(score(module, tests[module], asked.most, asked.seed))
        told = "".join(f"  {line}\n" for line in scores[-1].survivors)
        sys.stdout.write(f"{module}, not noticed:\n{told or '  none' + chr(10)}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{'module':<40} {'mutants':>8} {'tried':>6} {'killed':>7} {'share':>7}\n")
    for one in scores:
        share = one.killed / max(1, one.tried)
        sys.stdout.write(f"{one.module:<40} {one.there_are:>8} {one.tried:>6} {one.killed:>7} {share:>7.1%}\n")
    return 0


def score(module: str, tests: list[str], most: int, seed: int) -> Score:
    """Try the mutants of one module, those of mutmut and those of its constants."""
    tree = ROOT / "build" / "mutants" / module.removesuffix(".py").replace("/", "-")
    file = copy_into(tree, module, tests)
    outside = list(constants(file.read_text(encoding="utf-8")))
    changed = dict(random.Random(seed).sample(outside, min(most // 5, len(outside))))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, __file__, "--mutmut", "--seed", str(seed), "--most", str(max(1, most - len(changed)))]
    log = tree / "mutmut.log"
    with log.open("w", encoding="utf-8") as output:
        if subprocess.run(command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode:
            raise SystemExit(f"mutmut ({module}) failed; see {log}")
    asked = [sys.executable, "-m", "mutmut", "results", "--all", "true"]
    listed = subprocess.run(asked, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout
    verdicts = dict(line.strip().rsplit(": ", 1) for line in listed.splitlines() if ": " in line)
    tried = {name: verdict for name, verdict in verdicts.items() if verdict != "not checked"}
    survivors = [shown(name, tree, environment) for name, verdict in tried.items() if verdict in SURVIVES]
    original = file.read_text(encoding="utf-8")
    for line, text in changed.items():
        file.write_text(text, encoding="utf-8")
        if not notices(tests, tree, environment):
            survivors.append(line)
    file.write_text(original, encoding="utf-8")
    count = len(tried) + len(changed)
    return Score(
        module=module,
        there_are=len(verdicts) + len(outside),
        tried=count,
        killed=count - len(survivors),
        survivors=tuple(survivors),
    )


def copy_into(tree: Path, module: str, tests: list[str]) -> Path:
    """The package with its links followed, and the tests; returns where the module lies in it, its properties made functions."""
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("compress", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    inside = module if module.startswith("compress/") else f"compress/{module}"
    settings = f'[tool.mutmut]\nsource_paths = ["{inside}"]\npytest_add_cli_args_test_selection = {json.dumps(tests)}'
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tree / "pyproject.toml").write_text(project.replace("[tool.mutmut]", settings), encoding="utf-8")
    file = tree / inside
    file.write_text(plain(file.read_text(encoding="utf-8")), encoding="utf-8")
    return file


def plain(source: str) -> str:
    """``@property def a(self): ...`` as ``def a(self): ...`` and ``a = property(a)``, which is the same."""
    lines = source.splitlines()
    for node in sorted(ast.walk(ast.parse(source)), key=lambda node: -getattr(node, "lineno", 0)):
        if isinstance(node, ast.FunctionDef) and [ast.unparse(one) for one in node.decorator_list] in [[name] for name in PROPERTIES]:
            [decorator] = node.decorator_list
            lines.insert(node.end_lineno or 0, f"{' ' * node.col_offset}{node.name} = {ast.unparse(decorator)}({node.name})")
            del lines[decorator.lineno - 1]
    return "\n".join(lines) + "\n"


def constants(source: str) -> Iterator[tuple[str, str]]:
    """What a reader is told, and the source in which one number or truth value outside of functions and annotations is another.

    ``A = 0.5`` becomes ``A = 5.0``, 0 becomes 1, True becomes False.
    """
    lines = source.splitlines(keepends=True)

    def visit(node: ast.AST) -> Iterator[ast.Constant]:
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            yield node
        kept = (ast.Module, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Tuple, ast.BinOp, ast.Call, ast.keyword, ast.Dict, ast.UnaryOp)
        if isinstance(node, kept):
            for name, value in ast.iter_fields(node):
                if name not in ("annotation", "decorator_list"):
                    for child in value if isinstance(value, list) else [value]:
                        yield from visit(child) if isinstance(child, ast.AST) else ()

    for node in visit(ast.parse(source)):
        new = repr(not node.value if isinstance(node.value, bool) else 10 * node.value or 1)
        line = lines[node.lineno - 1].encode()
        changed = (line[: node.col_offset] + new.encode() + line[node.end_col_offset :]).decode()
        told = f"{node.lineno}: {line.decode().strip()}  ->  {node.value!r} is {new}"
        yield f"{told} (column {node.col_offset})", "".join([*lines[: node.lineno - 1], changed, *lines[node.lineno :]])


def notices(tests: list[str], tree: Path, environment: dict[str, str]) -> bool:
    """Whether a test fails, or there is no end."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=LONGEST).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def shown(name: str, tree: Path, environment: dict[str, str]) -> str:
    """``over_launches (12): - if a < b:  ->  if a <= b:``, from mutmut's diff."""
    command = [sys.executable, "-m", "mutmut", "show", name]
    diff = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    was, now = ("; ".join(line[1:].strip() for line in diff if line[:1] == sign and line[:3] != 3 * sign) for sign in "-+")
    function, _, number = name.rpartition(".")[2].partition("__mutmut_")
    return f"{function.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')} ({number}): {was}  ->  {now}"


def run_mutmut(most: int, seed: int) -> int:
    """In the copy: mutmut with our kinds of change, and so many of its mutants."""
    import mutmut.__main__ as mutmut
    from mutmut.mutation import mutators

    mutators.mutation_operators[:] = [
        *(pair for pair in mutators.mutation_operators if pair[1] is not mutators.operator_string),
        *added_kinds(),
    ]
    collect = mutmut.collect_source_file_mutation_data

    def drawn(**asked: object):
        mutants, by_path = collect(**asked)
        return random.Random(seed).sample(mutants, min(most, len(mutants))), by_path

    mutmut.collect_source_file_mutation_data = drawn
    mutmut.cli(["run", "--max-children", "1"], standalone_mode=False)
    return 0


def added_kinds() -> list:
    import libcst

    siblings = {one: other for pair in SIBLINGS for one, other in (pair, pair[::-1])}

    def sibling(node: "libcst.Call") -> Iterator["libcst.Call"]:
        name = node.func.attr if isinstance(node.func, libcst.Attribute) else node.func
        if isinstance(name, libcst.Name) and name.value in siblings:
            yield node.with_deep_changes(name, value=siblings[name.value])

    def nothing(node: "libcst.Return") -> Iterator["libcst.Return"]:
        if node.value is not None and not (isinstance(node.value, libcst.Name) and node.value.value == "None"):
            yield node.with_changes(value=libcst.Name("None"))

    return [(libcst.Call, sibling), (libcst.Return, nothing)]


if __name__ == "__main__":
    raise SystemExit(main())
