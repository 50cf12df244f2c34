"""Data sets as arrays: by name, or from a folder of one of three layouts. In memory, but for those that need too much of it.

::

    digits, k49, emnist, kmnist        by name; the last three are downloaded into the cache when they are not there
    *train-imgs.npz  *train-labels.npz  *test-imgs.npz  *test-labels.npz  [*classmap.csv]             Kuzushiji-49 layout
    train-images-idx3-ubyte[.gz]  train-labels-idx1-ubyte[.gz]  t10k-images-...  t10k-labels-...      IDX (MNIST) layout
    CLASS/*.png ...   or   train/CLASS/*.png ... and test/CLASS/*.png ...                             image folder

Where there is one set of images only (digits, class folders without train/ and test/, a single pair of npz or IDX files), a fifth
of every class is cut off as the test part, the same for everyone.

Refused with one line: another source, and all that ``arrays``, ``pictures`` and ``formats`` refuse.

Sources: scikit-learn's ``load_digits`` (UCI optdigits); Clanuwat et al. 2018, arXiv:1812.01718 (Kuzushiji-49, Kuzushiji-MNIST);
Cohen et al. 2017, arXiv:1702.05373 (EMNIST).
"""

import difflib
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path

import numpy as np

from .arrays import CLASS_NAMES, Files, idx_files, npz_files, only_pair, read_files, read_images, read_pair
from .cache import Cache, fits_memory
from .data_set import About, DataSet, Part, Parts, Raw, fingerprint
from .download import fetch
from .errors import TrainError
from .formats import BYTES, IMAGE_SUFFIXES
from .levels import Levels
from .pictures import BrokenPictures, Progress, Reader, Stamp, stamps, subfolders
from .resize import STRETCH, Resize
from .split import divide
from .stored import Images

NAMES = ("digits", "k49", "emnist", "kmnist")
K49_URL = "http://codh.rois.ac.jp/kmnist/dataset/k49/"
K49_MD5 = {
    "k49-train-labels.npz": "44a8e1b893f81e63ff38d73cad420f7a",
    "k49-test-labels.npz": "4da6f7a62e67a832d5eb1bd85c5ee448",
    "k49-test-imgs.npz": "d352e201d846ce6b94f42c990966f374",
    "k49-train-imgs.npz": "7ac088b20481cf51dcd01ceaab89d821",
}
# Neither depends on the user's seed: the test part of a data set must be the same for everyone.
_TEST_FRACTION, _TEST_SEED = 0.2, 0

Answer = Callable[[Images], tuple[np.ndarray, int]]  # images uint8 (N, C, H, W) to a class for each, int64 (N,), of so many


def load_data(
    source: str,
    *,
    seed: int = 0,
    validation: float = 0.1,
    shape: tuple[int, int, int] = (1, 28, 28),
    resize: Resize = STRETCH,
    levels: Levels = BYTES,
    cache: Path = Path("data"),
    files: Files | None = None,
    answer: Answer | None = None,
    labelled: bool = True,
    progress: Progress | None = None,
    kept: Cache | None = None,
    skip_broken: bool = False,
) -> DataSet:
    """Read the data set ``source``: a name of ``NAMES`` or the path of a folder (``./digits`` for a folder that has such a name).

    ``validation`` in (0, 0.5] is the fraction of every class that ``seed`` (>= 0) moves from train to validation. ``shape`` is the
    (C, H, W) the network takes: pictures are converted to it, as ``resize`` says, arrays must have it; ``levels`` says how what is no byte
    becomes one. Downloads lie in ``cache``.
    ``files`` replaces ``source``. ``answer`` labels the images of a folder that has no labels; nobody does where it is not ``labelled``.
    ``progress`` is told (file or folder, done, of how many: bytes or images). ``kept``: where decoded pictures are kept; without it they
    are decoded each time, into memory. ``skip_broken``: pictures that cannot be used are left out; else they are refused, all at once.

    Raises TrainError for everything the heads of this module, ``formats`` and ``download`` list.
    """
    if not 0 < validation <= 0.5:
        raise TrainError(f"validation (={validation}) must lie in (0, 0.5]; 0.1 keeps 10% of the training images for validation")
    if seed < 0:
        raise TrainError(f"seed (={seed}) must be a whole number of at least 0; 0 is the default")
    reader = Reader(shape=shape, resize=resize, levels=levels, progress=progress, cache=kept)
    if files is not None:
        raw = read_files(files, reader)
    elif answer is not None or not labelled:
        raw = _read_unlabelled(Path(source), reader, answer)
    else:
        raw = _read_source(source, cache, reader)
    if reader.broken and not skip_broken:
        read = len(raw.train.labels) + (len(raw.test.labels) if raw.test else 0)
        raise BrokenPictures(source, reader.broken, read + len(reader.broken))
    if raw.train.images.shape[1:] != shape:
        raise TrainError(f"data (={source}) has images of shape {raw.train.images.shape[1:]}, the network takes {shape}; choose other data")
    return _parted(raw, seed, validation, reader)


