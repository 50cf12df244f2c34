"""A float32 graph that can be quantized: read and checked, its constants folded, and where its weights stand.

Works on the main graph; nodes inside the branches of If, Loop and Scan are left alone.
"""

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir as ir

from ..errors import CompressError, first_line
from .file import ALIKE, RUNTIME_ERRORS, Level, image_inputs, note, open_session, opset_of, read_onnx
from .index import add_constant, constant, edited, fresh, index, is_a, make, reached, settings, sweep
from .records import MINIMUM_IMAGES

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OPSET = 13
_HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_CONVERTER_ERRORS = (
    onnx.version_converter.ConvertError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError,
    IndexError,
)  # fmt: skip
_QUANTIZED = re.compile("QuantizeLinear|Integer$|^QLinear|^QGemm|^DequantizeLinear")


def read_float(source: Path) -> onnx.ModelProto:
    """Read an ONNX file that is not quantized yet.

    One of an opset below 13 is converted to that, and proved to answer as before on noise.

    Raises:
        CompressError: for what ``read_onnx`` refuses; quantized already; half precision inside; an old opset that cannot be converted.
    """
    model = read_onnx(source)
    kinds = sorted({node.op_type for node in model.graph.node if _QUANTIZED.search(node.op_type)})
    noted = next((entry.value for entry in model.metadata_props if entry.key == "quantization.mode"), None)
    if kinds or noted:
        told = f"it has {', '.join(kinds)}" if kinds else f"its metadata says {noted}"
        raise CompressError(f'"{source}" is quantized already ({told}); quantize the float32 file it came from')
    for node in model.graph.node:
        if any((entry.name == "to" and entry.i in _HALF) or entry.t.data_type in _HALF for entry in node.attribute):
            raise CompressError(f'"{source}" computes in half precision from {node.op_type} "{node.output[0]}" on; give the float32 file')
    if half := next((weight.name for weight in model.graph.initializer if weight.data_type in _HALF), None):
        raise CompressError(f'"{source}" has half precision weights such as "{half}"; give the float32 file that it came from')
    return model if opset_of(model) >= OPSET else _converted(model, source)


def _converted(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    """The model with the operators of opset 13, whose quantizer has a scale per channel; open sizes are tried as 2 and 32."""
    told = f'"{source}" has opset {opset_of(model)}, but quantization needs at least {OPSET}'
    again = "export it again with a newer opset"
    try:
        # With the shapes known, a softmax of (B, K) stays one node; without, it is flattened as it was defined then.
        made = onnx.version_converter.convert_version(onnx.shape_inference.infer_shapes(model), OPSET)
        del made.graph.value_info[:]
        note(made, model, {})
        onnx.checker.check_model(made, full_check=True)
        random, feeds = np.random.default_rng(0), {}
        for entry in image_inputs(model):
            kind = entry.type.tensor_type
            shape = [dim.dim_value or (32 if place else 2) for place, dim in enumerate(kind.shape.dim)]
            feeds[entry.name] = random.integers(0, 256, shape).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        before, after = (open_session(one, f'"{source}"').run(None, feeds) for one in (model, made))
    except (*_CONVERTER_ERRORS, *RUNTIME_ERRORS) as error:
        raise CompressError(f"{told}, to which it cannot be converted ({first_line(error)}); {again}") from error
    if not all(np.allclose(one, other, rtol=0, atol=ALIKE * np.abs(one).max()) for one, other in zip(before, after, strict=True)):
        raise CompressError(f"{told}, and converted to that it computes something else; {again}")
    return made


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
