"""Folders of C: the compiler takes them without a warning, their test finds what is wrong, their example reads as ONNX Runtime does."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from c_folders import CLASSES, COMPILERS, HEIGHT, WIDTH, build, graph_artifact, net, ran
from compiled_c import needs_gcc
from stand_ins import Commands

from compress.artifacts.artifact import InputSpec, Manifest
from compress.artifacts.parts import Model, OwnScore
from compress.benchmarks.runtimes import Candidate, onnx_session


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def picture(path: Path, values: np.ndarray, comment: str = "") -> Path:
    """A binary PGM or PPM file of uint8 (C, H, W)."""
    kind = {1: "P5", 3: "P6"}[len(values)]
    path.write_bytes(f"{kind}\n{comment}{values.shape[2]} {values.shape[1]}\n255\n".encode() + values.transpose(1, 2, 0).tobytes())
    return path


@pytest.mark.parametrize("cc", COMPILERS or [pytest.param("gcc", marks=needs_gcc)])
def test_a_graph_becomes_a_folder_that_compiles_without_a_warning_and_proves_itself(cc: str, run: Commands) -> None:
    graph = graph_artifact(Path("runs"), end="both")
    made = run.done("export-c", "--model", "k49")
    folder = Path(made["folder"])
    assert folder.parent == Path("runs/k49/export-c")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["CMakeLists.txt", "Makefile", "README.md", "c.json", "example.c", "k49.c", "k49.h", "kernels.h", "test.c"]
    )
    images = np.load(graph.path / "vectors.npz")["images"]
    test = build(folder, "test", cc=cc)
    code, told, _ = ran(test)
    assert code == 0 and told.startswith(f"{len(images)} of {len(images)} images; ")
    build(folder, "example", cc=cc)
    # By hand: 35 pixels times 3 classes are 105 products, and one layer's figures are those of its line.
    assert sum(layer["macs"] for layer in made["layers"]) == 3 * HEIGHT * WIDTH
    assert sum(layer["weights"] for layer in made["layers"]) == made["flash_bytes"]
    assert f"arena {made['arena_bytes']:,} bytes" in run("export-c", "--model", "k49")[1]


@needs_gcc
def test_the_self_test_fails_for_a_network_that_computes_something_else(run: Commands) -> None:
    net(Path("one.onnx"), end="Softmax")
    model = onnx.load("one.onnx")
    for one in model.graph.initializer:
        if one.name == "weights":
            one.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(one), "weights"))
    onnx.save(model, "other.onnx")
    one, other = (Path(run.done("export-c", "--onnx", f"{name}.onnx", "--name", "net")["folder"]) for name in ("one", "other"))
    shutil.copyfile(other / "net.c", one / "net.c")
    code, told, _ = ran(build(one, "test"))
    assert code == 1 and told.startswith("0 of 4 images; ")


@needs_gcc
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"end": "both"},
        {"channels": 3, "end": "Softmax"},
        {"channels": 3, "floats": True},
        {"channels": 3, "floats": True, "last": True},
        {"floats": True, "end": "Sigmoid"},
    ],
    ids=str,
)
def test_the_example_reads_a_picture_as_onnx_runtime_does(how: dict[str, Any], run: Commands) -> None:
    """The truth is ONNX Runtime's answer to the same pixels, normalised with numpy; where the file gives logits, their softmax."""
    channels, floats = how.get("channels", 1), how.get("floats", False)
    net(Path("net.onnx"), **how)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels]
    normal = ("--mean", ",".join(map(str, mean)), "--std", ",".join(map(str, std))) if floats else ()
    folder = Path(run.done("export-c", "--onnx", "net.onnx", "--out", "c", *normal)["folder"])
    assert ran(build(folder, "test"))[0] == 0
    example = build(folder, "example")
    session = onnx_session(Candidate(name="net", path=Path("net.onnx")), 1)
    for seed in range(5):
        values = np.random.default_rng(seed).integers(0, 256, (channels, HEIGHT, WIDTH), np.uint8)
        taken = values[None]
        if floats:
            centre, spread = (np.reshape(np.float32(one), (1, -1, 1, 1)) for one in (mean, std))
            taken = (taken.astype(np.float32) / 255 - centre) / spread
        taken = np.ascontiguousarray(taken.transpose(0, 2, 3, 1)) if how.get("last") else taken
        answer = session.run(None, {"image": taken})[-1][0].astype(np.float64)
        if "end" not in how:
            answer = np.exp(answer - answer.max()) / np.exp(answer - answer.max()).sum()
        code, told, _ = ran(example, picture(Path("it.pnm"), values, "# made by hand\n"))
        label, _, probability = told.strip().rpartition(" ")
        assert code == 0 and label == CLASSES[int(answer.argmax())]
        assert float(probability) == pytest.approx(answer.max(), abs=6e-5)


