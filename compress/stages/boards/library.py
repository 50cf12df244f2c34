"""What `compress benchmark` measures of the runtime ``c``: graphs as C, compiled for this machine into shared libraries."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from ...benchmarks.compiled import Compiled
from ...benchmarks.runtimes import Candidate
from ...codegen.target import target_of
from ...errors import CompressError
from .compilers import HERE, STANDARD, failed, found

NAME = "net"


def compiled(candidates: Sequence[Candidate], folder: Path, progress: Callable[[str, int, int], None]) -> list[Candidate]:
    """The candidates, those of the runtime ``c`` with what was made of their files in ``folder``, or with the reason why nothing was."""
    paths = list(dict.fromkeys(one.path for one in candidates if one.runtime == "c"))
    made = {}
    for number, path in enumerate(paths):
        progress("graphs compiled as C", number, len(paths))
        made[path] = library(path, folder / str(number))
    if paths:
        progress("graphs compiled as C", len(paths), len(paths))
    return [dataclasses.replace(one, compiled=made[one.path]) if one.runtime == "c" else one for one in candidates]


def library(file: Path, folder: Path) -> Compiled | str:
    """The graph in ``file`` as a shared library in a new ``folder``, or why there is none."""
    if (cc := found(HERE)) is None:
        return "no C compiler"
    if importlib.util.find_spec("onnx") is None:
        return "onnx is not installed"
    from ...codegen.program import generate

    target = target_of("native")
    try:
        program = generate(file, name=NAME, target=target)
    except CompressError as error:
        return str(error)
    folder.mkdir(parents=True)
    for name, text in program.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    made = folder / f"{NAME}.so"
    if told := failed([cc, *STANDARD, *target.flags, "-shared", "-fPIC", "-s", "-o", made, f"{NAME}.c", "-lm"], folder):
        return f"{cc}: {told}"
    taken = (program.input.name, program.input.shape, "tensor(uint8)" if program.input.dtype == "uint8" else "tensor(float)")
    outputs = tuple((one.name, one.shape) for one in program.outputs)
    return Compiled(path=made, function=f"{NAME}_run", taken=taken, outputs=outputs, arena=program.arena_bytes)
