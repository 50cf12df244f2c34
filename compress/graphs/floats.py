"""A float32 graph that can be quantized: read and checked, its constants folded, and where its weights stand.

Works on the main graph; nodes inside the branches of If, Loop and Scan are left alone.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ..errors import CompressError, first_line
from .file import ALIKE, RUNTIME_ERRORS, Level, image_inputs, note, open_session, opset_of, read_onnx
from .index import add_constant, constant, edited, fresh, index, is_a, make, reached, settings, sweep
from .records import MINIMUM_IMAGES

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OPSET = 13
HALF_ALIKE = 0.02  # of the largest number: float16 rounds by 0.05% behind every operator
HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_CONVERTER_ERRORS = (
    onnx.version_converter.ConvertError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError,
    IndexError,
)  # fmt: skip
_QUANTIZED = re.compile("QuantizeLinear|Integer$|^QLinear|^QGemm|^DequantizeLinear")


def read_float(source: Path) -> onnx.ModelProto:
    """Read an ONNX file and make it float, see :func:`as_float`."""
    return as_float(read_onnx(source), source)


def as_float(model: onnx.ModelProto, source: Path, shape: Sequence[int] = ()) -> onnx.ModelProto:
    """The model of the file ``source``, not quantized yet, in float32 and with the operators of opset 13 at least.

    What was half precision is float32, and an opset below 13 is converted; that is proved to answer as before on noise, of the ``shape``
    of its input without the batch where the file leaves that open.

    Raises:
        CompressError: it is quantized already, or cannot be converted.
    """
    kinds = sorted({node.op_type for node in model.graph.node if _QUANTIZED.search(node.op_type)})
    noted = next((entry.value for entry in model.metadata_props if entry.key == "quantization.mode"), None)
    if kinds or noted:
        told = f"it has {', '.join(kinds)}" if kinds else f"its metadata says {noted}"
        raise CompressError(f'"{source}" is quantized already ({told}); quantize the float32 file it came from')
    made, old = onnx.ModelProto(), opset_of(model)
    made.CopyFrom(model)
    half = _widen(made)
    if not half and old >= OPSET:
        return model
    what = " and ".join(["half precision"] * half + [f"opset {old}"] * (old < OPSET))
    told = f'"{source}" has {what}, but float32 and opset {OPSET} are needed'
    again = "export it again, in float32 and with a newer opset"
    try:
        if old < OPSET:
            made = _newer(made, old)
        onnx.checker.check_model(made, full_check=True)
        alike = _answer_alike(model, made, half, shape)
    except (CompressError, *_CONVERTER_ERRORS, *RUNTIME_ERRORS) as error:
        raise CompressError(f"{told}, to which it cannot be converted ({first_line(error)}); {again}") from error
    if not alike:
        raise CompressError(f"{told}, and converted to that it computes something else; {again}")
    return made


def allowed(numbers: NDArray[Any], half: bool) -> float:
    """How far others may be from these, of which ``half`` says that they are, or come from, float16, whose smallest are lost."""
    largest = float(np.abs(numbers).max(initial=0))
    return HALF_ALIKE * largest + float(np.finfo(np.float16).tiny) if half else ALIKE * largest


def _widen(message: Message) -> bool:
    """Make float32 of all numbers, types and casts in half precision inside a message, in place; whether there were any."""
    found = False
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                found |= _widen(part)
    if isinstance(message, onnx.TensorProto) and message.data_type in HALF:
        message.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(message).astype(np.float32), message.name))
    elif isinstance(message, onnx.TypeProto.Tensor) and message.elem_type in HALF:
        message.elem_type = onnx.TensorProto.FLOAT
    elif isinstance(message, onnx.AttributeProto) and message.name in ("to", "dtype") and message.i in HALF:
        message.i = onnx.TensorProto.FLOAT
    else:
        return found
    return True


def _newer(model: onnx.ModelProto, old: int) -> onnx.ModelProto:
    """The model with the operators of opset 13, whose quantizer has a scale per channel."""
    # With the shapes known, a softmax of (B, K) stays one node; without, it is flattened as it was defined then.
    made = onnx.version_converter.convert_version(onnx.shape_inference.infer_shapes(model), OPSET)
    del made.graph.value_info[:]
    note(made, model, {})
    if old < 11:  # the converter leaves these out, and their defaults are others since
        for node in made.graph.node:
            if node.op_type == "Resize":
                modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                node.attribute.extend(onnx.helper.make_attribute(name, mode) for name, mode in modes.items())
    return made


def _answer_alike(model: onnx.ModelProto, made: onnx.ModelProto, half: bool, shape: Sequence[int]) -> bool:
    """Whether both answer the same on noise in 0..255 and in [0, 1], where the first one's numbers are finite."""
    before, after = (open_session(one, "it") for one in (model, made))
    random, finite = np.random.default_rng(0), False
    for scale in (1, 255):
        feeds: list[dict[str, Any]] = [{}, {}]
        for entries in zip(image_inputs(model), image_inputs(made), strict=True):
            dims = entries[0].type.tensor_type.shape.dim
            usual = (2, *shape) if len(shape) == len(dims) - 1 else (2, *[32] * len(dims))
            noise = random.integers(0, 256, [dim.dim_value or size for dim, size in zip(dims, usual, strict=False)])
            for feed, entry in zip(feeds, entries, strict=True):
                dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
                feed[entry.name] = (noise / scale).astype(dtype) if dtype.kind == "f" else noise.astype(dtype)
        for one, other in zip(before.run(None, feeds[0]), after.run(None, feeds[1]), strict=True):
            if np.isfinite(one).all():
                finite = True
                if one.shape != other.shape or not np.allclose(one, other, rtol=0, atol=allowed(one, half)):
                    return False
    return finite


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
        OSError: there is no room for it among the system's temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        file = Path(folder) / "folded.onnx"
        file.write_bytes(model.SerializeToString())  # of a disk without room ONNX Runtime would say that the model is damaged
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


