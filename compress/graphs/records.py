"""What the export says of a file, as artifacts keep it. Loads neither torch nor onnx, so that a board can read it."""

from dataclasses import dataclass

from msgspec import UNSET, UnsetType

MINIMUM_IMAGES = 32  # below this the seen range depends more on the choice of images than on the network (pytorch/pytorch#45185)


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How well a file agrees with the torch network.

    ``largest_difference`` is the largest absolute difference of two logits (infinity where one is not finite); ``agreement`` is the
    fraction of images with the same argmax, 0 to 1; ``probabilities`` is the largest difference of two probabilities, None where the file
    gives none, UNSET in artifacts of older versions. All over ``images`` images.
    """

    images: int
    largest_difference: float
    agreement: float
    probabilities: float | UnsetType | None = UNSET
