"""The folder in a real browser whose network is off, against the same files in Python: pictures, pixels, evidence, and what is told."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from c_folders import net
from chromium import PROGRAM, Chromium, chromium, host_of_files
from onnx import TensorProto, helper, numpy_helper
from stand_ins import Silent
from static_int8 import OLD, quantize_static

pytest.importorskip("PIL", reason="pillow is not installed; it reads the pictures here")
from PIL import Image

from compress.artifacts.classifier.opened import Classifier
from compress.errors import CompressError
from compress.graphs.evidence.occlusion import occlusion
from compress.serve.decode import images_of
from compress.serve.page.folder import write_page
from compress.serve.page.runtime import runtime_files
from compress.serve.settings import sources_of
from compress.serve.worker import load
from compress.train.errors import TrainError

CLASSES = tuple("abcdefgh")
LOADED = """new Promise((go, fail) => {
  const look = () => state.models.length ? Promise.allSettled(state.models.map((one) => one.opened)).then(() => go(true))
    : $("error").textContent ? fail(new Error($("error").textContent)) : setTimeout(look, 20);
  look();
})"""
READ = """(async (bodies, name, type) => {
  const model = state.models.find((one) => one.name === name), found = [];
  for (const one of bodies) {
    const bytes = Uint8Array.from(atob(one), (letter) => letter.charCodeAt(0));
    found.push((await answer(model, type === RAW ? bytes : new Blob([bytes], { type }), type)).probabilities);
  }
  return found;
})"""
PIXELS = """(async (body, type) => {
  const bytes = Uint8Array.from(atob(body), (letter) => letter.charCodeAt(0));
  return [...await pixelsOf(state.models.find((one) => one.name === "fp32"), new Blob([bytes], { type }))];
})"""
EVIDENCE = """((pixels, name) => evidence(state.models.find((one) => one.name === name),
  Uint8Array.from(atob(pixels), (letter) => letter.charCodeAt(0)), RAW))"""

ANSWERED = """new Promise((go) => {
  const done = () => state.chosen.every((one) => one.label !== null && !one.busy) && $("told").textContent !== "Nothing yet.";
  const about = (one) => ({ name: one.model.name, label: one.label, pixels: [...render(one.model)], text: one.card.innerText });
  const look = () => done() ? go(state.chosen.map(about)) : setTimeout(look, 20);
  look();
})"""


def convolutions(path: Path) -> Path:
    """A random network of two convolutions for grey pictures of 28x28, with logits and probabilities, as the toolkit writes them."""
    generator = np.random.default_rng(3)
    shapes = {"first": (8, 1, 3, 3), "second": (16, 8, 3, 3), "head": (16 * 49, len(CLASSES))}
    constants = {name: generator.normal(0, 2 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32) for name, shape in shapes.items()}
    constants["head"] = (constants["head"] - constants["head"].mean(axis=0)) / 8  # what all images have in common decides nothing
    constants |= {"scale": np.float32(1 / 255), "flat": np.array([-1, 16 * 49], np.int64)}
    make = helper.make_node
    nodes = [make("Cast", ["image"], ["float"], to=TensorProto.FLOAT), make("Mul", ["float", "scale"], ["pixels"])]
    last = "pixels"
    for name in ("first", "second"):
        nodes += [
            make("Conv", [last, name], [f"{name}.c"], name=f"{name}.conv", pads=[1, 1, 1, 1]),
            make("Relu", [f"{name}.c"], [f"{name}.r"]),
        ]
        nodes += [make("MaxPool", [f"{name}.r"], [f"{name}.p"], kernel_shape=[2, 2], strides=[2, 2])]
        last = f"{name}.p"
    nodes += [make("Reshape", [last, "flat"], ["row"]), make("MatMul", ["row", "head"], ["logits"], name="head")]
    nodes += [make("Softmax", ["logits"], ["probabilities"], axis=1)]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", 1, 28, 28])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", len(CLASSES)]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    described(made, CLASSES, (1, 28, 28))
    onnx.save(made, path)
    return path


def described(model: onnx.ModelProto, classes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    about = {"shape": shape, "mean": [0.0], "std": [1.0]}
    helper.set_model_props(model, {"compress.classes": json.dumps(classes), "compress.input": json.dumps(about)})


def pictures(count: int) -> list[bytes]:
    """PNG files of blots: grey ones of the network's size, and colours of other sizes."""
    generator = np.random.default_rng(5)
    found = []
    for number in range(count):
        side = 28 if number % 2 else int(generator.integers(5, 90))
        coarse = generator.integers(0, 256, (4, 4, 3), np.uint8)
        colours = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)) ^ generator.integers(
            0, 40, dtype=np.uint8
        )
        file = io.BytesIO()
        Image.fromarray(colours).convert("L" if number % 2 else "RGB").save(file, "PNG")
        found.append(file.getvalue())
    return found


