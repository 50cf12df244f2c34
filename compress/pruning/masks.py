"""Weight pruning: which weights of a network are zeroed, and keeping them zero.

A mask is a boolean tensor in the shape of one weight, True where the weight is kept. By hand, a layer with the weights
``[[3, -1], [2, -4]]`` at sparsity 0.5 gets the mask ``[[True, False], [False, True]]``: the two smallest magnitudes go. If the loss has the
gradients ``[[0.1, 4], [1, 1]]`` there, scope "fisher" compares ``[[0.3, 4], [2, 4]]`` and keeps the right column instead: what the loss
does not feel may be large. The masks of a network are a dict by parameter name, each in the shape and on the device of its weight; a
weight that several layers share stands there once.

Only the weights of convolutions and linear layers are pruned; biases and normalisation stay. Zeroed weights make a file neither
smaller nor faster by themselves. Fine-tuning keeps a mask by calling ``apply_masks`` after each optimiser step, because momentum
moves a weight even where its gradient is zero.

Refuses: a sparsity outside [0, 1), weights that are not finite, masks that do not fit, a network with nothing to prune, and layers
whose weight is computed (weight norm, ``torch.nn.utils.prune``), where zeroing would be undone by the next forward pass.

Sources: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"; Zhu & Gupta 2017, arXiv:1710.01878, "To
prune, or not to prune" (the cubic schedule). Both prune by magnitude, the latter within each layer (scope "layer"). Lee et al. 2021,
arXiv:2010.07611 (scope "lamp"). LeCun et al. 1989, "Optimal Brain Damage", and Theis et al. 2018, arXiv:1801.05787, who
take squared gradients for the second derivatives (scope "fisher"). Mishra et al. 2021, arXiv:2104.08378 (the 2:4 pattern).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CompressError

SCOPES = ("global", "layer", "lamp", "fisher")


@dataclass(frozen=True, kw_only=True)
class LayerSparsity:
    """How much of one weight is zero: its parameter name, and counts of all weights and of those that are not zero."""

    name: str
    weights: int
    nonzeros: int

    @property
    def sparsity(self) -> float:
        """The fraction of zeros, 0 to 1."""
        return 1 - self.nonzeros / self.weights


def weight_masks(
    network: nn.Module, sparsity: float, *, scope: str = "global", squares: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Choose the weights to keep: all but those that rank lowest. The network is not changed.

    Every layer keeps at least its largest weight: a global threshold can otherwise silence a whole layer, and with it the network.
    Equals go in the order of the parameters, the earlier first, so the choice is the same on every run.

    Args:
        sparsity: the fraction to zero, in [0, 1); 0 gives masks that keep everything.
        scope: "global" ranks the magnitudes of all layers together and zeroes exactly ``round(sparsity * weights)`` of them;
            "layer" does the same within each layer (where that would be all of a tiny layer, its largest weight stays); "lamp" ranks
            all together as well, but each weight by its share among those of its layer that are no smaller, so that a layer of small
            weights is not emptied because of its scale alone; "fisher" ranks all together by how much the loss would rise, to second order:
            the square of the weight times that of its gradient.
        squares: for "fisher": what :func:`squared_gradients` gives.

    Raises:
        CompressError: for what the module refuses, for a global sparsity that leaves fewer weights than layers, and for "fisher" without
            ``squares``.
    """
    return rank(_prunable(network), sparsity, scope=scope, squares=squares)


