"""Every reader, fed with valid files in which something was changed.

::

    make fuzz INPUTS=20000             so many for each reader, never the same
    pytest tests/fuzz                  150 for each reader, the same each time; this is what CI runs

Whatever is in a file, its reader gives something or raises one of this project's errors, whose message is one line. Nothing else: no other
exception, no wait, no gigabyte, no file beside it. What comes of a value of the right type but another meaning, ``test_hostile`` tries,
place by place; here it is bytes and text. An input that failed is kept by hypothesis, and stands as an ``example`` once it is mended.
"""

import io
import itertools
import json
import os
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import onnx
import optuna
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from compress.artifacts.artifact import PAYLOAD, read_artifact
from compress.artifacts.load import load_weights
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.parts import Plan
from compress.artifacts.payloads import read_results
from compress.artifacts.recipe import load_recipe
from compress.artifacts.records import read_kept, write_kept
from compress.artifacts.vectors import read_vectors, write_vectors
from compress.cli.main import USER_ERRORS
from compress.graphs.adopt import adopt
from compress.graphs.file import read_onnx
from compress.stages.tune import Tuning, read_space
from compress.train.formats import read_array, read_class_map, read_image
from compress.train.state import State, read_snapshot, save_snapshot, take_snapshot
from compress.train.storage import opened

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))  # inputs per reader
LONGEST = 20.0  # seconds for one of them
IMAGES = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
SHAPE = (1, 4, 4)
NETWORK = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
# What breaks readers: ends of ranges, signs, text where numbers are due, and the marks of the formats themselves.
ODD = (
    b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\x80\x00\x00\x00", b"\x00" * 8, b"\xff" * 8, struct.pack("<Q", 2**40),
    b"-1", b"9" * 40, b"1e999", b"NaN", b"null", b'"', b"{", b"}", b"[", b"]" * 3, b"[" * 500, b"\n", b"\r\n", b"\\ud800", b"\xed\xa0\x80",
    b"../../x", b"=", b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY", b"IEND", b"\x1f\x8b", b"(1000000000000, 28, 28)", b"|O", b"<f8",
)  # fmt: skip


