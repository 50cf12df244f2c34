"""Every reader, fed with valid files in which something was changed.

::

    make fuzz INPUTS=20000             so many for each reader, never the same
    pytest tests/fuzz                  900 for each reader, the same each time; this is what CI runs

Whatever is in a file, its reader gives something or raises one of this project's errors, whose message is one line. Nothing else: no other
exception, no wait, no gigabyte, no file beside it. What comes of a value of the right type but another meaning, ``test_hostile`` tries,
place by place; here it is bytes and text. An input that failed is kept by hypothesis, and stands as an ``example`` once it is mended.
"""

import gc
import hashlib
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

from compress.artifacts.artifact import MANIFEST, PAYLOAD, digest_of, read_artifact, sha256_of
from compress.artifacts.classifier.opened import open_file, shape_of
from compress.artifacts.context import Context
from compress.artifacts.load import load_network, load_weights
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.parts import Baseline, Plan, Scores
from compress.artifacts.payloads import (
    Confusion,
    Curve,
    Fold,
    Folds,
    Noise,
    NoisyGroup,
    NoisyLayer,
    OverFolds,
    Point,
    Search,
    Sensitivity,
    read_results,
)
from compress.artifacts.recipe import load_recipe
from compress.artifacts.records import plain, read_kept, read_record, write_kept
from compress.artifacts.vectors import read_vectors, write_vectors
from compress.benchmarks.statistics import Interval
from compress.cli.main import USER_ERRORS
from compress.graphs.adopt import adopt
from compress.graphs.file import read_onnx
from compress.quantization.records import Setting, Tried
from compress.stages.cross_validate import _read_fold
from compress.stages.tune import Tuning, read_space
from compress.stages.verify import verify
from compress.train.formats import read_array, read_class_map, read_image, read_rows
from compress.train.state import State, _digest, fits, read_snapshot, save_snapshot, take_snapshot
from compress.train.storage import opened

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "900"))  # inputs per reader
LONGEST, MOST = 20.0, 2**30  # seconds for one of them, and bytes that it may add to what the process holds
RESET = Path("/proc/self/clear_refs")
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
    spec = json.dumps({"shape": SHAPE, "mean": [0.0], "std": [1.0]})
    onnx.helper.set_model_props(model, {"compress.classes": '["a", "b", "c"]', "compress.input": spec})
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


SCORES = Scores(accuracy=0.5, balanced_accuracy=0.5, macro_f1=0.5, macro_precision=0.5)
TRIED = Tried(mode="static", groups=("dense",), setting=Setting(), ratio=0.5, low=0.4, high=0.6, rounds=5, drop=0.1, bound=0.3, images=9)
RECORDS: dict[str, Any] = {
    "choice": Search(
        verdict="static", decided="bound", complete=True, max_drop=0.3, before=SCORES, after=SCORES, graph="f" * 64,
        groups={"dense": ("MatMul",)}, best=TRIED, finalists=(TRIED,), tried=(TRIED,), machine={"cpu": "x", "flags": ("avx",), "cores": 2},
    ),
    "folds": Folds(
        images=2, epochs=1, folds=(Fold(fold=1, images=2, scores=SCORES, best_epoch=SCORES),), mean=SCORES, spread=SCORES,
        best_epoch=OverFolds(mean=SCORES, spread=SCORES), confusions=(Confusion(true="a", read="b", images=1, of=2),),
    ),
    "noise": Noise(
        images=2, setting="minmax",
        layers=(
            NoisyLayer(
                label="a", name="a", kind="Conv", weights="w", output_db=1.5, own_db=None, weight_db=2.0, clipped=0.1,
                microseconds=(1.0, None),
            ),
        ),
        groups=(NoisyGroup(name="dense", nodes=1, logits_db=9.0, changed=0.1, latency=Interval(value=1.0, low=0.9, high=1.1)),),
    ),
    "sensitivity": Sensitivity(
        granularity="weight", images=2, baseline=Baseline(balanced_accuracy=0.5, cross_entropy=0.1), rises={"a": {0.5: 0.1}}, latency={},
        curves=(
            Curve(name="a", size=4, points=(Point(sparsity=0.5, removed=2, balanced_accuracy=0.4, cross_entropy=0.2, points_lost=10.0),)),
        ),
    ),
}  # fmt: skip


def record(name: str) -> tuple[str, Callable[[Path], bytes], Callable[[Path], Any]]:
    """One of those that lie beside ``artifact.json``."""
    made = RECORDS[name]
    return (
        f"{name}.json",
        lambda folder: json.dumps(plain(made)).encode(),
        lambda path: read_record(path, type(made), again="make it again"),
    )


