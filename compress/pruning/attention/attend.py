"""Attention whose heads and whose input can lose of their width, in the place of torch's, which ties all of its widths together.

By hand: ``nn.MultiheadAttention(64, 4)`` reads 64 channels, makes queries, keys and values of 4 heads of 16 channels each, and gives 64
channels. Its weights say all that: without head 2, ``qkv`` is 144 x 64 instead of 192 x 64 and ``out_proj`` 64 x 48; without 8 channels
of what it reads and gives, they are 192 x 56 and 56 x 64. Only the width of a head, 16, is a number.

Which modules of a network are put in such a form is in heads.py.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function


class Attention(nn.Module):
    """Queries, keys and values by one linear layer ``qkv``, of heads of ``width`` channels each, as many as its weight has."""

    width: int
    qkv: nn.Linear

    @property
    def num_heads(self) -> int:
        return self.qkv.out_features // (3 * self.width)


class SelfAttention(Attention):
    """What an ``nn.MultiheadAttention`` computes, with its very weights: ``qkv`` and ``out_proj``.

    Called as that is called: (B, N, C), (N, B, C) or (N, C), and masks; returns the output and, if asked for, the weights.
    """

    _qkv_same_embed_dim = False  # so that nn.TransformerEncoderLayer calls it, instead of computing with its weights by itself

    def __init__(self, given: nn.MultiheadAttention) -> None:
        super().__init__()
        self.width, self.batch_first, self.dropout = given.head_dim, given.batch_first, given.dropout
        self.qkv = _linear(given.in_proj_weight, given.in_proj_bias)
        self.out_proj = _linear(given.out_proj.weight, given.out_proj.bias)
        self.train(given.training)

    @property
    def in_proj_bias(self) -> Tensor:
        return self.qkv.bias

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        swap = query.dim() == 3 and not self.batch_first
        if query is key and key is value:
            q, k, v = self.qkv(query.transpose(0, 1) if swap else query).chunk(3, dim=-1)
        else:
            biases = (None,) * 3 if self.qkv.bias is None else self.qkv.bias.chunk(3)
            each = zip((query, key, value), self.qkv.weight.chunk(3), biases, strict=True)
            q, k, v = (functional.linear(one.transpose(0, 1) if swap else one, weight, bias) for one, weight, bias in each)
        mask = self._mask(q, attn_mask, key_padding_mask)
        made = self.out_proj(attend(q, k, v, self.width, mask, self.dropout if self.training else 0.0))
        weights = _weights(q, k, self.width, mask) if need_weights else None
        weights = weights.mean(-3) if weights is not None and average_attn_weights else weights
        return made.transpose(0, 1) if swap else made, weights

    def _mask(self, like: Tensor, among: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the products of queries and keys, broadcast to (B, heads, N, N)."""
        parts = []
        if among is not None:  # (N, N), or (B * heads, N, N)
            added = _added(among, like)
            parts.append(added.unflatten(0, (-1, self.num_heads)) if among.dim() == 3 else added)
        if padding is not None:  # (B, N), or (N,)
            parts.append(_added(padding, like)[..., None, None, :])
        return sum(parts[1:], parts[0]) if parts else None


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    *,
    norms: tuple[nn.Module, ...] = (),
    cosine: Tensor | None = None,
    of_heads: tuple[tuple[Tensor, int], ...] = (),
) -> Tensor:
    """Scaled dot-product attention, head by head. One operation to whoever follows what a network computes.

    Args:
        query, key, value: (..., N, heads * width).
        mask: added to the products, broadcast to (..., heads, N, N).
        norms: of the queries and of the keys of each head, (..., N, width).
        cosine: (heads, 1, 1), what the cosines of queries and keys are multiplied by, instead of their products by the root of ``width``.
        of_heads: parameters that ``mask`` or ``cosine`` were made of, each with its dimension that goes over the heads.

    Returns:
        (..., N, heads * width).
    """
    given = query, key, value
    if has_torch_function(given):
        return handle_torch_function(attend, given, *given, width, mask, dropout, norms=norms, cosine=cosine, of_heads=of_heads)
    queries, keys, values = (_heads(one, width) for one in given)
    if norms:
        queries, keys = norms[0](queries), norms[1](keys)
    if cosine is not None:
        queries, keys = functional.normalize(queries, dim=-1) * cosine, functional.normalize(keys, dim=-1)
    scale, before = None if cosine is None else 1.0, queries.shape[:-3]
    if len(before) > 1:  # as ONNX knows it, there is one batch
        queries, keys, values = (one.flatten(0, -4) for one in (queries, keys, values))
        mask = mask if mask is None or mask.dim() < 4 else mask.expand(*before, *mask.shape[-3:]).flatten(0, -4)
    made = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale)
    # A copy, as torch's exporter takes the flattening for a view of what is not laid out as it was when it looked.
    made = made.transpose(-3, -2).clone(memory_format=torch.contiguous_format).flatten(-2)
    return made.unflatten(0, before) if len(before) > 1 else made


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """What a mask adds: minus infinity where a truth value says that nothing is to be seen."""
    return like.new_zeros(mask.shape).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask


def _heads(of: Tensor, width: int) -> Tensor:
    """(..., N, heads * width) as (..., heads, N, width)."""
    return of.unflatten(-1, (-1, width)).transpose(-3, -2)


def _weights(query: Tensor, key: Tensor, width: int, mask: Tensor | None) -> Tensor:
    """How much each place takes of each other one, (..., heads, N, N)."""
    products = _heads(query, width) @ _heads(key, width).transpose(-2, -1) / math.sqrt(width)
    return (products if mask is None else products + mask).softmax(-1)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    """With these very parameters."""
    made = nn.Linear(1, 1, bias=bias is not None, device="meta")
    made.weight, (made.out_features, made.in_features) = weight, weight.shape
    if bias is not None:
        made.bias = bias
    return made
