"""Post-training quantization of an ONNX file: a float32 graph becomes one that computes in int8.

Dynamic: the weights of MatMul and Gemm become int8, and the scale of an activation is found anew for each inference. Convolutions stay
float, because their dynamic form (ConvInteger) fails to load (microsoft/onnxruntime#12558).

Static: QDQ. Every quantized tensor gets a QuantizeLinear and a DequantizeLinear whose scale was found beforehand, on calibration images.
By hand: a tensor seen between -1 and 4 gets scale (4 - -1) / 255 = 0.0196 and zero point round(1 / 0.0196) = 51, so -1 is stored as 0,
0 as 51, 4 as 255. Weights are int8, symmetric, with one scale per output channel; activations are uint8, affine. What lies before the
first weights (scaling and normalisation of the image) stays float, and so do the logits: in 256 steps the two best of them tied for 0.8%
of the images, and the answer was a matter of order.

Refuses: a file that is quantized already or has nothing to quantize, an opset below 13 (no scale per channel), inputs other than one
(B, C, H, W), calibration images of another shape or type, or fewer than 32, and weights that are not finite.

Source: Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342; onnxruntime.quantization does the work.
"""

import contextlib
import hashlib
import io
import logging
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime import quantization
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from .errors import CompressError, first_line
from .graph import WEIGHTED, fold_constants, keep_outputs_float, nodes_before_weights, split_gemms, weighted_nodes
from .onnxfile import RUNTIME_ERRORS, read_onnx, write_onnx

