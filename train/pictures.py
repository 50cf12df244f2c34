"""The pictures of a folder, decoded by as many threads as there are cores; into memory, or once for all into a cache on disk.

Pillow decodes them. Measured for JPEG, one thread: 1,800 a second of 224x224 and 35 of 1600x1200 shrunk to that, where simplejpeg 1.9 and
torchvision did 2,800 to 2,900 and 44 to 52, with the same pixels or such as differ by one step; Pillow's draft mode did 168 of the large
ones, with others, and so with another fingerprint. As each is decoded once, another package did not pay.

Refused with one line: a folder of a class without pictures, pictures that cannot be used, and more than ``MAX_BYTES`` without a cache.
"""

import hashlib
import json
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from .cache import Cache, Entry, Left
from .errors import TrainError
from .formats import BYTES, IMAGE_SUFFIXES, MAX_BYTES, decode_image, strictly
from .levels import Levels
from .resize import STRETCH, Resize
from .stored import Images

VERSION = 2  # of how pictures become pixels
MANY, WORTH = 4096, 32 << 20  # files, and bytes of files or of pixels, from which on they are kept: a second or two of decoding
_PIECE, _AHEAD, _MOST_THREADS = 1 << 20, 16, 4  # bytes of pixels that a thread decodes at a time; how many such wait for each thread

Progress = Callable[[str, int, int], None]
Stamp = tuple[str, int, int, int]  # of a file: path, bytes, and times of change in ns


class BrokenPictures(TrainError):
    """Pictures that cannot be used: why, for each in words that name it."""

    def __init__(self, source: str, why: Sequence[str], images: int) -> None:
        names = [one.rpartition("; ")[0] for one in why]  # without what to do about it
        told = f"data (={source}): {len(why):,} of {images:,} images cannot be used, {', '.join(names)}" if len(why) > 1 else why[0]
        super().__init__(f"{told}; --skip-broken leaves out what cannot be used")
        self.names = tuple(names)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads pictures as uint8 (C, H, W) of ``shape``, to which they come as ``resize`` says.

    ``levels``: how what is more than a byte becomes one. ``progress`` is told (folder, pictures so far, pictures in all); ``cache``: where
    they are kept decoded. Of all that was read with this, what cannot be used is left out, and said in ``broken``; ``clipped``: how many
    values were, of each folder or file.
    """

    shape: tuple[int, int, int]
    resize: Resize = STRETCH
    levels: Levels = BYTES
    progress: Progress | None = None
    cache: Cache | None = None
    broken: list[str] = field(default_factory=list)
    clipped: list[int] = field(default_factory=list)

    def read(self, folder: Path, names: Sequence[str]) -> tuple[Images, np.ndarray]:
        """All pictures of the folders ``folder/name``: uint8 (N, C, H, W), and for each the index of its name: int64 (N,).

        Sorted by name; hidden files, files without a suffix of ``IMAGE_SUFFIXES`` and folders further down are passed over. Raises
        TrainError for what the module's head lists.
        """
        files: list[Stamp] = []
        labels: list[int] = []
        for index, name in enumerate(names):
            found = sorted(one for one in stamps(folder / name) if one[0].lower().endswith(IMAGE_SUFFIXES))
            if not found:
                raise TrainError(f"{folder / name} holds no images ({' '.join(IMAGE_SUFFIXES)}); add some or remove the folder")
            files += found
            labels += [index] * len(found)
        images, left = self._kept(folder, files)
        self.broken.extend(left.broken.values())
        self.clipped.append(left.clipped)
        if not len(images):
            raise BrokenPictures(str(folder), self.broken, len(self.broken))
        return images, np.delete(np.array(labels, np.int64), list(left.broken))

    def _kept(self, folder: Path, files: Sequence[Stamp]) -> tuple[Images, Left | Entry]:
        paths, size = [Path(one[0]) for one in files], len(files) * math.prod(self.shape)
        if self.cache is not None and (len(files) >= MANY or max(size, sum(one[1] for one in files)) >= WORTH):
            entry = Entry(of=str(folder.absolute()), images=len(files), shape=self.shape)
            key = hashlib.sha256(json.dumps([VERSION, entry.of, self.shape, vars(self.resize), self.levels.range, files]).encode())
            return self.cache.images(key.hexdigest(), entry, lambda left: self._sound(folder, paths, left))
        if size > MAX_BYTES:
            told = f"{len(paths)} images of shape {self.shape} take {size} bytes, the limit is {MAX_BYTES}"
            raise TrainError(f"{folder}: {told}; use smaller images")
        images, left, count = np.empty((len(paths), *self.shape), np.uint8), Left(), 0
        for count, picture in enumerate(self._sound(folder, paths, left), 1):
            images[count - 1] = picture
        return images[:count], left

    def _sound(self, folder: Path, paths: Sequence[Path], left: Left) -> Iterator[np.ndarray]:
        """The pictures that can be used; ``left`` is told what is wrong with the others."""
        for index, found in enumerate(_decoded(paths, self.shape, self.resize, self.levels)):
            if isinstance(found, TrainError):
                left.broken[index] = str(found)
            else:
                left.clipped += found[1]
                yield found[0]
            if self.progress:
                self.progress(str(folder), index + 1, len(paths))


def stamps(folder: Path | str, deep: bool = False) -> Iterator[Stamp]:
    """Of each file of a folder, and with ``deep`` below it; what is hidden there is passed over. Zeros of a link to nothing."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] == ".":
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from stamps(entry.path, deep) if deep else ()
                continue
            about = None
            with suppress(OSError):
                about = entry.stat()
            yield (entry.path, about.st_size, about.st_mtime_ns, about.st_ctime_ns) if about else (entry.path, 0, 0, 0)


def _decoded(
    paths: Sequence[Path], shape: tuple[int, int, int], resize: Resize, levels: Levels
) -> Iterator[tuple[np.ndarray, int] | TrainError]:
    """Each picture, uint8 (C, H, W), and how many values were clipped, or what is wrong with it, in order. Pillow frees the interpreter."""

    def one(path: Path) -> tuple[np.ndarray, int] | TrainError:
        try:
            return decode_image(path, shape, resize, levels)
        except TrainError as error:
            return TrainError(str(error))  # without its traceback, which would hold the decoded picture

    def some(start: int) -> list[tuple[np.ndarray, int] | TrainError]:
        return [one(path) for path in paths[start : start + piece]]

    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    piece = max(1, min(_AHEAD, _PIECE // math.prod(shape)))
    window = piece * _AHEAD * threads
    pool = ThreadPoolExecutor(threads)
    try:
        with strictly():
            for start in range(0, len(paths), window):
                yield from chain.from_iterable(pool.map(some, range(start, min(start + window, len(paths)), piece)))
    finally:
        pool.shutdown(cancel_futures=True)


def subfolders(folder: Path) -> tuple[str, ...]:
    """The classes: the names of its folders, sorted."""
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if odd := [name for name in names if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)]:
        raise TrainError(f"{folder} has a class called {odd[0]!a}, which is no text to print; give its folder another name")
    if not names:
        raise TrainError(f"{folder} has no class folders (nor *-imgs.npz or *-idx3-ubyte files); put the images into one folder per class")
    return names
