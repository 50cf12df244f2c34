"""A classifier that somebody else exported becomes a graph like this toolkit's own: raw ``uint8`` image in, logits and probabilities out.

By hand: a file that takes float32 (1, 3, 32, 32), normalised by mean and std, gets a Cast, a Mul by 1 / (255 std) and an Add of
-mean / std before it, its input becomes ``image`` uint8 (batch, 3, 32, 32), and its output ``logits``, with a Softmax behind it to
``probabilities``. A file that ends in a Softmax keeps it: what goes into it are the logits. A file that takes uint8 is left as it is
there.

Refused: a file that is quantized already or older than opset 13, more than one input, another shape than (B, C, H, W), channels last, types
other than uint8 and float32, an output other than (B, K). A batch that the graph holds as a number in several places stays fixed.

Source: the ONNX specification.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import CompressError
from .file import RUNTIME_ERRORS, image_inputs, open_session, read_onnx
from .floats import read_float

IMAGE, LOGITS, PROBABILITIES = "image", "logits", "probabilities"


def image_shape(path: Path) -> tuple[int, int, int] | None:
    """The (C, H, W) that a file takes, None where it leaves one of them open.

    Raises:
        CompressError: for what the module refuses of inputs.
    """
    shape = _entry(read_onnx(path), path).type.tensor_type.shape.dim
    sizes = tuple(dim.dim_value for dim in shape[1:])
    return (sizes[0], sizes[1], sizes[2]) if all(sizes) else None


def adopt(
    path: Path, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The classifier in ``path`` as the module says; the file itself is not changed.

    Args:
        path: an .onnx file.
        shape: (C, H, W) of the images; a dimension that the file leaves open takes any.
        mean, std: per channel or one for all, in units of [0, 1]; what the classifier's float32 input was normalised with.
        metadata: goes into the file's ``metadata_props`` besides what is there.

    Raises:
        CompressError: for what the module refuses.
    """
    model = read_float(path)
    entry, graph = _entry(model, path), model.graph
    sizes = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    if any(have not in (0, want) for have, want in zip(sizes[1:], shape, strict=True)):
        raise CompressError(f'"{path}" takes images {tuple(sizes[1:])}, and image-shape (={shape}) is another; leave --image-shape out')
    kind, batch = entry.type.tensor_type.elem_type, sizes[0]
    first = entry.name
    graph.input.remove(entry)
    if kind == TensorProto.UINT8:
        _rename(model, first, IMAGE)
    else:
        _rename(model, IMAGE, f"{IMAGE}_prepared")  # its input, or a weight of that name
        first = f"{IMAGE}_prepared" if first == IMAGE else first
        _insert_first(model, _preparation(model, first, mean, std))
    _name_outputs(model, path)
    del graph.value_info[:]
    props = {entry.key: entry.value for entry in model.metadata_props} | dict(metadata)
    helper.set_model_props(model, dict(sorted(props.items())))
    for size in ("batch", batch or 1):
        graph.input.insert(0, helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, (size, *shape)))
        if _takes(model, path, shape, 2 if size == "batch" else int(size)):
            return model
        del graph.input[0]
    raise CompressError(f'"{path}" does not give (B, K) for images {shape}; a classifier of one label per image is needed here')


def _entry(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    entries = image_inputs(model)
    if len(entries) != 1:
        raise CompressError(f'"{path}" has {len(entries)} inputs ({", ".join(value.name for value in entries)}); one of images is needed')
    kind = entries[0].type.tensor_type.elem_type
    sizes = [dim.dim_value for dim in entries[0].type.tensor_type.shape.dim]
    if len(sizes) != 4:
        raise CompressError(f'"{path}" takes {len(sizes)} dimensions; images (B, C, H, W) are needed')
    if sizes[3] in (1, 3) and sizes[1] not in (0, 1, 3):
        raise CompressError(f'"{path}" takes {tuple(sizes)}, channels last; export it with channels first, (B, C, H, W)')
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8):
        raise CompressError(f'"{path}" takes {TensorProto.DataType.Name(kind)}; export it with float32 or uint8 input')
    return entries[0]


def _preparation(model: onnx.ModelProto, name: str, mean: Sequence[float], std: Sequence[float]) -> list[onnx.NodeProto]:
    """(pixel / 255 - mean) / std as one product and one sum, from the new input to the tensor that was the input."""
    scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32).reshape(1, -1, 1, 1)
    shift = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32).reshape(1, -1, 1, 1)
    nodes = [helper.make_node("Cast", [IMAGE], ["prepare.cast"], to=TensorProto.FLOAT, name="prepare.cast")]
    model.graph.initializer.append(numpy_helper.from_array(scale, "prepare.factor"))
    scaled = "prepare.mul" if shift.any() else name
    nodes.append(helper.make_node("Mul", ["prepare.cast", "prepare.factor"], [scaled], name="prepare.mul"))
    if shift.any():
        model.graph.initializer.append(numpy_helper.from_array(shift, "prepare.offset"))
        nodes.append(helper.make_node("Add", [scaled, "prepare.offset"], [name], name="prepare.add"))
    return nodes


def _insert_first(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def _name_outputs(model: onnx.ModelProto, path: Path) -> None:
    """The first output becomes ``logits``, or ``probabilities`` if a Softmax makes it; the other one is added, all others go."""
    given = model.graph.output[0].name
    maker = next((node for node in model.graph.node if given in node.output), None)
    if maker is None:
        raise CompressError(f'"{path}": output "{given}" is made by no node; export it again')
    if maker.op_type == "Softmax":
        _rename(model, maker.input[0], LOGITS)
        _rename(model, given, PROBABILITIES)
    else:
        _rename(model, given, LOGITS)
        there = next((node for node in model.graph.node if node.op_type == "Softmax" and node.input[0] == LOGITS), None)
        if there is None:
            there = model.graph.node.add()
            there.CopyFrom(helper.make_node("Softmax", [LOGITS], [PROBABILITIES], axis=1, name=PROBABILITIES))
        _rename(model, there.output[0], PROBABILITIES)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", None)) for name in (LOGITS, PROBABILITIES))


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Call the tensor ``old`` ``new``; another of that name gets out of the way."""
    if old == new:
        return
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | {w.name for w in model.graph.initializer}
    if new in taken:
        _rename(model, new, f"{new}_")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    for weight in model.graph.initializer:
        if weight.name == old:
            weight.name = new


def _takes(model: onnx.ModelProto, path: Path, shape: tuple[int, int, int], batch: int) -> bool:
    """Whether the graph gives (B, K) for a batch of that size."""
    try:
        session = open_session(model, f'"{path}"')
        logits = session.run([LOGITS], {IMAGE: np.zeros((batch, *shape), np.uint8)})[0]
    except (CompressError, *RUNTIME_ERRORS):
        return False
    return logits.ndim == 2 and len(logits) == batch
