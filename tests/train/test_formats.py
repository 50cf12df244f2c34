"""Arrays and pictures: the truth is what was written, or the official files."""

import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_data import DATA, needs_data

from compress.train import formats
from compress.train.errors import TrainError
from compress.train.formats import read_array, read_class_map, read_image
from compress.train.levels import Levels
from compress.train.pictures import Reader
from compress.train.resize import STRETCH

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12}
    big = array.astype(array.dtype.newbyteorder(">"))
    return bytes([0, 0, codes[array.dtype.str[1:]], array.ndim]) + np.array(array.shape, ">u4").tobytes() + big.tobytes()


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz_bytes(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def header_bytes(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def written(folder: Path, content: bytes, name: str = "some.file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_npz_of_any_compression_gives_what_numpy_wrote(tmp_path: Path, method: int) -> None:
    path = written(tmp_path, npz_bytes(("arr_0.npy", npy_bytes(IMAGES)), method=method))
    np.testing.assert_array_equal(read_array(path), IMAGES, strict=True)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_gives_the_numbers_written_plain_or_gzipped(tmp_path: Path, dtype: str, pack) -> None:
    array = np.array([[0, 1, 2], [100, 7, 9]], dtype)
    np.testing.assert_array_equal(read_array(written(tmp_path, pack(idx_bytes(array)))), array)


def test_fortran_order_and_large_arrays_keep_every_element(tmp_path: Path) -> None:
    large = np.asfortranarray(np.random.default_rng(1).integers(0, 256, (300, 20, 30), dtype=np.uint8))
    np.testing.assert_array_equal(read_array(written(tmp_path, npz_bytes(("arr_0.npy", npy_bytes(large))))), large)


@needs_data
def test_official_files_read_as_numpy_and_their_readme_say() -> None:
    hundred = DATA / "k49" / "test_images_100.npz"
    np.testing.assert_array_equal(read_array(hundred), np.load(hundred)["arr_0"], strict=True)
    packed = DATA / "kmnist" / "t10k-images-idx3-ubyte.gz"
    images = read_array(packed)
    labels = read_array(DATA / "kmnist" / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (10_000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert images.tobytes() == gzip.decompress(packed.read_bytes())[16:]


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"gone\.npz does not exist"):
        read_array(tmp_path / "gone.npz")
    with pytest.raises(TrainError, match=r"some\.file must be .npz .* starts with nothing: it is empty"):
        read_array(written(tmp_path, b""))
    with pytest.raises(TrainError, match=r"some\.file must be .npz .* starts with 89 50 4e 47"):
        read_array(written(tmp_path, b"\x89PNG and so on"))
    with pytest.raises(TrainError, match=r"not an IDX file: its magic number is 00 00 07 03"):
        read_array(written(tmp_path, b"\0\0\x07\x03" + bytes(99)))
    with pytest.raises(TrainError, match=r"is not a file; name one"):
        read_array(tmp_path)


def test_every_truncation_is_refused_and_never_read_as_less(tmp_path: Path) -> None:
    for content in (npz_bytes(("arr_0.npy", npy_bytes(IMAGES))), idx_bytes(IMAGES), gzip.compress(idx_bytes(IMAGES))):
        for length in range(len(content)):
            with pytest.raises(TrainError, match=r"^[^\n]*some\.file[^\n]*$"):
                read_array(written(tmp_path, content[:length]))


def test_changed_bytes_give_an_array_or_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    contents = [npz_bytes(("arr_0.npy", npy_bytes(IMAGES)), method=method) for method in methods]
    for content in [*contents, gzip.compress(idx_bytes(IMAGES))]:
        for _ in range(150):
            changed = bytearray(content)
            changed[rng.integers(len(changed))] = rng.integers(256)
            try:
                assert read_array(written(tmp_path, changed)).size
            except TrainError as error:
                assert str(tmp_path) in str(error) and "\n" not in str(error)


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    for content in (idx_bytes(IMAGES) + b"x", gzip.compress(idx_bytes(IMAGES) + b"x"), npz_bytes(("arr_0.npy", npy_bytes(IMAGES) + b"x"))):
        with pytest.raises(TrainError, match=r"promises 60 bytes \(shape \(5, 4, 3\)\), but more follow"):
            read_array(written(tmp_path, content))


def test_objects_need_pickle_and_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"some\.file: arr_0 holds Python objects .* only pickle could read"):
        read_array(written(tmp_path, npz_bytes(("arr_0.npy", npy_bytes(np.array([{}, {}], object))))))


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ([("\r\n.npy", b"")], r"1 \('\\r\\n\.npy'\)"),
        ([], r"0 \(none\)"),
        ([("images.npy", b"")], r"1 \('images\.npy'\)"),
        ([("arr_0.npy", b""), ("arr_1.npy", b"")], r"2 \('arr_0\.npy', 'arr_1"),
    ],
)
def test_an_archive_of_other_or_several_arrays_is_refused(tmp_path: Path, members: list, found: str) -> None:
    with pytest.raises(TrainError, match=f"must hold one array, arr_0, but holds {found}"):
        read_array(written(tmp_path, npz_bytes(*members)))


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 28, 28), }", "promises 78399999216 bytes .* limit is 8589934592"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (0, 28, 28), }", "it holds no data"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 28, 28), }", "it holds no data"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (), }", "1 to 4 sizes"),
        ("{'descr': '<M8', 'fortran_order': False, 'shape': (1,), }", "plain array of numbers"),
        ("{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (1,), }", "plain array of numbers"),
        ("{'descr': '|u1', 'fortran_order': False, 'shape': (1.5,), }", "plain array of numbers"),
        ("{'descr': '|u1', 'shape': (1,), }", "header of arr_0 is damaged"),
        ("__import__('os').abort()", "header of arr_0 is damaged"),
        ("-" * 1000, "header of arr_0 is damaged"),
    ],
)
def test_a_header_is_looked_at_before_anything_is_read(tmp_path: Path, header: str, rule: str) -> None:
    with pytest.raises(TrainError, match=rule):
        read_array(written(tmp_path, npz_bytes(("arr_0.npy", header_bytes(header) + b"x"))))


