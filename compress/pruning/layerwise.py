"""Solve a changed network layer by layer, in the order of the forward pass, for the outputs that its layers gave before the change.

By hand: B reads a and b, and b is always 2a. Where b is removed, or its weight zeroed, w_a becomes w_a + 2 w_b, and B computes what it
did. Where b is only nearly so, that is the weight with the least squared error on the images.

No labels and no training: ridge regression on unlabelled images, from what a layer reads in the changed network, its earlier layers solved
already, to what the layer gives in the other. So gates, concatenation and residual sums in between need no rule. The ridge pulls towards
the weights as they are. How hard is chosen for each group of channels of each layer by the error on images that were not solved on;
where nothing is better there, the weights stay. A convolution without bias has one in the mean of the batch norm that reads it.

What cannot be solved is left as it is and named: fewer places than unknowns, weights that are shared or computed, transposed convolutions,
numbers that are not finite. A layer that computes the same as before comes back bit for bit.

Sources: He et al. 2017, arXiv:1707.06168, section 3.2 (least squares after channel pruning); Frantar and Alistarh 2022, arXiv:2208.11580
(the update of the weights that stay), and 2023, "ZipLM", arXiv:2302.04089; Li et al. 2020, "EagleEye", arXiv:2007.02491 (batch norm
re-estimated on the cut network).
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor, nn

from .layers import Gone, Layer, layers_of_both
from .least_squares import Moments, best_ridge, inputs_of, positions_of, some_of, weights_of
from .passes import at_once, evaluating, held_at_layers
from .surgery import affordable, staying
from .turns import Turns

ROOM = 512e6  # bytes of activations, of one network at a time, that the images of one chunk may take, roughly
AHEAD = ROOM / 4  # bytes of targets that are held at a time, roughly; for those of later layers the uncut network runs again
LIVE = 8  # largest activations that are alive at once, roughly
PARTS, HELD = 16, 4  # parts of a chunk with places of their own, every fourth of which only judges
UNCUT = 4  # parts of a chunk that go through the uncut network at once
PLACES, PER_UNKNOWN, LEAST = 20000, 60, 1.5  # places of a layer, at least; for each unknown; and what is too few for each
PER_UNKNOWN_OF_A_GROUP = 200  # enough where each group has few unknowns of its own, as many groups take as much time as many unknowns
ASIDE, FEW = -1, 384  # the pass aside, and its images, for layers that are called several times
MOST, WORK = 2**28, 1e12  # bytes of a layer's square matrix, beyond which it is left; multiplications for it, which limit its places
EXACT = 1e-10  # of the targets' variance: a layer that errs by less computes the same but for rounding
Prepare = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # layers that are done, and all
Zeros = Literal["", "stay", "move"]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A reconstructed network; the ``layers`` that were solved, each with the share of its outputs' variance that is missed on images it
    was not solved on, before and after; those that were ``left`` as they are, and why."""

    network: nn.Module
    layers: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]


def solve(
    network: nn.Module,
    changed: nn.Module,
    images: Tensor,
    *,
    gone: Gone | None = None,
    zeros: Zeros = "",
    prepare: Prepare = lambda images: images,
    fixed: Collection[str] = (),
    progress: Progress = lambda done, of: None,
) -> Solved:
    """A copy of the changed network, its layers solved one after the other for the outputs that those of the other give.

    The images go through in chunks, side by side: each waits before a layer until that is solved on all of them. So there is one pass of
    the cut network, and in memory are what all of them hold there (see :func:`most_images`), square matrices over the inputs of one layer,
    and the targets of some layers, each time from a pass of the uncut network as far as these.

    Args:
        network: the one before the change; ``changed``: what was made of it, on the same device. Neither is changed.
        images: (N, ...), of any type, on that device. A few hundred to a few thousand, of the kind that the network was trained on.
        gone: which rows of which of its parameters, as (name, 0), the changed network has no more.
        zeros: "stay" where weights that are zero are to stay so; "move" where it is enough that each layer has as many, and those of
            ``network`` among them: see :mod:`compress.pruning.surgery`. Otherwise zeros are weights like others.
        prepare: makes the network's input of some of them, float32 (B, C, H, W).
        fixed: weights that must stay; named as in ``network.named_parameters()``.
        progress: is told after each layer how many are done, and how many there are.
    """
    solved = copy.deepcopy(changed).eval()
    with evaluating(network):
        run = _Run(network, solved, gone or {}, zeros, set(fixed), images, prepare)
        count = len(run.pending)
        run.told = lambda: progress(count - len(run.pending), count)
        run.go_through()
    return Solved(network=solved, layers=run.errors, left=run.left)


def chunk_size(network: nn.Module, example: Tensor) -> int:
    """How many images go through the network at once, which is in eval mode; at least two."""
    return max(2, at_once(network, example, ROOM / LIVE))


