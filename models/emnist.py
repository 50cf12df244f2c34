"""emnist: the plain two-convolution network of an EMNIST recogniser.

Convolution 3x3 and max-pooling twice, dropout 0.34, fully connected 196 and K. The reference applied softmax at the output; here the
network gives logits, and who needs probabilities applies softmax to them (cross entropy in training, `compress predict`).
With 47 classes: 342 thousand parameters, 2.8 million MACs per image.

Dimensions: B batch, K classes. Input float32 (B, 1, 28, 28) in [0, 1]; output logits float32 (B, K).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from .errors import ModelError


@dataclass(frozen=True, kw_only=True)
class EmnistConfig:
    """Size of the network; 196 hidden units and dropout 0.34 came out of the reference's tuning."""

    classes: int
    channels: tuple[int, int] = (32, 64)
    hidden: int = 196
    dropout: float = 0.34

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        if self.classes < 2:
            raise ModelError(f"classes (={self.classes}) must be at least 2; the data set decides it")
        if len(self.channels) != 2 or min(self.channels) < 1 or self.hidden < 1:
            raise ModelError(
                f"channels (={self.channels}) must be two positive numbers and hidden (={self.hidden}) positive; (32, 64) and 196 fit"
            )
        if not 0 <= self.dropout < 1:
            raise ModelError(f"dropout (={self.dropout}) must lie in [0, 1); the reference has 0.34")


class Emnist(nn.Sequential):
    """float32 (B, 1, 28, 28) in [0, 1] to logits (B, K)."""

    def __init__(self, config: EmnistConfig) -> None:
        super().__init__()
        first, second = config.channels
        self.conv1 = nn.Conv2d(1, first, 3)
        self.act1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 3)
        self.act2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(config.dropout)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(second * 5 * 5, config.hidden)
        self.act3 = nn.ReLU()
        self.fc2 = nn.Linear(config.hidden, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def make(classes: int, **options: object) -> Emnist:
    """The network for ``classes`` classes; ``options`` are the other fields of :class:`EmnistConfig`."""
    return Emnist(EmnistConfig(classes=classes, **options))  # type: ignore[arg-type]
