"""What a graph has written into it about its shapes is said so that it stays true when channels are removed.

By hand: ``Reshape(x, [1, 1280])`` writes a width into the graph. ``Reshape(x, [0, -1])`` says the same of every width, and of every batch.

- A Reshape whose shape is a constant, or computed in the graph, has one that is relative to what comes in: its first size is that of the
  batch, and one of the others follows from the rest.
- A Resize to a size that is given with the batch and the channels, or computed, has that of its places alone.
- A Split into equal parts says how many, not how large.
- Pads that follow from the size of what comes in (``auto_pad``) are numbers.
- A constant that several nodes read, and that is no weight which they share, is there once for each: two biases that ONNX Runtime found to
  be equal need not stay so.

What has none of these forms is left as it is. Source: the ONNX specification.
"""

import math

import numpy as np
import onnx
import onnx_ir as ir

from ...errors import CompressError, first_line
from ..file import RUNTIME_ERRORS, image_inputs, open_session, opset_of
from ..floats import WEIGHTED
from ..index import add_constant, constant, edited, index, is_a, settings, sweep
from ..probe import with_outputs

_AUTOMATIC = ("SAME_UPPER", "SAME_LOWER")


def settle(model: onnx.ModelProto, name: str) -> None:
    """Rewrite ``model`` in place as the module says.

    Args:
        model: with one input (B, C, H, W) whose C, H and W are known; what a graph with a free B computes of it is seen with 2 and with 3.
        name: what errors call it.

    Raises:
        CompressError: it does not run.
    """
    seen = [node for node in index(model) if is_a(node, "Reshape", "Resize") or settings(node).get("auto_pad") in _AUTOMATIC]
    wanted = dict.fromkeys(str(value.name) for node in seen for value in (node.inputs[0], node.outputs[0]) if value is not None)
    shapes = _shapes(model, list(wanted), name)
    with edited(model) as graph:
        for node in graph:
            if is_a(node, "Reshape"):
                _relative(graph, node, shapes)
            elif is_a(node, "Resize"):
                _of_places(graph, node, shapes, opset_of(model))
            elif is_a(node, "Split"):
                _equal(node, opset_of(model))
            elif settings(node).get("auto_pad") in _AUTOMATIC:
                _as_numbers(node, shapes[str(node.inputs[0].name)])  # type: ignore[union-attr]
        _one_for_each(graph)
        sweep(graph)


def _shapes(model: onnx.ModelProto, names: list[str], name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of these tensors, -1 for a size that follows the batch."""
    if not names:
        return {}
    [entry] = image_inputs(model)
    batch, *sizes = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
    session = open_session(with_outputs(model, names), name)
    try:
        runs = [session.run(None, {entry.name: np.zeros((count, *sizes), dtype)}) for count in ([batch] if batch else [2, 3])]
    except RUNTIME_ERRORS as error:
        raise CompressError(f"{name} does not run on images {tuple(sizes)} ({first_line(error)}); export it again") from error
    sides = zip(*([made.shape for made in run] for run in runs), strict=True)
    follows = [(batch,), (2, 3)][not batch]
    return {
        name: tuple(
            -1 if tuple(along) == follows and place == 0 else along[0] if len(set(along)) == 1 else -2
            for place, along in enumerate(zip(*many, strict=True))
        )
        for name, many in zip(names, sides, strict=True)
    }


def _relative(graph: ir.Graph, node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> None:
    assert node.inputs[0] is not None, "what is reshaped"
    came, made = (shapes[str(value.name)] for value in (node.inputs[0], node.outputs[0]))
    if min(len(came), len(made)) < 2 or (came[0], made[0]) != (-1, -1) or min(made[1:]) < 1:
        return
    axis = 2 if len(made) == 5 else 1
    if 3 in (len(came), len(made)) and made[1] != came[1] and made[-1] == came[-1]:  # (B, H, W, C) from or to (B, N, C)
        axis = len(made) - 1
    wide = [place for place, size in enumerate(made) if size > 1]
    axis = wide[0] if len(wide) == 1 else axis  # (B, 1, 1, C)
    shape = [-1 if place == axis else size for place, size in enumerate((0, *made[1:]))]
    node.replace_input_with(1, add_constant(graph, f"{node.outputs[0].name}_shape", np.array(shape, np.int64)))
    node.attributes.pop("allowzero", None)


def _of_places(graph: ir.Graph, node: ir.Node, shapes: dict[str, tuple[int, ...]], opset: int) -> None:
    given = [*node.inputs[1:], None, None, None][:3]  # what no export gives: a region; scales; sizes
    came, made = (shapes[str(value.name)][2:] for value in (node.inputs[0], node.outputs[0]) if value is not None)
    computed = given[1] is not None and constant(given[1]) is None
    if (given[2] is None and not computed) or "axes" in node.attributes or min(*came, *made) < 1:
        return
    scales = np.array([1, 1, *(size / before for size, before in zip(made, came, strict=True))], np.float32)
    exact = tuple(int(before * scale) for before, scale in zip(came, scales[2:].tolist(), strict=True)) == made
    if opset >= 18:
        sizes = add_constant(graph, f"{node.outputs[0].name}_sizes", np.array(made, np.int64))
        node.attributes.add(ir.AttrInt64s("axes", [*range(2, 2 + len(made))]))
    elif exact:
        sizes = None
    else:
        return
    node.resize_inputs(4 if sizes is not None else 3)
    node.replace_input_with(1, None)
    node.replace_input_with(2, None if sizes is not None else add_constant(graph, f"{node.outputs[0].name}_scales", scales))
    if sizes is not None:
        node.replace_input_with(3, sizes)


def _equal(node: ir.Node, opset: int) -> None:
    parts = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if parts is not None and len(set(parts.tolist())) == 1:
        node.resize_inputs(1)
        if opset >= 18:
            node.attributes.add(ir.AttrInt64("num_outputs", len(node.outputs)))


def _one_for_each(graph: ir.Graph) -> None:
    owners: dict[tuple[ir.Value, ir.Value | None], ir.Value] = {}  # of a constant and the weight beside which it stands
    taken: set[ir.Value] = set()
    for node in graph:
        weight = node.inputs[1] if is_a(node, *WEIGHTED) else None
        for place, value in enumerate(node.inputs):
            if value is None or value is weight or (values := constant(value)) is None or values.dtype != np.float32 or values.size < 2:
                continue
            if (value, weight) not in owners:
                owners[value, weight] = add_constant(graph, f"{value.name}_of_{node.name}", values) if value in taken else value
                taken.add(value)
            node.replace_input_with(place, owners[value, weight] if weight is not None else owners.pop((value, weight)))


def _as_numbers(node: ir.Node, came: tuple[int, ...]) -> None:
    own = settings(node)
    weight = constant(node.inputs[1]) if is_a(node, "Conv") else None
    kernel = own.get("kernel_shape", weight.shape[2:] if weight is not None else ())
    upper = own["auto_pad"] == "SAME_UPPER"
    begin, end = [], []
    for place, (size, length) in enumerate(zip(came[2:], kernel, strict=False)):
        stride, dilation = (own.get(key, [1] * len(kernel))[place] for key in ("strides", "dilations"))
        total = max(0, (math.ceil(size / stride) - 1) * stride + (length - 1) * dilation + 1 - size)
        begin.append(total // 2 if upper else total - total // 2)
        end.append(total - begin[-1])
    if len(begin) == len(kernel) and min(came[2:]) > 0:
        node.attributes.pop("auto_pad")
        node.attributes.add(ir.AttrInt64s("pads", [*begin, *end]))
