"""The stage ``export-c``: a graph becomes C that needs nothing, in a folder that proves itself.

::

    folder/
        NAME.h, NAME.c, kernels.h    the network, see `codegen.program`
        test.c                       its test vectors: "N of M", exit code 0 or 1
        example.c                    a PGM or PPM file in, label and probability out; where the network takes such pictures
        Makefile, CMakeLists.txt     with the flags of the target
        README.md                    one page: memory, flags, how to call it
        c.json                       what was made of what, see `record`

What is compared are the test vectors beside the graph; of a file without any, or with those of another, what ONNX Runtime answers to random
pixels. Refused, before anything is written: a graph that cannot be written as C, by the name of the node; a folder that is something else.
"""

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from ...artifacts.artifact import PAYLOAD, find_artifacts, sha256_of
from ...artifacts.context import Context
from ...artifacts.model_reference import ModelReference
from ...artifacts.project import GRAPH_STAGES, described, stage_key, variant_name
from ...artifacts.recipe import Recipe
from ...artifacts.records import component, write_record
from ...artifacts.vectors import TOLERANCE, VECTORS, read_vectors
from ...benchmarks.inputs import Taken
from ...benchmarks.runtimes import Candidate, about_file, onnx_session
from ...codegen.target import target_of
from ...errors import ArtifactError, CompressError, need_file, onnxruntime_errors, shown
from ...files import claimed, publish
from .compilers import int8_may_be_slow
from .record import IDENTIFIER, RECORD, Layer, Made, Port, changed, read_made
from .texts import Taking, Tests, texts

RANDOM_IMAGES, MOST_VALUES = 4, 2**20  # pixels of all test images together
SLOW = "measure both (`compress benchmark --runtime c`), or let that choose (`compress quantize --runtime c`); int8 takes less memory"
TAKEN_NAMES = ("test", "example", "kernels")  # of files that lie there too


@dataclass(frozen=True, kw_only=True)
class ExportCConfig:
    """``target``: where it will run, see :mod:`compress.codegen.target`. ``name`` of the files and functions; "" is that of the model."""

    target: str = "native"
    name: Annotated[str, Meta(pattern=f"{IDENTIFIER}|^$", description="letters, digits and _, no digit first")] = ""

    def __post_init__(self) -> None:
        target_of(self.target)
        if self.name.lower() in TAKEN_NAMES:
            raise CompressError(f'name (="{self.name}") must not be {", ".join(TAKEN_NAMES)}; those files lie there too')


@dataclass(frozen=True, kw_only=True)
class ExportedC:
    """The folder with the C, and what it is."""

    folder: Path
    made: Made


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The graph: its ``file``, the folder ``runs/NAME`` that what is made of it goes to, its hash as a parent, what it is in words, and
    whether it answers with ``classes``."""

    file: Path
    folder: Path
    content: str
    told: str
    classes: bool = True


def export_c(context: Context, recipe: Recipe, config: ExportCConfig, onnx: Path | None = None) -> ExportedC:
    """Write the graph that ``context`` names, or else the newest, or the file ``onnx``, as C."""
    from ...codegen.program import generate
    from ...graphs.file import read_onnx

    source = _of_file(context, onnx) if onnx is not None else _of_artifact(context, recipe)
    name = config.name or _name_of(source.folder.name)
    key = stage_key("export-c", dataclasses.replace(config, name=name), parent=source.content)
    target = context.out or source.folder / "export-c" / key[:12]
    there = _there(target, key, context.force)
    model, processor = read_onnx(source.file), target_of(config.target)
    program = generate(model, name=name, target=processor)
    entry, int8 = _entry(context, source.file, onnx is not None), any("QuantizeLinear" in node.op_type for node in model.graph.node)
    slow = int8 and int8_may_be_slow(processor)
    if slow:
        context.console.say(f"export-c: {config.target} has no dot product of int8, so float32 may be faster there; {SLOW}")
    tests = _tests(source.file, entry, "quantize" if int8 else "export")
    makers = {output: node.op_type for node in model.graph.node for output in node.output}
    probable = makers.get(program.outputs[0].name) in ("Softmax", "Sigmoid")
    taking = Taking(last=entry.last, mean=entry.mean, std=entry.std, classes=source.classes, probable=probable)
    made = Made(
        key=key,
        name=name,
        target=config.target,
        origin=source.told,
        sha256=sha256_of(source.file),
        flash_bytes=program.flash_bytes,
        arena_bytes=program.arena_bytes,
        input=Port(**vars(program.input)),
        outputs=tuple(Port(**vars(one)) for one in program.outputs),
        layers=tuple(Layer(**vars(one)) for one in program.layers),
        images=len(tests.images),
        files={},
    )
    about = texts(made, tests, taking, SLOW if slow else "")
    files = {file: text.encode() for file, text in (program.files | about).items()}
    made = dataclasses.replace(made, files={file: hashlib.sha256(files[file]).hexdigest() for file in sorted(files)})
    if there is not None and _is_same(target, there, made):
        context.console.say(f"export-c: unchanged, {target}")
        return ExportedC(folder=target, made=made)
    with claimed(target, lambda: context.console.say(f"export-c: another process makes {target}; waits for it")) as folder:
        context.console.say(f"export-c: {target}")
        for file, content in files.items():
            (folder / file).write_bytes(content)
        write_record(folder / RECORD, made)
        publish(folder, target)
    return ExportedC(folder=target, made=made)


def _there(target: Path, key: str, force: bool) -> Made | None:
    """What was made there before of the same; None where nothing is, or it is to be replaced."""
    if (target / RECORD).is_file():
        there = None if force else read_made(target)
        if there is not None and there.key != key:
            raise CompressError(f"out (={target}) holds other C; --force replaces it")
        return there
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CompressError(f"out (={target}) exists and was not made by export-c; name a new folder")
    return None


def _is_same(target: Path, there: Made, made: Made) -> bool:
    """Whether nothing is to be written; raises CompressError where something of the user's own would be lost."""
    edited = changed(target, there)
    if there == made and not edited:
        return True
    if own := [*edited, *sorted({path.name for path in target.iterdir()} - {RECORD, *there.files})]:
        raise CompressError(
            f"out (={target}) holds {shown(own[0])}, which export-c did not make so; name a new folder, or --force replaces all"
        )
    return False


