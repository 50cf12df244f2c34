"""``compress page``: a folder that any host of files can serve, and in which the browser itself runs the network.

::

    index.html     the page: it draws, prepares and shows as that of `compress serve` does
    offline.js     has the browser keep all that for when the host cannot be reached
    models.json    what the files take and give, their classes, and how their training's pictures were drawn and resized
    models/        the files as they were, each with a name of its own
    runtime/       onnxruntime-web, two files
    licences/      of the runtime, and what lies beside the models about their data
    README.md      how to put it somewhere

Refused before anything is fetched: a folder that is there, unless it is such a page and may be replaced; a network that was not exported; a
file of another tool; one without classes.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...artifacts.artifact import MANIFEST, find_artifacts, read_artifact
from ...artifacts.project import GRAPH_STAGES, Console
from ...benchmarks.errors import BenchmarkError
from ...benchmarks.runtimes import PROBABILITIES, Candidate, about_file, onnx_session
from ...errors import CompressError, first_line, onnxruntime_errors, shown
from ...files import claimed, publish, sync
from ..drawing import habits_beside
from ..settings import Source, model_in
from ..worker import load
from .html import browser_page, offline_script
from .runtime import RUNTIME, registry_of, runtime_files

PAGE, MODELS, KEEPER, SCHEMA, VERSION = "index.html", "models.json", "offline.js", "compress-page", 1
INPUTS = ("uint8", "float32")
NOTICES = ("DATA*", "LICEN[CS]E*", "NOTICE*", "COPYING*")
README = Path(__file__).with_name("README.md")
LICENCE = Path(__file__).with_name("onnxruntime.txt")


@dataclass(frozen=True, kw_only=True)
class Paged:
    """What was written: where, which models, and bytes in all."""

    folder: Path
    models: tuple[str, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class _File:
    """A model's file, its place in the folder, and what the page is to know of it."""

    source: Path
    content: bytes
    about: dict[str, Any]


def newest_of(name: str, runs: Path) -> str:
    """``name`` itself, or where nothing is called so the newest graph of that model in ``runs``: that of `compress page k49`."""
    before, separator, after = name.partition("=")
    path = after if separator and not Path(name).exists() else name
    folder = runs / path
    if Path(path).exists() or not path:
        return name
    if Path(path).name != path or not folder.is_dir():
        told = f"source (={shown(path, 160)}) is neither a file nor a folder, nor a model in {runs}"
        raise CompressError(f"{told}; name an .onnx file, an artifact, a shipped folder, or such a model")
    found = [one for stage in GRAPH_STAGES for one in find_artifacts(folder / stage)]
    if not found:
        raise CompressError(
            f"{folder} has no file yet (looked in {', '.join(GRAPH_STAGES)}); run `compress export-onnx --model {path}` first"
        )
    newest = max(found, key=lambda one: one.manifest.created)
    return f"{before if path == after else path}={newest.path}"


def write_page(sources: Sequence[Source], target: Path, console: Console, registry: str | None = None, force: bool = False) -> Paged:
    """Write the folder ``target``, all of it or nothing.

    ``registry``: where the runtime comes from if it is not here yet. ``force``: a page that is there already is replaced.
    """
    if registry is not None:
        registry_of(registry)  # which refuses what is no address
    _refuse_taken(target, force)
    files = [_read(source) for source in sources]
    runtime = runtime_files(registry, console)
    with claimed(target, lambda: console.say(f"waits for another process that makes {target}")) as folder:
        _refuse_taken(target, force)
        for path, content in _with_keeper(_contents(files, runtime)):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
            sync(folder / path)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        publish(folder, target)
    return Paged(folder=target, models=tuple(one.name for one in sources), size=size)


