"""Static quantization of a file in one call, with types that do not depend on the machine that the tests run on."""

from pathlib import Path

import numpy as np

from compress.quantization.int8 import StaticConfig, prepare, quantize_prepared, write_quantized
from compress.quantization.ort_quantizer import Types
from compress.quantization.records import Quantized

VNNI = Types(activations="uint8", weights="int8", reduce_range=False)
OLD = Types(activations="uint8", weights="int8", reduce_range=True)


def quantize_static(source: Path, target: Path, images: np.ndarray, config: StaticConfig) -> Quantized:
    prepared = prepare(source, images)
    return write_quantized(quantize_prepared(prepared, config), prepared, config, target)
