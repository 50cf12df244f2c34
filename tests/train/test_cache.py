"""Pictures that are kept decoded: the truth is what is read without a cache, and what lies in its folder afterwards."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress.files import claimed, publish
from compress.train import cache as cache_module
from compress.train import pictures as pictures_module
from compress.train.cache import ABOUT, IMAGES, Cache, Entry
from compress.train.data_set import DataSet, Part
from compress.train.errors import TrainError
from compress.train.fit import fit
from compress.train.levels import Levels
from compress.train.pictures import BrokenPictures
from compress.train.settings import AugmentConfig, FitConfig
from compress.train.sources import load_data, stamp
from compress.train.stored import Stored

SHAPE = (3, 6, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of forty JPEGs, some of another size."""
    for label in "ab":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for index in range(40):
            pixels = np.random.default_rng([ord(label), index]).integers(0, 256, (6 + index % 3, 5, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{index:02}.jpg")
    return tmp_path / "photos"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """A cache that takes the smallest of sets."""
    monkeypatch.setattr(pictures_module, "MANY", 1)
    return Cache(folder=tmp_path / "cache", claim=lambda target: claimed(target, bool), publish=publish)


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that is too small for any set."""
    monkeypatch.setattr(cache_module, "HELD", 0)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The pictures that are decoded, as they are."""
    seen: list[Path] = []
    read = pictures_module.decode_image
    monkeypatch.setattr(pictures_module, "decode_image", lambda path, *how: (seen.append(path), read(path, *how))[1])
    return seen


def same(one: Part, other: Part) -> bool:
    return np.array_equal(one.images[:], other.images[:]) and np.array_equal(one.labels, other.labels)


def alike(one: DataSet, other: DataSet) -> bool:
    pairs = ((one.train, other.train), (one.validation, other.validation), (one.test, other.test), (one.pool(), other.pool()))
    return one.about == other.about and all(same(*pair) for pair in pairs)


@pytest.mark.parametrize("layout", ["one set", "train and test"])
def test_streamed_images_are_those_in_memory(layout: str, folder: Path, kept: Cache, streamed: None) -> None:
    if layout == "train and test":
        shutil.copytree(folder, folder / "test")
        shutil.copytree(folder / "test", folder / "train")
        for label in "ab":
            shutil.rmtree(folder / label)
    plain = load_data(str(folder), shape=SHAPE)
    for _ in range(2):
        data = load_data(str(folder), shape=SHAPE, kept=kept)
        assert all(
            isinstance(part.images, Stored) for part in (data.train, data.validation, data.test, data.pool(), data.train.sample(9, 0))
        )
        assert alike(data, plain)


def test_what_fits_is_read_into_memory(folder: Path, kept: Cache) -> None:
    data = load_data(str(folder), shape=SHAPE, kept=kept)
    assert isinstance(data.train.images, np.ndarray) and alike(data, load_data(str(folder), shape=SHAPE))


def test_small_sets_and_few_files_are_not_kept(folder: Path, kept: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "MANY", 4096)
    load_data(str(folder), shape=SHAPE, kept=kept)
    assert not kept.folder.exists()
    load_data(str(folder), shape=(3, 400, 400), kept=kept)  # 38 MB
    assert len(kept.entries()) == 1


def test_pictures_are_decoded_once_and_again_where_one_has_changed(folder: Path, kept: Cache, decoded: list[Path]) -> None:
    first = load_data(str(folder), shape=SHAPE, kept=kept)
    assert len(decoded) == 80
    assert load_data(str(folder), shape=SHAPE, kept=kept, seed=3, validation=0.3).fingerprint == first.fingerprint
    assert len(decoded) == 80
    load_data(str(folder), shape=(1, 6, 5), kept=kept)
    assert len(decoded) == 160
    changed = folder / "a" / "07.jpg"
    Image.open(changed).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(changed)
    again = load_data(str(folder), shape=SHAPE, kept=kept)
    assert len(decoded) == 240 and again.fingerprint != first.fingerprint and alike(again, load_data(str(folder), shape=SHAPE))


@pytest.mark.parametrize("damage", ["cut short", "grown", "gone"])
def test_an_entry_that_is_not_whole_is_made_again(damage: str, folder: Path, kept: Cache, decoded: list[Path]) -> None:
    first = load_data(str(folder), shape=SHAPE, kept=kept)
    [entry] = kept.entries()
    content = (entry / IMAGES).read_bytes()
    (entry / IMAGES).unlink()
    if damage != "gone":
        (entry / IMAGES).write_bytes(content[:-1] if damage == "cut short" else content + b"\0" * 90)
    assert alike(load_data(str(folder), shape=SHAPE, kept=kept), first) and len(decoded) == 160


def test_a_fingerprint_that_is_none_is_made_again(folder: Path, kept: Cache) -> None:
    first = load_data(str(folder), shape=SHAPE, kept=kept)
    [note] = kept.folder.glob("*/*.sha256")
    for text in ("", "no hash"):
        note.write_text(text)
        assert load_data(str(folder), shape=SHAPE, kept=kept).fingerprint == first.fingerprint == note.read_text()


def test_names_that_are_no_text_are_no_hindrance(folder: Path, kept: Cache) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"\xff"))
    folder.rename(odd)
    (odd / "a" / os.fsdecode(b"\xfe.jpg")).write_bytes(b"no picture")
    for _ in range(2):
        assert load_data(str(odd), shape=SHAPE, kept=kept, skip_broken=True).about.skipped == 1