def fold(folder: Path) -> bytes:
    row = dict.fromkeys(("train_loss", "validation_loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_precision"), 0.5)
    return json.dumps({"key": "k", "history": [{"epoch": 1, "images_per_second": 9.0, **row}], "predictions": [0, 1]}).encode()


def read_right_fold(path: Path) -> None:
    """With a hash that fits, as somebody who means harm would write it."""
    text, said = path.read_bytes(), list[str]()
    path.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    _read_fold(path, "k", 2, 2, said.append)
    assert all("\n" not in told for told in said)


def read_right_artifact(path: Path) -> None:
    """With hashes that fit, and its network built and filled, as all of this toolkit's is trusted."""
    weights = Path(__file__).parents[2] / "compress/weights/emnist" / PAYLOAD["network"]
    path.with_name(PAYLOAD["network"]).symlink_to(weights)
    try:
        raw = json.loads(path.read_bytes())
        raw["files"] = {PAYLOAD["network"]: sha256_of(weights)}
        raw["hash"] = digest_of({name: value for name, value in raw.items() if name != "hash"})
        path.write_text(json.dumps(raw), encoding="utf-8")
    except (ValueError, TypeError, KeyError, RecursionError):
        pass  # then it stays as it is
    load_network(read_artifact(path.parent))


def metadata(folder: Path) -> bytes:
    return "\n".join(entry.value for entry in onnx.load_from_string(graph(folder)).metadata_props).encode()


def read_metadata(path: Path) -> None:
    """Of a graph whose nodes are right."""
    classes, _, spec = path.read_bytes().decode("utf-8", "replace").partition("\n")
    model = onnx.load_from_string(graph(path.parent))
    onnx.helper.set_model_props(model, {"compress.classes": classes, "compress.input": spec})
    path.write_bytes(model.SerializeToString())
    open_file(path, Context())


def history(folder: Path) -> bytes:
    return json.dumps([json.loads(fold(folder))["history"][0]]).encode()


def read_right_state(path: Path) -> None:
    about = {"history": path.read_bytes().decode("utf-8", "replace"), "best_epoch": "1", "key": "key"}
    network = torch.nn.Linear(2, 2)
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    path.write_bytes(save(tensors, metadata=about | {"sha256": _digest(tensors, about)}))
    found = read_snapshot(path, "key")
    assert found is not None
    fits(State(network, torch.optim.Adam(network.parameters()), {}, {}, [], 1), found)


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
    "npz in parts": ("images.npz", npz, lambda path: [*read_rows(path, 100)]),
    "IDX": ("images-idx3-ubyte", idx, read_array),
    "IDX in parts": ("images-idx3-ubyte", idx, lambda path: [*read_rows(path, 100)]),
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
    "ONNX to read with": ("a.onnx", graph, lambda path: open_file(path, Context())),
    "ONNX to time": ("a.onnx", graph, lambda path: shape_of([path], None)),
    "ONNX to prove": ("a.onnx", graph, verify),
    "ONNX metadata": ("a.onnx", metadata, read_metadata),
    "vectors": ("vectors.npz", vectors, read_vectors),
    "state": ("state", state, lambda path: read_snapshot(path, "key")),
    "history of a state, right hash": ("state", history, read_right_state),
    "fold, right hash": ("1.json", fold, read_right_fold),
    "plan": ("plan", plan, read_plan),
    "artifact": ("artifact.json", shipped("compress/weights/emnist/artifact.json"), lambda path: read_artifact(path.parent)),
    "artifact, right hashes": (MANIFEST, shipped("compress/weights/emnist/artifact.json"), read_right_artifact),
    **{name: record(name) for name in RECORDS},
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
        began, before = time.monotonic(), _held("VmRSS")
        if RESET.exists():
            RESET.write_text("5")  # the peak counts from here
        try:
            read(folder / file)
        except USER_ERRORS as error:
            told = str(error)
            assert told and "\n" not in told.strip()
        assert not RESET.exists() or _held("VmHWM") - before < MOST
        assert time.monotonic() - began < LONGEST
        assert {path.name for path in folder.iterdir()} <= {file, f"{file}.lock", PAYLOAD["network"]}

    before = _held("VmRSS")
    holds()
    gc.collect()
    assert _held("VmRSS") - before < MOST  # and it does not add up


def _held(what: str) -> int:
    """Bytes that the process holds, now (VmRSS) or at most so far (VmHWM)."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{what}:")]
    return int(line.split()[1]) * 1024


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
