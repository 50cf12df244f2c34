"""Attention of ``qkv`` and ``proj``, and of shifted windows: what is put in its place computes the same, and loses heads and width."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import PatchMergingV2, ShiftedWindowAttention, SwinTransformer, SwinTransformerBlockV2

from compress.artifacts.artifact import InputSpec
from compress.artifacts.cost import count_cost
from compress.artifacts.load import Prepare
from compress.channels.cut import cut_to, remove_channels, surgery_error
from compress.channels.find import channel_groups
from compress.graphs.export import export_onnx, parity
from compress.pruning.attention.attend import Attention
from compress.pruning.attention.heads import TokenAttention, separate_heads
from compress.pruning.attention.windows import WindowAttention

PIXELS = InputSpec(shape=(3, 40, 40), mean=(0.5,) * 3, std=(0.5,) * 3)


class Tokens(nn.Module):
    """Attention as most vision transformers write it, with numbers of heads in its forward."""

    def __init__(self, width: int = 24, heads: int = 3, *, norm: bool = False, gated: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.twice = heads, width // heads, twice
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.head_dim) if norm else nn.Identity() for _ in range(2))
        self.gate = nn.Linear(width, width) if gated else None
        self.attn_drop, self.proj_drop = nn.Dropout(0.5), nn.Dropout(0.5)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        batch, places, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, places, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        products = self.q_norm(q) @ self.k_norm(k).transpose(-2, -1) * self.head_dim**-0.5
        weights = (products if attn_mask is None else products + attn_mask).softmax(-1)
        made = (self.attn_drop(weights) @ v).transpose(1, 2).reshape(batch, places, width)
        made = made if self.gate is None else made * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(made)) * (2 if self.twice else 1)


class Wide(Tokens):
    """With a parameter of its own, which nobody here knows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return super().forward(x) * self.scale


class Rotated(Tokens):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None, rope: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Broken(Tokens):
    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        raise ValueError("wants an even number of tokens")


class Transformer(nn.Module):
    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 24, 8, 8), nn.Linear(24, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(2))
        self.attentions = nn.ModuleList(Tokens(**how) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for norm, attention in zip(self.norms, self.attentions, strict=True):
            x = x + attention(norm(x))
        return self.head(x.mean(1))


def swin(version: int) -> nn.Module:
    """40 pixels are 10 x 10 places in windows of 4: padded, shifted, and then 5 x 5, padded again."""
    made = {1: {}, 2: {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}}[version]
    network = SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5, **made)
    for module in network.modules():
        if isinstance(module, ShiftedWindowAttention) and version == 1:
            nn.init.normal_(module.relative_position_bias_table)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], type[Attention], int]] = {
    "tokens": (Transformer, TokenAttention, 32),
    "tokens with norms": (lambda: Transformer(norm=True), TokenAttention, 32),
    "tokens with a gate": (lambda: Transformer(gated=True), TokenAttention, 32),
    "windows": (lambda: swin(1), WindowAttention, 40),
    "windows by cosine": (lambda: swin(2), WindowAttention, 40),
}


def ready(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_width_go_and_what_is_stored_loads_again(name: str) -> None:
    make, kind, size = NETWORKS[name]
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    whole = ready(make)
    network = separate_heads(ready(make))
    found = {path: module for path, module in network.named_modules() if isinstance(module, Attention)}
    assert found and all(type(module) is kind for module in found.values())
    torch.testing.assert_close(network(image), whole(image), atol=1e-5, rtol=1e-5)
    assert network.state_dict().keys() == whole.state_dict().keys()
    assert count_cost(network, image).macs == count_cost(whole, image).macs
    groups = channel_groups(network, image)
    widths = {group.name: group.width for group in groups}
    assert {path: widths[f"{path}.qkv"] for path in found} == {path: module.num_heads for path, module in found.items()}
    first = next(name for name, module in whole.named_modules() if isinstance(module, nn.Conv2d))
    assert widths[first] == whole.get_submodule(first).weight.shape[0]
    keep = {group.name: tuple(range(1, group.width, 2)) for group in groups}
    pruned = remove_channels(network, groups, keep)
    assert surgery_error(network, pruned, groups, keep) < 1e-5
    assert all(pruned.get_submodule(path).num_heads == module.num_heads // 2 for path, module in found.items())
    fresh = cut_to(ready(make), {key: value.shape for key, value in pruned.state_dict().items()})
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh.eval()(image), pruned(image))


def test_windows_in_a_file_give_what_they_give_in_torch(tmp_path: Path) -> None:
    """Of shifted ones every window has a mask of its own, and ONNX knows one batch dimension."""
    network = separate_heads(ready(lambda: swin(1)))
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 40, 40), dtype=np.uint8)
    export_onnx(network, tmp_path / "net.onnx", prepare=Prepare(PIXELS).eval(), example=torch.from_numpy(images[:2]), metadata={})
    found = parity(network, Prepare(PIXELS).eval(), tmp_path / "net.onnx", images, batch=3)
    assert found.largest_difference < 1e-5


def test_windows_train_with_the_dropouts_of_what_they_replace() -> None:
    torch.manual_seed(0)
    theirs = ShiftedWindowAttention(16, [4, 4], [2, 2], 2, attention_dropout=0.5, dropout=0.5).train()
    ours = WindowAttention(theirs)
    image = torch.rand(2, 9, 8, 16)
    made = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        made.append(module(image))
    assert ours.training and not torch.equal(made[1], ours.eval()(image))
    assert 0.4 < float((made[1] == 0).float().mean()) < 0.6
    torch.testing.assert_close(theirs.eval()(image), ours.eval()(image), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mask", [torch.full((5, 5), -1e9).triu(1), torch.randn(5, 5, generator=torch.Generator().manual_seed(0))])
def test_masks_are_added_as_before(mask: Tensor) -> None:
    theirs, x = ready(Tokens), torch.randn(2, 5, 24)
    ours = TokenAttention(theirs)
    torch.testing.assert_close(ours(x, mask), theirs(x, mask))
    torch.testing.assert_close(ours(x, is_causal=True), theirs(x, torch.full((5, 5), -torch.inf).triu(1)))


@pytest.mark.parametrize(
    "other", [Wide, Rotated, Broken, lambda: Tokens(twice=True), lambda: nn.MultiheadAttention(24, 3, add_bias_kv=True)]
)
def test_what_computes_something_else_stays_as_it_is(other: Callable[[], nn.Module]) -> None:
    network = nn.Sequential(ready(other))
    before = [*network.named_modules()]
    assert [*separate_heads(network).named_modules()] == before


def test_an_operation_on_a_bias_alone_is_followed_too() -> None:
    """A tensor of one dimension, as the third of a bias that keys do not get: its width is checked like any other."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            _, key, value = functional.relu(self.first(x)).chunk(3, dim=-1)
            return self.last((key - self.first.bias.chunk(3)[1]) * value)

    torch.manual_seed(0)
    network, example = Net().eval(), torch.rand(2, 4)
    groups = channel_groups(network, example)
    assert [(group.name, group.width) for group in groups] == [("first", 2)]
    pruned = remove_channels(network, groups, {"first": (1,)})
    assert pruned.first.out_features == 3 and surgery_error(network, pruned, groups, {"first": (1,)}) < 1e-6
