"""Reading and writing ONNX files: what is read has been checked, and what is written loads.

Refuses on reading: a missing, empty, truncated or foreign file, one that the ONNX checker rejects, and missing external data. On writing:
a graph that the checker rejects or that ONNX Runtime cannot load; a refused graph leaves the target as it was.

Source: the ONNX checker (onnx.ai/onnx/api/checker.html); the write is temporary neighbour, sync, rename.
"""

from collections.abc import Mapping
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, EncodeError, Message  # type: ignore[import-untyped]
from numpy.typing import NDArray

from ..errors import CompressError, first_line, onnxruntime_errors
from ..files import write_whole

RUNTIME_ERRORS = onnxruntime_errors()
Level = onnxruntime.GraphOptimizationLevel
ALIKE = 1e-3  # of the largest logit: rounding, as sums in another order differ by about 1e-6 of it


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read a file with its external data and check it; names the file and what is wrong with it otherwise.

    Raises:
        CompressError: for what the module refuses.
    """
    if not path.is_file():
        raise CompressError(f'"{path}" is not a file; give the path of an .onnx file')
    if path.stat().st_size == 0:
        raise CompressError(f'"{path}" is empty (0 bytes); export it again')
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise CompressError(f'"{path}" is truncated or no ONNX file at all; export it again') from error
    if not _is_text(model):
        raise CompressError(f'"{path}" has a name, a label or a note that is no UTF-8; export it again')
    if not model.graph.node:
        raise CompressError(f'"{path}" holds no operators; it is no ONNX file, or an empty one')
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise CompressError(
            f'"{path}" keeps its weights in another file that cannot be read; put it beside this one ({first_line(error)})'
        ) from error
    _sort(model)
    _check(model, f'"{path}"')
    for value in (*model.graph.input, *model.graph.output):  # Paddle writes -1 for a size that is open
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()
    if model.ir_version < 4:  # had every weight listed among the inputs, which says nothing of whether the caller may replace it
        for value in [value for value in model.graph.input if value not in image_inputs(model)]:
            model.graph.input.remove(value)
        model.ir_version = 4
    return model


def _sort(model: onnx.ModelProto) -> None:
    """Put the nodes in the order of computation where they are not: ONNX Runtime does not mind, and its float16 converter leaves it so."""
    made = {name: place for place, node in enumerate(model.graph.node) for name in node.output if name}
    needs = {place: [made[name] for name in node.input if name in made] for place, node in enumerate(model.graph.node)}
    if all(place > other for place, others in needs.items() for other in others):
        return
    with suppress(CycleError):  # of which the checker tells
        nodes = [model.graph.node[place] for place in TopologicalSorter(needs).static_order()]
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def _is_text(value: Any) -> bool:
    """Whether all texts of a message, or of a list of them, are UTF-8, as protobuf has it; its parser lets others through, as ``bytes``."""
    if isinstance(value, Message):
        kinds = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING)
        return all(_is_text(part) for field, part in value.ListFields() if field.type in kinds)
    return isinstance(value, str) if isinstance(value, str | bytes) else all(map(_is_text, value))


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the ONNX operators that the model uses, 0 where it names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def image_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What the caller must hand in: the inputs but for the weights, which old files list among them."""
    weights = {weight.name for weight in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def as_taken(entry: onnx.ValueInfoProto | onnxruntime.NodeArg, images: NDArray[Any]) -> NDArray[Any]:
    """Images uint8 (B, C, H, W) as an input of a graph or session takes them: uint8, or float32 in [0, 1]; others stay as they are."""
    takes = entry.type.tensor_type.elem_type if isinstance(entry, onnx.ValueInfoProto) else entry.type
    if images.dtype == np.uint8 and takes in (onnx.TensorProto.FLOAT, "tensor(float)"):
        images = images.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(images)


def note(model: onnx.ModelProto, source: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Make the metadata of ``source`` and ``facts``, which win, those of ``model``, sorted by name."""
    kept = {entry.key: entry.value for entry in source.metadata_props}
    onnx.helper.set_model_props(model, dict(sorted((kept | dict(facts)).items())))


def write_onnx(model: onnx.ModelProto, target: Path) -> None:
    """Check the model, load it once in ONNX Runtime, and write it as one file, all or nothing.

    Raises:
        CompressError: the checker or ONNX Runtime refuses it; ``target`` is then as it was before.
    """
    _check(model, f'"{target}"')
    open_session(model, f'"{target}"')
    write_whole(target, model.SerializeToString(deterministic=True))


def open_session(model: onnx.ModelProto, name: str, **settings: Any) -> onnxruntime.InferenceSession:
    """Load a model on the CPU; ``name`` is what an error calls it, ``settings`` are those of ``onnxruntime.SessionOptions``.

    Raises:
        CompressError: ONNX Runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    # Not on stderr: errors come as exceptions, and hints about fusions are nothing to act on.
    for setting, value in {"log_severity_level": 4, **settings}.items():
        setattr(options, setting, value)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (*RUNTIME_ERRORS, EncodeError) as error:
        raise CompressError(f"{name} does not load in ONNX Runtime {onnxruntime.__version__} ({first_line(error)})") from error


def mixes_images(session: onnxruntime.InferenceSession, images: NDArray[Any]) -> bool | None:
    """Whether an image gets other answers alone than in the batch ``images`` (B, ...): as with a batch norm without running statistics.

    None where a batch gives answers of another shape than its images alone do. Raises what ONNX Runtime raises where it takes only one.
    """
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    together, *alone = (session.run([output], {name: part})[0] for part in (images, *images[:, None]))
    if [one.shape for one in alone] != [(1, *together.shape[1:])] * len(together):
        return None
    return not np.allclose(np.concatenate(alone), together, rtol=0, atol=ALIKE * np.abs(together).max(), equal_nan=True)


def _check(model: onnx.ModelProto, name: str) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, EncodeError, ValueError) as error:
        raise CompressError(f"{name} is no valid ONNX graph ({first_line(error)}); export it again") from error
