"""What `compress report --ship` puts into the folder for the board, and when it refuses to. The file is a stand-in: nothing runs it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from c_folders import HEIGHT, WIDTH, net
from stand_ins import recorded, write_artifact

import compress
from compress.artifacts.artifact import Artifact, InputSpec, Manifest, sha256_of
from compress.artifacts.parts import Model
from compress.artifacts.payloads import read_results
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.results import Measurement, Result, write_results
from compress.benchmarks.verdict import Verdict
from compress.cli.tables import outcome_summary, outcome_text
from compress.errors import CompressError
from compress.stages.boards.memory import needs_of
from compress.stages.report import Outcome, newest_results, report

RESULT = Path(__file__).parents[1] / "artifacts" / "benchmark.json"


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """An exported graph, in ``runs`` of the working directory."""
    monkeypatch.chdir(tmp_path)
    return made_from("digits")


def made_from(source: str) -> Artifact:
    def make(folder: Path) -> Manifest:
        (folder / "model.onnx").write_bytes(b"net")
        (folder / "vectors.npz").write_bytes(b"vectors")
        model = Model(reference="k49", options={}, source=None)
        data = dataclasses.replace(recorded("digits"), source=source)
        about: dict[str, Any] = {"model": model, "input": InputSpec(), "classes": ("a", "b\x1b"), "config": {}, "data": data}
        return Manifest(kind="graph", stage="export", key="", **about)

    return write_artifact(Path("runs/k49/export/ab"), make)


def written(one: Path, **changes: Any) -> Path:
    """A benchmark of that file, far below it in ``runs``."""
    result: Result = read_results(RESULT)
    [row] = result.measurements
    row: Measurement = dataclasses.replace(row, path=str(one), **changes)
    target = Path("runs/k49/benchmark/cd/benchmark.json")
    write_results(dataclasses.replace(result, measurements=(row,)), target)
    return target


def shipped(file: Path, ship: str = "board", **limits: Any) -> Outcome:
    return report([file], Path("report"), limits, Path(ship))


def test_folder_for_the_board_holds_the_file_and_all_that_belongs_to_it(graph: Artifact) -> None:
    outcome = shipped(written(graph.payload, artifact=graph.manifest.hash), "new/board")
    board = Path("new/board")
    assert outcome.shipped == board
    assert sorted(path.name for path in board.iterdir()) == [
        "DATA.txt", "labels.txt", "model.onnx", "vectors.npz", "verdict.json", "verdict.txt",
    ]  # fmt: skip
    assert ((board / "model.onnx").read_bytes(), (board / "vectors.npz").read_bytes()) == (b"net", b"vectors")
    assert (board / "labels.txt").read_text() == "a\nb?\n"
    assert (board / "verdict.txt").read_text().splitlines()[0] == outcome.verdicts[0].headline
    assert outcome.verdicts[0].headline.endswith("The file: runs/k49/export/ab/model.onnx.")
    told = json.loads((board / "verdict.json").read_text())
    assert (told["verdict"]["ship"], told["verdict"]["decided"], told["variant"]["name"]) == ("fp32", "bound", "fp32")
    assert told["verdict"]["path"] == "runs/k49/export/ab/model.onnx" and told["machine"]["cpu"] == "Toy CPU"
    assert "CC BY 4.0" in (board / "DATA.txt").read_text() and "fingerprint" in (board / "DATA.txt").read_text()
    assert [path.name for path in Path("new").iterdir()] == ["board"], "nothing is left beside it"


def test_licence_files_beside_the_data_go_with_the_file(graph: Artifact, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "LICENSE.txt").write_text("mine")
    own = made_from(str(tmp_path / "mine"))
    shipped(written(own.payload, artifact=own.manifest.hash))
    assert Path("board/DATA-LICENSE.txt").read_text() == "mine"
    assert Path("board/DATA.txt").read_text().endswith("Its terms: DATA-LICENSE.txt.\n")
    (tmp_path / "mine" / "LICENSE.txt").unlink()
    shipped(written(own.payload, artifact=own.manifest.hash), "other")
    assert Path("other/DATA.txt").read_text().endswith("Its licence is not known to this toolkit; its terms go with the file.\n")


def test_a_file_of_another_tool_ships_by_its_hash_and_without_vectors(graph: Artifact) -> None:
    Path("net.onnx").write_bytes(b"net")
    shipped(written(Path("net.onnx"), artifact=sha256_of(Path("net.onnx"))))
    assert not Path("board/vectors.npz").exists()
    assert Path("board/labels.txt").read_text() == "あ\n|b|\n<c>\n"
    assert "What it was trained on is not known" in Path("board/DATA.txt").read_text()


def test_a_tflite_file_ships_where_it_is_the_fastest(graph: Artifact) -> None:
    Path("net.tflite").write_bytes(b"lite")
    outcome = shipped(written(Path("net.tflite"), artifact=sha256_of(Path("net.tflite")), runtime="litert"))
    assert Path("board/model.tflite").read_bytes() == b"lite" and not Path("board/model.onnx").exists()
    assert json.loads(Path("board/verdict.json").read_text())["verdict"]["runtime"] == "litert"
    assert outcome.verdicts[0].headline.startswith("Ship fp32 in LiteRT: nothing else was measured that ships.")
    assert outcome_text(outcome).endswith("Shipped: board; next: compress verify board/model.tflite")


def test_what_is_fast_as_c_ships_as_its_graph_and_the_next_step_is_named(graph: Artifact) -> None:
    outcome = shipped(written(graph.payload, artifact=graph.manifest.hash, runtime="c"))
    assert Path("board/model.onnx").read_bytes() == b"net"
    assert outcome_text(outcome).endswith("Shipped: board; next: compress export-c --onnx board/model.onnx")


def test_it_is_found_from_another_folder_too(graph: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = written(graph.payload, artifact=graph.manifest.hash).resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert shipped(file).shipped == Path("board") and Path("board/model.onnx").read_bytes() == b"net"


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_is_taken(graph: Artifact) -> None:
    file = written(graph.payload, artifact=graph.manifest.hash)
    Path("board").mkdir()
    shipped(file)
    before = sorted(Path("board").iterdir())
    with pytest.raises(CompressError, match=r"^ship \(=board\) exists and is not empty; name a new folder$"):
        shipped(file)
    assert sorted(Path("board").iterdir()) == before
    with pytest.raises(CompressError, match=r"ship \(=net\) exists and is not empty"):
        Path("net").write_text("a file")
        shipped(file, "net")
    with pytest.raises(CompressError, match=r"ship \(=two\) takes the verdict of one result, not of 2; name the one of the board"):
        report([file, file], Path("report"), {}, Path("two"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"artifact": "f00d"},
            r"path \(=runs/k49/export/ab/model.onnx\) is not the file that was measured; run `compress benchmark` again",
        ),
        (
            {"path": "runs/gone.onnx"},
            r"path \(=runs/gone.onnx\) of fp32 is not there any more; run `compress benchmark` again where it lies",
        ),
        ({"path": None}, r"results \(=.*benchmark.json\) do not say where fp32 lies; run `compress benchmark --force`, and report again"),
        ({"path": "/etc/hostname"}, r"path \(=/etc/hostname\) of fp32 is not there any more"),  # only an .onnx file is ever copied
    ],
)
def test_what_is_not_the_file_that_was_measured_is_refused_and_leaves_nothing(graph: Artifact, changes: Any, message: str) -> None:
    file = written(graph.payload, artifact=graph.manifest.hash)
    result = read_results(file)
    write_results(dataclasses.replace(result, measurements=(dataclasses.replace(result.measurements[0], **changes),)), file)
    with pytest.raises(CompressError, match=message):
        shipped(file)
    assert not Path("board").exists() and not list(Path().glob(".board*"))


def test_a_verdict_that_ships_nothing_is_refused(graph: Artifact) -> None:
    file = written(graph.payload, artifact=graph.manifest.hash)
    with pytest.raises(CompressError, match=r"ship \(=board\): there is nothing to ship. Ship nothing yet: no variant keeps the limits"):
        shipped(file, max_size=1)
    with pytest.raises((CompressError, BenchmarkError), match="there is no such file"):
        shipped(Path("none.json"))
    assert not Path("board").exists()


def test_a_board_that_is_too_small_is_a_limit_that_is_planned_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `needs_of` says of the file is enough, and a byte less is not; a file that cannot be C says why."""
    monkeypatch.chdir(tmp_path)
    path = net(Path("net.onnx"))
    needs = needs_of(path, "cortex-m4")
    assert needs.flash >= 3 * HEIGHT * WIDTH * 4, "the weights"
    file = written(path, artifact=sha256_of(path))

    def told(**limits: Any) -> Verdict:
        [verdict] = report([file], Path("report"), {"target": "cortex-m4", **limits}).verdicts
        return verdict

    assert told(max_ram=needs.ram, max_flash=f"{needs.flash}B").ship is not None
    for short in ({"max_ram": needs.ram - 1}, {"max_flash": needs.flash - 1}):
        verdict = told(**short)
        assert verdict.ship is None and "as C for cortex-m4, " in verdict.headline
    assert "as C for cortex-m4" in Path("report/report.md").read_text()
    odd = net(Path("odd.onnx"), odd="Sin")
    file = written(odd, artifact=sha256_of(odd))
    assert 'it cannot be C for cortex-m4 (node "the odd one" (Sin) cannot be written as C' in told(max_ram="1MB").headline
    with pytest.raises(CompressError, match=r'target \(="z80"\) must be a processor that C can be written for'):
        report([file], Path("report"), {"max_ram": "1MB", "target": "z80"})
    with pytest.raises(BenchmarkError, match=r"max_ram \(=lots\) must be a size above 0, such as 45kB or 0\.5MB"):
        report([file], Path("report"), {"max_ram": "lots"})


