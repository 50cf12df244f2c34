"""What the page makes of pictures, against what training made of them: Pillow's own bytes, and the squares of occlusion. Runs in node."""

import itertools
import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

pytest.importorskip("PIL", reason="pillow is not installed; it says what the bytes must be")
from PIL import Image

from compress.graphs.evidence.occlusion import occlusion
from compress.serve.page.html import FOLDER
from compress.train.resize import Resize

SIZES = [(28, 28), (1, 1), (20, 31), (97, 60), (211, 8), (64, 64)]
WAYS = [Resize(), Resize(way="pad"), Resize(way="crop"), Resize(way="crop", crop=0.875)]
METHODS = ("nearest", "bilinear", "bicubic", "lanczos")


def in_node(code: str, given: Any) -> Any:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed; it runs the page's script")
    text = f'{(FOLDER / "pictures.js").read_text(encoding="utf-8")}\nconst given = JSON.parse(require("fs").readFileSync(0));\n{code}'
    done = subprocess.run([node, "-e", text], input=json.dumps(given), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


RESIZE = Image.Image.resize


def across_then_down(picture: Image.Image, size: tuple[int, int], resample: Any) -> Image.Image:
    """As Pillow before 13 goes; since then it goes down first where the height shrinks much more."""
    between = picture if resample == Image.Resampling.NEAREST else RESIZE(picture, (size[0], picture.height), resample)
    return RESIZE(between, size, resample)


def test_bytes_are_those_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    cases, pictures = [], []
    for (height, width), resize, method, channels in itertools.product(SIZES, WAYS, METHODS, (1, 3)):
        how = Resize(way=resize.way, crop=resize.crop, interpolation=method)  # type: ignore[arg-type]
        colours = generator.integers(0, 256, (height, width, 4), np.uint8)
        if (height + channels) % 2:
            colours = np.where(colours < 128, 0, 255).astype(np.uint8)  # where overshoots are clipped
        tall, wide = (24, 17) if channels == 1 else (14, 28)
        pictures.append((how, Image.fromarray(colours[..., :3]).convert("L" if channels == 1 else "RGB"), wide, tall))
        about = {"way": how.way, "crop": how.crop, "interpolation": method}
        cases.append({"rgba": colours.reshape(-1).tolist(), "shape": [height, width, channels], "to": [tall, wide], "resize": about})
    code = """const found = given.map(({ rgba, shape, to, resize }) => Array.from(fitted(flat(rgba, shape[2]), shape, to, resize)));
    console.log(JSON.stringify(found));"""
    found = [np.array(one) for one in in_node(code, cases)]
    monkeypatch.setattr(Image.Image, "resize", across_then_down)
    for one, (how, picture, wide, tall) in zip(found, pictures, strict=True):
        assert (one == np.asarray(how.apply(picture, wide, tall)).reshape(-1)).all(), (picture, how)


def test_halves_are_rounded_as_python_does() -> None:
    values = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49, 2.51, -0.51, 7.0]
    assert in_node("console.log(JSON.stringify(given.map(even).map((one) => one + 0)))", values) == [round(one) for one in values]


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 14, 3), (3, 3, 1)])
def test_what_is_covered_is_what_occlusion_covers(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    image = np.random.default_rng(1).integers(0, 256, (channels, height, width), np.uint8)
    seen: list[np.ndarray] = []

    def run(images: np.ndarray) -> np.ndarray:
        seen.extend(images)
        return np.zeros((len(images), 2), np.float32)

    occlusion(run, image, [0], patch=max(1, round(min(height, width) / 7)))
    code = """const pixels = Uint8Array.from(given.pixels), colour = background(pixels, given.shape);
    const found = squares(given.shape).map((square) => {
      const covered = pixels.slice();
      inside(square, given.shape[1], (at) => covered.set(colour, at * given.shape[2]));
      return Array.from(covered);
    });
    console.log(JSON.stringify(found));"""
    found = in_node(code, {"pixels": image.transpose(1, 2, 0).reshape(-1).tolist(), "shape": shape})
    assert found == [one.transpose(1, 2, 0).reshape(-1).tolist() for one in seen[1:]]
