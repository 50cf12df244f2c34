"""Data sets: the truth is what was written to the files, or the facts published with the official ones."""

import gzip
import hashlib
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from real_data import DATA, needs_data

from compress.train import arrays, sources
from compress.train.data_set import DataSet, Part
from compress.train.download import fetch
from compress.train.errors import TrainError
from compress.train.formats import read_array, read_class_map
from compress.train.sources import Files, load_data
from compress.train.split import held_out

FASHION = Path("/usr/share/datasets/fashion-mnist")
SHAPE = (1, 4, 5)
RNG = np.random.default_rng(0)
TRAIN, TEST = (RNG.integers(0, 256, (count, *SHAPE[1:]), dtype=np.uint8) for count in (40, 20))
TRAIN_LABELS, TEST_LABELS = np.arange(40) % 4, np.arange(20) % 4


def write_npz(folder: Path, prefix: str = "tiny-", **arrays: np.ndarray) -> Path:
    """The Kuzushiji-49 layout; ``arrays`` replaces some of the four (train_imgs=...)."""
    folder.mkdir(exist_ok=True)
    four = {
        "train_imgs": TRAIN,
        "train_labels": TRAIN_LABELS.astype(np.uint8),
        "test_imgs": TEST,
        "test_labels": TEST_LABELS.astype(np.uint8),
    }
    for name, array in (four | arrays).items():
        np.savez_compressed(folder / f"{prefix}{name.replace('_', '-')}.npz", array)
    return folder


def write_idx(folder: Path, train: str = "train", test: str = "t10k", ending: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in ((train, TRAIN, TRAIN_LABELS), (test, TEST, TEST_LABELS)):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            (folder / f"{name}-{kind}-ubyte{ending}").write_bytes(gzip.compress(content) if ending else content)
    return folder


def write_pictures(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"class{label}" / f"{index:03}.png")
    return folder


def rows(*parts: Part) -> list[tuple[bytes, int]]:
    """Every image with its label, in an order that does not depend on theirs."""
    return sorted((image.tobytes(), int(label)) for part in parts for image, label in zip(part.images, part.labels, strict=True))


def check(data: DataSet) -> None:
    for part in (data.train, data.validation, data.test):
        assert part.images.dtype == np.uint8 and part.images.flags.c_contiguous
        assert part.labels.dtype == np.int64 and part.labels.shape == (len(part.images),)
        assert part.images.shape[1:] == data.shape
        assert part.labels.min() >= 0 and part.labels.max() < len(data.classes)


def test_every_container_gives_the_same_data_and_fingerprint(tmp_path: Path) -> None:
    npz, idx, packed = write_npz(tmp_path / "npz"), write_idx(tmp_path / "idx"), write_idx(tmp_path / "gz", ending=".gz")
    by_hand = Files(
        train_images=npz / "tiny-train-imgs.npz",
        train_labels=packed / "train-labels-idx1-ubyte.gz",
        test_images=idx / "t10k-images-idx3-ubyte",
        test_labels=write_npz(tmp_path / "wide", test_labels=TEST_LABELS) / "tiny-test-labels.npz",
    )
    sets = [load_data(str(folder), shape=SHAPE) for folder in (npz, idx, packed)] + [load_data("digits", files=by_hand, shape=SHAPE)]
    for data in sets:
        check(data)
        assert rows(data.train, data.validation) == rows(Part(TRAIN[:, None], TRAIN_LABELS))
        np.testing.assert_array_equal(data.test.images, TEST[:, None])
        np.testing.assert_array_equal(data.test.labels, TEST_LABELS)
        assert data.classes == ("0", "1", "2", "3")
        assert data.shape == SHAPE
    assert len({data.fingerprint for data in sets}) == 1
    assert [data.name for data in sets] == ["npz", "idx", "gz", "npz"]


def test_the_fingerprint_is_the_documented_hash_and_sees_every_change(tmp_path: Path) -> None:
    digest = hashlib.sha256()
    for images, labels in ((TRAIN, TRAIN_LABELS), (TEST, TEST_LABELS)):
        digest.update(f"{(len(images), *SHAPE)} |u1".encode() + images.tobytes())
        digest.update(f"{labels.shape} <i8".encode() + labels.astype("<i8").tobytes())
    before = load_data(str(write_npz(tmp_path)), shape=SHAPE, seed=3, validation=0.3)
    assert before.fingerprint == digest.hexdigest()
    changed = TEST.copy()
    changed[-1, -1, -1] ^= 1
    assert load_data(str(write_npz(tmp_path, test_imgs=changed)), shape=SHAPE).fingerprint != before.fingerprint


def test_the_split_is_stratified_and_repeats_with_its_seed(tmp_path: Path) -> None:
    folder = str(write_npz(tmp_path))
    first, same, other = (load_data(folder, shape=SHAPE, seed=seed, validation=0.2) for seed in (5, 5, 6))
    assert np.bincount(first.validation.labels).tolist() == [2] * 4
    assert np.bincount(first.train.labels).tolist() == [8] * 4
    np.testing.assert_array_equal(first.validation.images, same.validation.images)
    assert rows(first.validation) != rows(other.validation)
    assert rows(first.train, first.validation) == rows(other.train, other.validation)


def test_held_out_follows_its_own_rule() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 4, 4, 4])
    held = held_out(labels, 0.5, seed=0)
    assert np.bincount(labels[held], minlength=5).tolist() == [2, 1, 0, 0, 2]
    assert np.bincount(labels[held_out(labels, 0.01, seed=0)], minlength=5).tolist() == [1, 1, 0, 0, 1]
    # Written down once: the split must not change with the version of numpy, or old results are trained on today's validation images.
    assert np.flatnonzero(held_out(np.zeros(20, np.int64), 0.25, seed=7)).tolist() == [3, 4, 6, 11, 12]


