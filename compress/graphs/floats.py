"""A float32 graph that can be quantized: read and checked, its constants folded."""

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx

from ..errors import CompressError
from .edits import WEIGHTED, is_weighted
from .file import Level, image_inputs, open_session, opset_of, read_onnx
from .index import constant, edited, fresh, index

MINIMUM_IMAGES = 32  # below this the seen range depends more on the choice of images than on the network (pytorch/pytorch#45185)
_QUANTIZED = re.compile("QuantizeLinear|Integer$|^QLinear|^QGemm|^DequantizeLinear")


def read_float(source: Path) -> onnx.ModelProto:
    """Read an ONNX file that is not quantized yet.

    Raises:
        CompressError: for what ``read_onnx`` refuses; quantized already; an opset below 13.
    """
    model = read_onnx(source)
    quantized = sorted({node.op_type for node in model.graph.node if _QUANTIZED.search(node.op_type)})
    if quantized:
        raise CompressError(f'"{source}" is quantized already (it has {", ".join(quantized)}); quantize the float32 file it came from')
    opset = opset_of(model)
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
    """The graph without what can be computed beforehand: constants and batch norm folded as ONNX Runtime's basic optimisation does.

    Every node gets a name, and no inferred shapes are left. ONNX Runtime's own quant_pre_process is not used: it raises TypeError on
    graphs with CBAM gates, and logs a failed step instead of raising.

    Raises:
        CompressError: ONNX Runtime cannot load the model, which the error calls ``name``; it has no weights, or some that are not finite.
    """
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        file = Path(folder) / "folded.onnx"
        open_session(model, name, graph_optimization_level=Level.ORT_ENABLE_BASIC, optimized_model_filepath=str(file))
        folded = onnx.load(file)
    del folded.graph.value_info[:]  # stale shapes of transposed weights: "Inferred shape and existing shape differ"
    used = {node.domain for node in folded.graph.node} | {entry.domain for entry in model.opset_import}
    imports = [entry for entry in folded.opset_import if entry.domain in used]  # ONNX Runtime adds every domain that it knows
    del folded.opset_import[:]
    folded.opset_import.extend(imports)
    if not all(node.name for node in folded.graph.node):
        with edited(folded) as graph:
            for number, node in enumerate(graph):
                node.name = node.name or fresh(graph, f"{node.op_type}_{number}", of_node=True)
    weighted = [node for node in index(folded) if is_weighted(node)]
    if not weighted:
        raise CompressError(f"{name} has no {', '.join(WEIGHTED)} with constant float32 weights; there is nothing to quantize")
    for weight in dict.fromkeys(value for node in weighted for value in node.inputs):
        values = constant(weight)
        if weight is not None and values is not None and not np.isfinite(values).all():
            raise CompressError(f'{name}: weight "{weight.name}" holds values that are not finite; train the network again')
    return folded