def _name_of(folder: str) -> str:
    """A C identifier like ``net_make_net`` for ``net-make_net``."""
    name = re.sub("[^A-Za-z0-9_]", "_", folder)
    return name if re.match("[A-Za-z_]", name) and name.lower() not in TAKEN_NAMES else f"net_{name}"


def _of_file(context: Context, path: Path) -> _Source:
    if context.starts_from_parent or context.model is not None:
        raise CompressError(f"onnx (={path}) and --from or --model exclude each other; leave one of them out")
    need_file(path, f"onnx (={path})")
    component(path.stem, "the name of the file")
    digest = sha256_of(path)
    return _Source(file=path, folder=context.runs / path.stem, content=digest, told=path.name)


def _of_artifact(context: Context, recipe: Recipe) -> _Source:
    """The graph that is named, or the newest export of the network that is named, or else the newest graph of the model."""
    parent, folder = context.named_parent(), context.folder(recipe)
    if parent is None:
        found = [graph for stage in GRAPH_STAGES for graph in find_artifacts(folder / stage)]
        if not found:
            raise ArtifactError(f"{folder} has no graph yet; run `compress export-onnx` first, or name an ONNX file with --onnx")
        parent = max(found, key=lambda graph: graph.manifest.created)
    about = parent.manifest
    model = ModelReference.of(about.model)
    folder = context.runs / (model.slug if model else str(about.model.file))
    if about.kind == "network":
        exports = [graph for graph in find_artifacts(folder / "export") if graph.manifest.parent == about.hash]
        if not exports:
            raise ArtifactError(f"{parent.path} has no export in {folder} yet; run `compress export-onnx --from {parent.path}` first")
        parent = exports[0]
    elif about.kind != "graph":
        raise ArtifactError(f"{parent.path} holds a {about.kind} (stage {about.stage}), but a graph or a network is needed here")
    context.console.say(f"export-c: from {described(parent)}")
    told = f"`{folder.name}` ({variant_name(parent)})"
    return _Source(file=parent.payload, folder=folder, content=parent.content, told=told, classes=bool(about.classes))


def _entry(context: Context, file: Path, foreign: bool) -> Taken:
    """What the graph takes. One that another tool wrote was normalised as its maker says."""
    try:
        entry, _ = about_file(file)
    except onnxruntime_errors() as error:
        raise CompressError(f"{file} is no ONNX file that onnxruntime can load: {str(error).splitlines()[0]}") from error
    return dataclasses.replace(entry, mean=context.mean or entry.mean, std=context.std or entry.std) if foreign else entry


def _tests(file: Path, entry: Taken, stage: str) -> Tests:
    """The vectors beside the graph where they are its own, else random pixels, ONNX Runtime's answers, and the tolerance of ``stage``."""
    most = max(1, MOST_VALUES // int(np.prod(entry.shape)))
    if (path := file.with_name(VECTORS)).is_file() and file.name == PAYLOAD["graph"]:
        vectors = read_vectors(path)
        if vectors.model == sha256_of(file):
            images, logits = vectors.images[:most], vectors.logits[:most]
            return Tests(
                images=entry.fed(images), expected=logits, tolerance=vectors.tolerance, told=f"{len(images)} images of its test vectors"
            )
    count = min(most, RANDOM_IMAGES)
    images = entry.fed(np.random.default_rng(0).integers(0, 256, (count, *entry.shape), np.uint8))
    session = onnx_session(Candidate(name=file.stem, path=file), 1)
    output = session.get_outputs()[0].name
    found = np.concatenate([session.run([output], {entry.name: one[None]})[0].reshape(1, -1) for one in images])
    allowed = TOLERANCE[stage] * float(np.abs(found).max())
    told = f"{count} images of random pixels, as ONNX Runtime answers them"
    return Tests(images=images, expected=found.astype(np.float32), tolerance=allowed, told=told)
