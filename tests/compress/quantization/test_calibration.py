import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import quantization

from compress.errors import CompressError
from compress.quantization import calibration
from compress.quantization.calibration import (
    BINS,
    METHODS,
    Histograms,
    divergence,
    entropy_range,
    mse_range,
    percentile_range,
    rounding_error,
)

node = onnx.helper.make_node
RANDOM = np.random.default_rng(0)


def network(batch: object = "N", size: int = 8, weight: float = 1.0, kind: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """From images ``x`` (batch, 1, size, size) through a convolution ``a`` with 4 channels, Relu ``b`` and Sigmoid ``y``."""
    graph = onnx.helper.make_graph(
        [
            *([] if kind == onnx.TensorProto.FLOAT else [node("Cast", ["image"], ["x"], to=onnx.TensorProto.FLOAT)]),
            node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("Sigmoid", ["b"], ["y"]),
        ],
        "by_hand",
        [onnx.helper.make_tensor_value_info("x" if kind == onnx.TensorProto.FLOAT else "image", kind, [batch, 1, size, size])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 4, size, size])],
        [onnx.numpy_helper.from_array(weight * np.random.default_rng(1).normal(size=(4, 1, 3, 3)).astype(np.float32), "w")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


def images(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, 1, size, size)).astype(np.float32)


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = min(0.0, values.min()), max(0.0, values.max())
    return np.histogram(values[values != 0], np.linspace(low, high, BINS + 1))


