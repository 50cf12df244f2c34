"""Which worker runs a trial, and whether it still lives: what tells a killed worker from one that is busy beside this one.

On the same host the process is looked for; its time of birth is compared too, as its number may have gone to another. Of another host (or
another container, which sees other processes) only its beats are known, which a living worker writes at least once a minute; after
``STALE`` seconds without one it counts as dead. Clocks of hosts that share a study must agree within minutes.
"""

import os
import socket
import time
from pathlib import Path
from typing import TypedDict

BEAT, STALE = 60.0, 600.0  # seconds


class Worker(TypedDict):
    host: str
    pid: int
    born: str | None


def this_worker() -> Worker:
    """This process, as trials record it: JSON of host, pid, and when the process was born."""
    return {"host": _host(), "pid": os.getpid(), "born": _born(os.getpid())}


def is_alive(worker: Worker, last_beat: float) -> bool:
    """Whether ``worker`` still runs; ``last_beat`` in seconds since 1970."""
    born = _born(worker["pid"]) if worker["host"] == _host() else None
    return time.time() - last_beat < STALE if born is None else born == worker["born"]


def _host() -> str:
    """The host's name and, where there is one, the namespace in which its process numbers count."""
    namespace = Path("/proc/self/ns/pid")
    return socket.gethostname() + (f" {namespace.readlink()}" if namespace.is_symlink() else "")


def _born(pid: int) -> str | None:
    """When the process was born, in the system's own words; empty if there is none, None where the system does not tell."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # proc(5): state, and starttime in ticks since the machine started
    if os.name != "posix":  # os.kill would end the process there
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "lives"
