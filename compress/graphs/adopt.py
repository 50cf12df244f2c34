"""A network that somebody else exported becomes a graph like this toolkit's own. Of a classifier: raw ``uint8`` image in, logits and
probabilities out. Of any other (``adopt_any``) the outputs stay as they are.

By hand: a file that takes float32 (1, 3, 32, 32), normalised by mean and std, gets a Cast, a Mul by 1 / (255 std) and an Add of
-mean / std before it, its input becomes ``image`` uint8 (batch, 3, 32, 32), and its output ``logits``, with a Softmax behind it to
``probabilities``. A file that ends in a Softmax or Sigmoid keeps it, as the probabilities: what goes into it are the logits, so labels
that do not exclude each other stay so. One that takes uint8 is left as it is there; (B, H, W, C) gets a Transpose; an output (B, K, 1, 1)
or (B, 1, 1, K) a Flatten. Half precision becomes float32. All other outputs stay, behind the two.

Refused: a file that ``as_float`` refuses, more than one input, a fixed batch above one, another shape than (B, C, H, W) or (B, H, W, C),
types other than uint8 and floats of up to 32 bits, no output (B, K), a file that mixes the images of a batch, and what answers otherwise
afterwards. A batch of one that the graph holds as a number in several places stays fixed.

Source: the ONNX specification.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..errors import CompressError, first_line
from .file import RUNTIME_ERRORS, image_inputs, mixes_images, note, open_session, read_onnx
from .floats import HALF, allowed, as_float
from .index import add_constant, edited, fresh, index, is_a, make, maker, named, readers, rename, settings, sweep

IMAGE, LOGITS, PROBABILITIES = "image", "logits", "probabilities"
_VIEWS = ("Identity", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """The input of a file, ``kind`` its type: the batch and (C, H, W), 0 for what is open; ``last``: it has the channels last."""

    name: str
    kind: int
    batch: int
    shape: tuple[int, int, int]
    last: bool

    def order(self, shape: Sequence[int]) -> Sequence[int]:
        """(C, H, W) as the file has it."""
        return (*shape[1:], shape[0]) if self.last else shape

    def fed(self, images: NDArray[Any], mean: Sequence[float], std: Sequence[float]) -> NDArray[Any]:
        """Images uint8 (B, C, H, W) as its maker fed them; floats are so already."""
        if self.kind != TensorProto.UINT8:
            if images.dtype == np.uint8:
                factor, offset = (np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (std, mean))
                images = (images.astype(np.float32) / 255 - offset) / factor
            images = images.astype(helper.tensor_dtype_to_np_dtype(self.kind))
        return np.ascontiguousarray(images.transpose(0, 2, 3, 1) if self.last else images)


def image_shape(path: Path) -> tuple[int, int, int] | None:
    """The (C, H, W) that a file takes, None where it leaves one of them open.

    Raises:
        CompressError: for what the module refuses of inputs.
    """
    shape = _entry(read_onnx(path), path).shape
    return shape if all(shape) else None


def adopt(
    path: Path,
    shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """The classifier in ``path`` as the module says, proved on noise; the file itself is not changed.

    Args:
        path: an .onnx file.
        shape: (C, H, W) of the images; a dimension that the file leaves open takes any.
        mean, std: per channel or one for all, in units of [0, 1]; what the classifier's float input was normalised with.
        metadata: goes into the file's ``metadata_props`` besides what is there.

    Raises:
        CompressError: for what the module refuses.
    """
    theirs = read_onnx(path)
    taken = _entry(theirs, path)
    if taken.batch > 1:
        raise CompressError(f'"{path}" takes {taken.batch} images at a time; export it with a batch of 1, or a free one')
    noise = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    expected, which, flat = _answers(theirs, taken, path, noise, mean, std)
    model = as_float(theirs, path, taken.order(shape))
    with edited(model) as graph:
        image = named(graph)[taken.name]
        graph.inputs.remove(image)
        image = _channels_first(graph, image) if taken.last else image
        image = _prepare(graph, image, mean, std) if taken.kind != TensorProto.UINT8 else image
        rename(graph, image, IMAGE)
        _name_outputs(graph, graph.outputs[which], flat, expected.shape[1], path)
    del model.graph.value_info[:]
    note(model, model, metadata)
    for size in ("batch", 1):
        model.graph.input.insert(0, helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, (size, *shape)))
        if found := _found(model, path, noise, size):
            wanted = expected[: len(found[0])]
            far = allowed(wanted, half=model is not theirs)
            if not any(one.shape == wanted.shape and np.abs(one - wanted).max() <= far for one in found):
                raise CompressError(f'"{path}" answers otherwise with its image preparation inside; please report this file')
            return model
        del model.graph.input[0]
    raise CompressError(_no_classes(path, shape))


def adopt_any(
    path: Path, images: NDArray[Any], mean: Sequence[float], std: Sequence[float], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """The network in ``path`` with its outputs as they are, proved on ``images`` to give what it gave; the file itself is not changed.

    Args:
        images: (N, C, H, W): uint8, whose normalisation by ``mean`` and ``std`` comes into the graph, or float32 as the file takes them.

    Raises:
        CompressError: for what the module refuses of inputs, or images of another shape or type than the file takes.
    """
    theirs = read_onnx(path)
    taken = _entry(theirs, path)
    fits = all(have in (0, want) for have, want in zip(taken.shape, images.shape[1:], strict=True))
    if taken.batch > 1 or not fits or (taken.kind == TensorProto.UINT8) > (images.dtype == np.uint8):
        takes = f"{taken.batch or 'N'} images of {TensorProto.DataType.Name(taken.kind).lower()} {taken.shape}"
        raise CompressError(
            f'"{path}" takes {takes}, and the data give {images.dtype} {images.shape[1:]}; one at a time of its kind are needed'
        )
    session = open_session(theirs, f'"{path}"')
    try:
        expected = [session.run(None, {taken.name: taken.fed(image[None], mean, std)}) for image in images]
    except RUNTIME_ERRORS as error:
        raise CompressError(f'"{path}" does not run on images {images.shape[1:]} ({first_line(error)})') from error
    model = as_float(theirs, path, taken.order(images.shape[1:]))
    with edited(model) as graph:
        image = named(graph)[taken.name]
        graph.inputs.remove(image)
        image = _channels_first(graph, image) if taken.last else image
        image = _prepare(graph, image, mean, std) if taken.kind != TensorProto.UINT8 and images.dtype == np.uint8 else image
        rename(graph, image, IMAGE)
        for one in graph.outputs:  # the batch may be another one now
            one.shape = ir.Shape([None] * len(one.shape)) if one.shape is not None else None
    del model.graph.value_info[:]
    note(model, model, metadata)
    kind = helper.np_dtype_to_tensor_dtype(images.dtype)
    for size in ("batch", 1):
        model.graph.input.insert(0, helper.make_tensor_value_info(IMAGE, kind, (size, *images.shape[1:])))
        if _gives(model, path, images, size, expected, half=model is not theirs):
            return model
        del model.graph.input[0]
    raise CompressError(f'"{path}" answers otherwise with its image preparation inside; please report this file')


def _gives(
    model: onnx.ModelProto, path: Path, images: NDArray[Any], size: int | str, expected: Sequence[Sequence[Any]], half: bool
) -> bool:
    """Whether it gives for each image what is expected, one at a time, or of any batch size all at once."""
    try:
        session = open_session(model, f'"{path}"')
        if size == 1:
            found = [session.run(None, {IMAGE: image[None]}) for image in images]
        else:
            together = session.run(None, {IMAGE: images})
            if any(np.ndim(one) == 0 or len(one) != len(images) for one in together):
                return False
            found = [[one[at : at + 1] for one in together] for at in range(len(images))]
    except (CompressError, *RUNTIME_ERRORS):
        return False
    pairs = [pair for got, wanted in zip(found, expected, strict=True) for pair in zip(got, wanted, strict=True)]
    return all(
        one.shape == want.shape and np.allclose(one, want, rtol=0, atol=allowed(np.nan_to_num(want), half), equal_nan=True)
        for one, want in pairs
    )


def classes_of(model: onnx.ModelProto) -> int:
    """How many classes one that was adopted reads."""
    return int(model.graph.output[0].type.tensor_type.shape.dim[1].dim_value)


def is_sigmoid(path: Path) -> bool:
    """Whether the probabilities of a file that was adopted are a sigmoid's."""
    return any(node.op_type == "Sigmoid" and PROBABILITIES in node.output for node in read_onnx(path).graph.node)


