"""The proof with test vectors: it holds for what was exported, and fails for what computes something else."""

import importlib.machinery
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compress.artifacts.artifact import sha256_of
from compress.artifacts.vectors import MOST_VECTORS, read_vectors, write_vectors
from compress.benchmarks.errors import BenchmarkError
from compress.cli.views import proof_text
from compress.errors import ArtifactError, CompressError
from compress.stages.verify import Proof, verify

CLASSES = 12
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)


def write_model(path: Path, *, scale: float = 1.0, shift: float = 0.0, side: int = 4, probabilities: str = "") -> None:
    """Logit k is pixel k times ``scale``; ``shift`` is added to the first one. ``probabilities``: the operator that makes them, if any."""
    weights = np.zeros((side * side, CLASSES), np.float32)
    weights[range(CLASSES), range(CLASSES)] = scale
    bias = np.zeros(CLASSES, np.float32)
    bias[0] = shift
    constants = {"weights": weights, "bias": bias, "flat": np.array([-1, side * side], np.int64)}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["float", "flat"], ["pixels"]),
            helper.make_node("Gemm", ["pixels", "weights", "bias"], ["logits"]),
            *([helper.make_node(probabilities, ["logits"], ["probabilities"])] if probabilities else []),
        ],
        "pixels",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 1, side, side])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", CLASSES])
            for name in ("logits", *(["probabilities"] if probabilities else []))
        ],
        [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def brightest(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)[:, :CLASSES].astype(np.float32)


def store(folder: Path, **changes: object) -> None:
    """Test vectors as they are, but for some of them."""
    with np.load(folder / "vectors.npz") as stored:
        whole = dict(stored)
    np.savez(folder / "vectors.npz", **{name: np.asarray(value) for name, value in (whole | changes).items()})


@pytest.fixture(autouse=True)
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed; two tests below are about it."""
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "board"
    made.mkdir()
    write_model(made / "model.onnx")
    write_vectors(made, brightest, IMAGES, 1e-4)
    return made


def failed(proof: Proof) -> list[str]:
    return [check.name for check in proof.checks if not check.passed]


def test_a_faithful_model_is_proved_wherever_its_folder_lies(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    proof = verify(tmp_path / "elsewhere")
    assert proof.holds
    assert [check.name for check in proof.checks] == ["hash", "loads", "logits", "answers"]
    assert "largest difference 0 on 8 images" in proof_text(proof)
    assert proof_text(proof).endswith("elsewhere: proved")


def test_vectors_are_the_surest_image_of_each_class_and_the_same_bytes_again(folder: Path, tmp_path: Path) -> None:
    vectors = read_vectors(folder / "vectors.npz")
    np.testing.assert_array_equal(vectors.logits, brightest(vectors.images))
    answers = vectors.logits.argmax(axis=1)
    assert len(answers) == len(set(answers.tolist())) == MOST_VECTORS
    seen = brightest(IMAGES[:256])
    ordered = np.sort(seen, axis=1)
    surest = {label: float((ordered[:, -1] - ordered[:, -2])[seen.argmax(axis=1) == label].max()) for label in range(CLASSES)}
    kept = np.sort(vectors.logits, axis=1)
    assert sorted((kept[:, -1] - kept[:, -2]).tolist(), reverse=True) == sorted(surest.values(), reverse=True)[:MOST_VECTORS]
    assert vectors.tolerance == pytest.approx(1e-4 * vectors.logits.max())
    before = sha256_of(folder / "vectors.npz")
    write_vectors(folder, brightest, IMAGES, 1e-4)
    assert sha256_of(folder / "vectors.npz") == before


def test_a_model_that_computes_something_else_is_not_proved(folder: Path) -> None:
    write_model(folder / "model.onnx", scale=1.001)
    assert failed(verify(folder)) == ["hash", "logits"]  # a thousandth on every logit changes no answer
    write_model(folder / "model.onnx", shift=1e4)
    store(folder, model=sha256_of(folder / "model.onnx"))
    assert failed(verify(folder)) == ["logits", "answers"]
    write_model(folder / "model.onnx", scale=float("nan"))
    assert failed(verify(folder)) == ["hash", "loads"]
    write_model(folder / "model.onnx", side=5)
    proof = verify(folder)
    assert failed(proof) == ["hash", "loads"]
    assert "does not fit images of shape (1, 4, 4)" in proof_text(proof)


def test_probabilities_are_those_of_the_logits(folder: Path) -> None:
    for operator, wrong in (("Softmax", []), ("LogSoftmax", ["probabilities"])):
        write_model(folder / "model.onnx", probabilities=operator)
        store(folder, model=sha256_of(folder / "model.onnx"))
        proof = verify(folder)
        assert failed(proof) == wrong
        assert "from the softmax of the logits, 1e-05 is allowed" in proof_text(proof)


def test_openvino_has_to_agree_where_it_is_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino")
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    write_model(folder / "model.onnx", probabilities="Softmax")
    store(folder, model=sha256_of(folder / "model.onnx"))
    proof = verify(folder)
    assert proof.holds
    assert [check.name for check in proof.checks] == ["hash", "loads", "logits", "answers", "probabilities", "openvino"]
    assert proof.checks[-1].detail.endswith("8 of 8 images have the expected answer")


def test_openvino_that_does_not_load_the_model_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def read_model(self, path: Path) -> None:
            raise RuntimeError("Unable to read the model\nand more")

    fake = types.ModuleType("openvino")
    fake.__spec__ = importlib.machinery.ModuleSpec("openvino", None)
    fake.__dict__.update(Core=Core, __version__="2026.4.1-some-build")
    monkeypatch.setitem(sys.modules, "openvino", fake)
    proof = verify(folder)
    assert failed(proof) == ["openvino"]
    assert "FAIL  openvino      does not load or run: RuntimeError: Unable to read the model\n" in proof_text(proof)


def write_foreign(path: Path, *, mixed: bool = False, shape: tuple[object, ...] = ("n", 6, 6, 3), kind: int = TensorProto.FLOAT16) -> Path:
    """The mean over an image's second axis; ``mixed`` takes off that of the batch."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y" if not mixed else "m"], axes=[1], keepdims=0)]
    if mixed:
        nodes += [helper.make_node("ReduceMean", ["m"], ["b"], axes=[0], keepdims=1), helper.make_node("Sub", ["m", "b"], ["y"])]
    taken, given = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, (shape[0], *shape[2:]))
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "net", [taken], [given]), opset_imports=[helper.make_opsetid("", 11)], ir_version=7),
        path,
    )
    return path


