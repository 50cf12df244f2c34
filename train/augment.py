"""Random changes to a batch of training images.

First those that suit photographs, of each image by itself and still in whole numbers: mirrored, a part of it, TrivialAugment, by
torchvision's transforms. All others are computed for the whole batch at once on the device that trains.

Affine and elastic distortions become one sampling grid, so that each image is interpolated once. A point p of the output, in pixels from
the centre, is taken from the input at A p + t + d(p): A rotates, shears and scales, t shifts, and d is smooth noise, Gaussian
displacements on a coarse grid of control points, interpolated bicubically. Pixels from outside the image are 0.

Then mixup or cutmix: each image is blended with, or partly covered by, another of the batch, and its loss is shared accordingly.

All random numbers are drawn for the global batch, so that several processes that share one draw the same; each then takes its rows.

Dimensions: B images of the batch, C channels, H height, W width, G control points along one side.
Sources: Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801 (elastic distortions for characters); Ronneberger et al. 2015,
arXiv:1505.04597 (coarse grid); Zhang et al. 2017, arXiv:1710.09412 (mixup); Yun et al. 2019, arXiv:1905.04899 (cutmix).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .settings import AugmentConfig


@dataclass(frozen=True)
class Mix:
    """Image i keeps ``share`` of itself and takes the rest of image ``partner[i]``: blended, or the ``box`` (top, bottom, left, right)."""

    partner: Tensor
    share: float
    box: tuple[int, int, int, int] | None = None


def draw_seeds(config: AugmentConfig, count: int) -> Tensor | None:
    """What each of the ``count`` images of a global batch is varied by, int64 (B,), or None where they stay as they are."""
    return torch.randint(2**62, (count,)) if config.varies else None


def transform_of(config: AugmentConfig, height: int, width: int) -> Callable[[Tensor], Tensor]:
    """What varies one image, uint8 (C, H, W), by torch's own generator."""
    from torchvision.transforms import v2

    steps: list[Callable[[Tensor], Tensor]] = []
    if config.resized_crop < 1:
        steps.append(v2.RandomResizedCrop((height, width), (config.resized_crop, 1.0)))
    if config.hflip:
        steps.append(v2.RandomHorizontalFlip(config.hflip))
    if config.trivial_augment:
        steps.append(v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR))
    return v2.Compose(steps)


def vary(images: Tensor, seeds: Tensor, config: AugmentConfig) -> Tensor:
    """Images uint8 (B, C, H, W), each varied by its own of ``seeds``, int64 (B,), whatever others stand beside it."""
    transform = transform_of(config, *images.shape[2:])
    with torch.random.fork_rng(devices=[]):
        varied = []
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)  # manual_seed would set CUDA's generators too
            varied.append(transform(image))
    return torch.stack(varied)


def draw_grid(config: AugmentConfig, count: int, height: int, width: int, device: torch.device, rows: slice = slice(None)) -> Tensor:
    """Random sampling grid float32 (B, H, W, 2) for :func:`torch.nn.functional.grid_sample`, of the ``rows`` of ``count`` images."""

    def even(most: float, columns: int = 1) -> Tensor:
        return (torch.rand(count, columns, device=device) * 2 - 1)[rows] * most

    angle, shear = even(math.radians(config.rotate))[:, 0], torch.tan(even(math.radians(config.shear))[:, 0])
    size, shift = 1 + even(config.scale, 2), even(config.shift, 2)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # A = rotation x shear, its columns divided by the size: a larger image samples its source more narrowly.
    matrix = torch.stack([cos, cos * shear - sin, sin, sin * shear + cos], dim=1).view(-1, 2, 2) / size[:, None, :]
    y, x = _centred(height, device), _centred(width, device)
    points = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).reshape(1, -1, 2)
    source = (points @ matrix.mT + shift[:, None, :]).view(-1, height, width, 2)
    if config.elastic:
        noise = (torch.randn(count, 2, config.grid, config.grid, device=device) * config.elastic)[rows]
        down, across = _bicubic(config.grid, height).to(device), _bicubic(config.grid, width).to(device)
        source = source + (down @ noise @ across.mT).permute(0, 2, 3, 1)
    return source * torch.tensor([2 / width, 2 / height], device=device)


def distort(images: Tensor, grid: Tensor) -> Tensor:
    """Images float32 (B, C, H, W) sampled bilinearly at ``grid``; what lies outside is 0."""
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def draw_mix(config: AugmentConfig, count: int, height: int, width: int) -> Mix | None:
    """How the ``count`` images of a global batch are mixed, or None where the configuration asks for no mixing."""
    if not (config.mixup or config.cutmix):
        return None
    boxed = bool(config.cutmix) and (not config.mixup or bool(torch.rand(()) < 0.5))
    alpha = torch.tensor(config.cutmix if boxed else config.mixup, dtype=torch.float32)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partner = torch.randperm(count)
    if not boxed:
        return Mix(partner, share)
    middle = torch.rand(2).tolist()
    half = math.sqrt(1 - share) / 2
    top, bottom = (min(height, max(0, round((middle[0] + side * half) * height))) for side in (-1, 1))
    left, right = (min(width, max(0, round((middle[1] + side * half) * width))) for side in (-1, 1))
    return Mix(partner, 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix(images: Tensor, partners: Tensor, how: Mix) -> Tensor:
    """Images float32 (B, C, H, W) mixed with their ``partners`` (B, C, H, W)."""
    if how.box is None:
        return torch.lerp(partners, images, how.share)
    top, bottom, left, right = how.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return mixed


def _centred(size: int, device: torch.device) -> Tensor:
    """Pixel centres as distances from the middle: -1.5, -0.5, 0.5, 1.5 for size 4."""
    return torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2


def _bicubic(points: int, size: int) -> Tensor:
    """Matrix float32 (size, points) that interpolates ``points`` values, the outer two at the edges, to ``size`` pixels."""
    unit = torch.eye(points).view(points, 1, points, 1)
    return functional.interpolate(unit, size=(size, 1), mode="bicubic", align_corners=True).view(points, size).mT.contiguous()