def test_digits_are_scikit_learns_bilinear_in_the_middle_with_a_test_part_of_their_own() -> None:
    from sklearn.datasets import load_digits
    from torch import from_numpy
    from torch.nn.functional import interpolate, pad

    first, second = load_data("digits", seed=0), load_data("digits", seed=1, validation=0.3)
    check(first)
    assert first.classes == tuple("0123456789") and first.shape == (1, 28, 28)
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert first.fingerprint == second.fingerprint
    assert np.bincount(first.test.labels).min() >= 34
    # Artifacts refer to it, so it must not change.
    assert first.fingerprint == "6a61b870b48b532024226bbc2c5c4db5327e50b8faabd2b70d2d2c9fa68d65dd"
    original = load_digits()
    scaled = interpolate(from_numpy(original.images)[:, None] * 255 / 16, (20, 20), mode="bilinear", align_corners=False)
    truth = np.floor(pad(scaled, (4, 4, 4, 4)).numpy() + 0.5 + 1e-9).astype(np.uint8)
    assert rows(first.train, first.validation, first.test) == rows(Part(truth, original.target))


@needs_data
def test_official_kuzushiji_49_labels_pass_their_md5_and_name_their_classes(tmp_path: Path) -> None:
    for name, count in (("k49-train-labels.npz", 232_365), ("k49-test-labels.npz", 38_547)):
        here = tmp_path / name
        here.write_bytes((DATA / "k49" / name).read_bytes())
        assert fetch("http://127.0.0.1:9/never-asked", here, md5=sources.K49_MD5[name]) == here
        labels = read_array(here)
        assert labels.shape == (count,) and labels.max() == 48
    assert read_class_map(DATA / "k49" / "k49_classmap.csv", 49) == arrays.CLASS_NAMES["k49"]


