"""Data sets of array files: which files make one, and their images as uint8 (N, C, H, W), whatever numbers they are.

::

    (N, H, W)        one channel
    (N, H, W, C)     1 to 16 channels

Bytes are taken as they are, all others as ``levels`` says. Images that would take more than a quarter of the memory are read in parts into
the cache of decoded pictures, and from there when they are needed.

Refused with one line that names the file: images of another shape than the network takes, labels that are not whole numbers from 0 to K-1
(K: the largest training label plus 1), unequal counts, and all that ``formats`` and ``levels`` refuse.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import cache
from .cache import Entry, Left
from .data_set import Part, Raw
from .errors import TrainError
from .formats import MAX_BYTES, Header, read_array, read_class_map, read_header, read_rows
from .levels import MOST_CHANNELS, as_pixels
from .pictures import Reader, Stamp
from .stored import Images

VERSION = 1  # of how arrays become pixels
# Told by how the file of training images begins and how many classes there are, where no class map lies beside it.
CLASS_NAMES = {
    "emnist": tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"),
    "k49": tuple("あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわゐゑをんゝ"),
    "kmnist": tuple("おきすつなはまやれを"),
}
_MAX_CLASSES = 100_000
_PIECE = 4 << 20  # bytes that are read at a time


@dataclass(frozen=True, kw_only=True)
class Files:
    """Four files, each ``.npz`` or IDX, plain or gzipped."""

    train_images: Path
    train_labels: Path
    test_images: Path
    test_labels: Path


def only_pair(folder: Path) -> tuple[Path, Path] | None:
    """Images and labels of a folder that holds one file of each only, under the same name (``t10k-images-...``, ``t10k-labels-...``)."""
    images, labels = (
        [(match[1], path) for path in folder.iterdir() if (match := re.fullmatch(pattern, path.name))]
        for pattern in (r"(.*)-(?:imgs\.npz|images-idx3-ubyte(?:\.gz)?)", r"(.*)-labels(?:\.npz|-idx1-ubyte(?:\.gz)?)")
    )
    same = len(images) == len(labels) == 1 and images[0][0] == labels[0][0]
    return (images[0][1], labels[0][1]) if same else None


def npz_files(folder: Path) -> Files:
    def one(ending: str) -> Path:
        found = sorted(folder.glob(f"*{ending}"))
        if len(found) != 1:
            raise TrainError(
                f"{folder} has {len(found)} files *{ending}, but must have one; mend the folder or give the four files by name"
            )
        return found[0]

    return Files(
        train_images=one("train-imgs.npz"),
        train_labels=one("train-labels.npz"),
        test_images=one("test-imgs.npz"),
        test_labels=one("test-labels.npz"),
    )


def idx_files(folder: Path, train: str, test: str) -> Files:
    def one(name: str) -> Path:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                return path
        raise TrainError(f"{folder} has no {name}[.gz], which the IDX layout needs; complete the folder or give the four files by name")

    return Files(
        train_images=one(f"{train}-images-idx3-ubyte"),
        train_labels=one(f"{train}-labels-idx1-ubyte"),
        test_images=one(f"{test}-images-idx3-ubyte"),
        test_labels=one(f"{test}-labels-idx1-ubyte"),
    )


def read_pair(images: Path, labels: Path, reader: Reader) -> Raw:
    """One set of images without a test part."""
    part = _read_part(images, labels, reader)
    return Raw(name=images.parent.resolve().name, classes=_class_names(images, int(part.labels.max()) + 1), train=part)


def read_files(files: Files, reader: Reader) -> Raw:
    train = _read_part(files.train_images, files.train_labels, reader)
    test = _read_part(files.test_images, files.test_labels, reader)
    count, largest = int(train.labels.max()) + 1, int(test.labels.max())
    if largest >= count:
        raise TrainError(
            f"{files.test_labels}: label {largest} is beyond {count - 1}, the largest in training; do the files belong together?"
        )
    return Raw(name=files.train_images.resolve().parent.name, classes=_class_names(files.train_images, count), train=train, test=test)


def _read_part(images_path: Path, labels_path: Path, reader: Reader) -> Part:
    labels = read_array(labels_path)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise TrainError(f"{labels_path}: labels (={labels.dtype} {labels.shape}) must be whole numbers of shape (N,); are they images?")
    if labels.min() < 0 or labels.max() >= _MAX_CLASSES:
        raise TrainError(f"{labels_path}: labels (={labels.min()}..{labels.max()}) must lie in 0..{_MAX_CLASSES - 1}; number them from 0")
    about = read_header(images_path)
    if (count := about.shape[0]) != len(labels):
        _layout(images_path, about, reader.shape)
        raise TrainError(f"{images_path}: {count} images, but {len(labels)} labels in {labels_path}; there must be one each")
    return Part(read_images(images_path, reader), labels.astype(np.int64))


def read_images(path: Path, reader: Reader) -> Images:
    """The images in ``path``, (N, H, W) or (N, H, W, C), as uint8 (N, C, H, W) of the reader's shape."""
    about = read_header(path)
    count = _layout(path, about, reader.shape)
    span = reader.levels.of(about.dtype, str(path), lambda: read_rows(path, _PIECE))
    entry = Entry(of=str(path.absolute()), images=count, shape=reader.shape)

    def rows(left: Left) -> Iterator[NDArray[np.uint8]]:
        done = 0
        for piece in read_rows(path, _PIECE):
            pixels, clipped = (piece, 0) if span is None else as_pixels(piece, span, str(path))
            left.clipped += clipped
            yield np.ascontiguousarray(pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, 3, 1))
            done += len(piece)
            if reader.progress and entry.bytes > _PIECE:
                reader.progress(str(path), done, count)

    if reader.cache is not None and entry.bytes > cache.quarter():
        status = path.stat()
        stamp: Stamp = (entry.of, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        key = hashlib.sha256(json.dumps([VERSION, "array", stamp, reader.shape, span]).encode()).hexdigest()
        stored, made = reader.cache.images(key, entry, rows)
        reader.clipped.append(made.clipped)
        return stored
    if max(about.bytes, entry.bytes) > MAX_BYTES:
        told = f"its header promises {about.bytes} bytes (shape {about.shape}), the limit is {MAX_BYTES}"
        raise TrainError(f"{path}: {told}; is it a decompression bomb?")
    left, data = Left(), bytearray()  # memory only for what really comes
    for piece in rows(left):
        data += piece.data.cast("B")
    reader.clipped.append(left.clipped)
    return np.ndarray((count, *reader.shape), np.uint8, buffer=data)


def _layout(path: Path, about: Header, shape: tuple[int, int, int]) -> int:
    """How many images there are; raises TrainError where they are not of ``shape`` (C, H, W)."""
    if len(about.shape) not in (3, 4) or about.shape[3:] > (MOST_CHANNELS,):
        told = (
            f"{path}: images (={about.dtype} {about.shape}) must be of shape (N, H, W), or (N, H, W, C) with 1 to {MOST_CHANNELS} channels"
        )
        raise TrainError(f"{told}, such as 3 for RGB; convert them")
    count, height, width, *channels = about.shape
    found = (*(channels or [1]), height, width)
    if found != shape:
        raise TrainError(f"{path}: images (={found}) must have the network's input shape {shape}; resize them, or say --image-shape")
    return count


def _class_names(train_images: Path, count: int) -> tuple[str, ...]:
    maps = sorted(train_images.parent.glob("*classmap.csv"))
    if len(maps) > 1:
        raise TrainError(f"{maps[0]} and {maps[1].name} both name the classes; leave one of them in the folder")
    if maps:
        return read_class_map(maps[0], count)
    known = (names for prefix, names in CLASS_NAMES.items() if train_images.name.startswith(prefix) and len(names) == count)
    return next(known, tuple(map(str, range(count))))
