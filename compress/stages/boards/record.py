"""``c.json``: what a folder of ``compress export-c`` is. Loads no onnx, so that a machine with a compiler alone can prove the folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from ...artifacts.artifact import sha256_of
from ...artifacts.records import read_record
from ...codegen.target import Target, target_of
from ...errors import CompressError, shown

RECORD = "c.json"
AGAIN = "run `compress export-c` again"
IDENTIFIER = "^[A-Za-z_][A-Za-z0-9_]*$"
Count = Annotated[int, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call: the ONNX node it was made for, multiply-accumulates per image, bytes of its weights in flash and of the arena meanwhile."""

    name: str
    kind: str
    macs: Count
    weights: Count
    arena: Count


@dataclass(frozen=True, kw_only=True)
class Port:
    """What goes in or comes out: its shape for one image, "uint8" or "float32"."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"]


@dataclass(frozen=True, kw_only=True)
class Made:
    """``key``: of all that went in. ``origin``: the graph's file as it was named, and its SHA-256. ``flash_bytes``: of all weights.

    ``images``: how many ``test.c`` compares. ``files``: the SHA-256 of every other file.
    """

    schema: Literal["compress-c"] = "compress-c"
    version: Literal[1] = 1
    key: str
    name: Annotated[str, Meta(pattern=IDENTIFIER)]
    target: str
    origin: str
    sha256: str
    flash_bytes: Count
    arena_bytes: Count
    input: Port
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...]
    images: Count
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        target_of(self.target)

    @property
    def processor(self) -> Target:
        return target_of(self.target)


def read_made(folder: Path) -> Made:
    """The record in a folder of export-c. Raises CompressError where it is damaged."""
    return read_record(folder / RECORD, Made, again=AGAIN)


def changed(folder: Path, made: Made) -> list[str]:
    """The files that are not as they were made; those of the C that is compiled have to be named in the record."""
    needed = {f"{made.name}.c", f"{made.name}.h", "kernels.h", "test.c"}
    if odd := [name for name in made.files if Path(name).name != name] or sorted(needed - made.files.keys()):
        raise CompressError(f"{folder / RECORD} is damaged: files (={shown(odd[0])}) do not fit; {AGAIN}")
    return [name for name, digest in made.files.items() if not (folder / name).is_file() or sha256_of(folder / name) != digest]
