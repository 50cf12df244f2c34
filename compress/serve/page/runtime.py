"""ONNX Runtime for browsers: two files of one version of onnxruntime-web, from the npm registry, by their SHA-256.

The package (33 MB) is fetched once, and what a page needs of it kept in ``$XDG_CACHE_HOME/compress-edge/npm`` (``~/.cache``). Without a
network it can be put there by hand; what has another hash is refused, from wherever it came.

Where the registry is, is said by an option or a variable, else by npm itself.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ...artifacts.project import Console
from ...errors import CompressError, shown
from ...files import write_whole
from ...train.download import fetch, file_hash

EXAMPLE = "https://npm.example.org"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of the registry; ``files``: of those that are needed the path in it, the name that they get, and their SHA-256."""

    name: str
    version: str
    sha256: str
    files: tuple[tuple[str, str, str], ...]

    @property
    def called(self) -> str:
        return f"{self.name}-{self.version}"


# The script ends in .js here, as not every host knows that .mjs is one.
RUNTIME = Package(
    name="onnxruntime-web",
    version="1.30.0",
    sha256="d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
    files=(
        (
            "package/dist/ort.wasm.bundle.min.mjs",
            "ort.wasm.bundle.min.js",
            "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
        ),
        (
            "package/dist/ort-wasm-simd-threaded.wasm",
            "ort-wasm-simd-threaded.wasm",
            "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        ),
    ),
)


def kept_in() -> Path:
    """Where packages are kept, by the XDG base directory specification."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "compress-edge" / "npm"


def registry_of(given: str | None) -> str:
    """The address of the registry, without a slash at its end: the one given, else that of npm's own variable, else what npm says.

    Raises CompressError where nobody knows it, or it is no address.
    """
    found = given or os.environ.get("NPM_CONFIG_REGISTRY") or _of_npm()
    if not found:
        raise CompressError(
            "registry (=None): the address of an npm registry is not known; name one with --registry or NPM_CONFIG_REGISTRY, or install npm"
        )
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", found):
        raise CompressError(f"registry (={shown(found)}) must be an address of http or https, such as {EXAMPLE}")
    return found.rstrip("/")


def _of_npm() -> str:
    """What npm is set to, if it is installed."""
    if (npm := shutil.which("npm")) is None:
        return ""
    try:
        asked = subprocess.run([npm, "config", "get", "registry"], capture_output=True, text=True, timeout=30, cwd=Path.home(), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def runtime_files(registry: str | None, console: Console, package: Package = RUNTIME) -> list[Path]:
    """The files of the package, from the cache or the ``registry``, which is looked for where it is needed; raises TrainError as
    :func:`fetch` does, and CompressError as :func:`registry_of` does."""
    folder = kept_in() / package.called
    found = [folder / name for _, name, _ in package.files]
    if all(path.is_file() and file_hash(path, "sha256") == sha256 for path, (_, _, sha256) in zip(found, package.files, strict=True)):
        return found
    archive = kept_in() / f"{package.called}.tgz"
    where = registry if archive.exists() else registry_of(registry)
    if not archive.exists():
        console.say(f"fetches {package.called} from {where}, once")
    fetch(f"{where or 'npm'}/{package.name}/-/{package.called}.tgz", archive, sha256=package.sha256, progress=console.progress)
    with tarfile.open(archive, "r:gz") as opened:
        for member, name, sha256 in package.files:
            content = opened.extractfile(member)
            assert content is not None, f"{package.called}.tgz of that hash has {member}"
            written = content.read()
            assert hashlib.sha256(written).hexdigest() == sha256, f"{member} in {package.called}.tgz of that hash"
            write_whole(folder / name, written)
    archive.unlink()
    return found
