"""Export: a network and its input preparation become one ONNX file, which takes the raw ``uint8`` image.

The graph has one input, ``image``, uint8 (B, C, H, W), and two outputs, ``logits`` and then ``probabilities`` (the softmax of the first),
float32 (B, K), with the batch axis free. Scaling and normalisation lie inside, so that a board cannot get them wrong; where a camera
gives float32 in [0, 1], the graph can take that, and the normalisation still lies inside.

The exporter folds batch norm into the convolutions, and ``rewrite`` saves steps. Everything the exporter notes about this machine (paths,
source lines) is removed; the same network gives the same bytes.

Refuses: an example of one image or of another type, a network that cannot be traced or that does not give (B, K), a graph whose batch
axis is not free or in which the images of a batch mix.

Source: torch.onnx.export(dynamo=True). An example of one image freezes the batch axis: pytorch/pytorch#151582, #148629.
"""

import contextlib
import copy
import io
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import CompressError, first_line
from .file import RUNTIME_ERRORS, as_taken, mixes_images, note, open_session, read_onnx, write_onnx
from .index import edited, make, rename
from .records import Parity
from .rewrite import simplify

OPSET = 18  # what the exporter writes without a conversion step, and what older runtimes on boards read
IMAGES = ("uint8", "float32")


class _Deployed(nn.Module):
    """Images (B, C, H, W) to logits (B, K): copies of preparation and network on the CPU in eval mode; the originals stay as they are.

    ``scale`` is what turns the images into 0 to 255.
    """

    def __init__(self, prepare: nn.Module, network: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        try:
            self.prepare, self.network = copy.deepcopy((prepare, network))
        except (RuntimeError, TypeError) as error:
            raise CompressError(
                f"network cannot be copied ({first_line(error)}); remove old-style weight_norm, locks and open files from it"
            ) from error
        self.cpu().eval()

    def forward(self, image: Tensor) -> Any:
        return self.network(self.prepare(image if self.scale == 1 else image * self.scale))


def deployed(prepare: nn.Module, network: nn.Module, scale: float = 1.0) -> nn.Module:
    """The two as one module on the CPU, in eval mode: images to logits. Raises CompressError where they cannot be copied."""
    return _Deployed(prepare, network, scale)


def export_onnx(
    network: nn.Module,
    target: Path,
    *,
    prepare: nn.Module,
    example: Tensor,
    metadata: Mapping[str, str],
    opset: int = OPSET,
    image: str = "uint8",
    classes: bool = True,
) -> tuple[str, ...]:
    """Write ``prepare`` and ``network`` as one ONNX file.

    Args:
        network: float32 (B, C, H, W) to logits float32 (B, K); its device and training flags do not matter and are not changed.
        target: the file to write; replaced at once or not at all.
        prepare: uint8 (B, C, H, W) to float32 (B, C, H, W), the scaling and normalisation.
        example: uint8 (at least 2, C, H, W); its C, H and W become those of the graph.
        metadata: goes into the file's ``metadata_props``, sorted by name; ``compress.rewrites`` is added where something was rewritten.
        opset: the ONNX operator set, at least 18.
        image: what the graph takes, "uint8" or "float32" in [0, 1]. For the latter ``prepare`` gets float32 in [0, 255].
        classes: it gives logits; else tensors of any kind, which become ``output_0`` and so on, and images may be floats of any range.

    Returns:
        What was rewritten, in words.

    Raises:
        CompressError: for what the module refuses; nothing is written then.
    """
    if (example.dtype != torch.uint8 and classes) or example.ndim != 4 or len(example) < 2:
        raise CompressError(f"example (={example.dtype} {tuple(example.shape)}) must be torch.uint8 (B, C, H, W) with at least 2 images")
    if opset < OPSET:
        raise CompressError(f"opset (={opset}) must be at least {OPSET}, which the exporter writes without converting")
    if image not in IMAGES:
        raise CompressError(f'image (="{image}") must be {" or ".join(IMAGES)}; uint8 takes the pixels as a camera or file has them')
    scaled = image != "uint8" and example.dtype == torch.uint8
    example = example.cpu().float() / 255 if scaled else example.cpu()
    model = trace(deployed(prepare, network, 255.0 if scaled else 1.0), example, opset, classes=classes)
    rewrites = finished(model, classes=classes)
    notes = {"compress.rewrites": json.dumps(rewrites)} if rewrites else {}
    note(model, model, dict(metadata) | notes)
    _check_batch_is_free(model, example)
    write_onnx(model, target)
    return rewrites


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
    network = deployed(prepare, network)
    session = open_session(read_onnx(path), f'"{path}"')
    entry, (logits, *others) = session.get_inputs()[0], [value.name for value in session.get_outputs()]
    names = [logits, *(name for name in others if name == "probabilities")]
    largest, same = [0.0] * len(names), 0
    for start in range(0, len(images), batch):
        part = np.ascontiguousarray(images[start : start + batch])
        with torch.inference_mode():
            expected = network(torch.tensor(part)).numpy()  # a copy: the images may be read-only
        fed = as_taken(entry, part)
        try:
            found = session.run(names, {entry.name: fed})
        except (ValueError, *RUNTIME_ERRORS) as error:
            raise CompressError(f'"{path}" does not take images of {part.dtype} {part.shape[1:]} ({first_line(error)})') from error
        if found[0].shape != expected.shape:
            raise CompressError(
                f'"{path}" gives {found[0].shape}, the network {expected.shape}; compare a file with the network it came from'
            )
        wanted = expected, torch.from_numpy(expected).softmax(1).numpy()
        largest = [max(before, _difference(*pair)) for before, *pair in zip(largest, found, wanted, strict=False)]
        same += int((found[0].argmax(axis=1) == expected.argmax(axis=1)).sum())
    return Parity(
        images=len(images),
        largest_difference=largest[0],
        agreement=same / len(images),
        probabilities=largest[1] if len(largest) > 1 else None,
    )


def own_rounding(network: nn.Module, prepare: nn.Module, images: np.ndarray, *, batch: int = 256) -> float:
    """By how much the network's logits in float32 differ from those in float64: what any other order of its sums may differ by.

    About 1e-6 of the largest logit, but a batch norm of a channel that never varies, whose variance is 0, multiplies rounding by 300.

    Args:
        network, prepare, images, batch: as for :func:`parity`.

    Returns:
        0 for a network that does not compute in float64.
    """
    single, largest = deployed(prepare, network), 0.0
    double = copy.deepcopy(network).double().eval()
    for start in range(0, len(images), batch):
        part = torch.tensor(images[start : start + batch])
        with torch.inference_mode():
            try:
                exact = double(prepare(part).double())
            except RuntimeError:
                return 0.0
            largest = max(largest, float((single(part) - exact).abs().max()))
    return largest


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    difference = float(np.abs(found - expected).max())
    return difference if math.isfinite(difference) else math.inf


def _check_logits(deployed: nn.Module, example: Tensor) -> None:
    try:
        with torch.inference_mode():
            logits = deployed(example)
    except RuntimeError as error:
        raise CompressError(f"network does not take the example {tuple(example.shape)} ({first_line(error)})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(example) or logits.dtype != torch.float32:
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise CompressError(f"network must give float32 logits (B, K) for an example of {len(example)} images, but gives {found}")


def trace(
    deployed: nn.Module, example: Tensor, opset: int = OPSET, *, optimise: bool = True, classes: bool = True, free: bool = True
) -> onnx.ModelProto:
    """What the exporter writes of a network with its preparation; ``optimise``: with constants and batch norms folded.

    ``classes``: it gives logits; else tensors of any kind. ``free``: it takes any number of images, not just that of the example.

    Raises:
        CompressError: it cannot be exported, or gives no logits.
    """
    names = ["logits"]
    if classes:
        _check_logits(deployed, example)
    else:
        with torch.inference_mode():
            names = [f"output_{number}" for number, _ in enumerate(tree_leaves(deployed(example)))]
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
                output_names=names,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}} if free else None,
                opset_version=opset,
                verbose=False,
                optimize=optimise,
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
    model = program.model_proto
    _strip_notes(model)
    return model


