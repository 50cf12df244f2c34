"""Post-training quantization of an ONNX file: a float32 graph becomes one that computes in int8.

Dynamic: the weights of MatMul and Gemm become int8, and the scale of an activation is found anew for each inference. Convolutions stay
float, because their dynamic form (ConvInteger) fails to load (microsoft/onnxruntime#12558).

Static: QDQ. Every quantized tensor gets a QuantizeLinear and a DequantizeLinear whose scale was found beforehand, on calibration images.
By hand: a tensor seen between -1 and 4 gets scale (4 - -1) / 255 = 0.0196 and zero point round(1 / 0.0196) = 51, so -1 is stored as 0,
0 as 51, 4 as 255. Weights are int8, symmetric, with one scale per output channel; activations are uint8, affine. The image itself is
uint8 already: divided by 255, its scale is 1/255 and its zero point 0, and the first convolution reads it as it is. Other scalings of it
stay float, and so do the logits: in 256 steps the two best of them tied for 0.8% of the images, and the answer was a matter of order.

Refuses: what ``read_float`` and ``check_images`` refuse, unknown nodes, a choice that leaves nothing quantized.

Source: Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi 2018, arXiv:1806.08342; onnxruntime.quantization does the work.
"""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnxruntime import quantization

from ..errors import CompressError
from ..graphs.file import note, write_onnx
from ..graphs.floats import WEIGHTED, check_images, fold, nodes_after_weights, nodes_before_weights, read_float, split_gemms
from ..graphs.index import index, is_a, maker, readers
from .bias import correct_bias
from .calibration import Histograms
from .equalise import equalise
from .ort_quantizer import FLOAT_OUTPUT, OPERATORS, held_back, insert_qdq, this_cpu
from .qdq import rename_clashes
from .records import Quantized, Setting, Types
from .weights_only import store_in

_WHY_NOT_DYNAMIC = {
    "Conv": "its dynamic int8 form, ConvInteger, fails to load in ONNX Runtime",
    "Gemm": "its weight is not constant, or it scales or transposes more than a linear layer does",
    "MatMul": "neither factor is a constant weight",
}


