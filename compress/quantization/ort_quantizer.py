"""ONNX Runtime's quantizer, called on graphs in memory, and what it needs: a checked, folded float graph and types that fit the CPU.

Its own quantize_static calibrates anew for each call, and reads and writes files; a search over what to quantize makes a hundred graphs of
one calibration.

Refuses: a file that is quantized already or has nothing to quantize, half precision inside, inputs other than one
(B, C, H, W), calibration images of another shape or type, or fewer than 32, and weights that are not finite.

Source: onnxruntime.quantization; its guide on types and CPUs is the docstring of quantize_static.
"""

import contextlib
import io
import logging
import platform
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from ..errors import CompressError, first_line
from ..graphs.file import RUNTIME_ERRORS
from ..graphs.floats import nodes_after_weights, nodes_before_weights
from ..graphs.index import edited
from .qdq import image_scale, keep_outputs_float, pool_before_clipping, read_image_directly
from .records import Types, types_for

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
_TYPES = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}


def this_cpu() -> Types:
    """Those of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    return types_for(platform.machine(), flags)


def insert_qdq(
    model: onnx.ModelProto,
    graph: ir.Graph,
    ranges: Mapping[str, tuple[float, float]],
    nodes: Collection[str],
    types: Types,
    *,
    per_channel: bool,
) -> onnx.ModelProto:
    """A quantized copy of a float graph, its nodes in the order of computation.

    Args:
        model: as ``int8.prepare`` leaves it. graph: its, to look at.
        ranges: lowest and highest value of each float tensor that the nodes read or make.
        nodes: names of the nodes to quantize, at least one.
    """
    before = [value for node in nodes_before_weights(graph) for value in node.outputs] if types.activations == "uint8" else []
    images = {str(value.name): image for value in before if (image := image_scale(value)) is not None}
    limits = dict(ranges) | {name: (-zero * scale, (255 - zero) * scale) for name, (_, scale, zero) in images.items()}
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in limits.items()}
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    quantization.quant_utils.add_infer_metadata(copied)  # else the quantizer writes it to a file to infer its shapes
    quantizer = QDQQuantizer(
        copied,
        per_channel,
        types.reduce_range,
        _TYPES["int8"],
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
    with edited(quantized) as found:
        read_image_directly(found, {name: image for name, (image, _, _) in images.items()})
        pool_before_clipping(found)
        keep_outputs_float(found, FLOAT_OUTPUT, {node.name for node in nodes_after_weights(graph)})
    return quantized


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