def squared_gradients(network: nn.Module, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """The square of the gradient of each weight that pruning looks at, summed over ``losses``: the diagonal of the empirical Fisher matrix.

    In the shape, type and device of the weight, by its name. ``losses``: scalars, each of a few images; a generator computes each when it
    is needed. The gradients of ``network`` are as before afterwards.
    """
    weights = _prunable(network)
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for _ in backward_each(network, losses):
        for name, weight in weights.items():
            if weight.grad is not None:
                squares[name].addcmul_(weight.grad, weight.grad)
    return squares


def backward_each(network: nn.Module, losses: Iterable[Tensor]) -> Iterator[None]:
    """At each yield the parameters of ``network`` hold the gradients of the next of ``losses`` alone; in the end, those they had."""
    before = {parameter: parameter.grad for parameter in network.parameters()}
    try:
        for loss in losses:
            network.zero_grad(set_to_none=True)
            loss.backward()
            yield
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient


def rank(
    weights: Mapping[str, Tensor], sparsity: float, *, scope: str = "global", squares: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """As :func:`weight_masks`, for ``weights`` by parameter name, of any shapes."""
    if not 0 <= sparsity < 1:
        raise CompressError(f"sparsity (={sparsity}) must lie in [0, 1); 0.8 zeroes 80% of the weights")
    if scope not in SCOPES:
        raise CompressError(
            f'scope (="{scope}") must be "global" (one ranking over all layers), "layer" (one in each), "lamp" (one, scaled by layer) or '
            '"fisher" (one, by how much the loss would rise)'
        )
    if scope == "fisher":
        if squares is None:
            raise CompressError('scope (="fisher") needs squares: the squared gradients of the weights, see squared_gradients')
        # Never quite zero, so that weights that are zero go before those that only the loss does not feel.
        weights = {name: weight.detach() * squares[name].sqrt().clamp_min(1e-30) for name, weight in weights.items()}
    magnitudes = {name: _magnitude(name, weight) for name, weight in weights.items()}
    if scope == "layer":
        keep = [_keep(m, min(round(sparsity * m.numel()), m.numel() - 1)) for m in magnitudes.values()]
    else:
        total = sum(m.numel() for m in magnitudes.values())
        zeros = round(sparsity * total)
        if zeros > total - len(magnitudes):
            raise CompressError(
                f"sparsity (={sparsity}) leaves {total - zeros} of {total} weights, but each of the {len(magnitudes)} layers must keep 1; "
                f"choose at most {1 - len(magnitudes) / total:.4g}"
            )
        if scope == "lamp":
            magnitudes = {name: _lamp(magnitude) for name, magnitude in magnitudes.items()}
        for magnitude in magnitudes.values():
            magnitude[magnitude.argmax()] = torch.inf
        keep = list(_keep(torch.cat(list(magnitudes.values())), zeros).split([m.numel() for m in magnitudes.values()]))
    return {name: mask.view_as(weight).to(weight.device) for (name, weight), mask in zip(weights.items(), keep, strict=True)}


def pattern_masks(network: nn.Module, keep: int = 2, of: int = 4) -> dict[str, Tensor]:
    """Choose the ``keep`` largest magnitudes in every run of ``of`` weights along the inputs, as sparse kernels of GPUs and CPUs want it.

    The runs of a convolution lie along its input channels, at each kernel position by itself. Of equal magnitudes the earlier stays. By
    hand, 2:4 of a linear layer with the weights ``[[1, -4, 3, 2]]`` gives the mask ``[[False, True, True, False]]``. Layers that
    ``outside_pattern`` names have no mask: their inputs (of one group, in a grouped convolution) are no multiple of ``of``.

    Raises:
        CompressError: for what the module refuses, and a network in which no layer fits the pattern.
    """
    masks = {}
    for name, weight in _prunable(network).items():
        dim, inputs = _inputs(network, name)
        if inputs % of == 0:
            runs = _magnitude(name, weight).view(weight.shape).movedim(dim, -1)
            order = runs.reshape(-1, of).argsort(dim=1, descending=True, stable=True)
            mask = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order[:, :keep], True)
            masks[name] = mask.view(runs.shape).movedim(-1, dim).contiguous().to(weight.device)
    if not masks:
        raise CompressError(f'pattern (="{keep}:{of}") fits no layer: none has a multiple of {of} inputs; choose a sparsity instead')
    return masks


def outside_pattern(network: nn.Module, of: int = 4) -> tuple[str, ...]:
    """The weights that a pattern leaves whole because their inputs are no multiple of ``of``, a first or depthwise convolution's, say."""
    return tuple(name for name in _prunable(network) if _inputs(network, name)[1] % of)


def nonzero_masks(network: nn.Module) -> dict[str, Tensor]:
    """The masks that keep what is not zero, so that a network that was pruned before keeps its zeros through further fine-tuning."""
    return {name: weight.detach() != 0 for name, weight in _prunable(network).items()}


def apply_masks(network: nn.Module, masks: dict[str, Tensor]) -> None:
    """Zero the masked weights in place, cheap enough for every optimiser step; layers without a mask are left alone.

    Raises:
        CompressError: a mask names no parameter, or is of another shape or dtype; nothing has been zeroed then.
    """
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise CompressError(f'masks: "{name}" is no parameter of this network; make the masks from the same network')
        if mask.shape != parameters[name].shape or mask.dtype != torch.bool:
            raise CompressError(
                f'masks: "{name}" is {mask.dtype} {tuple(mask.shape)}, but must be torch.bool {tuple(parameters[name].shape)}; '
                "make the masks from the same network"
            )
    with torch.no_grad():
        for name, mask in masks.items():
            weight = parameters[name]
            weight.masked_fill_(~mask.to(weight.device), 0)


def sparsity_by_layer(network: nn.Module) -> tuple[LayerSparsity, ...]:
    """Count the zeros in each weight that pruning looks at, in the order of the network."""
    return tuple(
        LayerSparsity(name=name, weights=weight.numel(), nonzeros=int(torch.count_nonzero(weight)))
        for name, weight in _prunable(network).items()
    )


def _prunable(network: nn.Module) -> dict[str, nn.Parameter]:
    names: dict[nn.Parameter, str] = {}  # parameters hash by identity, so a shared one keeps its first name
    for prefix, module in network.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            name = f"{prefix}.weight" if prefix else "weight"
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is None:
                raise CompressError(
                    f'"{name}" is computed from other tensors; make it a plain parameter first (remove_parametrizations, prune.remove)'
                )
            if isinstance(weight, nn.parameter.UninitializedParameter) or weight.numel() == 0:
                raise CompressError(f'"{name}" is empty; run one batch through the network first if the layer is a lazy one')
            names.setdefault(weight, name)
    if not names:
        raise CompressError("network has no convolution or linear layer; there is nothing to prune")
    return {name: weight for weight, name in names.items()}


def _inputs(network: nn.Module, name: str) -> tuple[int, int]:
    """The dimension of a weight along which its inputs lie, and how many inputs each output has."""
    layer = network.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return 0, layer.in_channels // layer.groups
    return 1, network.get_parameter(name).shape[1]


def _magnitude(name: str, weight: Tensor) -> Tensor:
    magnitude = weight.detach().abs().flatten().to("cpu", torch.float64)
    if not magnitude.isfinite().all():
        raise CompressError(f'"{name}" holds values that are not finite (NaN or infinity); train the network again before pruning it')
    return magnitude


def _lamp(magnitude: Tensor) -> Tensor:
    """Each squared weight as a fraction of the squares that are no smaller: 3, 1, 2 gives 9/9, 1/14, 4/13."""
    order = magnitude.argsort(stable=True)
    squares = magnitude[order].square()
    no_smaller = squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(magnitude).scatter_(0, order, squares / no_smaller.clamp_min(torch.finfo(torch.float64).tiny))


def _keep(magnitude: Tensor, zeros: int) -> Tensor:
    """All but the ``zeros`` smallest, of equal ones the earlier: what a stable sort leaves, in a fraction of its time.

    By hand: of ``[2, 1, 2, 2]`` two go. The second smallest is 2, and one value lies below it, so one 2 goes too, the first.
    """
    if zeros == 0:
        return torch.ones(magnitude.numel(), dtype=torch.bool)
    last = magnitude.kthvalue(zeros).values
    keep = magnitude >= last
    keep[(magnitude == last).nonzero()[: zeros - int((~keep).sum())]] = False
    return keep
