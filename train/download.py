"""Fetch one file over HTTP: resumed where it broke off, checked by its hash, and put in place only when whole.

Refuses a file whose hash is not the expected one; an md5 guards against accidents, not against an attacker, a sha256 against both. Source
for resuming: RFC 9110, section 14 (range requests).
"""

import hashlib
import os
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from .errors import TrainError

_TIMEOUT = 30.0  # seconds without a single byte
_PIECE = 1 << 18


def fetch(url: str, target: Path, *, md5: str = "", sha256: str = "", progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Download ``url`` to ``target`` unless it is there already, and return ``target``.

    One of ``md5`` and ``sha256`` (hex) says what the file is. What arrives is kept in ``target.part``; the next call goes on from its end.
    ``progress`` is told the file's name, the bytes so far and the bytes in all (0: the server does not say).

    Raises TrainError: no connection, a refusal by the server, a broken transfer, or another hash. A bad download is removed, a bad
    ``target`` that was there before is left for its owner to remove.
    """
    assert bool(md5) != bool(sha256), "one hash decides"
    kind, expected = ("sha256", sha256) if sha256 else ("md5", md5)
    by_hand = f"or fetch {url} by hand and put it at {target}"
    if target.exists():
        found = file_hash(target, kind)
        if found != expected:
            raise TrainError(f"{target} has {kind} {found}, expected {expected}; remove it to download it anew, {by_hand}")
        return target
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A part that is whole already lacked only the renaming; asked for the rest of it, a server can only refuse.
        if not part.exists() or file_hash(part, kind) != expected:
            _receive(url, part, target.name, progress)
        found = file_hash(part, kind)
        if found != expected:
            part.unlink()
            raise TrainError(f"{target.name} came with {kind} {found}, expected {expected}, and was removed; try again, {by_hand}")
        part.replace(target)
    except (OSError, HTTPException) as error:
        raise TrainError(f"{target.name} could not be downloaded ({error}); run it again to resume, {by_hand}") from error
    return target


def file_hash(path: Path, kind: str) -> str:
    """The md5 or sha256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=kind != "md5")).hexdigest()


def _receive(url: str, part: Path, name: str, progress: Callable[[str, int, int], None] | None) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not done:
            raise
        part.unlink()  # the server's file ends before our part does
        return _receive(url, part, name, progress)
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        done = 0
    with response, part.open("ab" if done else "wb") as file:
        total = done + (response.length or 0)
        while piece := response.read(_PIECE):
            file.write(piece)
            done += len(piece)
            if progress:
                progress(name, done, total)
        file.flush()
        os.fsync(file.fileno())
    if done < total:  # http.client reports a connection closed too early only to those who read everything at once
        raise ConnectionError(f"the connection closed after {done} of {total} bytes")
    return None
