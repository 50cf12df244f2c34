"""Reconstruct a cut network: each layer, in the order of the forward pass, is solved for the outputs that it gave before the cut.

By hand: B reads channels a and b of A, and b is always 2a. Without b the weight (w_a, w_b) becomes w_a + 2 w_b, and B computes what it
did. Where b is only nearly so, that is the weight with the least squared error on the images.

No labels and no training: ridge regression on unlabelled images, from what a layer reads in the cut network, its earlier layers solved
already, to what the uncut layer gives in the channels that are kept. So gates, concatenation and residual sums in between need no rule.
The ridge pulls towards the weights as they were cut. How hard is chosen for each group of channels of each layer by the error on images
that were not solved on; where nothing is better there, the weights stay. A convolution without bias has one in the mean of the batch norm
that reads it.

What cannot be solved is left as it is and named: fewer places than unknowns, weights that are shared or computed, transposed convolutions,
numbers that are not finite. A layer that computes the same as before, such as the first, comes back bit for bit.

Sources: He et al. 2017, arXiv:1707.06168, section 3.2 (least squares after channel pruning); Frantar and Alistarh 2023, "ZipLM",
arXiv:2302.04089; Li et al. 2020, "EagleEye", arXiv:2007.02491 (batch norm re-estimated on the cut network).
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..pruning.least_squares import Moments, best_ridge, inputs_of, positions_of, some_of, weights_of
from .cut import Keep, at_once, evaluating, is_whole
from .groups import Groups

ROOM = 512e6  # bytes of activations, of one network at a time, that the images of one chunk may take, roughly
LIVE = 8  # largest activations that are alive at once, roughly
PARTS, HELD = 16, 4  # parts of a chunk with places of their own, every fourth of which only judges
PLACES, PER_UNKNOWN, LEAST = 20000, 60, 1.5  # places of a layer, at least; for each unknown; and what is too few for each
ASIDE, FEW = -1, 384  # the pass aside, and its images, for layers that are called several times
MOST, WORK = 2**28, 1e12  # bytes of a layer's square matrix, beyond which it is left; multiplications for it, which limit its places
EXACT = 1e-10  # of the targets' variance: a layer that errs by less computes the same but for rounding
Prepare = Callable[[Tensor], Tensor]
Progress = Callable[[int, int], None]  # layers that are done, and all
Gone = Mapping[tuple[str, int], set[int]]
How = Literal["cut", "batch norm", "least squares", "both"]


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A reconstructed network; the ``layers`` that were solved, each with the share of its outputs' variance that is missed on images it
    was not solved on, before and after; those that were ``left`` as they are, and why."""

    network: nn.Module
    layers: Mapping[str, tuple[float, float]]
    left: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """The best of what can be made of a cut network without training, ``how`` it was made, and the ``losses`` of all that was tried."""

    network: nn.Module
    how: How
    losses: Mapping[str, float]
    left: Mapping[str, str] = field(default_factory=dict)


def repair(
    network: nn.Module,
    pruned: nn.Module,
    groups: Groups,
    keep: Keep,
    images: Tensor,
    score: Callable[[nn.Module], float],
    *,
    prepare: Prepare = lambda images: images,
    fixed: Collection[str] = (),
    progress: Progress = lambda done, of: None,
) -> Repaired:
    """The best by ``score`` of the network as it was cut, with its batch norm re-estimated, reconstructed, and with both.

    Args:
        score: a loss of a network in eval mode, smaller is better, on images that were not solved on; one that is not finite is the worst.

    The rest is as for :func:`reconstruct`. Where nothing was removed, the network comes back as it is, and nothing is scored.
    """
    if is_whole(network, pruned, groups.removed(keep)):
        return Repaired(network=pruned, how="cut", losses={})
    solved = reconstruct(network, pruned, groups, keep, images, prepare=prepare, fixed=fixed, progress=progress)
    made = (pruned, reestimate(pruned, images, prepare=prepare), solved.network, reestimate(solved.network, images, prepare=prepare))
    tried = {how: one for how, one in zip(get_args(How), made, strict=True) if one is not None}
    losses = {how: loss if math.isfinite(loss := score(one)) else math.inf for how, one in tried.items()}
    best = min(losses, key=losses.__getitem__)
    return Repaired(network=tried[best], how=best, losses=losses, left=solved.left)


