"""What a worker answers, against the brightest of three pixels; and that no answer depends on its neighbours."""

import base64
import dataclasses
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from served import CLASSES, lit, write_model

from compress.errors import CompressError
from compress.litert.convert import convert
from compress.serve.decode import RAW
from compress.serve.frames import Hello, Job
from compress.serve.settings import Source
from compress.serve.worker import Worker, load, measured


def worker(path: Path) -> Worker:
    return Worker(Hello(source=Source(name="model", path=str(path)), max_pixels=1000))


def job(images: np.ndarray, task: str = "predict", seen: bool = False, seconds: float = 60) -> Job:
    return Job(task=task, content_type=RAW, body=images.tobytes(), deadline=time.monotonic() + seconds, seen=seen)


def test_jobs_are_computed_together_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    model = worker(write_model(tmp_path / "model.onnx", scale=1 / 9))
    first, broken, second = model.answers([job(lit(1), seen=True), job(lit(0)[:, :3]), job(np.concatenate([lit(2), lit(0)]))])
    [one] = json.loads(first.content)
    sure = math.e / (math.e + 2)  # logits 0, 1, 0
    assert (one["label"], one["index"]) == ("b", 1) and one["probability"] == pytest.approx(sure, abs=1e-6)
    assert one["probabilities"] == pytest.approx([(1 - sure) / 2, sure, (1 - sure) / 2], abs=1e-6)
    assert base64.b64decode(one["pixels"]) == lit(1).tobytes()
    assert broken.status == 400 and b"no whole number of images" in broken.content
    assert [found["label"] for found in json.loads(second.content)] == ["c", "a"]
    assert (first.images, second.images) == (1, 2) and "pixels" not in json.loads(second.content)[0]


def test_a_shipped_folder_answers_whichever_file_is_in_it(tmp_path: Path) -> None:
    graph = write_model(tmp_path / "net.onnx")
    for kind in ("onnx", "tflite"):
        (board := tmp_path / kind).mkdir()
        content = graph.read_bytes() if kind == "onnx" else convert(graph).content
        (board / f"model.{kind}").write_bytes(content)
        [answer] = worker(board).answers([job(lit(1))])
        assert [one["label"] for one in json.loads(answer.content)] == ["b"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompressError, match=r"source \(=.*empty\) has no model.onnx or model.tflite; name an .onnx file, an artifact, or"):
        load(Source(name="model", path=str(tmp_path / "empty")))


def test_evidence_lies_at_the_pixel_that_is_looked_at(tmp_path: Path) -> None:
    [answer] = worker(write_model(tmp_path / "model.onnx")).answers([job(lit(2), "explain")])
    found = json.loads(answer.content)
    evidence = np.array(found["evidence"])
    assert found["label"] == "c" and evidence.shape == (4, 4)
    # Covering it takes 9 from its logit, and 3 from the mean of the three.
    assert evidence.argmax() == 2 and evidence[0, 2] == pytest.approx(6) and np.count_nonzero(evidence) == 1


def test_a_request_that_nobody_waits_for_is_not_computed(tmp_path: Path) -> None:
    [answer] = worker(write_model(tmp_path / "model.onnx")).answers([job(lit(1), seconds=-1)])
    assert answer.status == 503 and b"longer" in answer.content


def test_what_gives_no_numbers_is_an_error_and_no_answer(tmp_path: Path) -> None:
    model = worker(write_model(tmp_path / "model.onnx"))
    model._model = dataclasses.replace(model._model, sure=lambda images: np.full((len(images), 3), np.nan))
    [answer] = model.answers([job(lit(1))])
    assert answer.status == 500 and b"NaN or infinity" in answer.content


def test_batches_are_taken_where_they_pay_and_change_no_answer() -> None:
    def run(images: np.ndarray, each: float, fixed: float) -> np.ndarray:
        time.sleep(fixed + each * len(images))
        return images.reshape(len(images), -1)[:, :3].astype(np.float32)

    assert measured(lambda images: run(images, 0.0, 0.002), (1, 4, 4))[0] >= 8
    assert measured(lambda images: run(images, 0.002, 0.0), (1, 4, 4))[0] == 1


def test_a_network_that_answers_otherwise_in_a_batch_gets_one_image_at_a_time() -> None:
    """As dynamic int8 does, whose scales are those of the batch; no time is needed to know it."""
    assert measured(lambda images: images.reshape(len(images), -1)[:, :3] / np.float32(images.max()), (1, 4, 4))[0] == 1


def test_a_shipped_folder_names_its_classes(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx", named=False)
    folder = Source(name="model", path=str(tmp_path))
    assert tuple(load(folder).classes) == ("0", "1", "2")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n", encoding="utf-8")
    assert tuple(load(folder).classes) == CLASSES
    (tmp_path / "labels.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(CompressError, match="names 2 classes, the model has 3"):
        load(folder)