def of_machine(key: str, created: str, artifact: str, **machine: Any) -> Path:
    """A benchmark as the stage keeps it, made at a time and on a machine."""
    result: Result = read_results(RESULT)
    [row] = result.measurements
    changed = dataclasses.replace(
        result, created=created, machine={**result.machine, **machine}, measurements=(dataclasses.replace(row, artifact=artifact),)
    )

    def make(folder: Path) -> Manifest:
        write_results(changed, folder / "benchmark.json")
        about: dict[str, Any] = {"model": Model(reference="k49", options={}, source=None), "input": InputSpec(), "classes": ("a", "b")}
        return Manifest(kind="benchmark", stage="benchmark", key=key, created=created, config={}, data=recorded("digits"), **about)

    return write_artifact(Path("runs/k49/benchmark") / key, make).payload


def test_without_results_the_newest_of_each_machine_that_measured_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of_machine("a", "2026-01-01T00:00:00+00:00", "aa", board="pi4")
    old_board = of_machine("b", "2026-01-02T00:00:00+00:00", "aa", board="pi4")
    of_machine("c", "2026-01-03T00:00:00+00:00", "other", board="pi5")  # of other files
    here = of_machine("d", "2026-01-04T00:00:00+00:00", "aa")
    assert newest_results(Path("runs/k49")) == [here, old_board]
    outcome = report([here, old_board], Path("report"), {})
    assert outcome.across.startswith(f"{outcome.results[0].machine['cpu']}: ") and "pi4: " in outcome.across
    assert outcome.across in outcome_text(outcome) and outcome_summary(outcome)["across"] == outcome.across


def test_the_folder_of_a_benchmark_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = of_machine("a", "2026-01-01T00:00:00+00:00", "aa")
    assert compress.compare(file.parent, file) == compress.compare(file, file)


def test_a_benchmark_of_one_machine_is_reported_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of_machine("a", "2026-01-01T00:00:00+00:00", "aa")
    newest = of_machine("b", "2026-01-02T00:00:00+00:00", "aa")
    assert newest_results(Path("runs/k49")) == [newest]
    with pytest.raises(CompressError, match=rf"^runs/emnist has no benchmark yet; .* or name a benchmark.json, such as {newest}$"):
        newest_results(Path("runs/emnist"))
    assert report([newest], Path("report"), {}).across == ""
