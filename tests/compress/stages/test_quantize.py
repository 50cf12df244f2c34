"""The stage quantize, on a small network and real digits: what is chosen is made, recorded, and made again the same."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from compiled_c import needs_gcc
from stand_ins import Silent, recorded

from compress.artifacts.artifact import Artifact, InputSpec, read_artifact
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.payloads import Search, read_payload
from compress.artifacts.project import Project, variant_name
from compress.artifacts.recipe import Tutoring
from compress.benchmarks import place
from compress.benchmarks.paired import paired_drop
from compress.benchmarks.turns import Runtime
from compress.cli.tables import artifact_text
from compress.errors import CompressError
from compress.stages.benchmark import candidates_of
from compress.stages.boards.compilers import toolchain
from compress.stages.export import ExportConfig, export
from compress.stages.int8_files import Answers, Maker, calibration_images
from compress.stages.prune import PruneConfig, prune
from compress.stages.quantize import QuantizeConfig, choose_quantization, quantize
from compress.stages.train import train
from compress.stages.verify import verify
from compress.train.settings import DistilConfig, FitConfig
from compress.train.sources import load_data

FIT = FitConfig(epochs=2, batch=64, lr=0.003)
TUTORING = Tutoring(training=FIT, distil=DistilConfig())


def project_in(folder: Path) -> Project:
    data = load_data("digits")
    source = recorded("digits", data.fingerprint)
    model = ModelReference(reference="emnist", options={"channels": [8, 8], "hidden": 32})
    return Project(
        folder=folder / "emnist", model=model, spec=InputSpec(), data=data, source=source, console=Silent(), device="cpu"
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Artifact]:
    """A pruned and exported network: half of its weights are zero."""
    project = project_in(tmp_path_factory.mktemp("runs"))
    root = train(project, FIT)
    assert root is not None
    pruned = prune(project, root, PruneConfig(sparsity=0.5, epochs=0), TUTORING)
    return project, export(project, pruned, ExportConfig())


def run(project: Project, graph: Artifact, config: QuantizeConfig, out: Path | None = None) -> Artifact:
    return quantize(project, graph, config, TUTORING, out)


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = onnxruntime.InferenceSession(path).run(["logits"], {"image": images})[0]
    return found


def test_the_choice_is_kept_so_a_second_run_makes_the_same_bytes(made: tuple[Project, Artifact]) -> None:
    project, graph = made
    config = QuantizeConfig(images=64, accept_unproved=True)
    first = run(project, graph, config)
    content = first.payload.read_bytes()
    shutil.rmtree(first.path)
    again = run(project, graph, config)
    assert again.payload.read_bytes() == content
    choice = again.manifest.metrics.choice
    table = read_payload(read_artifact(Path(choice.artifact), "choice"), Search)
    assert choice.verdict == table.verdict
    modes = [one.mode for one in table.finalists]
    assert modes[0] == "float32" and {"static", "dynamic", "int8-weights", "fp16-weights"} <= set(modes)
    assert again.manifest.metrics.points_lost <= 0.3 + 1e-9
    told = candidates_of([again], "cpu")[0].facts["choice"]  # what the report shows
    assert (told.verdict, told.tried) == (choice.verdict, len(table.tried))
    assert told.finalists[0].what == "fp32"
    assert any(one.what == "static int8 everywhere; minmax, per channel" for one in told.finalists)
    assert [one.bound for one in told.finalists] == [one.bound for one in table.finalists] and told.finalists[0].bound is not None
    assert verify(again.path).holds


def test_static_twice_gives_the_same_bytes_and_records_the_calibration(made: tuple[Project, Artifact], tmp_path: Path) -> None:
    project, graph = made
    config = QuantizeConfig(mode="static", method="mse", equalise=True, correct_bias=True, images=64)
    one, two = (run(dataclasses.replace(project, force=True), graph, config, tmp_path / name) for name in ("one", "two"))
    assert one.payload.read_bytes() == two.payload.read_bytes()
    recorded = json.loads((one.path / "calibration.json").read_text())
    assert len(recorded["indices"]) == 64 and recorded["data"] == project.data.fingerprint
    facts = {entry.key: entry.value for entry in onnx.load(one.payload).metadata_props}
    assert facts["quantization.calibration.sha256"] == recorded["sha256"]


def test_other_calibration_images_give_another_file(made: tuple[Project, Artifact]) -> None:
    project, graph = made
    one, two = (run(project, graph, QuantizeConfig(mode="static", images=64, seed=seed)) for seed in (0, 1))
    assert one.path != two.path
    assert one.manifest.metrics.calibration.sha256 != two.manifest.metrics.calibration.sha256


def test_only_the_named_groups_become_int8(made: tuple[Project, Artifact]) -> None:
    project, graph = made
    artifact = run(project, graph, QuantizeConfig(mode="static", groups=("last layer",), images=64))
    kinds = [node.op_type for node in onnx.load(artifact.payload).graph.node]
    assert artifact.manifest.metrics.quantized.operators == {"Gemm": 1}
    assert kinds.count("QuantizeLinear") == 1
    assert variant_name(artifact) == "pruned 50%, static int8 of 1 groups"
    with pytest.raises(CompressError, match=r'group \(="lats layer"\) is none of this graph; it has first layer, .*last layer'):
        run(project, graph, QuantizeConfig(mode="static", groups=("lats layer",), images=64))


@pytest.mark.parametrize(("mode", "share"), [("int8-weights", 0.5), ("fp16-weights", 0.65), ("float32", 1.0)])
def test_weights_stored_small_answer_the_same(made: tuple[Project, Artifact], mode: str, share: float) -> None:
    project, graph = made
    artifact = run(project, graph, QuantizeConfig(mode=mode))
    images = project.data.test.images
    found, expected = logits(artifact.payload, images), logits(graph.payload, images)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.99
    assert artifact.payload.stat().st_size <= share * graph.payload.stat().st_size
    assert verify(artifact.path).holds


@pytest.mark.parametrize("config", [QuantizeConfig(images=64), QuantizeConfig(mode="static", images=64, epochs=1, correct_bias=True)])
def test_graph_that_takes_float32_is_calibrated_tuned_and_timed_with_pixels_from_0_to_1(
    made: tuple[Project, Artifact], config: QuantizeConfig
) -> None:
    """With pixels up to 255 every range would be 255 times too wide, and all images would be one step."""
    project, graph = made
    [pruned] = [read_artifact(file.parent) for file in project.folder.glob("prune/*/artifact.json")]
    floats = export(project, pruned, ExportConfig(input="float32"))
    artifact = run(project, floats, config)
    images = project.data.test.images
    found = onnxruntime.InferenceSession(artifact.payload).run(["logits"], {"image": images.astype(np.float32) / 255})[0]
    assert (found.argmax(axis=1) == logits(graph.payload, images).argmax(axis=1)).mean() > 0.95
    assert artifact.manifest.metrics.points_lost <= 2
    assert verify(artifact.path).holds


def test_fine_tuning_keeps_zeros_and_what_was_trained_is_what_runs(made: tuple[Project, Artifact]) -> None:
    project, graph = made
    plain = run(project, graph, QuantizeConfig(mode="static", images=64))
    tuned = run(project, graph, QuantizeConfig(mode="static", images=64, epochs=2, lr=0.001))
    before, after = onnx.load(plain.payload).graph, onnx.load(tuned.payload).graph
    assert [node.op_type for node in before.node] == [node.op_type for node in after.node]
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in before.initializer}
    checked = 0
    for one in after.initializer:
        values = onnx.numpy_helper.to_array(one)
        if values.dtype == np.int8 and values.ndim >= 2:
            originally = weights[one.name]
            assert not values[(originally == 0) & _pruned(graph, one.name, values.shape)].any()
            assert (values != originally).any()  # it was trained
            checked += 1
    assert checked == 4
    # The score that training saw is the score of the file.
    seen = tuned.manifest.metrics.fine_tuned.balanced_accuracy
    assert tuned.manifest.metrics.validation.balanced_accuracy == pytest.approx(seen, abs=0.01)
    assert not list(project.folder.glob("quantize/.*state*"))
    assert (tuned.path / "history.csv").is_file()
    assert variant_name(tuned) == "pruned 50%, static int8, fine-tuned"


def _pruned(graph: Artifact, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Where the float32 graph has exact zeros in the weight that became ``name``."""
    floats = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(graph.payload).graph.initializer}
    value = floats[name.removesuffix("_quantized")]
    assert value.shape == shape
    return np.asarray(value == 0)


