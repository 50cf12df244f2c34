"""Read arrays, pictures and class names from files, believing nothing a file says about itself.

Arrays come from ``.npz`` (the Kuzushiji-49 layout: a zip with the single member ``arr_0.npy``), ``.npy`` or IDX (the MNIST layout, plain or
gzipped). The first bytes decide which, not the file's name. Pictures come through Pillow.

Refused with one line that names the file: a missing, foreign, damaged or truncated file; Python objects (only pickle could read them,
and pickle runs code); more than one array; a header that promises nothing or more than ``MAX_BYTES``, or a body that holds more or less
than promised; a class map with gaps. What is read in parts, into a cache, may be more than that; there the disk is the limit.

Sources: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, http://yann.lecun.com/exdb/mnist/ (IDX),
APPNOTE.TXT 6.3.10 (zip).
"""

import ast
import csv
import gzip
import lzma
import math
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .errors import TrainError
from .levels import SIXTEEN_BITS, Levels, as_pixels
from .resize import STRETCH, Resize

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

BYTES = Levels()
MAX_BYTES = 8 << 30
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Named one by one because Pillow would also open EPS, for which it starts Ghostscript.
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# zipfile unpacks LZMA and bzip2 without an upper limit on what one read gives: 4 KiB of either make at most about 80 MB.
_PIECE = 4096
_ROWS = 256  # of a picture with transparency, or of more than a byte per value, at a time
_WEBP_PIXELS = 40_000_000  # its decoder holds a frame four times where it may be one of several
# What zipfile, gzip and their decompressors raise on damage. NotImplementedError: unknown compression, RuntimeError: encrypted,
# UnicodeDecodeError: a member's name.
_DAMAGE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,
)
# What Pillow's formats raise on damage is written down nowhere; these come of values that its code did not expect.
_PICTURE_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
)
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass(frozen=True)
class Header:
    """What a file says of its array; ``fortran``: it lies there column by column."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_array(path: Path) -> np.ndarray:
    """The one array in an ``.npz``, IDX or gzipped IDX file: rank 1 to 4, a plain number type, as stored (IDX: big-endian).

    Raises TrainError for everything the module's head lists.
    """
    with _opened(path) as (about, stream):
        if about.bytes > MAX_BYTES:
            told = f"its header promises {about.bytes} bytes (shape {about.shape}), the limit is {MAX_BYTES}"
            raise TrainError(f"{path}: {told}; is it a decompression bomb?")
        data = _body(path, stream, about, about.bytes, 0)
        _refuse_more(path, stream, about)
        return np.ndarray(about.shape, about.dtype, buffer=data, order="F" if about.fortran else "C")


def read_header(path: Path) -> Header:
    """What the file at ``path`` says of its array."""
    with _opened(path) as (about, _):
        return about


def read_rows(path: Path, piece: int) -> Iterator[np.ndarray]:
    """The array of :func:`read_array` in parts of its first axis, of about ``piece`` bytes each, which may be more in all than the memory.

    One that lies there column by column is read whole.
    """
    with _opened(path) as (about, stream):
        if not about.fortran or len(about.shape) == 1:
            row, (count, *rest) = about.bytes // about.shape[0], about.shape
            some = max(1, piece // row)
            for start in range(0, count, some):
                rows = min(some, count - start)
                yield np.ndarray((rows, *rest), about.dtype, buffer=_body(path, stream, about, rows * row, start * row))
            _refuse_more(path, stream, about)
            return
    whole = read_array(path)
    some = max(1, piece // (about.bytes // len(whole)))
    yield from (whole[start : start + some] for start in range(0, len(whole), some))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Header, IO[bytes] | gzip.GzipFile]]:
    """The header, and the stream of what follows it."""
    _refuse_no_file(path)
    try:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("rb"))
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"PK":
                stream = stack.enter_context(_member(path, stack.enter_context(zipfile.ZipFile(file))))
                yield _checked(path, _npy_header(path, stream)), stream
            elif magic[:2] == b"\x1f\x8b":
                unpacked = stack.enter_context(gzip.GzipFile(fileobj=file))
                yield _checked(path, _idx_header(path, unpacked)), unpacked
            elif magic == b"\x93NUM":
                yield _checked(path, _npy_header(path, file)), file
            elif magic[:2] == b"\0\0":
                yield _checked(path, _idx_header(path, file)), file
            else:
                start = magic.hex(" ") or "nothing: it is empty"
                known = ".npz (first bytes 50 4b), .npy (93 4e), IDX (00 00) or gzipped IDX (1f 8b)"
                raise TrainError(f"{path} must be {known}, but starts with {start}")
    except FileNotFoundError as error:
        raise TrainError(f"{path} does not exist; check the path") from error
    except _DAMAGE as error:
        raise TrainError(f"{path} cannot be read ({error}): cut short or damaged? Copy or download it again") from error


def read_image(path: Path, shape: tuple[int, int, int], resize: Resize = STRETCH, levels: Levels = BYTES) -> np.ndarray:
    """A picture as ``uint8 (C, H, W)`` of ``shape``: grey for C = 1, RGB for C = 3, turned as its EXIF data says.

    ``levels``: how grey of more than 8 bits becomes bytes; 16 bits by their whole range where it says none.

    ``resize`` says how it comes to H x W, antialiased; what is transparent becomes white, as picture viewers show it. Raises TrainError for
    an unreadable file, a decompression bomb (more than ``PIL.Image.MAX_IMAGE_PIXELS``) and pixels of 32 bits without a range.
    """
    with strictly():
        return decode_image(path, shape, resize, levels)[0]


@contextmanager
def strictly() -> Iterator[None]:
    """Have Pillow raise what it only warns of; for this thread and all others, as warnings are of the whole process."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(path: Path, shape: tuple[int, int, int], resize: Resize, levels: Levels = BYTES) -> tuple[np.ndarray, int]:
    """As :func:`read_image`, for several threads at once, all :func:`strictly`; and how many values were clipped."""
    _refuse_no_file(path)
    return decode_picture(path, str(path), shape, resize, levels)


