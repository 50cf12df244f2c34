"""The first thing that runs on a machine that `remote` reaches: its text comes over the connection, and needs Python's own library only.

It is told in lines of JSON, and answers in lines of JSON: what this machine is, then one answer for each thing that is to be done. All that
it ever writes lies in one folder::

    code/HASH/     this package        site/      numpy, onnxruntime and the rest, where `compress board add` put them
    files/HASH     models and images, by their SHA-256

It ends with the connection.
"""

import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

PARTS = ("code", "site", "files", "scratch")
CHUNK = 1 << 20


def read(count: int) -> bytes:
    """Exactly so many bytes of stdin; the process ends where there are no more."""
    parts = []
    while count:
        part = os.read(0, min(count, CHUNK))
        if not part:
            os._exit(0)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def heard() -> dict[str, Any]:
    """The next line."""
    line = b""
    while not line.endswith(b"\n"):
        line += read(1)
    told: dict[str, Any] = json.loads(line)
    return told


def answer(**told: object) -> None:
    """One line."""
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def about(folder: Path, packages: list[str]) -> dict[str, object]:
    """What this machine is, and what it has."""
    versions = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "folder": str(folder),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "libc": platform.libc_ver()[1],
        "system": platform.system(),
        "free": shutil.disk_usage(folder).free,
        "time": time.time(),
        "packages": versions,
        "code": sorted(path.name for path in (folder / "code").glob("*")) if (folder / "code").is_dir() else [],
    }


def unpack(content: bytes, target: Path) -> None:
    """The files of a zip, whole or not there."""
    part = target.with_name(f"{target.name}.{os.getpid()}")
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        packed.extractall(part)
    if target.exists():  # another connection was faster
        shutil.rmtree(part)
    else:
        part.rename(target)


def install(site: Path, requirements: list[str]) -> str:
    """Let pip of this machine do it; why it did not, or nothing."""
    if importlib.util.find_spec("pip") is None:
        return "its Python has no pip; install that there, or take --offline"
    how = ["--quiet", "--disable-pip-version-check", "--no-warn-script-location", "--upgrade", "--target", str(site)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *how, *requirements], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["pip said nothing"]
    return "" if done.returncode == 0 else said[-1]


def do(folder: Path, wanted: dict[str, Any]) -> dict[str, object]:
    """One of: code, wheels, install, remove."""
    kind = wanted["do"]
    if kind == "code":
        content = read(wanted["size"])
        (folder / "code").mkdir(exist_ok=True)
        unpack(content, folder / "code" / wanted["hash"])
    elif kind == "wheels":
        site = folder / "site"
        for size in wanted["sizes"]:  # a wheel is a zip
            with zipfile.ZipFile(io.BytesIO(read(size))) as packed:
                packed.extractall(site)
    elif kind == "install":
        if told := install(folder / "site", wanted["requirements"]):
            return {"error": told}
    elif kind == "remove":
        for name in PARTS:
            shutil.rmtree(folder / name, ignore_errors=True)
        with suppress(OSError):  # what others put there stays
            folder.rmdir()
    return {}


def main() -> None:
    """Answer until it is said to serve; then this process becomes the one of `there`."""
    first = heard()
    folder = Path(first["folder"]).expanduser()
    folder = folder if folder.is_absolute() else Path.home() / folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scratch").mkdir(exist_ok=True)
        sys.path[:0] = [str(folder / "site")]
        answer(**about(folder, first["packages"]))
        while (wanted := heard())["do"] != "serve":
            answer(**do(folder, wanted))
    except OSError as error:
        answer(error=f"{error.filename or folder}: {error.strerror}")
        return
    code = folder / "code" / wanted["hash"]
    sys.path[:0] = [str(code)]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(code), str(folder / "site")])
    from compress.benchmarks.boards.there import serve

    serve(folder)


if __name__ == "__main__":
    main()
