"""ONNX Runtime's quantizer, called on graphs in memory, and what it needs: a checked, folded float graph and types that fit the CPU.

Its own quantize_static calibrates anew for each call, and reads and writes files; a search over what to quantize makes a hundred graphs of
one calibration.

Refuses: a file that is quantized already or has nothing to quantize, an opset below 13 (no scale per channel), inputs other than one
(B, C, H, W), calibration images of another shape or type, or fewer than 32, and weights that are not finite.

Source: onnxruntime.quantization; its guide on types and CPUs is the docstring of quantize_static.
"""

import contextlib
import io
import logging
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from .errors import CompressError, first_line
from .graph import (
    WEIGHTED,
    fold_constants,
    image_scale,
    keep_outputs_float,
    nodes_after_weights,
    nodes_before_weights,
    pool_before_clipping,
    read_image_directly,
    rename_clashes,
    weighted_nodes,
)
from .onnxfile import RUNTIME_ERRORS, image_inputs, read_onnx

# The quantizer takes these too, but ONNX Runtime computes them as float32 between DequantizeLinear and QuantizeLinear: rounded for nothing.
_FLOAT_ONLY = {
    "BatchNormalization",
    "ConvTranspose",
    "CumSum",
    "EmbedLayerNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "TopK",
}
OPERATORS = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry} - _FLOAT_ONLY))
FLOAT_OUTPUT = ("Gemm", "MatMul")  # have int8 kernels that give float32; a convolution would fall back to float as a whole
MINIMUM_IMAGES = 32  # below this the seen range depends more on the choice of images than on the network (pytorch/pytorch#45185)
_QUANTIZED = re.compile("QuantizeLinear|Integer$|^QLinear|^QGemm|^DequantizeLinear")
_TYPES = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}


@dataclass(frozen=True, kw_only=True)
class Types:
    """Types of activations and weights, "uint8" or "int8"; ``reduce_range``: weights of 7 bits."""

    activations: str
    weights: str
    reduce_range: bool


def types_for(machine: str, flags: Collection[str]) -> Types:
    """What the 8-bit kernels of a CPU compute fast, and without overflow.

    x86: uint8 activations, as its instructions multiply unsigned by signed, and ONNX Runtime has no fast depthwise kernel for int8
    (measured: 2.6 times slower). With VNNI they add up in 32 bits. Without, or where the flags are unknown, two products are added in 16
    bits, where 2 * 255 * 127 does not fit; weights of 7 bits do (microsoft/onnxruntime#12072). ARM: int8 for both, which its kernels
    prefer, added up in 32 bits.

    Args:
        machine: as ``platform.machine()`` says it, such as "x86_64" or "aarch64".
        flags: as /proc/cpuinfo lists them; empty where unknown.
    """
    if machine.lower() in ("aarch64", "arm64"):
        return Types(activations="int8", weights="int8", reduce_range=False)
    return Types(activations="uint8", weights="int8", reduce_range=not any("vnni" in flag for flag in flags))