def is_weighted(node: ir.Node) -> bool:
    """Whether it is a convolution or matrix product that has a constant float32 factor."""
    factors = [value.const_value for value in node.inputs[:2] if value is not None and value.const_value is not None]
    return is_a(node, *WEIGHTED) and any(factor.dtype == ir.DataType.FLOAT for factor in factors)


def nodes_before_weights(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that no weight has reached yet, such as the scaling of the image; a graph lists its nodes in the order of computation."""
    behind = reached(graph, is_weighted, ir.Node.predecessors)
    return [node for node in graph if node not in behind]


def nodes_after_weights(graph: ir.Graph) -> list[ir.Node]:
    """The nodes that lead to no weights any more: the end of the network, and outputs made from the logits, such as probabilities."""
    leading = reached(reversed(graph), is_weighted, ir.Node.successors)
    return [node for node in graph if node not in leading]


def split_gemms(model: onnx.ModelProto) -> None:
    """Turn each Gemm that is a linear layer with constant weights into MatMul and Add, in place.

    ONNX Runtime's quantizer does so too, but transposes a weight once per Gemm that uses it: twice for CBAM's shared MLP.
    """
    transposed: dict[ir.Value, ir.Value] = {}
    with edited(model) as graph:
        for gemm in [node for node in graph if is_a(node, "Gemm")]:
            own, (x, weight, *biases), result = settings(gemm), gemm.inputs, gemm.outputs[0]
            values = constant(weight)
            if weight is None or values is None or own.get("alpha", 1) != 1 or own.get("beta", 1) != 1 or own.get("transA", 0):
                continue
            if own.get("transB", 0):
                if weight not in transposed:
                    transposed[weight] = add_constant(graph, f"{weight.name}_transposed", np.ascontiguousarray(values.T))
                weight = transposed[weight]
            bias = [value for value in biases if value is not None]
            product = make(graph, "MatMul", [x, weight], f"{result.name}_product" if bias else result, f"{result.name}_MatMul")
            steps = [product, make(graph, "Add", [*product.outputs, *bias], result)] if bias else [product]
            ir.convenience.replace_nodes_and_values(graph, gemm, [gemm], steps, [result], steps[-1].outputs)
        sweep(graph)
