"""Images of arrays: the truth is what was written, and what is read whole is what comes through the cache."""

import gzip
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.files import claimed, publish
from compress.train import arrays
from compress.train import cache as cache_module
from compress.train.arrays import read_images
from compress.train.cache import Cache
from compress.train.errors import TrainError
from compress.train.levels import Levels
from compress.train.pictures import Reader
from compress.train.sources import load_data
from compress.train.stored import Stored

RNG = np.random.default_rng(0)


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that is too small for any set, and files that come in many parts."""
    monkeypatch.setattr(cache_module, "quarter", lambda: 0)
    monkeypatch.setattr(arrays, "_PIECE", 300)


@pytest.fixture
def kept(tmp_path: Path) -> Cache:
    return Cache(folder=tmp_path / "cache", claim=lambda target: claimed(target, bool), publish=publish)


def idx(path: Path, array: np.ndarray) -> None:
    codes = {"uint8": 8, "int16": 11, "float32": 13}
    content = bytes([0, 0, codes[array.dtype.name], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content += array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def lzma_npz(path: Path, array: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), array)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.write(path.with_suffix(".npy"), "arr_0.npy")


WRITE: dict[str, Callable[[Path, np.ndarray], None]] = {
    "a.npz": lambda path, array: np.savez(path, array),
    "packed.npz": lambda path, array: np.savez_compressed(path, array),
    "lzma.npz": lzma_npz,
    "column by column.npz": lambda path, array: np.savez(path, np.asfortranarray(array)),
    "a-idx": idx,
    "a-idx.gz": idx,
}


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_large_sets_come_through_the_cache_as_they_would_come_into_memory(
    name: str, channels: int, small_memory: None, kept: Cache, tmp_path: Path
) -> None:
    array = RNG.integers(0, 256, (23, 6, 5, channels), np.uint8)
    WRITE[name](tmp_path / name, array[..., 0] if channels == 1 else array)
    shape = (channels, 6, 5)
    whole, stored = read_images(tmp_path / name, Reader(shape=shape)), read_images(tmp_path / name, Reader(shape=shape, cache=kept))
    assert isinstance(whole, np.ndarray) and isinstance(stored, Stored)
    assert np.array_equal(whole, array.transpose(0, 3, 1, 2)) and np.array_equal(stored[:], whole)
    assert whole.dtype == np.uint8 and whole.flags.c_contiguous and whole.flags.writeable
    assert len(kept.entries()) == 1


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("kind", [np.float32, np.int16, np.uint16, np.float64])
def test_values_that_are_no_bytes_are_made_so_and_what_is_clipped_is_counted_from_the_cache_too(
    name: str, kind: type, small_memory: None, kept: Cache, tmp_path: Path
) -> None:
    if "idx" in name and kind in (np.uint16, np.float64):
        pytest.skip("written as the others")
    array = RNG.integers(0, 1000, (23, 6, 5)).astype(kind)
    WRITE[name](tmp_path / name, array)
    truth = np.floor(np.clip((array.astype(float) - 100) / 800, 0, 1) * 255 + 0.5).astype(np.uint8)[:, None]
    for cache in (None, kept, kept):
        reader = Reader(shape=(1, 6, 5), levels=Levels((100.0, 900.0)), cache=cache)
        found = read_images(tmp_path / name, reader)[:]
        assert np.abs(found.astype(int) - truth).max() <= 1 and (found != truth).mean() < 0.01  # halves are rounded to even
        assert reader.clipped == [int(((array < 99) | (array > 901)).sum())]
    assert len(kept.entries()) == 1


def test_a_set_in_two_ranges_is_kept_twice_and_a_changed_file_anew(small_memory: None, kept: Cache, tmp_path: Path) -> None:
    for count, (factor, high, pixel) in enumerate([(1, 1.0, 255), (1, 2.0, 128), (2, 2.0, 255)], 1):
        np.savez(tmp_path / "a.npz", np.full((10 + factor, 6, 5), factor, np.float32))
        found = read_images(tmp_path / "a.npz", Reader(shape=(1, 6, 5), levels=Levels((0.0, high)), cache=kept))
        assert len(found) == 10 + factor and set(found[:].flat) == {pixel}
        assert len(kept.entries()) == count


def test_sets_that_fit_are_read_whole_and_nothing_is_kept(kept: Cache, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((10, 6, 5), np.uint8))
    assert isinstance(read_images(tmp_path / "a.npz", Reader(shape=(1, 6, 5), cache=kept)), np.ndarray)
    assert not kept.folder.exists()


@pytest.mark.parametrize("damage", ["cut", "longer", "flipped"])
def test_a_damaged_file_leaves_nothing_in_the_cache(damage: str, small_memory: None, kept: Cache, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, RNG.integers(0, 256, (200, 6, 5), np.uint8))
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 255
    elif damage == "longer":
        idx(path, RNG.integers(0, 256, (200, 6, 5), np.uint8))
        content = bytearray(path.read_bytes() + b"\0")
    else:
        idx(path, RNG.integers(0, 256, (200, 6, 5), np.uint8))
        content = bytearray(path.read_bytes()[:-1])
    path.write_bytes(content)
    with pytest.raises(TrainError, match=r"a\.npz.*(cannot be read|more follow|only 5999 are there)"):
        read_images(path, Reader(shape=(1, 6, 5), cache=kept))
    assert not kept.entries() and not [*kept.folder.glob("*/images.u8")]


def test_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch, kept: Cache, tmp_path: Path) -> None:
    """32 MB of floats in parts of 4 MB, of which a few lie in memory at once."""
    np.savez_compressed(tmp_path / "a.npz", np.zeros((8192, 32, 32), np.float32))
    monkeypatch.setattr(cache_module, "quarter", lambda: 0)
    monkeypatch.setattr(arrays, "_PIECE", 1 << 18)
    tracemalloc.start()
    try:
        images = read_images(tmp_path / "a.npz", Reader(shape=(1, 32, 32), levels=Levels((0.0, 1.0)), cache=kept))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(images) == 8192


def test_a_whole_set_of_large_files_is_the_set_of_small_ones(
    small_memory: None, monkeypatch: pytest.MonkeyPatch, kept: Cache, tmp_path: Path
) -> None:
    labels = np.arange(60) % 3
    for part in ("train", "test"):
        np.savez(tmp_path / f"x-{part}-imgs.npz", RNG.integers(0, 256, (60, 6, 5, 4), np.uint8))
        np.savez(tmp_path / f"x-{part}-labels.npz", labels)
    plain = load_data(str(tmp_path), shape=(4, 6, 5))
    large = load_data(str(tmp_path), shape=(4, 6, 5), kept=kept)
    assert large.about == plain.about
    assert isinstance(large.train.images, Stored) and isinstance(large.test.images, Stored)
    for one, other in ((large.train, plain.train), (large.validation, plain.validation), (large.test, plain.test)):
        assert np.array_equal(one.images[:], other.images[:]) and np.array_equal(one.labels, other.labels)