def test_a_bomb_costs_no_more_memory_than_its_header_admits(tmp_path: Path) -> None:
    zeros = bytes(100 << 20)
    small = "{'descr': '|u1', 'fortran_order': False, 'shape': (7,), }"
    bombs = [gzip.compress(idx_bytes(np.zeros(7, np.uint8)) + zeros, 1), npz_bytes(("arr_0.npy", header_bytes(small) + zeros))]
    del zeros
    for bomb in bombs:
        path = written(tmp_path, bomb)
        tracemalloc.start()
        with pytest.raises(TrainError, match=r"promises 7 bytes .* but more follow"):
            read_array(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20
    with pytest.raises(TrainError, match=r"promises 79228162458924105385300197375 bytes .* decompression bomb"):
        read_array(written(tmp_path, b"\0\0\x08\x03" + b"\xff" * 12))


def test_an_image_keeps_its_pixels_at_its_own_size(tmp_path: Path) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (3, 6, 5)), colours.transpose(2, 0, 1), strict=True)
    grey = (colours @ np.array([0.299, 0.587, 0.114])).round()  # ITU-R 601-2, as Pillow documents for mode L
    assert np.abs(read_image(tmp_path / "a.png", (1, 6, 5))[0] - grey).max() <= 1


def test_an_image_is_shrunk_with_antialias(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    middle = read_image(tmp_path / "a.png", (1, 8, 8))[0, 2:6, 2:6]
    assert np.abs(middle.astype(int) - 100).max() <= 2  # without antialias: 0 or 200


def test_transparent_pixels_become_white_and_exif_turns(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 4), np.uint8)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png", (1, 4, 4)) == 255).all()
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    Image.fromarray(np.array([[0, 0], [255, 255]], np.uint8)).save(tmp_path / "b.png", exif=turned)
    assert read_image(tmp_path / "b.png", (1, 2, 2)).tolist() == [[[255, 255], [0, 0]]]


