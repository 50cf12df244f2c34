import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from compress.benchmarks import runtimes, torchnets
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.runtimes import Candidate, _halved, check_logits, import_runtime, onnx_session, open_model
from compress.benchmarks.trials import make_model

Make = Callable[..., Path]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)
TRUTH = IMAGES.reshape(5, 16)[:, :3].astype(np.float32)


def test_logits_are_those_of_the_file(pixel_model: Make) -> None:
    model = open_model(Candidate(name="a", path=pixel_model("a")), (1, 4, 4), 3, 1)
    np.testing.assert_array_equal(model.predict(IMAGES), TRUTH)
    assert model.providers == ("CPUExecutionProvider",)
    assert model.load_ns > 0 and model.first_ns > 0 and model.on_device is None


def test_float_input_gets_zero_to_one_and_a_batch_of_one_is_looped_over(pixel_model: Make) -> None:
    model = open_model(Candidate(name="a", path=pixel_model("a", kind=TensorProto.FLOAT, batch=1)), (1, 4, 4), 3, 1)
    np.testing.assert_allclose(model.predict(IMAGES), TRUTH / 255, rtol=1e-6)


@pytest.mark.parametrize("name", [b"image", b"logits"])
def test_a_name_that_is_no_text_is_refused(pixel_model: Make, name: bytes) -> None:
    path = pixel_model("a")
    path.write_bytes(path.read_bytes().replace(name, name[:-1] + b"\x8b"))
    with pytest.raises(BenchmarkError, match="an input or output has a name that is no UTF-8"):
        open_model(Candidate(name="a", path=path), (1, 4, 4), 3, 1)


def test_a_graph_that_gives_nothing_is_refused(pixel_model: Make) -> None:
    path = pixel_model("a")
    model = onnx.load(path)
    del model.graph.output[:]
    onnx.save(model, path)
    with pytest.raises(BenchmarkError, match="it gives nothing; export it again"):
        open_model(Candidate(name="a", path=path), (1, 4, 4), 3, 1)


def with_probabilities(path: Path) -> Path:
    """The same file with the softmax of its logits as a second output."""
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
    model.graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3]))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("options", [{}, {"kind": TensorProto.FLOAT, "batch": 1}])
def test_of_two_outputs_the_first_is_the_logits(pixel_model: Make, runtime: str, options: dict[str, object]) -> None:
    pytest.importorskip(runtime, reason="the extra openvino is not installed")
    path, scale = pixel_model("a", **options), 255 if options else 1
    assert open_model(Candidate(name="a", path=path, runtime=runtime), (1, 4, 4), 3, 1).probabilities is None
    model = open_model(Candidate(name="a", path=with_probabilities(path), runtime=runtime), (1, 4, 4), 3, 1)
    np.testing.assert_allclose(model.predict(IMAGES), TRUTH / scale, rtol=1e-6)
    powers = np.exp((TRUTH - TRUTH.max(1, keepdims=True)) / scale)
    assert model.probabilities is not None
    np.testing.assert_allclose(model.probabilities(IMAGES), powers / powers.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"kind": TensorProto.FLOAT, "batch": 1}])
def test_openvino_gives_the_same_logits(pixel_model: Make, options: dict[str, object]) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    path = pixel_model("a", **options)
    candidates = [Candidate(name="a", path=path, runtime=runtime) for runtime in ("onnxruntime", "openvino")]
    expected, found = (open_model(one, (1, 4, 4), 3, 1).predict(IMAGES) for one in candidates)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(BenchmarkError, match=r"input shape .* does not fit images of shape \(3, 4, 4\)"):
        open_model(candidates[1], (3, 4, 4), 3, 1)


def test_library_that_is_not_installed_is_named(pixel_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BenchmarkError, match=r"^openvino is not installed; `pip install 'compress-edge\[openvino\]'`$"):
        open_model(Candidate(name="a", path=pixel_model("a"), runtime="openvino"), (1, 4, 4), 3, 1)