def test_twins_decode_once(folder: Path, kept: Cache, decoded: list[Path]) -> None:
    found: list[DataSet] = []
    twins = [threading.Thread(target=lambda: found.append(load_data(str(folder), shape=SHAPE, kept=kept))) for _ in range(3)]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join()
    assert len(decoded) == 80 and len(found) == 3 and alike(found[0], found[1])


@pytest.mark.parametrize("prunes", [False, True])
def test_a_kill_leaves_nothing_that_is_read(prunes: bool, folder: Path, kept: Cache) -> None:
    """The process dies after half of the pictures; the next one makes the entry, and takes away what was left."""
    script = """
import os, sys
from pathlib import Path
from compress.files import claimed, publish
from compress.train import pictures
from compress.train.cache import Cache
pictures.MANY = 1
kept = Cache(folder=Path(sys.argv[2]), claim=lambda target: claimed(target, bool), publish=publish)
die = lambda label, done, total: done == 40 and os._exit(9)
pictures.Reader(shape=(3, 6, 5), progress=die, cache=kept).read(Path(sys.argv[1]), ["a", "b"])
"""
    assert subprocess.run([sys.executable, "-c", script, folder, kept.folder]).returncode == 9
    [left] = kept.folder.iterdir()
    assert left.name.startswith(".") and not kept.entries()
    if prunes:
        assert not kept.prune() and not list(kept.folder.iterdir())
    assert alike(load_data(str(folder), shape=SHAPE, kept=kept), load_data(str(folder), shape=SHAPE))
    assert list(kept.folder.iterdir()) == list(kept.entries())


def test_a_disk_without_room_is_told_before_a_picture_is_decoded(
    folder: Path, kept: Cache, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 7199))
    with pytest.raises(
        TrainError, match=r"cache \(=.*cache\): 80 images of shape \(3, 6, 5\) take 7,200 bytes, but 7,199 are free; .*--cache"
    ):
        load_data(str(folder), shape=SHAPE, kept=kept)
    assert not decoded and not kept.folder.exists()


def test_a_disk_that_fills_up_is_one_line_and_nothing_is_left(kept: Cache) -> None:
    def pictures(broken: dict[int, str]) -> Iterator[np.ndarray]:
        yield np.zeros(SHAPE, np.uint8)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(TrainError, match=r"cache \(=.*cache\): No space left on device; make room there, or name another --cache"):
        kept.images("0" * 64, Entry(of="", images=2, shape=SHAPE), pictures)
    assert not kept.folder.exists()


