"""An artifact: what lies between two stages. A directory, written once, never changed.

::

    runs/k49/train/3f9a0c51be27/
        artifact.json          what it is, where it came from, what it scored, the SHA-256 of every other file
        weights.safetensors    kind "network"          (or)
        model.onnx             kind "graph"            (or)
        benchmark.json         kind "benchmark"        (or)
        folds.json             kind "folds"            (or)
        sensitivity.json, choice.json, noise.json: kinds "sensitivity", "choice", "noise"
        history.csv, ...       whatever else the stage has to say

It is written to a temporary neighbour, synced and renamed: after a kill at any moment there is the whole artifact or none. The folder
is named after its *key*, the hash of everything that went into it, so a stage whose inputs are unchanged finds its result there, and
another configuration never overwrites it. Nothing is pickled and nothing is executed on reading; a damaged, truncated, newer or
foreign directory is refused by name. Loads neither torch nor onnx nor onnxruntime.
"""

import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Meta, UnsetType

from ..errors import ArtifactError, shown
from ..files import claimed, identity, publish
from ..train.levels import MOST_CHANNELS, Levels
from ..train.resize import STRETCH, Resize
from .parts import Data, Facts, Metrics, Model, Name, OwnScore, Step
from .records import plain, read_record

SCHEMA: Literal[1] = 1
AGAIN = "make the artifact again"
MANIFEST = "artifact.json"
Kind = Literal["network", "graph", "benchmark", "folds", "sensitivity", "choice", "noise", "litert"]
PAYLOAD: dict[Kind, str] = {kind: f"{kind}.json" for kind in get_args(Kind)} | {
    "network": "weights.safetensors",
    "graph": "model.onnx",
    "litert": "model.tflite",
}
MOST_VALUES = 2**24  # of one image; 3x2048x2048 are fewer
Classes = Annotated[tuple[str, ...], Meta(min_length=1)]
LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy", "scikit-learn", "safetensors")


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The image a network takes: uint8 (C, H, W); it is fed (pixel / 255 - mean) / std, per channel, as float32.

    ``resize``: how pictures came to its size in training; not said where they were stretched. ``range``: the values that became 0 and 255
    where data are no bytes, see :mod:`compress.train.levels`; whoever feeds the network does the same. ``pixels``: where images are floats
    already, which are fed as they are.
    """

    shape: tuple[int, int, int] = (1, 28, 28)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: Resize | UnsetType = UNSET
    range: tuple[float, float] | UnsetType = UNSET
    pixels: Literal["float32"] | UnsetType = UNSET

    @property
    def levels(self) -> Levels:
        """How values become pixels."""
        return Levels(self.range or None)

    @property
    def resized(self) -> Resize:
        """How pictures come to its size."""
        return self.resize or STRETCH

    @property
    def as_pixels(self) -> "InputSpec":
        """The same image for a network that takes pixels of 0 to 255, as float32."""
        return self if self.pixels else InputSpec(shape=self.shape, std=(1 / 255,))

    def __post_init__(self) -> None:
        for name in ("shape", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _ = self.levels  # refuses a range that is none
        few = min(self.shape) >= 1 and bool(self.pixels or self.shape[0] <= MOST_CHANNELS)
        if len(self.shape) != 3 or not few or math.prod(self.shape) > MOST_VALUES:
            raise ArtifactError(
                f"image shape (={'x'.join(map(str, self.shape))}) must be CxHxW with 1 to {MOST_CHANNELS} channels and at most "
                f"{MOST_VALUES:,} values; 1x28x28 is the default"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.shape[0]):
                raise ArtifactError(f"{name} (={values}) must have one value or one per channel ({self.shape[0]})")
        units = "it is in units of [0, 1], as torchvision's Normalize has it"
        if not all(map(math.isfinite, self.mean)):
            raise ArtifactError(f"mean (={self.mean}) must be finite; {units}")
        if not all(0 < value < math.inf for value in self.std):
            raise ArtifactError(f"std (={self.std}) must be positive; {units}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``artifact.json`` says. Stages fill in the upper part; the lower part is added on writing.

    ``task``: the score of a network that reads no classes. A copy keeps the time, the versions and the machine of what it is a copy of.
    """

    kind: Kind
    stage: Name
    key: Name
    model: Model
    input: InputSpec
    classes: tuple[str, ...]  # none of a network for another task
    config: Mapping[str, Any]
    data: Data
    lineage: tuple[Step, ...] = ()
    task: OwnScore | UnsetType = UNSET
    parent: str | None = None
    metrics: Metrics = field(default_factory=Metrics)
    facts: Facts = field(default_factory=Facts)

    schema: Literal[1] = SCHEMA
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        _ = self.step  # refuses a configuration that later stages cannot read
        if self.kind == "network" and self.model.reference is UNSET:
            raise ArtifactError("model of a network must have a reference")

    @property
    def step(self) -> Step:
        """What its descendants keep of it."""
        return Step(stage=self.stage, hash=self.hash, key=self.key, config=self.config)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A manifest and the directory in which it lies; ``parent`` is what a stage just made it from, where it did."""

    path: Path
    manifest: Manifest
    parent: "Artifact | None" = field(default=None, compare=False, repr=False)

    @property
    def payload(self) -> Path:
        return self.path / PAYLOAD[self.manifest.kind]

    @property
    def content(self) -> str:
        """Hash of what a child stage can see: the same weights made twice count as the same parent."""
        about = self.manifest
        files = {name: digest for name, digest in about.files.items() if name == PAYLOAD[about.kind]}
        seen = {"kind": about.kind, "model": plain(about.model), "input": plain(about.input), "classes": about.classes}
        return digest_of(seen | {"files": files} | ({"bypassed": self.bypassed} if self.bypassed else {}))

    @property
    def bypassed(self) -> list[str]:
        """The modules that channel removal left out of the network, by name."""
        return [name for step in self.steps if step.stage == "remove-channels" for name in step.settings.bypass]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The lineage, this artifact included, oldest first."""
        return (*self.manifest.lineage, self.manifest.step)