def test_fine_tuning_goes_on_where_it_was_interrupted(made: tuple[Project, Artifact], tmp_path: Path) -> None:
    project, graph = made
    config = QuantizeConfig(mode="static", images=64, epochs=2, lr=0.002)
    whole = run(project, graph, config)
    other = dataclasses.replace(project, folder=tmp_path / "emnist")

    class Stopping(Silent):
        def progress(self, label: str, done: int, total: int) -> None:
            if label.startswith("quantize, epoch 2"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(other, console=Stopping()), graph, config)
    assert list(other.folder.glob("quantize/.*state*"))
    resumed = run(other, graph, config)
    assert resumed.payload.read_bytes() == whole.payload.read_bytes()
    assert not list(other.folder.glob("quantize/.*state*"))


def test_where_nothing_in_int8_is_faster_there_is_nothing_to_fine_tune(
    made: tuple[Project, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, graph = made

    timed(monkeypatch, 2.0)
    config = QuantizeConfig(images=65, accept_unproved=True)
    choice = read_payload(choose_quantization(project, graph, config), Search)
    assert choice.verdict.startswith("Do not compute in int8 on this machine: int8 everywhere takes 2.00x")
    assert choice.best.mode == "int8-weights"
    assert variant_name(run(project, graph, config)) == "pruned 50%, int8 weights"
    with pytest.raises(CompressError, match=r"epochs \(=1\): there is nothing to fine-tune\. Do not compute in int8"):
        run(project, graph, dataclasses.replace(config, epochs=1))


def timed(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Files with something in int8 take so much of float32's latency."""

    def times(files: list[Path], images: object, rounds: int, generator: np.random.Generator, runtime: Runtime) -> np.ndarray:
        quantized = [any(node.op_type == "QuantizeLinear" for node in onnx.load(file).graph.node) for file in files]
        return np.where(quantized, ratio, 1.0) * generator.normal(1, 1e-3, (rounds, len(files)))

    monkeypatch.setattr(place, "in_turns", times)


@needs_gcc
def test_a_choice_for_c_is_timed_and_asked_as_c_and_says_so(
    made: tuple[Project, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Weights that are only stored small are not tried, as C stores them in float32."""
    project, graph = made
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")  # so that no heading is wrapped
    levels: list[str] = []

    def times(files: list[Path], images: object, rounds: int, generator: np.random.Generator, runtime: Runtime) -> np.ndarray:
        levels.append(runtime.ready.keywords["level"])  # type: ignore[attr-defined]
        quantized = [any(node.op_type == "QuantizeLinear" for node in onnx.load(file).graph.node) for file in files]
        return np.where(quantized, 0.5, 1.0) * generator.normal(1, 1e-3, (rounds, len(files)))

    plain = choose_quantization(project, graph, QuantizeConfig(images=68, accept_unproved=True))
    monkeypatch.setattr(place, "in_turns", times)
    in_c = choose_quantization(project, graph, QuantizeConfig(images=68, accept_unproved=True, runtime="c"))
    assert in_c.path != plain.path
    assert in_c.manifest.config["runtime"] == "c" and "runtime" not in plain.manifest.config, "what older versions chose is found again"
    found = read_payload(in_c, Search)
    assert {one.mode for one in found.finalists} == {"float32", "static"} and found.best.mode == "static"
    assert found.runtime == "c" and found.verdict.endswith(f"This is the choice for C ({toolchain()['compiler']}).")
    assert levels[0] == "-O1" and levels[-1] == "-O3"
    taken = run(project, graph, QuantizeConfig(images=68, accept_unproved=True, runtime="c"))
    assert taken.manifest.metrics.choice.runtime == "c" and "latency of float32's, as C" in " ".join(artifact_text(taken).split())


def test_what_c_refuses_in_int8_is_named_and_stays_float32(made: tuple[Project, Artifact], tmp_path: Path) -> None:
    project, graph = made
    console = Silent()
    images = calibration_images(project, QuantizeConfig(images=64))[1]

    def refuses(file: Path) -> str:
        nodes = onnx.load(file).graph.node
        made_by = {name: node.op_type for node in nodes for name in node.output}
        odd = any(node.op_type == "Conv" and made_by.get(node.input[1]) == "DequantizeLinear" for node in nodes)
        return 'node "first" cannot be written as C: no' if odd else ""

    maker = Maker(dataclasses.replace(project, console=console), graph.payload, images, tmp_path, refuses)
    whole = Maker(project, graph.payload, images, tmp_path / "whole")
    left = [name for name in whole.groups if name not in maker.groups]
    assert "first layer" in left and maker.groups == ("linear at the end", "last layer")
    assert {f'quantize: {name} stays float32: node "first" cannot be written as C: no' for name in left} <= set(console.said)
    assert maker.others() == {}
    with pytest.raises(CompressError, match=r"model\.onnx: not at all"):
        Maker(project, graph.payload, images, tmp_path, lambda file: "not at all")
    with pytest.raises(CompressError, match="every group of nodes in int8: only float32"):
        Maker(project, graph.payload, images, tmp_path, lambda file: "" if file == graph.payload else "only float32")


def test_runtime_c_is_refused_where_nothing_is_timed_and_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match=r"runtime \(=c\) is what --mode auto times candidates in; static times none, leave it out"):
        QuantizeConfig(mode="static", runtime="c")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match=r"runtime \(=c\) needs a C compiler, and there is none here"):
        QuantizeConfig(runtime="c")


def test_so_few_images_prove_nothing_and_the_user_may_accept_that(made: tuple[Project, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    project, graph = made
    timed(monkeypatch, 0.5)
    strict, accepting = QuantizeConfig(images=66), QuantizeConfig(images=66, accept_unproved=True)
    kept, taken = (run(project, graph, config) for config in (strict, accepting))
    assert (variant_name(kept), kept.manifest.config["mode"]) == ("pruned 50%, fp32", "float32")
    assert kept.payload.read_bytes() == graph.payload.read_bytes()
    verdict = kept.manifest.metrics.choice.verdict
    assert verdict.startswith("Nothing in int8 is proved: ") and verdict.endswith("--accept-unproved computes it in int8.")
    assert "with 143 images" in verdict and "would tell" in verdict
    choice = taken.manifest.metrics.choice
    assert (choice.best.mode, choice.decided) == ("static", "point estimate")
    assert choice.verdict.endswith("that was accepted.")
    # What the images say is what they say of the file itself, and the bound is that of all who might have been asked.
    part, labels = project.data.validation, project.data.validation.labels
    answers = [logits(file, part.images).argmax(axis=1) for file in (graph.payload, taken.payload)]
    asked = sum(one.mode in ("int8-weights", "fp16-weights") or one.ratio < 0.98 for one in choice.finalists)
    by_hand = [paired_drop(labels, *answers, error=0.05 / count) for count in (asked, asked - 1)]  # one per tensor gains nothing
    assert (choice.best.drop, choice.best.images) == (pytest.approx(by_hand[0].value), 143)
    assert choice.best.bound in [pytest.approx(one.bound) for one in by_hand]


def test_settings_are_chosen_by_answers_on_training_images_that_did_not_calibrate(made: tuple[Project, Artifact]) -> None:
    project, graph = made
    indices, images = calibration_images(project, QuantizeConfig(images=512))
    nothing = Answers(project, graph.payload, indices, 0.3)
    assert nothing.moved(graph.payload) == 0
    assert len(nothing.images) == 512
    seen = {image.tobytes() for image in nothing.images}
    assert not seen & {image.tobytes() for image in images}
    assert seen <= {image.tobytes() for image in project.data.train.images}
    small = Answers(project, graph.payload, np.arange(len(project.data.train.labels)), 0.3)
    assert {image.tobytes() for image in small.images} <= {image.tobytes() for image in project.data.train.images}


def test_a_search_that_was_cut_short_is_not_taken_for_a_whole_one(made: tuple[Project, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    project, graph = made
    timed(monkeypatch, 0.5)
    config = QuantizeConfig(images=67)
    short, whole = dataclasses.replace(config, time_limit=0.01), dataclasses.replace(config, time_limit="1h")
    first = choose_quantization(project, graph, short)
    found = read_payload(first, Search)
    assert not found.complete and found.verdict.endswith("The search was cut short; with more time it may find a faster file.")
    assert choose_quantization(project, graph, short).path == first.path
    hour = choose_quantization(project, graph, whole)
    assert hour.path != first.path and read_payload(hour, Search).complete
    complete = choose_quantization(project, graph, config)
    assert complete.path not in (first.path, hour.path)
    # Once there is a whole one, it is taken however little time was given.
    assert choose_quantization(project, graph, short).path == complete.path
    with pytest.raises(
        CompressError, match=r"time_limit \(=soon\) must be a time above 0, such as 90s, 5m or 1h; a plain number is seconds"
    ):
        QuantizeConfig(time_limit="soon")


def test_too_few_calibration_images_are_refused_and_nothing_is_written(made: tuple[Project, Artifact], tmp_path: Path) -> None:
    project, graph = made
    with pytest.raises(CompressError, match=r"calibration \(=8 images\) must be at least 32"):
        run(project, graph, QuantizeConfig(mode="static", images=8), tmp_path / "out")
    assert not list(tmp_path.iterdir())