def most_images(network: nn.Module, example: Tensor, chunks: int) -> int:
    """How many images may be solved on, in so many chunks: what they hold while they wait takes no more than :data:`ROOM`."""
    size = chunk_size(network, example)
    return min(chunks * size, max(size, int(ROOM * len(example) / held_at_layers(network, example))))


class _Stop(Exception):
    """The pass aside need not go on."""


class _Run:
    """Both networks side by side: notes what the uncut one gives, and solves the cut one's layers as they are reached.

    A layer that is called several times in one pass is solved as soon as it is reached, for all its calls, by a pass of few images aside.
    """

    def __init__(
        self, network: nn.Module, solved: nn.Module, gone: Gone, zeros: Zeros, fixed: set[str], images: Tensor, prepare: Prepare
    ) -> None:
        self.zeros, self.solved, self.prepare, self.total = zeros, solved, prepare, len(images)
        self.told: Callable[[], None] = lambda: None  # called after each layer
        self.errors: dict[str, tuple[float, float]] = {}
        self.left: dict[str, str] = {}
        self.pending = {layer.name: layer for layer in layers_of_both(network, solved, gone, prepare(images[:2]))}
        self._leave(fixed)
        self.network, self.chunks = network, images.split(chunk_size(network, prepare(images[:2])))
        self.looks = 0  # how often something was added to the moments of a layer
        self.few = self.chunks[0][:FEW]
        self.aside: Layer | None = None
        self.ahead = self._parts_to_note([layer for layer in self.pending.values() if layer.calls == 1])
        if several := [layer for layer in self.pending.values() if layer.calls > 1]:
            self._note_targets(ASIDE, self.few, several)

    def _parts_to_note(self, layers: list[Layer]) -> list[list[Layer]]:
        """These layers in parts of about as many bytes of targets, about as many as there is room for."""
        sizes = [4 * self.total * len(layer.kept) * min(layer.positions, self._wanted(layer, self.total)) for layer in layers]
        share = sum(sizes) / max(1, math.ceil(sum(sizes) / AHEAD))
        parts, held = list[list[Layer]](), math.inf
        for layer, size in zip(layers, sizes, strict=True):
            if held >= share:
                parts.append([])
                held = 0
            parts[-1].append(layer)
            held += size
        return parts

    def _note_targets(self, chunk: int, images: Tensor, layers: list[Layer]) -> None:
        """Run the uncut network as far as it is needed, and keep what these layers give at some places.

        A few parts of a chunk at a time, as the cut network holds what it made of all chunks meanwhile.
        """
        aside, size, first = chunk == ASIDE, _part_size(images), 0
        missing, at_once = set[str](), len(images) if aside else UNCUT * size

        def note(layer: Layer, output: Tensor) -> None:
            rows, kept = [], layer.kept.to(output.device)
            for number, part in enumerate(output.split(size), first // size):
                values = positions_of(layer.module, part)
                at = self._places(layer, chunk, number)(values.shape[2]).to(part.device)
                rows.append(values[:, :, at][:, kept].transpose(1, 2).flatten(0, 1))
            if aside or first == 0:
                layer.targets.setdefault(chunk, []).append(rows)
            else:
                layer.targets[chunk][0] += rows
            missing.discard(layer.name)
            if not missing and not aside:
                raise _Stop

        with ExitStack() as hooks, torch.no_grad():
            for layer in layers:
                hooks.enter_context(layer.uncut.register_forward_hook(lambda _, __, output, layer=layer: note(layer, output)))
            for first in range(0, len(images), at_once):
                missing.update(layer.name for layer in layers)
                with suppress(_Stop):
                    self.network(self.prepare(images[first : first + at_once]))

    def _note_more(self, layer: Layer) -> None:
        """Note the targets of a layer, and of those that are noted with it, if they are not yet."""
        for part in [part for part in self.ahead if layer in part]:
            self.ahead.remove(part)
            for number, chunk in enumerate(self.chunks):
                self._note_targets(number, chunk, [one for one in part if one.name in self.pending])

    def go_through(self) -> None:
        """Run the cut network, all chunks side by side, each layer being solved when the last of them comes to it."""

        def run(chunk: Tensor) -> None:
            with torch.no_grad():  # which counts for one thread
                self.solved(self.prepare(chunk))

        turns = Turns([partial(run, chunk) for chunk in self.chunks])

        def reached(layer: Layer, came: tuple[Tensor, ...]) -> None:
            if self.aside is layer:
                self._look(layer, came, ASIDE)
                if not layer.targets.get(ASIDE):
                    raise _Stop
            elif self.aside is None and layer.name in self.pending:
                if layer.calls > 1:
                    self._solve_aside(layer)
                    return
                self._note_more(layer)
                self._look(layer, came, turns.current)
                while layer.name in self.pending and any(layer.targets.values()):
                    turns.wait()
                self._solve(layer)

        with ExitStack() as hooks:
            for layer in self.pending.values():
                hooks.enter_context(layer.module.register_forward_pre_hook(lambda _, came, layer=layer: reached(layer, came)))
            with turns:
                seen = -1
                while turns.round() and self.pending and self.looks > seen:  # what is looked at by none is not reached
                    seen = self.looks
        self.left |= dict.fromkeys(self.pending, "it is not called in every pass")

    def _solve_aside(self, layer: Layer) -> None:
        self.aside = layer
        with suppress(_Stop):
            self.solved(self.prepare(self.few))
        self.aside = None
        self._solve(layer)

    def _leave_out(self, layer: Layer, why: str) -> None:
        self.left[layer.name] = why
        del self.pending[layer.name]

    def _leave(self, fixed: set[str]) -> None:
        """Leave out what cannot be solved, and say why."""
        owners = Counter(id(m.weight) for m in self.solved.modules() if isinstance(getattr(m, "weight", None), nn.Parameter))
        for name, layer in [*self.pending.items()]:
            reasons = {
                f"its {layer.module.weight[0].numel():,} inputs are too many": 8 * layer.square > MOST,
                "it is to stay as it is": f"{name}.weight" in fixed,
                "its weight is computed": layer.module._parameters.get("weight") is None,
                "it shares its weight": owners[id(layer.module.weight)] > 1,
                "it is a transposed convolution": getattr(layer.module, "transposed", False),
            }
            if why := next((reason for reason, holds in reasons.items() if holds), ""):
                self._leave_out(layer, why)

    def _places(self, layer: Layer, chunk: int, part: int) -> Callable[[int], Tensor]:
        wanted = self._wanted(layer, len(self.few) if chunk == ASIDE else self.total)
        return partial(some_of, wanted=wanted, seed=PARTS * (chunk + 1) + part)

    def _wanted(self, layer: Layer, images: int) -> int:
        """How many places of each of so many images are looked at, if it has them."""
        unknowns = layer.module.weight[0].numel()
        enough = PLACES if getattr(layer.module, "groups", 1) == 1 else min(PLACES, PER_UNKNOWN_OF_A_GROUP * unknowns)
        return math.ceil(min(max(enough, PER_UNKNOWN * unknowns), WORK / layer.square) / images)

    def _look(self, layer: Layer, came: tuple[Tensor, ...], chunk: int) -> None:
        """Add what comes into the layer and what should come out to its moments."""
        if not layer.targets.get(chunk) or layer.name not in self.pending:
            return
        self.looks, targets = self.looks + 1, layer.targets[chunk].pop(0)
        parts = _parts(came[0]) if came else ()
        for number, (part, wanted) in enumerate(zip_longest(parts, targets)):
            inputs = None if part is None else inputs_of(layer.module, part, self._places(layer, chunk, number))
            if inputs is None or wanted is None or inputs.shape[1] != len(wanted):
                self._leave_out(layer, "what it reads is given by name, or at other places than before")
                return
            rows = wanted.unflatten(1, (getattr(layer.module, "groups", 1), -1)).transpose(0, 1)
            layer.moments[(chunk + number) % HELD == HELD - 1].add(inputs, rows)

    def _solve(self, layer: Layer) -> None:
        if self.pending.pop(layer.name, None) is None:
            return
        self.told()
        (fit, judge), before, free = layer.moments, weights_of(layer.module), layer.module.bias is not None or layer.norm is not None
        layer.moments = Moments(), Moments()
        stay = before[:, :-1] != 0 if self.zeros else None
        unknowns = before.shape[1] if stay is None else math.ceil(float(stay.sum(1).double().mean())) + 1
        if min(fit.count, (HELD - 1) * judge.count) < LEAST * unknowns:
            self.left[layer.name] = f"{fit.count} places are too few for {unknowns} unknowns; give more images"
            return
        if not (fit.finite and judge.finite and before.isfinite().all()):
            self.left[layer.name] = "what it reads, or gives, is not finite"
            return
        if float(fit.error(before).max()) < EXACT:
            return
        start = before
        if self.zeros == "move" and stay is not None and not stay.all() and affordable(stay):
            whole = weights_of(layer.uncut)
            may = whole[:, :-1] != 0
            stay = staying(fit + judge, whole, may, int((may & ~stay).sum()), free=free)
            start = torch.cat([whole[:, :-1] * stay, before[:, -1:]], 1)
        best, errors = best_ridge(fit, judge, start, free=free, stay=stay)
        was, now = float(judge.error(before).mean()), float(errors.mean())
        if torch.equal(best, before) or now > was:
            self.left[layer.name] = "nothing is better on other images than its weights as they are"
            return
        layer.put(best)
        self.errors[layer.name] = was, now


def _part_size(values: Tensor) -> int:
    return max(1, math.ceil(len(values) / PARTS))


def _parts(values: Tensor) -> tuple[Tensor, ...]:
    return values.split(_part_size(values))