def quantize_dynamic(source: Path, target: Path, types: Types | None = None) -> Quantized:
    """Make the weights of MatMul and Gemm int8, one scale per output channel; a Gemm becomes a MatMul and an Add, and is counted as MatMul.

    ``target`` is replaced at once or not at all; it keeps the metadata of ``source``, and ``quantization.*`` is added.
    ``types``: as ``prepare`` takes them.

    Raises:
        CompressError: for what the module refuses; a graph without MatMul and Gemm on constant weights.
    """
    model, name = read_float(source), f'"{source}"'
    types = types or this_cpu()
    reduce_range = types.reduce_range
    folded = fold(model, name)
    split_gemms(folded)
    rename_clashes(folded)
    with tempfile.TemporaryDirectory(prefix="compress-") as folder, held_back(name):
        file, int8 = Path(folder) / "int8.onnx", quantization.QuantType.QInt8
        quantization.quantize_dynamic(folded, file, ["MatMul"], per_channel=True, reduce_range=reduce_range, weight_type=int8)
        quantized = onnx.load(file)
    count = sum(node.op_type == "MatMulInteger" for node in quantized.graph.node)
    if not count:
        raise CompressError(
            f'"{source}" has no MatMul or Gemm with constant weights, which is all that dynamic quantization takes; use static quantization'
        )
    facts = {"mode": "dynamic", "per_channel": "true", "reduce_range": str(reduce_range).lower(), **types.notes}
    _finish(quantized, model, facts, target)
    left = Counter(node.op_type for node in folded.graph.node if node.op_type != "MatMul")
    left.update(node.op_type for node in quantized.graph.node if node.op_type == "MatMul")
    reasons = {kind: why for kind, why in _WHY_NOT_DYNAMIC.items() if kind in left}
    return Quantized(operators={"MatMul": count}, left=dict(sorted(left.items())), reasons=reasons)


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A float32 graph ready to be quantized many times, and what its activations were seen to be.

    ``model``: constants and batch norm folded, every node named, shapes inferred; ``graph``: its, to look at. ``nodes``: those that static
    quantization can take, in the order of computation: none before the first weights, nor after the logits. ``source``: as read; its
    metadata goes into what is written. ``name``: what messages call it. ``calibration``, ``sha256``: the calibration images and their hash.
    ``types``: those that activations and weights will have.
    """

    model: onnx.ModelProto
    graph: ir.Graph
    nodes: list[ir.Node]
    source: onnx.ModelProto
    name: str
    histograms: Histograms
    calibration: np.ndarray
    sha256: str
    types: Types


def prepare(source: Path, calibration: np.ndarray, *, equalised: bool = False, types: Types | None = None) -> Prepared:
    """Read, fold and calibrate a float32 file, for any number of ``quantize_prepared``.

    Args:
        source: a float32 ONNX file with one input (B, C, H, W).
        calibration: at least 32 images uint8 (N, C, H, W), or of the graph's input type; a graph that takes float32 gets uint8 as pixel /
            255. Take them from the training data, chosen by a seed; they are read in batches.
        equalised: whether to ``equalise`` the folded float graph before it is calibrated.
        types: of activations and weights, those that suit this CPU by default; an image can be read as it is only as uint8.

    Raises:
        CompressError: for what the module refuses.
    """
    model, name = read_float(source), f'"{source}"'
    check_images(model, calibration)
    prepared = fold(model, name)
    rename_clashes(prepared)
    if equalised:
        equalise(prepared)
    with held_back(name):
        prepared = onnx.shape_inference.infer_shapes(prepared)
    graph = index(prepared)
    left = {*nodes_before_weights(graph), *(node for node in nodes_after_weights(graph) if not is_a(node, "Relu", "Clip"))}
    nodes = [node for node in graph if is_a(node, *OPERATORS) and node not in left]
    tensors = {value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None and value.const_value is None}
    return Prepared(
        model=prepared,
        graph=graph,
        nodes=nodes,
        source=model,
        name=name,
        histograms=Histograms(prepared, [str(one.name) for one in tensors if one.dtype == ir.DataType.FLOAT], calibration),
        calibration=calibration,
        sha256=hashlib.sha256(calibration.tobytes()).hexdigest(),
        types=types or this_cpu(),
    )


def quantize_prepared(prepared: Prepared, setting: Setting, nodes: Collection[str] | None = None) -> onnx.ModelProto:
    """A quantized copy of the graph, which was equalised or not as ``setting`` says; the same bytes for the same arguments.

    ``nodes``: names of those to quantize, of those in ``prepared.nodes``; None for all of them.

    Raises:
        CompressError: an unknown method or node, or no node to quantize.
    """
    known = [str(node.name) for node in prepared.nodes]
    chosen = set(known if nodes is None else nodes)
    if unknown := sorted(chosen - set(known)):
        raise CompressError(f'nodes (="{unknown[0]}") is no node of {prepared.name} that can be quantized, such as "{"".join(known[:1])}"')
    if not chosen:
        raise CompressError(
            f"{prepared.name} has nothing to quantize among the 0 nodes chosen; None takes all that ONNX Runtime can quantize"
        )
    beside = {
        str(value.name) for node in prepared.nodes if node.name in chosen for value in (*node.inputs, *node.outputs) if value is not None
    }
    ranges = prepared.histograms.ranges(setting.method, beside)
    with held_back(prepared.name):
        quantized = insert_qdq(prepared.model, prepared.graph, ranges, chosen, prepared.types, per_channel=setting.per_channel)
    if setting.correct_bias:
        correct_bias(quantized, prepared.model, prepared.calibration)
    return quantized


def write_quantized(
    quantized: onnx.ModelProto, prepared: Prepared, setting: Setting, target: Path, *, store: str | None = None
) -> Quantized:
    """Write a quantized graph with the source's metadata and ``quantization.*``, all or nothing, and say what it holds.

    ``store``: how the weights of the nodes that stay float are stored, "int8" or "fp16", see ``weights_only``; as they are by default.

    Raises:
        CompressError: nothing in the graph is quantized, or it does not load.
    """
    report = _report(quantized)
    if not report.operators:
        raise CompressError(f"{prepared.name} has nothing quantized in it; choose other nodes, a Conv or Gemm among them")
    if store is not None:
        store_in(quantized, prepared.name, bits=store)
    facts = {
        "mode": "static",
        "method": setting.method,
        "per_channel": str(setting.per_channel).lower(),
        "reduce_range": str(prepared.types.reduce_range).lower(),
        "activations": prepared.types.activations,
        **prepared.types.notes,
        "operators": "all",  # older versions could leave some out
        "int8": ", ".join(f"{kind} {count}" for kind, count in report.operators.items()),
        "float_weights": store or "float32",
        "calibration.images": str(len(prepared.calibration)),
        "calibration.sha256": prepared.sha256,
    }
    _finish(quantized, prepared.source, facts, target)
    return report


def _report(model: onnx.ModelProto) -> Quantized:
    operators: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for node in index(model):
        if not is_a(node, "QuantizeLinear", "DequantizeLinear"):
            read = node.inputs[: 2 if is_a(node, *WEIGHTED) else 1]  # of a layer its weight too
            users = [user for value in node.outputs for user in readers(value)]
            wanted = any(value.is_graph_output() for value in node.outputs) or not all(is_a(user, "QuantizeLinear") for user in users)
            between = all(maker(value, "DequantizeLinear") for value in read) and (node.op_type in FLOAT_OUTPUT or not wanted)
            int8 = between and node.op_type in OPERATORS
            (operators if int8 else left)[node.op_type] += 1
    reasons = {kind: "ONNX Runtime has no int8 form of it" for kind in left if kind not in OPERATORS}
    reasons |= {kind: "it was not chosen, or lies before the first weights or beside float tensors" for kind in left if kind not in reasons}
    return Quantized(operators=dict(sorted(operators.items())), left=dict(sorted(left.items())), reasons=reasons)


def _finish(quantized: onnx.ModelProto, source: onnx.ModelProto, facts: dict[str, str], target: Path) -> None:
    facts = {"tool": f"onnxruntime {onnxruntime.__version__}", **facts}
    note(quantized, source, {f"quantization.{key}": value for key, value in facts.items()})
    write_onnx(quantized, target)