def _parted(raw: Raw, seed: int, validation: float, reader: Reader) -> DataSet:
    train, test, order = raw.train, raw.test, np.arange(len(raw.train.labels))
    cut, (_, *shape) = order[:0], train.images.shape
    if test is None:
        order, cut = divide(train.labels, _TEST_FRACTION, _TEST_SEED, raw.name)
        train, test = raw.train.take(order), raw.train.take(cut)
    rest, held = divide(train.labels, validation, seed, raw.name)
    first, second = train.take(rest), train.take(held)
    known = fingerprint(train, test)
    if fits_memory((len(train.labels) + len(test.labels)) * math.prod(shape)):
        first, second, test = first.read(), second.read(), test.read()
    parts = Parts(train=first, validation=second, test=test, order=np.concatenate([order[rest], order[held], cut]))
    about = About(
        name=raw.name,
        classes=raw.classes,
        shape=(shape[0], shape[1], shape[2]),
        counts=(len(rest), len(held), len(test.labels)),
        fingerprint=known,
        has_test=raw.test is not None,
        skipped=len(reader.broken),
        clipped=sum(reader.clipped),
        labelled=raw.labelled,
    )
    return DataSet(about, lambda: (about, parts))


def _read_source(source: str, cache: Path, reader: Reader) -> Raw:
    match source:
        case "digits":
            reader.levels.of(np.dtype(np.uint8), source, tuple)  # takes no range
            return _read_digits()
        case "k49":
            for file, md5 in K49_MD5.items():
                fetch(K49_URL + file, cache / "k49" / file, md5=md5, progress=reader.progress)
            return replace(read_files(npz_files(cache / "k49"), reader), name="k49")
        case "emnist":
            raw = read_files(_torchvision_files("EMNIST", cache, "emnist-balanced-train", "emnist-balanced-test"), reader)
            assert raw.test is not None, "four files were read"
            return replace(raw, name="emnist", train=_upright(raw.train), test=_upright(raw.test))
        case "kmnist":
            raw = read_files(_torchvision_files("KMNIST", cache, "train", "t10k"), reader)
            return replace(raw, name="kmnist", classes=CLASS_NAMES["kmnist"])
    folder = Path(source)
    if not folder.is_dir():
        raise TrainError(_unknown(source))
    if pair := only_pair(folder):
        return read_pair(*pair, reader)
    if any(folder.glob("*-imgs.npz")) or any(folder.glob("*-labels.npz")):
        return read_files(npz_files(folder), reader)
    if any(folder.glob("*-idx[13]-ubyte*")):
        return read_files(idx_files(folder, "train", "t10k"), reader)
    return _read_image_folder(folder, reader)


def _read_unlabelled(folder: Path, reader: Reader, answer: Answer | None) -> Raw:
    """All pictures in a folder and below it; hidden ones are passed over. Or an array of images, as a file, or alone in the folder."""
    if not folder.exists():
        raise TrainError(f"calibrate (={folder}) is not there; name a folder of images such as the network is to read, or a file of them")
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    inside = sorted({str(path.parent) for path in found if not any(part.startswith(".") for part in path.parts)})
    arrays = [folder] if folder.is_file() else sorted({*folder.glob("*.np[yz]"), *folder.glob("*-images-idx3-ubyte*")})
    if len(arrays) > 1 and not inside:
        raise TrainError(f"calibrate (={folder}) holds {len(arrays)} arrays ({arrays[0].name} ...); name the file that is of images")
    if not inside and not arrays:
        told = f"holds no images ({' '.join(IMAGE_SUFFIXES)}) and no array of them (.npz .npy)"
        raise TrainError(f"calibrate (={folder}) {told}; some hundred do well")
    images: Images = reader.read(folder, inside)[0] if inside else read_images(arrays[0], reader)
    labels, count = answer(images) if answer else (np.zeros(len(images), np.int64), 1)
    classes = tuple(map(str, range(count))) if answer else ("",)
    return Raw(name=folder.resolve().name, classes=classes, train=Part(images, labels), labelled=answer is not None)