@dataclass(frozen=True)
class Shown:
    """The page in a browser, the folder that it came from, and the same models here."""

    browser: Chromium
    folder: Path
    models: dict[str, Classifier]
    host: ThreadingHTTPServer

    def read(self, name: str, bodies: list[bytes], kind: str) -> np.ndarray:
        given = json.dumps([base64.b64encode(one).decode() for one in bodies])
        return np.array(self.browser.ask(f"{READ}({given}, {json.dumps(name)}, {json.dumps(kind)})"))

    def label(self, name: str, images: np.ndarray) -> str:
        """What is read here in one image (1, C, H, W)."""
        model = self.models[name]
        return model.classes[int(model.sure(images)[0].argmax())]

    def label_of_pixels(self, name: str, pixels: list[int]) -> str:
        """What is read here in the image that the page makes of a drawing, on which there is something."""
        channels, height, width = self.models[name].spec.shape
        image = np.array(pixels, np.uint8).reshape(height, width, channels).transpose(2, 0, 1)
        assert image.max() > 100
        return self.label(name, image[None])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Classifier]]:
    if PROGRAM is None:
        pytest.skip("chromium is not installed; it opens the page")
    try:
        runtime_files(None, Silent())
    except (TrainError, CompressError) as error:
        pytest.skip(f"onnxruntime-web cannot be had: {error}")
    folder = tmp_path_factory.mktemp("models")
    convolutions(folder / "fp32.onnx")
    images = np.concatenate([images_of("image/png", one, load(sources_of([folder / "fp32.onnx"])[0]).spec, 10**6) for one in pictures(40)])
    quantize_static(folder / "fp32.onnx", folder / "int8.onnx", images, types=OLD)
    made = onnx.load(net(folder / "colours.onnx", channels=3, floats=True, last=True))
    described(made, ("cat", "döner", "dog"), (3, 5, 7))
    onnx.save(made, folder / "colours.onnx")
    sources = sources_of([folder / f"{name}.onnx" for name in ("fp32", "int8", "colours")])
    target = tmp_path_factory.mktemp("site") / "page"
    write_page(sources, target, Silent())
    return target, {one.name: load(one) for one in sources}


