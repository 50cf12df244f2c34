"""Images that stay on disk: a file of uint8 (N, C, H, W), of which only what is indexed is read.

By plain reads, not through a memory map: its pages would count as memory of this process, and a disk that fails would end it by SIGBUS.

::

    images[3:7], images[[5, 2]], images[0]      arrays in memory
    images[:]                                   all of them, for what must hold them at once
    images.take([5, 2])                         another view of the same file; nothing is read

Refused: a file that is shorter than it was.
"""

import io
import math
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import TrainError


class Images(Protocol):
    """Images uint8 (N, C, H, W): an array, or :class:`Stored`. ``images[:]`` is an array of either."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, which: Any, /) -> Any: ...


class Stored:
    """Those at the positions ``rows``, int64 (N,), of the images of ``shape`` (C, H, W) in the file at ``path``; all by default.

    The file is held open: it may be removed or replaced meanwhile.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self._image, self._lock = path, shape, threading.Lock()
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._file = io.FileIO(descriptor, closefd=False)
        weakref.finalize(self._file, os.close, descriptor)  # with the last view of it
        self.rows = np.arange(path.stat().st_size // math.prod(shape))

    def take(self, positions: NDArray[Any]) -> "Stored":
        """Those at ``positions``, int64 or bool (N,), unread."""
        taken = object.__new__(Stored)
        vars(taken).update(vars(self), rows=self.rows[positions])
        return taken

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self._image)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> NDArray[np.uint8]:
        rows = np.asarray(self.rows[which])
        images = np.empty((rows.size, *self._image), np.uint8)
        with self._lock:
            for image, row in zip(images, rows.flat, strict=True):
                self._file.seek(int(row) * image.nbytes)
                if self._file.readinto(image.data) != image.nbytes:
                    raise TrainError(f"{self.path} was cut short while it was used; run the command again")
        return images.reshape(*rows.shape, *self._image)

    def will_need(self, which: Any) -> None:
        """Have the system read them ahead, where it can, while others are computed with."""
        if hasattr(os, "posix_fadvise"):
            size = math.prod(self._image)
            for row in self.rows[which]:
                os.posix_fadvise(self._file.fileno(), int(row) * size, size, os.POSIX_FADV_WILLNEED)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.uint8]:
        return self[:]


def joined(parts: Sequence[Images]) -> Images:
    """All images of ``parts``, arrays or views of one file."""
    if isinstance(parts[0], Stored):
        taken = parts[0].take(np.arange(0))
        taken.rows = np.concatenate([part.rows for part in parts if isinstance(part, Stored)])
        return taken
    return np.concatenate([part[:] for part in parts])
