"""quantize as a user runs it: an ONNX file of somebody else's, an explanation, and mistakes, each one line and nothing written."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from foreign import NORMALISED, foreign
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score
from stand_ins import Commands

import compress
from compress.artifacts.artifact import read_artifact
from compress.stages.verify import verify
from compress.train.sources import load_data


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign(tmp_path_factory.mktemp("theirs") / "net.onnx")


@pytest.fixture(scope="module")
def in_int8(theirs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that comes of it."""
    ours = compress.open(data="digits", mean=(0.5,), std=(0.25,), runs=tmp_path_factory.mktemp("runs"))
    return ours.quantize(onnx=theirs, mode="static", images=64).payload


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for images of 16x16, untrained."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(392, 10)).eval()
    torch.onnx.export(network, (torch.rand(1, 1, 16, 16),), path, dynamo=True, verbose=False)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_somebody_elses_file_goes_the_whole_way(here: Path, theirs: Path, run: Commands) -> None:
    made = run.done("quantize", "--onnx", str(theirs), "--data", "digits", *NORMALISED, "--images", "64")
    quantized = read_artifact(Path(made["artifact"]), "graph")
    assert quantized.path.parts[:3] == ("runs", "net", "quantize")
    assert verify(quantized.path).holds
    choice = made["metrics"]["choice"]
    assert choice["verdict"] and choice["finalists"][0]["mode"] == "float32"

    # Raw images give the answers that normalised ones gave before.
    images = load_data("digits").test.images
    session = onnxruntime.InferenceSession(theirs)
    expected = session.run(None, {session.get_inputs()[0].name: ((images.astype(np.float32) / 255 - 0.5) / 0.25)})[0]
    found = onnxruntime.InferenceSession(quantized.payload).run(["logits"], {"image": images})[0]
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97

    # And it can be fine-tuned, named as an artifact, and measured beside what it came from.
    tuned = run.done(
        "quantize", "--onnx", str(theirs), "--data", "digits", *NORMALISED, "--mode", "static", "--images", "64", "--epochs", "1"
    )
    assert tuned["metrics"]["best_epoch"] == 1
    imported = next((here / "runs/net/import-onnx").iterdir())
    assert run.done("quantize", "--from", str(imported), "--mode", "fp16-weights")["config"] == {"mode": "fp16-weights"}
    code, _out, err = run("benchmark", made["artifact"], str(imported), "--quick", "--rounds", "2", "--samples", "5")
    assert code == 0, err


def with_sigmoid(theirs: Path, path: Path) -> Path:
    """The same classifier, but that its labels do not exclude each other."""
    model = onnx.load(theirs)
    model.graph.node.append(helper.make_node("Sigmoid", [model.graph.output[0].name], ["s"]))
    model.graph.output[0].name = "s"
    onnx.save(model, path)
    return path


def test_a_sigmoid_is_one_all_the_way(here: Path, theirs: Path, run: Commands) -> None:
    """What `predict` says of the file as it is, and after quantization, are the numbers that the file gives; accuracy is the argmax."""
    path, images = with_sigmoid(theirs, here / "many.onnx"), load_data("digits").test.images[:20]
    for number, image in enumerate(images):
        Image.fromarray(image[0]).save(here / f"{number}.png")
    files = [f"{number}.png" for number in range(len(images))]
    session = onnxruntime.InferenceSession(path)
    expected = session.run(None, {session.get_inputs()[0].name: ((images.astype(np.float32) / 255 - 0.5) / 0.25)})[0]
    found = run.done("predict", *files, "--onnx", str(path), *NORMALISED)["predictions"]
    assert [one["label"] for one in found] == [str(row.argmax()) for row in expected]
    np.testing.assert_allclose([one["probability"] for one in found], expected.max(axis=1), atol=1e-5)

    made = run.done("quantize", "--onnx", str(path), "--data", "digits", *NORMALISED, "--images", "64", "--mode", "static")
    quantized = Path(made["artifact"])
    logits, probabilities = onnxruntime.InferenceSession(quantized / "model.onnx").run(["logits", "probabilities"], {"image": images})
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert verify(quantized).holds and made["metrics"]["validation"]["accuracy"] > 0.3
    assert 0.3 < made["metrics"]["validation"]["mean_average_precision"] < 1

    data = load_data("digits").test
    own = ("--data", "digits", *NORMALISED, "--quick", "--rounds", "2", "--samples", "5")
    measured = run.done("benchmark", str(path), str(theirs), *own)
    scores = {one["name"]: one["scores"] for one in measured["variants"]}
    given = session.run(None, {session.get_inputs()[0].name: ((data.images.astype(np.float32) / 255 - 0.5) / 0.25)})[0]
    truth = np.mean([average_precision_score(data.labels == kind, given[:, kind]) for kind in range(10)])
    assert scores["many"]["mean_average_precision"] == pytest.approx(truth, abs=1e-3) and "mean_average_precision" not in scores["net"]

    found = run.done("predict", *files, "--from", str(quantized))["predictions"]
    np.testing.assert_allclose([one["probability"] for one in found], probabilities.max(axis=1), atol=1e-6)

    told = refused(here, run, "--onnx", str(path), "--data", "digits", *NORMALISED, "--images", "64", "--mode", "static", "--epochs", "1")
    assert "ends in a sigmoid, and our loss is a softmax's; take --epochs 0" in told


