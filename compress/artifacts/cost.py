"""What a network costs: parameters and multiply-accumulates, counted; latency, measured on this machine as a fraction of that of the uncut
network, in ONNX Runtime or in another runtime that is handed in.

0.5 is half the time. Fewer MACs need not mean less of it: k49 at 0.41 of its MACs took 0.69 of the time with the widths 16, 32 and 96,
and 1.18 with 10, 38 and 104, as the blocked layout of ONNX Runtime takes only those depthwise convolutions whose channels are a multiple
of four. So a goal in latency, and the multiple to which widths are rounded, are measured: one thread, one image, float32, the graph that
``compress export-onnx`` writes.

Timed in turns, see ``benchmarks.turns``: this only steers. Rounds end where the answer is clear, and at their number where it is not; the
doubt is then part of the answer. Its error: k49 against itself was off by 0.3% at most in 20 calls of one process, by 0.7% in 8 processes
on a busy core; 0.686 came out between 0.667 and 0.690.

Refused: a number of rounds that gives no interval, a network that cannot be exported.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import UNSET
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..benchmarks.place import HERE, Place
from ..benchmarks.statistics import MOST_LAUNCHES, Interval
from ..benchmarks.turns import ONNX_RUNTIME, OPEN_SECONDS, TURN_SECONDS, Runtime, interval_of, random_images, ratios_to_first
from ..errors import CompressError
from ..graphs.as_torch.network import OnnxNetwork
from ..graphs.file import write_onnx
from ..graphs.template import Template
from .artifact import InputSpec
from .load import Prepare
from .parts import Rounded, Rounding

MULTIPLES = (1, 4, 8, 16)  # of channels, to which widths may be rounded
BLOCK = 4  # rounds between two looks at what is known by now
WORTH = 0.05  # latency that a coarser rounding must save, as it leaves less choice of what to remove


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Parameters and nonzeros of the whole network; MACs for one image."""

    params: int
    nonzeros: int
    macs: int


def count_cost(network: nn.Module, example: Tensor) -> Cost:
    """Count on ``example``, float32 (B, C, H, W) in [0, 1]; the network stays as it is.

    A multiply-accumulate (MAC) is one multiplication with its addition in a convolution or a matrix product, whether a module or a function
    makes it; batch norm, activations, pooling and elementwise products are not counted, as in the published figures of MobileNet and its
    successors. A 3x3 convolution from 2 to 4 channels on a 5x5 output: 4 * 2 * 9 * 25 = 1800 MACs. Source: torch.utils.flop_counter, which
    counts two operations for each of them.
    """
    was_training, quick = network.training, torch.backends.mha.get_fastpath_enabled()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:  # the counter asks whatever a module is given for its gradient, and a parameter given has none yet
            parameter.requires_grad_(False)
        # The quick path computes a whole transformer layer in one operation, of which nothing is known.
        torch.backends.mha.set_fastpath_enabled(False)
        mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu}
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            network.eval()(example.clone())
    finally:
        for parameter in trained:
            parameter.requires_grad_()
        network.train(was_training)
        torch.backends.mha.set_fastpath_enabled(quick)
    parameters = list(network.parameters())
    return Cost(
        params=sum(p.numel() for p in parameters),
        nonzeros=sum(int(torch.count_nonzero(p)) for p in parameters),
        macs=counter.get_total_flops() // 2 // example.shape[0],
    )


