"""Small networks for the tests of C folders, and the compiler at work."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from stand_ins import recorded, write_artifact

from compress.artifacts.artifact import Artifact, InputSpec, Manifest
from compress.artifacts.parts import Model, OwnScore
from compress.artifacts.vectors import write_vectors
from compress.benchmarks.runtimes import Candidate, onnx_session

STRICT = ("-std=c11", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-march=native", "-ffp-contract=off")
HEIGHT, WIDTH, CLASSES = 5, 7, ("cat", "döner", 'a "b"\\')


def net(path: Path, *, channels: int = 1, floats: bool = False, last: bool = False, end: str = "", odd: str = "") -> Path:
    """A random linear classifier of pictures of ``channels`` x 5 x 7. ``end``: an operator after the logits, or "both" for logits and
    probabilities; ``odd``: an operator that the pixels go through first."""
    size = channels * HEIGHT * WIDTH
    generator = np.random.default_rng(size)
    constants = {"weights": generator.normal(size=(size, 3)).astype(np.float32) / 100, "flat": np.array([-1, size], np.int64)}
    constants["weights"] *= 255 if floats else 1
    nodes = [helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node(odd, ["float"], ["odd"], name="the odd one")] if odd else []
    nodes += [helper.make_node("Reshape", ["odd" if odd else "float", "flat"], ["pixels"])]
    nodes += [helper.make_node("MatMul", ["pixels", "weights"], ["logits"])]
    nodes += [helper.make_node("Softmax" if end == "both" else end, ["logits"], ["probabilities"])] if end else []
    given = ["logits", "probabilities"] if end == "both" else ["probabilities"] if end else ["logits"]
    shape = ["B", HEIGHT, WIDTH, channels] if last else ["B", channels, HEIGHT, WIDTH]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT if floats else TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 3]) for name in given],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {"compress.classes": '["cat", "döner", "a \\"b\\"\\\\"]'})
    onnx.save(made, path)
    return path


def graph_artifact(runs: Path, stage: str = "export", parent: str | None = None, task: OwnScore | None = None, **how: Any) -> Artifact:
    """A graph in ``runs/k49``, with test vectors; or one for another ``task``, which has none and no classes."""

    def make(folder: Path) -> Manifest:
        session = onnx_session(Candidate(name="net", path=net(folder / "model.onnx", **how)), 1)
        images = np.random.default_rng(1).integers(0, 256, (20, how.get("channels", 1), HEIGHT, WIDTH), np.uint8)
        about: dict[str, Any] = {"config": {}, "data": recorded("digits"), "parent": parent, "classes": () if task else CLASSES}
        about |= {"task": task} if task else {}
        if not task:
            write_vectors(folder, lambda some: session.run(None, {"image": some})[0], images, 1e-4)
        model, spec = Model(reference="k49", options={}, source=None), InputSpec(shape=(how.get("channels", 1), HEIGHT, WIDTH))
        return Manifest(kind="graph", stage=stage, key="ab", model=model, input=spec, **about)

    return write_artifact(runs / "k49" / stage / "ab", make)


def build(folder: Path, program: str, *flags: str, cc: str = "gcc") -> Path:
    """Compile ``test`` or ``example`` with every warning an error."""
    [name] = [path.stem for path in folder.glob("*.h") if path.name != "kernels.h"]
    target = (folder.parent / program).absolute()
    command = [cc, *(flags or STRICT), "-o", target, folder / f"{program}.c", folder / f"{name}.c", "-lm"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def ran(*command: object) -> tuple[int, str, str]:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


COMPILERS = [cc for cc in ("gcc", "clang") if shutil.which(cc)]
