import sys
from pathlib import Path

import numpy as np
import pytest

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.litertnets import _numbers, _rounding
from compress.benchmarks.runtimes import Candidate, about_file, open_model

PIXELS = np.array([0, 1, 128, 255], np.float32) / 255


def port(scales: list[float], zero: int, dtype: type) -> dict[str, object]:
    """As LiteRT describes a tensor."""
    quantization = (scales[0] if len(scales) == 1 else 0.0, zero)
    return {"name": "image", "dtype": dtype, "quantization": quantization, "quantization_parameters": {"scales": np.array(scales)}}


def test_integers_stand_for_numbers_by_scale_and_zero_point() -> None:
    image = port([1 / 255], -128, np.int8)
    assert _rounding(image)(PIXELS).tolist() == [-128, -127, 0, 127]
    np.testing.assert_allclose(_numbers(np.array([-128, -127, 0, 127], np.int8), image), PIXELS, rtol=1e-6)
    assert _rounding(port([1 / 255], -128, np.int8))(np.array([-1.0, 2.0], np.float32)).tolist() == [-128, 127]  # clipped, not wrapped


def test_plain_numbers_stay_as_they_are() -> None:
    assert _rounding(port([], 0, np.float32))(PIXELS) is PIXELS
    assert _numbers(PIXELS, port([], 0, np.float32)) is PIXELS


def test_integers_with_a_scale_per_channel_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="image has 2 scales, images and answers need one"):
        _rounding(port([0.1, 0.2], 0, np.int8))


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "net.tflite").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(BenchmarkError, match=r"^ai-edge-litert is not installed; `pip install 'compress-edge\[litert\]'`$"):
        open_model(Candidate(name="net", path=file, runtime="litert"), (1, 4, 4), 3, 1)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
    (file := tmp_path / "net.tflite").write_bytes(b"no model at all")
    with pytest.raises(BenchmarkError, match=r"no whole \.tflite file that LiteRT can load"):
        about_file(file)
