"""Building blocks of the k49 network: CBAM gates and multi-scale depthwise separable blocks.

Dimensions: B batch, C channels, H height, W width. Every block maps float32 (B, C_in, H, W) to (B, C_out, H/stride, W/stride).

Sources: Woo et al. 2018, "CBAM: Convolutional Block Attention Module", arXiv:1807.06521 (gates, their order, reduction 16, 7x7);
Howard et al. 2017, arXiv:1704.04861 (depthwise separable convolution); He et al. 2015, arXiv:1512.03385 (residuals).
"""

import torch
from torch import Tensor, nn


class ChannelGate(nn.Module):
    """Scales each channel by sigmoid(MLP(average over H, W) + MLP(maximum over H, W)), one MLP shared by both.

    With C = 16 and reduction 16 the hidden layer has one unit; the hidden width is never below 4, as a single unit can only
    raise or lower all channels together.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        # 1x1 convolutions on (B, C, 1, 1) are the linear layers of the paper without the reshapes around them.
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def mlp(self, pooled: Tensor) -> Tensor:
        return self.excite(torch.relu(self.squeeze(pooled)))

    def forward(self, x: Tensor) -> Tensor:
        average = self.mlp(x.mean(dim=(2, 3), keepdim=True))
        maximum = self.mlp(x.amax(dim=(2, 3), keepdim=True))
        return x * torch.sigmoid(average + maximum)


class SpatialGate(nn.Module):
    """Scales each pixel by sigmoid(conv7x7([mean over C, maximum over C]))."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(seen))


class CBAM(nn.Sequential):
    """The channel gate, then the spatial gate: the order that the paper found best."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, reduction)
        self.spatial = SpatialGate()


class DepthwiseSeparable(nn.Sequential):
    """A k x k convolution per channel, then a 1x1 convolution across channels, each followed by batch norm."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, kernel, stride, kernel // 2, groups=c_in, bias=False)
        self.norm1 = nn.BatchNorm2d(c_in)
        self.act1 = nn.ReLU()
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)


class MultiScaleBlock(nn.Module):
    """Residual block: depthwise separable 3x3 and 5x5 side by side, concatenated, gated by CBAM, added to the shortcut.

    ``MultiScaleBlock(24, 64, stride=2)`` makes 32 channels with the 3x3 branch and 32 with the 5x5 one; as the shape changes,
    the shortcut is an average pool and a 1x1 convolution.
    """

    def __init__(self, c_in: int, c_out: int, stride: int = 1, reduction: int = 16) -> None:
        super().__init__()
        half = c_out // 2
        self.branch3 = DepthwiseSeparable(c_in, half, 3, stride)
        self.branch5 = DepthwiseSeparable(c_in, c_out - half, 5, stride)
        self.cbam = CBAM(c_out, reduction)
        self.shortcut = nn.Identity() if c_in == c_out and stride == 1 else _projection(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        scales = torch.relu(torch.cat([self.branch3(x), self.branch5(x)], dim=1))
        return torch.relu(self.cbam(scales) + self.shortcut(x))


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))
