"""Static quantization with types that do not depend on the machine that the tests run on, and of a file in one call."""

import platform
from pathlib import Path

import numpy as np
import pytest

from compress.quantization import int8
from compress.quantization.int8 import Prepared, quantize_prepared, write_quantized
from compress.quantization.records import Quantized, Setting, Types

VNNI = Types(activations="uint8", reduce_range=False)
OLD = Types(activations="uint8", reduce_range=True)
PLAIN = Setting()

# microsoft/onnxruntime#12072: without a dot product of bytes it adds products of 8 bits in 16, which saturate.
CPU = Path("/proc/cpuinfo")
exact_sums = pytest.mark.skipif(
    CPU.exists() and "vnni" not in CPU.read_text(encoding="utf-8") and platform.machine() not in ("aarch64", "arm64"),
    reason="ONNX Runtime's sums of 8-bit products saturate on this processor (no VNNI)",
)


def prepare(source: Path, images: np.ndarray, *, equalised: bool = False, types: Types = VNNI) -> Prepared:
    return int8.prepare(source, images, equalised=equalised, types=types)


def quantize_static(source: Path, target: Path, images: np.ndarray, setting: Setting = PLAIN, types: Types = VNNI) -> Quantized:
    prepared = prepare(source, images, types=types)
    return write_quantized(quantize_prepared(prepared, setting), prepared, setting, target)