@needs_gcc
def test_the_example_refuses_other_pictures_in_one_line(run: Commands) -> None:
    net(Path("net.onnx"))
    example = build(Path(run.done("export-c", "--onnx", "net.onnx")["folder"]), "example")
    grey = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    for name, content, told in (
        ("wide.pgm", picture(Path("a"), np.zeros((1, 6, 9), np.uint8)).read_bytes(), "is 9x6 with values to 255; 7x5 with values to 255"),
        ("deep.pgm", picture(Path("a"), grey).read_bytes().replace(b"255", b"65535"), "with values to 65535; 7x5 with values to 255"),
        ("colour.ppm", picture(Path("a"), np.zeros((3, HEIGHT, WIDTH), np.uint8)).read_bytes(), "is no binary PGM (P5)"),
        ("cut.pgm", picture(Path("a"), grey).read_bytes()[:-1], "is cut short"),
        ("huge.pgm", b"P5 99999999999999999999 5 255\n", "is 9999999x5 with values to 255; 7x5"),
        ("none.pgm", b"", "is no binary PGM (P5)"),
    ):
        Path(name).write_bytes(content)
        code, out, err = ran(example, name)
        assert code == 2 and not out and err.startswith(f"example: {name} ") and told in err and err.count("\n") == 1
    assert ran(example, "nothing.pgm") == (2, "", "example: nothing.pgm cannot be read\n")


@needs_gcc
@pytest.mark.parametrize("tool", ["make", "cmake"])
def test_the_makefiles_build_and_check(tool: str, run: Commands) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"needs {tool}")
    net(Path("net.onnx"))
    folder = run.done("export-c", "--onnx", "net.onnx")["folder"]
    if tool == "make":
        code, out, err = ran("make", "-C", folder, "CC=gcc", "all", "check")
        assert "4 of 4 images" in out
    else:
        assert ran("cmake", "-S", folder, "-B", "build", "-DCMAKE_C_COMPILER=gcc")[0] == 0
        code, out, err = ran("cmake", "--build", "build", "--target", "all", "test")
        assert "100% tests passed" in out
    assert code == 0 and "warning" not in (out + err)


def test_an_operator_that_has_no_c_is_named_and_nothing_is_written(run: Commands) -> None:
    net(Path("net.onnx"), odd="Sin")
    code, _, err = run("export-c", "--onnx", "net.onnx", "--out", "c")
    assert code == 2 and err.count("\n") == 1 and 'compress: node "the odd one" (Sin) cannot be written as C: ' in err
    assert [path.name for path in Path().iterdir()] == ["net.onnx"]


def test_pictures_of_other_channels_have_no_example(run: Commands) -> None:
    net(Path("net.onnx"), channels=2)
    folder = Path(run.done("export-c", "--onnx", "net.onnx", "--target", "cortex-m4")["folder"])
    assert not (folder / "example.c").exists() and "example" not in (folder / "Makefile").read_text() + (folder / "README.md").read_text()
    assert "CC = arm-none-eabi-gcc\n" in (folder / "Makefile").read_text()
    assert "-mcpu=cortex-m4" in (folder / "README.md").read_text() and "-mcpu=cortex-m4" in (folder / "CMakeLists.txt").read_text()