def test_logits_with_a_sigmoid_beside_them_are_read_as_such(here: Path, theirs: Path, run: Commands) -> None:
    model = onnx.load(with_sigmoid(theirs, here / "both.onnx"))
    model.graph.output.insert(0, helper.make_tensor_value_info(model.graph.node[-1].input[0], TensorProto.FLOAT, ["n", 10]))
    onnx.save(model, here / "both.onnx")
    image = load_data("digits").test.images[:1]
    Image.fromarray(image[0, 0]).save(here / "digit.png")
    session = onnxruntime.InferenceSession(here / "both.onnx")
    _, expected = session.run(None, {session.get_inputs()[0].name: (image.astype(np.float32) / 255 - 0.5) / 0.25})
    (found,) = run.done("predict", "digit.png", "--onnx", "both.onnx", *NORMALISED)["predictions"]
    assert found["probability"] == pytest.approx(float(expected.max()), abs=1e-5)


def test_anybodys_quantized_file_is_read(here: Path, theirs: Path, run: Commands) -> None:
    quantize_dynamic(theirs, here / "int8.onnx")
    image = load_data("digits").test.images[:1]
    Image.fromarray(image[0, 0]).save(here / "digit.png")
    session = onnxruntime.InferenceSession(here / "int8.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: (image.astype(np.float32) / 255 - 0.5) / 0.25})
    (found,) = run.done("predict", "digit.png", "--onnx", "int8.onnx", *NORMALISED)["predictions"]
    assert found["label"] == str(logits.argmax())
    assert found["probability"] == pytest.approx(float(np.exp(logits.max()) / np.exp(logits).sum()), abs=1e-3)


def test_random_images_are_read_by_anybodys_file_with_the_names_of_the_data(here: Path, theirs: Path, run: Commands) -> None:
    found = run.done("predict", "--random", "3", "--onnx", str(theirs), "--data", "digits", *NORMALISED)["predictions"]
    assert len(found) == 3 and all(one["truth"] in "0123456789" for one in found)
    code, _, err = run("predict", "--random", "3", "--onnx", str(theirs), "--data", "digits", "--image-shape", "1x20x20")
    assert code == 2 and "image-shape (=(1, 20, 20)) is another; leave --image-shape out" in err


def test_explain_says_what_each_layer_and_each_group_costs(here: Path, theirs: Path, run: Commands) -> None:
    common = ("quantize", "--onnx", str(theirs), "--data", "digits", *NORMALISED, "--images", "64", "--explain")
    found = run.done(*common)
    assert [one["name"] for one in found["layers"]][-1] == "logits"
    assert {one["name"] for one in found["groups"]} >= {"first layer", "last layer"}
    assert all(one["latency"]["value"] > 0 for one in found["groups"])
    assert (Path(found["artifact"]) / "noise.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run(*common)
    assert code == 0 and "explain-int8: unchanged" in err
    assert "Signal to quantization noise" in out and "answers changed" in out
    assert not Path("runs/net/quantize").exists()


def refused(here: Path, run: Commands, *arguments: str) -> str:
    """The one line of a refusal; nothing but what the test made may be there afterwards."""
    before = sorted(here.rglob("*"))
    code, out, err = run("quantize", *arguments)
    lines = [line for line in err.splitlines() if line.startswith("compress: ")]
    assert "import-onnx: " not in err or list((here / "runs").glob("*/import-onnx/*"))  # no word of a folder that is not there
    assert code == 2 and out == "" and len(lines) == 1 and "Traceback" not in err
    after = [path for path in here.rglob("*") if path not in before and path.is_file()]
    assert [path for path in after if not {"import-onnx", "choose", ".data"} & set(path.parts)] == []
    assert not [path for path in after if "partial" in str(path)]
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--images", "8", "--mode", "static"), "images (=8) must be at least 32; 256 to 1024 of the training images do well"),
        (("--image-shape", "1x20x20"), "image-shape (=1x20x20) is not what onnx (="),
        (("--mode", "int4"), "mode (=int4) must be auto, static"),
        (("--mode", "dynamic", "--method", "mse"), "method (=mse) is a setting of --mode static; dynamic has none"),
        (("--max-drop", "-1"), "max_drop (=-1.0) must be at least 0; points of balanced accuracy"),
        (("--max-drop", "101"), "max_drop (=101.0) must lie in [0, 100]; points of balanced accuracy"),
        (("--model", "k49"), "onnx (="),
        (("--mode", "static", "--group", "gates"), 'group (="gates") is none of this graph; it has first layer'),
    ],
)
def test_a_mistake_is_one_line(here: Path, theirs: Path, run: Commands, arguments: tuple[str, ...], told: str) -> None:
    assert told in refused(here, run, "--onnx", str(theirs), "--data", "digits", *arguments)


