"""Fake-quantize: round float32 numbers to those that a quantized tensor can have, with a gradient that passes through.

By hand, scale 0.5 and zero point 10 in uint8: 1.3 is 2.6 steps, which round to 3, stored as 13 and read as 1.5; 2.5 steps round to 2
(half to even); -7 is clamped to what 0 stands for, -5. The gradient passes as if nothing had happened, but is zero where a number was
clamped.

Refuses: scales and zero points that are computed, types other than (u)int8, (u)int16 and int32, several zero points for one tensor, scales
per channel for an activation.

Sources: Krishnamoorthi 2018, arXiv:1806.08342 (the straight-through gradient); https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
(rounding).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ...errors import CompressError
from ...graphs.as_torch.operators import label_of
from ...graphs.index import constant, settings

_LARGEST = 2**31 - 128  # of the float32 numbers that an int32 can hold


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers that a quantized tensor can have: ``step * scale``, with whole steps from ``low`` to ``high``.

    ``scale`` is float32, of one element or with one per channel, shaped to be broadcast; ``zero_point`` is what stands for 0 in the file.
    ``wide``: an int32, whose steps are found in float64, as the quantizer does.
    """

    scale: Tensor
    zero_point: int
    low: int
    high: int
    wide: bool = False

    def same(self, other: "Grid | None") -> bool:
        """Whether both hold the same numbers, stored in the same way."""
        if other is None or (self.zero_point, self.low, self.high) != (other.zero_point, other.low, other.high):
            return False
        return torch.equal(self.scale, other.scale)

    def write(self, x: Tensor) -> np.ndarray:
        """What stands in the file for ``x``, as whole numbers in float64."""
        steps = _steps(x, self.scale, self.wide).clamp(self.low, self.high)
        return (steps.double() + self.zero_point).numpy()

    def read(self, stored: np.ndarray) -> Tensor:
        """The float32 numbers that stand in the file as ``stored``."""
        return (torch.tensor(stored).double() - self.zero_point).float() * self.scale


class FakeQuantize(torch.autograd.Function):
    """``apply(x, scale, low, high, wide)``: the numbers of a ``Grid`` that are nearest to ``x``, float32 in its shape and on its device.

    Torch's own kernel multiplies with 1 / scale, which rounds ties otherwise than ONNX does, and takes 8 times longer on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, wide: bool) -> Tensor:
        steps = _steps(x, scale, wide)
        ctx.save_for_backward(steps)
        ctx.bounds = low - 0.5, high + 0.5
        return steps.clamp(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (steps,) = ctx.saved_tensors
        # The gradient of a clamp, in one pass; bounds between two steps, so that the outermost steps themselves are inside.
        return torch.ops.aten.hardtanh_backward(gradients[0], steps, *ctx.bounds), None, None, None, None


def grid_of(node: ir.Node) -> Grid:
    """The grid of a QuantizeLinear or DequantizeLinear; where that reads a constant, with the shape and range of this.

    Raises:
        CompressError: for what the module refuses.
    """
    given = [value for value in node.inputs[1:] if value is not None]
    if computed := [one.name for one in given if constant(one) is None]:
        raise CompressError(f'{label_of(node)} takes "{computed[0]}" from the graph, but it must be constant; quantize statically')
    value, (scale, *others) = constant(node.inputs[0]), (np.asarray(constant(one)) for one in given)
    zero_points = others[0] if others else np.zeros((), np.uint8 if value is None else value.dtype)
    dtype = zero_points.dtype
    known = dtype in (np.int8, np.uint8, np.int16, np.uint16, np.int32)
    if not known or np.ptp(zero_points) or scale.ndim > 1 or (value is None and scale.size > 1):
        raise CompressError(
            f"{label_of(node)} has {scale.size} scales and {zero_points.size} zero points of type {dtype}, but must have one type of 8, 16 "
            "or 32 bits, one zero point, and one scale (of a weight: or one per channel); quantize with this toolkit"
        )
    zero_point, limits = int(zero_points.flat[0]), np.iinfo(dtype)
    low, high = int(limits.min) - zero_point, min(int(limits.max) - zero_point, _LARGEST)
    shape = (-1, *[1] * (value.ndim - 1 - settings(node).get("axis", 1) % value.ndim)) if value is not None and scale.size > 1 else ()
    if dtype == np.int8 and zero_point == 0 and value is not None and value.size and value.min() > limits.min:
        # Of a symmetric weight the quantizer leaves out -128; without VNNI all beyond 64, so that sums in 16 bits do not saturate.
        high = 64 if max(value.max(), -value.min()) <= 64 else high
        low = -high
    return Grid(scale=torch.tensor(scale.reshape(shape)), zero_point=zero_point, low=low, high=high, wide=dtype == np.int32)


def _steps(x: Tensor, scale: Tensor, wide: bool) -> Tensor:
    return torch.div(x.double() if wide else x, scale).round_().float()
