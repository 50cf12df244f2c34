"""A classifier that somebody else exported becomes a graph like this toolkit's own: raw ``uint8`` image in, logits and probabilities out.

By hand: a file that takes float32 (1, 3, 32, 32), normalised by mean and std, gets a Cast, a Mul by 1 / (255 std) and an Add of
-mean / std before it, its input becomes ``image`` uint8 (batch, 3, 32, 32), and its output ``logits``, with a Softmax behind it to
``probabilities``. A file that ends in a Softmax keeps it: what goes into it are the logits. What goes into a Sigmoid are the logits too,
and its output stays, behind the two, as all other outputs do. A file that takes uint8 is left as it is there.

Refused: a file that ``read_float`` refuses, more than one input, another shape than (B, C, H, W), channels last, types
other than uint8 and float32, an output other than (B, K), a file that mixes the images of a batch. A batch that the graph holds as a number
in several places stays fixed.

Source: the ONNX specification.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..errors import CompressError
from .file import RUNTIME_ERRORS, image_inputs, mixes_images, note, open_session, read_onnx
from .floats import read_float
from .index import add_constant, edited, fresh, is_a, make, named, readers, rename, settings

IMAGE, LOGITS, PROBABILITIES = "image", "logits", "probabilities"


def image_shape(path: Path) -> tuple[int, int, int] | None:
    """The (C, H, W) that a file takes, None where it leaves one of them open.

    Raises:
        CompressError: for what the module refuses of inputs.
    """
    _, *sizes = _entry(read_onnx(path), path)[1]
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
    entry, (batch, *sizes) = _entry(model, path)
    if any(have not in (0, want) for have, want in zip(sizes, shape, strict=True)):
        raise CompressError(f'"{path}" takes images {tuple(sizes)}, and image-shape (={shape}) is another; leave --image-shape out')
    with edited(model) as graph:
        image = named(graph)[entry.name]
        graph.inputs.remove(image)
        if image.dtype != ir.DataType.UINT8:
            image = _prepare(graph, image, mean, std)
        rename(graph, image, IMAGE)
        _name_outputs(graph, path)
    del model.graph.value_info[:]
    note(model, model, metadata)
    for size in ("batch", batch or 1):
        model.graph.input.insert(0, helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, (size, *shape)))
        if _takes(model, path, shape, size):
            return model
        del model.graph.input[0]
    raise CompressError(f'"{path}" does not give (B, K) for images {shape}; a classifier of one label per image is needed here')


def answers(path: Path, shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float], images: Any) -> NDArray[Any]:
    """The logits float32 (N, K) of the classifier in ``path`` for images uint8 (N, C, H, W), an array or like one; see :func:`adopt`."""
    session = open_session(adopt(path, shape, mean, std, {}), f'"{path}"')
    fixed = session.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else 64
    parts = (images[start : start + size] for start in range(0, len(images), size))
    return np.concatenate([session.run([LOGITS], {IMAGE: np.ascontiguousarray(part)})[0] for part in parts])


def _entry(model: onnx.ModelProto, path: Path) -> tuple[onnx.ValueInfoProto, list[int]]:
    """The input and its (B, C, H, W), 0 where it leaves one open."""
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
    return entries[0], sizes


def _prepare(graph: ir.Graph, taken: ir.Value, mean: Sequence[float], std: Sequence[float]) -> ir.Value:
    """(pixel / 255 - mean) / std as one product and one sum, in the place of the tensor that was the input; the pixels."""
    scale = (1 / (255 * np.asarray(std, np.float64))).astype(np.float32).reshape(1, -1, 1, 1)
    shift = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32).reshape(1, -1, 1, 1)
    pixels = ir.Value(name=fresh(graph, IMAGE))
    cast = make(graph, "Cast", [pixels], "prepare.cast", "prepare.cast", to=TensorProto.FLOAT)
    factor = add_constant(graph, "prepare.factor", scale)
    nodes = [cast, make(graph, "Mul", [*cast.outputs, factor], "prepare.mul" if shift.any() else taken, "prepare.mul")]
    if shift.any():
        offset = add_constant(graph, "prepare.offset", shift)
        nodes.append(make(graph, "Add", [*nodes[-1].outputs, offset], taken, "prepare.add"))
    [last] = nodes[-1].outputs
    taken.replace_all_uses_with(last, replace_graph_outputs=True)
    graph.insert_before(graph[0], nodes)
    if last.name == IMAGE:
        last.name = fresh(graph, f"{IMAGE}_prepared")
    return pixels


def _name_outputs(graph: ir.Graph, path: Path) -> None:
    """The first output becomes ``logits``, or what a Softmax or Sigmoid makes it of; ``probabilities``, its softmax, comes second.

    All other outputs stay behind them, a sigmoid's too; one that is called as these two are gets out of their way.
    """
    given = graph.outputs[0]
    node = given.producer()
    if node is None:
        raise CompressError(f'"{path}": output "{given.name}" is made by no node; export it again')
    logits = node.inputs[0] if is_a(node, "Sigmoid") or _over_classes(node) else given
    assert logits is not None, "a Softmax has an input"
    softmax = next((one for one in readers(logits) if _over_classes(one)), None)
    rename(graph, logits, LOGITS)
    if softmax is None:
        softmax = make(graph, "Softmax", [logits], PROBABILITIES, PROBABILITIES, axis=1)
        graph.append(softmax)
    rename(graph, softmax.outputs[0], PROBABILITIES)
    graph.outputs[:] = list(dict.fromkeys([logits, softmax.outputs[0], *graph.outputs]))
    for value in graph.outputs[:2]:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", None])
    for value in graph.outputs[2:]:  # the batch may be another one now
        value.shape = ir.Shape([None] * len(value.shape)) if value.shape is not None else None


def _over_classes(node: ir.Node) -> bool:
    """Whether it is the softmax of (B, K) along K."""
    return is_a(node, "Softmax") and settings(node).get("axis", -1) in (1, -1)


def _takes(model: onnx.ModelProto, path: Path, shape: tuple[int, int, int], batch: int | str) -> bool:
    """Whether the graph gives (B, K) for a batch of that size, and of any size for a name."""
    images = np.random.default_rng(0).integers(0, 256, (batch if isinstance(batch, int) else 2, *shape), np.uint8)
    try:
        session = open_session(model, f'"{path}"')
        logits, mixed = session.run([LOGITS], {IMAGE: images})[0], isinstance(batch, str) and mixes_images(session, images)
    except (CompressError, *RUNTIME_ERRORS):
        return False
    if mixed:
        raise CompressError(
            f'"{path}" gives an image other logits alone than in a batch, so nothing could be proved of it; '
            "export it in eval mode, with batch norms that have running statistics"
        )
    return mixed is not None and logits.ndim == 2 and len(logits) == len(images)
