"""k49: a small CBAM network for 28x28 characters, after a Kuzushiji-49 hiragana recogniser.

A 3x3 stem, then stages of multi-scale residual blocks with CBAM (models/layers.py), halving the resolution between stages, global
average pooling, dropout, classifier. With the default widths and 49 classes: 177 thousand parameters, 9.3 million MACs per image.

Dimensions: B batch, K classes. Input float32 (B, 1, 28, 28) in [0, 1]; output logits float32 (B, K).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from .errors import ModelError
from .layers import MultiScaleBlock


@dataclass(frozen=True, kw_only=True)
class K49Config:
    """Size of the network: ``widths[i]`` channels in ``depths[i]`` blocks at 1/2**i of the resolution."""

    classes: int
    widths: tuple[int, ...] = (16, 64, 176)
    depths: tuple[int, ...] = (1, 2, 4)
    reduction: int = 16
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "depths", tuple(self.depths))
        if self.classes < 2:
            raise ModelError(f"classes (={self.classes}) must be at least 2; the data set decides it")
        if not self.widths or len(self.widths) != len(self.depths):
            raise ModelError(
                f"widths (={self.widths}) and depths (={self.depths}) must have the same, non-zero length; (16, 64, 176) and (1, 2, 4) fit"
            )
        if min(self.widths) < 2 or min(self.depths) < 1:
            raise ModelError(f"widths (={self.widths}) must be at least 2 and depths (={self.depths}) at least 1")
        if self.reduction < 1:
            raise ModelError(f"reduction (={self.reduction}) must be at least 1; 16 is the paper's")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout (={self.dropout}) must lie in [0, 1); 0.1 is the default")


class K49(nn.Module):
    """float32 (B, 1, 28, 28) in [0, 1] to logits (B, K). Any height and width of at least 8 work, as the pooling is global."""

    def __init__(self, config: K49Config) -> None:
        super().__init__()
        first = config.widths[0]
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        blocks: list[nn.Module] = []
        c_in = first
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            for position in range(depth):
                stride = 2 if stage > 0 and position == 0 else 1
                blocks.append(MultiScaleBlock(c_in, width, stride, config.reduction))
                c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(c_in, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.stem(x))
        return self.classifier(self.dropout(features.mean(dim=(2, 3))))


def make(classes: int, **options: object) -> K49:
    """The network for ``classes`` classes; ``options`` are the other fields of :class:`K49Config`."""
    return K49(K49Config(classes=classes, **options))  # type: ignore[arg-type]