def this_cpu() -> Types:
    """``types_for`` the machine that this runs on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return types_for(platform.machine(), flags)


def read_float(source: Path) -> onnx.ModelProto:
    """Read an ONNX file that is not quantized yet.

    Raises:
        CompressError: for what ``read_onnx`` refuses; quantized already; an opset below 13.
    """
    model = read_onnx(source)
    quantized = sorted({node.op_type for node in model.graph.node if _QUANTIZED.search(node.op_type)})
    if quantized:
        raise CompressError(f'"{source}" is quantized already (it has {", ".join(quantized)}); quantize the float32 file it came from')
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    stored = next((entry.value for entry in model.metadata_props if entry.key == "quantization.mode"), None)
    if stored:
        raise CompressError(f'"{source}" is quantized already (its metadata says {stored}); quantize the float32 file it came from')
    if opset < 13:
        raise CompressError(f'"{source}" has opset {opset}, but quantization needs at least 13; export it again with a newer opset')
    return model


def check_images(model: onnx.ModelProto, images: np.ndarray) -> None:
    """Refuse images that the graph cannot be calibrated on."""
    entries = image_inputs(model)
    shapes = [tuple(dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim) for value in entries]
    if len(entries) != 1 or len(shapes[0]) != 4:
        raise CompressError(f"the graph's inputs {shapes} must be one of (B, C, H, W); other networks cannot be calibrated on images")
    if len(images) < MINIMUM_IMAGES:
        raise CompressError(
            f"calibration (={len(images)} images) must be at least {MINIMUM_IMAGES}; 256 to 1024 of the training images do well"
        )
    dtype = onnx.helper.tensor_dtype_to_np_dtype(entries[0].type.tensor_type.elem_type)
    fits = images.ndim == 4 and all(
        isinstance(want, str) or want == have for want, have in zip(shapes[0][1:], images.shape[1:], strict=True)
    )
    if images.dtype not in (dtype, np.uint8) or not fits:
        raise CompressError(
            f"calibration (={images.dtype} {images.shape}) must be {dtype} {('N', *shapes[0][1:])}, as the graph's input takes it"
        )


def fold(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The graph without what can be computed beforehand, its weights checked; ``name`` is what messages call it.

    ONNX Runtime's own quant_pre_process is not used: it raises TypeError on graphs with CBAM gates, and logs a failed step instead of
    raising.
    """
    folded = fold_constants(model, name)
    weighted = weighted_nodes(folded)
    if not weighted:
        raise CompressError(f"{name} has no {', '.join(WEIGHTED)} with constant float32 weights; there is nothing to quantize")
    used = {name for node in weighted for name in node.input}
    for weight in folded.graph.initializer:
        if weight.name in used and not np.isfinite(onnx.numpy_helper.to_array(weight)).all():
            raise CompressError(f'{name}: weight "{weight.name}" holds values that are not finite; train the network again')
    rename_clashes(folded)
    return folded


def insert_qdq(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], nodes: Collection[str], types: Types, *, per_channel: bool
) -> onnx.ModelProto:
    """A quantized copy of a float graph, its nodes in the order of computation.

    Args:
        model: as ``quantize.prepare`` leaves it.
        ranges: lowest and highest value of each float tensor that the nodes read or make.
        nodes: names of the nodes to quantize, at least one.
        types: of activations and weights.
        per_channel: one scale per output channel of a weight, else one per weight.
    """
    images = _image_tensors(model) if types.activations == "uint8" else {}
    limits = dict(ranges) | {name: (-zero * scale, (255 - zero) * scale) for name, (_, scale, zero) in images.items()}
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in limits.items()}
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    quantization.quant_utils.add_infer_metadata(copied)  # else the quantizer writes it to a file to infer its shapes
    quantizer = QDQQuantizer(
        copied,
        per_channel,
        types.reduce_range,
        _TYPES[types.weights],
        _TYPES[types.activations],
        TensorsData(quantization.CalibrationMethod.MinMax, data),
        sorted(nodes),
        [],
        list(OPERATORS),
        {},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized = quantizer.model.model
    del quantized.graph.value_info[:]
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    read_image_directly(quantized, {name: image for name, (image, _, _) in images.items()})
    pool_before_clipping(quantized)
    keep_outputs_float(quantized, FLOAT_OUTPUT, {node.name for node in nodes_after_weights(model)})
    return quantized


def _image_tensors(model: onnx.ModelProto) -> dict[str, tuple[str, float, int]]:
    """What lies before the first weights and is a scaled uint8 image."""
    found = {output: image_scale(model, output) for node in nodes_before_weights(model) for output in node.output}
    return {name: scale for name, scale in found.items() if scale is not None}


@contextlib.contextmanager
def held_back(name: str) -> Iterator[None]:
    """Around onnxruntime.quantization: what it prints, and logs to the root logger, is held back; what it trips over becomes one line.

    Raises:
        CompressError: instead of what it raises; ``name`` is what the message calls the graph.
    """

    def elsewhere(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root = logging.getLogger()
    root.addFilter(elsewhere)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (ValueError, TypeError, KeyError, RuntimeError, onnx.shape_inference.InferenceError, *RUNTIME_ERRORS) as error:
        raise CompressError(f"{name} holds something that onnxruntime.quantization cannot take ({first_line(error)})") from error
    finally:
        root.removeFilter(elsewhere)
