"""The training loop: what it keeps, what it repeats bit for bit, what it refuses."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.train.errors import TrainError
from compress.train.fit import OPTIMISERS, Fitted, choose_device, fit, learning_rate, predict_logits, steps_in_epoch
from compress.train.settings import AugmentConfig, FitConfig

CPU = torch.device("cpu")


def prepare(images: Tensor) -> Tensor:
    return images.float() / 255


def data(count: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Images of 8x8 whose upper half is bright (class 1) or dark (class 0), with noise that hides it a little."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, count)
    images = random.integers(0, 180, (count, 1, 8, 8))
    images[:, :, :4] += (labels * 60)[:, None, None, None]
    return images.astype(np.uint8), labels


def network() -> nn.Module:
    torch.manual_seed(1)
    first, second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)  # the second lies otherwise in memory as channels_last
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), second, nn.Dropout(0.2), nn.Flatten(), nn.Linear(96, 2))


def train(net: nn.Module, config: FitConfig, **options: object) -> Fitted:
    arrays = data()
    part = (arrays[0][:60], arrays[1][:60])
    return fit(net, arrays, part, config, classes=2, prepare=prepare, device=CPU, **options)  # type: ignore[arg-type]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Auxiliary(nn.Module):
    """One weight per pixel and head; the second one answers in training only, as GoogLeNet's do."""

    def __init__(self, other: type = tuple) -> None:
        super().__init__()
        self.main, self.aux, self.other = nn.Linear(64, 2, bias=False), nn.Linear(64, 2, bias=False), other
        nn.init.zeros_(self.main.weight)
        nn.init.zeros_(self.aux.weight)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = x.flatten(1)
        return self.other((self.main(x), None, self.aux(x))) if self.training else self.main(x)


