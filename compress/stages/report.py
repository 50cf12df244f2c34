"""The stage ``report``: which variant to ship and why, from the results of benchmarks; and that variant in a folder for the board.

::

    folder/
        model.onnx     the file that ships, as it was measured; model.tflite where it is one
        vectors.npz    images and the logits expected of them, for `compress verify folder`; where the file came with some
        labels.txt     a class per line, where there are classes
        verdict.txt    why this one; verdict.json: the same for programs, with the figures of its row
        DATA.txt       what it was made from, and that data's licence where it is known; with the data folder's own LICENSE and NOTICE

Loads no torch. Refused: a folder that is not empty, several results, a verdict that ships nothing, a file that is not the one measured.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..artifacts.artifact import MANIFEST, PAYLOAD, Artifact, Kind, find_artifacts, read_artifact, sha256_of
from ..artifacts.payloads import read_results, read_scored
from ..artifacts.records import checked
from ..artifacts.vectors import VECTORS
from ..benchmarks.errors import BenchmarkError
from ..benchmarks.formats import printable
from ..benchmarks.limits import Limits, Needs
from ..benchmarks.machine import which
from ..benchmarks.page.across import across
from ..benchmarks.report import write_report
from ..benchmarks.results import Measurement, Result
from ..benchmarks.tables import plain
from ..benchmarks.verdict import Verdict
from ..codegen.target import target_of
from ..errors import CompressError, shown

# What whoever passes on a network trained on data of this name has to know.
KUZUSHIJI = "KMNIST dataset, created by CODH, from the Kuzushiji dataset of NIJL and others, doi:10.20676/00000341"
LICENCES = {
    "digits": "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI Machine Learning Repository): CC BY 4.0.",
    "k49": f"Kuzushiji-49 ({KUZUSHIJI}): CC BY-SA 4.0.",
    "kmnist": f"Kuzushiji-MNIST ({KUZUSHIJI}): CC BY-SA 4.0.",
    "emnist": "EMNIST (Cohen et al. 2017, arXiv:1702.05373), from NIST Special Database 19; no licence is stated.",
}
KINDS: Mapping[str, Kind] = {".onnx": "graph", ".tflite": "litert"}
TFLITE = "a .tflite file is not planned as C, its .onnx file is"
LICENCE_FILES = ("LICEN[CS]E*", "NOTICE*", "COPYING*")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a report says: one result and one verdict per machine, and where its files lie; ``shipped``: the folder for the board.
    ``across``: what ships on each of several machines, in a sentence."""

    folder: Path
    results: tuple[Result, ...]
    verdicts: tuple[Verdict, ...]
    shipped: Path | None = None
    across: str = ""

    @property
    def next_step(self) -> str:
        """The command that goes on from what was shipped: its proof, or its C."""
        assert self.shipped is not None
        runtime = self.verdicts[0].runtime
        file = self.shipped / PAYLOAD["litert" if runtime == "litert" else "graph"]
        proved = self.shipped if (self.shipped / VECTORS).is_file() else file
        return f"compress export-c --onnx {file}" if runtime == "c" else f"compress verify {proved}"


def report(files: Sequence[Path], folder: Path, limits: Mapping[str, Any], ship: Path | None = None) -> Outcome:
    """Write the report of benchmark results into ``folder``; ``limits`` are those fields of :class:`Limits` that were given.

    ``ship``: a new or empty folder, into which the file that the verdict names is copied with all that belongs to it.
    """
    allowed = checked(Limits, limits, "[report]")
    target_of(allowed.target)
    if ship is not None and ship.exists() and (not ship.is_dir() or any(ship.iterdir())):
        raise CompressError(f"ship (={ship}) exists and is not empty; name a new folder")
    if ship is not None and len(files) != 1:
        raise CompressError(f"ship (={ship}) takes the verdict of one result, not of {len(files)}; name the one of the board's machine")
    results = tuple(read_scored(path) for path in files)
    needs = [needs_of_files(path, result, allowed) for path, result in zip(files, results, strict=True)]
    verdicts = write_report(results, folder, allowed, needs)
    if ship is not None:
        _ship(files[0], results[0], verdicts[0], ship)
    side = across(results, verdicts)
    return Outcome(folder=folder, results=results, verdicts=verdicts, shipped=ship, across=side.sentence if side else "")


def needs_of_files(file: Path, result: Result, limits: Limits) -> dict[str, Needs | str]:
    """What each file that a verdict may choose takes as C for the target of ``limits``, or why it cannot be, by its hash; nothing without
    such limits.

    ``file``: the result's. Raises CompressError where a file is not there any more, or not the one that was measured.
    """
    if not limits.memory:
        return {}
    from .boards.memory import needs_of

    found: dict[str, Needs | str] = {}
    for one in result.measurements:
        if one.may_ship and one.artifact not in found:
            path, _ = _measured(file, one)
            try:
                found[one.artifact] = TFLITE if one.runtime == "litert" else needs_of(path, limits.target)
            except CompressError as error:
                found[one.artifact] = str(error)
    return found


