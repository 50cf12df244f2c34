"""Facts about this machine that a latency means nothing without. What cannot be read here is left out, never guessed."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

# What decides the speed of int8, bf16 and fp32 kernels on x86 and on ARM.
RELEVANT_FLAGS = re.compile(r"avx.*|amx.*|f16c|fma|sse4_2|asimd.*|neon|i8mm|bf16|sve.*|sme(2|_\w+)?|fphp")
# Two results may be compared only where these are the same.
DECIDING = ("cpu", "architecture", "flags", "cores", "governor", "gpu")
X86 = ("x86_64", "AMD64", "i686", "i386")
LIBRARIES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "ai-edge-litert", "torch", "compress-edge")


class Machine(TypedDict, total=False):
    """CPU model, relevant flags, usable cores, governor, memory (bytes), load, system, library versions, GPU name and driver.

    ``board``: what the user calls it, of one that was reached from elsewhere. ``emulated``: another processor imitates this one, so that
    latencies say nothing of it.
    """

    board: str
    emulated: bool
    cpu: str
    architecture: str
    flags: list[str]
    cores: int
    governor: str
    memory_bytes: int
    load_average: float
    system: str
    python: str
    libraries: dict[str, str]
    gpu: str | None


def machine_facts() -> Machine:
    """What can be read of this machine."""
    imitated = emulated()
    cpuinfo = "" if imitated else read_text(Path("/proc/cpuinfo"))
    facts: dict[str, Any] = {
        "emulated": imitated or None,
        "cpu": _field(cpuinfo, "model name|Model|Hardware") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "flags": sorted(flag for flag in (_field(cpuinfo, "flags|Features") or "").split() if RELEVANT_FLAGS.fullmatch(flag)),
        "cores": usable_cores(),
        "governor": read_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")).strip() or None,
        "memory_bytes": _memory_bytes(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": _versions(),
        "gpu": _gpu(),
    }
    return Machine(**{name: fact for name, fact in facts.items() if fact not in (None, "", [])})  # type: ignore[typeddict-item]


def emulated() -> bool:
    """Whether another processor imitates this one, as in qemu's user mode: the kernel is that of the other, and tells of it."""
    imitated = platform.machine() not in X86
    hosts = re.search(r"^vendor_id\s*:\s*(GenuineIntel|AuthenticAMD)", read_text(Path("/proc/cpuinfo")), re.MULTILINE)
    return imitated and bool(hosts or re.search(r"amd64|x86_64", platform.release()))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The facts in which two machines differ and that decide about speed; latencies may be compared where there are none."""
    return [name for name in DECIDING if one.get(name) != other.get(name)]


def which(machine: Mapping[str, Any]) -> tuple[str, ...]:
    """By what two machines are told apart where results of several lie side by side: name, CPU and architecture."""
    return tuple(str(machine.get(name) or "") for name in ("board", "cpu", "architecture"))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def strongest_cores(threads: int) -> list[int]:
    """The cores of which each round takes the next one, the same for all candidates: of big and little ones the big.

    None where it is left to the system: with several threads, and where a process cannot choose its core (Windows, macOS).
    """
    if threads > 1 or not hasattr(os, "sched_setaffinity"):
        return []
    strength = {core: _strength(core) for core in sorted(os.sched_getaffinity(0))}
    return [core for core, one in strength.items() if one == max(strength.values())]


def _strength(core: int) -> int:
    """What Linux says of a core's speed beside that of the others, in its units; 0 where it says nothing."""
    about = Path("/sys/devices/system/cpu", f"cpu{core}")
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        with suppress(OSError, ValueError):
            return int((about / name).read_text())
    return 0


def has_cuda_driver() -> bool:
    """Whether there is one to load; without it nothing computes on CUDA, and no library need be imported to find out."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def read_text(path: Path) -> str:
    """A small file of the system, or nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _field(text: str, names: str) -> str | None:
    found = re.search(rf"^(?:{names})\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _memory_bytes() -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", read_text(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _versions() -> dict[str, str]:
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _gpu() -> str | None:
    """Name and driver of the first NVIDIA GPU, asked of the driver's own tool so that no library must be loaded."""
    try:
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, driver = answer.stdout.strip().partition("\n")[0].partition(", ")
    return f"{name}, driver {driver}" if name else None
