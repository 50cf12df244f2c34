"""Generated C, compiled and called: as a library in this process, or as a program that reads images from a file."""

import ctypes
import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.codegen.program import Program

WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang")

# Reads the images of the file argv[1], and writes all outputs to stdout. Every buffer has exactly the size that the header says.
MAIN = """
#include "NAME.h"
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  FILE *file = fopen(argv[argc - 1], "rb");
  NAME_pixel *image = (NAME_pixel *)malloc(UPPER_INPUT_SIZE * sizeof(NAME_pixel));
  float *outputs = (float *)malloc(UPPER_OUTPUTS * sizeof(float));
  unsigned char *arena = (unsigned char *)aligned_alloc(64, UPPER_ARENA_BYTES);
  if (!file || !image || !outputs || !arena || !NAME_label(0) || *NAME_label(-1)) return 1;
  for (size_t i = 0; i < UPPER_ARENA_BYTES; i++) arena[i] = 171;
  while (fread(image, sizeof(NAME_pixel), UPPER_INPUT_SIZE, file) == UPPER_INPUT_SIZE) {
    NAME_run(image, outputs, arena);
    if (fwrite(outputs, sizeof(float), UPPER_OUTPUTS, stdout) != UPPER_OUTPUTS) return 1;
  }
  free(arena); free(outputs); free(image);
  return fclose(file);
}
"""


def write(program: Program, folder: Path) -> str:
    """Write the files of a program; its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in program.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return next(name.removesuffix(".c") for name in program.files if name.endswith(".c"))


def split(program: Program, flat: np.ndarray) -> list[np.ndarray]:
    """All outputs, each in its shape."""
    sizes = [math.prod(port.shape) for port in program.outputs]
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return [part.reshape(port.shape) for part, port in zip(parts, program.outputs, strict=True)]


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program in this process; called with an image, it gives its outputs. Its arena is full of rubbish before every call."""

    program: Program
    run: Any

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        dtype = np.uint8 if self.program.input.dtype == "uint8" else np.float32
        image = np.ascontiguousarray(image, dtype)
        assert image.size == math.prod(self.program.input.shape)
        flat = np.zeros(sum(math.prod(port.shape) for port in self.program.outputs), np.float32)
        raw = np.full(self.program.arena_bytes + 64, 171, np.uint8)
        arena = raw[-raw.ctypes.data % 64 :]
        self.run(*(ctypes.c_void_p(one.ctypes.data) for one in (image, flat, arena)))
        return split(self.program, flat)


def library(programs: Sequence[Program], folder: Path, flags: Sequence[str], cc: str = "gcc") -> list[Compiled]:
    """Programs of different names, compiled as one file into one library."""
    names = [write(program, folder) for program in programs]
    target = folder / f"{len(list(folder.iterdir()))}.so"
    (folder / "all.c").write_text("".join(f'#include "{name}.c"\n' for name in names), encoding="utf-8")
    subprocess.run([cc, *WARNINGS, *flags, "-shared", "-fPIC", str(folder / "all.c"), "-o", str(target), "-lm"], check=True)
    loaded = ctypes.CDLL(str(target))
    return [Compiled(program, getattr(loaded, f"{name}_run")) for program, name in zip(programs, names, strict=True)]


def executable(
    program: Program, folder: Path, flags: Sequence[str], cc: str = "gcc", run: Sequence[str] = (), images: Sequence[np.ndarray] = ()
) -> list[list[np.ndarray]]:
    """What a program of its own, started by ``run``, writes for ``images``."""
    name = write(program, folder)
    (folder / "main.c").write_text(MAIN.replace("NAME", name).replace("UPPER", name.upper()), encoding="utf-8")
    (folder / "images").write_bytes(b"".join(np.ascontiguousarray(image).tobytes() for image in images))
    built = folder / "main"
    subprocess.run([cc, *WARNINGS, *flags, f"{folder / name}.c", str(folder / "main.c"), "-o", str(built), "-lm"], check=True)
    done = subprocess.run([*run, str(built), str(folder / "images")], check=True, capture_output=True)
    flat = np.frombuffer(done.stdout, np.float32).reshape(len(images), -1)
    return [split(program, one) for one in flat]
