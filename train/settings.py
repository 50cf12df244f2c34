"""The settings of training. Their types say what they may be; whoever reads them from outside has them checked by these. Loads no torch."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

MOST_AT_ONCE, FEWEST, PIXELS = 128, 8, 1 << 20  # images per step, and pixels of them, where nobody says how many
AUXILIARY = 0.3  # weight of the loss of each auxiliary head; Szegedy et al. 2014, arXiv:1409.4842, section 5


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far training images are changed; 0 switches a change off.

    ``rotate`` and ``shear``: largest angle in degrees, drawn evenly from both sides. ``scale``: 0.1 draws a size from 90% to 110%, per
    axis. ``shift``: largest shift in pixels, per axis. ``elastic``: standard deviation of the control points' displacement in pixels;
    ``grid``: control points along one side. ``mixup``, ``cutmix``: both parameters of the Beta distribution of the share; with both,
    each batch gets one of them.

    ``hflip``: share of the images that are mirrored left to right. ``resized_crop``: a part of the image, of at least this share of its
    area and 3:4 to 4:3 in shape, fills all of it; 1 for none. ``trivial_augment``: one change out of fourteen, of colour or place, of
    random strength (Mueller and Hutter 2021, arXiv:2103.10158).
    """

    rotate: Annotated[float, Meta(ge=0, le=180, description="degrees, 10 suits characters")] = 0.0
    shear: Annotated[float, Meta(ge=0, le=60, description="degrees, 10 suits characters")] = 0.0
    scale: Annotated[float, Meta(ge=0, le=0.9, description="0.1 draws sizes from 90% to 110%")] = 0.0
    shift: Annotated[float, Meta(ge=0, le=1000, description="pixels, 2 suits images of 28x28")] = 0.0
    elastic: Annotated[float, Meta(ge=0, le=1000, description="pixels, 1 suits images of 28x28")] = 0.0
    grid: Annotated[int, Meta(ge=2, le=64, description="4 control points a side are usual")] = 4
    mixup: Annotated[float, Meta(ge=0, le=100, description="Beta's parameter, 0.2 is usual")] = 0.0
    cutmix: Annotated[float, Meta(ge=0, le=100, description="Beta's parameter, 1 is usual")] = 0.0
    hflip: Annotated[float, Meta(ge=0, le=1, description="0.5 suits photographs; mirrored characters are others")] = 0.0
    resized_crop: Annotated[float, Meta(gt=0, le=1, description="smallest share of the area, 0.6 suits photographs, 1 for none")] = 1.0
    trivial_augment: bool = False

    @property
    def distorts(self) -> bool:
        """Whether a batch is distorted as a whole."""
        return any(getattr(self, name) for name in ("rotate", "shear", "scale", "shift", "elastic"))

    @property
    def varies(self) -> bool:
        """Whether each image is changed by itself."""
        return self.hflip > 0 or self.resized_crop < 1 or self.trivial_augment


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How much of the loss a teacher makes: ``weight`` of its soft targets at ``temperature``, and ``features`` times that of features."""

    weight: Annotated[float, Meta(ge=0, le=1, description="0.7 is the default, 0 learns from labels alone")] = 0.7
    temperature: Annotated[float, Meta(gt=0, description="2 to 4 are usual")] = 2.0
    features: Annotated[float, Meta(ge=0, description="0 learns from soft targets only")] = 0.0

    @property
    def teaches(self) -> bool:
        return self.weight > 0 or self.features > 0


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a network is trained.

    ``batch`` is at most a 32nd of the training images, so that small data still gets 32 steps per epoch, which batch norm's running
    averages need; where nobody says it, it is :func:`usual_batch`. ``warmup`` is the fraction of all steps in which the learning rate
    rises linearly.

    ``ema``: decay per step of the exponential moving average of the weights, which then is what is scored and kept; 0 for none.
    ``imbalance``: ``weighted`` counts each class's loss equally, ``logit-adjusted`` adds the log frequency of each class to its logit
    in training, so that what is left for the network to say does not favour frequent classes. ``patience``: stop after so many epochs
    without a better one; 0 for never. ``plain_epochs``: the last so many epochs see images without augmentation, as they are read later.
    """

    epochs: Annotated[int, Meta(ge=1)] = 10
    batch: Annotated[int, Meta(ge=2, description="batch norm needs two images; left out: 128, fewer of large images")] = MOST_AT_ONCE
    optimiser: Literal["adam", "adamw"] = "adam"
    lr: Annotated[float, Meta(gt=0, description="0.001 is a good start for Adam")] = 0.001
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[float, Meta(ge=0, lt=1, description="0.1 warms up over the first tenth of the steps")] = 0.0
    label_smoothing: Annotated[float, Meta(ge=0, lt=1, description="0.1 is usual")] = 0.0
    ema: Annotated[float, Meta(ge=0, lt=1, description="0.999 averages over the last thousand steps, 0 averages nothing")] = 0.0
    imbalance: Literal["none", "weighted", "logit-adjusted"] = "none"
    patience: Annotated[int, Meta(ge=0, description="0 never stops early")] = 0
    plain_epochs: Annotated[int, Meta(ge=0, description="so many of the last epochs")] = 0
    precision: Annotated[Literal["auto", "fp32", "bf16"], Meta(description="auto is bf16 on CUDA and fp32 on the CPU")] = "auto"
    seed: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    augment: AugmentConfig = AugmentConfig()


def usual_batch(height: int, width: int) -> int:
    """Images per step where nobody says how many: 128, halved until they have at most 2**20 pixels, but 8 at least; 16 of 224x224.

    Memory goes with the pixels, as the activations of a step do. The learning rate stays as it is.
    """
    batch = MOST_AT_ONCE
    while batch > FEWEST and batch * height * width > PIXELS:
        batch //= 2
    return batch


def heads(output: Any) -> list[tuple[float, Any]]:
    """What a network answers in training, each head with the weight of its loss: (main, auxiliary, None) has two heads, of 1 and 0.3."""
    main, *others = output if isinstance(output, tuple | list) and output else [output]
    return [(1.0, main), *((AUXILIARY, one) for one in others if one is not None)]
