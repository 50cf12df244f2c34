"""References become networks: built, checked against the contract, and filled with weights.

A factory is called with ``classes=K`` if it takes that name, and with the options of its reference. The module it returns maps
float32 (B, C, H, W) to logits (B, K). Weights come as safetensors, or as a state dict in ``.pt``, ``.pth`` or Lightning's ``.ckpt``, which
torch reads with ``weights_only=True``: nothing in a file is executed.
"""

import inspect
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..channels.bypass import bypass
from ..channels.cut import cut_to, evaluating
from ..errors import NetworkError, first_line, need_file, shown
from ..models.errors import ModelError
from ..pruning.attention.heads import separate_heads
from ..pruning.passes import tensors_in
from ..train.settings import heads
from .artifact import Artifact, InputSpec
from .model_reference import FACTORY_FAILURES, ModelReference

ALIKE = 1e-3  # of the largest value: rounding, as sums in another order differ by about 1e-6 of it
WRAPPERS = "state_dict model_state_dict model network net model_ema ema_state_dict state_dict_ema ema"  # the first that is there
COVERS = ("module", "_orig_mod")  # what DataParallel, averaging and torch.compile put before names
# What torch.load raises for truncated or altered files, of its two formats, besides UnpicklingError.
DAMAGED_PICKLE = (
    RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError, MemoryError, OSError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


class Prepare(nn.Module):
    """uint8 images (B, C, H, W) to the network's float32 input, (pixel / 255 - mean) / std; exported into the graph.

    Where images are floats already they stay as they are.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        mean, std = torch.tensor(spec.mean, dtype=torch.float64), torch.tensor(spec.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, -1, 1, 1))
        self.register_buffer("offset", (-mean / std).float().view(1, -1, 1, 1))
        self.shifts, self.as_they_are = any(spec.mean), bool(spec.pixels)

    def forward(self, images: Tensor) -> Tensor:
        if self.as_they_are:
            return images.float()
        scaled = images.float() * self.scale
        return scaled + self.offset if self.shifts else scaled


def build_network(model: ModelReference, classes: int, spec: InputSpec) -> nn.Module:
    """A new network with initial weights from torch's generator; its contract (shapes, type) is checked on an example.

    ``classes``: 0 where its outputs are none; then any tensors with a place for the batch do.
    """
    factory = model.factory()
    takes = inspect.signature(factory).parameters
    any_name = any(one.kind is one.VAR_KEYWORD for one in takes.values())
    arguments = {**model.options, **({"classes": classes} if classes and (any_name or "classes" in takes) else {})}
    if unknown := [name for name in arguments if not any_name and name not in takes]:
        raise NetworkError(
            f"model (={model.reference}): its factory takes no {', '.join(unknown)}; it takes {', '.join(takes) or 'nothing'}"
        )
    try:
        network = factory(**arguments)
    except FACTORY_FAILURES as error:
        if model.is_built_in and isinstance(error, ModelError):
            raise
        raise NetworkError(f"model (={model.reference}): the factory failed: {first_line(error)}") from error
    if not isinstance(network, nn.Module):
        raise NetworkError(f"model (={model.reference}): the factory returned a {type(network).__name__}, a torch.nn.Module is needed")
    _check_contract(network, model.reference, classes, spec)
    return network


def load_weights(network: nn.Module, file: Path, *, classes: int | None = None) -> str:
    """Load a state dict from ``file`` strictly; missing, unexpected and mis-shaped entries are named, and what holds no finite floats.

    ``classes``: layers that differ in nothing but giving so many classes here, and others there, keep what they have.

    Returns:
        What was unwrapped to find it, in words such as ``its "model_ema", without "module"``; nothing where nothing was.
    """
    own = network.state_dict(keep_vars=True)
    stored, told = _unwrap(_read_state_dict(file), file, own)
    if odd := [name for name, value in stored.items() if name in own and not _plain(value, own[name])]:
        raise NetworkError(
            f"weights (={file}) holds {_some(odd)}, that is no finite float weight; save the state_dict of a trained network"
        )
    heads = [name for name in own if classes is not None and name in stored and _is_head(stored[name], own[name], classes)]
    if heads:
        theirs = ", ".join(dict.fromkeys(f"{name.rpartition('.')[0]} of {len(stored[name])} classes" for name in heads))
        told = ", ".join(filter(None, [told, f"without {theirs}: what reads {classes} is new"]))
        stored = {**stored, **{name: own[name].detach() for name in heads}}
    problems = {
        "missing": [name for name in own if name not in stored],
        "unexpected": [name for name in stored if name not in own],
        "mis-shaped": [
            f"{name} {tuple(stored[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if name in stored and stored[name].shape != value.shape
        ],
    }
    if differ := "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names):
        raise NetworkError(
            f"{file} does not fit the network: {shown(differ, 140)}; the --model and its options must be those it was trained with"
        )
    network.load_state_dict(stored)
    return told


def _is_head(value: Tensor, own: Tensor, classes: int) -> bool:
    """Whether they are the weights of one layer for two numbers of classes."""
    return len(own.shape) > 0 and len(own) == classes != len(value) and value.shape[1:] == own.shape[1:]


def _plain(value: Tensor, own: Tensor) -> bool:
    """Whether ``value`` is dense, in memory, and made of finite floats; of whole numbers where the network's ``own`` is."""
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        return False
    if not own.is_floating_point():
        return not value.is_floating_point() and not value.is_complex()
    if not value.is_floating_point() or value.dtype.itemsize == 1:  # those of 8 bits are quantized, their scales are elsewhere
        return False
    whole = torch.isfinite(value.float())
    if not isinstance(own, nn.Parameter) and value.shape == own.shape:  # a mask of attention has infinities by design
        whole |= value == own
    return bool(whole.all())


def load_network(artifact: Artifact) -> nn.Module:
    """The network of an artifact, in eval mode on the CPU, with its weights; of a graph, one that takes images as the graph does."""
    about = artifact.manifest
    if about.kind == "graph":
        from ..graphs.as_torch.network import OnnxNetwork
        from ..graphs.floats import read_float

        return OnnxNetwork(read_float(artifact.payload), str(artifact.path), whole=bool(about.task)).eval()
    model = ModelReference.of(about.model)
    assert model is not None, "an artifact of a network has a reference"
    if model.identity()["source"] != about.model.source:
        raise NetworkError(f"{model.reference} was changed since {artifact.path} was made from it; put it back, or train again")
    with torch.random.fork_rng(devices=[]):
        network = build_network(model, len(about.classes), about.input)
    if any(step.stage == "remove-channels" for step in artifact.steps):
        bypass(network, artifact.bypassed)
        cut_to(network, {name: tuple(value.shape) for name, value in _read_state_dict(artifact.payload).items()})
    load_weights(network, artifact.payload)
    return network.eval()


def load_to_cut(artifact: Artifact) -> nn.Module:
    """The same, with attention whose heads can be removed: see :mod:`compress.pruning.attention`."""
    return separate_heads(load_network(artifact))


def load_parts(artifact: Artifact) -> tuple[Prepare, nn.Module]:
    """The network of an artifact in two parts: uint8 images (B, C, H, W) to the network's input, and the network, to logits."""
    return Prepare(artifact.manifest.input).eval(), load_network(artifact)


def load_runner(artifact: Artifact, device: str, threads: int) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The network of an artifact as a function from images uint8 (B, C, H, W) to logits float32 (B, K)."""
    torch.set_num_threads(threads)
    return as_runner(nn.Sequential(*load_parts(artifact)).to(device).eval(), device)


def as_runner(network: nn.Module, device: str = "cpu") -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """``network``, which takes images as they are, on ``device``, as a function of arrays; the images may be read-only."""

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.tensor(images, device=device)).float().cpu().numpy()

    return run


def _check_contract(network: nn.Module, reference: str, classes: int, spec: InputSpec) -> None:
    shape, pixels = "x".join(map(str, spec.shape)), torch.rand(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    named = [(name, value) for name, value in network.state_dict(keep_vars=True).items() if not is_lazy(value)]
    if odd := [name for name, value in named if not isinstance(value, Tensor) or not _plain(value, value)]:
        raise NetworkError(f"model (={reference}) has {_some(odd)}, that is no finite float weight; make them dense float32, on the CPU")
    # Not inference_mode: a tensor that a network keeps from its first call could not be trained with.
    with evaluating(network), torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            made = network(pixels.clone())
            given = [(made, "")]
            before = [(value, value.clone()) for value in network.buffers()]  # running statistics, which training moves
            if classes:
                given += [(head, " in training") for _, head in heads(network.train()(pixels.clone()))]
        except (*FACTORY_FAILURES, IndexError, AssertionError) as error:
            when = " in training" if network.training else ""
            raise NetworkError(
                f"model (={reference}) fails{when} on float32 images (2, {shape.replace('x', ', ')}): {first_line(error)}; "
                f"--image-shape (={shape}) must be what the network takes"
            ) from error
        for value, old in before:
            value.copy_(old)
        tensors = tensors_in(made)
        if not classes and (not tensors or any(not one.dim() or len(one) != 2 for one in tensors)):
            got = ", ".join(str(tuple(one.shape)) for one in tensors) or f"a {type(made).__name__}"
            raise NetworkError(f"model (={reference}) returned {got} for 2 images; tensors of shape (2, ...) are needed")
        for logits, when in given if classes else ():
            if not isinstance(logits, Tensor) or logits.shape != (2, classes):
                got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
                raise NetworkError(
                    f"model (={reference}) returned {got} for 2 images{when}; logits of shape (2, {classes}) are needed, "
                    "one per class of the data"
                )
        network.eval()
        if layer := _mixes_images(network, pixels):
            raise NetworkError(
                f"model (={reference}): what {layer} makes of an image in eval mode depends on the others of its batch, or on chance, so "
                "nothing could be proved of one image; keep running statistics, reduce over no batch, draw nothing"
            )


def _mixes_images(network: nn.Module, pixels: Tensor) -> str:
    """The first layer that makes something else of an image alone than in the batch ``pixels``, by name; nothing where none does."""

    def made(images: Tensor, layers: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, Tensor]]:
        seen: list[tuple[str, Tensor]] = []

        def see(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) or layer is network:
                seen.extend((name, one.clone()) for one in tensors_in(output))

        # A batch norm without running statistics may fail on a single image.
        with ExitStack() as hooks, suppress(*FACTORY_FAILURES, IndexError, AssertionError):
            for name, layer in layers:
                hooks.enter_context(layer.register_forward_hook(partial(see, name)))
            network(images.clone())
        return seen

    found = ""
    for layers in ([("the network", network)], [(f'"{name}"', layer) for name, layer in network.named_modules() if name]):
        together = made(pixels, layers)
        alone = [made(image[None], layers) for image in pixels]
        parts = ((name, whole, row, one[place:]) for place, (name, whole) in enumerate(together) for row, one in enumerate(alone))
        found = next((name for name, whole, row, one in parts if not one or not _alike(one[0][1], whole, row)), found)
        if not found:
            break
    return found


def _alike(one: Tensor, whole: Tensor, row: int) -> bool:
    """Whether a result (1, ...) is that of a row of (B, ...), but for rounding; results of other shapes say nothing."""
    if one.shape[1:] != whole.shape[1:] or len(one) != 1 or not one.is_floating_point():
        return True
    return torch.allclose(one[0], whole[row], rtol=0, atol=ALIKE * float(whole.nan_to_num().abs().max()), equal_nan=True)


def _read_state_dict(file: Path) -> dict[str, Any]:
    need_file(file, f"weights (={file})", error=NetworkError)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if file.suffix in (".pt", ".pth", ".ckpt"):
            if zipfile.is_zipfile(file) and sum(one.file_size for one in zipfile.ZipFile(file).infolist()) > file.stat().st_size:
                raise ValueError("it declares more than it holds; torch packs nothing")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about sparse tensors, which are refused
                return torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise NetworkError(f"weights (={file}) is not a whole safetensors file: {shown(first_line(error), 120)}") from error
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"weights (={file}) holds more than tensors, or is no torch file; save network.state_dict(), not the network"
        ) from error
    except DAMAGED_PICKLE as error:
        raise NetworkError(f"weights (={file}) is not a whole torch file: {shown(first_line(error), 120)}") from error
    raise NetworkError(f"weights (={file}) must end in .safetensors, .pt, .pth or .ckpt")


def _unwrap(stored: Any, file: Path, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state dict inside what trainers save around it, under the network's own names, and what was taken off, in words.

    By hand: of ``{"epoch": 3, "model_ema": {"module.fc.weight": w, "n_averaged": n}}`` it is ``{"fc.weight": w}``.
    """
    told: list[str] = []
    while isinstance(stored, dict) and (inner := [f'its "{key}"' for key in WRAPPERS.split() if isinstance(stored.get(key), dict)]):
        told.append(", not ".join(inner))
        stored = stored[inner[0].split('"')[1]]
    if not isinstance(stored, dict) or not stored or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in stored.items()):
        raise NetworkError(f"weights (={file}) holds no state dict (names to tensors); save network.state_dict()")
    ours, theirs = ({_bare(name): name for name in names} for names in (own, stored))
    if own.keys() <= stored.keys() or len(ours) < len(own) or len(theirs) < len(stored):
        return stored, ", ".join(told)
    first = next(iter(ours))
    fronts = [name.removesuffix(first) for name in theirs if f".{name}".endswith(f".{first}")]
    fronts = [front for front in fronts if all(front + name in theirs for name in ours)]
    if len(fronts) > 1:
        raise NetworkError(f"weights (={file}) holds several networks, {_some(fronts)}; save the state_dict of one of them")
    for front in fronts:
        taken = {theirs[front + bare]: name for bare, name in ours.items()}
        roots = {name.partition(".")[0] for name in taken}
        # What trainers keep beside the network, as averaging does its count; what stands among its layers is refused as unexpected.
        alone = len(roots) == 1 and not roots <= {name.partition(".")[0] for name in own}
        beside = [name for name in stored if alone and name.partition(".")[0] not in roots]
        covers = sorted({part for name in taken for part in name.split(".")} & set(COVERS))
        told += [f'without "{part}"' for part in (*covers, front.rstrip(".")) if part] + ([f"without {_some(beside)}"] if beside else [])
        stored = {taken.get(name, name): value for name, value in stored.items() if name not in beside}
    return stored, ", ".join(told)


def _bare(name: str) -> str:
    """``features.module.0.weight`` of DataParallel, and ``_orig_mod.fc.bias`` of torch.compile, as the network has them."""
    return ".".join(part for part in name.split(".") if part not in COVERS)


def _some(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