@pytest.mark.parametrize("cached", [True, False])
def test_broken_pictures_are_refused_all_at_once_or_left_out(cached: bool, folder: Path, kept: Cache, decoded: list[Path]) -> None:
    how: dict[str, Any] = {"shape": SHAPE, "kept": kept if cached else None}
    (folder / "a" / "03.jpg").write_bytes(b"no picture")
    with pytest.raises(TrainError, match=r"^\S+/a/03\.jpg is not a usable image \(cannot.*\); mend it .*; --skip-broken leaves out"):
        load_data(str(folder), **how)
    (folder / "b" / "11.jpg").write_bytes((folder / "b" / "11.jpg").read_bytes()[:200])
    for _ in range(2):
        told = r"photos\): 2 of 80 images cannot be used, \S+/a/03\.jpg is .*\), \S+/b/11\.jpg is .*\); --skip-broken leaves out"
        with pytest.raises(BrokenPictures, match=told) as found:
            load_data(str(folder), **how)
        assert [name.partition(" ")[0] for name in found.value.names] == [str(folder / "a" / "03.jpg"), str(folder / "b" / "11.jpg")]
    data = load_data(str(folder), **how, skip_broken=True)
    assert len(decoded) == (160 if cached else 320)
    for path in ("a/03.jpg", "b/11.jpg"):
        (folder / path).unlink()
    whole = load_data(str(folder), shape=SHAPE)
    assert (data.about.skipped, whole.about.skipped) == (2, 0)
    assert all(same(one, other) for one, other in ((data.train, whole.train), (data.test, whole.test), (data.pool(), whole.pool())))


def test_a_set_of_nothing_but_broken_pictures_is_refused_in_any_case(folder: Path) -> None:
    for path in folder.glob("*/*.jpg"):
        path.write_bytes(b"no picture")
    with pytest.raises(TrainError, match="80 of 80 images cannot be used"):
        load_data(str(folder), shape=SHAPE, skip_broken=True)


def test_prune_empties_the_cache_and_touches_nothing_else(folder: Path, kept: Cache) -> None:
    data = load_data(str(folder), shape=SHAPE, kept=kept)
    (kept.folder / "notes").mkdir()
    (kept.folder / "notes" / ABOUT).write_text("{}")
    assert list(kept.prune().values()) == [Entry(of=str(folder), images=80, shape=SHAPE)]
    assert [path.name for path in kept.folder.iterdir()] == ["notes"] and not kept.entries() and not kept.prune()
    assert data.train.images[:].shape == (58, *SHAPE)


def test_a_cache_in_the_folder_of_the_data_is_none_of_the_data(folder: Path, kept: Cache) -> None:
    before = stamp(str(folder), folder)
    inside = Cache(folder=folder / cache_module.HIDDEN, claim=kept.claim, publish=kept.publish)
    first = load_data(str(folder), shape=SHAPE, kept=inside)
    assert inside.entries() and stamp(str(folder), folder) == before
    assert alike(load_data(str(folder), shape=SHAPE, kept=inside), first)


def test_what_is_clipped_of_deep_pictures_is_counted_from_the_cache_too(tmp_path: Path, kept: Cache) -> None:
    """Half of the pixels of each lie above the range."""
    (tmp_path / "deep" / "a").mkdir(parents=True)
    for index in range(12):
        pixels = np.repeat(np.array([[1000], [9000]], np.uint16) + index, 5, axis=1)
        Image.fromarray(pixels).save(tmp_path / "deep" / "a" / f"{index}.{'png' if index % 2 else 'tif'}")
    sets = [
        load_data(str(tmp_path / "deep"), shape=(1, 2, 5), levels=Levels(span), kept=cache)
        for span in ((0.0, 4000.0), (0.0, 10000.0), None)
        for cache in (None, kept, kept)
    ]
    assert [one.about.clipped for one in sets] == [12 * 5] * 3 + [0] * 6
    assert len({one.fingerprint for one in sets}) == len(kept.entries()) == 3
    assert set(sets[0].train.images[:][:, 0, 0].flat) == {64} and set(sets[-1].train.images[:][:, 0, 0].flat) == {4}


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(mixup=0.3, cutmix=1, rotate=5),
        AugmentConfig(hflip=0.5, resized_crop=0.5, trivial_augment=True, cutmix=1),
    ],
)
def test_training_from_disk_gives_the_weights_of_training_from_memory(
    augment: AugmentConfig, folder: Path, kept: Cache, streamed: None
) -> None:
    sets = [load_data(str(folder), shape=SHAPE), load_data(str(folder), shape=SHAPE, kept=kept)]
    trained = []
    for data in sets:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
        training, validation = ((part.images, part.labels) for part in (data.train, data.validation))
        config = FitConfig(epochs=2, batch=16, lr=0.01, augment=augment)
        fit(network, training, validation, config, classes=2, prepare=lambda images: images.float() / 255, device=torch.device("cpu"))
        trained.append(network.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
