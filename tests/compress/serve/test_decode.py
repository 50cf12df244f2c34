"""Bodies against the pixels they were made of; what is refused, by status and sentence."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from compress.artifacts.artifact import InputSpec
from compress.serve.decode import FORM, RAW, Refused, images_of

GREY, COLOUR = InputSpec(shape=(1, 4, 5)), InputSpec(shape=(3, 4, 5))
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def form(*files: bytes, boundary: str = "xx") -> bytes:
    parts = (
        b'--%b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n%b\r\n' % (boundary.encode(), one) for one in files
    )
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose head declares so many pixels, all black, packed to a few kilobytes a million."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes((width // 8 + 1) * height))) + chunk(b"IEND", b"")
    )


def test_raw_bytes_are_images_with_channels_last() -> None:
    found = images_of(RAW, PIXELS.tobytes(), COLOUR, 100)
    assert np.array_equal(found, PIXELS.transpose(0, 3, 1, 2)) and found.flags.c_contiguous


def test_a_picture_of_the_networks_size_is_read_as_it_is() -> None:
    assert np.array_equal(images_of("image/png", png(PIXELS[0]), COLOUR, 100), PIXELS[:1].transpose(0, 3, 1, 2))


def test_a_form_gives_its_files_in_their_order_and_passes_over_fields() -> None:
    field = b'--xx\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    body = field + form(*(png(one) for one in PIXELS))
    assert np.array_equal(images_of(f'{FORM}; boundary="xx"', body, COLOUR, 100), PIXELS.transpose(0, 3, 1, 2))


def test_a_picture_with_newlines_and_dashes_in_it_survives_a_form() -> None:
    pixels = np.frombuffer(b"\r\n--\r\n\n\r--xy\r\n--x\r\n-" * 3, np.uint8)[:60].reshape(4, 5, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    assert np.array_equal(images_of(f"{FORM}; boundary=xx", form(out.getvalue()), COLOUR, 100)[0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("content_type", "body", "spec", "status", "told"),
    [
        ("", b"x", GREY, 415, "no content-type"),
        ("text/plain", b"x", GREY, 415, r"content-type \(text/plain\)"),
        (RAW, b"", GREY, 400, "the body is empty"),
        (RAW, b"x" * 21, GREY, 400, r"21 bytes are no whole number of images of 4 x 5 x 1 = 20 bytes"),
        (RAW, b"x" * 20 * 4097, GREY, 413, "4,097 images are more than 4,096"),
        ("image/png", b"hello", GREY, 400, "the body is not a usable image .it is none of PNG, JPEG, WEBP, GIF, BMP.$"),
        ("image/png", png(PIXELS[0])[:60], GREY, 400, "the body is not a usable image"),
        ("image/png", png(PIXELS[0]), InputSpec(shape=(4, 4, 5)), 400, "the network takes 4 channels"),
        (FORM, b"x", GREY, 400, "no boundary"),
        (f"{FORM}; boundary=xx", form(png(PIXELS[0]))[:-8], GREY, 400, "cut short"),
        (f"{FORM}; boundary=xx", b"--xx--\r\n", GREY, 400, "no part with a file"),
        (f"{FORM}; boundary=xx", form(png(PIXELS[0]), b"hello"), COLOUR, 400, "picture 2 of 2 is not a usable image"),
        ("image/png", png(np.zeros((11, 10), np.uint8)), GREY, 400, "10x11 pixels; of PNG at most 100 are taken"),
    ],
)
def test_what_is_refused_says_why(content_type: str, body: bytes, spec: InputSpec, status: int, told: str) -> None:
    with pytest.raises(Refused, match=told) as refused:
        images_of(content_type, body, spec, 100)
    assert refused.value.status == status


def test_a_bomb_is_refused_before_memory_is_taken_for_its_pixels() -> None:
    """900 million pixels in a few hundred kilobytes: as grey bytes they would take 900 MB."""
    body = bomb(30_000, 30_000)
    assert len(body) < 200_000
    tracemalloc.start()
    with pytest.raises(Refused, match=r"30000x30000 pixels|exceeds limit"):
        images_of("image/png", body, GREY, 25_000_000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
