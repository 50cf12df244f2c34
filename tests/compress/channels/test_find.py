"""Channel groups against groups written down by hand, one kind of connection at a time; what is left whole, and what is refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.channels.cut import remove_channels, surgery_error
from compress.channels.find import channel_groups
from compress.channels.groups import Groups
from compress.errors import NetworkError
from compress.models import emnist, k49
from compress.models.layers import CBAM

CONVERSIONS = "float double half bfloat16 int long short char byte bool cpu"
IMAGE = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Layers by name, and a forward pass that uses them."""

    def __init__(self, forward: Callable[["Net", Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.compute = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


class Bare(nn.Module):
    """A layer norm without weights, called as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (8,))


def found(forward: Callable[[Net, Tensor], Tensor], **layers: nn.Module | nn.Parameter) -> Groups:
    """The groups of such a network, of which half must have stood the trial."""
    torch.manual_seed(0)
    groups = channel_groups(Net(forward, **layers), IMAGE)
    assert all(group.width > 1 for group in groups)
    return groups


def conv(c_in: int, c_out: int, **options: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1, **options)


def test_conv_bn_relu_by_hand() -> None:
    groups = found(lambda n, x: n.B(F.relu(n.bn(n.A(x)))), A=conv(1, 4), bn=nn.BatchNorm2d(4), B=conv(4, 2))
    [group] = groups
    assert {(cut.parameter, cut.dim) for cut in group.cuts} == {
        ("A.weight", 0),
        ("A.bias", 0),
        ("bn.weight", 0),
        ("bn.bias", 0),
        ("bn.running_mean", 0),
        ("bn.running_var", 0),
        ("B.weight", 1),
    }
    assert all(cut.positions == ((0,), (1,), (2,), (3,)) for cut in group.cuts)
    assert str(group) == "removing channel 3 of A removes channel 3 of bn and input 3 of B"
    assert str(groups) == f"A: 4 channels; {group}\nB: 2 channels left whole: they are the network's output"


def test_concat_shifts_the_inputs_of_what_reads_it() -> None:
    groups = found(lambda n, x: n.C(torch.cat([n.A(x), n.B(n.A(x))], 1)), A=conv(1, 16), B=conv(16, 16), C=conv(32, 2))
    assert groups.by_name["A"].describe(3) == "removing channel 3 of A removes input 3 of B and input 3 of C"
    assert groups.by_name["B"].describe(3) == "removing channel 3 of B removes input 19 of C"


def test_a_channel_that_stands_twice_in_a_tensor() -> None:
    groups = found(lambda n, x: n.B(torch.cat([n.A(x)] * 2, 1)), A=conv(1, 4), B=conv(8, 2))
    assert str(groups[0]) == "removing channel 3 of A removes inputs 3 and 7 of B"


def test_a_residual_sum_ties_channels_of_the_same_place() -> None:
    groups = found(lambda n, x: n.C((y := n.A(x)) + F.relu(n.B(y))), A=conv(1, 4), B=conv(4, 4), C=conv(4, 2))
    assert [str(g) for g in groups] == ["removing channel 3 of A removes input 3 of B, channel 3 of B and input 3 of C"]


def test_a_depthwise_convolution_passes_channels_through() -> None:
    groups = found(lambda n, x: n.B(n.D(n.A(x))), A=conv(1, 4), D=conv(4, 4, groups=4), B=conv(4, 2))
    assert [str(g) for g in groups] == ["removing channel 3 of A removes channel 3 of D and input 3 of B"]


def test_a_depthwise_convolution_with_two_outputs_per_channel() -> None:
    groups = found(lambda n, x: n.B(n.D(n.A(x))), A=conv(1, 4), D=conv(4, 8, groups=4), B=conv(8, 2))
    assert [str(g) for g in groups] == ["removing channel 3 of A removes channels 6 to 7 of D and inputs 6 to 7 of B"]


def test_a_depthwise_transposed_convolution() -> None:
    groups = found(lambda n, x: n.B(n.D(n.A(x))), A=conv(1, 4), D=nn.ConvTranspose2d(4, 4, 2, 2, groups=4), B=conv(4, 2))
    assert [str(g) for g in groups] == ["removing channel 3 of A removes channel 3 of D and input 3 of B"]


def test_a_first_convolution_with_one_input_is_not_depthwise() -> None:
    network = nn.Sequential(conv(1, 4), conv(4, 2))
    pruned = remove_channels(network, groups := channel_groups(network, IMAGE), {groups[0].name: [1, 2]})
    assert (pruned[0].in_channels, pruned[0].out_channels, pruned[0].groups) == (1, 2, 1)


def test_a_grouped_convolution_loses_whole_groups() -> None:
    groups = found(lambda n, x: n.B(n.G(n.A(x))), A=conv(1, 6), G=conv(6, 12, groups=3), B=conv(12, 2))
    assert groups[0].width == 3 and groups[0].channels == 2
    assert groups[0].describe(1) == "removing channels 2 to 3 of A removes channels 4 to 7 of G and inputs 4 to 7 of B"


def test_flatten_gives_a_channel_its_pixels() -> None:
    groups = found(lambda n, x: n.L(F.max_pool2d(n.A(x), 4).flatten(1)), A=conv(1, 4), L=nn.Linear(16, 3))
    assert str(groups[0]) == "removing channel 3 of A removes inputs 12 to 15 of L"


def test_squeeze_excite_by_hand() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.A(x)
        return n.B(y * torch.sigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(y, 1))))))

    groups = found(forward, A=conv(1, 8), down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), B=conv(8, 2))
    assert {g.name: str(g) for g in groups} == {
        "A": "removing channel 3 of A removes input 3 of down, channel 3 of up and input 3 of B",
        "down": "removing channel 3 of down removes input 3 of up",
    }


def test_cbam_by_hand() -> None:
    """Channel and spatial gate; the shared MLP's hidden width is a group, the mean over channels is rescaled, the maximum stays."""
    groups = found(lambda n, x: n.B(n.cbam(F.relu(n.A(x)))), A=conv(1, 8), cbam=CBAM(8, 2), B=conv(8, 2))
    assert {g.name: str(g) for g in groups} == {
        "A": "removing channel 3 of A removes input 3 of cbam.channel.squeeze, channel 3 of cbam.channel.excite and input 3 of B",
        "cbam.channel.squeeze": "removing channel 3 of cbam.channel.squeeze removes input 3 of cbam.channel.excite",
    }
    [mean] = groups.means
    assert (mean.parameter, mean.dim, mean.index, len(mean.units)) == ("cbam.spatial.conv.weight", 1, 0, 8)


def test_the_weights_of_a_mean_shrink_by_kept_over_all() -> None:
    network = Net(lambda n, x: n.B(F.relu(n.A(x)).mean(1, keepdim=True)), A=conv(1, 4), B=conv(1, 2))
    groups = channel_groups(network, IMAGE)
    pruned = remove_channels(network, groups, {"A": [0, 1, 3]})
    assert torch.allclose(pruned.B.weight, network.B.weight * 3 / 4)


def test_a_maximum_of_values_that_may_be_negative_stays_whole() -> None:
    groups = found(lambda n, x: n.B(n.A(x).amax(1, keepdim=True)), A=conv(1, 4), B=conv(1, 2))
    assert not groups.groups and "amax over the channels" in groups.left_whole[0].reason and "negative" in groups.left_whole[0].reason


@pytest.mark.parametrize(("alpha", "whole"), [(-1.0, True), (-0.01, True), (0.5, False)])
def test_a_maximum_of_what_a_negative_factor_takes_below_zero_stays_whole(alpha: float, whole: bool) -> None:
    """1 - 2 is negative, so a channel zeroed for good would win where it had lost."""

    def forward(n: Net, x: Tensor) -> Tensor:
        y = F.relu(n.A(x))
        return n.B(torch.add(y, 2 * y, alpha=alpha).amax(1, keepdim=True))

    groups = found(forward, A=conv(1, 4), B=conv(1, 2))
    assert (not groups.groups) == whole


def test_a_mean_through_a_sigmoid_stays_whole() -> None:
    groups = found(lambda n, x: n.B(torch.sigmoid(n.A(x).mean(1, keepdim=True))), A=conv(1, 4), B=conv(1, 2))
    assert not groups.groups and "their mean is used by sigmoid" in str(groups)


def test_one_mean_read_after_different_blocks_of_a_residual_chain() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = F.relu(n.A(x))
        z = y * torch.sigmoid(n.s1(y.mean(1, keepdim=True)))
        z = F.relu(z + F.relu(n.B(z)) * torch.sigmoid(n.s2(F.relu(n.B(z)).mean(1, keepdim=True))))
        return n.C(z)

    groups = found(forward, A=conv(1, 4), B=conv(4, 4), s1=conv(1, 1), s2=conv(1, 1), C=conv(4, 2))
    assert [g.width for g in groups] == [4] and {m.parameter for m in groups.means} == {"s1.weight", "s2.weight"}


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def test_a_channel_shuffle_removes_pairs() -> None:
    groups = found(lambda n, x: n.B(shuffle(n.A(x))), A=conv(1, 8), B=conv(8, 2))
    assert groups[0].width == 4 and groups[0].describe(1) == "removing channels 1 and 5 of A removes inputs 2 to 3 of B"


@pytest.mark.parametrize(
    "halves",
    [
        lambda y: y.chunk(2, 1),
        lambda y: y.split(y.shape[1] // 2, 1),
        lambda y: y.tensor_split(2, 1),
        lambda y: (y[:, : y.shape[1] // 2], y[:, y.shape[1] // 2 :]),
    ],
)
def test_halves_lose_the_same_positions(halves: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        a, b = halves(n.A(x))
        return n.B(a * torch.sigmoid(b))

    groups = found(forward, A=conv(1, 8), B=conv(4, 2))
    assert groups[0].width == 4 and str(groups[0]) == "removing channels 3 and 7 of A removes input 3 of B"


class Scaled(nn.Module):
    def __init__(self, *shape: int, reshape: bool = False) -> None:
        super().__init__()
        self.scale, self.reshape = nn.Parameter(torch.rand(shape)), reshape

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale.view(1, -1, 1, 1) if self.reshape else self.scale)


@pytest.mark.parametrize("scale", [Scaled(4, 1, 1), Scaled(1, 4, 1, 1), Scaled(4, reshape=True)])
def test_a_layer_scale_is_cut_too(scale: Scaled) -> None:
    groups = found(lambda n, x: n.B(n.s(n.A(x))), A=conv(1, 4), s=scale, B=conv(4, 2))
    assert [str(g) for g in groups] == ["removing channel 3 of A removes channel 3 of s and input 3 of B"]


@pytest.mark.parametrize(
    "middle",
    [
        nn.PReLU(4),
        nn.PReLU(),
        nn.InstanceNorm2d(4, affine=True),
        nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2)),
        nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.GELU(), nn.Dropout2d()),
        nn.Sequential(nn.ZeroPad2d(1), nn.Hardswish(inplace=True), nn.AvgPool2d(2)),
        nn.LeakyReLU(0.1, inplace=True),
    ],
)
def test_channels_pass_through(middle: nn.Module) -> None:
    groups = found(lambda n, x: n.B(n.m(n.A(x))), A=conv(1, 4), m=middle, B=conv(4, 2))
    assert [(g.name, g.width) for g in groups] == [("A", 4)]


@pytest.mark.parametrize(
    "convert",
    [
        *(lambda y, name=name: getattr(y, name)() for name in CONVERSIONS.split()),
        lambda y: y.to(torch.float16),
        lambda y: y.to("cpu", torch.int64),
        lambda y: y.type(torch.int32),
        lambda y: y.type_as(torch.zeros(1, dtype=torch.uint8)),
    ],
)
def test_a_conversion_of_a_tensor_is_no_look_at_the_data(convert: Callable[[Tensor], Tensor]) -> None:
    groups = found(lambda n, x: n.B(convert(n.A(x)).float()), A=conv(1, 4), B=conv(4, 2))
    assert str(groups[0]) == "removing channel 3 of A removes input 3 of B" and [one.name for one in groups.left_whole] == ["B"]


def test_a_mean_of_whole_numbers_and_a_maximum_of_numbers_that_wrapped_stay_whole() -> None:
    """The mean of 3 of 4 channels, times 4/3, is not a whole number where that of all was; 200 as int8 is -56."""
    groups = found(lambda n, x: n.B(F.relu(n.A(x)).mean(1, keepdim=True).int().float()), A=conv(1, 4), B=conv(1, 2))
    assert not groups.groups and "their mean is used by int" in str(groups)
    groups = found(lambda n, x: n.B(F.relu(n.A(x)).char().float().amax(1, keepdim=True)), A=conv(1, 4), B=conv(1, 2))
    assert not groups.groups and "negative" in groups.left_whole[0].reason


def test_a_group_norm_loses_whole_groups() -> None:
    network = nn.Sequential(conv(1, 6), nn.GroupNorm(3, 6), nn.ReLU(), conv(6, 2))
    groups = channel_groups(network, IMAGE)
    pruned = remove_channels(network, groups, {"0": [0, 2]})
    assert groups[0].width == 3 and (pruned[1].num_groups, pruned[1].num_channels) == (2, 4)


def test_transposed_convolution_and_pixel_shuffle() -> None:
    groups = found(lambda n, x: n.B(F.pixel_shuffle(n.T(n.A(x)), 2)), A=conv(1, 4), T=nn.ConvTranspose2d(4, 16, 2, 2), B=conv(4, 2))
    assert {g.name: str(g) for g in groups} == {
        "A": "removing channel 3 of A removes input 3 of T",
        "T": "removing channels 12 to 15 of T removes input 3 of B",
    }


def test_padded_shortcut_keeps_what_meets_the_padding() -> None:
    """The parameter-free shortcut of the first residual networks: the added zeros are channels that must stay."""
    groups = found(lambda n, x: n.C(F.pad(n.A(x), (0, 0, 0, 0, 2, 2)) + n.B(n.A(x))), A=conv(1, 4), B=conv(4, 8), C=conv(8, 2))
    assert [str(g) for g in groups] == ["removing channel 3 of A removes input 3 of B, channel 5 of B and input 5 of C"]
    assert [(left.name, left.channels) for left in groups.left_whole] == [("B", 4), ("C", 2)]


def test_a_shared_layer_ties_its_users() -> None:
    groups = found(lambda n, x: n.C(n.S(n.A(x)) + n.S(n.B(x))), A=conv(1, 4), B=conv(1, 4), S=conv(4, 6), C=conv(6, 2))
    assert [str(g) for g in groups] == [
        "removing channel 3 of A removes input 3 of S and channel 3 of B",
        "removing channel 3 of S removes input 3 of C",
    ]


def test_attention_is_left_whole_and_named() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.A(x).flatten(2).transpose(1, 2)
        return n.C(n.hidden(y + n.attention(y, y, y)[0]).relu()).mean(1)

    groups = found(
        forward, A=conv(1, 8), attention=nn.MultiheadAttention(8, 2, batch_first=True), hidden=nn.Linear(8, 6), C=nn.Linear(6, 2)
    )
    assert [g.name for g in groups] == ["hidden"]
    left = {one.name: one.reason for one in groups.left_whole}
    assert "there is no rule for multi_head_attention_forward at attention" in left["attention"] and "A" in left


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(8), lambda: nn.LayerNorm(8, bias=False), lambda: nn.RMSNorm(8)])
def test_layer_norm_over_channels_loses_those_that_go_with_it(norm: Callable[[], nn.Module]) -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        return n.C(F.gelu(n.B(n.norm(n.A(x).permute(0, 2, 3, 1))))).mean((1, 2))

    torch.manual_seed(0)
    groups = found(forward, A=conv(1, 8), norm=norm(), B=nn.Linear(8, 6), C=nn.Linear(6, 2))
    assert [(g.name, g.width) for g in groups] == [("A", 8), ("B", 6)]
    assert "channel 3 of norm" in str(groups[0]) and "input 3 of B" in str(groups[0])


@pytest.mark.parametrize("norm", [lambda: nn.LayerNorm(8, elementwise_affine=False), lambda: nn.LayerNorm((8, 8)), Bare])
def test_layer_norm_without_a_weight_for_each_channel_is_left_whole_and_named(norm: Callable[[], nn.Module]) -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        return n.C(F.gelu(n.B(n.norm(n.A(x).permute(0, 2, 3, 1))))).mean((1, 2))

    groups = found(forward, A=conv(1, 8), norm=norm(), B=nn.Linear(8, 6), C=nn.Linear(6, 2))
    assert [g.name for g in groups] == ["B"] and "layer_norm at norm (test_find.py" in str(groups)


def test_a_transformer_block_loses_of_its_residual_width_and_its_hidden_one() -> None:
    """A class token, a position embedding, pre-norms, and attention whose heads have a width of their own."""

    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.A(x).flatten(2).transpose(1, 2)
        y = torch.cat([n.token.expand(len(y), -1, -1), y], 1) + n.position
        q, k, v = n.qkv(n.norm1(y)).reshape(len(y), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = y + n.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = y + n.down(F.gelu(n.up(n.norm2(y))))
        return n.head(n.norm3(y)[:, 0])

    torch.manual_seed(0)
    norms = {f"norm{number}": nn.LayerNorm(8) for number in (1, 2, 3)}
    embeddings = {"token": nn.Parameter(torch.randn(1, 1, 8)), "position": nn.Parameter(torch.randn(1, 65, 8))}
    layers = {"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8), "up": nn.Linear(8, 12), "down": nn.Linear(12, 8), "head": nn.Linear(8, 2)}
    groups = found(forward, A=conv(1, 8), **layers, **norms, **embeddings)
    assert [(g.name, g.width) for g in groups] == [("A", 8), ("up", 12)]
    assert {(one.name, one.channels) for one in groups.left_whole} >= {("qkv", 24), ("head", 2)}


def test_a_width_that_attention_takes_from_its_input_keeps_what_feeds_it() -> None:
    """As in Swin, whose residual width ``x.shape[-1]`` is divided among the heads; the hidden layer goes."""

    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.A(x).flatten(2).transpose(1, 2)
        q, k, v = n.qkv(n.norm(y)).reshape(len(y), -1, 3, 2, y.shape[-1] // 2).permute(2, 0, 3, 1, 4)
        y = y + n.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return n.down(F.gelu(n.up(y))).mean(1)

    layers = {"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8), "up": nn.Linear(8, 12), "down": nn.Linear(12, 2)}
    groups = found(forward, A=conv(1, 8), norm=nn.LayerNorm(8), **layers)
    assert [(g.name, g.width) for g in groups] == [("up", 12)]
    assert any(one.name == "A" and "reshape at the network (test_find.py" in one.reason for one in groups.left_whole)


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        (lambda n, x: n.L(F.max_pool2d(n.A(x), 4).view(-1, 32)), "view at the network"),
        (lambda n, x: n.L(F.max_pool2d(n.A(x).view(2, 8, 8, 8), 4).flatten(1)), "view at the network"),
        (lambda n, x: n.L(F.max_pool2d(torch.cat(n.A(x).split([4, 4], 1), 1), 4).flatten(1)), "split at the network"),
        (lambda n, x: n.L(F.max_pool2d(torch.cat([n.A(x)[:, :4], n.A(x)[:, 4:]], 1), 4).flatten(1)), "getitem at the network"),
        (lambda n, x: n.L(F.max_pool2d(n.A(x)[:, [7, 6, 5, 4, 3, 2, 1, 0]], 4).flatten(1)), "getitem at the network"),
    ],
)
def test_a_width_written_into_forward_keeps_its_channels(forward: Callable[[Net, Tensor], Tensor], told: str) -> None:
    groups = found(forward, A=conv(1, 8), L=nn.Linear(32, 2))
    assert not groups.groups
    [reason] = [left.reason for left in groups.left_whole if left.name == "A"]
    assert told in reason and "(test_find.py:" in reason


def test_an_assertion_on_a_width_keeps_its_channels() -> None:
    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.A(x)
        if y.shape[1] != 8:
            raise ValueError("8 channels are needed")
        return n.B(y)

    groups = found(forward, A=conv(1, 8), B=conv(8, 2))
    assert not groups.groups and "8 channels are needed" in str(groups)


def test_a_computed_weight_is_left_whole_and_named() -> None:
    groups = found(lambda n, x: n.C(n.B(n.A(x))), A=conv(1, 4), B=nn.utils.parametrizations.weight_norm(conv(4, 4)), C=conv(4, 2))
    assert not groups.groups and "conv2d at B (test_find.py" in str(groups) and "has a computed weight" in str(groups)


def test_a_constant_that_is_not_stored_keeps_its_channels() -> None:
    constant = torch.rand(4, 1, 1)
    groups = found(lambda n, x: n.B(n.A(x) + constant), A=conv(1, 4), B=conv(4, 2))
    assert not groups.groups and "they meet something that must stay" in str(groups)


def test_an_operation_that_is_not_seen_keeps_its_channels() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return x * x

    groups = found(lambda n, x: n.B(Square.apply(n.A(x))), A=conv(1, 4), B=conv(4, 2))
    assert not groups.groups


def test_auxiliary_outputs_of_training_fit_too() -> None:
    """inception and googlenet have heads that only run in training: their inputs must be cut as well."""

    def forward(n: Net, x: Tensor) -> object:
        y = n.A(x)
        return (n.B(y), n.aux(y)) if n.training else n.B(y)

    groups = found(forward, A=conv(1, 4), B=conv(4, 2), aux=conv(4, 2))  # type: ignore[arg-type]
    assert str(groups[0]) in (
        "removing channel 3 of A removes input 3 of B and input 3 of aux",
        "removing channel 3 of A removes input 3 of aux and input 3 of B",
    )


@pytest.mark.parametrize(
    "peek",
    [
        lambda y: y if y.mean() > 0 else -y,
        lambda y: y * y.sum().item(),
        lambda y: y * float(y.sum()),
        lambda y: y[:, : int(y.abs().sum())],
        lambda y: torch.from_numpy(y.numpy()),
        lambda y: y * complex(y.sum()).real,
        lambda y: y if 0.5 in y else -y,
        lambda y: y if torch.equal(y, y.abs()) else -y,
        lambda y: y if torch.allclose(y, y.abs()) else -y,
        lambda y: y if torch.is_nonzero(y.sum()) else -y,
    ],
)
def test_control_flow_on_data_is_refused_by_line(peek: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NetworkError, match=r"^network: inner \(test_find\.py:\d+\) makes a Python value of the data .*; take that out"):
        found(lambda n, x: n.inner(n.A(x)), A=conv(1, 4), inner=Net(lambda n, x: n.B(peek(x)), B=conv(4, 2)))


def test_a_network_that_fails_on_the_example_is_told() -> None:
    with pytest.raises(NetworkError, match=r"network fails on an example of shape \(2, 1, 8, 8\): RuntimeError"):
        found(lambda n, x: n.A(x), A=conv(3, 4))


def test_an_operation_that_is_not_what_it_seems_is_refused() -> None:
    """A factor that depends on how many channels there are: all shapes fit, the values do not."""

    def forward(n: Net, x: Tensor) -> Tensor:
        y = n.A(x)
        return n.B(y * torch.full_like(y, y.shape[1]))

    silent = conv(4, 2)
    nn.init.zeros_(silent.weight)  # as a last layer often starts: it must not hide the mistake
    with pytest.raises(NetworkError, match="computes something else without half of its channels"):
        found(forward, A=conv(1, 4), B=silent)


def test_the_network_is_not_changed() -> None:
    network = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), nn.Dropout(), conv(4, 2)).train()
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    groups = channel_groups(network, IMAGE)
    surgery_error(network, remove_channels(network, groups, {"0": [0]}), groups, {"0": [0]})
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in network.modules()] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_network_that_prepares_its_input_in_place_is_that_which_makes_a_new_tensor() -> None:
    pixels = IMAGE.clone()
    twins = [lambda n, x: n.B(F.relu(n.A(x.sub_(0.5).mul_(-3)))), lambda n, x: n.B(F.relu(n.A((x - 0.5) * -3)))]
    inplace, plain = (found(forward, A=conv(1, 4), B=conv(4, 2)) for forward in twins)
    assert str(inplace) == str(plain) and len(inplace) == 1
    assert torch.equal(IMAGE, pixels)


def test_an_example_of_one_image_will_do() -> None:
    assert len(channel_groups(nn.Sequential(conv(1, 4), nn.BatchNorm2d(4), conv(4, 2)), IMAGE[:1])) == 1


def test_every_layer_of_the_built_in_networks_can_shrink() -> None:
    """All but the classes: nothing else is left whole."""
    for network in (k49.make(49, widths=(8, 16), depths=(1, 2)), emnist.make(47)):
        groups = channel_groups(network, torch.rand(2, 1, 28, 28))
        assert [(left.channels, left.reason) for left in groups.left_whole] in (
            [(49, "they are the network's output")],
            [(47, "they are the network's output")],
        )