def test_unusable_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainError, match=r"gone\.png does not exist"):
        read_image(tmp_path / "gone.png", (1, 4, 4))
    with pytest.raises(TrainError, match=r"text\.png is not a usable image"):
        read_image(written(tmp_path, b"no picture", "text.png"), (1, 4, 4))
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(TrainError, match=r"cut\.png is not a usable image"):
        read_image(written(tmp_path, (tmp_path / "a.png").read_bytes()[:900], "cut.png"), (1, 4, 4))
    Image.fromarray(np.linspace(-1.5, 1, 16, dtype=np.float32).reshape(4, 4)).save(tmp_path / "deep.tif")
    with pytest.raises(TrainError, match=r"deep\.tif is not a usable image \(.*float32, of -1\.5 to 1; .* --range -1\.5,1\)"):
        read_image(tmp_path / "deep.tif", (1, 4, 4))
    with pytest.raises(TrainError, match=r"channels \(=2\)"):
        read_image(tmp_path / "a.png", (2, 4, 4))
    for limit in (1000, 100):  # Pillow warns of more pixels than the limit, and raises from twice as many on
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(TrainError, match=r"a\.png is not a usable image .*decompression bomb"):
            read_image(tmp_path / "a.png", (1, 4, 4))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big.tif", "a.pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_16_bits_is_read_by_its_whole_range_or_the_one_that_was_said(name: str, channels: int, tmp_path: Path) -> None:
    values = np.array([[0, 257, 4095], [32896, 65535, 2048]], np.uint16)
    if name == "big.tif":  # the other order of bytes, as some microscopes write it
        entries = [(256, 3, 3), (257, 3, 2), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 3, 8), (277, 3, 1), (278, 3, 2), (279, 3, 12)]
        tags = b"".join(struct.pack(">HHIHH", tag, kind, 1, value, 0) for tag, kind, value in entries)
        header, pixels = struct.pack(">2sHI", b"MM", 42, 20), values.astype(">u2").tobytes()
        (tmp_path / name).write_bytes(header + pixels + struct.pack(">H", len(entries)) + tags + bytes(4))
    else:
        Image.fromarray(values).save(tmp_path / name)
    shape = (channels, 2, 3)
    assert read_image(tmp_path / name, shape)[-1].tolist() == [[0, 1, 16], [128, 255, 8]]  # value / 257, rounded
    assert read_image(tmp_path / name, shape, STRETCH, Levels((0, 4095)))[0].tolist() == [[0, 16, 255], [255, 255, 128]]


