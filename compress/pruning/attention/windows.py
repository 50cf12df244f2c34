"""Attention in shifted windows (torchvision's Swin, both versions), with widths of its own; see attend.py.

By hand: an image of 5 x 7 places in windows of 4 x 4 is padded to 8 x 8 and cut into four; within each, every place attends to all 16, with
a bias by head and relative position. Every second layer first rolls the image by half a window, so that windows reach over the borders
of those before; then a window at the edge holds places from both sides, which do not see each other.
"""

import sys
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attend import Attention, attend

_APART = -100.0  # what is added where two places do not see each other, as torchvision does
_STEEPEST = 4.605170185988092  # log 100, the largest logarithm of what cosines are multiplied by


class WindowAttention(Attention):
    """What a ``ShiftedWindowAttention`` of torchvision computes, (B, H, W, C) to (B, H, W, C), with its very parameters and their names."""

    cpb_mlp: nn.Sequential
    logit_scale: Tensor
    proj: nn.Linear
    relative_coords_table: Tensor
    relative_position_bias_table: Tensor
    relative_position_index: Tensor

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether it is one, and not a subclass; torchvision is not imported for it."""
        swin = sys.modules.get("torchvision.models.swin_transformer")
        return swin is not None and type(module) in (swin.ShiftedWindowAttention, swin.ShiftedWindowAttentionV2)

    def __init__(self, given: Any) -> None:
        super().__init__()
        self._modules, self._parameters, self._buffers = dict(given._modules), dict(given._parameters), dict(given._buffers)
        self.width = self.qkv.out_features // (3 * given.num_heads)
        self.window: tuple[int, int] = tuple(given.window_size)
        self.shift: tuple[int, int] = tuple(given.shift_size)
        self.dropouts = given.attention_dropout, given.dropout
        self.cosine = "logit_scale" in given._parameters
        self.train(given.training)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x.shape[1:3]
        attention, output = self.dropouts if self.training else (0.0, 0.0)
        padded = functional.pad(x, (0, 0, 0, -wide % self.window[1], 0, -high % self.window[0]))
        size = padded.shape[1:3]
        shift = [0 if window >= whole else shift for shift, window, whole in zip(self.shift, self.window, size, strict=True)]
        windows = self._parted(torch.roll(padded, [-s for s in shift], (1, 2)) if any(shift) else padded)
        q, k, v = self.qkv(windows).chunk(3, dim=-1)
        if self.cosine and self.qkv.bias is not None:  # there keys have no bias
            k = k - self.qkv.bias.chunk(3)[1]
        bias, of_heads = self._bias()
        if any(shift):
            bias = bias + self._apart(size, shift).to(bias)[:, None]
        scale = self.logit_scale.clamp(max=_STEEPEST).exp() if self.cosine else None
        made = attend(q, k, v, self.width, bias, attention, cosine=scale, of_heads=of_heads)
        made = self._whole(functional.dropout(self.proj(made), output, self.training), size)
        made = torch.roll(made, shift, (1, 2)) if any(shift) else made
        return made[:, :high, :wide]

    def _bias(self) -> tuple[Tensor, tuple[tuple[Tensor, int], ...]]:
        """(heads, N, N), and what of it goes with the heads."""
        places = self.window[0] * self.window[1]
        of_heads: tuple[tuple[Tensor, int], ...]
        if self.cosine:
            table = 16 * self.cpb_mlp(self.relative_coords_table).flatten(0, -2)[self.relative_position_index].sigmoid()
            of_heads = ((cast(nn.Linear, self.cpb_mlp[-1]).weight, 0), (self.logit_scale, 0))
        else:
            table = self.relative_position_bias_table[self.relative_position_index]
            of_heads = ((self.relative_position_bias_table, 1),)
        return table.view(places, places, -1).permute(2, 0, 1), of_heads

    def _parted(self, image: Tensor) -> Tensor:
        """(B, H, W, C) as windows (B, count, N, C)."""
        (high, wide), (batch, _, _, channels) = self.window, image.shape
        parts = image.unflatten(2, (-1, wide)).unflatten(1, (-1, high)).transpose(2, 3)
        return parts.reshape(batch, -1, high * wide, channels)

    def _whole(self, windows: Tensor, size: torch.Size) -> Tensor:
        (high, wide), (batch, _, _, channels) = self.window, windows.shape
        parts = windows.view(batch, size[0] // high, size[1] // wide, high, wide, channels)
        return parts.transpose(2, 3).reshape(batch, *size, channels)

    def _apart(self, size: torch.Size, shift: list[int]) -> Tensor:
        """(count, N, N): what is added where two places of a window come from both sides of the image."""
        rows, columns = (
            (torch.arange(n) >= n - window).long() + (torch.arange(n) >= n - by).long()
            for n, window, by in zip(size, self.window, shift, strict=True)
        )
        areas = self._parted((3 * rows[:, None] + columns)[None, ..., None])[0, ..., 0]
        return torch.where(areas[:, :, None] == areas[:, None], 0.0, _APART)
