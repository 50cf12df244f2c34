"""The body of a request as images: a picture, several in a form, or raw bytes in the network's own shape.

::

    image/png, image/jpeg, ...     one picture; brought to the network's size as its training did
    multipart/form-data            a picture in each part that has a file
    application/octet-stream       uint8 (N, H, W, C), as many images as there are bytes for

What a picture declares is looked at before memory is taken for its pixels. Refused, each with a status and one sentence: another type, an
empty body, bytes that make no whole images, what is no picture or a too large one, more than ``MOST_IMAGES``.
"""

import io
import math
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..artifacts.artifact import InputSpec
from ..train.errors import TrainError
from ..train.formats import decode_picture, strictly

RAW, FORM = "application/octet-stream", "multipart/form-data"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
PICTURES = tuple(f"image/{name.lower()}" for name in FORMATS)
MOST_IMAGES = 4096
MOST_PARTS = 256


class Refused(Exception):
    """What is wrong with a request, with the status that says so."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def kind_of(content_type: str) -> str:
    """The type without its parameters; refuses those that nobody reads here."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in (RAW, FORM) or kind.startswith("image/"):
        return kind
    told = f"content-type ({kind[:60]})" if kind else "no content-type"
    raise Refused(415, f"{told}: send a picture as image/png or image/jpeg, raw uint8 as {RAW}, or pictures as {FORM}")


def images_of(content_type: str, body: bytes, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Images uint8 (N, C, H, W), at least one."""
    kind = kind_of(content_type)
    if not body:
        raise Refused(400, "the body is empty; send a picture, or raw uint8 of the network's shape")
    if kind == RAW:
        return _raw(body, spec)
    pictures = list(_parts(content_type, body)) if kind == FORM else [body]
    if not pictures:
        raise Refused(400, "the form has no part with a file; name one, as curl -F image=@letter.png does")
    return np.stack([_picture(one, number, len(pictures), spec, max_pixels) for number, one in enumerate(pictures, 1)])


def _raw(body: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    channels, height, width = spec.shape
    size = math.prod(spec.shape)
    if len(body) % size:
        told = f"{len(body):,} bytes are no whole number of images of {height} x {width} x {channels} = {size:,} bytes"
        raise Refused(400, f"{told}; send uint8 as (N, H, W, C)")
    if (count := len(body) // size) > MOST_IMAGES:
        raise Refused(413, f"{count:,} images are more than {MOST_IMAGES:,}; send fewer at a time")
    images = np.frombuffer(body, np.uint8).reshape(count, height, width, channels)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _picture(body: bytes, number: int, count: int, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    name = "the body" if count == 1 else f"picture {number} of {count}"
    if spec.shape[0] not in (1, 3):
        raise Refused(400, f"the network takes {spec.shape[0]} channels, a picture has 1 or 3; send raw uint8 as {RAW}")
    try:
        with strictly():
            return decode_picture(io.BytesIO(body), name, spec.shape, spec.resized, spec.levels, FORMATS, max_pixels)[0]
    except TrainError as error:
        raise Refused(400, str(error).rpartition("; ")[0] or str(error)) from error


def _parts(content_type: str, body: bytes) -> Iterator[bytes]:
    """The files of a form, as RFC 7578 has it."""
    found = re.search(r'boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', content_type, re.IGNORECASE)
    if found is None:
        raise Refused(400, "the form has no boundary; leave its content-type to what makes the form")
    boundary = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
    _, *parts = (b"\r\n" + body).split(boundary, MOST_PARTS + 1)
    if not parts or not parts[-1].startswith(b"--"):
        raise Refused(400, f"the form is cut short, or has more than {MOST_PARTS} parts; send it whole")
    for part in parts[:-1]:
        head, gap, content = part.partition(b"\r\n\r\n")
        if not gap:
            raise Refused(400, "a part of the form has no end of its headers; send it whole")
        if re.search(rb"content-disposition:[^\r\n]*;\s*filename", head, re.IGNORECASE):
            yield content