def reestimate(network: nn.Module, images: Tensor, *, prepare: Prepare = lambda images: images) -> nn.Module | None:
    """A copy whose batch norms have the means and variances of what they read on these images; None where there is no batch norm.

    Args:
        images: (N, ...), whatever ``prepare`` makes the network's input of, N at least 2.
    """
    fresh = copy.deepcopy(network).eval()
    norms = [m for m in fresh.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    size = min(256, at_once(fresh, prepare(images[:2]), ROOM / LIVE))  # in eval mode, so that it leaves no trace
    before = [(norm.momentum, None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in images.chunk(math.ceil(len(images) / max(2, size))):
            if norms and len(batch) > 1:
                fresh(prepare(batch))
    for norm, (momentum, tracked) in zip(norms, before, strict=True):
        norm.momentum, norm.num_batches_tracked = momentum, tracked
    return fresh.eval() if norms else None


def reconstruct(
    network: nn.Module,
    pruned: nn.Module,
    groups: Groups,
    keep: Keep,
    images: Tensor,
    *,
    prepare: Prepare = lambda images: images,
    fixed: Collection[str] = (),
    progress: Progress = lambda done, of: None,
) -> Solved:
    """A copy of the cut network, its layers solved one after the other for the outputs that the uncut ones give.

    The images go through in chunks whose activations take about half a gigabyte; beside them there are square matrices over the inputs of
    one layer, and targets. What fits into one chunk costs one pass of each network, each further chunk a pass for each layer.

    Args:
        network: the one that ``groups`` were found in, or that before modules were bypassed in it; ``pruned``: what
            ``channels.cut.remove_channels`` made of the former with ``keep``, on the same device. Neither is changed.
        images: (N, ...), of any type, on that device. A few hundred to a few thousand, of the kind that the network was trained on.
        prepare: makes the network's input of some of them, float32 (B, C, H, W).
        fixed: weights that must stay, such as those in which zeros were pruned; named as in ``network.named_parameters()``.
        progress: is told after each layer how many are done, and how many there are.
    """
    solved = copy.deepcopy(pruned).eval()
    gone = groups.removed(keep)
    if is_whole(network, pruned, gone):
        return Solved(network=solved, layers={}, left={})
    with evaluating(network):
        run = _Run(network, solved, gone, set(fixed), images, prepare)
        count = len(run.pending)
        run.told = lambda: progress(count - len(run.pending), count)
        while run.pending:
            for number in range(len(run.chunks)):
                if run.pending and run.goes_through(number):
                    run.left |= dict.fromkeys(run.pending, "it is not called in every pass")
                    run.pending.clear()
    return Solved(network=solved, layers=run.errors, left=run.left)


class _Stop(Exception):
    """Nothing further in this pass can be solved yet."""


@dataclass(kw_only=True, eq=False)
class _Layer:
    """One convolution or linear layer of both networks, and what is known of it by now.

    ``kept``: the outputs of the uncut one that the cut one has. ``calls``: how often it is called in one pass. ``norm``: the batch norm of
    the cut network that alone takes its offset. ``moments``: of places that are solved on, and of those that judge.
    """

    name: str
    uncut: nn.Module
    module: Any
    kept: Tensor
    calls: int
    norm: Any
    targets: dict[int, list[list[Tensor]]] = field(default_factory=dict)  # of each chunk that is to come: of each call, and part of it
    moments: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))

    @property
    def square(self) -> int:
        """How many numbers the square matrices over its inputs have."""
        return int(getattr(self.module, "groups", 1) * self.module.weight[0].numel() ** 2)

    def put(self, weights: Tensor) -> None:
        """Make the layer compute by ``weights``, as ``weights_of`` gives them; a batch norm's offset counts from where it is."""
        found, offset = weights.transpose(1, 2).flatten(0, 1).split([weights.shape[1] - 1, 1], 1)
        with torch.no_grad():
            self.module.weight.copy_(found.reshape(self.module.weight.shape))
            if self.module.bias is not None:
                self.module.bias.copy_(offset.flatten())
            elif self.norm is not None:
                self.norm.running_mean.copy_(self.norm.running_mean.double() - offset.flatten())


class _Run:
    """Both networks side by side: notes what the uncut one gives, and solves the cut one's layers as they are reached.

    A layer that is called several times in one pass is solved as soon as it is reached, for all its calls, by a pass of few images aside.
    """

    def __init__(self, network: nn.Module, solved: nn.Module, gone: Gone, fixed: set[str], images: Tensor, prepare: Prepare) -> None:
        self.solved, self.prepare, self.total = solved, prepare, len(images)
        self.told: Callable[[], None] = lambda: None  # called after each layer
        self.errors: dict[str, tuple[float, float]] = {}
        self.left: dict[str, str] = {}
        self.pending = {layer.name: layer for layer in _layers(network, solved, gone, prepare(images[:2]))}
        self._leave(fixed)
        self.chunks = images.split(max(2, at_once(network, prepare(images[:2]), ROOM / LIVE)))
        self.few = self.chunks[0][:FEW]
        self.aside: _Layer | None = None
        for number, chunk in enumerate(self.chunks):
            self._note_targets(network, number, chunk, [layer for layer in self.pending.values() if layer.calls == 1])
        if several := [layer for layer in self.pending.values() if layer.calls > 1]:
            self._note_targets(network, ASIDE, self.few, several)

    def _note_targets(self, network: nn.Module, chunk: int, images: Tensor, layers: list[_Layer]) -> None:
        """Run the uncut network, and keep what these layers give at some places."""

        def note(layer: _Layer, output: Tensor) -> None:
            rows, kept = [], layer.kept.to(output.device)
            for number, part in enumerate(_parts(output)):
                values = positions_of(layer.module, part)
                at = self._places(layer, chunk, number)(values.shape[2]).to(part.device)
                rows.append(values[:, :, at][:, kept].transpose(1, 2).flatten(0, 1))
            layer.targets.setdefault(chunk, []).append(rows)

        with ExitStack() as hooks, torch.no_grad():
            for layer in layers:
                hooks.enter_context(layer.uncut.register_forward_hook(lambda _, __, output, layer=layer: note(layer, output)))
            network(self.prepare(images))

    def goes_through(self, chunk: int) -> bool:
        """Run the cut network as far as its layers can be solved; whether that was to the end."""

        def reached(layer: _Layer, came: Tensor) -> None:
            if self.aside is layer:
                self._look(layer, came, ASIDE)
                if not layer.targets[ASIDE]:
                    raise _Stop
            elif self.aside is None and layer.name in self.pending:
                if layer.calls > 1:
                    self._solve_aside(layer)
                    return
                if layer.targets[chunk]:
                    self._look(layer, came, chunk)
                if any(layer.targets.values()):
                    raise _Stop
                self._solve(layer)

        with ExitStack() as hooks, torch.no_grad():
            for layer in self.pending.values():
                hooks.enter_context(layer.module.register_forward_pre_hook(lambda _, came, layer=layer: reached(layer, came[0])))
            try:
                self.solved(self.prepare(self.chunks[chunk]))
            except _Stop:
                return False
        return True

    def _solve_aside(self, layer: _Layer) -> None:
        self.aside = layer
        with suppress(_Stop):
            self.solved(self.prepare(self.few))
        self.aside = None
        self._solve(layer)

    def _leave(self, fixed: set[str]) -> None:
        """Leave out what cannot be solved, and say why."""
        owners = Counter(id(m.weight) for m in self.solved.modules() if isinstance(getattr(m, "weight", None), nn.Parameter))
        for name, layer in list(self.pending.items()):
            reasons = {
                f"its {layer.module.weight[0].numel():,} inputs are too many": 8 * layer.square > MOST,
                "its zeros must stay": f"{name}.weight" in fixed,
                "its weight is computed": layer.module._parameters.get("weight") is None,
                "it shares its weight": owners[id(layer.module.weight)] > 1,
                "it is a transposed convolution": getattr(layer.module, "transposed", False),
            }
            if why := next((reason for reason, holds in reasons.items() if holds), ""):
                self.left[name] = why
                del self.pending[name]

    def _places(self, layer: _Layer, chunk: int, part: int) -> Callable[[int], Tensor]:
        most = min(max(PLACES, PER_UNKNOWN * layer.module.weight[0].numel()), WORK / layer.square)
        wanted = math.ceil(most / (len(self.few) if chunk == ASIDE else self.total))
        return partial(some_of, wanted=wanted, seed=PARTS * (chunk + 1) + part)

    def _look(self, layer: _Layer, came: Tensor, chunk: int) -> None:
        """Add what comes into the layer and what should come out to its moments."""
        for number, (part, wanted) in enumerate(zip(_parts(came), layer.targets[chunk].pop(0), strict=True)):
            inputs = inputs_of(layer.module, part, self._places(layer, chunk, number))
            rows = wanted.unflatten(1, (getattr(layer.module, "groups", 1), -1)).transpose(0, 1)
            layer.moments[(chunk + number) % HELD == HELD - 1].add(inputs, rows)

    def _solve(self, layer: _Layer) -> None:
        del self.pending[layer.name]
        self.told()
        (fit, judge), before = layer.moments, weights_of(layer.module)
        layer.moments = Moments(), Moments()
        if min(fit.count, (HELD - 1) * judge.count) < LEAST * before.shape[1]:
            self.left[layer.name] = f"{fit.count} places are too few for {before.shape[1]} unknowns; give more images"
            return
        if not (fit.finite and judge.finite and before.isfinite().all()):
            self.left[layer.name] = "what it reads, or gives, is not finite"
            return
        if float(fit.error(before).max()) < EXACT:
            return
        best, errors = best_ridge(fit, judge, before, free=layer.module.bias is not None or layer.norm is not None)
        if torch.equal(best, before):
            self.left[layer.name] = "nothing is better on other images than its weights as they are"
            return
        layer.put(best)
        self.errors[layer.name] = float(judge.error(before).mean()), float(errors.mean())


def _layers(network: nn.Module, solved: nn.Module, gone: Gone, example: Tensor) -> Iterator[_Layer]:
    """The convolutions and linear layers of both, called as often in both, in the order in which they are first called in the cut one."""
    names, calls, last = dict(network.named_modules()), Counter[str](), dict[int, tuple[str, Tensor]]()
    read, called = dict[str, list[str]](), Counter[str]()
    modules = {name: module for name, module in solved.named_modules() if name in names}

    def before(name: str, came: Any) -> None:
        if came and id(came[0]) in last:
            read.setdefault(last[id(came[0])][0], []).append(name)

    def after(name: str, made: Any) -> None:
        calls[name] += 1
        if isinstance(made, Tensor) and isinstance(modules[name], nn.modules.conv._ConvNd | nn.Linear):
            last[id(made)] = name, made

    with ExitStack() as hooks, torch.no_grad():
        for name, module in modules.items():
            hooks.enter_context(names[name].register_forward_hook(lambda *_, name=name: called.update([name])))
            if not [*module.children()] and not isinstance(module, nn.Identity):
                hooks.enter_context(module.register_forward_pre_hook(lambda _, came, name=name: before(name, came)))
                hooks.enter_context(module.register_forward_hook(lambda _, __, made, name=name: after(name, made)))
        network(example)
        solved(example)
    for name, count in calls.items():
        module = modules[name]
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear) and count == called[name]:
            kept = [row for row in range(len(names[name].weight)) if row not in gone.get((f"{name}.weight", 0), ())]
            norm = modules[read[name][0]] if len(read.get(name, ())) == count == 1 else None
            usable = isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None and calls[read[name][0]] == 1
            yield _Layer(name=name, uncut=names[name], module=module, kept=torch.tensor(kept), calls=count, norm=norm if usable else None)


def _parts(values: Tensor) -> tuple[Tensor, ...]:
    return values.split(max(1, math.ceil(len(values) / PARTS)))