def own_answers(
    path: Path, mean: Sequence[float], std: Sequence[float], images: Any
) -> tuple[NDArray[Any], Literal["probabilities", "Softmax", "Sigmoid"]]:
    """What the file itself gives for images uint8 (N, C, H, W), an array or indexed like one: (N, K), and what makes probabilities of it.

    Any file that gives (B, K), a quantized one too, as it is.
    """
    model = read_onnx(path)
    found, which, _ = _answers(model, _entry(model, path), path, images, mean, std)
    kind, node, _ = _head(index(model).outputs[which])
    return found, kind if node is None else "probabilities"


def _answers(
    model: onnx.ModelProto, taken: _Taken, path: Path, images: Any, mean: Sequence[float], std: Sequence[float]
) -> tuple[NDArray[Any], int, bool]:
    """What a file gives for its classes (N, K), the place of that output, and whether it has dimensions of 1 besides.

    That is the first output (B, K), or where there is none the first that becomes so when it is flattened.
    """
    if any(have not in (0, want) for have, want in zip(taken.shape, images.shape[1:], strict=True)):
        told = f"takes images {taken.shape}, and image-shape (={images.shape[1:]}) is another; leave --image-shape out"
        raise CompressError(f'"{path}" {told}')
    session = open_session(model, f'"{path}"')
    try:
        parts = [session.run(None, {taken.name: taken.fed(image[None], mean, std)}) for image in images]
    except RUNTIME_ERRORS as error:
        told = f"does not run on images {images.shape[1:]} ({first_line(error)}); name others with --image-shape"
        raise CompressError(f'"{path}" {told}') from error
    fits = [which for which, one in enumerate(parts[0]) if one.ndim > 1 and len(one) == 1 and 1 < one.size == max(one.shape)]
    if not fits and any(one.size == 1 for one in parts[0]):
        told = "gives one number for an image, and a classifier gives one for each class; of a sigmoid's p make 1 - p and p"
        raise CompressError(f'"{path}" {told}')
    if not fits:
        raise CompressError(_no_classes(path, images.shape[1:]))
    which = min(fits, key=lambda which: parts[0][which].ndim > 2)
    found = np.concatenate([part[which].reshape(1, -1) for part in parts]).astype(np.float32)
    if np.isnan(found).any():
        raise CompressError(f'"{path}" answers NaN; mend its weights, or what its training did to them')
    return found, which, parts[0][which].ndim > 2