def test_anybodys_file_is_proved_to_load_and_to_answer_alike(tmp_path: Path) -> None:
    """Without vectors: channels last, half precision and an old opset as they are, sizes that are open, a batch of one."""
    for shape in (("n", 6, 6, 3), (1, 3, 6, 6), ("n", 3, "h", "w")):
        proof = verify(write_foreign(tmp_path / "net.onnx", shape=shape))
        assert proof.holds and [one.name for one in proof.checks] == ["loads", "finite", "alone", "plain"]
        assert "no vectors.npz beside it" in proof.checks[0].detail
    (tmp_path / "vectors.npz").touch()  # of a file that is called otherwise
    assert verify(tmp_path / "net.onnx").holds


def test_floats_may_be_less_apart_than_integers(tmp_path: Path) -> None:
    write_foreign(tmp_path / "net.onnx", kind=TensorProto.FLOAT)
    [alone] = [one for one in verify(tmp_path / "net.onnx").checks if one.name == "alone"]
    assert alone.detail.endswith("0.005 is allowed")
    (tmp_path / "int8.onnx").write_bytes((tmp_path / "net.onnx").read_bytes())
    model = onnx.load(tmp_path / "int8.onnx")
    model.doc_string = "QuantizeLinear"
    onnx.save(model, tmp_path / "int8.onnx")
    [alone] = [one for one in verify(tmp_path / "int8.onnx").checks if one.name == "alone"]
    assert alone.detail.endswith("0.05 is allowed")


