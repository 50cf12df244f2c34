"""Values that are no bytes: the truth is worked by hand, or the rule of 16 bits, value / 257."""

import re

import numpy as np
import pytest

from compress.train.errors import TrainError
from compress.train.levels import SIXTEEN_BITS, Levels, as_pixels


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_ends_of_the_range_are_black_and_white_and_what_lies_beyond_is_counted(kind: type) -> None:
    values = np.array([[-80, 0, -40, -79.9, -100, 1]], kind)
    pixels, clipped = as_pixels(values, (-80.0, 0.0), "a.npz")
    assert pixels.dtype == np.uint8 and pixels.tolist() == [[0, 255, 128, 0, 0, 255]] and clipped == 2
    near = np.array([-80.1, 0.1], kind)  # a step is 0.31: these are nearest to the ends as they are
    assert as_pixels(near, (-80.0, 0.0), "a.npz")[1] == 0


def test_sixteen_bits_are_the_256_values_that_eight_would_have_had() -> None:
    every = np.arange(65536, dtype=np.uint16)
    pixels, clipped = as_pixels(every, SIXTEEN_BITS, "a.npz")
    assert clipped == 0 and pixels[::257].tolist() == list(range(256))
    assert np.array_equal(pixels, (every.astype(int) + 128) // 257)
    assert as_pixels(np.array([0, 2048, 4095, 5000], np.uint16), (0.0, 4095.0), "a.npz") == (pytest.approx([0, 128, 255, 255]), 1)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_is_refused_by_name(odd: float) -> None:
    values = np.array([1.0, odd, odd], np.float32)
    with pytest.raises(TrainError, match=rf"a\.npz holds 2 values that are no finite numbers, such as {odd}; mend them"):
        as_pixels(values, (0.0, 1.0), "a.npz")
    with pytest.raises(TrainError, match=r"a\.npz holds 2 values"):
        Levels().of(values.dtype, "a.npz", lambda: [values])


def test_which_range_is_taken() -> None:
    assert Levels().of(np.dtype(np.uint8), "a", tuple) is None
    assert Levels().of(np.dtype("<u2"), "a", tuple) == Levels().of(np.dtype(">u2"), "a", tuple) == (0, 65535)
    assert Levels((0, 4095)).of(np.dtype(np.uint16), "a", tuple) == (0, 4095)
    assert Levels((-80, 0)).of(np.dtype(np.float32), "a", tuple) == (-80, 0)
    with pytest.raises(TrainError, match=r"a: images are uint8, which are taken as they are; leave range \(=-80,0\) out"):
        Levels((-80, 0)).of(np.dtype(np.uint8), "a", tuple)


@pytest.mark.parametrize(
    ("low", "high"), [(-80.25, 3.25), (0, 1), (0.001, 0.0042), (-1e30, 2e30), (5, 5), (-3, 70000), (0, 4.5e-10), (1000, 1000.5)]
)
@pytest.mark.parametrize("kind", [np.float64, np.int32])
def test_a_range_that_is_not_said_is_suggested_and_holds_all_values(low: float, high: float, kind: type) -> None:
    if kind is np.int32 and abs(high) > 2**31:
        pytest.skip("no whole numbers of 32 bits")
    values = np.array([low, high]).astype(kind)
    with pytest.raises(TrainError) as refused:
        Levels().of(values.dtype, "a.npz", lambda: [values[:1], values[1:]])
    told = re.fullmatch(rf"a\.npz: images are {values.dtype}, of .*; say .*: --range (.*),(.*)", str(refused.value))
    assert told is not None
    suggested = Levels((float(told[1]), float(told[2])))
    assert suggested.range is not None and as_pixels(values, suggested.range, "a.npz")[1] == 0


@pytest.mark.parametrize("span", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_a_range_that_is_none_is_refused(span: tuple[float, float]) -> None:
    with pytest.raises(TrainError, match=r"range \(=.*\) must be LOW,HIGH, two finite numbers of which the first is smaller"):
        Levels(span)


def test_it_is_said_in_words() -> None:
    assert Levels().told(0) == ""
    assert Levels((-80.0, 0.0)).told(0) == ", values of -80 to 0 in 256 steps"
    assert Levels((0.0, 0.5)).told(1234) == ", values of 0 to 0.5 in 256 steps, 1,234 beyond them clipped"
