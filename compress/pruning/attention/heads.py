"""Attention whose heads go one by one, put in the place of what ties its widths together: torch's own, the ``qkv`` and ``proj`` of timm and
of most vision transformers since (found by its parts), and the shifted windows of torchvision's Swin.

What is put there is proved on random tokens to compute the same to 1e-4 of the largest, else the module stays as it is. So does attention
between two sequences with widths of their own (``kdim``, ``vdim``), with a bias added to its keys and values or a zero to both;
subclasses of torch's; and a module with layers, parameters or arguments that are not known here.

Source: Dosovitskiy et al. 2021, arXiv:2010.11929; Liu et al. 2021, arXiv:2103.14030, and 2022, arXiv:2111.09883, of shifted windows.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..passes import evaluating
from .attend import Attention, SelfAttention, attend
from .windows import WindowAttention

TOLERANCE = 1e-4
_PARTS = {"qkv", "proj", "q_norm", "k_norm", "norm", "gate", "attn_drop", "proj_drop"}
_ARGUMENTS = {"attn_mask", "is_causal"}


class TokenAttention(Attention):
    """Attention made of ``qkv`` and ``proj``, with what may stand between: norms of queries and keys, a norm and a gate of the result.

    Called with tokens (B, N, C), and a mask that is True where something is seen, or is added.
    """

    k_norm: nn.Module
    norm: nn.Module
    proj: nn.Linear
    proj_drop: nn.Module
    q_norm: nn.Module

    def __init__(self, given: Any) -> None:
        super().__init__()
        self._modules = dict(given._modules)
        for name in ("q_norm", "k_norm", "norm", "proj_drop"):
            self._modules.setdefault(name, nn.Identity())
        self.width = self.qkv.out_features // (3 * given.num_heads)
        self.train(given.training)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if is_causal:
            attn_mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        drop = self._modules.get("attn_drop")
        dropout = drop.p if isinstance(drop, nn.Dropout) and self.training else 0.0
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        made = self.norm(attend(q, k, v, self.width, attn_mask, dropout, norms=(self.q_norm, self.k_norm)))
        if (gate := self._modules.get("gate")) is not None:
            made = made * gate(x).sigmoid()
        return self.proj_drop(self.proj(made))


def separate_heads(network: nn.Module, which: Callable[[str], bool] = lambda name: True) -> nn.Module:
    """The same network, changed in place: attention that can be is an :class:`Attention`, where ``which`` takes its name."""
    for name, module in list(network.named_modules()):
        if name and which(name) and (made := _separate(module)) is not None:
            owner, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(owner), attribute, made)
    return network


def _separate(module: nn.Module) -> Attention | None:
    """The module in a form whose heads go one by one; None where it is not attention, or not one of the known kinds."""
    if type(module) is nn.MultiheadAttention:
        own = module._qkv_same_embed_dim and module.bias_k is None and module.bias_v is None and not module.add_zero_attn
        return SelfAttention(module) if own else None
    if WindowAttention.takes(module):
        windows = WindowAttention(module)
        high, wide = windows.window
        return windows if _same(module, windows, high + 2, 2 * wide) else None
    tokens = TokenAttention(module) if _has_parts(module) else None
    return tokens if tokens is not None and _same(module, tokens, 5) else None


def _has_parts(module: nn.Module) -> bool:
    qkv, proj, heads = (getattr(module, name, None) for name in ("qkv", "proj", "num_heads"))
    if isinstance(module, Attention) or not (isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear) and isinstance(heads, int)):
        return False
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    arguments = [*inspect.signature(module.forward).parameters][1:]
    return (
        not own
        and heads > 0
        and qkv.out_features == 3 * proj.in_features
        and proj.in_features % heads == 0
        and {name for name, part in module.named_children() if part is not None} <= _PARTS
        and set(arguments) <= _ARGUMENTS
    )


def _same(given: nn.Module, made: Attention, *places: int) -> bool:
    """Whether both give the same for two times so many random tokens."""
    weight = made.qkv.weight
    tokens = torch.randn(2, *places, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad(), evaluating(given), evaluating(made):
        try:
            wanted, got = given(tokens), made(tokens)
        except (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError):
            return False
    alike = isinstance(wanted, Tensor) and wanted.shape == got.shape
    return alike and bool((wanted - got).abs().max() <= TOLERANCE * wanted.abs().max())
