"""What all of the text shares: names, numbers as C has them, pointers into memory, and the weights in flash."""

import math

import numpy as np
from numpy.typing import NDArray

from .expressions import Tensor
from .plan import packed

_TYPES = {np.dtype(np.float32): "float", np.dtype(np.int8): "int8_t", np.dtype(np.int32): "int32_t"}


def literal(value: float) -> str:
    """A float32 that C reads back as it is."""
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    told = f"{float(np.float32(value)):.9g}"
    return f"{told}f" if any(mark in told for mark in ".e") else f"{told}.0f"


class Text:
    """Of one program. ``flash``: bytes of weights so far."""

    def __init__(self, name: str, lanes: int) -> None:
        self.name, self.lanes = name, lanes
        self.flash = 0
        self.weights: list[str] = []
        self._names: dict[bytes, str] = {}
        self._count = 0

    def fresh(self, letter: str) -> str:
        """A name that nothing has."""
        self._count += 1
        return f"{letter}{self._count}"

    def array(self, values: NDArray[np.generic]) -> str:
        """The name of a constant; the same numbers are kept once."""
        key = values.dtype.str.encode() + values.tobytes()
        if key not in self._names:
            name = self._names[key] = f"{self.name}_w{len(self._names)}"
            numbers = ", ".join(map(literal, values.ravel().tolist()) if values.dtype == np.float32 else map(str, values.ravel().tolist()))
            self.weights.append(f"static const {_TYPES[values.dtype]} {name}[{values.size}] K_ALIGN = {{{numbers}}};")
            self.flash += values.nbytes
        return self._names[key]

    def biases(self, values: NDArray[np.int32], sums: NDArray[np.int32]) -> str:
        """The name of biases, which some processors need with the sums of the weights."""
        key = b"bias" + values.tobytes() + sums.tobytes()
        if key not in self._names:
            name = self._names[key] = f"{self.name}_w{len(self._names)}"
            numbers = ", ".join(f"K_BIAS({value}, {one})" for value, one in zip(values.tolist(), sums.tolist(), strict=True))
            self.weights.append(f"static const int32_t {name}[{values.size}] K_ALIGN = {{{numbers}}};")
            self.flash += values.nbytes
        return self._names[key]

    def pointer(self, name: str, tensor: Tensor, start: int, *, write: bool = False) -> str:
        """The declaration of a pointer to a number of a tensor."""
        whole, bytes_ = tensor.whole, tensor.dtype == "u8"
        kind = f"{'' if write else 'const '}{'uint8_t' if bytes_ else 'k_f32'}"
        if whole.place == "flash":
            return f"const k_f32 *{name} = {self.array(packed(whole, self.lanes))} + {start};"
        if whole.place == "arena":
            offset = whole.offset + start * (1 if bytes_ else 4)
            return f"{kind} *{name} = {f'arena + {offset}' if bytes_ else f'({kind} *)(void *)(arena + {offset})'};"
        return f"{kind} *{name} = {whole.place} + {start + whole.offset};"
