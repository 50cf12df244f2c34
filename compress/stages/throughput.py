"""``compress throughput``: how many images a second training takes in on this machine, step by step from the plain loop to the one used.

::

    plain loop          DataLoader, torchvision's transforms image by image, eager: what most training scripts do
    ... 2 workers       the same, the transforms in other processes
    in memory           all images in one tensor, the same distortions for a whole batch at once (train/augment.py)
    channels last       the layout that convolutions on CPUs and tensor cores prefer
    memory kept         freed memory stays in the process (train/allocator.py)
    compress train      all of that in the real loop, with the fused optimiser
    ... bf16            the same under autocast
    torch.compile       the loop before, compiled; the minutes of compiling are not counted

Each variant is a process of its own, and they take turns, so that a busy machine is busy for all. A ratio is that of two variants in one
round; shown are the median of the rounds and its 95% interval by Student's t on logarithms.
"""

import dataclasses
import functools
import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ..artifacts.artifact import InputSpec
from ..artifacts.load import Prepare, build_network
from ..artifacts.model_reference import ModelReference
from ..artifacts.project import Project
from ..benchmarks.statistics import Interval, over_launches
from ..errors import CompressError, first_line
from ..train.allocator import keep_freed_memory
from ..train.augment import distort, draw_grid, draw_seeds, transform_of, vary
from ..train.data_set import Part
from ..train.fit import choose_device, fit
from ..train.settings import AugmentConfig, FitConfig, heads

PLAIN = "plain loop"
Block = Callable[[], object]  # trains on as many images; over when the device is done


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a variant trains: ``part`` is as many images as one block takes in."""

    model: ModelReference
    spec: InputSpec
    classes: int
    part: Part
    config: FitConfig
    device: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """``images_per_second``: one per round. ``ratio``: to the plain loop of the same round; None for that loop itself."""

    variant: str
    images_per_second: tuple[float, ...]
    ratio: Interval | None


def measure_throughput(project: Project, config: FitConfig, *, rounds: int = 5, variants: Sequence[str] = ()) -> list[Throughput]:
    """Images per second of ``variants`` (all but torch.compile by default), the plain loop first.

    Each variant trains 32 batches per round, after one uncounted round.
    """
    if not 2 <= rounds <= 30:
        raise CompressError(f"rounds (={rounds}) must lie in 2 to 30; an interval needs two, 5 are the default")
    chosen = list(dict.fromkeys((PLAIN, *(variants or [name for name in VARIANTS if name != "torch.compile"]))))
    if unknown := [name for name in chosen if name not in VARIANTS]:
        raise CompressError(f"variant (={unknown[0]}) must be one of {', '.join(VARIANTS)}")
    assert project.model is not None, "the command line gives one"
    data = project.data.train
    # Small data is gone through several times.
    picked = np.random.default_rng(config.seed).permutation(32 * config.batch) % len(data.labels)
    job = Job(
        model=project.model,
        spec=project.spec,
        classes=project.classes,
        part=data.take(picked).read(),
        config=dataclasses.replace(config, epochs=1),
        device=project.device,
        threads=torch.get_num_threads(),
    )
    order = np.random.default_rng(config.seed)
    speeds: dict[str, list[float]] = {name: [] for name in chosen}
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        process = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn, initializer=_get_ready, initargs=(job, name)))
            for name in chosen
        }
        for turn in range(-1, rounds):
            for index in order.permutation(len(chosen)):
                name = chosen[index]
                project.console.progress(name, (turn + 1) * len(chosen), (rounds + 1) * len(chosen))
                try:
                    speed = process[name].submit(_speed).result()
                except RuntimeError as error:  # its own, or that the process is gone
                    raise CompressError(f"variant (={name}) ended early: {first_line(error)}; leave it out with --variant") from error
                if turn >= 0:
                    speeds[name].append(speed)
        project.console.progress("done", 1, 1)
    ratios = {name: over_launches(np.divide(values, speeds[PLAIN]).tolist()) for name, values in speeds.items() if name != PLAIN}
    return [Throughput(variant=name, images_per_second=tuple(values), ratio=ratios.get(name)) for name, values in speeds.items()]


_ready: tuple[Job, Block]  # what the process of a variant trains


def _get_ready(job: Job, name: str) -> None:
    global _ready
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then ends this process
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.config.seed)
    _ready = job, VARIANTS[name](job)


def _speed() -> float:
    """Images per second over one block."""
    job, block = _ready
    started = time.perf_counter()
    block()
    return (len(job.part.labels) // job.config.batch * job.config.batch) / (time.perf_counter() - started)


class _Pictures(Dataset[tuple[Tensor, int]]):
    """Images one at a time, as torchvision's transforms take them."""

    def __init__(self, part: Part, spec: InputSpec, config: AugmentConfig) -> None:
        from torchvision import transforms

        height, width = part.images.shape[2:]
        steps: list[object] = []
        if config.rotate or config.shear or config.scale or config.shift:
            shift, scale = (config.shift / width, config.shift / height), (1 - config.scale, 1 + config.scale)
            steps.append(transforms.RandomAffine(config.rotate, shift, scale, config.shear, transforms.InterpolationMode.BILINEAR))
        if config.elastic:
            sigma = height / (config.grid - 1) / 2
            # Uniform noise blurred by sigma has a standard deviation of 1 / (sqrt(3) 2 sqrt(pi) sigma); alpha counts in half images.
            alpha = 4 * config.elastic * math.sqrt(3 * math.pi) * sigma
            steps.append(transforms.ElasticTransform(alpha, sigma))
        self.transform = transforms.Compose([*steps, transforms.Normalize(spec.mean, spec.std)])
        self.part, self.vary = part, transform_of(config, height, width) if config.varies else None

    def __len__(self) -> int:
        return len(self.part.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.part.images[index])
        return self.transform((self.vary(image) if self.vary else image).float() / 255), int(self.part.labels[index])


