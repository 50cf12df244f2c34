"""Images and targets of any kind, as a function of the user's own gives them: ``--data path/data.py:load``.

::

    def load():                       # arrays, or torch tensors on the CPU
        return images, targets        # uint8 or floats (N, C, H, W), and N targets

    def load():                       # or an iterable of batches, such as a DataLoader
        for images, targets in ...:   # of which 10,000 images, or 2 GB, are taken at most
            yield images, targets

Targets are an array, a list with one entry per image, of any kind, or a dict of such by name. Images of uint8 are pixels, normalised as
the network's are; floats go into it as they are. Where the channels come last they are put first.

A fifth is the test part, the same for everyone; of the rest the seed draws 30% for validation. ``Part.labels`` are positions in the
targets.

Refused: other types and shapes, batches that do not fit each other, values that are not finite, another number of targets than of images,
fewer than 60 images, nothing at all.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import shown
from ...train.data_set import About, DataSet, Part, Parts
from ...train.split import divide
from .function import Function, FunctionError

Say = Callable[[str], object]

MOST_IMAGES, MOST_BYTES, MOST_BATCHES = 10_000, 2 * 10**9, 10_000
LEAST = 60  # images, of which 34 calibrate and 12 are tested
TEST, TEST_SEED = 0.2, 0
NEEDED = "images uint8 or float (N, C, H, W) and N targets, or an iterable of such batches"


def load(function: Function, seed: int, validation: float, say: Say) -> DataSet:
    """What the function gives, in three parts.

    Raises:
        FunctionError: as the module says, or what the function raises.
    """
    images, targets = _taken(function, say)
    if len(images) < LEAST:
        raise FunctionError(f"{function.told} gave {len(images)} images; at least {LEAST} are needed, as they calibrate, prove and test")
    digest = hashlib.sha256(f"{images.shape} {images.dtype.str}".encode())
    digest.update(images.data)
    _hash(targets, digest)
    alike = np.zeros(len(images), np.int64)
    rest, test = divide(alike, TEST, TEST_SEED, function.reference)
    train, held = (rest[some] for some in divide(alike[rest], validation, seed, function.reference))
    parts = [Part(images[some], some) for some in (train, held, test)]
    channels, height, width = images.shape[1:]
    about = About(
        name=f"{function.file.stem}-{function.name}",
        classes=(),
        shape=(channels, height, width),
        counts=(len(train), len(held), len(test)),
        fingerprint=digest.hexdigest(),
        has_test=False,
        labelled=False,
    )
    order = np.concatenate([train, held, test])
    whole = Parts(train=parts[0], validation=parts[1], test=parts[2], order=order)
    return DataSet(about, lambda: (about, whole), targets=targets)


def pick(targets: Any, positions: Sequence[int]) -> Any:
    """Those at ``positions``, as they came: an array, a list, or a dict of them."""
    if isinstance(targets, Mapping):
        return {name: pick(column, positions) for name, column in targets.items()}
    return targets[list(positions)] if isinstance(targets, np.ndarray) else [targets[at] for at in positions]


def _taken(function: Function, say: Say) -> tuple[NDArray[Any], Any]:
    made = function()
    if isinstance(made, tuple | list) and len(made) == 2 and hasattr(made[0], "shape"):
        return _pair(function, made, "")
    if not hasattr(made, "__iter__") and not hasattr(made, "__getitem__"):
        raise FunctionError(f"{function.told} gave a {type(made).__name__}; {NEEDED} are needed")
    batches: list[tuple[NDArray[Any], Any]] = []
    count = size = 0
    for number, batch in enumerate(function.every(made), 1):
        where = f", batch {number}"
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise FunctionError(f"{function.told}{where}, is a {type(batch).__name__}; (images, targets) is needed")
        images, targets = _pair(function, batch, where)
        first = batches[0][0] if batches else images
        if (images.dtype, images.shape[1:]) != (first.dtype, first.shape[1:]):
            told = f"{images.dtype} {images.shape[1:]}, and the first {first.dtype} {first.shape[1:]}"
            raise FunctionError(f"{function.told}{where}, has images {told}; all must be alike")
        batches.append((images, targets))
        count, size = count + len(images), size + images.nbytes
        if count >= MOST_IMAGES or size >= MOST_BYTES or number >= MOST_BATCHES:
            told = f"gave {count:,} images in {number:,} batches, as many as are taken; it is asked for no more"
            say(f"data: {function.name} {told}")
            break
    if not count:
        raise FunctionError(f"{function.told} gave no images, in {len(batches)} batches; {NEEDED} are needed")
    return np.concatenate([images for images, _ in batches]), _joined(function, [targets for _, targets in batches])


def _pair(function: Function, pair: Sequence[Any], where: str) -> tuple[NDArray[Any], Any]:
    images, targets = _array(function, pair[0]), _plain(function, pair[1])
    if images is None or images.ndim != 4 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        told = f"a {type(pair[0]).__name__}" if images is None else f"{images.dtype} {images.shape}"
        raise FunctionError(f"{function.told}{where} has images of {told}; uint8 or float (N, C, H, W) are needed")
    images = images.astype(np.float32, copy=False) if images.dtype != np.uint8 else images
    if images.dtype != np.uint8 and not np.isfinite(images).all():
        raise FunctionError(f"{function.told}{where} has images with NaN or infinity; mend them")
    if images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    columns = targets if isinstance(targets, Mapping) else {"targets": targets}
    for name, column in columns.items():
        if not hasattr(column, "__len__") or isinstance(column, str | bytes):
            raise FunctionError(f"{function.told}{where} has {shown(name)} of type {type(column).__name__}; one target per image is needed")
        if len(column) != len(images):
            raise FunctionError(f"{function.told}{where} has {len(images)} images, and {len(column)} {shown(name)}; one for each is needed")
    if not columns:
        raise FunctionError(f"{function.told}{where} has a dict of targets with nothing in it; one target per image is needed")
    return np.ascontiguousarray(images), targets


def _array(function: Function, value: Any) -> NDArray[Any] | None:
    """An array, or a tensor of torch as one; None of anything else."""
    if not hasattr(value, "shape"):
        return None
    with function.theirs():  # a tensor on a GPU says itself what to do
        return np.asarray(value.detach() if hasattr(value, "detach") else value)


def _plain(function: Function, targets: Any) -> Any:
    if isinstance(targets, Mapping):
        return {name: _plain(function, column) for name, column in targets.items()}
    found = _array(function, targets)
    if found is not None and found.ndim:
        return found
    return list(targets) if isinstance(targets, tuple) else targets


def _joined(function: Function, parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        if any(not isinstance(one, Mapping) or one.keys() != first.keys() for one in parts):
            raise FunctionError(f"{function.told}: the targets of its batches have other names each; all must be alike")
        return {name: _joined(function, [one[name] for one in parts]) for name in first}
    if all(isinstance(one, np.ndarray) and one.shape[1:] == first.shape[1:] for one in parts):
        return np.concatenate(parts)
    return [target for one in parts for target in one]


def _hash(value: Any, digest: Any) -> None:
    """Add what tells one value from another."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            digest.update(f"{name}:".encode())
            _hash(one, digest)
    elif isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__} {len(value)}".encode())
        for one in value:
            _hash(one, digest)
    elif hasattr(value, "__dict__") and not hasattr(value, "shape"):
        _hash({"": type(value).__name__, **vars(value)}, digest)
    elif hasattr(value, "shape") and (plain := np.asarray(value.detach() if hasattr(value, "detach") else value)).dtype != object:
        digest.update(f"{plain.shape} {plain.dtype.str}".encode())
        digest.update(np.ascontiguousarray(plain).tobytes())
    else:
        digest.update((repr(value) if isinstance(value, str | bytes | int | float | complex | None) else type(value).__name__).encode())
