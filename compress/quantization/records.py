"""What quantization says of the files it makes, as artifacts keep it. Loads neither torch nor onnx, so that a board can read it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What became int8 and what stayed float: operator type to number of nodes; ``reasons`` says for a type why it stayed, where known."""

    operators: Mapping[str, int]
    left: Mapping[str, int]
    reasons: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What was stored small.

    ``weights``: by name, the signal to quantization noise ratio in dB, 10 log10 of the mean square of the weight over that of its error;
    None where nothing was lost. ``bytes_before``, ``bytes_after``: size of the file, external data included.
    """

    bits: str
    weights: Mapping[str, float | None]
    bytes_before: int
    bytes_after: int
