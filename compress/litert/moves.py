"""Nodes that compute nothing: parts, orders and shapes, and maps of another size."""

from dataclasses import replace

import numpy as np

from ..codegen.nodes.maps import sample
from ..codegen.read import Node
from .layers import fits
from .lowering import End, Lower, Lowering, Shape, Unfit, Value


def concat(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    shape = low.graph.shapes[node.outputs[0]]
    last = len(shape) == 4 and any(one.last for one in ins)
    sides = [low.last(one) if last else low.plain(one) for one in ins]
    if end.scale:
        sides = [low.requantized(one, end.scale, end.zero) for one in sides]
    made = low.output(node, end, last=last)
    low.file.add("CONCATENATION", [one.at for one in sides], [made.at], "ConcatenationOptions", axis=made.axis(node.settings["axis"]))


def slices(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source = ins[0]
    starts, ends = (low.numbers(node, place).reshape(-1) for place in (1, 2))
    axes = low.numbers(node, 3).reshape(-1) if len(node.inputs) > 3 and node.inputs[3] else np.arange(len(starts))
    gaps = low.numbers(node, 4).reshape(-1) if len(node.inputs) > 4 and node.inputs[4] else np.ones(len(starts), int)
    stored = source.stored
    begin, until, step = [0] * len(stored), [*stored], [1] * len(stored)
    for axis, first, final, gap in zip(axes, starts, ends, gaps, strict=True):
        if gap < 1:
            raise node.refuse(f"step (={gap}) must be at least 1")
        at = source.axis(int(axis))
        begin[at], until[at], step[at] = slice(int(first), int(final), int(gap)).indices(stored[at])
    where = [
        low.file.constant(f"{node.name}_{name}", np.array(one, np.int32))
        for name, one in (("begin", begin), ("end", until), ("step", step))
    ]
    made = low.output(node, end, last=source.last)
    masks = dict.fromkeys(("beginMask", "endMask", "ellipsisMask", "newAxisMask", "shrinkAxisMask"), 0)
    low.file.add("STRIDED_SLICE", [source.at, *where], [made.at], "StridedSliceOptions", **masks)


def split(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, axis = ins[0], node.settings.get("axis", 0)
    sizes = [low.graph.shapes[name][axis] for name in node.outputs]
    made = [low.output(replace(node, outputs=(name,)), End(name), last=source.last) for name in node.outputs]
    about = [
        low.file.constant(f"{node.name}_sizes", np.array(sizes, np.int32)),
        low.file.constant(f"{node.name}_axis", np.array(source.axis(axis), np.int32)),
    ]
    low.file.add("SPLIT_V", [source.at, *about], [one.at for one in made], "SplitVOptions", numSplits=len(made))


def transpose(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source = low.plain(ins[0])
    order = node.settings.get("perm", tuple(reversed(range(len(source.shape)))))
    at = low.file.constant(f"{node.name}_order", np.array(order, np.int32))
    low.file.add("TRANSPOSE", [source.at, at], [low.output(node, end).at], "TransposeOptions")


def view(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    """A map that is flattened for a product with weights stays in the order in which it is stored."""
    source, shape = ins[0], low.graph.shapes[node.outputs[0]]
    source = low.requantized(source, end.scale, end.zero) if end.scale else source
    if source.last and len(shape) == 2 and shape[0] == source.shape[0] and _is_weighed(low, end.name):
        low.flattened[end.name] = source
    elif source.shape[2:] != (1, 1) or len(shape) != 2:
        source = low.plain(source)
    low.reshape(source, low.output(node, end))


def _is_weighed(low: Lowering, name: str) -> bool:
    """Whether all that reads it is a product with weights."""
    reader = low.only_reader(name)
    if reader is not None and reader.kind == "DequantizeLinear":
        name, reader = reader.outputs[0], low.only_reader(reader.outputs[0])
    return reader is not None and reader.kind in ("Gemm", "MatMul") and name == reader.inputs[0] and low.is_constant(reader.inputs[1])


def expand(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, made = low.plain(ins[0]), low.output(node, end)
    shape = low.file.constant(f"{node.name}_shape", np.array(made.shape, np.int32))
    low.file.add("BROADCAST_TO", [source.at, shape], [made.at], "BroadcastToOptions")


def pad(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, rank, mode = ins[0], len(ins[0].shape), node.settings.get("mode", "constant")
    pads = low.numbers(node, 1).reshape(-1) if len(node.inputs) > 1 else np.array(node.settings["pads"])
    axes = low.numbers(node, 3).reshape(-1) if len(node.inputs) > 3 and node.inputs[3] else np.arange(rank)
    value = float(low.numbers(node, 2).reshape(())) if len(node.inputs) > 2 and node.inputs[2] else 0.0
    if min(pads) < 0 or mode not in ("constant", "reflect"):
        raise node.refuse(f'mode (="{mode}") must be constant or reflect, and nothing may be cut')
    margins = np.zeros((rank, 2), np.int32)
    for place, axis in enumerate(axes):
        margins[source.axis(int(axis))] = pads[place], pads[len(axes) + place]
    inputs = [source.at, low.file.constant(f"{node.name}_pads", margins)]
    if mode == "reflect":
        low.file.add("MIRROR_PAD", inputs, [low.output(node, end, last=source.last).at], "MirrorPadOptions", mode=0)
    elif value:
        inputs.append(low.file.constant(f"{node.name}_fill", np.array([value], np.float32)))
        low.file.add("PADV2", inputs, [low.output(node, end, last=source.last).at], "PadV2Options")
    else:
        low.file.add("PAD", inputs, [low.output(node, end, last=source.last).at], "PadOptions")


def resize(low: Lowering, node: Node, ins: list[Value], end: End) -> None:
    source, shape = low.last(ins[0]), low.graph.shapes[node.outputs[0]]
    if len(shape) != 4 or shape[:2] != source.shape[:2]:
        raise node.refuse("only height and width can be resized")
    mode, options = node.settings.get("mode", "nearest"), _sampling(low, node, source, shape)
    code, kind = (
        ("RESIZE_BILINEAR", "ResizeBilinearOptions") if mode == "linear" else ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")
    )
    size = low.file.constant(f"{node.name}_size", np.array(shape[2:], np.int32))
    low.file.add(code, [source.at, size], [low.output(node, end, last=True).at], kind, **options)


def _sampling(low: Lowering, node: Node, source: Value, shape: Shape) -> dict[str, bool]:
    """The options under which LiteRT takes the same places, as both say what they take."""
    mode = node.settings.get("mode", "nearest")
    how = {
        "coordinates": node.settings.get("coordinate_transformation_mode", "half_pixel"),
        "nearest": node.settings.get("nearest_mode", "round_prefer_floor"),
    }
    if mode not in ("nearest", "linear") or node.settings.get("antialias", 0) or how["coordinates"] == "tf_crop_and_resize":
        raise node.refuse(f'mode (="{mode}") must be nearest or linear, without antialias and cropping')
    scales = low.numbers(node, 2).reshape(-1) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(0)
    pairs = [
        (source.shape[axis], shape[axis], float(scales[axis]) if len(scales) == 4 else shape[axis] / source.shape[axis]) for axis in (2, 3)
    ]
    wanted = [sample(mode, how, x, scale, size, to) for size, to, scale in pairs for x in range(to)]
    for corners, centres in ((False, False), (False, True), (True, False)):
        found = [_place(mode, x, size, to, corners, centres) for size, to, _ in pairs for x in range(to)]
        if all(abs((a + c * (b - a)) - at) < 1e-4 for (a, b, c), at in zip(wanted, found, strict=True)):
            return {"alignCorners": corners, "halfPixelCenters": centres}
    raise node.refuse("it reads other places than any resizing of LiteRT")


def _place(mode: str, x: int, size: int, to: int, corners: bool, centres: bool) -> float:
    scale = (size - 1) / (to - 1) if corners and to > 1 else size / to
    at = (x + 0.5) * scale - (0.5 if mode == "linear" else 0.0) if centres else x * scale
    if mode == "linear":
        return min(max(at, 0.0), size - 1.0)
    return float(min(np.floor(at + 0.5) if corners else np.floor(at), size - 1))


MOVES: dict[str, tuple[Lower, Unfit | None, int]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), (view, fits, 1)),
    "Concat": (concat, fits, 99),
    "Slice": (slices, None, 1),
    "Split": (split, None, 1),
    "Transpose": (transpose, None, 1),
    "Expand": (expand, None, 1),
    "Pad": (pad, None, 1),
    "Resize": (resize, None, 1),
}