def _no_classes(path: Path, shape: Sequence[int]) -> str:
    return f'"{path}" does not give (B, K) for images {tuple(shape)}; a classifier of one label per image is needed here'


def _entry(model: onnx.ModelProto, path: Path) -> _Taken:
    entries = image_inputs(model)
    if len(entries) != 1:
        raise CompressError(f'"{path}" has {len(entries)} inputs ({", ".join(value.name for value in entries)}); one of images is needed')
    kind = entries[0].type.tensor_type.elem_type
    sizes = [dim.dim_value for dim in entries[0].type.tensor_type.shape.dim]
    if len(sizes) != 4:
        raise CompressError(f'"{path}" takes {len(sizes)} dimensions; images (B, C, H, W) are needed')
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8, *HALF):
        raise CompressError(f'"{path}" takes {TensorProto.DataType.Name(kind)}; export it with float32 or uint8 input')
    batch, *shape = sizes
    last = shape[2] in (1, 3) and shape[0] not in (1, 3)
    channels, height, width = (shape[2], *shape[:2]) if last else shape
    return _Taken(name=entries[0].name, kind=kind, batch=batch, shape=(channels, height, width), last=last)


def _channels_first(graph: ir.Graph, taken: ir.Value) -> ir.Value:
    """The tensor (B, C, H, W) from which a Transpose makes that which was the input; where the file undoes it, without the two."""
    first = ir.Value(name=fresh(graph, IMAGE))
    transpose = make(graph, "Transpose", [first], taken, "prepare.transpose", perm=[0, 2, 3, 1])
    [last] = transpose.outputs
    taken.replace_all_uses_with(last, replace_graph_outputs=True)
    for reader in readers(last):
        if (
            is_a(reader, "Transpose")
            and tuple(settings(reader).get("perm", ())) == (0, 3, 1, 2)
            and not reader.outputs[0].is_graph_output()
        ):
            reader.outputs[0].replace_all_uses_with(first)
    graph.insert_before(graph[0], [transpose])
    sweep(graph)
    return first


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


