"""Export: a network and its input preparation become one ONNX file, which takes the raw ``uint8`` image.

The graph has one input, ``image``, uint8 (B, C, H, W), and one output, ``logits``, float32 (B, K), with the batch axis free. Scaling and
normalisation lie inside, so that a board cannot get them wrong. Softmax does not: it changes no answer, costs time in every inference, and
in an int8 graph would squeeze the logits through 256 steps before anybody could compare them.

The exporter folds batch norm into the convolutions. Everything it notes about this machine (paths, source lines) is removed; the same
network gives the same bytes.

Refuses: an example of one image or of another type, a network that cannot be traced or that does not give (B, K), a graph whose batch
axis is not free.

Source: torch.onnx.export(dynamo=True). An example of one image freezes the batch axis: pytorch/pytorch#151582, #148629.
"""

import contextlib
import copy
import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from .errors import CompressError, first_line
from .onnxfile import RUNTIME_ERRORS, open_session, read_onnx, write_onnx

OPSET = 18  # what the exporter writes without a conversion step, and what older runtimes on boards read


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How well a file agrees with the torch network.

    ``largest_difference`` is the largest absolute difference of two logits (infinity where one is not finite); ``agreement`` is the
    fraction of images with the same argmax, 0 to 1; both over ``images`` images.
    """

    images: int
    largest_difference: float
    agreement: float


class _Deployed(nn.Module):
    """uint8 (B, C, H, W) to logits (B, K): copies of preparation and network on the CPU in eval mode; the originals stay as they are."""

    def __init__(self, prepare: nn.Module, network: nn.Module) -> None:
        super().__init__()
        try:
            self.prepare, self.network = copy.deepcopy((prepare, network))
        except (RuntimeError, TypeError) as error:
            raise CompressError(
                f"network cannot be copied ({first_line(error)}); remove old-style weight_norm, locks and open files from it"
            ) from error
        self.cpu().eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.network(self.prepare(image))


def export_onnx(
    network: nn.Module, target: Path, *, prepare: nn.Module, example: Tensor, metadata: Mapping[str, str], opset: int = OPSET
) -> None:
    """Write ``prepare`` and ``network`` as one ONNX file.

    Args:
        network: float32 (B, C, H, W) to logits float32 (B, K); its device and training flags do not matter and are not changed.
        target: the file to write; replaced at once or not at all.
        prepare: uint8 (B, C, H, W) to float32 (B, C, H, W), the scaling and normalisation.
        example: uint8 (at least 2, C, H, W); its C, H and W become those of the graph.
        metadata: goes into the file's ``metadata_props``, sorted by name.
        opset: the ONNX operator set, at least 18.

    Raises:
        CompressError: for what the module refuses; nothing is written then.
    """
    if example.dtype != torch.uint8 or example.ndim != 4 or len(example) < 2:
        raise CompressError(f"example (={example.dtype} {tuple(example.shape)}) must be torch.uint8 (B, C, H, W) with at least 2 images")
    if opset < OPSET:
        raise CompressError(f"opset (={opset}) must be at least {OPSET}, which the exporter writes without converting")
    deployed = _Deployed(prepare, network)
    example = example.cpu()
    _check_logits(deployed, example)
    model = _trace(deployed, example, opset)
    _clean(model, metadata)
    _check_batch_is_free(model, example)
    write_onnx(model, target)


def parity(network: nn.Module, prepare: nn.Module, path: Path, images: np.ndarray, *, batch: int = 256) -> Parity:
    """Compare a file in ONNX Runtime with the network in torch, both on the CPU, on real images.

    Args:
        network: float32 (B, C, H, W) to logits (B, K); not changed.
        prepare: uint8 (B, C, H, W) to float32 (B, C, H, W).
        path: a file from ``export_onnx``, or one quantized from it.
        images: uint8 (N, C, H, W), at least one.
        batch: images at a time.

    Raises:
        CompressError: no images, or a file that does not load or does not take them.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
        raise CompressError(f"images (={images.dtype} {images.shape}) must be uint8 (N, C, H, W) with at least one image")
    deployed = _Deployed(prepare, network)
    session = open_session(read_onnx(path), f'"{path}"')
    entry, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    largest, same = 0.0, 0
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch])
        with torch.inference_mode():
            expected = deployed(torch.tensor(part)).numpy()  # a copy: the images may be read-only
        try:
            (found,) = session.run([output], {entry: part})
        except (ValueError, *RUNTIME_ERRORS) as error:
            raise CompressError(f'"{path}" does not take images of {part.dtype} {part.shape[1:]} ({first_line(error)})') from error
        if found.shape != expected.shape:
            raise CompressError(f'"{path}" gives {found.shape}, the network {expected.shape}; compare a file with the network it came from')
        difference = float(np.abs(found - expected).max())
        largest = max(largest, difference if math.isfinite(difference) else math.inf)
        same += int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    return Parity(images=len(images), largest_difference=largest, agreement=same / len(images))


def _check_logits(deployed: nn.Module, example: Tensor) -> None:
    try:
        with torch.inference_mode():
            logits = deployed(example)
    except RuntimeError as error:
        raise CompressError(f"network does not take the example {tuple(example.shape)} ({first_line(error)})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(example) or logits.dtype != torch.float32:
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise CompressError(f"network must give float32 logits (B, K) for an example of {len(example)} images, but gives {found}")


def _trace(deployed: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    chatter = io.StringIO()  # the exporter logs whole graphs when it fails; the reason is in the exception
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter), warnings.catch_warnings(record=True) as caught:
            # torch 2.11's own use of a deprecated class, nothing of the network's.
            warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
            program = torch.onnx.export(
                deployed,
                (example,),
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise CompressError(
            f"network cannot be exported ({first_line(cause)}); "
            "its forward pass must be torch operations that ONNX knows, without branches on tensor values"
        ) from error
    for warning in caught:  # held back only from the chatter
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    assert program is not None
    return program.model_proto


def _clean(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    _strip_notes(model)
    weights = {weight.name for weight in model.graph.initializer}
    # A quantizer that transposes a weight trips over the shape noted for it ("Inferred shape and existing shape differ").
    shapes = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(shapes)
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


def _strip_notes(message: Any) -> None:
    """Clear the exporter's notes in a protobuf message and in all messages inside it."""
    for name in ("doc_string", "metadata_props"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in (value,) if hasattr(value, "ListFields") else value:
                _strip_notes(child)


def _check_batch_is_free(model: onnx.ModelProto, example: Tensor) -> None:
    """A Python loop over the batch, or a shape written as a number, makes a graph that only takes the example's batch."""
    values = (model.graph.input[0], model.graph.output[0])
    free = all(value.type.tensor_type.shape.dim[0].dim_param for value in values)
    try:
        (logits,) = open_session(model, "the exported graph").run(None, {"image": example[:1].numpy()})
    except RUNTIME_ERRORS:  # a shape written as a number inside the graph fails only when it runs
        free = False
    else:
        free = free and len(logits) == 1
    if not free:
        raise CompressError(
            f"network was exported for batches of {len(example)} only; "
            "take the batch size from x.shape[0] or -1 in its forward pass, not as a number"
        )
