"""An ONNX classifier as one C file that needs nothing: no library, no allocation, no file, no written global.

::

    NAME.h      void NAME_run(const uint8_t *image, float *outputs, void *arena); const char *NAME_label(int index); sizes as macros
    NAME.c      the weights, and one call per layer with constant arguments
    kernels.h   small inlined functions, which the compiler specialises for those arguments

``image`` is one image as the graph takes it (B = 1; uint8, or float32 where the graph takes float32), ``outputs`` all outputs of the
graph one after the other as float32, ``arena`` ``NAME_ARENA_BYTES`` bytes of the caller's, aligned to 64, whose content does not matter.
So it is reentrant: two threads need two arenas. Compile with ``target.flags``.

Refuses, naming the node and before anything is written: operators, types and shapes that it does not know, more than one input.

Source: ONNX operators, onnx.ai/onnx/operators; the integers are those of QuantizeLinear and DequantizeLinear there.
"""

from dataclasses import dataclass
from pathlib import Path

import onnx

from .target import Target


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call: ``name`` of the ONNX node it was made for, ``kind`` such as "conv int8", ``macs`` per image, bytes of its ``weights`` in
    flash, and of the ``arena`` that is taken while it runs."""

    name: str
    kind: str
    macs: int
    weights: int
    arena: int


@dataclass(frozen=True, kw_only=True)
class Port:
    """What goes in or comes out: ``shape`` with B = 1, ``dtype`` "uint8" or "float32"."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Program:
    """``files``: name to text. ``arena_bytes``: of memory that the caller hands in; ``flash_bytes``: of all weights."""

    files: dict[str, str]
    arena_bytes: int
    flash_bytes: int
    layers: tuple[Layer, ...]
    input: Port
    outputs: tuple[Port, ...]


def generate(model: onnx.ModelProto | Path, *, name: str, target: Target) -> Program:
    """Write a graph as C.

    Args:
        model: a valid graph with one input (B, ...), B free or 1.
        name: of the files and functions, a C identifier.
        target: see ``target.py``.

    Raises:
        CompressError: for what the module refuses.
    """
    raise NotImplementedError
