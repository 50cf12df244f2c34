"""A data set: its name, its classes and how many images, and the images themselves when they are first asked for.

What a stage has to know before it can say that nothing is to be done is here without an image being read::

    data.fingerprint, data.classes, data.counts      known
    data.train.images                                read now, if they were not before

Refused: images that are others than were promised.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .cache import remembered
from .errors import TrainError
from .split import stratified_sample
from .stored import Images, Stored, joined

HASHED = 256  # images at a time

NOISE = 32  # images: timed calls cycle over so many


@dataclass(frozen=True)
class Part:
    """N images with their labels. ``images``: uint8 (N, C, H, W), C-contiguous, in memory or on disk; ``labels``: int64 (N,), 0..K-1."""

    images: Images
    labels: np.ndarray

    def take(self, positions: np.ndarray) -> "Part":
        """Those at ``positions``, int64 or bool (N,); of what is on disk nothing is read."""
        images = self.images.take(positions) if isinstance(self.images, Stored) else self.images[positions]
        return Part(images, self.labels[positions])

    def read(self) -> "Part":
        """The same in memory."""
        return Part(self.images[:], self.labels)

    def sample(self, count: int, seed: int) -> "Part":
        """``count`` of them, as equal a number of each class as there are; all where there are fewer. See :func:`stratified_sample`."""
        return self.take(stratified_sample(self.labels, count, seed))


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A data set before the validation part is taken out of ``train``, and the test part too where there is none yet."""

    name: str
    classes: tuple[str, ...]
    train: Part
    test: Part | None = None
    labelled: bool = True


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of a data set without its images; K is ``len(classes)``.

    ``fingerprint``: sha256 (hex) of all images and labels as they were read, the same from whichever kind of file, split or seed.
    ``has_test``: the test part was given as such, not cut off. ``counts``: images of train, validation and test. ``skipped``: pictures that
    were left out, as they cannot be used. ``clipped``: values that lay outside of the range that was said. ``labelled``: its labels say
    something; else there is one class, and only latency can be measured with it.
    """

    name: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    counts: tuple[int, int, int]
    fingerprint: str
    has_test: bool
    skipped: int = 0
    labelled: bool = True
    clipped: int = 0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Three parts that share no image. ``order``: int64, where each image of train, then of validation, then of a test part that was cut
    off, stood in the set that was read.
    """

    train: Part
    validation: Part
    test: Part
    order: np.ndarray


@dataclass(frozen=True)
class DataSet:
    """``about`` it, and ``read``, which reads its images; it is called once, when they are first asked for.

    ``note``: where ``about`` is kept for the next command once something was made of the data. ``targets``: of data without classes, of
    any kind; labels are positions in them.
    """

    about: About
    read: Callable[[], tuple[About, Parts]]
    note: Path | None = None
    targets: Any = None

    @cached_property
    def _parts(self) -> Parts:
        about, parts = self.read()
        if about != self.about:
            if self.note is not None:
                self.note.unlink(missing_ok=True)  # so that the next command reads for itself
            raise TrainError(f"data (={self.name}) was changed while it was used; run the command again")
        return parts

    @property
    def name(self) -> str:
        return self.about.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.about.classes

    @property
    def fingerprint(self) -> str:
        return self.about.fingerprint

    @property
    def has_test(self) -> bool:
        return self.about.has_test

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.about.shape

    @property
    def train(self) -> Part:
        return self._parts.train

    @property
    def validation(self) -> Part:
        return self._parts.validation

    @property
    def test(self) -> Part:
        return self._parts.test

    @property
    def order(self) -> np.ndarray:
        return self._parts.order

    @classmethod
    def of_noise(cls, shape: tuple[int, int, int]) -> "DataSet":
        """Random pixels without labels, always the same, as a test part."""
        images = np.random.default_rng(0).integers(0, 256, (NOISE, *shape), np.uint8)
        fingerprint = hashlib.sha256(images.tobytes()).hexdigest()
        counts = (0, 0, NOISE)
        about = About(
            name="random pixels", classes=("",), shape=shape, counts=counts, fingerprint=fingerprint, has_test=True, labelled=False
        )
        whole = Part(images, np.zeros(NOISE, np.int64))
        none = whole.take(np.arange(0))
        return cls(about, lambda: (about, Parts(train=none, validation=none, test=whole, order=np.arange(0))))

    def pool(self) -> Part:
        """What is cross-validated: every image but those of a test part that was given, in the order in which they were read."""
        parts = [self.train, self.validation] + ([] if self.has_test else [self.test])
        back = np.argsort(self.order)
        return Part(joined([part.images for part in parts]), np.concatenate([part.labels for part in parts])).take(back)


def fingerprint(*parts: Part) -> str:
    """The SHA-256 in hex of all images and labels; of images in a cache it is kept there."""
    stored = [part.images for part in parts if isinstance(part.images, Stored)]
    if len(stored) < len(parts):
        return _hash(parts)
    how = hashlib.sha256()
    for part, images in zip(parts, stored, strict=True):
        for told in (str(images.path.parent.name).encode(), images.rows.data, part.labels.data):
            how.update(told)
    return remembered(stored[0], how.hexdigest()[:16], lambda: _hash(parts))


def _hash(parts: Sequence[Part]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.images.shape} |u1".encode())
        for start in range(0, len(part.labels), HASHED):
            digest.update(np.ascontiguousarray(part.images[start : start + HASHED]).data)
        labels = part.labels.astype("<i8", copy=False)
        digest.update(f"{labels.shape} {labels.dtype.str}".encode())
        digest.update(labels.data)
    return digest.hexdigest()
