"""Class indices as text, so that a result in JSON keeps what a model said of each image: base64 of the smallest unsigned type that holds
them, little-endian. 14,100 answers of up to 256 classes are 18,800 characters.

Refused on reading, before memory is taken: text of another length than so many images need; then what is no base64, and indices that are
no class. The ValueError says what, as the end of the sentence "answers ...".
"""

from __future__ import annotations

import base64
import binascii

import numpy as np


def as_text(indices: np.ndarray, classes: int) -> str:
    """Class indices ``(N,)`` in 0..K-1 as text: 0, 1, 2 of three classes are ``AAEC``."""
    return base64.b64encode(indices.astype(_kind(classes)).tobytes()).decode()


def from_text(text: str, images: int, classes: int) -> np.ndarray:
    """The class indices, int64 ``(N,)``, that `as_text` wrote of N images and K classes; raises ValueError."""
    if classes < 1:
        raise ValueError(f"are of {classes} classes")
    kind = _kind(classes)
    needed = 4 * -(-images * kind.itemsize // 3)
    if len(text) != needed:
        raise ValueError(f"have {len(text)} characters, {images} images need {needed}")
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("are no base64") from error
    if len(content) != images * kind.itemsize:
        raise ValueError(f"are not those of {images} images")
    found = np.frombuffer(content, kind).astype(np.int64)
    if images and int(found.max()) >= classes:
        raise ValueError(f"hold {found.max()}, and there are {classes} classes")
    return found


def _kind(classes: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(next(kind for most, kind in ((2**8, "<u1"), (2**16, "<u2"), (2**64, "<u4")) if classes <= most))
