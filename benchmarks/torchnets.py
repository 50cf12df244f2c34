"""Runs a torch network the ways that `runtimes` names: eager, compiled, in half precision, as a CUDA graph.

Refused: CUDA where there is no device, torch.compile for the CPU where there is no C++ compiler. Float32 means float32: the shorter TF32 of
tensor cores is turned off.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import BenchmarkError

if TYPE_CHECKING:
    from torch import Tensor

    from .runtimes import Candidate, OnDevice, Predict

    Forward = Callable[[Tensor], Tensor]

COMPILERS = ("g++", "clang++", "c++")
AWAKE_SECONDS = 0.3
SLEPT = 10_000_000  # cycles, to find out how long one takes
QUEUED = 8  # calls; a device holds about a thousand kernels back, and a network has some hundred


def open_network(candidate: Candidate, threads: int) -> tuple[Predict, OnDevice | None]:
    """Load a network as its runtime wants it; the second value is None where there is no device to time by itself."""
    import torch

    load, runtime, device = candidate.load, candidate.runtime, candidate.device
    assert load is not None, "torch has one"
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("no CUDA device")
    if (runtime, device) == ("torch.compile", "cpu") and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise BenchmarkError(f"torch.compile needs a C++ compiler ({', '.join(COMPILERS)}); there is none")
    torch.set_num_threads(threads)
    prepare, network = load(candidate.path)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True  # the fastest kernels for each shape, as whoever deploys on a GPU has it
        prepare, network = prepare.to(device), network.to(device)
    if runtime == "torch.fp16":
        network = network.half()

    def forward(images: Tensor) -> Tensor:
        pixels = prepare(images)
        return network(pixels.half() if runtime == "torch.fp16" else pixels)

    run = torch.compile(forward) if runtime == "torch.compile" else _recorded(forward) if runtime == "torch.cudagraph" else forward

    def predict(images: np.ndarray) -> Any:
        with torch.inference_mode():
            made = run(torch.from_numpy(images).to(device))
        found = tuple(one.float().cpu().numpy() for one in _tensors(made))
        return found if candidate.whole else found[0]

    return predict, _on_device(run) if device == "cuda" else None


def _tensors(made: Any) -> list[Tensor]:
    """What a network gives, in its order, whether it is one tensor, or a tuple or dict of them."""
    if isinstance(made, dict | list | tuple):
        return [one for part in (made.values() if isinstance(made, dict) else made) for one in _tensors(part)]
    return [made]


def _recorded(forward: Forward) -> Forward:
    """`forward`, recorded as a CUDA graph for each shape of input and replayed, which saves the launch of every kernel from Python."""
    import torch

    graphs: dict[Any, tuple[Any, Tensor, Tensor]] = {}

    def record(images: Tensor) -> tuple[Any, Tensor, Tensor]:
        held = images.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose and allocate on the first calls, which must not be recorded
            for _ in range(3):
                forward(held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = forward(held)
        return graph, held, logits

    def replay(images: Tensor) -> Tensor:
        if images.shape not in graphs:
            graphs[images.shape] = record(images)
        graph, held, logits = graphs[images.shape]
        held.copy_(images)
        graph.replay()
        return logits

    return replay


def _on_device(run: Forward) -> OnDevice:
    """Times calls by CUDA events, on images that are on the device already and logits that stay there.

    A pair of events around one call would time how fast Python launches its kernels. So several calls are queued behind a kernel that
    does nothing for as long as queueing them takes; the device then runs them one after the other, and each is a share of the whole.
    """
    import torch

    def time_calls(images: np.ndarray, calls: int) -> np.ndarray:
        with torch.inference_mode():
            held = torch.from_numpy(images).to("cuda")
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

            def milliseconds(work: Callable[[], object]) -> float:
                begin.record()
                work()
                end.record()
                end.synchronize()
                return begin.elapsed_time(end)

            def several() -> None:
                for _ in range(QUEUED):
                    run(held)

            until_awake(lambda: milliseconds(several))
            per_cycle = milliseconds(lambda: torch.cuda._sleep(SLEPT)) / SLEPT
            cycles = int(2 * milliseconds(several) / per_cycle)

            def queued() -> float:
                torch.cuda._sleep(cycles)
                return milliseconds(several) / QUEUED

            return np.array([round(queued() * 1e6) for _ in range(-(-calls // QUEUED))], np.int64)

    return time_calls


def until_awake(call: Callable[[], object]) -> None:
    """Call again and again for AWAKE_SECONDS: the clocks of a GPU fall while other candidates have their turn."""
    until = time.monotonic() + AWAKE_SECONDS
    while time.monotonic() < until:
        call()
