"""Read arrays, pictures and class names from files, believing nothing a file says about itself.

Arrays come from ``.npz`` (the Kuzushiji-49 layout: a zip with the single member ``arr_0.npy``) or IDX (the MNIST layout, plain or
gzipped). The first bytes decide which, not the file's name. Pictures come through Pillow.

Refused with one line that names the file: a missing, foreign, damaged or truncated file; Python objects (only pickle could read them,
and pickle runs code); more than one array; a header that promises nothing or more than ``MAX_BYTES``, or a body that holds more or less
than promised; a class map with gaps.

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
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from .errors import TrainError
from .resize import STRETCH, Resize

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

MAX_BYTES = 8 << 30
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Named one by one because Pillow would also open EPS, for which it starts Ghostscript.
_IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# zipfile unpacks LZMA and bzip2 without an upper limit on what one read gives: 4 KiB of either make at most about 80 MB.
_PIECE = 4096
_ROWS = 256  # of a picture with transparency, flattened at a time
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


def read_array(path: Path) -> np.ndarray:
    """The one array in an ``.npz``, IDX or gzipped IDX file: rank 1 to 4, a plain number type, as stored (IDX: big-endian).

    Raises TrainError for everything the module's head lists.
    """
    _refuse_no_file(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"PK":
                return _read_npz(path, file)
            if magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as stream:
                    return _read_idx(path, stream)
            if magic[:2] == b"\0\0":
                return _read_idx(path, file)
    except FileNotFoundError as error:
        raise TrainError(f"{path} does not exist; check the path") from error
    except _DAMAGE as error:
        raise TrainError(f"{path} cannot be read ({error}): cut short or damaged? Copy or download it again") from error
    start = magic.hex(" ") or "nothing: it is empty"
    raise TrainError(f"{path} must be .npz (first bytes 50 4b), IDX (00 00) or gzipped IDX (1f 8b), but starts with {start}")


def read_image(path: Path, shape: tuple[int, int, int], resize: Resize = STRETCH) -> np.ndarray:
    """A picture as ``uint8 (C, H, W)`` of ``shape``: grey for C = 1, RGB for C = 3, turned as its EXIF data says.

    ``resize`` says how it comes to H x W, antialiased; what is transparent becomes white, as picture viewers show it. Raises TrainError for
    an unreadable file, a decompression bomb (more than ``PIL.Image.MAX_IMAGE_PIXELS``) and pixels of more than 8 bits per channel.
    """
    with strictly():
        return decode_image(path, shape, resize)


@contextmanager
def strictly() -> Iterator[None]:
    """Have Pillow raise what it only warns of; for this thread and all others, as warnings are of the whole process."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(path: Path, shape: tuple[int, int, int], resize: Resize) -> np.ndarray:
    """As :func:`read_image`, for several threads at once, all :func:`strictly`."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    if channels not in (1, 3):
        raise TrainError(f"channels (={channels}) of the shape {shape} must be 1 (grey) or 3 (RGB) to read pictures such as {path}")
    _refuse_no_file(path)
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as opened:
            if opened.mode[0] in "IF":  # Pillow would clip these to 255
                raise ValueError(f"more than 8 bits per channel, mode {opened.mode}; save it with 8")
            ImageOps.exif_transpose(opened, in_place=True)
            mode = "L" if channels == 1 else "RGB"
            flat = _on_white(opened, mode) if opened.has_transparency_data else opened.convert(mode)
            image = resize.apply(flat, width, height)
    except FileNotFoundError as error:
        raise TrainError(f"{path} does not exist; check the path") from error
    except (*_PICTURE_DAMAGE, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise TrainError(f"{path} is not a usable image ({error}); mend it or take it out of the data") from error
    return np.ascontiguousarray(np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1))


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


def _read_npz(path: Path, file: IO[bytes]) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        names = [member.filename for member in archive.infolist()]
        if names != ["arr_0.npy"]:
            found = ", ".join(ascii(name[:40]) for name in names[:3]) or "none"
            raise TrainError(f"{path} must hold one array, arr_0, but holds {len(names)} ({found}); write it with numpy.savez(path, array)")
        with archive.open("arr_0.npy") as stream:
            shape, dtype, fortran = _npy_header(path, stream)
            return _read_body(path, stream, shape, dtype, fortran)


def _npy_header(path: Path, stream: IO[bytes] | gzip.GzipFile) -> tuple[tuple[int, ...], np.dtype, bool]:
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
    return shape, np.dtype(descr), bool(fortran)


def _read_idx(path: Path, stream: IO[bytes] | gzip.GzipFile) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES or not 1 <= magic[3] <= 4:
        raise TrainError(
            f"{path} is not an IDX file: its magic number is {magic.hex(' ')}, expected 00 00, a type from 08 to 0e, a rank from 1 to 4"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise TrainError(f"{path} ends inside its IDX header; copy or download it again")
    return _read_body(path, stream, struct.unpack(f">{magic[3]}I", sizes), np.dtype(_IDX_TYPES[magic[2]]), fortran=False)


def _read_body(path: Path, stream: IO[bytes] | gzip.GzipFile, shape: tuple[int, ...], dtype: np.dtype, fortran: bool) -> np.ndarray:
    """Never takes more than the header promises plus one byte, and memory only for what really comes."""
    promised = math.prod(shape) * dtype.itemsize
    if not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise TrainError(f"{path}: the array's shape (={shape}) must have 1 to 4 sizes of at least 1; it holds no data")
    if promised > MAX_BYTES:
        raise TrainError(
            f"{path}: its header promises {promised} bytes (shape {shape}), the limit is {MAX_BYTES}; is it a decompression bomb?"
        )
    data = bytearray()
    while piece := stream.read(min(_PIECE, promised + 1 - len(data))):
        data += piece
    if len(data) != promised:
        found = "more follow" if len(data) > promised else f"only {len(data)} are there"
        raise TrainError(f"{path}: its header promises {promised} bytes (shape {shape}), but {found}; copy or download it again")
    return np.ndarray(shape, dtype, buffer=data, order="F" if fortran else "C")