class Clock:
    """Measures networks against ``baseline``, whose export takes seconds; what was cut from it needs none of its own.

    Args:
        baseline: float32 (B, C, H, W) to logits; the uncut network. It and all others are left as they are.
        spec: the images it takes.
        folder: where the graphs lie; the caller removes it.
        rounds: 2 to 30; one ratio each. seed: of the order and the images. classes: they give logits, see ``export_onnx``.
        runtime: in what they are timed. place: where.

    Raises:
        CompressError: wrong ``rounds``, or ``baseline`` cannot be exported.
    """

    def __init__(
        self,
        baseline: nn.Module,
        spec: InputSpec,
        folder: Path,
        *,
        rounds: int = 12,
        seed: int = 0,
        classes: bool = True,
        runtime: Runtime = ONNX_RUNTIME,
        place: Place = HERE,
    ) -> None:
        if not 2 <= rounds <= MOST_LAUNCHES:
            raise CompressError(f"rounds (={rounds}) must lie in 2 to {MOST_LAUNCHES}; an interval needs two, 12 are the default")
        self.spec, self.rounds, self._folder, self._runtime, self._place = spec, rounds, folder, runtime, place
        self._generator = np.random.default_rng(seed)
        self._images = random_images(spec.shape, bool(spec.pixels), self._generator)
        self._template = Template(Prepare(spec), torch.from_numpy(self._images[0]), classes=classes)
        self._files: dict[Any, Path] = {}
        self._baseline = self.graph(baseline)

    def ratio(self, network: nn.Module, *, goal: float | None = None, rounds: int | None = None) -> Interval:
        """Latency of ``network`` / latency of the baseline, with its 95% interval; see :meth:`latencies`.

        Measured anew with each call. ``goal``: ends as soon as the interval lies on one side of it. ``rounds``: at most, 2 to 30.
        """
        most = self.rounds if rounds is None else rounds
        seconds = self.latencies([network], most if goal is None else min(BLOCK, most))
        while True:
            found = interval_of(seconds[:, 1] / seconds[:, 0])
            if goal is None or len(seconds) >= most or not found.low <= goal < found.high:
                return found
            seconds = np.concatenate([seconds, self.latencies([network], min(BLOCK, most - len(seconds)))])

    def ratios(self, networks: Sequence[nn.Module]) -> list[Interval]:
        """The same for several networks in turns, so that a busy machine is busy for all."""
        return ratios_to_first(self.latencies(networks))

    def latencies(self, networks: Sequence[nn.Module], rounds: int | None = None) -> NDArray[np.float64]:
        """Median seconds per call in each round: float64 (rounds, 1 + networks), the baseline's first.

        Weights do not change the time, so networks of the same modules and shapes are exported once, and timed once.

        Raises:
            CompressError: one of them cannot be exported.
        """
        wanted = [self.graph(network) for network in networks]
        different = list(dict.fromkeys(wanted))
        seconds = self._place.turns([self._baseline, *different], self._images, rounds or self.rounds, self._generator, self._runtime)
        return seconds[:, [0, *(1 + different.index(file) for file in wanted)]]

    def expected(self, networks: int, rounds: int | None = None) -> float:
        """Seconds that it takes to measure so many networks, on an idle machine; networks of more than 6 ms per image take longer."""
        return (rounds or self.rounds) * (networks + 1) * (TURN_SECONDS + OPEN_SECONDS) + networks * self._runtime.seconds

    def graph(self, network: nn.Module) -> Path:
        """The graph of ``network``, exported unless one with its modules and shapes is there."""
        key = str(network), tuple((name, value.shape) for name, value in network.state_dict().items())
        if key not in self._files:
            file = self._folder / f"{len(self._files)}.onnx"
            if isinstance(network, OnnxNetwork):
                write_onnx(network.to_onnx(), file)
            else:
                self._template.write(network, file)
            self._files[key] = file
        return self._files[key]


def fastest_rounding(networks: Mapping[int, nn.Module], clock: Clock, until: float = math.inf) -> Rounding:
    """The multiple to which widths are best rounded here, measured on networks that meet the same goal in MACs, size or sparsity.

    The fastest wins, but a smaller multiple is taken if it is at most 5% slower, round by round against the fastest: what is coarser has
    less choice of what to remove, so it must pay. The middle of the interval counts, not its end: on a busy machine the interval is wide,
    and widths that are slow must not win for that. Every few rounds, what is surely slower drops out, and measuring ends once the answer is
    clear; where the clock's rounds do not make it so, or the time is over, the answer names its doubt. Nothing is said of accuracy. A
    network that was rounded below its goal is faster for that alone; the table has the MACs.

    Args:
        networks: the cut network for each multiple to try, at least one.
        until: the ``time.monotonic()`` at which to answer with what is known.

    Raises:
        CompressError: a network cannot be exported.
    """
    seconds: dict[int, NDArray[np.float64]] = {multiple: np.empty((0, 2)) for multiple in networks}  # of the baseline, and its own
    racing = sorted(networks)
    while True:
        done = len(seconds[racing[0]])
        baseline, *others = clock.latencies([networks[one] for one in racing], min(BLOCK, clock.rounds - done)).T
        for multiple, own in zip(racing, others, strict=True):
            seconds[multiple] = np.concatenate([seconds[multiple], np.stack([baseline, own], axis=1)])
        fastest = min(racing, key=lambda one: float(np.log(seconds[one][:, 1]).mean()))
        slower = {one: interval_of(seconds[one][:, 1] / seconds[fastest][:, 1]) for one in racing}
        best = min(one for one, by in slower.items() if by.value <= 1 + WORTH)
        unclear = [one for one, by in slower.items() if one < best and by.low <= 1 + WORTH]
        unclear += [fastest] if slower[best].high > 1 + WORTH else []
        racing = [one for one, by in slower.items() if by.low <= 1 + WORTH]
        if not unclear or len(seconds[best]) >= clock.rounds or time.monotonic() >= until:
            break
    doubt = f"multiples of {' and '.join(map(str, unclear))} may be the better ones: not clear after {len(seconds[best])} rounds"
    rows = [_row(multiple, network, seconds[multiple], clock.spec) for multiple, network in networks.items()]
    return Rounding(round_to=best, measured=tuple(rows), doubt=doubt if unclear else UNSET)


def _row(multiple: int, network: nn.Module, seconds: NDArray[np.float64], spec: InputSpec) -> Rounded:
    found = interval_of(seconds[:, 1] / seconds[:, 0])
    image = torch.zeros(1, *spec.shape, device=next(network.parameters()).device)
    return Rounded(round_to=multiple, ratio=found.value, low=found.low, high=found.high, macs=count_cost(network, image).macs)


def _attention_on_cpu(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """For the one operation of attention that torch has no formula for."""
    return int(sdpa_flop_count(query, key, value))