def _is_scored(path: Path) -> bool:
    try:
        return read_results(path).scored
    except BenchmarkError:
        return False


def newest_results(folder: Path) -> list[Path]:
    """The newest benchmark in ``folder`` (``runs/<model>``), and of each other machine its newest that measured one of the same files."""
    found = find_artifacts(folder / "benchmark")
    if not found:
        others = [path for path in folder.parent.glob("[!.]*/benchmark/[!.]*/benchmark.json") if _is_scored(path)]
        such = f", such as {max(others, key=lambda path: path.stat().st_mtime)}" if others else ""
        raise CompressError(f"{folder} has no benchmark yet; run `compress benchmark` first, or name a benchmark.json{such}")
    newest, *older = [one.payload for one in found]
    files, seen = set[str](), dict[tuple[str, ...], Path]()
    for path in [newest, *older] if older else []:
        try:
            result = read_results(path)
        except BenchmarkError:
            if path == newest:
                raise
            continue  # an old one, of a version that is not read any more, is no loss
        measured = {one.artifact for one in result.measurements}
        files = files or measured
        if path == newest or (result.scored and measured & files):
            seen.setdefault(which(result.machine), path)
    return [*seen.values()] or [newest]


def _ship(file: Path, result: Result, verdict: Verdict, target: Path) -> None:
    """Copy what ships into ``target``, all or nothing."""
    if verdict.ship is None:
        raise CompressError(f"ship (={target}): there is nothing to ship. {verdict.headline}")
    one = next(filter(verdict.ships, result.measurements))
    source, artifact = _measured(file, one)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        shutil.copyfile(source, partial / PAYLOAD[_kind(source)])
        if (source.parent / VECTORS).is_file():
            shutil.copyfile(source.parent / VECTORS, partial / VECTORS)
        labels = artifact.manifest.classes if artifact else result.data.get("class_names", [])
        if labels:
            _write(partial / "labels.txt", map(printable, labels))
        _write(partial / "verdict.txt", [verdict.headline, "", *(f"- {reason}" for reason in verdict.reasons)])
        about = {"created": result.created, "machine": result.machine, "data": result.data, "settings": result.settings}
        told = {"schema": "compress-verdict", "version": 1, "verdict": dataclasses.asdict(verdict), "variant": plain(result, one), **about}
        _write(partial / "verdict.json", [json.dumps(told, indent=1, ensure_ascii=False)])
        _write(partial / "DATA.txt", _notice(artifact, result, partial))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, lines: Iterator[str] | Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _measured(file: Path, one: Measurement) -> tuple[Path, Artifact | None]:
    """The file that was measured, proved by its hash, and its artifact where it is one.

    Its path is as the benchmark was told, so it is looked for from here, and from the folders above the result.
    """
    if one.path is None:
        raise CompressError(
            f"results (={file}) do not say where {shown(one.name)} lies; run `compress benchmark --force`, and report again"
        )
    places = (base / one.path for base in (Path(), *file.resolve().parents))
    path = next((place for place in places if place.suffix in KINDS and place.is_file()), None)
    again = "run `compress benchmark` again where it lies"
    if path is None:
        raise CompressError(f"path (={shown(one.path, 160)}) of {shown(one.name)} is not there any more; {again}")
    artifact = read_artifact(path.parent, _kind(path)) if (path.parent / MANIFEST).is_file() else None
    if one.artifact != (artifact.manifest.hash if artifact else sha256_of(path)):
        raise CompressError(f"path (={path}) is not the file that was measured; {again}")
    return path, artifact


def _kind(file: Path) -> Kind:
    return KINDS[file.suffix]


def _notice(artifact: Artifact | None, result: Result, folder: Path) -> list[str]:
    """What the file was made from, and its licence; licence files that lie beside the data are copied into ``folder``."""
    if artifact is None:
        return [f"Measured on {printable(result.data.get('name', 'unknown data'))}. What it was trained on is not known to this toolkit."]
    data = artifact.manifest.data
    told = [f"Made from {data.title or data.name}, fingerprint {data.fingerprint}."]
    if not isinstance(data.source, str):
        return [*told, "Its licence is not known to this toolkit; its terms go with the file."]
    if data.source in LICENCES:
        return [*told, LICENCES[data.source]]
    found = sorted({path for pattern in LICENCE_FILES for path in Path(data.source).glob(pattern) if path.is_file()})
    for path in found:
        shutil.copyfile(path, folder / f"DATA-{path.name}")
    beside = f"Its terms: {', '.join(f'DATA-{path.name}' for path in found)}."
    return [*told, beside if found else "Its licence is not known to this toolkit; its terms go with the file."]
