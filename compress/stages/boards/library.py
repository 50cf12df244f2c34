"""Graphs as C, compiled for this machine into shared libraries: what `compress benchmark` measures of the runtime ``c``."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...benchmarks.compiled import Compiled, open_compiled
from ...benchmarks.errors import BenchmarkError
from ...benchmarks.runtimes import Candidate, about_file, open_model
from ...codegen.target import target_of
from ...errors import CompressError, onnxruntime_errors
from .compilers import HERE, STANDARD, failed, found

if TYPE_CHECKING:
    from ...codegen.program import Program

NAME = "net"
ODD = {"int8": 0.25, "float32": 1e-3}  # of the largest number, beyond which it is no rounding


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
    try:
        program = written(file)
    except CompressError as error:
        return str(error)
    folder.mkdir(parents=True)
    made = folder / f"{NAME}.so"
    return build(cc, program, made) or proved(file, program, described(program, made))


def proved(file: Path, program: "Program", library: Compiled) -> Compiled | str:
    """The library, if it answers an image of noise as ONNX Runtime does with exact sums; else what to do, in a line."""
    try:
        channels, height, width = about_file(file)[0].shape
        shape = channels, height, width
        image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
        theirs = open_model(Candidate(name=file.stem, path=file, precise=True, whole=True), shape, None, threads=1).predict(image)
        ours, *_ = open_compiled(library, shape, "", whole=True)
        pairs = [(np.ravel(one), np.ravel(other)) for one, other in zip(theirs, ours(image), strict=True)]
    except (BenchmarkError, *onnxruntime_errors()):  # the row of ONNX Runtime says what is the matter
        return library
    if not all(np.isfinite(one).all() for one, _ in pairs):  # ONNX Runtime's own
        return library
    far = max(float(np.nan_to_num(np.abs(one - other), nan=np.inf).max() / max(np.abs(one).max(), 1e-30)) for one, other in pairs)
    allowed = ODD["int8" if any("int8" in layer.kind for layer in program.layers) else "float32"]
    if far > allowed:
        return f"the C answers otherwise than ONNX Runtime, by {far:.2g} of the largest number; please report this with the file"
    return library


def written(file: Path) -> "Program":
    """The graph in ``file`` as C for this machine. Raises CompressError where it cannot be."""
    from ...codegen.program import generate

    return generate(file, name=NAME, target=target_of("native"))


def build(cc: str, program: "Program", made: Path, how: Sequence[str] = STANDARD) -> str:
    """Compile a program into the library ``made``, in its folder; nothing, or in a line why that failed."""
    for name, text in program.files.items():
        (made.parent / name).write_text(text, encoding="utf-8")
    told = failed([cc, *how, *target_of("native").flags, "-shared", "-fPIC", "-s", "-o", made, f"{NAME}.c", "-lm"], made.parent)
    return f"{cc}: {told}" if told else ""


def described(program: "Program", made: Path) -> Compiled:
    """What a library of a program takes and gives."""
    taken = (program.input.name, program.input.shape, "tensor(uint8)" if program.input.dtype == "uint8" else "tensor(float)")
    outputs = tuple((one.name, one.shape) for one in program.outputs)
    return Compiled(path=made, function=f"{NAME}_run", taken=taken, outputs=outputs, arena=program.arena_bytes)