def finished(model: onnx.ModelProto, *, classes: bool = True) -> tuple[str, ...]:
    """Drop notes of shapes, add the probabilities of ``classes`` and rewrite; returns what was rewritten, in words."""
    # A quantizer that transposes a weight trips over the shape noted for it ("Inferred shape and existing shape differ").
    del model.graph.value_info[:]
    if classes:
        _add_probabilities(model)
    return simplify(model)


def _add_probabilities(model: onnx.ModelProto) -> None:
    """The softmax of the logits as a second output; added here, so that a network need not know of it."""
    with edited(model) as graph:
        [logits] = graph.outputs
        softmax = make(graph, "Softmax", [logits], "probabilities", axis=1)
        graph.append(softmax)
        [value] = softmax.outputs
        value.type, value.shape = logits.type, logits.shape
        rename(graph, value, "probabilities")
        graph.outputs.append(value)


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
    """A Python loop over the batch, or a shape written as a number, makes a graph that only takes the example's batch; and an image must
    get what it gets alone.
    """
    free = all(value.type.tensor_type.shape.dim[0].dim_param for value in (*model.graph.input, *model.graph.output))
    try:
        mixed = mixes_images(open_session(model, "the exported graph"), example.numpy())
    except RUNTIME_ERRORS:  # a shape written as a number inside the graph fails only when it runs
        free = False
    else:
        free = free and mixed is not None
    if free and mixed:
        raise CompressError(
            "network gives an image other logits alone than in a batch, so nothing could be proved of it; "
            "keep running statistics in batch norms and reduce over no batch in its forward pass"
        )
    if not free:
        raise CompressError(
            f"network was exported for batches of {len(example)} only; "
            "take the batch size from x.shape[0] or -1 in its forward pass, not as a number"
        )