def test_grey_of_floats_needs_a_range_and_rgb_of_8_bits_takes_none(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", (1, 1, 3), STRETCH, Levels((-1, 1))).tolist() == [[[0, 128, 255]]]
    Image.fromarray(np.array([[np.nan, 0.0, 1.0]], np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(TrainError, match=r"b\.tif is not a usable image \(it holds 1 values that are no finite numbers, such as nan"):
        read_image(tmp_path / "b.tif", (1, 1, 3), STRETCH, Levels((-1, 1)))
    Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", (3, 1, 1), STRETCH, Levels((0, 7))).ravel().tolist() == [1, 2, 3]


def test_a_tag_of_another_type_is_damage(tmp_path: Path) -> None:
    """A fraction where a TIFF's strips begin: Pillow raises a TypeError. What formats raise is written down nowhere."""
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.tif")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.index(b"\x11\x01\x04\x00")
    content[at + 2] = 5
    with pytest.raises(TrainError, match=r"a\.tif is not a usable image \('IFDRational"):
        read_image(written(tmp_path, bytes(content), "a.tif"), (1, 4, 4))


def test_a_large_picture_with_transparency_is_flattened_row_by_row(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (600, 8, 4), dtype=np.uint8)  # more rows than go at once
    Image.fromarray(pixels).save(tmp_path / "a.png")
    white = Image.new("RGBA", (8, 600), "white")
    whole = Image.alpha_composite(white, Image.fromarray(pixels)).convert("RGB")
    assert read_image(tmp_path / "a.png", (3, 600, 8)).tolist() == np.asarray(whole).transpose(2, 0, 1).tolist()
    Image.new("RGBA", (5000, 5000), (9, 9, 9, 99)).save(tmp_path / "large.png")  # 100 MB, and 100 MB once it is flat
    assert _kilobytes(tmp_path / "large.png") < 300_000, "twice the picture, not five times"


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_large_pictures_of_more_than_a_byte_are_read_row_by_row(mode: str, tmp_path: Path) -> None:
    """25 million values: 50 or 100 MB, and up to 150 MB of bytes on the way to RGB; as one array of float64 400 MB more."""
    Image.new(mode, (5000, 5000), 12345).save(tmp_path / "large.tif", compression="tiff_adobe_deflate")
    assert (read_image(tmp_path / "large.tif", (1, 8, 8), levels=Levels((0, 65535))) == 48).all()
    assert _kilobytes(tmp_path / "large.tif", "0, 65535") < 300_000


def test_webp_of_so_many_pixels_that_its_decoder_takes_a_gigabyte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two frames of 89 million pixels took 1.4 GB."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.webp")
    assert read_image(tmp_path / "a.webp", (1, 8, 8)).max() == 0
    monkeypatch.setattr(formats, "_WEBP_PIXELS", 399)
    with pytest.raises(TrainError, match=r"^[^ ]*a\.webp is not a usable image \(20x20 pixels; of WebP at most 399 are taken"):
        read_image(tmp_path / "a.webp", (1, 8, 8))


def _kilobytes(picture: Path, span: str = "") -> int:
    """What reading it takes on top, in a process of its own; ``ru_maxrss`` would begin with what the parent's process holds."""
    script = f"""
import sys, compress.train.formats as formats, PIL.Image
from compress.train.levels import Levels
from pathlib import Path
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
PIL.Image.init()
before = peak()
formats.read_image(Path(sys.argv[1]), (3, 8, 8), levels=Levels({f"({span})" if span else ""}))
print(peak() - before)
"""
    return int(subprocess.run([sys.executable, "-c", script, picture], capture_output=True, text=True, check=True).stdout)


def test_postscript_is_never_opened(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(TrainError, match=r"a\.png is not a usable image \(cannot identify"):
        read_image(tmp_path / "a.png", (1, 4, 4))


def test_pictures_come_sorted_with_the_index_of_their_folder(tmp_path: Path) -> None:
    for name, value in [("x/2.png", 2), ("x/1.PNG", 1), ("y/0.bmp", 3)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((2, 2), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "x" / "notes.txt").write_text("passed over")
    told: list[tuple[str, int, int]] = []
    images, labels = Reader(shape=(1, 2, 2), progress=lambda *step: told.append(step)).read(tmp_path, ["x", "y"])
    assert images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert labels.tolist() == [0, 0, 1] and labels.dtype == np.int64
    assert told == [(str(tmp_path), 1, 3), (str(tmp_path), 2, 3), (str(tmp_path), 3, 3)]
    with pytest.raises(TrainError, match="take 12000000000000 bytes, the limit is"):
        Reader(shape=(1, 2_000_000, 2_000_000)).read(tmp_path, ["x", "y"])
    (tmp_path / "z").mkdir()
    with pytest.raises(TrainError, match=r"/z holds no images"):
        Reader(shape=(1, 2, 2)).read(tmp_path, ["x", "z"])


def test_a_class_map_names_every_class_or_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "index,codepoint,char\n1,U+3044,い\n0,U+3042,あ\n".encode(), "classmap.csv")
    assert read_class_map(path, 2) == ("あ", "い")
    with pytest.raises(TrainError, match=r"classmap\.csv names no class 2, but the labels have 3"):
        read_class_map(path, 3)
    for content in (b"a,b\n1,2\n", b"index,char\nx,y\n", b"\xff\xfe\x00"):
        with pytest.raises(TrainError, match=r"classmap\.csv must be UTF-8 with the columns index and char"):
            read_class_map(written(tmp_path, content, "classmap.csv"), 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_a_pipe_or_a_device_among_the_data_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "cat" / "pipe.png"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    endless = tmp_path / "cat" / "zero.png"
    endless.symlink_to("/dev/zero")
    for path in (pipe, endless):
        for read in (read_array, lambda path: read_image(path, (1, 4, 4))):
            with pytest.raises(TrainError, match=rf"{path.name} is not a file; name one, or take it out of the data$"):
                read(path)
    with pytest.raises(TrainError, match=r"pipe\.png is not a file"):
        Reader(shape=(1, 4, 4)).read(tmp_path, ["cat"])
