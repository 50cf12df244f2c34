"""How a picture is brought to the size that a network takes: as it was in training, or the network reads what it never saw.

::

    stretch    all of it, whatever its proportions                                   (the default, bilinear)
    crop       the middle: as torchvision's Resize and CenterCrop, of ImageNet's networks; crop=0.875 is 256 to 224
    pad        all of it, with black bars at two sides: as Pillow's ImageOps.pad

Refused: another way, a crop outside (0, 1], a crop of what is not cropped.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from .errors import TrainError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Way = Literal["stretch", "crop", "pad"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Resize:
    """``crop``: the picture is resized to the network's size divided by this, and the middle of that is taken."""

    way: Way = "stretch"
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        for name, value, kind in (("resize", self.way, Way), ("interpolation", self.interpolation, Interpolation)):
            if value not in get_args(kind):
                raise TrainError(f"{name} (={value}) must be one of {', '.join(get_args(kind))}")
        if not 0 < self.crop <= 1:
            raise TrainError(f"crop (={self.crop}) must lie in (0, 1]; 0.875 takes the middle 224 of 256")
        if self.crop != 1 and self.way != "crop":
            raise TrainError(f"crop (={self.crop}) is for pictures that are cropped; add --resize crop, or leave it out")

    def apply(self, picture: "Picture", width: int, height: int) -> "Picture":
        """The picture, of mode L or RGB, at ``width`` x ``height``."""
        from PIL import Image, ImageOps

        method = Image.Resampling[self.interpolation.upper()]
        if self.way == "stretch":
            return picture.resize((width, height), method)
        if self.way == "pad":
            return ImageOps.pad(picture, (width, height), method)
        least = math.floor(width / self.crop), math.floor(height / self.crop)
        ratios = [one / own for one, own in zip(least, picture.size, strict=True)]
        side = ratios.index(max(ratios))  # the one that just fits; the other is longer
        size = [least[side] * own // picture.size[side] for own in picture.size]
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        return picture.resize((size[0], size[1]), method).crop((left, top, left + width, top + height))


STRETCH = Resize()
