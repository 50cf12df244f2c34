"""Nodes that compute nothing: parts, orders and shapes. Most are another way to read a tensor, and no call.

The parts of a Concat are stored where they belong in it, by whoever makes them.
"""

import numpy as np

from ..calls import Fill
from ..expressions import Tensor, broadcast, dtype_of, function, load, move, reshape, straight
from ..read import Node
from .lowering import Lowering


def concat(lowering: Lowering, node: Node) -> None:
    shape, reader = lowering.shape(node), lowering.reading.get(node.outputs[0])
    axis, start = node.settings["axis"] % len(shape), 0
    parts = [lowering.usable(lowering.get(node, place), f"{node.name}_in") for place in range(len(node.inputs))]
    output = node.outputs[0]
    if reader is not None and reader.kind == "QuantizeLinear" and lowering.graph.readers[output] == 1:  # each part for itself
        scale, zero, _ = lowering.parameters(reader)
        parts = [function("quantize", one, numbers=(scale, zero)) for one in parts]
        output = reader.outputs[0]
        lowering.done.add(reader)
    if len({dtype_of(one) for one in parts}) > 1:
        parts = [function("copy", one) if dtype_of(one) == "u8" else one for one in parts]
    whole = Tensor(output, shape, dtype_of(parts[0]))
    for place, part in enumerate(parts):
        at = tuple(start if one == axis else 0 for one in range(len(shape)))
        start += part.shape[axis]
        tensor = part.tensor if part.is_whole() else lowering.stored.get(part)
        if tensor is not None and may_join(lowering, tensor, whole):
            whole.kind = whole.kind or tensor.kind
            tensor.inside, tensor.kind = (whole, at), None
        else:
            lowering.store(part, f"{output}_{place}", inside=(whole, at))
    lowering.values[output] = load(whole)


def may_join(lowering: Lowering, tensor: Tensor, whole: Tensor) -> bool:
    """Whether a tensor can be stored as a part of another from the start."""
    free = tensor.place == "arena" and tensor.inside is None and tensor.alias is None and not any(tensor.halo)
    same = tensor.kind is None or whole.kind in (None, tensor.kind)
    return free and same and tensor.kind != "plain" and tensor.dtype == whole.dtype and tensor is not whole


def slices(lowering: Lowering, node: Node) -> None:
    source = lowering.usable(lowering.get(node), f"{node.name}_in")
    starts, ends = (lowering.numbers(node, place, "where it begins and ends").reshape(-1) for place in (1, 2))
    axes = lowering.numbers(node, 3, "axes").reshape(-1) if len(node.inputs) > 3 and node.inputs[3] else np.arange(len(starts))
    steps = lowering.numbers(node, 4, "steps").reshape(-1) if len(node.inputs) > 4 and node.inputs[4] else np.ones(len(starts), int)
    ways = list(straight(source.shape))
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        first, _, stride = slice(int(start), int(end), int(step)).indices(source.shape[axis])
        ways[axis] = (int(axis), first, stride)
    lowering.result(node, move(source, lowering.shape(node), ways))


def split(lowering: Lowering, node: Node) -> None:
    source = lowering.usable(lowering.get(node), f"{node.name}_in")
    axis, start = node.settings.get("axis", 0) % len(source.shape), 0
    if any(lowering.graph.readers[name] for name in node.outputs) and not source.is_whole():
        source = load(lowering.store(source, f"{node.name}_in"))
    for place, name in enumerate(node.outputs):
        shape = lowering.shape(node, place)
        ways = [(at, start if at == axis else 0, 1) for at in range(len(shape))]
        lowering.values[name] = move(source, shape, ways)
        start += shape[axis]


def transpose(lowering: Lowering, node: Node) -> None:
    source = lowering.usable(lowering.get(node), f"{node.name}_in")
    order = node.settings.get("perm", tuple(reversed(range(len(source.shape)))))
    ways = tuple((list(order).index(axis) if size > 1 else None, 0, 1) for axis, size in enumerate(source.shape))
    lowering.result(node, move(source, lowering.shape(node), ways))


def view(lowering: Lowering, node: Node) -> None:
    lowering.result(node, reshape(lowering.get(node), lowering.shape(node)))


def expand(lowering: Lowering, node: Node) -> None:
    lowering.result(node, broadcast(lowering.usable(lowering.get(node), f"{node.name}_in"), lowering.shape(node)))


def pad(lowering: Lowering, node: Node) -> None:
    source, shape = lowering.usable(lowering.get(node), f"{node.name}_in"), lowering.shape(node)
    if node.settings.get("mode", "constant") != "constant":
        raise node.refuse(f'mode (="{node.settings["mode"]}") must be constant')
    pads = lowering.numbers(node, 1, "pads").reshape(-1)
    axes = lowering.numbers(node, 3, "axes").reshape(-1) if len(node.inputs) > 3 and node.inputs[3] else np.arange(len(shape))
    value = float(lowering.numbers(node, 2, "the value").reshape(())) if len(node.inputs) > 2 and node.inputs[2] else 0.0
    before, after = [0] * len(shape), [0] * len(shape)
    for place, axis in enumerate(axes):
        before[axis], after[axis] = int(pads[place]), int(pads[len(axes) + place])
    cut = [max(0, -one) for one in before]
    inner = tuple(size - max(0, -a) - max(0, -b) for size, b, a in zip(source.shape, before, after, strict=True))
    value += 128 if lowering.graph.types[node.inputs[0]] == np.int8 else 0
    source = move(source, inner, [(axis, start, 1) for axis, start in enumerate(cut)])
    whole = Tensor(node.outputs[0], shape, dtype_of(source))
    lowering.add(Fill(name=node.name, writes=[whole], value=value))
    lowering.store(source, f"{node.name}_in", inside=(whole, tuple(max(0, one) for one in before)))
    lowering.values[node.outputs[0]] = load(whole)


MOVES = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), view),
    "Concat": concat,
    "Split": split,
    "Slice": slices,
    "Pad": pad,
    "Transpose": transpose,
    "Expand": expand,
}