def pixels(path: Path) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A network whose logits are the first three pixels in [0, 1]."""

    class Scaled(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float() / 255

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(3, 16))
    return Scaled(), network.eval()


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ONNX_CUDA = pytest.mark.skipif(
    not torch.cuda.is_available() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="needs a CUDA device and onnxruntime-gpu",
)


@ONNX_CUDA
@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime.fp16"])
def test_onnx_on_cuda_gives_the_same_logits_and_is_timed_on_the_device(pixel_model: Make, runtime: str) -> None:
    model = open_model(Candidate(name="a", path=pixel_model("a"), runtime=runtime, device="cuda"), (1, 4, 4), 3, 1)
    np.testing.assert_allclose(model.predict(IMAGES), TRUTH, rtol=1e-3 if runtime.endswith("fp16") else 1e-6)
    assert model.providers[0] == "CUDAExecutionProvider" and model.on_device is not None
    assert model.on_device(IMAGES[:1], 5).shape == (5,)


def test_half_precision_keeps_inputs_and_outputs_and_halves_the_weights(tmp_path: Path) -> None:
    make_model(tmp_path / "net.onnx")
    source, half = onnx.load(tmp_path / "net.onnx"), onnx.load_from_string(_halved(tmp_path / "net.onnx"))
    assert [*half.graph.input, *half.graph.output] == [*source.graph.input, *source.graph.output]
    assert {one.data_type for one in source.graph.initializer} == {TensorProto.FLOAT}
    assert {one.data_type for one in half.graph.initializer} == {TensorProto.FLOAT16}
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    expected, found = (
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
        for one in (source, half)
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3 * np.abs(expected).max())


def test_on_cuda_float32_is_float32_and_libraries_of_torch_are_found(pixel_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a device: what ONNX Runtime is asked for."""
    asked: list[object] = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: asked.append("preloaded"))

    class Session:
        def __init__(self, model: str, options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            asked.extend(providers)

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(BenchmarkError, match="no CUDA device"):
        onnx_session(Candidate(name="a", path=pixel_model("a"), device="cuda"), 1)
    assert asked == ["preloaded", ("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})]


def test_two_builds_of_onnxruntime_that_hide_each_other_are_told(pixel_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(metadata, "version", lambda name: "1.30")
    with pytest.raises(BenchmarkError, match=r"onnxruntime and onnxruntime-gpu are both installed .*`pip uninstall` both"):
        onnx_session(Candidate(name="a", path=pixel_model("a"), device="cuda"), 1)


def test_a_device_is_woken_for_as_long_as_its_clocks_need(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(torchnets.time, "monotonic", lambda: now[0])

    def call() -> None:
        now[0] += 0.07

    torchnets.until_awake(call)
    assert now[0] == pytest.approx(0.35), "five calls of 0.07 s reach 0.3 s"


@pytest.mark.parametrize(
    ("runtime", "device"),
    [("torch", "cpu"), *(pytest.param(name, "cuda", marks=CUDA) for name in ("torch", "torch.fp16", "torch.cudagraph"))],
)
def test_torch_gives_the_same_logits_every_way(tmp_path: Path, runtime: str, device: str) -> None:
    model = open_model(Candidate(name="a", path=tmp_path, runtime=runtime, device=device, load=pixels), (1, 4, 4), 3, 1)
    for count in (5, 1, 5):
        np.testing.assert_allclose(model.predict(IMAGES[:count]), TRUTH[:count] / 255, rtol=1e-3 if runtime == "torch.fp16" else 1e-6)
    assert (model.on_device is None) == (device == "cpu")
    if model.on_device:
        assert model.on_device(IMAGES[:1], 9).shape == (2,), "one figure for eight calls"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("runtime", ["torch", "torch.fp16", "torch.cudagraph"])
def test_torch_on_cuda_without_a_device_says_so(tmp_path: Path, runtime: str) -> None:
    with pytest.raises(BenchmarkError, match=r"^no CUDA device$"):
        open_model(Candidate(name="a", path=tmp_path, runtime=runtime, device="cuda", load=pixels), (1, 4, 4), 3, 1)


def test_torch_is_not_imported_to_find_that_there_is_no_cuda_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "has_cuda_driver", lambda: False)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(BenchmarkError, match=r"^no CUDA device$"):
        import_runtime(Candidate(name="a", path=tmp_path, runtime="torch", device="cuda", load=pixels))


def test_compiling_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BenchmarkError, match=r"^torch.compile needs a C\+\+ compiler \(g\+\+, clang\+\+, c\+\+\); there is none$"):
        open_model(Candidate(name="a", path=tmp_path, runtime="torch.compile", load=pixels), (1, 4, 4), 3, 1)


def test_what_is_compiled_is_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes half a minute; here it is only seen that the compiled function is the one that answers."""
    seen = []
    monkeypatch.setattr(torch, "compile", lambda run: lambda images: seen.append(len(images)) or run(images))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/c++")
    model = open_model(Candidate(name="a", path=tmp_path, runtime="torch.compile", load=pixels), (1, 4, 4), 3, 1)
    np.testing.assert_allclose(model.predict(IMAGES), TRUTH / 255, rtol=1e-6)
    assert seen == [1, 2, 1, 5]


@pytest.mark.parametrize(
    ("shape", "classes", "options", "message"),
    [
        (
            (3, 4, 4),
            3,
            {},
            r"input shape \(=\('B', 1, 4, 4\)\) does not fit images of shape \(3, 4, 4\); take the data it was made",
        ),
        ((1, 4, 4), 10, {}, r"output shape \(=\(1, 3\)\) must be \(1, 10\): 1 images, 10 classes in the data"),
        ((1, 4, 4), 3, {"batch": 8}, r"input batch \(=8\) must be free or 1"),
        ((1, 4, 4), 3, {"kind": TensorProto.INT32}, r"input type \(=tensor\(int32\)\) must be tensor\(uint8\)"),
        ((1, 4, 4), 3, {"scale": float("inf")}, r"output holds NaN or infinity on the test images"),
    ],
)
def test_file_that_does_not_fit_the_data_is_refused(pixel_model: Make, shape, classes, options, message) -> None:
    with pytest.raises(BenchmarkError, match=message):
        open_model(Candidate(name="a", path=pixel_model("a", **options)), shape, classes, 1)


def test_a_file_that_mixes_the_images_of_a_batch_is_refused(pixel_model: Make) -> None:
    path = pixel_model("a")
    model = onnx.load(path)
    model.graph.node[-1].output[0] = "one"
    model.graph.node.append(onnx.helper.make_node("CumSum", ["one", "axis"], ["logits"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "axis"))
    onnx.save(model, path)
    with pytest.raises(BenchmarkError, match="an image gets other logits alone than in a batch, so no score is its own; keep running"):
        open_model(Candidate(name="a", path=path), (1, 4, 4), 3, 1)


def test_missing_file_and_unknown_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"path \(=.*none.onnx\) does not exist; export the model first"):
        open_model(Candidate(name="a", path=tmp_path / "none.onnx"), (1, 4, 4), 3, 1)
    with pytest.raises(BenchmarkError, match=r"runtime \(=tflite\) of 'a' is unknown; choose one of onnxruntime, onnxruntime.fp16, open"):
        Candidate(name="a", path=tmp_path, runtime="tflite")
    with pytest.raises(BenchmarkError, match=r"device \(=tpu\) of 'a' must be cpu or cuda for onnxruntime"):
        Candidate(name="a", path=tmp_path, device="tpu")
    with pytest.raises(BenchmarkError, match=r"device \(=cpu\) of 'a' must be cuda for torch.fp16; choose that"):
        Candidate(name="a", path=tmp_path, runtime="torch.fp16", load=pixels)
    with pytest.raises(BenchmarkError, match=r"load \(=None\) of 'a' must be a function for torch"):
        Candidate(name="a", path=tmp_path, runtime="torch")


def test_logits_pass_as_they_are() -> None:
    assert check_logits(TRUTH, 5, 3) is TRUTH


def test_threads_do_not_spin_into_the_turn_of_another(pixel_model: Make) -> None:
    """Processor time of this process while it sleeps after a call on two threads: ONNX Runtime's own default spins for some 30 ms."""
    model = open_model(Candidate(name="a", path=pixel_model("a", work=20)), (1, 4, 4), 3, 2)
    spun = []
    for _ in range(5):
        model.predict(IMAGES)
        begin = time.process_time()
        time.sleep(0.06)
        spun.append(time.process_time() - begin)
    assert min(spun) < 0.005


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say how much memory a process holds")
def test_memory_of_a_large_batch_is_given_back(tmp_path: Path) -> None:
    """A layer of 100,000 values per image: 205 MB for 512 images, of which nothing stays."""
    weights = onnx.numpy_helper.from_array(np.ones((16, 100_000), np.float32), "weights")
    shape = onnx.numpy_helper.from_array(np.array([-1, 16], np.int64), "shape")
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["most"], axes=[1], keepdims=1),
        helper.make_node("Concat", ["most", "most", "most"], ["logits"], axis=1),
    ]
    taken = helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 1, 4, 4])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 3])
    graph = helper.make_graph(nodes, "wide", [taken], [given], [weights, shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "wide.onnx")
    # In a process of its own: what others before it freed would be filled first.
    script = f"""
from pathlib import Path
import numpy as np
from compress.benchmarks.runtimes import Candidate, open_model
def resident_bytes():
    return int(open("/proc/self/statm").read().split()[1]) * {os.sysconf("SC_PAGE_SIZE")}
model = open_model(Candidate(name="wide", path=Path({str(tmp_path / "wide.onnx")!r})), (1, 4, 4), 3, 1)
before = resident_bytes()
model.predict(np.ones((512, 1, 4, 4), np.uint8))
held = resident_bytes() - before
model.release()
print(held, resident_bytes() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held, left = map(int, done.stdout.split())
    assert held > 150_000_000 and left < 0.2 * held