def _with_keeper(contents: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The same, and last the script that has the browser keep what it reads of them."""
    names, version = ["./"], hashlib.sha256()
    for path, content in contents:
        yield path, content
        if path.partition("/")[0] in (PAGE, MODELS, "models", "runtime"):
            names.append(path)
            version.update(content)
    yield KEEPER, offline_script(names, version.hexdigest()[:16]).encode()


def _contents(files: Sequence[_File], runtime: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    about = {"schema": SCHEMA, "version": VERSION, "runtime": RUNTIME.called, "models": [one.about for one in files]}
    yield PAGE, browser_page().encode()
    yield MODELS, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()
    yield "README.md", README.read_bytes()
    for path in runtime:
        yield f"runtime/{path.name}", path.read_bytes()
    for one in files:
        yield one.about["file"], one.content
    import onnxruntime

    yield "licences/onnxruntime-web.txt", LICENCE.read_bytes()
    notices = Path(onnxruntime.__file__).with_name("ThirdPartyNotices.txt")
    if notices.is_file():
        yield f"licences/onnxruntime-{notices.name}", notices.read_bytes()
    for one in files:
        for path in sorted({path for pattern in NOTICES for path in one.source.parent.glob(pattern) if path.is_file()}):
            yield f"licences/{one.about['name']}-{path.name}", path.read_bytes()


def _refuse_taken(target: Path, force: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        about = json.loads((target / MODELS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        about = None
    ours = isinstance(about, dict) and about.get("schema") == SCHEMA
    if not ours:
        raise CompressError(f"out (={target}) exists and is no page that was made here; name another --out or move it away")
    if not force:
        raise CompressError(f"out (={target}) exists; replace that page with --force, or name another --out")


def _read(source: Source) -> _File:
    """The file that ``source`` names, and what the page is to know of it."""
    path = Path(source.path)
    file = _file_of(path, source.name)
    try:
        entry, metadata = about_file(file)
        if not (path / MANIFEST).is_file() and not {"compress.classes", "compress.input"} <= metadata.keys():
            raise CompressError(
                f"{path} is of another tool, and does not say its classes; take it in with `compress quantize --onnx` first"
            )
        model = load(source)
        outputs = [one.name for one in onnx_session(Candidate(name=source.name, path=file), 1).get_outputs()]
    except BenchmarkError as error:
        raise CompressError(f"{path}: {error}") from error
    except onnxruntime_errors() as error:
        raise CompressError(f"{path} is no ONNX file that onnxruntime can load: {first_line(error)}") from error
    kind = entry.dtype.__name__
    if kind not in INPUTS or model.spec.pixels:
        raise CompressError(f"{path} takes {kind} that no page draws; export it with --input uint8")
    channels, height, width = model.spec.shape
    resize, content = model.spec.resized, file.read_bytes()
    about = {
        "name": source.name,
        "file": f"models/{source.name}.onnx",
        "hash": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "shape": (height, width, channels),
        "classes": list(model.classes),
        "input": {"name": entry.name, "type": kind, "last": entry.last},
        "outputs": {"logits": outputs[0]} | ({"probabilities": PROBABILITIES} if PROBABILITIES in outputs[1:] else {}),
        "resize": {"way": resize.way, "crop": resize.crop, "interpolation": resize.interpolation},
        "drawing": msgspec.to_builtins(habits_beside(file, channels)),
    }
    return _File(source=file, content=content, about=about)


def _file_of(path: Path, name: str) -> Path:
    if not (path / MANIFEST).is_file():
        file = model_in(path)
        if file.suffix == ".tflite":
            raise CompressError(f"{name} (={shown(file, 120)}) is for LiteRT, and a page runs graphs; name the .onnx file it was made of")
        return file
    artifact = read_artifact(path)
    if (kind := artifact.manifest.kind) != "graph":
        then = "`compress export-onnx --from` it first" if kind == "network" else "name one of export or quantize"
        raise CompressError(f"{name} (={shown(path, 120)}) is of kind {kind}, and a page runs graphs; {then}")
    return artifact.payload