@pytest.fixture(scope="module")
def shown(site: tuple[Path, dict[str, Classifier]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with host_of_files(site[0]) as (address, server), chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(address)
        browser.ask(LOADED)
        # What it has loaded is all that it needs: the host goes, and what is asked of any other fails.
        server.shutdown()
        browser.do("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        yield Shown(browser=browser, folder=site[0], models=site[1], host=server)
        files = ["", "models.json", "offline.js", "runtime/ort.wasm.bundle.min.js", "runtime/ort-wasm-simd-threaded.wasm"]
        asked = {address + one for one in (*files, *(f"models/{name}.onnx" for name in site[1]))}
        assert asked - {address + "offline.js"} <= {one for one in browser.requests if not one.startswith(("data:", "blob:"))} <= asked
        assert browser.complaints == []


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_200_pictures_are_answered_as_in_python_with_the_network_off(shown: Shown, name: str) -> None:
    model, bodies = shown.models[name], pictures(200)
    wanted = np.concatenate([model.sure(images_of("image/png", one, model.spec, 10**6)) for one in bodies])
    found = shown.read(name, bodies, "image/png")
    assert len(set(wanted.argmax(axis=1))) > 2
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


LOSSLESS = {"rgb.png": {}, "rgba.png": {}, "la.png": {}, "rgb.bmp": {}, "rgb.webp": {"lossless": True}}
LOSSY = {"rgb.jpg": {"quality": 90}, "turned.jpg": {"quality": 90}, "grey.jpg": {}}


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
def test_a_picture_becomes_the_same_bytes(shown: Shown, name: str) -> None:
    """Of a JPEG as near as two decoders of it are."""
    coarse = np.random.default_rng(7).integers(0, 256, (6, 6, 4), np.uint8)
    picture = Image.fromarray(coarse).resize((200, 200), Image.Resampling.BICUBIC)
    picture = picture.convert({"rgba": "RGBA", "la": "LA", "grey": "L"}.get(name.partition(".")[0], "RGB"))
    turned, file, kind = Image.Exif(), io.BytesIO(), f"image/{name.partition('.')[2].replace('jpg', 'jpeg')}"
    turned[0x0112] = 6  # a quarter, as a phone that was held upright says
    picture.save(file, kind.partition("/")[2], **(LOSSLESS | LOSSY)[name], **({"exif": turned} if "turned" in name else {}))
    wanted = images_of(kind, file.getvalue(), shown.models["fp32"].spec, 10**6)[0].reshape(-1).astype(int)
    given = json.dumps([base64.b64encode(file.getvalue()).decode(), kind])
    found = np.array(shown.browser.ask(f"{PIXELS}(...{given})"))
    assert np.ptp(wanted) > 50 and np.abs(found - wanted).max() <= (0 if name in LOSSLESS else 3)


def test_it_opens_again_when_its_host_is_gone(shown: Shown, tmp_path: Path) -> None:
    with host_of_files(shown.folder) as (address, server), chromium(tmp_path / "profile") as browser:
        browser.open(address)
        browser.ask(LOADED)
        browser.ask("navigator.serviceWorker.ready.then(() => true)")
        server.shutdown()
        server.server_close()
        browser.open(address)
        browser.ask(LOADED)
        again = Shown(browser=browser, folder=shown.folder, models=shown.models, host=server)
        model, bodies = shown.models["int8"], pictures(5)
        wanted = np.concatenate([model.sure(images_of("image/png", one, model.spec, 10**6)) for one in bodies])
        np.testing.assert_allclose(again.read("int8", bodies, "image/png"), wanted, rtol=0, atol=1e-5)


def test_pixels_of_colours_go_into_floats_with_channels_last(shown: Shown) -> None:
    model, images = shown.models["colours"], np.random.default_rng(6).integers(0, 256, (200, 3, 5, 7), np.uint8)
    found = shown.read("colours", [one.transpose(1, 2, 0).tobytes() for one in images], "application/octet-stream")
    np.testing.assert_allclose(found, model.sure(images), rtol=0, atol=1e-6)


def test_it_looks_at_what_python_says_it_looks_at(shown: Shown) -> None:
    model, image = shown.models["fp32"], images_of("image/png", pictures(2)[1], shown.models["fp32"].spec, 10**6)[0]
    pixels = base64.b64encode(image.transpose(1, 2, 0).tobytes()).decode()
    found = shown.browser.ask(f"{EVIDENCE}({json.dumps(pixels)}, 'fp32')")
    label = int(model.sure(image[None])[0].argmax())
    wanted = occlusion(model.run, image, [label], patch=4)[0]
    assert found["label"] == CLASSES[label]
    np.testing.assert_allclose(np.array(found["evidence"]), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_a_drawing_is_read_and_the_latency_is_the_browsers(shown: Shown) -> None:
    ask = shown.browser.ask
    box = ask("(({ x, y, width, height }) => ({ x, y, width, height }))($('canvas').getBoundingClientRect())")
    for kind, (right, down) in (
        ("mousePressed", (0.3, 0.2)),
        ("mouseMoved", (0.5, 0.8)),
        ("mouseMoved", (0.7, 0.3)),
        ("mouseReleased", (0.7, 0.3)),
    ):
        place = {"x": box["x"] + right * box["width"], "y": box["y"] + down * box["height"], "button": "left", "clickCount": 1}
        shown.browser.do("Input.dispatchMouseEvent", type=kind, buttons=0 if kind == "mouseReleased" else 1, **place)
    told = ask(ANSWERED)
    for one in told:
        assert one["label"] == shown.label_of_pixels(one["name"], one["pixels"])
        assert " ms an image" in one["text"] and "compute " in one["text"]
    assert ask("$('error').textContent") == ""


def test_the_keyboard_draws_and_takes_back(shown: Shown) -> None:
    browser = shown.browser
    browser.ask("clear(); $('canvas').focus()")
    browser.press(" ", *["ArrowDown"] * 4, "Shift+ArrowLeft", " ", "ArrowRight", " ", *["ArrowUp"] * 3, " ")
    lines = browser.ask("state.strokes")
    assert [len(one) for one in lines] == [6, 4]
    assert lines[0][4]["y"] - lines[0][0]["y"] == 4 * 28 and lines[0][4]["x"] - lines[0][5]["x"] == 7
    for one in browser.ask(ANSWERED):
        assert one["label"] == shown.label_of_pixels(one["name"], one["pixels"])
    browser.press("Backspace")
    assert len(browser.ask("state.strokes")) == 1
    browser.press("Delete")
    assert browser.ask("state.strokes") == []


def test_a_file_is_read_by_networks_of_grey_and_of_colours(shown: Shown, tmp_path: Path) -> None:
    (tmp_path / "blot.png").write_bytes(pictures(3)[2])
    shown.browser.choose("$('file')", tmp_path / "blot.png")
    shown.browser.ask("new Promise((go) => { const look = () => state.picture ? go(true) : setTimeout(look, 20); look(); })")
    found = {one["name"]: one["label"] for one in shown.browser.ask(ANSWERED)}
    body = (tmp_path / "blot.png").read_bytes()
    assert found == {name: shown.label(name, images_of("image/png", body, one.spec, 10**6)) for name, one in shown.models.items()}


def test_a_picture_of_the_camera_is_read(shown: Shown) -> None:
    ask = shown.browser.ask
    assert ask("$('camera').hidden") is False
    ask("clear(); $('camera').click()")
    ask("new Promise((go) => { const look = () => video.videoWidth && !video.hidden ? go(true) : setTimeout(look, 20); look(); })")
    ask("$('take').click()")
    body = ask("""new Promise((go) => {
      const coded = (buffer) => btoa(Array.from(new Uint8Array(buffer), (one) => String.fromCharCode(one)).join(""));
      const look = () => state.picture ? state.picture.arrayBuffer().then((one) => go(coded(one))) : setTimeout(look, 20);
      look();
    })""")
    found = {one["name"]: one["label"] for one in ask(ANSWERED)}
    assert ask("video.hidden && video.srcObject === null"), "the camera is off again"
    picture = base64.b64decode(body)
    assert np.ptp(np.asarray(Image.open(io.BytesIO(picture)).convert("L"))) > 50
    assert found == {name: shown.label(name, images_of("image/png", picture, one.spec, 10**6)) for name, one in shown.models.items()}


def test_a_file_that_cannot_be_run_is_told_and_the_others_go_on(shown: Shown, tmp_path: Path) -> None:
    folder = shutil.copytree(shown.folder, tmp_path / "page")
    (folder / "models" / "int8.onnx").write_bytes((folder / "models" / "int8.onnx").read_bytes()[:500])
    (folder / "models" / "colours.onnx").unlink()
    with host_of_files(folder) as (address, _), chromium(tmp_path / "profile") as browser:
        browser.open(address)
        browser.ask(LOADED)
        cards = dict(browser.ask("state.chosen.map((one) => [one.model.name, one.card.innerText])"))
        assert "It cannot be run here: " in cards["int8"] and "models/colours.onnx is not there (404)" in cards["colours"]
        assert "cannot be run" not in cards["fp32"] and " ms an image" in cards["fp32"]
        browser.open((folder / "index.html").as_uri())
        refused = browser.ask("new Promise((go) => setTimeout(() => go($('error').textContent), 200))")
        assert "opened as a file may not read" in refused
