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

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..errors import shown
from .calls import Call, Contract
from .emit import body, margins
from .expressions import Tensor
from .nodes import lower
from .plan import place
from .read import CodegenError, Graph, read
from .target import Target
from .text import Text


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
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise CodegenError(f'name (="{shown(name)}") must be a C identifier: letters, digits and _, no digit first')
    graph = read(model)
    calls, image, outputs = lower(graph)
    text = Text(name, target.lanes)
    arena, lives = place(calls, target.lanes)
    start = 0
    for output in outputs:
        output.offset, start = start, start + math.prod(output.shape)
    functions, layers, begun = [], [], set[Tensor]()
    for number, (call, bytes_) in enumerate(zip(calls, lives, strict=True)):
        before = text.flash
        new = dict.fromkeys(tensor.whole for tensor in call.writes if tensor.whole not in begun)
        around = [line for whole in new for line in margins(whole, target.lanes)]
        begun.update(new)
        lines = body(text, call)
        functions.append(_function(f"{name}_{number}", call, [*lines, *around]))
        layers.append(Layer(name=call.name, kind=_kind(call), macs=call.macs(), weights=text.flash - before, arena=bytes_))
    port = Port(name=graph.input, shape=image.shape, dtype="uint8" if image.dtype == "u8" else "float32")
    ports = tuple(Port(name=one.name, shape=one.shape, dtype="float32") for one in outputs)
    files = {
        f"{name}.h": _header(name, graph, port, ports, arena, text.flash),
        f"{name}.c": _source(name, graph.labels, text, functions, calls, target),
        "kernels.h": (Path(__file__).parent / "kernels.h").read_text(encoding="utf-8"),
    }
    return Program(files=files, arena_bytes=arena, flash_bytes=text.flash, layers=tuple(layers), input=port, outputs=ports)


def _kind(call: Call) -> str:
    if isinstance(call, Contract):
        shape = "matrix" if call.matrix else "depthwise" if call.depthwise() else "conv"
        return shape + (" int8" if call.scale is not None else "")
    return type(call).__name__.lower()


def _needs(call: Call) -> list[str]:
    """Which of the caller's memory it takes."""
    places = {tensor.whole.place for tensor in (*call.reads(), *call.writes)}
    return [one for one in ("image", "outputs", "arena") if one in places]


def _type(call: Call, which: str) -> str:
    if which == "arena":
        return "uint8_t *arena"
    if which == "outputs":
        return "k_f32 *outputs"
    byte = any(tensor.dtype == "u8" for tensor in call.reads() if tensor.whole.place == "image")
    return f"const {'uint8_t' if byte else 'k_f32'} *image"


def _function(name: str, call: Call, lines: Sequence[str]) -> str:
    arguments = ", ".join(_type(call, one) for one in _needs(call))
    inner = "\n".join(f"  {line}" for line in lines)
    return f"/* {_kind(call)}: {_comment(call.name)} */\nK_LAYER void {name}({arguments}) {{\n{inner}\n}}"


def _comment(text: str) -> str:
    return shown(text).replace("*/", "* /").replace("/*", "/ *").encode("ascii", "replace").decode().replace("??", "? ?")


def _string(text: str) -> str:
    """A C string of UTF-8, escapes as three octal digits so that no digit behind one joins it."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode()) + '"'


def _header(name: str, graph: Graph, port: Port, ports: Sequence[Port], arena: int, flash: int) -> str:
    upper, pixel = name.upper(), "uint8_t" if port.dtype == "uint8" else "float"
    macros = [
        ("ARENA_BYTES", arena), ("FLASH_BYTES", flash), ("INPUT_SIZE", math.prod(port.shape)),
        ("OUTPUTS", sum(math.prod(one.shape) for one in ports)),
        ("CLASSES", ports[0].shape[-1] if ports[0].shape else 1), *((f"INPUT_DIM{axis}", size) for axis, size in enumerate(port.shape)),
    ]  # fmt: skip
    start = 0
    for number, one in enumerate(ports):
        macros += [(f"OUTPUT{number}_START", start), (f"OUTPUT{number}_SIZE", math.prod(one.shape))]
        start += math.prod(one.shape)
    defines = "\n".join(f"#define {upper}_{key} {value}" for key, value in macros)
    told = "; ".join(f"{_comment(one.name)} {list(one.shape)}" for one in ports)
    return f"""/* One image {list(port.shape)} in, as it is in memory; out: {told}, float, one after the other.
 * The arena is {upper}_ARENA_BYTES bytes of the caller's, aligned to 64; what is in it does not matter.
 * Reentrant: an arena for each thread. */
#ifndef {upper}_H
#define {upper}_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {{
#endif
{defines}
typedef {pixel} {name}_pixel;
void {name}_run(const {name}_pixel *image, float *outputs, void *arena);
const char *{name}_label(int index); /* of the class, "" for one that there is not */
#ifdef __cplusplus
}}
#endif
#endif
"""


def _source(name: str, labels: Sequence[str], text: Text, functions: Sequence[str], calls: Sequence[Call], target: Target) -> str:
    steps = "\n".join(f"  {name}_{number}({', '.join(_needs(call))});" for number, call in enumerate(calls))
    listed = ", ".join(_string(one) for one in labels) or '""'
    return "\n\n".join(
        [
            f"/* For {target.name}; compile with: -std=c11 -O3 {' '.join(target.flags)} */",
            f'#include "{name}.h"\n#define K_LANES {text.lanes}\n#include "kernels.h"',
            *text.weights,
            *functions,
            f"void {name}_run(const {name}_pixel *image, float *outputs, void *memory) {{\n"
            f"  uint8_t *arena = (uint8_t *)memory;\n  (void)image;\n  (void)arena;\n{steps}\n}}",
            f"const char *{name}_label(int index) {{\n  static const char *const labels[] = {{{listed}}};\n"
            f'  return index >= 0 && index < {max(1, len(labels))} ? labels[index] : "";\n}}\n',
        ]
    )