def stored(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """What 256 affine levels make of the values: what the quantized graph will compute, written down independently."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    return (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale


class Reader(quantization.CalibrationDataReader):
    def __init__(self, values: np.ndarray) -> None:
        self.batches = iter([{"x": batch} for batch in np.split(values, 8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def test_minmax_equals_the_calibrator_of_onnxruntime(tmp_path: Path) -> None:
    model, values = network(), images(64)
    onnx.save(model, tmp_path / "net.onnx")
    theirs = quantization.calibrate.create_calibrator(
        tmp_path / "net.onnx", ["Conv", "Relu", "Sigmoid"], augmented_model_path=str(tmp_path / "augmented.onnx")
    )
    theirs.collect_data(Reader(values))
    expected = {name: tuple(np.asarray(value).item() for value in entry.range_value) for name, entry in theirs.compute_data().items()}
    found = Histograms(model, ["x", "a", "b", "y"], values).ranges("minmax")
    assert {name: (min(0.0, low), max(0.0, high)) for name, (low, high) in expected.items()} == found


@pytest.mark.parametrize("method", METHODS)
def test_every_range_holds_zero_and_lies_in_what_was_seen(method: str) -> None:
    seen = Histograms(network(), ["x", "a", "b", "y"], images(40))
    for name, (low, high) in seen.ranges(method).items():
        assert seen.limits[name][0] <= low <= 0 <= high <= seen.limits[name][1]
        assert low < high
    assert seen.ranges(method)["y"][0] == 0  # it lies between 0.5 and 1
    assert seen.ranges(method)["b"][0] == 0


def test_a_batch_in_other_steps_gives_the_same_ranges() -> None:
    values = images(50)
    one, other = (Histograms(network(), ["a", "b"], values, batch=batch) for batch in (1, 32))
    for method in METHODS:
        assert one.ranges(method).keys() == other.ranges(method).keys()
        np.testing.assert_allclose([*one.ranges(method).values()], [*other.ranges(method).values()], rtol=1e-5)


def test_a_prescribed_batch_is_kept_to() -> None:
    """The 33rd image fills no batch of two and is left out."""
    values = images(33)
    values[32] *= 100
    assert Histograms(network(2), ["x"], values).limits == Histograms(network(), ["x"], values[:32]).limits


def test_pixels_are_seen_as_the_graph_casts_them() -> None:
    pixels = np.random.default_rng(0).integers(3, 200, (40, 1, 8, 8), dtype=np.uint8)
    assert Histograms(network(kind=onnx.TensorProto.UINT8), ["x"], pixels).limits == {"x": (0.0, pixels.max())}


def test_no_tensors_have_no_limits() -> None:
    assert Histograms(network(), [], images(32)).limits == {}


def test_a_tensor_that_is_always_zero_has_an_empty_range() -> None:
    seen = Histograms(network(weight=0.0), ["a", "b"], images(32))
    assert {method: seen.ranges(method) for method in METHODS} == {key: {"a": (0, 0), "b": (0, 0)} for key in METHODS}


def test_memory_does_not_grow_with_the_images() -> None:
    """microsoft/onnxruntime#10503: percentile and entropy held every activation."""
    peaks = []
    for count in (256, 2048):
        values = images(count, 16)
        tracemalloc.start()
        seen = Histograms(network(size=16), ["a", "b", "y"], values)
        seen.ranges("entropy")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 2048 * 4 * 256 * 4  # one tensor of all images


def test_large_activations_shrink_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One image makes 3 * 4 * 64 * 4 bytes; with room for 10,000 bytes three go at a time."""
    monkeypatch.setattr(calibration, "_STEP_BYTES", 10_000)
    seen = Histograms(network(), ["a", "b", "y"], images(32))
    sizes = [len(values) for name, values in seen._activations(["a", "b", "y"]) if name == "a"]
    assert sizes == [1, *[3] * 10, 1]


def test_values_that_are_not_finite_are_named() -> None:
    values = images(40)
    values[35, 0, 2, 2] = np.nan
    with pytest.raises(CompressError, match=r'calibration: tensor "a" takes values that are not finite'):
        Histograms(network(), ["a"], values)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(CompressError, match=r'method \(="max"\) must be one of minmax, percentile, entropy, mse'):
        Histograms(network(), ["a"], images(32)).ranges("max")


def test_percentile_by_hand() -> None:
    """Ten bins from -5 to 5 with ten values each: 90% inside cuts five values off each end, and so not a whole bin; 80% cuts one."""
    counts, edges = np.full(10, 10), np.linspace(-5, 5, 11)
    assert percentile_range(counts, edges, 0.9) == (-5, 5)
    assert percentile_range(counts, edges, 0.79) == (-4, 4)
    assert percentile_range(np.array([96, 2, 1, 1]), np.linspace(0, 4, 5), 0.97) == (0, 3)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.3), (-0.8, 1.0), (-0.1, 0.4), (-1.0, 0.0), (-1.3, 1.7)])
def test_the_error_of_a_histogram_is_that_of_its_values(low: float, high: float) -> None:
    values = RANDOM.normal(0, 0.35, 400_000)
    counts, edges = histogram(values)
    expected = np.square(stored(values, low, high) - values).sum()
    assert rounding_error(counts, edges, low, high) == pytest.approx(expected, rel=0.01)


def test_a_uniform_tensor_is_not_cut() -> None:
    """To a step of 1/255: cutting 0.4 steps off is better by a hair."""
    for values in (RANDOM.random(200_000), RANDOM.random(200_000) - 0.5):
        for method in (mse_range, entropy_range, percentile_range):
            low, high = method(*histogram(values))
            assert (low, high) == pytest.approx((min(values.min(), 0), values.max()), abs=1.01 / 255)


def test_the_example_of_the_docstring() -> None:
    for count, kept in ((10_000, True), (1_000_000, False)):
        counts, edges = histogram(np.array([*np.linspace(1e-9, 1, count - 1), 2.0]))
        for method in (mse_range, percentile_range):
            assert method(counts, edges)[1] == pytest.approx(2 if kept else 1, abs=0.05)


def tails() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(5)
    relu = np.maximum(draw.standard_t(3, 10_000), 0)
    return {
        "relu": relu,
        "two ends": draw.standard_t(3, 10_000),
        "lopsided": np.concatenate([draw.standard_t(3, 5_000), -0.2 * draw.exponential(1, 1_000)]),
        "negative": -relu,
        "far out": np.concatenate([draw.random(10_000), [40.0, -25.0]]),
    }


@pytest.mark.parametrize("name", list(tails()))
def test_mse_is_as_good_as_trying_every_range(name: str) -> None:
    values = tails()[name]
    counts, edges = histogram(values)
    ends = [[end * factor for factor in np.geomspace(1, 0.02, 50)] if end else [0.0] for end in (edges[0], edges[-1])]
    errors = {(low, high): np.square(stored(values, low, high) - values).sum() for low in ends[0] for high in ends[1]}
    ours = np.square(stored(values, *mse_range(counts, edges)) - values).sum()
    assert ours < 1.02 * min(errors.values())


@pytest.mark.parametrize("method", [mse_range, entropy_range, percentile_range])
def test_heavy_tails_are_cut(method: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> None:
    values = np.random.default_rng(6).standard_t(3, 500_000)
    for tensor in (values, np.maximum(values, 0), np.minimum(values, 0)):
        counts, edges = histogram(tensor)
        low, high = method(counts, edges)
        assert high - low < 0.95 * (edges[-1] - edges[0])
        assert np.mean((tensor >= low) & (tensor <= high)) > 0.99


def test_divergence_by_hand() -> None:
    """Two bins per level, 3 and 1 values in one, else 2 and 2: only that level loses its shape, sum p log(p / q)."""
    counts = np.full(512, 2)
    assert divergence(counts, 0, 512) == 0
    counts[10:12] = 3, 1
    assert divergence(counts, 0, 512) == pytest.approx((3 * np.log(3 / 2) + np.log(1 / 2)) / 1024)
    # As many bins as levels lose nothing but what lies outside: half of the values come on top of the last bin.
    p, q = np.array([2.0, 514]) / 1024, 1 / 256
    assert divergence(np.full(512, 2), 0, 256) == pytest.approx(255 * p[0] * np.log(p[0] / q) + p[1] * np.log(p[1] / q))
    # 512 below on top of the first bin's 3, 512 above on top of the last one's 7; 254 bins keep their 2 of 518, now of 1542.
    counts = np.full(768, 2)
    counts[[256, 511]] = 3, 7
    p, q = np.array([515, 519, 2]) / 1542, np.array([3, 7, 2]) / 518
    assert divergence(counts, 256, 512) == pytest.approx(np.array([1, 1, 254]) @ (p * np.log(p / q)))


def test_zeros_do_not_count_where_rounding_decides() -> None:
    """Nine of ten values cut to zero by Relu change neither range, as every range stores zero without error."""
    draw = np.random.default_rng(7)
    dense = np.abs(draw.standard_t(3, (640, 1, 16, 16))).astype(np.float32)
    sparse = np.concatenate([dense, np.zeros((9 * 640, 1, 16, 16), np.float32)])
    for method in ("mse", "entropy"):
        one, other = (Histograms(network(size=16), ["x"], values).ranges(method)["x"] for values in (dense, sparse))
        assert one == other
        assert one[1] < 0.99 * dense.max()


def test_one_end_is_cut_and_the_other_one_kept() -> None:
    """A million values even between -1 and 1, and one at 4: to ``high``, rounding errs by 10^6 (1 + high)^2 / (12 * 255^2) and cutting by
    (4 - high)^2, least at high = (4 - 1.2816) / 2.2816 = 1.19. The same the other way round."""
    values = np.array([*np.linspace(-1, 1, 1_000_000), 4.0])
    assert mse_range(*histogram(values)) == pytest.approx((-1, 1.19), abs=0.02)
    assert mse_range(*histogram(-values)) == pytest.approx((-1.19, 1), abs=0.02)


def test_levels_are_no_finer_than_bins() -> None:
    """All values in 48 bins around 0: fewer than 256 bins have no shape to lose, so entropy takes at least so many."""
    counts, edges = np.zeros(BINS, int), np.linspace(-1, 1, BINS + 1)
    counts[1000:1048] = 100
    counts[[0, -1]] = 1
    low, high = entropy_range(counts, edges)
    assert high - low >= 255 * 2 / BINS


def test_counts_by_hand() -> None:
    """Limits -1 and 1, bins of 1/1024, and a value in the middle of each but for the ends, and a 0 in place of the sixth."""
    values = ((np.arange(BINS) + 0.5) / 1024 - 1).astype(np.float32)
    values[[0, 5, -1]] = -1, 0, 1
    seen = Histograms(network(), ["x"], values.reshape(32, 1, 8, 8), batch=5)
    expected = np.ones(BINS, np.int64)
    expected[[5, 1024]] = 0, 2
    counts, zeros = seen.count(["x"])["x"]
    assert counts.dtype == np.int64 and counts.tolist() == expected.tolist() and zeros == 1


def test_every_method_decides_by_its_own_measure() -> None:
    values = np.random.default_rng(8).standard_t(3, (4_000, 1, 8, 8)).astype(np.float32)
    values[0, 0, :5] = 0
    seen = Histograms(network(), ["x"], values)
    counts, zeros = seen.count(["x"])["x"]
    edges = np.linspace(*seen.limits["x"], BINS + 1)
    rounded = counts.copy()
    rounded[np.searchsorted(edges, 0.0, side="right") - 1] -= zeros
    expected = [percentile_range(counts, edges), entropy_range(rounded, edges), mse_range(rounded, edges)]
    assert [seen.ranges(method)["x"] for method in ("percentile", "entropy", "mse")] == expected
    assert len({seen.limits["x"], *expected}) == 4


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_one_infinite_end_is_enough_to_refuse(value: float) -> None:
    values = images(32)
    values[3, 0, 1, 1] = value
    with pytest.raises(CompressError, match=r'tensor "x" takes values that are not finite'):
        Histograms(network(), ["x"], values)


def test_a_percentile_that_ends_with_a_bin_cuts_that_bin_off() -> None:
    """A quarter in each of four bins and half of all inside: the outer two go."""
    assert percentile_range(np.ones(4, int), np.arange(-2.0, 3.0), 0.5) == (-1, 1)


def test_a_value_in_a_hundred_thousand_is_cut_and_two_are_kept() -> None:
    """99.999% of a million values inside: five may go at each end."""
    for far, kept in ((4, False), (20, True)):
        counts, edges = np.zeros(BINS, int), np.linspace(0, 2, BINS + 1)
        counts[:1024], counts[-1] = 1_000, far
        assert percentile_range(counts, edges)[1] == pytest.approx(2 if kept else 1, abs=0.01)


def test_an_end_is_drawn_in_by_a_factor_of_forty_where_one_value_lies_there() -> None:
    edges = np.linspace(0, 40, BINS + 1)
    counts = np.where(edges[:-1] < 1, 10**9, 0)
    counts[-1] = 1
    assert mse_range(counts, edges)[1] == pytest.approx(1, abs=0.06)


def test_the_least_error_is_found_to_less_than_a_coarse_step() -> None:
    """The coarse steps lie 14% apart; of ranges 1% apart none has an error that is less by a thousandth."""
    counts, edges = histogram(np.abs(np.random.default_rng(8).standard_t(4, 200_000)))
    ours = rounding_error(counts, edges, *mse_range(counts, edges))
    assert ours < 1.001 * min(rounding_error(counts, edges, 0, edges[-1] * factor) for factor in np.geomspace(1, 1 / 64, 420))


def test_entropy_may_cut_to_as_many_bins_as_there_are_levels() -> None:
    """All values but one lie within 300 of 2048 bins, in every second of them three times as many: wider levels would lose that."""
    counts, edges = np.zeros(BINS, int), np.linspace(0, BINS, BINS + 1)
    counts[:300:2], counts[1:300:2], counts[-1] = 300_000, 100_000, 1
    assert 256 <= entropy_range(counts, edges)[1] < 330


def test_what_lies_outside_costs_much_where_nothing_was_at_the_end() -> None:
    """255 bins hold ten values each and the last none; one value from outside is added to it: p log(p / 1e-9)."""
    counts = np.array([*[10] * 255, 0, 1])
    p = 10 / 2551
    assert divergence(counts, 0, 256) == pytest.approx(255 * p * np.log(p * 255) + np.log(1 / 2551 / 1e-9) / 2551)


def test_only_what_is_asked_for_is_counted_and_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Histograms(network(), ["a", "b", "y"], images(32))
    asked: list[list[str]] = []
    activations = seen._activations

    def noted(tensors: list[str]) -> object:
        asked.append(tensors)
        return activations(tensors)

    monkeypatch.setattr(seen, "_activations", noted)
    assert list(seen.ranges("mse", ["a"])) == ["a"]
    assert list(seen.ranges("entropy", {"y", "a", "none of it"})) == ["a", "y"]
    assert seen.ranges("entropy") == Histograms(network(), ["a", "b", "y"], images(32)).ranges("entropy")
    assert [names for names in asked if names] == [["a"], ["y"], ["b"]]
