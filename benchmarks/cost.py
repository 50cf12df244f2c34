"""What a model takes: room on disk, as it is and compressed, and its share of what the processor could compute.

Refuses nothing but a file that cannot be read.
"""

from __future__ import annotations

import gzip
from pathlib import Path

GZIP_LEVEL = 6


def sizes(path: Path) -> tuple[int, int]:
    """Bytes on disk and bytes after gzip, of a file or of all files in a folder.

    An ONNX file counts with its external ``.data``, an OpenVINO ``.xml`` with its ``.bin``.

    Zeroed weights take their full room on disk; only the second number shows what they save in a compressed image or a download.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        weights = path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(path.name + ".data")
        files = [file for file in (path, weights) if file.is_file()]
    contents = [file.read_bytes() for file in files]
    return sum(map(len, contents)), sum(len(gzip.compress(content, GZIP_LEVEL, mtime=0)) for content in contents)


def peak_share(macs: object, seconds: float, peak: float | None) -> float | None:
    """Which share of `peak` (multiply-accumulates per second) a model reaches that takes `seconds` for the `macs` of one image.

    24 million in 1 ms are 24 thousand million per second, 0.48 of 50 thousand million. None where either is not known.
    """
    return macs / seconds / peak if isinstance(macs, int | float) and macs and peak else None
