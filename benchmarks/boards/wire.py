"""Messages between this machine and one that `remote` reaches: frames of MessagePack, in which arrays are arrays and records are records.

What is read is only ever data, as one end need not be believed by the other: no pickle, no name is looked up but those of `RECORDS`, no
frame of more than `MOST` bytes. Large arrays and files go as the SHA-256 of their bytes; who sends them makes sure first that they are
there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import BenchmarkError
from ..gauges import Turn
from ..place import Surroundings
from ..profile import Profile
from ..runtimes import Candidate
from ..worker import Facts

RECORDS: dict[str, Any] = {one.__name__: one for one in (Facts, Turn, Profile, Surroundings)}
SENT = ("name", "runtime", "device", "mean", "std", "whole")  # of a candidate
KINDS = "biuf"
LARGE = 1 << 15  # bytes of an array that goes by its hash
MOST = 1 << 28
HEAD = struct.Struct(">Q")


def packed(value: Any, keep: Callable[[bytes | Path], str] | None = None) -> bytes:
    """A frame. ``keep`` makes sure that the other end has these bytes, or this file, and gives their hash; None sends arrays whole."""
    body = msgspec.msgpack.encode(_plain(value, keep))
    return HEAD.pack(len(body)) + body


def unpacked(read: Callable[[int], bytes], kept: Callable[[str], Path] | None = None) -> Any:
    """The next frame; ``read`` gives exactly so many bytes, ``kept`` where the file of a hash lies.

    Raises BenchmarkError for what no other end of ours sends.
    """
    (size,) = HEAD.unpack(read(HEAD.size))
    if size > MOST:
        raise BenchmarkError(f"a frame of {size:,} bytes came, at most {MOST:,} may; the other end is another program")
    try:
        return _made(msgspec.msgpack.decode(read(size)), kept)
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"a frame came that says nothing ({type(error).__name__}); the other end is another program") from error


def hash_of(content: bytes | Path) -> str:
    """SHA-256."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any, keep: Callable[[bytes | Path], str] | None) -> Any:
    if isinstance(value, np.ndarray):
        data, about = np.ascontiguousarray(value).tobytes(), {"!": "array", "type": value.dtype.str, "shape": list(value.shape)}
        return about | ({"data": data} if keep is None or len(data) < LARGE else {"hash": keep(data)})
    if isinstance(value, Candidate):
        assert keep is not None, "candidates go one way"
        return {"!": "candidate", "hash": keep(value.path), **{name: _plain(getattr(value, name), keep) for name in SENT}}
    if isinstance(value, Path):
        assert keep is not None, "files go one way"
        return {"!": "file", "hash": keep(value)}
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"!": type(value).__name__, **{one.name: _plain(getattr(value, one.name), keep) for one in dataclasses.fields(value)}}
    if isinstance(value, tuple | list):
        return [_plain(one, keep) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one, keep) for name, one in value.items()}
    return value


def _made(value: Any, kept: Callable[[str], Path] | None) -> Any:
    if isinstance(value, list):
        return [_made(one, kept) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("!")
    fields = {name: _made(one, kept) for name, one in value.items() if name != "!"}
    if kind is None:
        return fields
    if kind == "array":
        dtype = np.dtype(fields["type"])
        if dtype.kind not in KINDS:
            raise ValueError(kind)
        data = fields["data"] if "data" in fields else _place(fields, kept).read_bytes()
        return np.frombuffer(data, dtype).reshape(fields["shape"])
    if kind == "file":
        return _place(fields, kept)
    if kind == "candidate":
        return Candidate(path=_place(fields, kept), **{name: fields[name] for name in SENT})
    return msgspec.convert(fields, RECORDS[kind])


def _place(fields: dict[str, Any], kept: Callable[[str], Path] | None) -> Path:
    if kept is None:
        raise ValueError("hash")
    return kept(fields["hash"])
