"""Nodes over the pixels of a map, or along an axis: pools, means, resizing, softmax."""

import math
from typing import Any

import numpy as np

from ..calls import ACC, Contract, Reduce, Resize, Softmax, Window
from ..expressions import Expr, Shape, Tensor, function, load, number, number_of, reshape, same
from ..read import Node
from .lowering import Lowering


def reduce(lowering: Lowering, node: Node) -> None:
    source = lowering.usable(lowering.get(node), f"{node.name}_in")
    rank, op = (
        len(source.shape),
        {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}.get(node.kind) or node.kind.removeprefix("Reduce").lower(),
    )
    axes = node.settings.get("axes", ())
    if node.kind.startswith("Global"):
        axes = range(2, rank)
    elif len(node.inputs) > 1 and node.inputs[1]:
        axes = lowering.numbers(node, 1, "axes").reshape(-1)
    if not len(axes) and node.settings.get("noop_with_empty_axes", 0):
        lowering.result(node, source)
        return
    chosen = tuple(sorted(int(axis) % rank for axis in axes)) or tuple(range(rank))
    kept = tuple(1 if axis in chosen else size for axis, size in enumerate(source.shape))
    factor = {"mean": 1 / np.prod([source.shape[axis] for axis in chosen])}.get(op)
    after = function("mul", ACC, number(float(np.float32(factor)))) if factor else ACC
    if source.op == "dequantize" and op != "sum":  # of the integers, which is exact
        after, source = Expr("dequantize", (), (after,), source.numbers), source.args[0]
    if source.op == "quantize" or (source.is_heavy() and lowering.graph.readers[node.inputs[0]] > 1):
        source = load(lowering.store(source, f"{node.name}_in"))
    tensor, last = Tensor(node.outputs[0], kept), lowering.calls[-1] if lowering.calls else None
    if isinstance(last, Reduce) and last.axes == chosen and same(last.source, source):
        last.writes.append(tensor)
        last.ops.append(op)
        last.after.append(after)
        lowering.makers[tensor] = last
    else:
        lowering.add(Reduce(name=node.name, writes=[tensor], source=source, axes=chosen, ops=[op], after=[after]))
    lowering.values[node.outputs[0]] = reshape(load(tensor), lowering.shape(node))


def window(lowering: Lowering, node: Node) -> None:
    source, shape = spatial(lowering, node, lowering.get(node)), as_map(node, lowering.shape(node))
    kernel, strides, dilations, pads = geometry(node, source.shape, shape, node.settings["kernel_shape"])
    op = "max" if node.kind == "MaxPool" else "mean"
    count = bool(node.settings.get("count_include_pad", 0))
    call = Window(
        name=node.name, writes=[], source=source, op=op, kernel=kernel, strides=strides, dilations=dilations, pads=pads, count_pads=count
    )
    if source.op == "dequantize" and (op == "max" or not (count and any(pads))):
        call.source, call.after = source.args[0], [ACC if op == "max" else Expr("dequantize", (), (ACC,), source.numbers)]
    if not call.source.is_whole():
        call.source = load(lowering.store(call.source, f"{node.name}_in"))
    maker, joined = lowering.makers.get(call.source.tensor), False  # type: ignore[arg-type]
    if isinstance(maker, Contract) and lowering.read_once(node.inputs[0]):  # what no window reaches is not computed
        reach = [(shape[2 + a] - 1) * strides[a] - pads[a] + (kernel[a] - 1) * dilations[a] + 1 for a in (0, 1)]
        maker.limit = min(reach[0], source.shape[2]), min(reach[1], source.shape[3])
        halves = op == "max" and kernel == strides == (2, 2) and dilations == (1, 1) and not any(pads)
        joined = halves and maker.limit == (2 * shape[2], 2 * shape[3]) and not (maker.depthwise() or maker.pooled)
    integers = source.op == "dequantize" and op == "max"
    tensor = Tensor(node.outputs[0], shape, "u8" if integers else "f32")
    if joined and isinstance(maker, Contract) and maker.writes[0].kind == "pixel":  # the convolution itself takes the largest
        [old] = maker.writes
        tensor.dtype, tensor.kind = old.dtype, old.kind
        maker.writes, maker.pooled, maker.limit, lowering.makers[tensor] = [tensor], (old.shape[2], old.shape[3]), None, maker
    else:
        call.writes = [tensor]
        lowering.add(call)
    made = Expr("dequantize", shape, (load(tensor),), source.numbers) if integers else load(tensor)
    lowering.values[node.outputs[0]] = reshape(made, lowering.shape(node))


def spatial(lowering: Lowering, node: Node, source: Expr) -> Expr:
    """(N, C, W) as a map of one row."""
    return reshape(lowering.usable(source, f"{node.name}_in"), as_map(node, source.shape))