def _plain(job: Job, workers: int = 0) -> Block:
    pictures = _Pictures(job.part, job.spec, job.config.augment)
    loader = DataLoader(pictures, job.config.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)
    return _loop(job, lambda: iter(loader))


def _in_memory(job: Job, channels_last: bool = False, keep: bool = False, compiled: bool = False) -> Block:
    if keep:
        keep_freed_memory()
    device, size, config = choose_device(job.device), job.config.batch, job.config.augment
    images, labels = torch.from_numpy(job.part.images).to(device), torch.from_numpy(job.part.labels).to(device)
    prepare = Prepare(job.spec).to(device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(labels)).to(device)
        for i in range(0, len(labels) - size + 1, size):
            x = images[order[i : i + size]]
            if (seeds := draw_seeds(config, size)) is not None:
                x = vary(x, seeds, config)
            if config.distorts:
                x = distort(x.float(), draw_grid(config, size, x.shape[2], x.shape[3], device))
            x = prepare(x)
            yield x.contiguous(memory_format=torch.channels_last) if channels_last else x, labels[order[i : i + size]]

    return _loop(job, batches, channels_last, compiled)


def _loop(job: Job, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]], channels_last: bool = False, compiled: bool = False) -> Block:
    """The usual training step over one pass of ``batches``."""
    device = choose_device(job.device)
    network = build_network(job.model, job.classes, job.spec).to(device).train()
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    step: Callable[[Tensor], Tensor] = torch.compile(network) if compiled else network
    optimiser = torch.optim.AdamW(network.parameters(), lr=job.config.lr)

    def block() -> float:
        total = torch.zeros((), device=device)
        for x, y in batches():
            y, smoothing = y.to(device), job.config.label_smoothing
            parts = (weight * functional.cross_entropy(head, y, label_smoothing=smoothing) for weight, head in heads(step(x.to(device))))
            loss = sum(parts, start=torch.zeros((), device=device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
        return float(total)  # waits for a GPU

    return block


def _real(job: Job, precision: Literal["auto", "bf16"] = "auto") -> Block:
    network = build_network(job.model, job.classes, job.spec)
    config = dataclasses.replace(job.config, precision=precision)
    device = choose_device(job.device)

    part, few = ((one.images, one.labels) for one in (job.part, job.part.take(np.arange(2))))
    return lambda: fit(network, part, few, config, classes=job.classes, prepare=Prepare(job.spec).to(device), device=device)


VARIANTS: Mapping[str, Callable[[Job], Block]] = {
    PLAIN: _plain,
    f"{PLAIN}, 2 workers": functools.partial(_plain, workers=2),
    "in memory": _in_memory,
    "channels last": functools.partial(_in_memory, channels_last=True),
    "memory kept": functools.partial(_in_memory, channels_last=True, keep=True),
    "torch.compile": functools.partial(_in_memory, channels_last=True, keep=True, compiled=True),
    "compress train": _real,
    "compress train, bf16": functools.partial(_real, precision="bf16"),
}
