"""The settings of training, checked when they are made. Loads no torch."""

import math
from dataclasses import dataclass, fields

from .errors import TrainError

OPTIMISERS = ("adam", "adamw")
IMBALANCE = ("none", "weighted", "logit-adjusted")
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far training images are changed; 0 switches a change off.

    ``rotate`` and ``shear``: largest angle in degrees, drawn evenly from both sides. ``scale``: 0.1 draws a size from 90% to 110%, per
    axis. ``shift``: largest shift in pixels, per axis. ``elastic``: standard deviation of the control points' displacement in pixels;
    ``grid``: control points along one side. ``mixup``, ``cutmix``: both parameters of the Beta distribution of the share; with both,
    each batch gets one of them.
    """

    rotate: float = 0.0
    shear: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    grid: int = 4
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name, most, hint in (
            ("rotate", 180, "degrees; 10 suits characters"),
            ("shear", 60, "degrees; 10 suits characters"),
            ("scale", 0.9, "a fraction; 0.1 draws sizes from 90% to 110%"),
            ("shift", 1000, "pixels; 2 suits images of 28x28"),
            ("elastic", 1000, "pixels; 1 suits images of 28x28"),
            ("mixup", 100, "Beta's parameter; 0.2 is usual"),
            ("cutmix", 100, "Beta's parameter; 1 is usual"),
        ):
            if not 0 <= getattr(self, name) <= most:
                raise TrainError(f"{name} (={getattr(self, name)}) must lie in [0, {most}], {hint}")
        if not 2 <= self.grid <= 64:
            raise TrainError(f"grid (={self.grid}) must lie in [2, 64]; 4 control points a side are usual")

    @property
    def distorts(self) -> bool:
        return any(getattr(self, entry.name) for entry in fields(self) if entry.name not in ("grid", "mixup", "cutmix"))


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How much of the loss a teacher makes: ``weight`` of its soft targets at ``temperature``, and ``features`` times that of features."""

    weight: float = 0.7
    temperature: float = 2.0
    features: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise TrainError(f"weight (={self.weight}) of the teacher must lie in [0, 1]; 0.7 is the default, 0 learns from labels alone")
        if not 0 < self.temperature < math.inf:
            raise TrainError(f"temperature (={self.temperature}) must be a positive number; 2 to 4 are usual")
        if not 0 <= self.features < math.inf:
            raise TrainError(f"features (={self.features}) must be zero (soft targets only) or a positive number")

    @property
    def teaches(self) -> bool:
        return self.weight > 0 or self.features > 0


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a network is trained.

    ``batch`` is at most a 32nd of the training images, so that small data still gets 32 steps per epoch, which batch norm's running
    averages need. ``warmup`` is the fraction of all steps in which the learning rate rises linearly.

    ``ema``: decay per step of the exponential moving average of the weights, which then is what is scored and kept; 0 for none.
    ``imbalance``: ``weighted`` counts each class's loss equally, ``logit-adjusted`` adds the log frequency of each class to its logit
    in training, so that what is left for the network to say does not favour frequent classes. ``patience``: stop after so many epochs
    without a better one; 0 for never. ``plain_epochs``: the last so many epochs see images without augmentation, as they are read later.
    """

    epochs: int = 10
    batch: int = 256
    optimiser: str = "adam"
    lr: float = 0.001
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    imbalance: str = "none"
    patience: int = 0
    plain_epochs: int = 0
    precision: str = "auto"
    seed: int = 0
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        rules = [
            (self.epochs >= 1, "epochs", "must be at least 1"),
            (self.batch >= 2, "batch", "must be at least 2, as batch norm needs two images; 256 is the default"),
            (self.optimiser in OPTIMISERS, "optimiser", f"must be one of {', '.join(OPTIMISERS)}"),
            (0 < self.lr < math.inf, "lr", "must be a positive number; 0.001 is a good start for Adam"),
            (0 <= self.weight_decay < math.inf, "weight_decay", "must be zero or a positive number"),
            (self.schedule in SCHEDULES, "schedule", f"must be {' or '.join(SCHEDULES)}"),
            (0 <= self.warmup < 1, "warmup", "must lie in [0, 1); 0.1 warms up over the first tenth of the steps"),
            (0 <= self.label_smoothing < 1, "label_smoothing", "must lie in [0, 1); 0.1 is usual"),
            (0 <= self.ema < 1, "ema", "must lie in [0, 1); 0.999 averages over the last thousand steps, 0 averages nothing"),
            (self.imbalance in IMBALANCE, "imbalance", f"must be one of {', '.join(IMBALANCE)}"),
            (self.patience >= 0, "patience", "must be zero (never stop early) or a number of epochs"),
            (self.plain_epochs >= 0, "plain_epochs", "must be zero or a number of epochs, the last ones"),
            (self.precision in ("auto", "fp32", "bf16"), "precision", "must be auto (bf16 on CUDA, fp32 on the CPU), fp32 or bf16"),
            (0 <= self.seed < 2**31, "seed", "must lie in 0 to 2147483647"),
        ]
        for holds, name, rule in rules:
            if not holds:
                raise TrainError(f"{name} (={getattr(self, name)}) {rule}")
