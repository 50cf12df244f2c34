"""What lies beside generated C, filled into the files of ``templates``; ``@name@`` there is the network's name, ``@NAME@`` its macros'."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...benchmarks.runtimes import PROBABILITIES
from ...errors import CompressError, shown
from .compilers import CROSS
from .record import Made, Port

TEMPLATES = Path(__file__).parent / "templates"
PICTURES = {1: ("pgm", "PGM", "5"), 3: ("ppm", "PPM", "6")}  # channels: suffix, kind, digit of its first two characters
ON_BOARDS = "--specs=rdimon.specs"  # what is printed comes out through the debugger


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Images as the graph takes them, (N, ...), what is expected of its first output, (N, K), and how far that may be off."""

    images: NDArray[np.uint8] | NDArray[np.float32]
    expected: NDArray[np.float32]
    tolerance: float
    told: str


@dataclass(frozen=True, kw_only=True)
class Taking:
    """How pixels go in and answers come out: channels last or first; floats are ``(pixel / 255 - mean) / std``; the first output is
    ``classes``, as ``probable`` says probabilities and else logits."""

    last: bool
    mean: Sequence[float]
    std: Sequence[float]
    classes: bool
    probable: bool


def texts(made: Made, tests: Tests, taking: Taking, slow: str = "") -> dict[str, str]:
    """The files besides those of the network and ``c.json``; an example where there are pictures that it can read.

    ``slow``: what to do where the target may compute int8 more slowly than float32.
    """
    example = _example(made, taking)
    outputs = "; ".join(f"{_named(one)} float" for one in made.outputs)
    values = {
        "programs": "test example" if example else "test",
        "target": made.target,
        "flags": " ".join(made.processor.flags),
        "cc": CROSS.get(made.processor.family, "cc"),  # it may be another machine than this one
        "ldflags": ON_BOARDS if made.processor.family == "cortex-m" else "",
        "images": tests.told,
        "count": str(len(tests.images)),
        "tolerance": number(tests.tolerance),
        "pixels": rows(tests.images),
        "expected": rows(tests.expected),
        "flash": f"{made.flash_bytes:,}",
        "arena": f"{made.arena_bytes:,}",
        "slow": f"**{made.target} has no dot product of int8, so float32 may be faster there.** To know, {slow}.\n\n" if slow else "",
        "image": f"{_named(made.input)} {made.input.dtype}",
        "outputs": f"{outputs}, one after the other" if len(made.outputs) > 1 else outputs,
        "made": f"Made from {made.origin}, SHA-256 {made.sha256[:12]}...",
        "example": f"| `example.c` | `./example picture.{example['suffix']}`: label and probability |\n" if example else "",
        "run": ", such as `qemu-aarch64 -L /usr/aarch64-linux-gnu`" if made.processor.family == "aarch64" else "",
    }
    names = ["test.c", "Makefile", "CMakeLists.txt", "README.md", *(["example.c"] if example else [])]
    return {name: filled(name, {"name": made.name, "NAME": made.name.upper(), **values, **example}) for name in names}


def filled(name: str, values: Mapping[str, str]) -> str:
    """The template with its names replaced; what is put in is not looked at again."""
    return re.sub(r"@(\w+)@", lambda found: values[found[1]], (TEMPLATES / name).read_text(encoding="utf-8"))


def rows(values: NDArray[np.generic]) -> str:
    """Arrays as initialisers, one image in braces, 24 numbers in a line."""

    def row(one: NDArray[np.generic]) -> str:
        texts = [str(int(value)) if one.dtype == np.uint8 else number(float(value)) for value in one.ravel()]
        return ",\n   ".join(", ".join(texts[at : at + 24]) for at in range(0, len(texts), 24))

    return ",\n".join(f"  {{{row(one)}}}" for one in values)


def number(value: float) -> str:
    """A float32 as C writes it, with all its digits."""
    if not np.isfinite(value):
        raise CompressError("the answer to a test image holds NaN or infinity; check the network's training or calibration")
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _named(port: Port) -> str:
    return f"`{shown(port.name).replace('`', '?')}` {'x'.join(map(str, port.shape))}"


def _example(made: Made, taking: Taking) -> dict[str, str]:
    """What ``example.c`` has of its own; nothing where pictures do not fit, or the answer is no list of classes."""
    if not taking.classes:
        return {}
    sizes = made.input.shape[1:]
    channels, height, width = (sizes[-1], *sizes[:2]) if taking.last else sizes
    outputs = made.outputs[0].shape
    if channels not in PICTURES or len([size for size in outputs if size > 1]) > 1:
        return {}
    suffix, kind, digit = PICTURES[channels]
    floats = made.input.dtype == "float32"
    lists = {name: ", ".join(map(number, np.broadcast_to(np.asarray(given, np.float32), channels))) for name, given in
             (("mean", taking.mean), ("std", taking.std))}  # fmt: skip
    arrays = "".join(f"static const float {name}[CHANNELS] = {{{values}}};\n" for name, values in lists.items())
    sums = "  float sum = 0.0f;\n  for (int i = 0; i < @_OUTPUT0_SIZE; i++) sum += expf(answer[i] - answer[best]);\n"
    softmax = sums.replace("@", made.name.upper()) + "  const float probability = 1.0f / sum;"
    starts = [place for place, one in enumerate(made.outputs) if place and one.name == PROBABILITIES]
    direct = "answer[best]" if taking.probable else f"outputs[{made.name.upper()}_OUTPUT{starts[0]}_START + best]" if starts else ""
    return {
        "suffix": suffix, "kind": kind, "digit": digit, "channels": str(channels), "height": str(height), "width": str(width),
        "normalised": arrays if floats else "",
        "place": "i * CHANNELS + c" if taking.last else "c * PIXELS + i",
        "pixel": "((float)byte / 255.0f - mean[c]) / std[c]" if floats else f"({made.name}_pixel)byte",
        "probability": f"  const float probability = {direct};" if direct else softmax,
    }  # fmt: skip