@st.composite
def changed(draw: Callable[..., Any], valid: bytes) -> bytes:
    """``valid`` with one to four changes: bits flipped, bytes put over others, between them, taken out, doubled; or cut short."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at, odd = draw(st.integers(0, max(0, len(data) - 1))), draw(st.sampled_from(ODD))
        how = draw(st.sampled_from(("flip", "flip", "over", "over", "between", "out", "double", "end")))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "over":
            data[at : at + len(odd)] = odd
        elif how == "between":
            data[at:at] = odd
        elif how == "out":
            del data[at : at + draw(st.integers(1, 64))]
        elif how == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 256))]
        else:
            del data[at:]
    return bytes(data)


def npz(folder: Path) -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, IMAGES)
    return made.getvalue()


def idx(folder: Path) -> bytes:
    return bytes([0, 0, 8, 3]) + struct.pack(">3I", *IMAGES.shape) + IMAGES.tobytes()


def picture(form: str) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        made = io.BytesIO()
        Image.fromarray(IMAGES[0]).save(made, form)
        return made.getvalue()

    return make


def torch_file(folder: Path) -> bytes:
    made = io.BytesIO()
    torch.save({"state_dict": NETWORK.state_dict(), "epoch": 3}, made)
    return made.getvalue()


def graph(folder: Path) -> bytes:
    weights = {"w": np.ones((16, 3), np.float32), "b": np.zeros(3, np.float32)}
    image = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 1, 4, 4])
    model = by_hand.graph(
        by_hand.node("Flatten", ["x"], ["f"]),
        by_hand.node("Gemm", ["f", "w", "b"], ["g"]),
        by_hand.node("Softmax", ["g"], ["y"]),
        **weights,
    )
    model.graph.input[0].CopyFrom(image)
    model.metadata_props.add(key="compress.classes", value='["a", "b", "c"]')
    return model.SerializeToString()


def vectors(folder: Path) -> bytes:
    (folder / PAYLOAD["graph"]).write_bytes(graph(folder))
    write_vectors(folder, lambda images: np.float32([[1, 2, 3]] * len(images)), IMAGES[:, None], 1e-4)
    return (folder / "vectors.npz").read_bytes()


def state(folder: Path) -> bytes:
    network = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    row = dict.fromkeys(("train_loss", "validation_loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_precision"), 0.5)
    history = [{"epoch": 1, "images_per_second": 9.0, **row}]
    save_snapshot(take_snapshot(State(network, optimiser, {}, network.state_dict(), history, 1)), folder / "state", "key")
    return (folder / "state").read_bytes()


def plan(folder: Path) -> bytes:
    write_kept(folder / "plan", Plan(keep={"conv": (0, 2)}, rounding=None))
    return (folder / "plan").read_bytes()


def read_plan(path: Path) -> None:
    said: list[str] = []
    read_kept(path, Plan, said.append)
    assert all("\n" not in told for told in said)


def journal(folder: Path) -> bytes:
    with opened(str(folder / "made.journal")) as storage:
        study = optuna.create_study(storage=storage, study_name="s")
        study.add_trial(optuna.trial.create_trial(value=0.5))
    return (folder / "made.journal").read_bytes()


def read_journal(path: Path) -> None:
    with opened(str(path)) as storage:
        storage.get_all_studies()


def shipped(name: str) -> Callable[[Path], bytes]:
    """A file of this repository."""
    return lambda folder: (Path(__file__).parents[2] / name).read_bytes()


def space(path: Path) -> None:
    read_space(ModelReference(reference="emnist"), load_recipe(None, model="emnist"), Tuning(space=path))


READERS: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], Any]]] = {
    "npz": ("images.npz", npz, read_array),
    "IDX": ("images-idx3-ubyte", idx, read_array),
    "PNG": ("a.png", picture("PNG"), lambda path: read_image(path, SHAPE)),
    "JPEG": ("a.jpg", picture("JPEG"), lambda path: read_image(path, SHAPE)),
    "GIF": ("a.gif", picture("GIF"), lambda path: read_image(path, SHAPE)),
    "BMP": ("a.bmp", picture("BMP"), lambda path: read_image(path, SHAPE)),
    "TIFF": ("a.tif", picture("TIFF"), lambda path: read_image(path, SHAPE)),
    "WebP": ("a.webp", picture("WEBP"), lambda path: read_image(path, SHAPE)),
    "class map": ("a_classmap.csv", lambda folder: b"index,char\n0,a\n1,b\n", lambda path: read_class_map(path, 2)),
    "safetensors": ("a.safetensors", lambda folder: save(NETWORK.state_dict()), lambda path: load_weights(NETWORK, path)),
    "pt": ("a.pt", torch_file, lambda path: load_weights(NETWORK, path)),
    "ONNX": ("a.onnx", graph, read_onnx),
    "foreign ONNX": ("a.onnx", graph, lambda path: adopt(path, SHAPE, (0.0,), (1.0,), {})),
    "vectors": ("vectors.npz", vectors, read_vectors),
    "state": ("state", state, lambda path: read_snapshot(path, "key")),
    "plan": ("plan", plan, read_plan),
    "artifact": ("artifact.json", shipped("compress/weights/emnist/artifact.json"), lambda path: read_artifact(path.parent)),
    "benchmark": ("benchmark.json", shipped("tests/compress/artifacts/benchmark.json"), read_results),
    "recipe": ("a.toml", shipped("compress/recipes/k49-edge.toml"), load_recipe),
    "space": ("a.toml", shipped("compress/recipes/spaces/emnist.toml"), space),
    "journal": ("a.journal", journal, read_journal),
}


@pytest.fixture
def numbered(tmp_path: Path) -> Iterator[Path]:
    """A new folder each time it is asked for, as a reader may leave files open."""
    return (tmp_path / str(number) for number in itertools.count())


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they read
def test_whatever_is_in_a_file_its_reader_gives_something_or_says_in_one_line_why_not(name: str, numbered: Iterator[Path]) -> None:
    file, make, read = READERS[name]
    (folder := next(numbered)).mkdir()
    valid = make(folder)
    (folder / file).write_bytes(valid)
    if name != "artifact":  # whose weights do not lie there
        read(folder / file)

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ, suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )  # fmt: skip
    @given(changed(valid))
    def holds(content: bytes) -> None:
        (folder := next(numbered)).mkdir()
        (folder / file).write_bytes(content)
        began = time.monotonic()
        try:
            read(folder / file)
        except USER_ERRORS as error:
            told = str(error)
            assert told and "\n" not in told.strip()
        assert time.monotonic() - began < LONGEST
        assert {path.name for path in folder.iterdir()} <= {file, f"{file}.lock"}

    holds()


def test_a_zip_within_a_zip_takes_no_more_than_it_holds(tmp_path: Path) -> None:
    """42.zip's trick: members that share their bytes, and each of which declares a gigabyte."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", bytes(2**24))
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", inner.getvalue())
    with pytest.raises(USER_ERRORS, match=r"is not an array of \.npy version 1\.0"):
        read_array(path)


def test_json_of_any_shape_is_a_result_or_one_line(tmp_path: Path) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    )
    path = tmp_path / "benchmark.json"

    @settings(max_examples=EXAMPLES, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ, suppress_health_check=list(HealthCheck))
    @given(st.fixed_dictionaries({"schema": st.just("compress-benchmark"), "version": st.just(4), "measurements": values}), values)
    def holds(about: dict[str, Any], more: Any) -> None:
        path.write_text(json.dumps(about | (more if isinstance(more, dict) else {})), encoding="utf-8")
        with pytest.raises(USER_ERRORS) as told:
            read_results(path)
        assert "\n" not in str(told.value)

    holds()