def test_of_anybodys_file_what_does_not_hold_is_named(tmp_path: Path) -> None:
    assert failed(verify(write_foreign(tmp_path / "net.onnx", mixed=True, kind=TensorProto.FLOAT))) == ["alone"]
    whole = (tmp_path / "net.onnx").read_bytes()
    (tmp_path / "net.onnx").write_bytes(whole[:50])
    assert failed(verify(tmp_path / "net.onnx")) == ["loads"]
    model = onnx.load_from_string(whole)
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n"]))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(BenchmarkError, match=r"inputs \(=x, other\) must be one batch of images"):
        verify(tmp_path / "net.onnx")


def test_probabilities_of_a_sigmoid_are_known_as_such(folder: Path) -> None:
    write_model(folder / "model.onnx", scale=0.01, probabilities="Sigmoid")
    write_vectors(folder, lambda images: brightest(images) * np.float32(0.01), IMAGES, 1e-4)
    (found,) = [one for one in verify(folder).checks if one.name == "probabilities"]
    assert found.passed and "from the sigmoid of the logits" in found.detail


@pytest.mark.parametrize("length", [0, 100, -20])
def test_a_model_that_was_cut_is_not_proved(folder: Path, length: int) -> None:
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:length])
    proof = verify(folder)
    assert failed(proof)[0] == "hash"
    assert "the file was changed or cut" in proof_text(proof)
    assert proof_text(proof).endswith("NOT proved; copy or export the model again")
    assert len(proof_text(proof).splitlines()) == len(proof.checks) + 1


def test_what_is_no_folder_of_a_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"none is no folder; name the one that holds model.onnx and vectors.npz"):
        verify(tmp_path / "none")
    assert verify(folder / "model.onnx").checks[0].name == "hash"  # the vectors lie beside it
    with pytest.raises(CompressError, match=r"has no model.onnx; name the folder of an exported or quantized model"):
        verify(tmp_path)
    (folder / "vectors.npz").unlink()
    with pytest.raises(
        CompressError, match=r"has no vectors.npz; `compress export-onnx` and `compress quantize` write it beside model.onnx"
    ):
        verify(folder)


@pytest.mark.parametrize("damage", ["cut", "text", "array", "empty", "pickle", "other"])
def test_damaged_vectors_are_refused(folder: Path, damage: str) -> None:
    path = folder / "vectors.npz"
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-60])
        case "text":
            path.write_text("no archive\n")
        case "array":
            with path.open("wb") as file:
                np.save(file, IMAGES)
        case "empty":
            path.write_bytes(b"")
        case "pickle":
            np.savez(path, images=np.array([{}], dtype=object), logits=IMAGES, tolerance=1.0, model="")
        case "other":
            np.savez(path, IMAGES)
    with pytest.raises(CompressError, match=r"vectors.npz is damaged, or holds no test vectors \(\w+: .+\); copy it anew"):
        verify(folder)


@pytest.mark.parametrize(
    "changes", [{"images": IMAGES[:8, 0]}, {"images": IMAGES[:7]}, {"logits": np.zeros((8, 12))}, {"tolerance": [1.0]}, {"model": 3}]
)
def test_vectors_of_another_shape_or_type_are_refused(folder: Path, changes: dict[str, object]) -> None:
    store(folder, **changes)
    with pytest.raises(CompressError, match=r"vectors.npz holds no test vectors: images uint8 \(.*\), logits float\d\d \(8, 12\); copy it"):
        verify(folder)


def test_in_an_artifact_every_other_file_must_be_whole_too(folder: Path) -> None:
    (folder / "artifact.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not one of this toolkit's"):
        verify(folder)