METHODS = {
    "minmax": quantization.CalibrationMethod.MinMax,
    "percentile": quantization.CalibrationMethod.Percentile,
    "entropy": quantization.CalibrationMethod.Entropy,
}
OPERATORS = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))  # what ONNX Runtime's quantizer takes when nobody chooses
MINIMUM_IMAGES = 32  # below this the seen range depends more on the choice of images than on the network (pytorch/pytorch#45185)
_FLOAT_OUTPUT = ("Gemm", "MatMul")  # have int8 kernels that give float32; a convolution would fall back to float as a whole
_QUANTIZED = re.compile("QuantizeLinear|Integer$|^QLinear|^QGemm|^DequantizeLinear")
_WHY_NOT_DYNAMIC = {
    "Conv": "its dynamic int8 form, ConvInteger, fails to load in ONNX Runtime",
    "Gemm": "its weight is not constant, or it scales or transposes more than a linear layer does",
    "MatMul": "neither factor is a constant weight",
}
_BATCH = 32  # images per calibration step; percentile and entropy hold every activation of one step (microsoft/onnxruntime#10503)


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """How static quantization finds its scales, and which operators it takes.

    ``method``: the range of an activation is all that was seen ("minmax"), all but the outermost 0.001% ("percentile"), or the one that
    loses least information ("entropy"). ``per_channel``: one scale per output channel of a weight, else one per weight; neither is always
    better (microsoft/onnxruntime#11415). ``reduce_range``: 7 bits per weight, so that the 16-bit sums of a CPU without VNNI do not
    saturate (microsoft/onnxruntime#12072); None looks at the flags of this machine. ``operators``: the ONNX operator types to quantize,
    None for all that ONNX Runtime can.
    """

    method: str = "minmax"
    per_channel: bool = True
    reduce_range: bool | None = None
    operators: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise CompressError(f'method (="{self.method}") must be one of {", ".join(METHODS)}; minmax is the plain one')
        if self.operators is not None:
            object.__setattr__(self, "operators", tuple(self.operators))
            unknown = sorted(set(self.operators) - set(OPERATORS))
            if unknown or not self.operators:
                raise CompressError(
                    f"operators (={self.operators}) must be operator types that ONNX Runtime quantizes, such as Conv, Gemm, MatMul, Add; "
                    f"{', '.join(unknown) or 'none'} is not"
                )


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What became int8 and what stayed float: operator type to number of nodes; ``reasons`` says for a type why it stayed, where known."""

    operators: dict[str, int]
    left: dict[str, int]
    reasons: dict[str, str]


def quantize_dynamic(source: Path, target: Path) -> Quantized:
    """Make the weights of MatMul and Gemm int8, one scale per output channel; a Gemm becomes a MatMul and an Add, and is counted as MatMul.

    Args:
        source: a float32 ONNX file.
        target: the file to write; replaced at once or not at all. ``source``'s metadata is kept, ``quantization.*`` added.

    Raises:
        CompressError: for what the module refuses; a graph without MatMul and Gemm on constant weights.
    """
    model = _read(source)
    reduce_range = _saturates()
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        prepared = _prepare(model, source, Path(folder), dynamic=True)
        with _quantizer(source):
            quantization.quantize_dynamic(
                Path(folder) / "prepared.onnx",
                Path(folder) / "int8.onnx",
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=quantization.QuantType.QInt8,
            )
        quantized = onnx.load(Path(folder) / "int8.onnx")
    count = sum(node.op_type == "MatMulInteger" for node in quantized.graph.node)
    if not count:
        raise CompressError(
            f'"{source}" has no MatMul or Gemm with constant weights, which is all that dynamic quantization takes; use static quantization'
        )
    _finish(quantized, model, {"mode": "dynamic", "per_channel": "true", "reduce_range": str(reduce_range).lower()}, target)
    left = Counter(node.op_type for node in prepared.graph.node if node.op_type != "MatMul")
    left.update(node.op_type for node in quantized.graph.node if node.op_type == "MatMul")
    reasons = {kind: why for kind, why in _WHY_NOT_DYNAMIC.items() if kind in left}
    return Quantized(operators={"MatMul": count}, left=dict(sorted(left.items())), reasons=reasons)


def quantize_static(source: Path, target: Path, calibration: np.ndarray, config: StaticConfig) -> Quantized:
    """Make weights and activations int8, with scales found on calibration images.

    Args:
        source: a float32 ONNX file with one input (B, C, H, W).
        target: the file to write; replaced at once or not at all. ``source``'s metadata is kept, ``quantization.*`` added.
        calibration: at least 32 images (N, C, H, W) of the graph's input type: uint8 where ``export_onnx`` made the file. Take them from
            the training data, chosen by a seed; they are read in batches.
        config: how to find the scales, and which operators to take.

    Raises:
        CompressError: for what the module refuses.
    """
    model = _read(source)
    batches = _Batches(_image_input(model, calibration), calibration)
    reduce_range = _saturates() if config.reduce_range is None else config.reduce_range
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        prepared = _prepare(model, source, Path(folder))
        with _quantizer(source):
            quantization.quantize_static(
                Path(folder) / "prepared.onnx",
                Path(folder) / "int8.onnx",
                batches,
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(config.operators or OPERATORS),
                per_channel=config.per_channel,
                reduce_range=reduce_range,
                activation_type=quantization.QuantType.QUInt8,  # QInt8 has no fast depthwise kernel on x86: 2.6 times slower on k49
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=[node.name for node in nodes_before_weights(prepared)],
                calibrate_method=METHODS[config.method],
                extra_options={"CalibStridedMinMax": 1},  # one batch at a time, for every method despite its name
            )
        quantized = onnx.load(Path(folder) / "int8.onnx")
    keep_outputs_float(quantized, _FLOAT_OUTPUT)
    report = _report(quantized, config)
    if not report.operators:
        raise CompressError(f'"{source}" has no operators of the types {config.operators}; None takes all that ONNX Runtime can quantize')
    facts = {
        "mode": "static",
        "method": config.method,
        "per_channel": str(config.per_channel).lower(),
        "reduce_range": str(reduce_range).lower(),
        "operators": "all" if config.operators is None else ",".join(config.operators),
        "calibration.images": str(len(calibration)),
        "calibration.sha256": hashlib.sha256(calibration.tobytes()).hexdigest(),
    }
    _finish(quantized, model, facts, target)
    return report


class _Batches(quantization.CalibrationDataReader):
    """Calibration images in batches; ONNX Runtime asks for them range by range, so that it can forget the activations in between."""

    def __init__(self, entry: onnx.ValueInfoProto, images: np.ndarray) -> None:
        fixed = entry.type.tensor_type.shape.dim[0].dim_value
        size = fixed or _BATCH
        stop = len(images) // size * size if fixed else len(images)
        self.name = entry.name
        self.batches = [images[start : start + size] for start in range(0, stop, size)]  # views, not copies
        self.pending = iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.pending = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.pending, None)
        return None if batch is None else {self.name: np.ascontiguousarray(batch)}


def _read(source: Path) -> onnx.ModelProto:
    model = read_onnx(source)
    quantized = sorted({node.op_type for node in model.graph.node if _QUANTIZED.search(node.op_type)})
    if quantized:
        raise CompressError(f'"{source}" is quantized already (it has {", ".join(quantized)}); quantize the float32 file it came from')
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < 13:
        raise CompressError(f'"{source}" has opset {opset}, but quantization needs at least 13; export it again with a newer opset')
    return model


def _image_input(model: onnx.ModelProto, images: np.ndarray) -> onnx.ValueInfoProto:
    weights = {weight.name for weight in model.graph.initializer}  # old files list the weights among the inputs
    entries = [value for value in model.graph.input if value.name not in weights]
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
    if images.dtype != dtype or not fits:
        raise CompressError(
            f"calibration (={images.dtype} {images.shape}) must be {dtype} {('N', *shapes[0][1:])}, as the graph's input takes it"
        )
    return entries[0]


def _prepare(model: onnx.ModelProto, source: Path, folder: Path, *, dynamic: bool = False) -> onnx.ModelProto:
    """Write what the quantizer expects to ``folder``, as prepared.onnx, and give it back.

    ONNX Runtime's own quant_pre_process is not used: it raises TypeError on graphs with CBAM gates, and logs a failed step instead of
    raising.
    """
    prepared = fold_constants(model, f'"{source}"')
    weighted = weighted_nodes(prepared)
    if not weighted:
        raise CompressError(f'"{source}" has no {", ".join(WEIGHTED)} with constant float32 weights; there is nothing to quantize')
    used = {name for node in weighted for name in node.input}
    for weight in prepared.graph.initializer:
        if weight.name in used and not np.isfinite(onnx.numpy_helper.to_array(weight)).all():
            raise CompressError(f'"{source}": weight "{weight.name}" holds values that are not finite; train the network again')
    if dynamic:
        split_gemms(prepared)
    prepared = onnx.shape_inference.infer_shapes(prepared)
    quantization.quant_utils.add_pre_process_metadata(prepared)
    onnx.save(prepared, folder / "prepared.onnx")
    return prepared


def _report(model: onnx.ModelProto, config: StaticConfig) -> Quantized:
    dequantized = {output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    wanted = {name for node in model.graph.node if node.op_type != "QuantizeLinear" for name in node.input}
    wanted |= {value.name for value in model.graph.output}  # as float32
    chosen = config.operators or OPERATORS
    operators: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            between = dequantized.issuperset(node.input[:1]) and (node.op_type in _FLOAT_OUTPUT or wanted.isdisjoint(node.output))
            int8 = between and node.op_type in chosen
            (operators if int8 else left)[node.op_type] += 1
    reasons = {kind: "it was not among the operators to quantize" for kind in left if kind in OPERATORS and kind not in chosen}
    reasons |= {kind: "ONNX Runtime has no int8 form of it" for kind in left if kind not in OPERATORS}
    reasons |= {kind: "it lies before the first weights, or beside float tensors" for kind in left if kind not in reasons}
    return Quantized(operators=dict(sorted(operators.items())), left=dict(sorted(left.items())), reasons=reasons)


def _finish(quantized: onnx.ModelProto, source: onnx.ModelProto, facts: dict[str, str], target: Path) -> None:
    kept = {entry.key: entry.value for entry in source.metadata_props}
    facts = {"tool": f"onnxruntime {onnxruntime.__version__}", **facts}
    onnx.helper.set_model_props(quantized, dict(sorted((kept | {f"quantization.{key}": value for key, value in facts.items()}).items())))
    write_onnx(quantized, target)


def _saturates() -> bool:
    """Whether this CPU adds products of 8-bit numbers in 16 bits: x86 without VNNI. Unknown flags count as that."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


@contextlib.contextmanager
def _quantizer(source: Path) -> Iterator[None]:
    """Around onnxruntime.quantization: what it prints, and logs to the root logger, is held back; what it trips over becomes one line."""

    def elsewhere(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    root = logging.getLogger()
    root.addFilter(elsewhere)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (ValueError, TypeError, KeyError, RuntimeError, onnx.shape_inference.InferenceError, *RUNTIME_ERRORS) as error:
        raise CompressError(f'"{source}" holds something that onnxruntime.quantization cannot take ({first_line(error)})') from error
    finally:
        root.removeFilter(elsewhere)