@needs_data
def test_emnist47_has_the_counts_of_its_readme() -> None:
    data = load_data(str(DATA / "emnist47"))
    check(data)
    assert (data.name, data.shape, "".join(data.classes)) == ("emnist47", (1, 28, 28), "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
    assert len(data.train.images) + len(data.validation.images) == 92_474
    assert np.bincount(data.test.labels).tolist() == [300] * 47
    assert np.bincount(data.validation.labels).min() == 52
    assert data.fingerprint == "1b48afa8c37a11fb1570d4076d0aeda0f1fb1cb7f0a01a7a803e3e80f841ffa8"


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_of_debian_has_its_published_counts() -> None:
    data = load_data(str(FASHION))
    assert np.bincount(np.concatenate([data.train.labels, data.validation.labels])).tolist() == [6000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10


def test_k49_is_read_from_the_cache_and_else_fetched_by_its_official_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path, str]] = []
    monkeypatch.setattr(sources, "fetch", lambda url, target, *, md5, progress: asked.append((url, target, md5)))
    write_npz(tmp_path / "k49", "k49-")
    assert load_data("k49", shape=SHAPE, cache=tmp_path).name == "k49"
    assert len(asked) == 4
    name = "k49-train-imgs.npz"
    assert ("http://codh.rois.ac.jp/kmnist/dataset/k49/" + name, tmp_path / "k49" / name, "7ac088b20481cf51dcd01ceaab89d821") in asked


def test_emnist_is_turned_upright_and_kmnist_is_not(tmp_path: Path) -> None:
    square = np.resize(TEST, (20, 4, 4))
    for folder, names in (("EMNIST", ("emnist-balanced-train", "emnist-balanced-test")), ("KMNIST", ("train", "t10k"))):
        write_idx(tmp_path / folder / "raw", *names)
        for name in names:
            content = bytes([0, 0, 8, 3]) + np.array(square.shape, ">u4").tobytes() + square.tobytes()
            (tmp_path / folder / "raw" / f"{name}-images-idx3-ubyte").write_bytes(content)
            content = bytes([0, 0, 8, 1]) + np.array([20], ">u4").tobytes() + TEST_LABELS.astype(np.uint8).tobytes()
            (tmp_path / folder / "raw" / f"{name}-labels-idx1-ubyte").write_bytes(content)
    emnist, kmnist = (load_data(name, shape=(1, 4, 4), cache=tmp_path) for name in ("emnist", "kmnist"))
    check(emnist)
    np.testing.assert_array_equal(emnist.test.images[:, 0], kmnist.test.images[:, 0].transpose(0, 2, 1))
    np.testing.assert_array_equal(kmnist.test.images[:, 0], square)


def test_torchvision_downloads_what_is_missing_and_its_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []

    def kmnist(root: str, **settings: object) -> None:
        calls.append((root, settings))
        write_idx(Path(root) / "KMNIST" / "raw")

    def emnist(root: str, **settings: object) -> None:
        raise RuntimeError("no route to host")

    stub = types.SimpleNamespace(datasets=types.SimpleNamespace(KMNIST=kmnist, EMNIST=emnist))
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    monkeypatch.setitem(arrays.CLASS_NAMES, "kmnist", tuple("abcd"))
    assert load_data("kmnist", shape=SHAPE, cache=tmp_path).classes == tuple("abcd")
    assert calls == [(str(tmp_path), {"download": True})]
    with pytest.raises(TrainError, match=r"EMNIST could not be downloaded \(no route to host\); .*emnist-balanced-train-.*EMNIST/raw"):
        load_data("emnist", cache=tmp_path)


def test_class_names_come_from_the_map_or_the_known_prefix(tmp_path: Path) -> None:
    labels = np.arange(94) % 47
    images = np.zeros((94, *SHAPE[1:]), np.uint8)
    arrays = {"train_imgs": images, "train_labels": labels}
    assert "".join(load_data(str(write_npz(tmp_path / "a", "emnist9-", **arrays)), shape=SHAPE).classes)[-3:] == "qrt"
    assert load_data(str(write_npz(tmp_path / "b", "other-", **arrays)), shape=SHAPE).classes[-1] == "46"
    folder = write_npz(tmp_path / "c")
    (folder / "tiny_classmap.csv").write_text("index,char\n" + "".join(f"{index},{name}\n" for index, name in enumerate("wxyz")))
    assert load_data(str(folder), shape=SHAPE).classes == tuple("wxyz")
    (folder / "other_classmap.csv").write_text("")
    with pytest.raises(TrainError, match=r"other_classmap\.csv and tiny_classmap\.csv both name the classes"):
        load_data(str(folder), shape=SHAPE)