@pytest.mark.parametrize(
    ("target", "told"),
    [("aarch64", True), ("x86-64-v3", True), ("x86-64-v4", False), ("aarch64+dotprod", False), ("cortex-m4", False)],
)
def test_where_int8_may_gain_nothing_that_is_said(target: str, told: bool, run: Commands) -> None:
    """On a microcontroller it still saves memory."""
    model = onnx.load(net(Path("net.onnx"), odd="Relu"))
    scale = [onnx.numpy_helper.from_array(np.array(value), name) for name, value in (("s", np.float32(1)), ("z", np.uint8(0)))]
    model.graph.initializer.extend(scale)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    place = list(model.graph.node).index(relu)
    pair = [
        onnx.helper.make_node("QuantizeLinear", ["plain", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["odd"]),
    ]
    relu.output[0] = "plain"
    for number, node in enumerate(pair):
        model.graph.node.insert(place + 1 + number, node)
    onnx.save(model, "net.onnx")
    code, _, err = run("export-c", "--onnx", "net.onnx", "--target", target, "--out", "c")
    said = f"{target} has no dot product of int8, so float32 may be faster there"
    assert code == 0 and (f"export-c: {said}; measure both" in err) is told
    assert (f"**{said}.**" in Path("c/README.md").read_text()) is told


@needs_gcc
def test_a_network_for_another_task_has_no_example_and_is_proved_on_random_pixels(run: Commands) -> None:
    graph_artifact(Path("runs"), task=OwnScore(name="iou", source="0" * 64))
    folder = Path(run.done("export-c", "--model", "k49")["folder"])
    assert not (folder / "example.c").exists()
    code, told, _ = ran(build(folder, "test"))
    assert code == 0 and told.startswith("4 of 4 images; ")


def test_what_lies_in_out_is_kept_unless_it_is_the_same_or_force_says_so(run: Commands) -> None:
    net(Path("net.onnx"))
    Path("c").mkdir()
    Path("c/notes.txt").write_text("mine")
    assert run("export-c", "--onnx", "net.onnx", "--out", "c") == (
        2, "", "compress: out (=c) exists and was not made by export-c; name a new folder\n"
    )  # fmt: skip
    Path("c/notes.txt").unlink()
    first = run.done("export-c", "--onnx", "net.onnx", "--out", "c")
    assert run.done("export-c", "--onnx", "net.onnx", "--out", "c") == first
    Path("c/main.c").write_text("mine")
    assert run.done("export-c", "--onnx", "net.onnx", "--out", "c") == first
    assert Path("c/main.c").read_text() == "mine"
    Path("c/net.c").write_text("mine")
    assert run("export-c", "--onnx", "net.onnx", "--out", "c")[2].endswith(
        "out (=c) holds net.c, which export-c did not make so; name a new folder, or --force replaces all\n"
    )
    assert Path("c/net.c").read_text() == "mine"
    other = ("export-c", "--onnx", "net.onnx", "--out", "c", "--name", "other")
    assert run(*other)[0] == 2 and Path("c/net.c").is_file()
    assert run(*other)[2].endswith("out (=c) holds other C; --force replaces it\n")
    run.done(*other, "--force")
    assert Path("c/other.c").is_file() and not Path("c/net.c").exists()


def test_what_an_older_version_wrote_is_replaced_unless_something_of_ones_own_lies_there(run: Commands) -> None:
    net(Path("net.onnx"))
    command = ("export-c", "--onnx", "net.onnx", "--out", "c")
    new = run.done(*command)
    about = json.loads(Path("c/c.json").read_text(encoding="utf-8"))
    Path("c/kernels.h").write_text("older")
    about["files"]["kernels.h"] = hashlib.sha256(b"older").hexdigest()
    Path("c/c.json").write_text(json.dumps(about), encoding="utf-8")
    Path("c/main.c").write_text("mine")
    code, _, err = run(*command)
    assert code == 2 and "out (=c) holds main.c, which export-c did not make so" in err and Path("c/kernels.h").read_text() == "older"
    Path("c/main.c").unlink()
    assert run.done(*command) == new and Path("c/kernels.h").read_text() != "older"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--name", "a-b"), "name (=a-b) must be a text in quotes; letters, digits and _, no digit first"),
        (("--name", "test"), 'name (="test") must not be test, example, kernels; those files lie there too'),
        (("--target", "cortex-m5"), 'target (="cortex-m5") must be a processor that C can be written for; did you mean cortex-m55?'),
        (("--model", "k49"), "onnx (=net.onnx) and --from or --model exclude each other; leave one of them out"),
    ],
)
def test_wrong_settings_are_refused(given: tuple[str, ...], told: str, run: Commands) -> None:
    net(Path("net.onnx"))
    assert run("export-c", "--onnx", "net.onnx", *given) == (2, "", f"compress: {told}\n")


def test_without_a_graph_the_next_step_is_told(run: Commands) -> None:
    code, _, err = run("export-c", "--model", "k49")
    assert code == 2 and "runs/k49 has no graph yet; run `compress export-onnx` first, or name an ONNX file with --onnx" in err


def test_a_network_is_written_by_its_own_newest_export(run: Commands) -> None:
    from stand_ins import recorded, write_artifact

    def make(folder: Path) -> Manifest:
        (folder / "weights.safetensors").write_bytes(b"weights")
        about: dict[str, Any] = {"config": {}, "data": recorded("digits"), "classes": CLASSES}
        return Manifest(
            kind="network",
            stage="train",
            key="ab",
            model=Model(reference="k49", options={}, source=None),
            input=InputSpec(shape=(1, HEIGHT, WIDTH)),
            **about,
        )

    network = write_artifact(Path("runs/k49/train/ab"), make)
    graph_artifact(Path("runs"), parent="another's")
    code, _, err = run("export-c", "--from", "runs/k49/train/ab")
    assert code == 2 and "runs/k49/train/ab has no export in runs/k49 yet; run `compress export-onnx --from runs/k49/train/ab` first" in err
    shutil.rmtree("runs/k49/export")
    graph = graph_artifact(Path("runs"), parent=network.manifest.hash)
    made = run.done("export-c", "--from", "runs/k49/train/ab")
    assert made["sha256"] == graph.manifest.files["model.onnx"]
    assert json.loads(Path(made["folder"], "c.json").read_text())["origin"] == "`k49` (fp32)"
