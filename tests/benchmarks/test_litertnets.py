"""Files in LiteRT: what integers stand for, whose pixels go in, and what is refused. The files are made here, by hand."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.inputs import Taken
from compress.benchmarks.litertnets import Integers, entry_of, holds_int8, reader_of
from compress.benchmarks.runtimes import Candidate, about_file, open_model
from compress.litert.convert import convert
from compress.litert.file import File, Quantization

RAMP = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4) * 17


def port(scales: list[float], zero: int, dtype: type) -> dict[str, Any]:
    """As LiteRT describes a tensor."""
    quantization = (scales[0] if len(scales) == 1 else 0.0, zero)
    return {"name": "image", "dtype": dtype, "quantization": quantization, "quantization_parameters": {"scales": np.array(scales)}}


def entry(scale: float, zero: int, **how: Any) -> Taken:
    taken = Taken(name="image", batch=1, shape=(1, 4, 4), dtype=np.float32, last=True, **how)
    return entry_of(port([scale], zero, np.int8), taken)


@pytest.mark.parametrize(
    ("scale", "how", "wanted"),
    [
        (1 / 255, {}, RAMP - 128.0),
        (1.0, {}, RAMP - 128.0),  # numbers far beyond 1: the pixels themselves
        (1.0, {"std": (1 / 255,)}, RAMP - 128.0),
        (0.02, {"mean": (0.5,), "std": (0.25,)}, np.clip(np.rint((RAMP / 255 - 0.5) / 0.25 / 0.02) - 128, -128, 127)),
    ],
)
def test_pixels_become_integers_by_scale_and_zero_point(scale: float, how: dict[str, Any], wanted: np.ndarray) -> None:
    found = entry(scale, -128, **how).fed(RAMP)
    assert found.dtype == np.int8 and found.shape == (1, 4, 4, 1)
    assert found.transpose(0, 3, 1, 2).tolist() == wanted.tolist()


@pytest.mark.parametrize(("mean", "alike"), [((0.5,), True), ((0.5, 0.4, 0.3), False)])
def test_channels_go_last_wherever_the_pixels_lie(mean: tuple[float, ...], alike: bool) -> None:
    entry = Integers(name="image", batch=1, shape=(3, 4, 5), dtype=np.int8, last=True, scale=1 / 64, zero=3, mean=mean, std=(0.25,))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
    values = (images / 255 - np.array(mean).reshape(1, -1, 1, 1)) / 0.25
    wanted = np.clip(np.rint(values.astype(np.float32) * 64) + 3, -128, 127).transpose(0, 2, 3, 1)
    assert entry.alike is alike
    for laid in (images, np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)):
        found = entry.fed(laid)
        assert found.flags.c_contiguous and found.dtype == np.int8
        assert np.abs(found - wanted).max() <= 1 and (found == wanted).mean() > 0.99


def test_floats_are_rounded_and_clipped_not_wrapped() -> None:
    image = np.array([-3, 0.25, 0.5, 3], np.float32).reshape(1, 1, 2, 2)
    assert entry(1 / 64, 0).fed(image).ravel().tolist() == [-128, 16, 32, 127]


def test_answers_in_integers_are_what_they_stand_for() -> None:
    np.testing.assert_allclose(reader_of(port([1 / 256], -128, np.int8))(np.array([[-128, 127]], np.int8)), [[0, 255 / 256]])
    np.testing.assert_array_equal(reader_of(port([0.5], 3, np.uint8))(np.array([0, 3, 255], np.uint8)), np.float32([-1.5, 0, 126]))
    np.testing.assert_array_equal(reader_of(port([0.5], 3, np.int16))(np.array([-32768, 4], np.int16)), np.float32([-16385.5, 0.5]))
    floats = np.array([1.5], np.float32)
    assert reader_of(port([], 0, np.float32))(floats) is floats


def test_integers_with_a_scale_per_channel_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="image has 2 scales, images and answers need one"):
        reader_of(port([0.1, 0.2], 0, np.int8))


def test_uint8_takes_the_pixels_whatever_they_stand_for() -> None:
    taken = Taken(name="image", batch=1, shape=(1, 4, 4), dtype=np.uint8, last=True)
    assert not isinstance(entry_of(port([0.5], 3, np.uint8), taken), Integers)


def identity(folder: Path, scale: float) -> Path:
    """A file that takes int8 (1, 4, 4, 1) and gives what they stand for."""
    file = File()
    entry = file.tensor("image", (1, 4, 4, 1), np.int8, quantization=Quantization(scale, -128))
    numbers, flat = file.tensor("numbers", (1, 4, 4, 1)), file.tensor("logits", (1, 16))
    file.add("DEQUANTIZE", [entry], [numbers], "DequantizeOptions")
    file.add(
        "RESHAPE", [numbers, file.constant("shape", np.array([1, 16], np.int32))], [flat], "ReshapeOptions", newShape=np.array([1, 16])
    )
    (path := folder / "net.tflite").write_bytes(file.write([entry], [flat], {}))
    return path


def test_a_file_in_int8_gives_what_its_pixels_stand_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = identity(tmp_path, 1 / 255)
    opened = open_model(Candidate(name="net", path=path, runtime="litert"), (1, 4, 4), 16, 1)
    np.testing.assert_allclose(
        opened.predict(np.concatenate([RAMP, RAMP[:, :, ::-1]])), [RAMP.ravel() / 255, RAMP[:, :, ::-1].ravel() / 255], atol=1e-6
    )
    assert opened.providers == ("LiteRT CPU",) and holds_int8(path)
    assert about_file(path)[0].shape == (1, 4, 4)
    assert capfd.readouterr().err == "", "LiteRT's library says something each time"


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="does not fit images of shape"):
        open_model(Candidate(name="net", path=identity(tmp_path, 1.0), runtime="litert"), (1, 5, 5), 16, 1)


def test_probabilities_and_all_outputs(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (uint8[1, 1, 4, 4] image) => (float[1, 16] logits, float[1, 16] probabilities) {
        f = Cast <to = 1> (image) logits = Flatten (f) probabilities = Softmax (logits) }"""
    (path := tmp_path / "net.tflite").write_bytes(convert(parser.parse_model(text)).content)
    opened = open_model(Candidate(name="net", path=path, runtime="litert"), (1, 4, 4), 16, 1)
    assert opened.probabilities is not None and not holds_int8(path)
    np.testing.assert_allclose(opened.sure(RAMP)[0].argmax(), 15)
    whole = open_model(Candidate(name="net", path=path, runtime="litert", whole=True), (1, 4, 4), None, 1)
    logits, probabilities = whole.predict(RAMP)
    np.testing.assert_allclose(logits[0], RAMP.ravel())
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-5)


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file := tmp_path / "net.tflite").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(BenchmarkError, match=r"^ai-edge-litert is not installed; `pip install 'compress-edge\[litert\]'`$"):
        open_model(Candidate(name="net", path=file, runtime="litert"), (1, 4, 4), 3, 1)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "net.tflite").write_bytes(b"no model at all")
    with pytest.raises(BenchmarkError, match=r"no whole \.tflite file that LiteRT can load"):
        about_file(file)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = identity(tmp_path, 1.0)
    path.write_bytes(path.read_bytes().replace(b"image", b"im\x8age"))
    with pytest.raises(BenchmarkError, match="an input or output has a name that is no UTF-8"):
        about_file(path)
