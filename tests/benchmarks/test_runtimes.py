from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.runtimes import Candidate, check_logits, open_model

Make = Callable[..., Path]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)
TRUTH = IMAGES.reshape(5, 16)[:, :3].astype(np.float32)


def test_logits_are_those_of_the_file(pixel_model: Make) -> None:
    predict, providers = open_model(Candidate(name="a", path=pixel_model("a")), (1, 4, 4), 3, 1)
    np.testing.assert_array_equal(predict(IMAGES), TRUTH)
    assert providers == ["CPUExecutionProvider"]


def test_float_input_gets_zero_to_one_and_a_batch_of_one_is_looped_over(pixel_model: Make) -> None:
    predict, _ = open_model(Candidate(name="a", path=pixel_model("a", kind=TensorProto.FLOAT, batch=1)), (1, 4, 4), 3, 1)
    np.testing.assert_allclose(predict(IMAGES), TRUTH / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "classes", "options", "message"),
    [
        (
            (3, 4, 4),
            3,
            {},
            r"input shape \(=\('B', 1, 4, 4\)\) does not fit images of shape \(3, 4, 4\); measure with the data it was made",
        ),
        ((1, 4, 4), 10, {}, r"output shape \(=\(2, 3\)\) must be \(2, 10\): 2 images, 10 classes in the data"),
        ((1, 4, 4), 3, {"batch": 8}, r"input batch \(=8\) must be free or 1"),
        ((1, 4, 4), 3, {"kind": TensorProto.INT32}, r"input type \(=tensor\(int32\)\) must be tensor\(uint8\)"),
        ((1, 4, 4), 3, {"scale": float("inf")}, r"output holds NaN or infinity on the test images"),
    ],
)
def test_file_that_does_not_fit_the_data_is_refused(pixel_model: Make, shape, classes, options, message) -> None:
    with pytest.raises(BenchmarkError, match=message):
        open_model(Candidate(name="a", path=pixel_model("a", **options)), shape, classes, 1)


def test_missing_file_and_unknown_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"path \(=.*none.onnx\) does not exist; export the model first"):
        open_model(Candidate(name="a", path=tmp_path / "none.onnx"), (1, 4, 4), 3, 1)
    with pytest.raises(BenchmarkError, match=r"runtime \(=tflite\) of 'a' is unknown; choose one of onnxruntime, torch"):
        Candidate(name="a", path=tmp_path, runtime="tflite")
    with pytest.raises(BenchmarkError, match=r"device \(=tpu\) of 'a' is unknown; choose one of cpu, cuda"):
        Candidate(name="a", path=tmp_path, device="tpu")
    with pytest.raises(BenchmarkError, match=r"load \(=None\) of 'a' must be a function for torch"):
        Candidate(name="a", path=tmp_path, runtime="torch")


def test_logits_pass_as_they_are() -> None:
    assert check_logits(TRUTH, 5, 3) is TRUTH
