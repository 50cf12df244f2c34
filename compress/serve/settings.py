"""What is served and within which limits. Loads neither FastAPI nor ONNX Runtime."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..artifacts.artifact import MANIFEST, PAYLOAD
from ..artifacts.records import seconds_of
from ..benchmarks.formats import bytes_of
from ..errors import CompressError, need_file, shown

Stamp = tuple[tuple[str, int, int, int], ...]
LABELS = "labels.txt"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_WORKERS, MOST_QUEUE, LEAST_BODY, MOST_BODY, MOST_TOKEN = 64, 4096, 1 << 10, 1 << 30, 4096
HELD_BODIES = 32  # times the largest body: what all bodies together may take
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model by name, and where it lies: an ONNX file, an artifact, or a folder with ``model.onnx`` or ``model.tflite``.

    ``image_shape``, ``mean``, ``std``: how another tool's file is fed. ``model``, ``runs``: which code of the user's own is trusted.
    """

    name: str
    path: str
    image_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    model: str | None = None
    runs: str = "runs"

    def stamp(self) -> Stamp:
        """Of the files that make it: name, ns of the last change, bytes, and number on the disk; nothing of what is not there."""
        path = Path(self.path)
        files = [path / name for name in (MANIFEST, *PAYLOAD.values(), LABELS)] if path.is_dir() else [path]
        found = []
        for file in files:
            try:
                about = file.stat()
            except OSError:
                continue
            found.append((file.name, about.st_mtime_ns, about.st_size, about.st_ino))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where to listen, and the limits.

    Args:
        workers: processes of each model. queue: requests of each model that may wait; one more is refused with 429.
        max_body: bytes of a request. max_pixels: of a picture, as it declares them. timeout: seconds for a request, from its first byte.
        token_file: a file with the bearer token that all but the page and the health checks then ask for.
        allow_origin: other sites whose pages may ask.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    queue: int = 64
    max_body: int | str = "8MB"
    max_pixels: int = 25_000_000
    timeout: float | str = 10.0
    token_file: Path | None = None
    allow_origin: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.host.strip():
            raise CompressError("host (=) must be an address, such as 127.0.0.1, or 0.0.0.0 for all of this machine's")
        limits = {
            "port": (self.port, 0, 65535, "8000 is the default, 0 takes a free one"),
            "workers": (self.workers, 1, MOST_WORKERS, "one per core at most pays"),
            "queue": (self.queue, 1, MOST_QUEUE, "64 is the default"),
            "max_body": (self.body, LEAST_BODY, MOST_BODY, "8MB is the default"),
            "max_pixels": (self.max_pixels, 1, 178_956_970, "25000000 is the default"),
            "timeout": (self.seconds, 0.1, 3600, "10s is the default"),
        }
        for name, (value, least, most, hint) in limits.items():
            if not least <= value <= most:
                raise CompressError(f"{name} (={value}) must lie in {least:,} to {most:,}; {hint}")
        for origin in self.allow_origin:
            if not _ORIGIN.fullmatch(origin):
                raise CompressError(f"allow_origin (={shown(origin)}) must be scheme, host and port, such as https://example.org")
        _ = self.token

    @property
    def body(self) -> int:
        return bytes_of(self.max_body, "max_body")

    @property
    def seconds(self) -> float:
        return seconds_of(self.timeout, "timeout")

    @property
    def is_local(self) -> bool:
        return self.host in LOOPBACK

    @property
    def token(self) -> bytes | None:
        """What the file says, without the end of its line."""
        if self.token_file is None:
            return None
        need_file(self.token_file, f"token_file (={self.token_file})")
        found = self.token_file.read_bytes()[: MOST_TOKEN + 1].strip()
        if not 16 <= len(found) <= MOST_TOKEN or not re.fullmatch(rb"[\x21-\x7e]+", found):
            raise CompressError(
                f"token_file (={self.token_file}) must hold 16 to {MOST_TOKEN} letters without spaces; `openssl rand -hex 32`"
            )
        return found


def sources_of(given: Sequence[Path | str], **how: object) -> list[Source]:
    """Sources as the command line has them, ``PATH`` or ``NAME=PATH``; ``how``: the other fields of :class:`Source`."""
    if not given:
        raise CompressError("sources: name at least one: an .onnx file, an artifact, or a folder made by report --ship")
    found: dict[str, Source] = {}
    for one in map(str, given):
        before, separator, after = one.partition("=")
        said = bool(separator) and not Path(one).exists()
        path = Path(after if said else one)
        name = before if said else _called(path)
        if not path.exists():
            raise CompressError(f"source (={shown(str(path), 160)}) does not exist; name an .onnx file, an artifact, or a shipped folder")
        if not _NAME.fullmatch(name):
            raise CompressError(f"name (={shown(name)}) must be of letters, digits, dots and dashes, at most 64; write NAME={path}")
        if name in found:
            raise CompressError(f"name (={name}) is that of {found[name].path} and {path}; give one another: other={path}")
        found[name] = Source(name=name, path=os.fspath(path.absolute()), **how)  # type: ignore[arg-type]
    return list(found.values())


def model_in(path: Path) -> Path:
    """The file of a shipped folder; what is no folder is the file. Raises CompressError where there is none."""
    if not path.is_dir():
        return path
    places = [path / PAYLOAD["graph"], path / PAYLOAD["litert"]]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        named = " or ".join(place.name for place in places)
        raise CompressError(f"source (={shown(str(path), 160)}) has no {named}; name an .onnx file, an artifact, or a shipped folder")
    return found


def _called(path: Path) -> str:
    """Of ``board/k49/model.onnx`` and ``board/k49`` k49, of ``net.onnx`` net."""
    own = path.parent if path.name in PAYLOAD.values() else path
    stem = own.name if own.is_dir() else own.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem or path.absolute().name).strip("-._")[:64] or "model"
