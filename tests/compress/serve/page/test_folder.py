"""The folder and what it is made of: the runtime of a registry on the loopback by its hash, all of it or nothing, one line for mistakes."""

import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from c_folders import CLASSES as NAMES
from c_folders import graph_artifact
from served import CLASSES, write_model
from stand_ins import Commands, Silent

import compress.serve.page.folder as page
from compress.artifacts.parts import OwnScore
from compress.artifacts.project import GRAPH_STAGES
from compress.errors import CompressError
from compress.serve.drawing import USUAL
from compress.serve.page.folder import newest_of, write_page
from compress.serve.page.runtime import RUNTIME, Package, registry_of, runtime_files
from compress.serve.settings import sources_of
from compress.train.errors import TrainError

WEIGHTS = Path(page.__file__).parents[2] / "weights"
CONTENTS = {"ort.wasm.bundle.min.js": b"export {};", "ort-wasm-simd-threaded.wasm": b"\0asm"}
PLACES = {name: place for place, name, _ in RUNTIME.files}


def packed() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in {**CONTENTS, "other.map": b"0" * 1000}.items():
            entry = tarfile.TarInfo(PLACES.get(name, f"package/dist/{name}"))
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


ARCHIVE = packed()
SMALL = Package(
    name=RUNTIME.name,
    version=RUNTIME.version,
    sha256=hashlib.sha256(ARCHIVE).hexdigest(),
    files=tuple((PLACES[name], name, hashlib.sha256(content).hexdigest()) for name, content in CONTENTS.items()),
)


