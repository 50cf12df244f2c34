"""Where a network looks: its attention gates. The same numbers from torch and from ONNX; evidence is in :mod:`.occlusion`.

A *gate* is a sigmoid or hard sigmoid that multiplies a feature map (B, C, H, W) and is the same at every pixel (*channel gate*, C numbers)
or in every channel (*spatial gate*, H x W numbers). It is recognised by what it does, in any network: squeeze-and-excitation and CBAM have
gates; ``x * sigmoid(x)`` is none, nor is a sigmoid to which something is added before it multiplies.

Refused: nothing but a graph that ONNX Runtime cannot load. Sources: Hu et al. 2017, arXiv:1709.01507 and Woo et al. 2018, arXiv:1807.06521.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..index import index, is_a, maker
from ..probe import run_in_batches, with_outputs

_ATEN = torch.ops.aten
_SIGMOIDS = (_ATEN.sigmoid, _ATEN.sigmoid_, _ATEN.hardsigmoid, _ATEN.hardsigmoid_)
# Nodes between a sigmoid and the product that leave its values as they are, but for int8's rounding, which belongs to the gate.
_CARRIERS = ("QuantizeLinear", "DequantizeLinear", "Reshape", "Unsqueeze", "Expand", "Identity", "Cast")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """``kind`` is "channel" with ``values`` float32 (B, C), or "spatial" with (B, H, W)."""

    kind: str
    values: NDArray[np.float32]


def network_gates(network: nn.Module, images: Tensor) -> list[Gate]:
    """The gates of ``network`` (in eval mode) for a batch of what it takes, in the order of computation."""
    watch = _Watch()
    with torch.no_grad(), watch:
        network(images.clone())
    return watch.gates


def graph_gates(model: onnx.ModelProto, images: NDArray[np.uint8]) -> list[Gate]:
    """The gates of a graph for ``images``, uint8 (B, C, H, W), in the order of its nodes; of an int8 graph as they are after rounding.

    The graph takes uint8, or float32 in [0, 1]. It is computed node by node, as the file says: ONNX Runtime's fusions, which hide gates
    and move int8 by a step, are off.

    Raises:
        CompressError: ONNX Runtime cannot load the graph.
    """
    products = [node for node in index(model) if is_a(node, "Mul")]
    factors = [(_gate_at(value), node.outputs[0]) for node in products for value in node.inputs]
    pairs = [(str(factor.name), str(product.name)) for factor, product in factors if factor is not None]
    if not pairs:
        return []
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    parts = [found for _, found in run_in_batches(with_outputs(model, names), images, len(images))]
    tensors = {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}
    found = [_as_gate(tensors[factor], tensors[product].shape) for factor, product in pairs]
    return [gate for gate in found if gate is not None]


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Spearman's: the :func:`correlation` of the ranks of two arrays, ties at their mean rank.

    ``[1, 2, 3]`` and ``[10, 20, 90]`` give 1.0: the same order is the same gate, whatever its strength.
    """
    return correlation(_ranks(first), _ranks(second))


def correlation(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Pearson's, of two arrays that are not empty; None where their shapes differ or one is constant."""
    if first.shape != second.shape or any(values.min() == values.max() for values in (first, second)):
        return None
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place].reshape(values.shape)


class _Watch(TorchDispatchMode):
    """Sees every operation below Python's ways to write it: ``torch.sigmoid``, ``nn.Sigmoid``, ``x.sigmoid()`` are one here."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[Gate] = []
        # By their memory, which views and expanded copies share; held, so that it is not given to another tensor meanwhile.
        self._sigmoids: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _SIGMOIDS:
            self._sigmoids[result.untyped_storage().data_ptr()] = result
        elif func.overloadpacket in (_ATEN.mul, _ATEN.mul_):
            for factor in args[:2]:
                if isinstance(factor, Tensor) and factor.untyped_storage().data_ptr() in self._sigmoids:
                    gate = _as_gate(factor.detach().float().cpu().numpy(), tuple(result.shape))
                    self.gates += [gate] if gate is not None else []
        return result


def _gate_at(value: ir.Value | None) -> ir.Value | None:
    """What a sigmoid has become in this tensor; what Expand repeats is read before it, where the repetition still shows in the shape."""
    gate = value
    while (node := maker(value, *_CARRIERS)) is not None:
        value = node.inputs[0]
        gate = value if node.op_type == "Expand" else gate
    return gate if maker(value, "Sigmoid", "HardSigmoid") is not None else None


def _as_gate(factor: NDArray[Any], product: tuple[int, ...]) -> Gate | None:
    """The gate that ``factor`` is for the feature map it makes, of shape ``product``; along what it only repeats its stride is 0."""
    if len(product) != 4:
        return None
    full = np.broadcast_to(factor, product)
    repeated = [stride == 0 and size > 1 for stride, size in zip(full.strides, product, strict=True)]
    over_channels, over_pixels = repeated[1], any(repeated[2:]) and all(r or n == 1 for r, n in zip(repeated[2:], product[2:], strict=True))
    if over_channels == over_pixels:
        return None
    values = full[:, 0] if over_channels else full[:, :, 0, 0]
    return Gate(kind="spatial" if over_channels else "channel", values=np.array(values, np.float32))