def test_an_auxiliary_head_learns_with_three_tenths_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both heads start alike: one step of plain descent moves the auxiliary one by 0.3 of what it moves the main one."""
    monkeypatch.setitem(OPTIMISERS, "adam", lambda parameters, lr, **others: torch.optim.SGD(parameters, lr=lr))
    images, labels = data(64)
    for kind in (tuple, list):
        net = Auxiliary(kind)
        config = FitConfig(epochs=1, batch=2, lr=1e-4)
        fit(net, (images[:2], labels[:2]), (images, labels), config, classes=2, prepare=prepare, device=CPU)
        assert net.main.weight.abs().max() > 0
        torch.testing.assert_close(net.aux.weight, 0.3 * net.main.weight)


class Stop(Exception):
    """Stands for Ctrl-C."""


def stop_in(last: int) -> Callable[[int, int, int, float], None]:
    def progress(epoch: int, step: int, steps: int, loss: float) -> None:
        if epoch == last:
            raise Stop

    return progress


SETTINGS = [
    FitConfig(epochs=4, batch=32, lr=0.01),
    FitConfig(epochs=4, batch=32, lr=0.01, optimiser="adamw", schedule="cosine", warmup=0.2, label_smoothing=0.1, weight_decay=0.05),
    FitConfig(epochs=4, batch=32, lr=0.01, precision="bf16"),
    FitConfig(epochs=4, batch=32, lr=0.01, ema=0.9, imbalance="weighted", augment=AugmentConfig(rotate=5, shift=1, elastic=1)),
    FitConfig(epochs=4, batch=32, lr=0.01, ema=0.9, imbalance="logit-adjusted", augment=AugmentConfig(mixup=0.3, cutmix=1)),
    FitConfig(epochs=4, batch=32, lr=0.01, augment=AugmentConfig(hflip=0.5, resized_crop=0.5, trivial_augment=True, rotate=5, mixup=0.2)),
]


@pytest.mark.parametrize("config", SETTINGS)
def test_same_seed_gives_bit_identical_weights(config: FitConfig) -> None:
    one, other = network(), network()
    assert train(one, config).history[-1]["train_loss"] == train(other, config).history[-1]["train_loss"]
    assert same(one, other)


def test_another_seed_gives_other_weights() -> None:
    one, other = network(), network()
    train(one, FitConfig(epochs=1, batch=32, lr=0.01))
    train(other, FitConfig(epochs=1, batch=32, lr=0.01, seed=1))
    assert not same(one, other)


@pytest.mark.parametrize("config", SETTINGS)
def test_interrupted_and_resumed_is_bit_identical_to_uninterrupted(config: FitConfig, tmp_path: Path) -> None:
    whole, resumed = network(), network()
    uninterrupted = train(whole, config)
    with pytest.raises(Stop):
        train(network(), config, state_file=tmp_path / "state", key="k", progress=stop_in(3))
    fitted = train(resumed, config, state_file=tmp_path / "state", key="k")
    assert same(whole, resumed)
    assert fitted.best_epoch == uninterrupted.best_epoch
    assert [row["train_loss"] for row in fitted.history] == [row["train_loss"] for row in uninterrupted.history]


def test_state_of_another_run_or_a_damaged_one_is_not_taken_up(tmp_path: Path) -> None:
    config = FitConfig(epochs=2, batch=32, lr=0.01)
    fresh, other, damaged = network(), network(), network()
    train(fresh, config)
    state = tmp_path / "state"
    with pytest.raises(Stop):
        train(network(), config, state_file=state, key="another", progress=stop_in(2))
    said: list[str] = []
    train(other, config, state_file=state, key="mine", say=said.append)
    assert same(fresh, other) and not said
    state.write_bytes(state.read_bytes()[:100])
    train(damaged, config, state_file=state, key="mine", say=said.append)
    assert same(fresh, damaged)
    assert re.fullmatch(r".*state is damaged \(.+\); training starts anew", said.pop()) and not said


def test_a_flipped_bit_in_a_state_is_told_and_training_starts_anew(tmp_path: Path) -> None:
    """Nothing else would tell: the tensors still have their shapes, and one weight of -4e36 in the best epoch's just reads badly."""
    config, state, said = FitConfig(epochs=2, batch=32, lr=0.01), tmp_path / "state", list[str]()
    fresh = network()
    train(fresh, config)
    with pytest.raises(Stop):
        train(network(), config, state_file=state, key="k", progress=stop_in(2))
    whole = bytearray(state.read_bytes())
    for at in (len(whole) - 1, len(whole) // 2, whole.index(b"history") + 40):
        damaged = whole.copy()
        damaged[at] ^= 1
        state.write_bytes(damaged)
        other = network()
        train(other, config, state_file=state, key="k", say=said.append)
        assert same(fresh, other) and "is damaged" in said.pop()
    state.write_bytes(whole)
    train(network(), config, state_file=state, key="k", say=said.append)
    assert said == [f"goes on from {state}, epoch 1; --fresh starts anew"]


def test_best_epoch_by_balanced_accuracy_is_kept_and_restored() -> None:
    net = network()
    fitted = train(net, FitConfig(epochs=6, batch=32, lr=0.05))
    scores = [row["balanced_accuracy"] for row in fitted.history]
    assert fitted.best_epoch == scores.index(max(scores)) + 1
    images, labels = data()
    logits = predict_logits(net, images[:60], prepare=prepare, device=CPU)
    assert fitted.best["accuracy"] == float((logits.argmax(axis=1) == labels[:60]).mean())
    assert fitted.best["balanced_accuracy"] > 0.8


def test_after_step_runs_after_every_step() -> None:
    net = network()
    mask = torch.rand(4, 1, 3, 3) > 0.5
    weight = net[0].weight  # type: ignore[index]

    def keep() -> None:
        with torch.no_grad():
            weight.mul_(mask)

    train(net, FitConfig(epochs=2, batch=32, lr=0.05, weight_decay=0.01), after_step=keep)
    assert torch.equal(weight != 0, mask)


def test_torchs_generator_is_given_back_as_it_was() -> None:
    net = network()
    before = torch.get_rng_state()
    train(net, FitConfig(epochs=1, batch=32))
    assert torch.equal(before, torch.get_rng_state())


def test_learning_rate_warms_up_then_follows_the_cosine() -> None:
    config = FitConfig(lr=1.0, schedule="cosine", warmup=0.2)
    rates = [learning_rate(config, step, 10) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)  # half way down after 4 of 8 steps
    assert learning_rate(FitConfig(lr=0.3), 7, 10) == 0.3


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(TrainError, match=r"the loss became nan in epoch 1 with lr \(=1e\+30\); take a smaller --lr"):
        train(network(), FitConfig(epochs=1, batch=32, lr=1e30))


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    with pytest.raises(TrainError, match=r"device \(=tpu\) must be auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(TrainError, match="sees no CUDA device here"):
            choose_device("cuda")


def test_killed_while_saving_leaves_a_whole_state_or_none(tmp_path: Path) -> None:
    """A process that saves without pause is killed; what lies there afterwards is taken up and gives the uninterrupted weights."""
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_fit import *
state = Path({str(tmp_path / "state")!r})
tell = lambda epoch, *_: epoch == 3 and print("third", flush=True)
train(network(), FitConfig(epochs=400, batch=32, lr=0.01), state_file=state, key="k", progress=tell)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    fitted = None
    with pytest.raises(Stop):
        fitted = train(
            network(), FitConfig(epochs=400, batch=32, lr=0.01), state_file=tmp_path / "state", key="k", progress=stop_after_first()
        )
    assert fitted is None


def stop_after_first() -> Callable[[int, int, int, float], None]:
    def progress(epoch: int, step: int, steps: int, loss: float) -> None:
        assert epoch > 1, "the state was not taken up"
        raise Stop

    return progress


def test_averaged_weights_are_the_mean_that_the_decay_defines() -> None:
    """Recomputed from the weights after each step; the decay is smaller at first, so that the initial weights are soon forgotten."""
    net, seen = network(), []
    seen.append({name: value.clone() for name, value in net.state_dict().items()})
    train(net, FitConfig(epochs=1, batch=60, lr=0.01, ema=0.8), after_step=lambda: seen.append(
        {name: value.clone() for name, value in net.state_dict().items()}))  # fmt: skip
    mean = seen[0]
    for step, weights in enumerate(seen[1:]):
        decay = min(0.8, (1 + step) / (10 + step))
        mean = {n: decay * mean[n] + (1 - decay) * v if v.is_floating_point() else v for n, v in weights.items()}
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, mean[name], rtol=1e-5, atol=1e-6)


class Constant(nn.Module):
    """Logits that do not depend on the image, so that training finds the best constant answer."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + torch.zeros(len(x), 2)


@pytest.mark.parametrize(("imbalance", "odds"), [("none", 3.0), ("weighted", 1.0), ("logit-adjusted", 1.0)])
def test_frequent_classes_are_favoured_only_if_nothing_is_done_about_it(imbalance: str, odds: float) -> None:
    """Of 3 images of class 0 for each of class 1, cross entropy learns the odds 3; what treats classes equally learns 1."""
    labels = np.array([0, 0, 0, 1] * 60)
    images = np.zeros((240, 1, 8, 8), np.uint8)
    net, part = Constant(), (images[:8], labels[:8])
    config = FitConfig(epochs=25, batch=240, lr=0.05, schedule="cosine", imbalance=imbalance)
    rows: list[float] = []  # the odds after each step

    def look() -> None:
        odds_now = net.logits.detach().diff().neg().exp()
        rows.append(float(odds_now))

    fit(net, (images, labels), part, config, classes=2, prepare=prepare, device=CPU, after_step=look)
    assert rows[-1] == pytest.approx(odds, rel=0.1)


def test_patience_stops_and_keeps_the_best() -> None:
    net = Constant()
    images, labels = np.zeros((64, 1, 8, 8), np.uint8), np.array([0, 1] * 32)
    fitted = fit(net, (images, labels), (images, labels), FitConfig(epochs=9, patience=2), classes=2, prepare=prepare, device=CPU)
    assert (fitted.best_epoch, len(fitted.history)) == (1, 3)  # always one half right: the first epoch is never bettered


def test_what_after_epoch_raises_ends_the_training_with_the_state_saved(tmp_path: Path) -> None:
    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise Stop

    config = FitConfig(epochs=3, batch=32, lr=0.01, ema=0.9)
    one, other = network(), network()
    with pytest.raises(Stop):
        train(one, config, state_file=tmp_path / "state", key="k", after_epoch=stop)
    rows: list[dict[str, float]] = []
    one = network()
    train(one, config, state_file=tmp_path / "state", key="k", after_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [3]
    train(other, config)
    assert same(one, other)


def test_mixed_labels_share_the_loss() -> None:
    """Equal logits cost log 2 for each label, so the shares must add up to one."""
    net = Constant()
    losses: list[float] = []
    images, labels = np.zeros((64, 1, 8, 8), np.uint8), np.array([0, 1] * 32)
    config = FitConfig(epochs=2, batch=64, lr=1e-9, augment=AugmentConfig(mixup=1.0))
    fit(
        net,
        (images, labels),
        (images, labels),
        config,
        classes=2,
        prepare=prepare,
        device=CPU,
        progress=lambda *told: losses.append(told[3]),
    )
    assert losses[-1] == pytest.approx(np.log(2), rel=1e-4)


@pytest.mark.parametrize(
    ("header", "tensors"),
    [
        ({"history": None}, {}),
        ({"history": "[" * 100_000}, {}),
        ({"history": "[]"}, {}),
        ({"history": '[{"epoch": 1}]'}, {}),
        ({"history": "9" * 5000}, {}),
        ({"best_epoch": None}, {}),
        ({"best_epoch": "9" * 5000}, {}),
        ({"best_epoch": "0"}, {}),
        ({"best_epoch": "x"}, {}),
        ({}, {"network.0.weight": torch.zeros(1)}),
        ({}, {"optimiser.0.exp_avg": torch.zeros(1)}),
        ({}, {"optimiser.x.step": torch.zeros(())}),
        ({}, {"nodot": torch.zeros(1)}),
    ],
)
def test_a_state_whose_content_is_another_starts_the_training_anew(
    header: dict[str, str | None], tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    config, state = FitConfig(epochs=1, batch=32, lr=0.01), tmp_path / "state"
    fresh, again = network(), network()
    train(fresh, config, state_file=state, key="k")
    with safe_open(state, framework="pt") as file:
        about, stored = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    kept = {name: value for name, value in (about | header).items() if value is not None}
    save_file({name: value.clone() for name, value in (stored | tensors).items()}, state, metadata=kept)
    fitted = train(again, config, state_file=state, key="k")
    assert same(fresh, again) and len(fitted.history) == 1


@pytest.mark.parametrize(("images", "batch", "steps"), [(1293, 128, 32), (6400, 128, 50), (40, 128, 20), (1, 128, 1)])
def test_an_epoch_has_at_least_32_steps_where_there_are_images_for_them(images: int, batch: int, steps: int) -> None:
    """1,293 images in batches of 40 are 32 steps; 6,400 in batches of 128 are 50; less than two images make no batch."""
    assert steps_in_epoch(FitConfig(batch=batch), images) == steps