def test_an_image_folder_with_its_own_test_part_keeps_it(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", TRAIN, TRAIN_LABELS)
    write_pictures(tmp_path / "test", TEST, TEST_LABELS)
    data = load_data(str(tmp_path), shape=SHAPE)
    check(data)
    assert data.classes == ("class0", "class1", "class2", "class3")
    assert rows(data.test) == rows(Part(TEST[:, None], TEST_LABELS))
    assert rows(data.train, data.validation) == rows(Part(TRAIN[:, None], TRAIN_LABELS))
    write_pictures(tmp_path / "test", TEST[:1], np.array([7]))
    with pytest.raises(TrainError, match="class folder class7 must be in both train and test"):
        load_data(str(tmp_path), shape=SHAPE)


def test_an_image_folder_without_one_holds_out_a_fifth_whatever_the_seed(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "pictures", TRAIN, TRAIN_LABELS)
    told: list[tuple[str, int, int]] = []
    first = load_data(str(folder), shape=SHAPE, progress=lambda *step: told.append(step))
    assert told[-1] == (str(folder), 40, 40)
    assert np.bincount(first.test.labels).tolist() == [2] * 4
    assert rows(first.train, first.validation, first.test) == rows(Part(TRAIN[:, None], TRAIN_LABELS))
    assert rows(load_data(str(folder), shape=SHAPE, seed=9).test) == rows(first.test)
    assert load_data(str(folder), shape=(3, 8, 8)).shape == (3, 8, 8)
    (folder / "class9").mkdir()
    with pytest.raises(TrainError, match="class9 holds no images"):
        load_data(str(folder), shape=SHAPE)


@pytest.mark.parametrize("layout", ["npz", "idx", "gz"])
def test_a_single_pair_of_files_is_one_set_and_loses_a_fifth_to_the_test_part(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "pair"
    write_npz(folder) if layout == "npz" else write_idx(folder, ending=".gz" if layout == "gz" else "")
    for path in folder.glob("*train-*"):
        path.unlink()
    first, other = (load_data(str(folder), shape=SHAPE, seed=seed) for seed in (0, 9))
    check(first)
    assert (first.name, first.classes, first.has_test) == ("pair", ("0", "1", "2", "3"), False)
    assert np.bincount(first.test.labels).tolist() == [1] * 4
    assert rows(first.train, first.validation, first.test) == rows(Part(TEST[:, None], TEST_LABELS))
    assert rows(first.test) == rows(other.test) and first.fingerprint == other.fingerprint
    # Two files of different sets are no pair.
    [labels] = folder.glob("*labels*")
    labels.rename(folder / labels.name.replace("test", "train").replace("t10k", "train"))
    with pytest.raises(TrainError, match=r"pair has (0 files \*train-imgs\.npz|no train-images-idx3-ubyte\[\.gz\])"):
        load_data(str(folder), shape=SHAPE)


@needs_data
def test_kuzushiji_mnist_without_its_training_files_is_divided() -> None:
    data = load_data(str(DATA / "kmnist"))
    check(data)
    assert [len(part.labels) for part in (data.train, data.validation, data.test)] == [7200, 800, 2000]
    np.testing.assert_array_equal(data.pool().labels, read_array(DATA / "kmnist" / "t10k-labels-idx1-ubyte.gz"))


def test_the_pool_is_all_but_a_given_test_part_in_the_order_of_the_files(tmp_path: Path) -> None:
    given = load_data(str(write_npz(tmp_path / "given")), shape=SHAPE, seed=3, validation=0.3)
    assert given.has_test
    np.testing.assert_array_equal(given.pool().images, TRAIN[:, None])
    np.testing.assert_array_equal(given.pool().labels, TRAIN_LABELS)
    pictures = write_pictures(tmp_path / "pictures", TRAIN, TRAIN_LABELS)
    cut = load_data(str(pictures), shape=SHAPE, seed=3)
    assert not cut.has_test
    by_class = np.argsort(TRAIN_LABELS, kind="stable")  # pictures are read class by class
    np.testing.assert_array_equal(cut.pool().images, TRAIN[by_class, None])
    np.testing.assert_array_equal(cut.pool().labels, TRAIN_LABELS[by_class])


@pytest.mark.parametrize("layout", ["npz", "idx"])
def test_colours_come_last_in_files_and_first_in_the_network(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (RNG.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8) for count in (40, 20))
    if layout == "npz":
        write_npz(tmp_path, train_imgs=train, test_imgs=test)
    else:
        write_idx(tmp_path)
        for name, array in (("train", train), ("t10k", test)):
            header = bytes([0, 0, 8, 4]) + np.array(array.shape, ">u4").tobytes()
            (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + array.tobytes())
    data = load_data(str(tmp_path), shape=(3, 4, 5))
    check(data)
    assert rows(data.train, data.validation) == rows(Part(train.transpose(0, 3, 1, 2), TRAIN_LABELS))
    np.testing.assert_array_equal(data.test.images, test.transpose(0, 3, 1, 2))
    with pytest.raises(TrainError, match=r"images \(=\(3, 4, 5\)\) must have the network's input shape \(1, 4, 5\)"):
        load_data(str(tmp_path), shape=SHAPE)


def test_a_class_without_training_images_is_allowed(tmp_path: Path) -> None:
    data = load_data(str(write_npz(tmp_path, train_labels=np.where(TRAIN_LABELS == 1, 5, TRAIN_LABELS))), shape=SHAPE)
    check(data)
    assert len(data.classes) == 6
    assert np.bincount(data.train.labels).tolist() == [9, 0, 9, 9, 0, 9]


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        (
            {"train_imgs": TRAIN[..., None].repeat(17, axis=3)},
            r"tiny-train-imgs\.npz: images \(=uint8 \(40, 4, 5, 17\)\) must be of shape \(N, H, W\), or \(N, H, W, C\) with 1 to 16",
        ),
        ({"train_imgs": TRAIN[..., None].repeat(3, axis=3)}, r"images \(=\(3, 4, 5\)\) must have the network's input shape \(1, 4, 5\)"),
        (
            {"train_imgs": TRAIN / np.float32(255)},
            r"tiny-train-imgs\.npz: images are float32, of 0 to 1; say which values become black and white, .* --range 0,1$",
        ),
        ({"test_imgs": TEST[:, :3]}, r"tiny-test-imgs\.npz: images \(=\(1, 3, 5\)\) must have the network's input shape \(1, 4, 5\)"),
        ({"test_imgs": TEST[:-1]}, r"tiny-test-imgs\.npz: 19 images, but 20 labels in .*tiny-test-labels\.npz"),
        ({"train_labels": TRAIN_LABELS.astype(float)}, r"tiny-train-labels\.npz: labels \(=float64 \(40,\)\) must be whole numbers"),
        (
            {"train_labels": TRAIN},
            r"tiny-train-labels\.npz: labels \(=uint8 \(40, 4, 5\)\) must be whole numbers of shape \(N,\); are they images\?",
        ),
        ({"test_labels": TEST_LABELS - 1}, r"tiny-test-labels\.npz: labels \(=-1\.\.2\) must lie in 0\.\.99999; number them from 0"),
        ({"train_labels": TRAIN_LABELS.astype(np.uint64) + (1 << 63)}, r"labels \(=9223372036854775808\.\..*must lie in 0\.\.99999"),
        ({"test_labels": TEST_LABELS + 1}, r"tiny-test-labels\.npz: label 4 is beyond 3, the largest in training"),
        ({"train_imgs": TRAIN[:0], "train_labels": TRAIN_LABELS[:0]}, r"tiny-train-labels\.npz: .* it holds no data"),
        ({"train_labels": np.arange(40)}, r"has no class with two images"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], line: str) -> None:
    with pytest.raises(TrainError, match=line):
        load_data(str(write_npz(tmp_path, **arrays)), shape=SHAPE)


def test_incomplete_and_crowded_folders_are_named(tmp_path: Path) -> None:
    folder = write_npz(tmp_path / "npz")
    (folder / "tiny-test-imgs.npz").unlink()
    with pytest.raises(TrainError, match=r"npz has 0 files \*test-imgs\.npz, but must have one"):
        load_data(str(folder), shape=SHAPE)
    write_npz(folder)
    write_npz(folder, "second-")
    with pytest.raises(TrainError, match=r"npz has 2 files \*train-imgs\.npz, but must have one; .* give the four files by name"):
        load_data(str(folder), shape=SHAPE)
    folder = write_idx(tmp_path / "idx")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(TrainError, match=r"idx has no t10k-labels-idx1-ubyte\[\.gz\]"):
        load_data(str(folder), shape=SHAPE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainError, match="empty has no class folders"):
        load_data(str(tmp_path / "empty"))


@pytest.mark.parametrize(("source", "near"), [("k-49", "k49"), ("EMNIST", "emnist"), ("K_MNIST", "kmnist"), ("digit", "digits")])
def test_a_nearly_right_name_is_suggested(source: str, near: str) -> None:
    with pytest.raises(TrainError, match=rf"data \(={source}\) is neither .*, did you mean {near}\? known are digits, k49, emnist, kmnist"):
        load_data(source)


def test_other_wrong_arguments_are_told(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"data \(=/no/where\) .* folder; known are .*-imgs\.npz .*-idx3-ubyte .* or of images"):
        load_data("/no/where")
    (tmp_path / "a.npz").touch()
    with pytest.raises(TrainError, match=r"a\.npz\) is a file; give its folder, or the four files by name"):
        load_data(str(tmp_path / "a.npz"))
    for validation in (0.0, 0.51, -1.0, float("nan")):
        with pytest.raises(TrainError, match=rf"validation \(={validation}\) must lie in \(0, 0\.5\]"):
            load_data("digits", validation=validation)
    with pytest.raises(TrainError, match=r"seed \(=-1\) must be a whole number"):
        load_data("digits", seed=-1)
    with pytest.raises(TrainError, match=r"data \(=digits\) has images of shape \(1, 28, 28\), the network takes \(3, 32, 32\)"):
        load_data("digits", shape=(3, 32, 32))
    gone = Files(**dict.fromkeys(("train_images", "train_labels", "test_images", "test_labels"), tmp_path / "gone.npz"))
    with pytest.raises(TrainError, match=r"gone\.npz does not exist"):
        load_data("digits", files=gone)


def test_reading_arrays_loads_neither_torch_nor_pillow_nor_scikit_learn(tmp_path: Path) -> None:
    code = "import sys; from compress.train.sources import load_data; load_data(sys.argv[1], shape=(1, 4, 5)); " + (
        "assert not {'torch', 'torchvision', 'PIL', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(write_npz(tmp_path))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("name", [b"\xff\xfe", b"cat\x1b[31m", b"a\nb"])
def test_a_class_whose_name_is_no_text_is_refused_when_it_is_read(name: bytes, tmp_path: Path) -> None:
    os.mkdir(os.path.join(os.fsencode(tmp_path), name))  # noqa: PTH102, PTH118 - bytes
    with pytest.raises(TrainError, match=r"has a class called '.*\\.*', which is no text to print; give its folder another name"):
        load_data(str(tmp_path), shape=(1, 4, 4))