class Registry(ThreadingHTTPServer):
    """Has one package; notes what is asked for."""

    asked: list[str]
    content = ARCHIVE

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/npm"


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path != f"/npm/{RUNTIME.name}/-/{RUNTIME.called}.tgz":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(page, "runtime_files", partial(runtime_files, package=SMALL))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "compress-edge" / "npm"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    with Registry(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{running.address}/")
        yield running
        running.shutdown()
        thread.join()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_folder_holds_what_a_browser_needs_and_says_what_it_is(registry: Registry, run: Commands, cache: Path, tmp_path: Path) -> None:
    shipped = write_model(tmp_path / "board" / "k49" / "model.onnx", named=True)
    (shipped.parent / "DATA.txt").write_text("made from pictures")
    other = write_model(tmp_path / "colours.onnx", channels=3)
    told = run.done("page", "board/k49", f"other={other}", "--out", "site")
    found = files_in(tmp_path / "site")
    assert told == {"folder": "site", "models": ["k49", "other"], "size": sum(map(len, found.values()))}
    assert found["models/k49.onnx"] == shipped.read_bytes() and found["models/other.onnx"] == other.read_bytes()
    assert {name: found[f"runtime/{name}"] for name in CONTENTS} == CONTENTS
    assert found["licences/k49-DATA.txt"] == b"made from pictures"
    assert b"MIT License" in found["licences/onnxruntime-web.txt"] and b"Microsoft" in found["licences/onnxruntime-web.txt"]
    assert b"python -m http.server" in found["README.md"]
    kept = json.loads(re.findall(rb"FILES = (.*);\n", found["offline.js"])[0])
    assert set(kept) == {"./", *(name for name in found if name not in ("README.md", "offline.js") and not name.startswith("licences/"))}
    first, second = json.loads(found["models.json"])["models"]
    assert first["hash"] == hashlib.sha256(shipped.read_bytes()).hexdigest() and first["size"] == len(shipped.read_bytes())
    assert first["shape"] == [4, 4, 1] and second["shape"] == [4, 4, 3] and first["classes"] == list(CLASSES)
    assert first["input"] == {"name": "images", "type": "uint8", "last": False} and first["outputs"] == {"logits": "logits"}
    assert first["resize"] == {"way": "stretch", "crop": 1.0, "interpolation": "bilinear"} and first["drawing"]["ink"] == "light"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board", "cache", "colours.onnx", "site"]
    assert registry.asked == [f"/npm/onnxruntime-web/-/{RUNTIME.called}.tgz"]
    assert {path.name for path in cache.rglob("*") if path.is_file()} == set(CONTENTS), "of the package only what is needed is kept"


def test_what_was_fetched_once_needs_no_network_and_is_looked_at_again(
    registry: Registry, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runtime_files(registry.address, Silent(), SMALL)
    assert runtime_files("http://127.0.0.1:9", Silent(), SMALL) == first and len(registry.asked) == 1
    first[1].write_bytes(b"\0asm and more")
    assert [path.read_bytes() for path in runtime_files(registry.address, Silent(), SMALL)] == list(CONTENTS.values())
    assert len(registry.asked) == 2
    for path in first:
        path.unlink()
    (cache / f"{RUNTIME.called}.tgz").write_bytes(ARCHIVE)
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    assert runtime_files(None, Silent(), SMALL) == first, "put there by hand"


def test_a_page_is_replaced_only_where_that_is_said(registry: Registry, run: Commands, tmp_path: Path) -> None:
    write_model(tmp_path / "a.onnx")
    run.done("page", "a.onnx")
    before = files_in(tmp_path / "page")
    assert run("page", "b=a.onnx")[::2] == (2, "compress: out (=page) exists; replace that page with --force, or name another --out\n")
    assert files_in(tmp_path / "page") == before
    assert run.done("page", "b=a.onnx", "--force")["models"] == ["b"]
    after = files_in(tmp_path / "page")
    assert "models/a.onnx" not in after and after["offline.js"].partition(b",")[2] != before["offline.js"].partition(b",")[2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "models.json").write_text("[1]")
    for given in (["--out", "mine"], ["--out", "mine", "--force"], ["--out", "a.onnx", "--force"]):
        code, _, told = run("page", "a.onnx", *given)
        assert code == 2 and "exists and is no page that was made here; name another --out or move it away" in told
    assert files_in(tmp_path / "mine") == {"models.json": b"[1]"}


def test_a_wrong_package_or_none_is_one_line_and_leaves_nothing(registry: Registry, run: Commands, cache: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "a.onnx")
    registry.content = ARCHIVE[:-1] + b"x"
    code, _, told = run("page", "a.onnx")
    assert code == 2 and told.count("\n") == 2 and f"came with sha256 {hashlib.sha256(registry.content).hexdigest()}" in told
    code, _, told = run("page", "a.onnx", "--registry", f"{registry.address}/elsewhere")
    assert code == 2 and "HTTP Error 404" in told
    registry.server_close()
    registry.shutdown()
    code, _, told = run("page", "a.onnx")
    assert code == 2 and f"{RUNTIME.called}.tgz could not be downloaded" in told
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("a.onnx", "cache")] == [] and not list(cache.iterdir())


def test_a_full_disk_leaves_no_half_of_a_folder(registry: Registry, run: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_model(tmp_path / "a.onnx")

    def full(path: Path) -> None:
        if path.name == "models.json":
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(page, "sync", full)
    code, _, told = run("page", "a.onnx")
    assert code == 2 and "No space left on device; make room" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "cache"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["nothing"], "source (=nothing) is neither a file nor a folder, nor a model in runs; name an .onnx file, an artifact, a shipped"),
        (
            ["foreign.onnx"],
            "is of another tool, and does not say its classes; take it in with `compress quantize --onnx` first",
        ),
        (["broken.onnx"], "is no ONNX file that onnxruntime can load"),
        (["halves.onnx"], "takes float16 that no page draws; export it with --input uint8"),
        (["a.onnx", "--registry", "ftp://there"], "registry (=ftp://there) must be an address of http or https"),
        (["a.onnx", "a.onnx"], "name (=a) is that of"),
        ([], "sources: name at least one: an .onnx file, an artifact, or a folder"),
    ],
)
def test_what_no_page_can_be_made_of_is_one_line_and_nothing_is_fetched(
    given: list[str], line: str, registry: Registry, run: Commands
) -> None:
    write_model(Path("a.onnx"))
    write_model(Path("foreign.onnx"), named=False)
    Path("broken.onnx").write_bytes(Path("a.onnx").read_bytes()[:100])
    halves: Any = onnx.load(write_model(Path("halves.onnx")))
    halves.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(halves, "halves.onnx")
    code, out, told = run("page", *given)
    assert (code, out) == (2, "") and line in told and told.count("\n") == 1
    assert registry.asked == [] and not Path("page").exists()


def test_a_model_of_other_runs_is_found_from_the_command_line(registry: Registry, run: Commands, tmp_path: Path) -> None:
    (tmp_path / "other" / "k49").mkdir(parents=True)
    code, _, told = run("page", "k49", "--runs", "other")
    assert code == 2 and "other/k49 has no file yet" in told


