"""Machines that `compress board` knows by a name, what is wrong with them, and the libraries they are given.

Their addresses lie in ``$XDG_CONFIG_HOME/compress-edge/boards.json`` (``~/.config``), their latency tables beside it. What a machine is
given are the libraries that this package needs without any extra, in a folder of their own (see `boot`): by pip there, or, ``offline``, as
wheels that pip fetches here.

Refused, in a line each: what `remote` refuses, an unknown name, a processor or system that ONNX Runtime has no wheels for, less than
`ROOM` free, and a clock that is more than `SKEW` off, with which no certificate holds.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path

from ..errors import BenchmarkError
from ..place import HERE, Place
from .remote import NEEDED, Address, Board, Connection, Machine

ROOM = 400_000_000  # bytes: twice what is installed
SKEW = 3600.0  # seconds
PROCESSORS = ("x86_64", "aarch64")
THIS = "here"  # what this machine is called where a board is named
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,39}")


def place_named(on: str | None, tell: Callable[[str, int, int], None] | None = None) -> Place:
    """The place that ``--on`` names: an address, the name of one, or this machine."""
    return HERE if on is None else Board(on, _address(on), tell)


def known() -> dict[str, str]:
    """Addresses by their names."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise BenchmarkError(f"{_file()} is damaged; delete it, and `compress board add` again")
    return found


def add(name: str, text: str, offline: bool = False) -> Machine:
    """Look at the machine, give it what it needs, and remember it."""
    if not NAME.fullmatch(name) or name == THIS:
        raise BenchmarkError(
            f'name (={name}) must be of letters, digits, dots and dashes, such as pi4, and not "{THIS}", which is this machine'
        )
    address, needed = Address.of(text), requirements()
    with closing(Connection(name, address, list(needed))) as link:
        machine = link.machine
        _refuse(name, machine, offline)
        if any(one not in machine.packages for one in needed):
            if offline:
                _carry(link, list(needed.values()))
            else:
                link.say(do="install", requirements=list(needed.values()))
                link.hear()
    with closing(Connection(name, address, list(needed))) as link:
        if missing := [one for one in needed if one not in link.machine.packages]:
            raise BenchmarkError(f"{name}: {missing[0]} is still not found; look at {machine.folder}/site there")
        machine = link.machine
    _write(known() | {name: str(address)})
    return machine


def check(name: str) -> Machine:
    """The machine as it is now; raises BenchmarkError for what is wrong with it."""
    with closing(Connection(name, _address(name), list(requirements()))) as link:
        _refuse(name, link.machine, True)
        if missing := [one for one in NEEDED if one not in link.machine.packages]:
            raise BenchmarkError(f"{name} has no {missing[0]}; `compress board add {name} {_address(name)}` installs it there")
        return link.machine


def remove(name: str) -> str:
    """Forget the machine, and remove what lies there; why that could not be done, or nothing."""
    left, address = known(), _address(name)
    told = ""
    try:
        with closing(Connection(name, address)) as link:
            link.say(do="remove")
            link.hear()
    except BenchmarkError as error:
        told = str(error)
    _write({one: where for one, where in left.items() if one != name})
    latency_file(name).unlink(missing_ok=True)
    return told


def latency_file(name: str) -> Path:
    """Where the latency table of a machine lies, by its name, or `THIS`."""
    return _file().parent / "latency" / f"{name}.json"


def requirements() -> dict[str, str]:
    """What this package needs without any extra, by the names of the libraries: ``{"numpy": "numpy>=2.0"}``."""
    try:
        lines = metadata.requires("compress-edge") or []
    except metadata.PackageNotFoundError:
        lines = list(NEEDED)
    found = [line for line in lines if ";" not in line]
    return {re.split(r"[\s<>=!~\[]", line)[0]: line for line in found}


def _address(on: str) -> Address:
    if on.startswith("ssh://"):
        return Address.of(on)
    boards = known()
    if on not in boards:
        there = ", ".join(boards) or "none"
        raise BenchmarkError(f"on (={on}) is no board that is known ({there}); `compress board add {on} ssh://user@host`")
    return Address.of(boards[on])


def _refuse(name: str, machine: Machine, offline: bool) -> None:
    if machine.system != "Linux" or machine.machine not in PROCESSORS or machine.bits != 64:
        told = f"{name} is {machine.system} on {machine.machine}, {machine.bits} bits, and ONNX Runtime has wheels for 64 bits of"
        raise BenchmarkError(f"{told} {' and '.join(PROCESSORS)}; `compress export-c` writes C for others")
    if abs(machine.skew) > SKEW:
        how = f"{abs(machine.skew) / 3600:.1f} hours {'ahead' if machine.skew > 0 else 'behind'}"
        raise BenchmarkError(f"{name}: its clock is {how}, with which certificates and dates of files do not hold; set it there")
    lacks = any(one not in machine.packages for one in NEEDED)
    if lacks and machine.free < ROOM:
        raise BenchmarkError(f"{name} has {machine.free / 1e6:.0f} MB free in {machine.folder}, {ROOM / 1e6:.0f} are needed")


def _carry(link: Connection, needed: Sequence[str]) -> None:
    """Fetch wheels for the other machine here, and send them."""
    about = link.machine
    major, minor = [*about.libc.split("."), "17"][:2]
    newest = int(minor) if major == "2" and minor.isdecimal() else 17
    tags = [f"manylinux_2_{one}_{about.machine}" for one in range(newest, 16, -1)] + [f"manylinux2014_{about.machine}"]
    with tempfile.TemporaryDirectory() as folder:
        how = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--implementation=cp", "--dest", folder]
        how += ["--python-version", ".".join(about.python.split(".")[:2])]
        how += [word for tag in tags for word in ("--platform", tag)]
        done = subprocess.run([sys.executable, "-m", "pip", "download", *how, *needed], capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
            raise BenchmarkError(f"wheels for {link.name} ({about.machine}, Python {about.python}) were not fetched here: {said[-1]}")
        wheels = sorted(Path(folder).glob("*.whl"))
        link.say(do="wheels", sizes=[one.stat().st_size for one in wheels])
        for one in wheels:
            link.send(one.read_bytes())
        link.hear()


def _file() -> Path:
    base = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".config") / "compress-edge" / "boards.json"


def _write(boards: dict[str, str]) -> None:
    from ..results import replace

    _file().parent.mkdir(parents=True, exist_ok=True)
    replace(_file(), (json.dumps(boards, indent=1) + "\n").encode())
