"""Learning from another network: the student is drawn towards the teacher's logits, and where asked towards its features.

Both see the very same images, distorted and mixed alike. The loss is ``(1 - weight) * loss on labels + weight * T^2 * KL(teacher ||
student)`` of the probabilities at temperature T; each layer of ``features`` adds ``features`` times the squared error of its input
relative to the teacher's. Of a student that was cut out of its teacher every channel is known to be one of the teacher's, so features need
no layer in between.

Sources: Hinton et al. 2015, arXiv:1503.02531 (soft targets); Romero et al. 2015, arXiv:1412.6550 (features); Beyer et al. 2022,
arXiv:2106.05237 (the same images for both, and long trainings).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import TrainError
from .settings import DistilConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A trained network and how much it says.

    ``features``: names of layers that both networks have, with the indices int64 (C,) of the teacher's input channels (dimension 1) that
    the student's layer reads, in its order.
    """

    network: nn.Module
    config: DistilConfig
    features: Mapping[str, Tensor] = field(default_factory=dict)


class Lessons:
    """The teacher beside a student: watches the layers of ``features`` inside a ``with`` block, and makes the loss."""

    def __init__(self, teacher: Teacher, student: nn.Module, device: torch.device) -> None:
        self.config, self.student = teacher.config, student
        self.teacher = teacher.network.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.channels = {name: index.to(device) for name, index in teacher.features.items()} if teacher.config.features else {}
        for name in self.channels:
            for who, network in (("teacher", teacher.network), ("student", student)):
                if name not in dict(network.named_modules()):
                    raise TrainError(f'features: the {who} has no layer "{name}"; name layers that both networks have')
        self.seen: dict[tuple[str, str], Tensor] = {}

    def __enter__(self) -> "Lessons":
        networks = {"teacher": self.teacher, "student": self.student}
        self.hooks = [
            network.get_submodule(name).register_forward_pre_hook(self._watcher(who, name))
            for who, network in networks.items()
            for name in self.channels
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self.hooks:
            hook.remove()

    def loss(self, x: Tensor, logits: Tensor, hard: Tensor) -> Tensor:
        """The whole loss for inputs ``x`` (B, C, H, W), the student's ``logits`` (B, K) for them and its loss on labels, ``hard``."""
        with torch.no_grad():
            wanted = self.teacher(x).float()
        t, weight = self.config.temperature, self.config.weight
        soft = functional.kl_div(
            functional.log_softmax(logits / t, dim=1), functional.log_softmax(wanted / t, dim=1), reduction="batchmean", log_target=True
        )
        loss = (1 - weight) * hard + weight * t * t * soft
        for name, channels in self.channels.items():
            theirs = self.seen.pop(("teacher", name)).index_select(1, channels).float()
            error = (self.seen.pop(("student", name)).float() - theirs).square().mean()
            loss = loss + self.config.features * error / theirs.square().mean().clamp_min(torch.finfo(torch.float32).tiny)
        return loss

    def _watcher(self, who: str, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.seen[who, name] = inputs[0]

        return see