def decode_picture(
    source: Path | IO[bytes],
    name: str,
    shape: tuple[int, int, int],
    resize: Resize,
    levels: Levels = BYTES,
    formats: tuple[str, ...] = _IMAGE_FORMATS,
    most_pixels: int | None = None,
) -> tuple[np.ndarray, int]:
    """The same of a file or of bytes, which messages call ``name``; ``most_pixels``: more are refused by what the file declares."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    if channels not in (1, 3):
        raise TrainError(f"channels (={channels}) of the shape {shape} must be 1 (grey) or 3 (RGB) to read pictures such as {name}")
    try:
        with Image.open(source, formats=formats) as opened:
            kind = "WebP" if opened.format == "WEBP" else str(opened.format)
            most = min(most_pixels or math.inf, _WEBP_PIXELS if kind == "WebP" else math.inf)
            if opened.width * opened.height > most:
                told = f"{opened.width}x{opened.height} pixels; of {kind} at most {most:,} are taken"
                raise Image.DecompressionBombError(told)
            ImageOps.exif_transpose(opened, in_place=True)
            mode, clipped = "L" if channels == 1 else "RGB", 0
            if opened.mode[0] in "IF":  # Pillow would clip these to 255
                grey, clipped = _as_bytes(opened, levels)
                flat = grey.convert(mode)
            else:
                flat = _on_white(opened, mode) if opened.has_transparency_data else opened.convert(mode)
            image = resize.apply(flat, width, height)
    except FileNotFoundError as error:
        raise TrainError(f"{name} does not exist; check the path") from error
    except (*_PICTURE_DAMAGE, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError) and not isinstance(source, Path)  # it would quote the address of the bytes
        why = f"it is none of {', '.join(formats)}" if unknown else error
        raise TrainError(f"{name} is not a usable image ({why}); mend it or take it out of the data") from error
    return np.ascontiguousarray(np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)), clipped


def _as_bytes(image: "Picture", levels: Levels) -> tuple["Picture", int]:
    """Grey of 16 or 32 bits, or floats, in bytes, and how many values were clipped."""
    from PIL import Image

    def bands() -> Iterator[np.ndarray]:
        """Some rows at a time, as an array of all of them takes the picture twice more."""
        for top in range(0, image.height, _ROWS):
            rows = np.asarray(image.crop((0, top, image.width, min(top + _ROWS, image.height))))
            # Of 16 bits, as Pillow opens some of these.
            yield rows.astype(np.uint16) if image.mode == "I" and image.format in ("PNG", "PPM") else rows

    span = levels.of(next(bands()).dtype, "it", bands) or SIXTEEN_BITS
    found = [as_pixels(rows, span, "it") for rows in bands()]
    return Image.fromarray(np.concatenate([rows for rows, _ in found])), sum(clipped for _, clipped in found)


def _on_white(image: "Picture", mode: str) -> "Picture":
    """A picture with transparency in ``mode``, on white; some rows at a time, as each step holds a copy."""
    from PIL import Image

    flat = Image.new(mode, image.size)
    for top in range(0, image.height, _ROWS):
        band = image.crop((0, top, image.width, min(top + _ROWS, image.height))).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert(mode), (0, top))
    return flat


def _refuse_no_file(path: Path) -> None:
    """A pipe or a device gives what it likes, when it likes, and as long as it likes."""
    if path.exists() and not path.is_file():
        raise TrainError(f"{path} is not a file; name one, or take it out of the data")


def read_class_map(path: Path, count: int) -> tuple[str, ...]:
    """The names of the classes 0..count-1 from a CSV file with the columns ``index`` and ``char``, as Kuzushiji-49 has it (UTF-8)."""
    _refuse_no_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = {int(row["index"]): row["char"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise TrainError(f"{path} must be UTF-8 with the columns index and char ({error}); mend or remove it") from error
    missing = [index for index in range(count) if not names.get(index)]
    if missing:
        raise TrainError(f"{path} names no class {missing[0]}, but the labels have {count} classes; complete or remove it")
    return tuple(names[index] for index in range(count))


def _member(path: Path, archive: zipfile.ZipFile) -> IO[bytes]:
    names = [member.filename for member in archive.infolist()]
    if names != ["arr_0.npy"]:
        found = ", ".join(ascii(name[:40]) for name in names[:3]) or "none"
        raise TrainError(f"{path} must hold one array, arr_0, but holds {len(names)} ({found}); write it with numpy.savez(path, array)")
    return archive.open("arr_0.npy")


def _npy_header(path: Path, stream: IO[bytes]) -> Header:
    """Read by hand: numpy's own reader allocates a declared length of up to 4 GiB before it looks at it."""
    start = stream.read(10)
    if start[:8] != b"\x93NUMPY\x01\x00":
        raise TrainError(f"{path}: arr_0 is not an array of .npy version 1.0; write it with numpy.savez(path, array)")
    text = stream.read(min(int.from_bytes(start[8:], "little"), 1024))  # a plain array's header has 118 bytes
    try:
        header = ast.literal_eval(text.decode("latin1"))
        shape, descr, fortran = tuple(header["shape"]), str(header["descr"]), header["fortran_order"]
    except (KeyError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise TrainError(f"{path}: the header of arr_0 is damaged ({error}); copy or download it again") from error
    if "O" in descr:
        raise TrainError(f"{path}: arr_0 holds Python objects (dtype {descr}), which only pickle could read; save it as whole numbers")
    if not re.fullmatch("[<>|=]?(b1|[iu][1248]|f[248])", descr) or not all(type(size) is int for size in shape):
        raise TrainError(f"{path}: arr_0 (=dtype {descr}, shape {shape}) must be a plain array of numbers; save it as whole numbers")
    return Header(shape, np.dtype(descr), bool(fortran))


def _idx_header(path: Path, stream: IO[bytes] | gzip.GzipFile) -> Header:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not 1 <= magic[3] <= 4:
        raise TrainError(
            f"{path} is not an IDX file: its magic number is {magic.hex(' ')}, expected 00 00, a type from 08 to 0e, a rank from 1 to 4"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise TrainError(f"{path} ends inside its IDX header; copy or download it again")
    return Header(struct.unpack(f">{magic[3]}I", sizes), np.dtype(_IDX_TYPES[magic[2]]), fortran=False)


def _checked(path: Path, about: Header) -> Header:
    if not 1 <= len(about.shape) <= 4 or min(about.shape) < 1:
        raise TrainError(f"{path}: the array's shape (={about.shape}) must have 1 to 4 sizes of at least 1; it holds no data")
    return about


def _body(path: Path, stream: IO[bytes] | gzip.GzipFile, about: Header, size: int, before: int) -> bytearray:
    """The next ``size`` bytes of the array, ``before`` which so many came; takes memory only for what really comes."""
    data = bytearray()
    while len(data) < size and (piece := stream.read(min(_PIECE, size - len(data)))):
        data += piece
    if len(data) < size:
        told = f"its header promises {about.bytes} bytes (shape {about.shape}), but only {before + len(data)} are there"
        raise TrainError(f"{path}: {told}; copy or download it again")
    return data


def _refuse_more(path: Path, stream: IO[bytes] | gzip.GzipFile, about: Header) -> None:
    """At the end of the array, which is where a zip's or gzip's own sum is looked at too."""
    if stream.read(1):
        told = f"its header promises {about.bytes} bytes (shape {about.shape}), but more follow"
        raise TrainError(f"{path}: {told}; copy or download it again")
