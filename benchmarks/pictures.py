"""Pictures of images whose answer flipped, as PNG by numpy and zlib alone, so that a board can make them.

Source: PNG specification, third edition (W3C).
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from .accuracy import Comparison
from .statistics import Count

MOST_LOST, MOST_GAINED = 12, 4


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One image that only the baseline or only the candidate reads right: its index, class indices, and itself (PNG in base64)."""

    index: Count
    truth: Count
    before: Count
    after: Count
    png: str


def flips(comparison: Comparison, images: Any, labels: np.ndarray, baseline: np.ndarray, candidate: np.ndarray) -> tuple[Flip, ...]:
    """Some flipped images, evenly from the whole test set: first those that the candidate lost, then those that it gained.

    Args:
        images: uint8 ``(N, C, H, W)`` with 1 or 3 channels, else no pictures. labels, baseline, candidate: class indices ``(N,)``.
    """
    if images.shape[1] not in (1, 3):
        return ()
    chosen = [*_evenly(comparison.lost, MOST_LOST), *_evenly(comparison.gained, MOST_GAINED)]
    return tuple(
        Flip(
            index=index,
            truth=int(labels[index]),
            before=int(baseline[index]),
            after=int(candidate[index]),
            png=base64.b64encode(png(images[index])).decode(),
        )
        for index in chosen
    )


def png(image: np.ndarray) -> bytes:
    """An image, uint8 ``(C, H, W)`` with 1 (grey) or 3 (RGB) channels, as the bytes of a PNG file."""
    channels, height, width = image.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter, 0 for none
    rows[:, 1:] = image.transpose(1, 2, 0).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _evenly(indices: tuple[int, ...], most: int) -> list[int]:
    return [indices[i * len(indices) // most] for i in range(most)] if len(indices) > most else list(indices)