def digest_of(value: object) -> str:
    """SHA-256 of ``value`` as canonical JSON (sorted keys, no spaces), in hex."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@contextmanager
def whole_artifact(target: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes ``target`` when the block ends; after a failure nothing of it is left."""
    with claimed(vacant(target), bool) as folder:
        yield folder
        publish(folder, target)


def vacant(target: Path) -> Path:
    """``target``, where an artifact may come; raises :class:`ArtifactError` when it is there and is something else."""
    if target.exists() and not (target / MANIFEST).is_file():
        raise ArtifactError(f"{target} exists and is no artifact; name another --out or move it away")
    return target


def sealed(about: Manifest, folder: Path) -> Manifest:
    """Write the manifest into ``folder``, with the hashes of all files there and its own, and with time, versions and machine where it has
    none.
    """
    full = dataclasses.replace(
        about,
        created=about.created or datetime.now(UTC).isoformat(timespec="microseconds"),
        versions=about.versions or {"python": platform.python_version()} | {name: installed(name) for name in LIBRARIES},
        machine=about.machine or {"system": platform.platform(), "processor": platform.machine()},
        files={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    )
    whole = dataclasses.replace(full, hash=digest_of({name: value for name, value in plain(full).items() if name != "hash"}))
    (folder / MANIFEST).write_text(json.dumps(plain(whole), indent=1) + "\n", encoding="utf-8")
    return whole


def read_artifact(path: Path, kind: str | None = None) -> Artifact:
    """Read and verify the artifact in ``path``: the manifest's own hash and the SHA-256 of every file that it names."""
    while True:
        before = identity(path)
        try:
            return _read(path, kind)
        except (ArtifactError, FileNotFoundError):
            if identity(path) == before:  # else it was replaced meanwhile
                raise


def _read(path: Path, kind: str | None) -> Artifact:
    file = path / MANIFEST
    if not file.is_file():
        hint = "name the folder that holds it" if path.is_file() else "`compress train` and the other stages write them under runs/"
        raise ArtifactError(f"{path} is not an artifact: it has no {MANIFEST}; {hint}")
    manifest = read_record(file, Manifest, again=AGAIN, error=ArtifactError, look=partial(_known, file))
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path} holds a {manifest.kind} (stage {manifest.stage}), but a {kind} is needed here")
    for name, digest in {PAYLOAD[manifest.kind]: None, **manifest.files}.items():
        payload = path / name
        if Path(name).name != name or not payload.is_file() or digest is None:
            raise ArtifactError(f"{path} is damaged: {shown(name, 160)} is missing; {AGAIN}")
        found = sha256_of(payload)
        if found != digest:
            raise ArtifactError(f"{path} is damaged: {name} has SHA-256 {found[:12]}..., {shown(digest[:12])}... was expected; {AGAIN}")
    return Artifact(path=path, manifest=manifest)


def find_artifacts(folder: Path) -> list[Artifact]:
    """The artifacts directly below ``folder``, newest first. Anything that is not one is passed over; a damaged one is an error."""
    found = [read_artifact(path.parent) for path in sorted(folder.glob(f"[!.]*/{MANIFEST}"))]
    return sorted(found, key=lambda artifact: artifact.manifest.created, reverse=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _known(file: Path, raw: Any) -> Any:
    """The values of a manifest, unless they are another tool's, another version's or altered."""
    if not isinstance(raw, dict) or raw.get("kind") not in list(PAYLOAD) or "schema" not in raw:
        raise ArtifactError(f"{file} is not one of this toolkit's; it has no kind out of {', '.join(PAYLOAD)}")
    if raw["schema"] != SCHEMA:
        has = f"has schema {shown(raw['schema'])}, this version reads {SCHEMA}"
        raise ArtifactError(f"{file} {has}; take the version of compress that wrote it, or make it again")
    names = {entry.name for entry in dataclasses.fields(Manifest)}
    if different := names ^ (raw.keys() | {"task"}):  # a classifier has none
        wrong = shown(", ".join(sorted(different)), 160)
        raise ArtifactError(f"{file} is damaged: missing or unknown entries {wrong}; {AGAIN}")
    if not raw["classes"] and "task" not in raw:
        raise ArtifactError(f"{file} is damaged: neither classes nor a task; {AGAIN}")
    if raw["hash"] != digest_of({name: value for name, value in raw.items() if name != "hash"}):
        raise ArtifactError(f"{file} was changed after it was written: its hash does not fit; {AGAIN}")
    return raw


def installed(library: str) -> str:
    """Its version; loads nothing of it."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"
