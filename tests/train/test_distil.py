"""Learning from a teacher: the loss by hand, and that a student ends up answering as its teacher does."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.train.distil import Lessons, Teacher
from compress.train.errors import TrainError
from compress.train.fit import fit, predict_logits
from compress.train.settings import AugmentConfig, DistilConfig, FitConfig

CPU = torch.device("cpu")


def linear(rows: list[list[float]]) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=False))
    network[0].weight.data = torch.tensor(rows)
    return network


def test_the_loss_by_hand() -> None:
    """Teacher's logits (2, 0) and student's (0, 0) at temperature 2: KL of (e, 1)/(e + 1) from (1/2, 1/2), times 4."""
    teacher = Teacher(network=linear([[2.0], [0.0]]), config=DistilConfig(weight=0.25, temperature=2.0))
    student = linear([[0.0], [0.0]])
    x = torch.ones(3, 1)
    p = math.e / (math.e + 1)
    divergence = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    with Lessons(teacher, student, CPU) as lessons:
        loss = lessons.loss(x, student(x), torch.tensor(5.0))
    assert loss.item() == pytest.approx(0.75 * 5 + 0.25 * 4 * divergence, rel=1e-5)


def test_features_are_compared_in_the_channels_that_the_student_still_has() -> None:
    """Hidden values 1, 2, 3 of the teacher; the student has those of channels 0 and 2, as 1 and 5: error (0 + 4)/2 over (1 + 9)/2."""
    teacher = nn.Sequential(linear([[1.0], [2.0], [3.0]]), nn.Linear(3, 2))
    student = nn.Sequential(linear([[1.0], [5.0]]), nn.Linear(2, 2))
    learnt = Teacher(network=teacher, config=DistilConfig(weight=0.0, features=0.5), features={"1": torch.tensor([0, 2])})
    x = torch.ones(4, 1)
    with Lessons(learnt, student, CPU) as lessons:
        loss = lessons.loss(x, student(x), torch.tensor(0.0))
    assert loss.item() == pytest.approx(0.5 * 2 / 5)
    assert not any(module._forward_pre_hooks for network in (teacher, student) for module in network.modules())


@pytest.mark.parametrize("features", [0.0, 1.0])
def test_a_student_answers_as_its_teacher_where_labels_say_nothing(features: float) -> None:
    """Random labels, and a teacher that says whether the upper half is the brighter one."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (512, 1, 2, 4)).astype(np.uint8), random.integers(0, 2, 512)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(8, 2, bias=False))
    half = torch.tensor([1.0] * 4 + [-1.0] * 4)
    teacher[1].weight.data = 4 * torch.stack([half, -half])
    torch.manual_seed(0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(8, 2))
    before = [value.clone() for value in teacher.state_dict().values()]
    lesson = Teacher(network=teacher, config=DistilConfig(weight=1.0, features=features), features={"1": torch.arange(8)})

    def prepare(x: Tensor) -> Tensor:
        return x.float() / 255

    wanted = predict_logits(teacher, images, prepare=prepare, device=CPU).argmax(1)
    config = FitConfig(epochs=20, batch=16, lr=0.03)
    fit(student, (images, labels), (images, wanted), config, classes=2, prepare=prepare, device=CPU, teacher=lesson)
    given = predict_logits(student, images, prepare=prepare, device=CPU).argmax(1)
    assert (given == wanted).mean() > 0.97
    assert abs((given == labels).mean() - 0.5) < 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.state_dict().values(), strict=True))


@pytest.mark.parametrize("features", [0.0, 1.0])
def test_networks_that_prepare_their_input_in_place_learn_what_their_twins_learn(features: float) -> None:
    """x.sub_(0.5).mul_(-3) and (x - 0.5) * -3 are the same numbers, so what was learnt is the same, bit for bit."""

    class Net(nn.Module):
        def __init__(self, inplace: bool, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.inplace, self.first, self.last = inplace, nn.Conv2d(1, 4, 2), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.sub_(0.5).mul_(-3) if self.inplace else (x - 0.5) * -3
            return self.last(self.first(x).relu().flatten(1))

    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (64, 1, 2, 4)).astype(np.uint8), random.integers(0, 2, 64)

    def learnt(inplace: bool) -> dict[str, Tensor]:
        student, config = Net(inplace, 1), DistilConfig(weight=0.5, features=features)
        lesson = Teacher(network=Net(inplace, 0), config=config, features={"last": torch.arange(12)})
        how = FitConfig(epochs=2, batch=16, lr=0.03)
        arrays = images, labels
        fit(student, arrays, arrays, how, classes=2, prepare=lambda x: x.float() / 255, device=CPU, teacher=lesson)
        return student.state_dict()

    inplace, plain = learnt(True), learnt(False)
    assert all(torch.equal(inplace[name], plain[name]) for name in plain)


def test_a_layer_that_one_of_them_lacks_is_refused() -> None:
    teacher = Teacher(network=linear([[1.0]]), config=DistilConfig(features=1.0), features={"head": torch.tensor([0])})
    with pytest.raises(TrainError, match='features: the teacher has no layer "head"; name layers that both networks have'):
        Lessons(teacher, linear([[1.0]]), CPU)


def test_the_last_epochs_see_images_as_they_are() -> None:
    """What the network gets to see, by its largest pixel: cut out of another image by mixing, or plain."""
    images = np.zeros((64, 1, 4, 4), dtype=np.uint8)
    images[:32] = 255
    seen: list[float] = []

    def prepare(x: Tensor) -> Tensor:
        seen.append(float(((x > 0) & (x < 255)).float().mean()))
        return x.float() / 255

    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    labels = np.repeat([0, 1], 32)
    config = FitConfig(epochs=3, batch=16, plain_epochs=1, augment=AugmentConfig(mixup=1.0))
    fit(network, (images, labels), (images[:2], labels[:2]), config, classes=2, prepare=prepare, device=CPU)
    epoch = len(seen) // 3
    assert max(seen[:epoch]) > 0 and max(seen[epoch : 2 * epoch]) > 0
    assert max(seen[2 * epoch :]) == 0
