"""C compilers: which one makes programs for a target here, and how it is called."""

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ...codegen.target import Target
from ...errors import shown

HERE = ("gcc", "clang", "cc")
MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "arm64": "aarch64"}
STANDARD = ("-std=c11", "-O3")


def runs_here(target: Target) -> bool:
    """Whether this machine is of the target's family."""
    machine = platform.machine().lower()
    return target.name in ("native", "portable") or target.name.startswith(MACHINES.get(machine, machine))


def found(names: Sequence[str]) -> str | None:
    """The first of these compilers that is installed."""
    return next((name for name in names if shutil.which(name)), None)


def usual(target: Target) -> tuple[str, ...]:
    """The compilers for a target, the best first."""
    if runs_here(target):
        return HERE
    return ("aarch64-linux-gnu-gcc",) if target.name.startswith("aarch64") else ("arm-none-eabi-gcc",) if target.lanes == 4 else ()


def failed(command: Sequence[str | Path], folder: Path) -> str:
    """Call a compiler in ``folder``; nothing, or in a line why it failed."""
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    told = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit code {done.returncode}")
    return shown(told, 160)