def _name_outputs(graph: ir.Graph, given: ir.Value, flat: bool, classes: int, path: Path) -> None:
    """What goes into the Softmax or Sigmoid that ``given`` ends in becomes ``logits``, or it itself; what comes out, ``probabilities``.

    ``flat``: it is to be flattened. All other outputs stay behind the two; one that is called as they are gets out of their way.
    """
    if given.producer() is None:
        raise CompressError(f'"{path}": output "{given.name}" is made by no node; export it again')
    kind, last, viewed = _head(given)
    logits, flat = (last.inputs[0], viewed or flat) if last is not None else (given, flat)
    assert logits is not None, "a Softmax has an input"
    if flat:
        graph.append(make(graph, "Flatten", [logits], LOGITS, axis=1))
        logits = graph[-1].outputs[0]
    probable = next((one for one in readers(logits) if is_a(one, kind) and settings(one).get("axis", -1) in (1, -1)), None)
    if probable is None:
        probable = make(graph, kind, [logits], PROBABILITIES, PROBABILITIES, **({"axis": 1} if kind == "Softmax" else {}))
        graph.append(probable)
    rename(graph, logits, LOGITS)
    rename(graph, probable.outputs[0], PROBABILITIES)
    others = [one for one in graph.outputs if one is not given]  # which one of the two is, or says again
    graph.outputs[:] = list(dict.fromkeys([logits, probable.outputs[0], *others]))
    for one in graph.outputs[:2]:
        one.type, one.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", classes])
    for one in graph.outputs[2:]:  # the batch may be another one now
        one.shape = ir.Shape([None] * len(one.shape)) if one.shape is not None else None
    sweep(graph)


def _head(given: ir.Value) -> tuple[Literal["Softmax", "Sigmoid"], ir.Node | None, bool]:
    """What makes probabilities, the node that does where ``given`` is its output, and whether that was given another shape since."""
    last, viewed = given.producer(), False
    while last is not None and is_a(last, *_VIEWS) and settings(last).get("to", TensorProto.FLOAT) in (TensorProto.FLOAT, *HALF):
        viewed |= not is_a(last, "Identity", "Cast")
        last = maker(last.inputs[0])
    if last is not None and is_a(last, "Sigmoid"):
        return "Sigmoid", last, viewed
    if last is not None and is_a(last, "Softmax") and settings(last).get("axis", -1) != 0:
        return "Softmax", last, viewed
    beside = any(is_a(one, "Sigmoid") and one.outputs[0].is_graph_output() for one in readers(given))
    return "Sigmoid" if beside else "Softmax", None, False


def _found(model: onnx.ModelProto, path: Path, images: NDArray[np.uint8], batch: int | str) -> list[NDArray[Any]] | None:
    """Logits and probabilities, where the graph gives (B, K) for a batch of that size, and of any size for a name."""
    images = images[: batch if isinstance(batch, int) else None]
    try:
        session = open_session(model, f'"{path}"')
        found, mixed = session.run([LOGITS, PROBABILITIES], {IMAGE: images}), isinstance(batch, str) and mixes_images(session, images)
    except (CompressError, *RUNTIME_ERRORS):
        return None
    if mixed:
        raise CompressError(
            f'"{path}" gives an image other logits alone than in a batch, so nothing could be proved of it; '
            "export it in eval mode, with batch norms that have running statistics"
        )
    return found if mixed is not None and found[0].ndim == 2 and len(found[0]) == len(images) else None
