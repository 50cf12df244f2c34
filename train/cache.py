"""Decoded pictures and large arrays, kept on disk so that a data set is decoded once and need not fit into memory.

::

    data/.pictures/3f9a0c51be270d18/     named after which files were read, as they are on the disk, and how
        images.u8                        uint8 (N, C, H, W)
        about.json                       of which folder, how many, of which shape, and what was left out
        ....sha256                       fingerprint of these images with their labels, parted in one way

An entry is made whole in a folder beside its place and renamed; of two processes that make the same, one waits and finds it made. How
that is done is handed in, as ``train`` stands alone: see ``claimed`` and ``publish`` in ``compress.files``.

Refused with one line, with nothing left behind: a disk without room, looked at before the first picture is decoded, or a folder that
cannot be written.
"""

import math
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from .errors import TrainError
from .stored import Stored

HIDDEN = ".pictures"  # in the folder of downloads, which may be the folder of the data too
IMAGES, ABOUT = "images.u8", "about.json"
HELD = 256 << 20  # bytes of images that are read into memory at most, a quarter of it where that is less


@dataclass
class Left:
    """What is wrong with pictures that are left out, by position, and how many values were clipped."""

    broken: dict[int, str] = field(default_factory=dict)
    clipped: int = 0


Pictures = Callable[[Left], Iterable[np.ndarray]]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What was decoded: the folder ``of`` the pictures, or the file, how many, their (C, H, W), and what :class:`Left` says."""

    of: str
    images: int
    shape: tuple[int, int, int]
    broken: dict[int, str] = {}
    clipped: int = 0

    @property
    def bytes(self) -> int:
        return self.images * math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The entries in ``folder``. ``claim(target)`` gives an empty folder to this process alone, and ``publish(folder, target)`` makes it
    ``target``.
    """

    folder: Path
    claim: Callable[[Path], AbstractContextManager[Path]]
    publish: Callable[[Path, Path], None]

    def images(self, key: str, entry: Entry, pictures: Pictures) -> tuple[Stored, Entry]:
        """The images of ``key``, and what is known of them; made, where they are not there yet, of at most ``entry.images``
        ``pictures``, uint8 (C, H, W) or several (N, C, H, W), which note what is wrong with the others in what they are given.
        """
        target = self.folder / key[:16]
        if (found := _opened(target)) is not None:
            return found
        try:
            with self.claim(target) as folder:
                if (found := _opened(target)) is None:
                    self._make(folder, entry, pictures)
                    self.publish(folder, target)
                    found = _opened(target)
        except OSError as error:
            raise TrainError(f"cache (={self.folder}): {error.strerror or error}; make room there, or name another --cache") from error
        assert found is not None, "it was just made"
        return found

    def _make(self, folder: Path, entry: Entry, pictures: Pictures) -> None:
        free = shutil.disk_usage(folder).free
        if entry.bytes > free:
            told = f"{entry.images:,} images of shape {entry.shape} take {entry.bytes:,} bytes, but {free:,} are free"
            raise TrainError(f"cache (={self.folder}): {told}; make room there, name another --cache, or use smaller images")
        with (folder / IMAGES).open("wb") as file:
            left = Left()
            for picture in pictures(left):
                file.write(picture.data)
        said = {index: _text(why) for index, why in left.broken.items()}
        made = Entry(of=_text(entry.of), images=entry.images - len(said), shape=entry.shape, broken=said, clipped=left.clipped)
        (folder / ABOUT).write_bytes(msgspec.json.encode(made))

    def entries(self) -> dict[Path, Entry]:
        """What lies here."""
        found = {}
        for path in sorted(self.folder.glob("[!.]*")):
            if re.fullmatch("[0-9a-f]{16}", path.name) and (entry := _entry(path)) is not None:
                found[path] = entry
        return found

    def prune(self) -> dict[Path, Entry]:
        """Remove what lies here, and return what it was; who reads it meanwhile goes on, where the system lets open files be removed."""
        entries = self.entries()
        for path in (*entries, self.folder / "left"):  # to claim any takes away what killed processes left
            with self.claim(path):  # its maker, if it is made anew, comes first
                shutil.rmtree(path, ignore_errors=path not in entries)
        return entries


def _text(name: str) -> str:
    """Names of files may hold bytes that are no text."""
    return name.encode(errors="replace").decode()


def _entry(path: Path) -> Entry | None:
    with suppress(OSError, ValueError):
        return msgspec.json.decode((path / ABOUT).read_bytes(), type=Entry)
    return None


def _opened(path: Path) -> tuple[Stored, Entry] | None:
    """The images that lie there, if they are whole, and what is known of them."""
    entry = _entry(path)
    with suppress(FileNotFoundError):
        if entry is not None and (path / IMAGES).stat().st_size == entry.bytes:
            return Stored(path / IMAGES, entry.shape), entry
    return None


def fits_memory(size: int) -> bool:
    """Whether images of so many bytes are read into memory, rather than batch by batch."""
    return size <= min(HELD, quarter())


def quarter() -> int:
    """Of the memory, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4 if hasattr(os, "sysconf") else HELD


def remembered(stored: Stored, name: str, make: Callable[[], str]) -> str:
    """A SHA-256 in hex that is kept under ``name`` beside the images, or made; where it cannot be written it is made each time."""
    file = stored.path.with_name(f"{name}.sha256")
    with suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", text := file.read_text("ascii")):
            return text
    text = make()
    with suppress(OSError):
        partial = file.with_name(f".{name}.{os.getpid()}")
        partial.write_text(text, "ascii")
        partial.replace(file)
    return text
