"""Attention with widths of its own: it computes what torch's does, and heads, input and output go one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from compress.artifacts.cost import count_cost
from compress.channels.choose import macs_after
from compress.channels.cut import cut_to, remove_channels, surgery_error
from compress.channels.find import channel_groups
from compress.pruning.attention.attend import SelfAttention
from compress.pruning.attention.heads import separate_heads

GENERATOR = torch.Generator().manual_seed(0)
X, OTHER = torch.randn(3, 7, 32, generator=GENERATOR), torch.randn(3, 5, 32, generator=GENERATOR)
HIDDEN = torch.rand(7, 7, generator=GENERATOR) > 0.7
ADDED = torch.randn(12, 7, 7, generator=GENERATOR)  # batch times heads
PADDED = torch.arange(7) > torch.tensor([[6], [4], [3]])


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    made = VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=96, num_classes=5)
    nn.init.normal_(made.heads.head.weight)  # which torchvision starts with zeros
    return made.eval()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("tokens", "how"),
    [
        ((X, X, X), {}),
        ((X, X, X), {"need_weights": False}),
        ((X, X, X), {"attn_mask": HIDDEN}),
        ((X, X, X), {"attn_mask": ADDED, "average_attn_weights": False}),
        ((X, X, X), {"key_padding_mask": PADDED, "attn_mask": torch.zeros(7, 7, dtype=torch.bool)}),
        ((X, OTHER, OTHER), {}),
        ((X[0], X[0], X[0]), {}),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_torchs_attention_does(tokens: tuple[Tensor, ...], how: dict[str, Any], batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(32, 4, batch_first=batch_first, bias=bias).eval()
    ours = SelfAttention(theirs)
    swapped = {id(one): one if batch_first or one.dim() == 2 else one.transpose(0, 1) for one in tokens}
    given = [swapped[id(one)] for one in tokens]
    for wanted, got in zip(theirs(*given, **how), ours(*given, **how), strict=True):
        torch.testing.assert_close(got, wanted)
    assert ours.num_heads == 4 and ours.qkv.weight is theirs.in_proj_weight and ours.out_proj.weight is theirs.out_proj.weight


def test_a_transformer_layer_of_torchs_calls_it_in_eval_mode_too() -> None:
    torch.manual_seed(0)
    network = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    with torch.no_grad():
        before = network(X)
        separate_heads(network)
        assert isinstance(network.layers[0].self_attn, SelfAttention)
        torch.testing.assert_close(network(X), before)


def test_what_has_widths_of_its_own_stays_as_it_is() -> None:
    class Mine(nn.MultiheadAttention):
        pass

    others = nn.ModuleList([nn.MultiheadAttention(8, 2, kdim=4), nn.MultiheadAttention(8, 2, add_bias_kv=True), Mine(8, 2)])
    others.append(nn.MultiheadAttention(8, 2, add_zero_attn=True))
    before = [*map(type, separate_heads(nn.Sequential(others)).modules())]
    assert SelfAttention not in before


def test_a_vision_transformer_loses_of_all_its_widths() -> None:
    """Its MACs by hand: patches 16 * 192 * c, per layer and token qkv and out 4 * c * 16 h, products 2 * 17 * 16 h, hidden 2 * c * m."""
    network, image = separate_heads(vit()), torch.rand(2, 3, 32, 32)
    groups = channel_groups(network, image)
    assert [(group.name.rpartition("encoder_layer_")[2], group.width) for group in groups] == [
        ("conv_proj", 64), ("0.self_attention.qkv", 4), ("0.mlp.0", 96), ("1.self_attention.qkv", 4), ("1.mlp.0", 96)
    ]  # fmt: skip

    def by_hand(c: int, h: int, m: int) -> int:
        return 16 * 192 * c + 2 * 17 * (4 * c * 16 * h + 2 * 17 * 16 * h + 2 * c * m) + 5 * c

    assert macs_after(groups, {}) == count_cost(network, image).macs == count_cost(vit(), image).macs == by_hand(64, 4, 96)
    keep = {group.name: tuple(range(1, group.width, 2)) for group in groups}
    pruned = remove_channels(network, groups, keep)
    assert macs_after(groups, keep) == count_cost(pruned, image).macs == by_hand(32, 2, 48)
    assert surgery_error(network, pruned, groups, keep) < 1e-5
    assert pruned.hidden_dim == 32 and pruned.encoder.layers[0].self_attention.num_heads == 2
    fresh = cut_to(vit(), {name: value.shape for name, value in pruned.state_dict().items()})
    fresh.load_state_dict(pruned.state_dict())
    assert torch.equal(fresh.eval()(image), pruned(image))


def test_a_head_goes_with_its_queries_keys_and_values() -> None:
    network = separate_heads(vit())
    [group] = [group for group in channel_groups(network, torch.rand(2, 3, 32, 32)) if group.name.endswith("0.self_attention.qkv")]
    assert str(group).replace("encoder.layers.encoder_layer_0.self_attention.", "") == (
        "removing channels 48 to 63, 112 to 127 and 176 to 191 of qkv removes inputs 48 to 63 of out_proj"
    )
