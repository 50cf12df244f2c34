"""What a network takes on a board before any of it is written: flash for its weights and RAM for its arena, as the C for a target is
planned.

Code comes on top of the weights, and the caller's image and answers on top of the arena. In int8 means everything that static quantization
takes; which range it finds changes no size, so images of noise calibrate.
"""

from pathlib import Path
from typing import Literal

import numpy as np

from ...benchmarks.limits import Needs
from ...codegen.target import target_of
from ...graphs.records import MINIMUM_IMAGES

Precision = Literal["int8", "float32"]


def needs_of(file: Path, target: str) -> Needs:
    """What a graph needs as it is. Raises CompressError where it cannot be written as C, by the name of the node."""
    from ...codegen.program import generate

    program = generate(file, name="net", target=target_of(target))
    return Needs(ram=program.arena_bytes, flash=program.flash_bytes)


def needs_in(file: Path, target: str, precision: Precision, shape: tuple[int, int, int]) -> Needs:
    """What the float32 graph in ``file``, which takes images of ``shape`` (C, H, W), needs in float32 or in int8."""
    if precision == "float32":
        return needs_of(file, target)
    from ...codegen.program import generate
    from ...quantization.int8 import prepare, quantize_prepared
    from ...quantization.records import Setting

    noise = np.random.default_rng(0).integers(0, 256, (MINIMUM_IMAGES, *shape), np.uint8)
    quantized = quantize_prepared(prepare(file, noise), Setting(), None)
    program = generate(quantized, name="net", target=target_of(target))
    return Needs(ram=program.arena_bytes, flash=program.flash_bytes)