def broken(path: Path, kind: str, theirs: Path) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(theirs.read_bytes()[:-100])
    elif kind == "external":
        onnx.save(onnx.load(theirs), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        (path.parent / "weights.bin").unlink()
    elif kind == "no weights":
        graph = helper.make_graph(
            [
                helper.make_node("GlobalAveragePool", ["x"], ["a"]),
                helper.make_node("Flatten", ["a"], ["b"]),
                helper.make_node("Expand", ["b", "s"], ["y"]),
            ],
            "none",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 1, 28, 28))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 10))],
            [numpy_helper.from_array(np.array([1, 10]), "s")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    elif kind == "other classes":
        model = onnx.load(theirs)
        taken = model.graph.node[-1].input[0]
        del model.graph.node[-1]
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info(taken, TensorProto.FLOAT, ["n", 16]))
        onnx.save(model, path)
    elif kind == "two inputs":
        model = onnx.load(theirs)
        model.graph.input.append(helper.make_tensor_value_info("meta", TensorProto.FLOAT, ["n", 2]))
        onnx.save(model, path)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", '"net.onnx" is not a file'),
        ("empty", '"net.onnx" is empty (0 bytes)'),
        ("cut", '"net.onnx" is truncated or no ONNX file at all'),
        ("external", "keeps its weights in another file that cannot be read"),
        ("no weights", "there is nothing to quantize"),
        ("two inputs", '"net.onnx" has 2 inputs'),
        ("other classes", "net.onnx reads 16 classes, data (=digits) has 10; name the data it was made for"),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "static"])
def test_a_broken_file_is_one_line(here: Path, theirs: Path, run: Commands, kind: str, told: str, mode: str) -> None:
    broken(here / "net.onnx", kind, theirs)
    assert told in refused(here, run, "--onnx", "net.onnx", "--data", "digits", "--mode", mode)


@pytest.mark.parametrize("name", ["..onnx", "\x1b.onnx", f"{'n' * 220}.onnx"])
def test_a_name_that_is_no_folders_is_one_line(name: str, here: Path, theirs: Path, run: Commands) -> None:
    (here / name).write_bytes(theirs.read_bytes())
    told = refused(here, run, "--onnx", name, "--data", "digits")
    assert "the name of the file (=" in told and "must be one plain name" in told and "\x1b" not in told


@pytest.mark.parametrize("mode", ["auto", "static", "dynamic", "int8-weights"])
def test_what_is_quantized_already_is_refused(here: Path, in_int8: Path, run: Commands, mode: str) -> None:
    (again := here / "int8.onnx").write_bytes(in_int8.read_bytes())
    assert "is quantized already" in refused(here, run, "--onnx", str(again), "--data", "digits", *NORMALISED, "--mode", mode)


def test_a_file_without_data_is_refused(here: Path, theirs: Path, run: Commands) -> None:
    assert "does not say which images calibrate and score it; name them with --data" in refused(here, run, "--onnx", str(theirs))


@pytest.mark.parametrize("kind", ["pictures", "float.npz", "folder/of.npy"])
def test_images_without_labels_calibrate(here: Path, small: Path, run: Commands, kind: str) -> None:
    """As pictures and as arrays, with what the file answers in the place of labels."""
    images = load_digits().images[:400].repeat(2, 1).repeat(2, 2)  # 0 to 16
    path = here / kind
    path.parent.mkdir(exist_ok=True)
    bytes_ = np.rint(images * (255 / 16)).astype(np.uint8)
    ranged: tuple[str, ...] = ()
    if kind == "pictures":
        path.mkdir()
        for number, image in enumerate(bytes_):
            Image.fromarray(image).save(path / f"{number}.png")
    elif kind == "float.npz":
        np.savez(path, images.astype(np.float32))
        ranged = ("--range", "0,16")
    else:
        np.save(path, bytes_)
        path = path.parent
    made = run.done("quantize", "--onnx", str(small), "--calibrate", str(path), *ranged, "--mode", "static", "--images", "64")
    assert made["metrics"]["validation"]["accuracy"] > 0.9
    about = read_artifact(Path(made["artifact"]), "graph").manifest.data
    assert sum(vars(about.images).values()) == 400


def test_the_table_of_the_choice_is_valid_json_and_holds_every_candidate(here: Path, theirs: Path, run: Commands) -> None:
    made = run.done("quantize", "--onnx", str(theirs), "--data", "digits", *NORMALISED, "--images", "64")
    table = json.loads((Path(made["metrics"]["choice"]["artifact"]) / "choice.json").read_text())
    assert {one["mode"] for one in table["finalists"]} >= {"float32", "int8-weights", "fp16-weights"}
    assert all({"ratio", "low", "high", "rounds", "size"} <= one.keys() for one in table["tried"])
    assert set(table["machine"]) == {"cpu", "architecture", "flags", "cores"}