def test_a_model_is_named_by_its_runs(tmp_path: Path) -> None:
    made = graph_artifact(tmp_path / "runs", "export")
    assert newest_of("k49", tmp_path / "runs") == f"k49={made.path}"
    newer = graph_artifact(tmp_path / "runs", GRAPH_STAGES[0])
    assert newest_of("k49", tmp_path / "runs") == f"k49={newer.path}" and newest_of("mine=k49", tmp_path / "runs") == f"mine={newer.path}"
    for name in ("", str(made.path), f"a={made.path}"):
        assert newest_of(name, tmp_path / "runs") == name
    for name in ("emnist", "../runs/k49x", "a=emnist"):
        with pytest.raises(CompressError, match=r"is neither a file nor a folder, nor a model in .*runs; name an \.onnx file"):
            newest_of(name, tmp_path / "runs")
    (tmp_path / "runs" / "emnist").mkdir()
    with pytest.raises(CompressError, match=r"emnist has no file yet .*; run `compress export-onnx --model emnist` first"):
        newest_of("emnist", tmp_path / "runs")
    (tmp_path / "k49").mkdir()
    assert newest_of("k49", tmp_path / "runs") == "k49", "what is there is meant"


def test_an_artifact_brings_its_classes_and_how_it_was_drawn(registry: Registry, tmp_path: Path) -> None:
    made = graph_artifact(tmp_path / "runs", end="both")
    assert write_page(sources_of([f"k49={made.path}"]), tmp_path / "page", Silent()).models == ("k49",)
    [about] = json.loads((tmp_path / "page" / "models.json").read_text(encoding="utf-8"))["models"]
    assert about["classes"] == list(NAMES) and about["shape"] == [5, 7, 1] and about["drawing"] == msgspec.to_builtins(USUAL)
    assert about["outputs"] == {"logits": "logits", "probabilities": "probabilities"}


def test_an_artifact_that_is_no_classifier_or_no_graph_is_refused(registry: Registry, tmp_path: Path) -> None:
    scored = graph_artifact(tmp_path / "runs", task=OwnScore(name="iou", source="a" * 64))
    with pytest.raises(CompressError, match="holds no classifier"):
        write_page(sources_of([scored.path]), tmp_path / "page", Silent())
    network = WEIGHTS / "emnist"
    with pytest.raises(CompressError, match="is of kind network, and a page runs graphs; `compress export-onnx --from` it first"):
        write_page(sources_of([network]), tmp_path / "page", Silent())
    (lite := tmp_path / "lite").mkdir()
    with pytest.raises(CompressError, match=r"source \(=.*lite\) has no model.onnx or model.tflite; name an .onnx file, an artifact, or"):
        write_page(sources_of([lite]), tmp_path / "page", Silent())
    (lite / "model.tflite").write_bytes(b"lite")
    for source in (lite, lite / "model.tflite"):
        with pytest.raises(CompressError, match=r"lite \(=.*model.tflite\) is for LiteRT, and a page runs graphs; name the .onnx file"):
            write_page(sources_of([source]), tmp_path / "page", Silent())
    assert registry.asked == []


def test_the_registry_is_that_of_the_option_of_the_variable_or_of_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (npm := tmp_path / "npm").write_text('#!/bin/sh\n[ "$*" = "config get registry" ] && echo http://of-npm/\n')
    npm.chmod(0o755)
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert registry_of(None) == "http://of-npm"
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://mirror:4873/")
    assert registry_of(None) == "http://mirror:4873" and registry_of("https://other/npm/") == "https://other/npm"
    for odd in ("file:///etc", "npm.example.org", "https://a?b=c", "http://a b"):
        with pytest.raises(CompressError, match=r"registry \(=.*\) must be an address of http or https, such as https://npm"):
            registry_of(odd)
    assert np.array([len(one[2]) for one in RUNTIME.files]).tolist() == [64, 64] and len(RUNTIME.sha256) == 64


@pytest.mark.parametrize("npm", [None, "#!/bin/sh\nexit 1\n"])
def test_where_nobody_knows_the_registry_it_is_said_how_to_name_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, npm: str | None
) -> None:
    if npm is not None:
        (tmp_path / "npm").write_text(npm)
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.delenv("NPM_CONFIG_REGISTRY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressError, match=r"registry is not known; name one with --registry or NPM_CONFIG_REGISTRY, or install npm"):
        registry_of(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(CompressError, match="registry is not known"):
        runtime_files(None, Silent(), SMALL)
    assert not (tmp_path / "cache").exists()


def test_what_is_fetched_is_known_by_its_hash(registry: Registry) -> None:
    with pytest.raises(TrainError, match=f"came with sha256 {SMALL.sha256}, expected {RUNTIME.sha256}"):
        runtime_files(registry.address, Silent())
