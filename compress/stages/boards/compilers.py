"""C compilers: which one makes programs for a target here, how it is called, and what decides what comes out."""

import functools
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ... import codegen
from ...benchmarks.machine import machine_facts
from ...codegen.target import TARGETS, Target, target_of
from ...errors import CompressError, shown

HERE = ("gcc", "clang", "cc")
CROSS = {"aarch64": "aarch64-linux-gnu-gcc", "cortex-m": "arm-none-eabi-gcc"}  # by family
MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}
STANDARD = ("-std=c11", "-O3")


def runs_here(target: Target) -> bool:
    """Whether this machine is of the target's family."""
    machine = platform.machine().lower()
    return target.family in ("", MACHINES.get(machine, machine))


def int8_may_be_slow(target: Target) -> bool:
    """Whether int8 can be slower than float32 there: vectors, and no instruction for dot products of bytes.

    Which is faster hangs on the processor and the network (docs/experiments.md).

    Of this machine its processor says so.
    """
    if target.name == "native" and runs_here(TARGETS["x86-64-v3"]):
        flags = machine_facts().get("flags", [])
        return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)
    return target.vector > 1 and target.dot in ("", "pmaddwd")


def found(names: Sequence[str]) -> str | None:
    """The first of these compilers that is installed."""
    return next((name for name in names if shutil.which(name)), None)


def usual(target: Target) -> tuple[str, ...]:
    """The compilers for a target, the best first."""
    if runs_here(target):
        return HERE
    return (CROSS[target.family],) if target.family in CROSS else ()


def compiler_here(wanted: str) -> str:
    """The compiler that makes programs for this machine. Raises CompressError where there is none; ``wanted``: what needs it."""
    if (cc := found(HERE)) is None:
        looked = f"(looked for {', '.join(HERE)})"
        raise CompressError(f"{wanted} needs a C compiler, and there is none here {looked}; install one, or leave it out")
    return cc


def toolchain() -> dict[str, str]:
    """What decides how fast C is here besides the graph: the compiler's version, its flags, and a hash of what writes the C.

    Without a compiler none is named.
    """
    cc = found(HERE)
    told = f"{cc}: {_version(shutil.which(cc) or cc)}" if cc is not None else "none"
    return {"compiler": told, "flags": " ".join([*STANDARD, *target_of("native").flags]), "generator": _generator()}


@functools.cache
def _version(path: str) -> str:
    """The first line of what a compiler says of itself."""
    done = subprocess.run([path, "--version"], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    return shown((done.stdout.strip() or done.stderr.strip() or "unknown").splitlines()[0], 160)


@functools.cache
def _generator() -> str:
    """Of all files of ``compress.codegen``, the kernels among them."""
    digest, root = hashlib.sha256(), Path(codegen.__file__).parent
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".h")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def failed(command: Sequence[str | Path], folder: Path) -> str:
    """Call a compiler in ``folder``; nothing, or in a line why it failed."""
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit code {done.returncode}")
    return shown(told, 160)