def softmax(lowering: Lowering, node: Node) -> None:
    found = number_of(lowering.get(node))
    axis = node.settings.get("axis", -1 if node.opset >= 13 else 1) % len(found.shape)
    if node.opset < 13:  # everything from the axis on is one distribution
        before, after = (math.prod(part) for part in (found.shape[:axis], found.shape[axis:]))
        found, axis = reshape(found, (before, after)), 1
    source = lowering.store(found, f"{node.name}_in")
    tensor = Tensor(node.outputs[0], source.shape)
    lowering.add(Softmax(name=node.name, writes=[tensor], source=source, axis=axis))
    lowering.values[node.outputs[0]] = reshape(load(tensor), lowering.shape(node))


def resize(lowering: Lowering, node: Node) -> None:
    source, shape = lowering.store(lowering.get(node), f"{node.name}_in", "pixel"), lowering.shape(node)
    if len(shape) != 4 or shape[:2] != source.shape[:2]:
        raise node.refuse("only height and width can be resized")
    scales = lowering.numbers(node, 2, "scales").reshape(-1) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(0)
    how = {"coordinates": "half_pixel", "nearest": "round_prefer_floor"}
    how = {
        key: node.settings.get(f"{key.removesuffix('s')}_transformation_mode" if key == "coordinates" else "nearest_mode", value)
        for key, value in how.items()
    }
    mode = node.settings.get("mode", "nearest")
    if mode not in ("nearest", "linear") or node.settings.get("antialias", 0) or how["coordinates"] == "tf_crop_and_resize":
        raise node.refuse(f'mode (="{mode}") must be nearest or linear, without antialias and cropping')
    places = []
    for axis in (2, 3):
        scale = float(scales[axis]) if len(scales) == 4 else shape[axis] / source.shape[axis]
        places.append([sample(mode, how, x, scale, source.shape[axis], shape[axis]) for x in range(shape[axis])])
    tensor = Tensor(node.outputs[0], shape, kind="pixel")
    lowering.add(Resize(name=node.name, writes=[tensor], source=source, rows=places[0], columns=places[1]))
    lowering.values[node.outputs[0]] = load(tensor)


def sample(mode: str, how: dict[str, str], x: int, scale: float, size: int, wanted: int) -> tuple[int, int, float]:
    """Where output ``x`` is in a row of ``size``: two places, and the weight of the second."""
    match how["coordinates"]:
        case "align_corners":
            at = x * (size - 1) / (wanted - 1) if wanted > 1 else 0.0
        case "asymmetric":
            at = x / scale
        case "pytorch_half_pixel":
            at = (x + 0.5) / scale - 0.5 if wanted > 1 else 0.0
        case "half_pixel_symmetric":
            at = size / 2 * (1 - wanted / (scale * size)) + (x + 0.5) / scale - 0.5
        case _:
            at = (x + 0.5) / scale - 0.5
    if mode == "nearest":
        whole = {"floor": math.floor(at), "ceil": math.ceil(at), "round_prefer_ceil": math.floor(at + 0.5)}
        place = min(max(whole.get(how["nearest"], math.ceil(at - 0.5)), 0), size - 1)
        return place, place, 0.0
    at = min(max(at, 0.0), size - 1.0)
    return int(at), min(int(at) + 1, size - 1), at - int(at)


def as_map(node: Node, shape: Shape) -> Shape:
    """(N, C, W) as (N, C, 1, W)."""
    if len(shape) not in (3, 4):
        raise node.refuse(f"its rank (={len(shape)}) must be 3 or 4")
    return shape if len(shape) == 4 else (*shape[:2], 1, shape[2])


def geometry(node: Node, source: Shape, shape: Shape, kernel: Any) -> tuple[Any, Any, Any, Any]:
    """Kernel, strides, dilations (y, x) and pads (top, left, bottom, right) of a convolution or pool from ``source`` to ``shape``."""
    flat = len(kernel) == 1
    two = lambda values: (1, int(values[0])) if flat else tuple(int(one) for one in values)  # noqa: E731
    kernel = two(kernel)
    strides, dilations = (two(node.settings.get(name, (1, 1))) for name in ("strides", "dilations"))
    pads = tuple(int(one) for one in node.settings.get("pads", (0,) * (2 if flat else 4)))
    pads = (0, pads[0], 0, pads[1]) if len(pads) == 2 else pads
    auto = node.settings.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(0, (shape[2 + a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 - source[2 + a]) for a in (0, 1)]
        first = [(one + (auto == "SAME_LOWER")) // 2 for one in total]
        pads = (*first, total[0] - first[0], total[1] - first[1])
    return kernel, strides, dilations, pads


MAPS = {
    **dict.fromkeys(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "GlobalAveragePool", "GlobalMaxPool"), reduce),
    **dict.fromkeys(("MaxPool", "AveragePool"), window),
    "Softmax": softmax,
    "Resize": resize,
}
