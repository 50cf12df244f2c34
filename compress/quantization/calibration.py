"""What the activations of a graph were seen to be on calibration images, and the ranges that quantization takes from it.

The images stream through the graph in small batches: once for the least and greatest value of each tensor, and, for every method but
minmax, once more for a histogram of 2048 bins between them. What is kept does not grow with the images (microsoft/onnxruntime#10503).

By hand: a tensor whose values lie evenly between 0 and 1, but for one in a million, which is 2. With a range to 2, a step is 2 / 255, and
the mean square error of rounding step^2 / 12 = 5.1e-6. With a range to 1 it is 1.3e-6, and the values cut off add 1^2 / 1,000,000 = 1e-6:
"mse" cuts them off, as "percentile" does. Were it one in 10,000, cutting would add 1e-4, and both keep it.

Every range contains 0: a padded pixel and what ReLU cuts off are stored without error. For the same reason values that are exactly 0, which
may be most of a tensor, do not count where the error of rounding decides (entropy, mse).

Refuses: activations that are not finite, an unknown method.

Source: Krishnamoorthi 2018, arXiv:1806.08342 (minmax); Wu et al. 2020, arXiv:2004.09602 (percentile, entropy); Migacz 2017, "8-bit
inference with TensorRT" (entropy); Banner et al. 2019, arXiv:1810.05723 (mse).
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import onnx

from ..errors import CompressError
from ..graphs.probe import run_in_batches, with_outputs
from .records import METHODS

BINS = 2048
INSIDE = 0.99999  # of the values, for "percentile"; what is cut off is shared by both ends
_LEVELS = 256
_STEP_BYTES = 64 * 2**20  # of activations per batch: more is not faster, and large images would not fit otherwise


class Histograms:
    """What named tensors are while images run through a graph, and the ranges to represent that follow from it.

    ``limits``: least and greatest value by tensor, or 0 where that lies beyond. The histograms are counted when a method first needs them,
    and of the tensors that it needs, so that minmax costs one pass, not two.

    Args:
        model: a float32 graph with one input of images.
        tensors: names of float32 tensors in it.
        images: uint8 (N, C, H, W), or of the input's type. Those that do not fill the batch that a graph may prescribe are left out.
        batch: images per step at most; fewer where their activations would take more than 64 MiB.

    Raises:
        CompressError: the graph does not load, or a tensor takes values that are not finite.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Collection[str], images: np.ndarray, *, batch: int = 32) -> None:
        self._tensors = sorted(tensors)
        self._model, self._images, self._batch = model, images, batch
        self._ranges: dict[tuple[str, str], tuple[float, float]] = {}  # by method and tensor
        self._counts: dict[str, tuple[np.ndarray, int]] = {}
        self.limits = self._seen()

    def ranges(self, method: str, tensors: Collection[str] | None = None) -> dict[str, tuple[float, float]]:
        """Lowest and highest value to represent, by tensor; low <= 0 <= high.

        Args:
            method: minmax: all that was seen. percentile: 99.999% of the values. entropy: where 256 levels lose least information
                (Kullback-Leibler divergence). mse: where rounding and cutting off together have the least mean square.
            tensors: those that are asked for, all by default; what else is in the list is left out.

        Raises:
            CompressError: another method.
        """
        if method not in METHODS:
            raise CompressError(f'method (="{method}") must be one of {", ".join(METHODS)}; minmax is the plain one')
        wanted = [name for name in self._tensors if tensors is None or name in tensors]
        if method == "minmax":
            return {name: self.limits[name] for name in wanted}
        self.count(wanted)
        for name in wanted:
            if (method, name) not in self._ranges:
                self._ranges[method, name] = self._range(name, method)
        return {name: self._ranges[method, name] for name in wanted}

    def _range(self, name: str, method: str) -> tuple[float, float]:
        low, high = self.limits[name]
        if low == high:
            return low, high
        counts, zeros = self._counts[name]
        edges = np.linspace(low, high, BINS + 1)
        if method == "percentile":
            return percentile_range(counts, edges)
        rounded = counts.copy()
        rounded[_bins(np.zeros(1, np.float32), low, high)] -= zeros
        return entropy_range(rounded, edges) if method == "entropy" else mse_range(rounded, edges)

    def count(self, tensors: Collection[str]) -> dict[str, tuple[np.ndarray, int]]:
        """By tensor, values per bin (int64, 2048 bins between its limits) and how many of all are exactly 0."""
        new = [name for name in tensors if name not in self._counts]
        counts = {name: np.zeros(BINS, np.int64) for name in new}
        zeros: dict[str, int] = dict.fromkeys(new, 0)
        for name, values in self._activations(new):
            low, high = self.limits[name]
            if low < high:
                counts[name] += np.bincount(_bins(values, low, high), minlength=BINS)
                zeros[name] += values.size - int(np.count_nonzero(values))
        self._counts |= {name: (counts[name], zeros[name]) for name in new}
        return {name: self._counts[name] for name in tensors}

    def _seen(self) -> dict[str, tuple[float, float]]:
        limits = dict.fromkeys(self._tensors, (0.0, 0.0))
        for name, values in self._activations(self._tensors):
            low, high = float(values.min()), float(values.max())  # both are NaN where one value is
            if not np.isfinite(low) or not np.isfinite(high):
                raise CompressError(f'calibration: tensor "{name}" takes values that are not finite; train the network again')
            limits[name] = min(limits[name][0], low), max(limits[name][1], high)
        return limits

    def _activations(self, tensors: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Name and values of one tensor for one batch at a time."""
        if not tensors:  # ONNX Runtime does not run a graph for nothing
            return
        for _, found in run_in_batches(with_outputs(self._model, tensors), self._images, self._batch, most_bytes=_STEP_BYTES):
            yield from zip(tensors, found, strict=True)


def _bins(values: np.ndarray, low: float, high: float) -> np.ndarray:
    bins = ((values.ravel() - np.float32(low)) * np.float32(BINS / (high - low))).astype(np.intp)
    return np.clip(bins, 0, BINS - 1, out=bins)


def percentile_range(counts: np.ndarray, edges: np.ndarray, inside: float = INSIDE) -> tuple[float, float]:
    """The range with the share ``inside`` (0 to 1) of the values in it, as many cut off at either end, to the width of a bin.

    Of a histogram, here and below: ``counts``, values per bin, (bins,), in which the two below do not count those that are exactly 0;
    ``edges`` of the bins, (bins + 1,), ascending, equally wide; 0 lies within them.
    """
    seen = np.cumsum(counts) / counts.sum()
    outside = (1 - inside) / 2
    low = edges[np.searchsorted(seen, outside, side="right")]
    high = edges[np.searchsorted(seen, 1 - outside) + 1]
    return min(0.0, float(low)), max(0.0, float(high))


def mse_range(counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The range in which 256 levels have the least mean square error, rounding and cutting off together; within a bin values lie evenly."""
    return _search(lambda low, high: rounding_error(counts, edges, low, high), float(edges[0]), float(edges[-1]))


def rounding_error(counts: np.ndarray, edges: np.ndarray, low: float, high: float) -> float:
    """Sum of the squared errors of all values when the range is stored in 256 affine levels.

    With y = x / scale + zero point and n the nearest level, the error is (y - n) * scale, and the integral of its square over x is
    scale^3 * (n / 12 + (y - n)^3 / 3): it grows by scale^3 / 12 per level, and with the third power beyond the last. So the error of a
    bin is exact, whether a step is wider than it or narrower.
    """
    scale = (high - low) / (_LEVELS - 1)
    y = edges / scale + np.clip(np.rint(-low / scale), 0, _LEVELS - 1)
    level = np.clip(np.rint(y), 0, _LEVELS - 1)
    integral = scale**3 * (level / 12 + (y - level) ** 3 / 3)
    return float(np.diff(integral) @ counts / (edges[1] - edges[0]))


def entropy_range(counts: np.ndarray, edges: np.ndarray) -> tuple[float, float]:
    """The range in which 256 levels lose least information: as ``mse_range``, with ``divergence`` in place of the error."""

    def loss(low: float, high: float) -> float:
        first, last = (round((value - edges[0]) / (edges[1] - edges[0])) for value in (low, high))
        return divergence(counts, first, last) if last - first >= _LEVELS else np.inf

    return _search(loss, float(edges[0]), float(edges[-1]))


def divergence(counts: np.ndarray, first: int, last: int) -> float:
    """Kullback-Leibler divergence of what 256 levels over the bins [first, last) hold from what there was.

    What lies outside is added to the outermost bins. What falls into one level is spread evenly over those of its bins that held any.
    ``first`` and ``last`` are at least 256 bins apart.
    """
    window = counts[first:last].astype(np.float64)
    seen = window.copy()
    seen[0] += counts[:first].sum()
    seen[-1] += counts[last:].sum()
    if not window.any():
        return np.inf
    starts = np.arange(_LEVELS) * len(window) // _LEVELS
    held = window > 0
    per_bin = np.add.reduceat(window, starts) / np.maximum(np.add.reduceat(held.astype(np.int64), starts), 1)
    stored = np.repeat(per_bin, np.diff([*starts, len(window)])) * held
    some = seen > 0
    p, q = seen[some] / seen.sum(), np.maximum(stored[some] / stored.sum(), 1e-9)  # a bin that only what lies outside fills costs much
    return float(p @ np.log(p / q))


def _search(loss: Callable[[float, float], float], low: float, high: float) -> tuple[float, float]:
    """Where the loss is least: both ends drawn in together first, then each for itself; the full range wins a tie."""
    ends = [1.0, 1.0]
    for which in ((0, 1), (1,), (0,)) if low < 0 < high else ((1,),) if high > 0 else ((0,),):

        def at(factor: float, which: tuple[int, ...] = which) -> float:
            tried = [factor if end in which else ends[end] for end in (0, 1)]
            return loss(low * tried[0], high * tried[1])

        best = min([ends[which[0]], *np.geomspace(1, 1 / 64, 32)], key=at)
        best = min([best, *np.minimum(best * np.geomspace(1.15, 1 / 1.15, 13), 1)], key=at)
        for end in which:
            ends[end] = float(best)
    return low * ends[0], high * ends[1]
