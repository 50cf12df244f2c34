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


def text_of(program: Program) -> list[str]:
    """Its files without their first lines, which name the target: what two targets of as many lanes have in common."""
    return [text.partition("\n")[2] for text in program.files.values()]


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


# A board without an operating system: a vector table, the FPU on, and semihosting to write numbers in hexadecimal and to stop.
BOARD = """
#include "NAME.h"
#include <string.h>
static const NAME_pixel images[COUNT][UPPER_INPUT_SIZE] = {VALUES};
static unsigned char arena[UPPER_ARENA_BYTES] __attribute__((aligned(64)));
static float outputs[UPPER_OUTPUTS];
extern unsigned long top_of_stack;
void reset(void);
__attribute__((section(".vectors"), used)) void *const vectors[] = {&top_of_stack, (void *)reset, (void *)reset, (void *)reset};
static void call(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}
void reset(void) {
  *(volatile uint32_t *)0xE000ED88 |= 0xF00000; /* coprocessors 10 and 11 */
  __asm__ volatile("dsb\\n isb");
  for (int i = 0; i < COUNT; i++) {
    memset(arena, 171, sizeof arena);
    NAME_run(images[i], outputs, arena);
    for (int j = 0; j < UPPER_OUTPUTS; j++) {
      char text[10];
      uint32_t bits;
      memcpy(&bits, &outputs[j], 4);
      for (int k = 0; k < 8; k++) text[k] = "0123456789abcdef"[(bits >> (28 - 4 * k)) & 15];
      text[8] = '\\n'; text[9] = 0;
      call(4, text);
    }
  }
  call(0x18, (const void *)0x20026);
  for (;;) {}
}
"""
LINKER = """
MEMORY { FLASH (rx) : ORIGIN = 0, LENGTH = 512K RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 256K }
SECTIONS {
  .text : { KEEP(*(.vectors)) *(.text*) *(.rodata*) *(.ARM.ex*) } > FLASH
  .data : { *(.data*) } > FLASH
  .bss (NOLOAD) : { *(.bss*) *(COMMON) } > RAM
  top_of_stack = ORIGIN(RAM) + LENGTH(RAM);
}
"""


def board(program: Program, folder: Path, flags: Sequence[str], machine: str, images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """What a program gives on a Cortex-M board that qemu emulates."""
    name = write(program, folder)
    values = ", ".join("{" + ", ".join(map(str, image.ravel().tolist())) + "}" for image in images)
    text = BOARD.replace("NAME", name).replace("UPPER", name.upper()).replace("COUNT", str(len(images))).replace("VALUES", values)
    (folder / "board.c").write_text(text, encoding="utf-8")
    (folder / "board.ld").write_text(LINKER, encoding="utf-8")
    built, sources = folder / "board.elf", [f"{folder / name}.c", str(folder / "board.c")]
    link = ("-nostartfiles", "--specs=nosys.specs", "-T", str(folder / "board.ld"), "-Wl,--gc-sections")
    subprocess.run(["arm-none-eabi-gcc", "-std=gnu11", "-Werror", *flags, *sources, *link, "-o", str(built), "-lm"], check=True)
    emulator = ("qemu-system-arm", "-M", machine, "-nographic", "-semihosting", "-kernel", str(built))
    done = subprocess.run(emulator, check=True, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    flat = np.array([int(line, 16) for line in (done.stdout + done.stderr).split()], np.uint32).view(np.float32)
    return [split(program, one) for one in flat.reshape(len(images), -1)]