def stamp(source: str, cache: Path, files: Files | None = None) -> list[Stamp]:
    """What tells that a data set is the one of before without reading it: of each of its files path, bytes, and times of change in ns."""
    if source == "digits" and files is None:
        return [(f"scikit-learn {one.version}", 0, 0, 0) for one in distributions(name="scikit-learn")]  # in which they lie
    known = {"k49": cache / "k49", "emnist": cache / "EMNIST" / "raw", "kmnist": cache / "KMNIST" / "raw"}
    if files is None and not Path(source).is_file():
        return sorted(stamps(known.get(source, Path(source)).absolute(), deep=True))
    found = [(path, path.stat()) for path in (vars(files).values() if files else [Path(source)]) if path.is_file()]
    return [(str(path.absolute()), one.st_size, one.st_mtime_ns, one.st_ctime_ns) for path, one in found]


def _unknown(source: str) -> str:
    known = f"known are {', '.join(NAMES)}, or a folder of *-imgs.npz and *-labels.npz, of *-idx3-ubyte and *-idx1-ubyte, or of images"
    if Path(source).is_file():
        return f"data (={source}) is a file; give its folder, or the four files by name; {known}"
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", source.lower()), NAMES, n=1)
    hint = f", did you mean {near[0]}?" if near else ";"
    return f"data (={source}) is neither a known name nor a folder{hint} {known}"


def _read_digits() -> Raw:
    """1,797 digits of 8x8, made 20x20 in the middle of 28x28 as in MNIST.

    Bilinear with half-pixel centres (scale 2.5), in whole tenths: the same bytes, hence the same fingerprint, on every machine.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    position = np.clip(4 * np.arange(20) - 3, 0, 70)  # output pixel i lies at (i + 0.5) / 2.5 - 0.5 of the input, in tenths
    low, tenths = np.divmod(position, 10)
    weights = np.zeros((20, 8), np.int64)
    weights[np.arange(20), np.minimum(low + 1, 7)] = tenths
    weights[np.arange(20), low] += 10 - tenths
    values = weights @ digits.images.astype(np.int64) @ weights.T  # 0..16 * 100
    images = np.pad(((values * 255 + 800) // 1600).astype(np.uint8), ((0, 0), (4, 4), (4, 4)))
    return Raw(name="digits", classes=tuple("0123456789"), train=Part(images[:, None], digits.target.astype(np.int64)))


def _torchvision_files(name: str, cache: Path, train: str, test: str) -> Files:
    """torchvision only downloads; its files are read like anyone else's, so a damaged one gets the same clear line."""
    folder = cache / name / "raw"
    try:
        return idx_files(folder, train, test)
    except TrainError:
        _download(name, cache, f"put its IDX files {train}-... and {test}-... into {folder}")
    return idx_files(folder, train, test)


def _download(name: str, cache: Path, by_hand: str) -> None:
    from torchvision import datasets

    try:
        if name == "EMNIST":
            datasets.EMNIST(str(cache), split="balanced", download=True)
        else:
            datasets.KMNIST(str(cache), download=True)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise TrainError(f"{name} could not be downloaded ({error}); try again, or {by_hand}") from error


def _upright(part: Part) -> Part:
    """EMNIST is stored column by column."""
    return Part(np.ascontiguousarray(part.images[:].swapaxes(2, 3)), part.labels)


def _read_image_folder(folder: Path, reader: Reader) -> Raw:
    name = folder.resolve().name
    if not ((folder / "train").is_dir() and (folder / "test").is_dir()):
        classes = subfolders(folder)
        return Raw(name=name, classes=classes, train=Part(*reader.read(folder, classes)))
    classes = subfolders(folder / "train")
    if lonely := set(classes) ^ set(subfolders(folder / "test")):
        raise TrainError(f"{folder}: class folder {min(lonely)} must be in both train and test; add it where it is missing, or remove it")
    train, test = (Part(*reader.read(folder / part, classes)) for part in ("train", "test"))
    return Raw(name=name, classes=classes, train=train, test=test)
