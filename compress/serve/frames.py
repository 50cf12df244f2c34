"""What the service and its workers tell each other, over pipes: a length of four bytes, and a record as MessagePack. Nothing is pickled."""

import asyncio
from typing import IO, TypeVar

import msgspec

from .settings import Source

T = TypeVar("T")
MOST_FRAME = 2**31


class Hello(msgspec.Struct, kw_only=True):
    """To a worker: what to load, and what it refuses later."""

    source: Source
    max_pixels: int


class Habits(msgspec.Struct, kw_only=True):
    """How the pictures that a network was trained on are drawn; see :mod:`.drawing`."""

    ink: str  # "light" on dark, or "dark" on light
    extent: float  # of the longer side of the ink, as a fraction of the picture's
    thickness: float  # of a stroke, as a fraction of the picture's shorter side
    centred: str  # "mass" or "box": of the ink, what lies in the middle
    known: bool  # measured on the images beside the model, or what is usual


class Ready(msgspec.Struct, kw_only=True):
    """From a worker that has loaded its model, or says why it could not."""

    error: str = ""
    classes: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (0, 0, 0)
    hash: str = ""
    size: int = 0
    batch: int = 1
    latency_ms: float = 0.0
    drawing: Habits | None = None


class Job(msgspec.Struct, kw_only=True):
    """One request: ``task`` is predict or explain; ``deadline``: on the clock of time.monotonic; ``seen``: the pixels are wanted back."""

    task: str
    content_type: str
    body: bytes
    deadline: float
    seen: bool = False


class Answer(msgspec.Struct, kw_only=True):
    """``content``: JSON of what was found, or where ``status`` is not 200 the sentence that says why not; ``hash``: of the model's file."""

    status: int = 200
    content: bytes = b""
    hash: str = ""
    images: int = 0
    decode_ns: int = 0
    compute_ns: int = 0
    batch: int = 1


def frame(record: object) -> bytes:
    body = msgspec.msgpack.encode(record)
    return len(body).to_bytes(4, "big") + body


def read_frame(stream: IO[bytes], kind: type[T]) -> T | None:
    """The next record, or None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "big")
    body = stream.read(size)
    return msgspec.msgpack.decode(body, type=kind) if len(body) == size else None


async def next_frame(stream: asyncio.StreamReader, kind: type[T]) -> T:
    """The same without waiting for it here; raises IncompleteReadError at the end."""
    size = int.from_bytes(await stream.readexactly(4), "big")
    return msgspec.msgpack.decode(await stream.readexactly(size), type=kind)
