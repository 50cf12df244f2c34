"""What somebody else wrote: each value of the files that are read, replaced by what it is not. Each gets one line; there is no traceback.

The files are those of real stages, their hashes made anew, as somebody would who knows how they are made.
"""

import copy
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.artifacts.artifact import MANIFEST, digest_of, read_artifact
from compress.artifacts.parts import Plan
from compress.artifacts.payloads import Folds, Noise, Search, Sensitivity, read_scored
from compress.artifacts.project import variant_name
from compress.artifacts.records import parse_record, plain
from compress.artifacts.vectors import read_vectors
from compress.benchmarks.errors import BenchmarkError
from compress.benchmarks.report import _section
from compress.benchmarks.tables import as_csv
from compress.benchmarks.verdict import Limits, decide
from compress.cli.tables import artifact_text, folds_text, result_text, summary
from compress.errors import ArtifactError, CompressError
from compress.stages.benchmark import _facts

NEST: Any = []
for _ in range(40):
    NEST = [NEST]
ODD = {
    "null": "null",
    "true": "true",
    "text": '"x"',
    "number": "7",
    "fraction": "0.5",
    "negative": "-1",
    "huge": "1" + "0" * 400,
    "thousands of digits": "9" * 5000,
    "large float": "1e308",
    "infinite": "1e400",
    "NaN": "NaN",
    "nested": json.dumps(NEST),
    "deep": "[" * 100_000,
    "list": "[]",
    "table": "{}",
    "surrogate": '"\\ud800"',
    "path": '"../../outside"',
    "line": '"a\\nb\\u001b[31m"',
    "long": f'"{"x" * 5000}"',
}
NEVER = ("missing", "neighbour", "nested", "deep", "infinite", "NaN", "digits", "surrogate")
HOLE = "\x00hole\x00"
EXAMPLES = {
    "network": {
        "stage": "remove-channels",
        "config": {"sparsity": None, "max_macs": 0.5, "max_size": None, "max_latency": None, "bypass": ["a"]},
        "metrics": {
            "one_shot": dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "macro_precision"), 0.5),
            "validation": dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "macro_precision"), 0.5),
            "best_epoch": 1,
            "teacher": "f00d",
            "gains": {"macs": 0.5, "size": 0.5, "latency": {"value": 0.5, "low": 0.4, "high": 0.6}},
            "widths": {"conv": [8, 4]},
            "left_whole": ["fc"],
            "rounding": {"round_to": 4, "measured": [{"round_to": 4, "ratio": 0.5, "low": 0.4, "high": 0.6, "macs": 9}]},
            "features": {"fc": [0, 2]},
        },
        "facts": {"params": 9, "nonzeros": 9, "macs": 9, "layers": [{"name": "a", "weights": 4, "nonzeros": 2}]},
    },
    "graph": {
        "stage": "quantize",
        "config": {"mode": "static", "groups": ["a"], "epochs": 0},
        "metrics": {
            "parity": {"images": 9, "largest_difference": 0.0, "agreement": 1.0, "probabilities": 0.0},
            "rewrites": ["a"],
            "constants": {"tensors": [{"name": "a", "shape": [1, 2], "varies": 0.0}], "nodes": [9, 3], "moved": 0.0, "drop": 0.0}
            | {"bound": 0.1, "images": 9, "left": "", "parity": {"images": 9, "largest_difference": 0.0, "agreement": 1.0}},
            "quantized": {"operators": {"Conv": 2}, "left": {"Add": 1}, "reasons": {"Add": "why"}},
            "stored": {"bits": "int8", "weights": {"a": 40.0, "b": None}, "bytes_before": 9, "bytes_after": 3},
            "calibration": {"images": 9, "sha256": "f00d"},
            "points_lost": 0.1,
        },
        "facts": {"params": 9, "nonzeros": 9, "macs": 9},
    },
}
SETTING = {"method": "minmax", "per_channel": True, "equalise": False, "correct_bias": False}
TRIED = {"mode": "static", "groups": ["a"], "setting": SETTING, "ratio": 0.9, "low": 0.8, "high": 1.0, "rounds": 3, "size": 9}
TRIED |= {"moved": 0.2, "drop": 0.1, "bound": 0.4, "images": 9, "proved": False, "tells": 20}
EXAMPLES["graph"]["metrics"] |= {  # type: ignore[operator]
    "choice": {"artifact": "runs/x", "hash": "f00d", "tried": 1, "verdict": "told", "best": TRIED, "finalists": [TRIED]}
    | {"decided": "bound", "complete": True}
}
SCORES = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "macro_precision"), 0.5)
BETWEEN = {"value": 1.0, "low": 0.9, "high": 1.1}
POINT = {"sparsity": 1.0, "removed": 4, "balanced_accuracy": 0.5, "cross_entropy": 1.0, "points_lost": 0.1}
NOISY = {"label": "a", "name": "a", "kind": "Conv", "weights": None, "output_db": None, "own_db": 3.0, "weight_db": 1.0, "clipped": 0.1}
PAYLOADS: dict[type, Any] = {
    Search: {"verdict": "told", "max_drop": 0.3, "groups": {"a": ["n"]}, "best": TRIED, "finalists": [TRIED], "tried": [TRIED]}
    | {"decided": "point estimate", "complete": False, "before": SCORES, "after": SCORES, "graph": "f00d"}
    | {"machine": {"cpu": "x", "cores": 2, "flags": ["avx"], "gpu": None}},
    Noise: {"images": 9, "setting": "minmax", "layers": [NOISY | {"microseconds": [1.0, None]}]}
    | {"groups": [{"name": "a", "nodes": 1, "logits_db": 3.0, "changed": 0.1, "latency": BETWEEN}]},
    Sensitivity: {"granularity": "module", "images": 9, "baseline": {"balanced_accuracy": 0.5, "cross_entropy": 1.0}}
    | {"curves": [{"name": "a", "size": 4, "points": [POINT]}], "rises": {"a": {"1.0": 0.1}}, "latency": {"a": BETWEEN}},
    Folds: {"images": 9, "epochs": 3, "folds": [{"fold": 1, "images": 3, "scores": SCORES, "best_epoch": SCORES | {"epoch": 2}}]}
    | {"mean": SCORES, "spread": SCORES, "best_epoch": {"mean": SCORES | {"epoch": 2.5}, "spread": SCORES | {"epoch": 0.5}}}
    | {"confusions": [{"true": "a", "read": "b", "images": 1, "of": 3}]},
    Plan: {"keep": {"conv": [0, 2]}, "rounding": {"round_to": 4}},
}


def changed(raw: Any) -> Iterator[tuple[str, str]]:
    """Every text of JSON in which one value of ``raw`` is another, is missing, or has a neighbour that is unknown; and what was done."""

    def places(value: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
        for key, one in inner:
            yield (*way, key)
            yield from places(one, (*way, key))

    for *way, last in places(raw, ()):
        copied = copy.deepcopy(raw)
        parent = copied
        for key in way:
            parent = parent[key]
        value, name = parent[last], ".".join(map(str, [*way, last]))
        parent[last] = HOLE
        text = json.dumps(copied)
        for what, odd in ODD.items():
            yield text.replace(json.dumps(HOLE), odd), f"{name} {what}"
        del parent[last]
        yield json.dumps(copied), f"{name} missing"
        if isinstance(parent, dict):
            yield json.dumps(_with(copied, way, {last: value, "unknown": 1})), f"{name} with a neighbour"


def _with(copied: Any, way: list[Any], more: dict[str, Any]) -> Any:
    parent = copied
    for key in way:
        parent = parent[key]
    parent |= more
    return copied


def refused(read: Callable[[], Any], what: str, kind: type[ValueError]) -> bool:
    try:
        read()
    except kind as error:
        told = str(error)
        assert "\n" not in told and told.isprintable() and len(told) <= 300, (what, told)
        return True
    return False


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_manifest_whose_values_are_others_is_refused_or_told(kind: str, tmp_path: Path) -> None:
    """Read, told as a table and as JSON, named, and taken to a benchmark: each place that a lineage or figure goes to."""
    payload = tmp_path / {"network": "weights.safetensors", "graph": "model.onnx"}[kind]
    payload.write_bytes(b"x")
    step = {"stage": "prune", "hash": "a", "key": "b", "config": {"sparsity": 0.8, "pattern": ""}}
    raw = {
        "kind": kind,
        "key": "f00d",
        "model": {"reference": "k49", "options": {}, "source": None},
        "input": {"shape": [1, 28, 28], "mean": [0.0], "std": [1.0]},
        "classes": ["a", "b"],
        "data": {"source": "digits", "name": "digits", "fingerprint": "f00d", "seed": 0, "validation": 0.1}
        | {"images": {"train": 3, "validation": 1, "test": 1}, "title": "Digits"},
        "lineage": [step],
        "parent": "a",
        "schema": 1,
        "created": "2026",
        "versions": {"python": "3.11"},
        "machine": {"system": "Linux"},
        "files": {payload.name: "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"},
        **EXAMPLES[kind],
    }

    def read(text: str) -> None:
        (tmp_path / MANIFEST).write_text(text, encoding="utf-8")
        artifact = read_artifact(tmp_path)
        for told in (artifact_text(artifact), variant_name(artifact), artifact.content, json.dumps(summary(artifact)), artifact.bypassed):
            assert told is not None
        _facts(artifact.manifest)

    def hashed(text: str) -> str:
        try:
            values = json.loads(text)
            return json.dumps(values | {"hash": digest_of(values)})
        except (ValueError, RecursionError):
            return text

    read(hashed(json.dumps(raw)))
    counted = [refused(lambda text=text: read(hashed(text)), what, ArtifactError) for text, what in changed(raw)]  # type: ignore[misc]
    assert sum(counted) > 0.75 * len(counted) > 1000


@pytest.mark.parametrize("cls", PAYLOADS)
def test_a_payload_whose_values_are_others_is_refused(cls: type) -> None:
    raw = PAYLOADS[cls]
    assert json.loads(json.dumps(plain(parse_record(json.dumps(raw), cls, where="x", again="y")))) == raw
    for text, what in changed(raw):
        told = refused(lambda text=text: parse_record(text, cls, where="x", again="y"), what, CompressError)  # type: ignore[misc]
        free = re.match(r"(.*\.)?\d+ missing|(groups|machine|keep)\.\w+ (missing|with a neighbour)|.*best_epoch\S*\.epoch missing", what)
        assert told or free or not what.endswith(NEVER), what
        if not told and cls is Folds:
            folds_text(parse_record(text, Folds, where="x", again="y"))


@pytest.mark.parametrize("version", [2, 3])
def test_a_benchmark_whose_values_are_others_is_refused_or_told(version: int, tmp_path: Path) -> None:
    raw = json.loads((Path(__file__).parent / "benchmark.json").read_text(encoding="utf-8"))
    if version == 3:
        raw |= {"version": 3, "labels": "AAEC"}
        raw["data"] |= {"classes": 3}
        raw["measurements"] = [one | {"answers": "AAEA", "path": "runs/k49/model.onnx"} for one in raw["measurements"]]
    path = tmp_path / "benchmark.json"

    def read(text: str) -> None:
        path.write_text(text, encoding="utf-8")
        result = read_scored(path)
        verdict = decide(result, Limits())
        for told in (result_text(result, verdict), as_csv([result]), _section(result, verdict, Limits(), 1)):
            assert told

    read(json.dumps(raw))
    counted = [refused(lambda text=text: read(text), what, BenchmarkError) for text, what in changed(raw)]  # type: ignore[misc]
    assert sum(counted) > 0.75 * len(counted)


def test_plain_values_are_what_the_door_takes() -> None:
    again = {"where": "x", "again": "y"}
    assert parse_record("[1, 2]", tuple[int, ...], **again) == (1, 2)
    with pytest.raises(CompressError, match=r"^x is damaged: \[1\] must be int, not str; y$"):
        parse_record('[1, "2"]', tuple[int, ...], **again)
    with pytest.raises(CompressError, match=r"^x is damaged: .* is nested more than 32 deep; y$"):
        parse_record(json.dumps(NEST), Any, **again)
    with pytest.raises(CompressError, match=r"^x is damaged: a \(=1{30}\) must be a finite number of at most 64 bits; y$"):
        parse_record('{"a": ' + "1" * 30 + "}", dict, **again)


VECTORS = {"images": np.zeros((2, 1, 4, 4), np.uint8), "logits": np.zeros((2, 3), np.float32), "tolerance": 0.1, "model": "f" * 64}


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x03\x00\x76\x00{}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000000, 1, 28, 28), }",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1,), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }",
        b"{'descr': '<U0', 'fortran_order': False, 'shape': (100,), }",
        b"{'descr': '<f99', 'fortran_order': False, 'shape': (2,), }",
        b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (25,), }",
        b"{'descr': '<f4', 'fortran_order': 3, 'shape': (25,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': 'x', }",
        b"{'descr': " + b"(" * 900,
    ],
)
def test_vectors_with_another_header_are_refused(name: str, header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, **VECTORS)
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    if header.startswith(b"{"):
        header = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in members.items():
            archive.writestr(entry, header + bytes(100) if entry == f"{name}.npy" else content)
    with pytest.raises(CompressError, match=r"vectors.npz (is damaged, or )?holds no test vectors") as told:
        read_vectors(path)
    assert "\n" not in str(told.value) and len(str(told.value)) <= 300


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("odd", [None, True, 7, 1e308, "x", [], [[1, 2]], np.zeros(0), np.zeros((2, 1, 4, 4), complex)])
def test_vectors_with_another_value_are_refused(name: str, odd: object, tmp_path: Path) -> None:
    np.savez(tmp_path / "vectors.npz", **VECTORS | {name: odd})  # type: ignore[arg-type]
    if (name == "model" and isinstance(odd, str)) or (name == "tolerance" and isinstance(odd, float)):
        assert read_vectors(tmp_path / "vectors.npz").model
        return
    with pytest.raises(CompressError, match=r"vectors.npz (is damaged, or )?holds no test vectors"):
        read_vectors(tmp_path / "vectors.npz")


@pytest.mark.parametrize("how", ["encrypted", "bomb", "bzip2", "lzma"])
def test_vectors_that_are_packed_to_do_harm_are_refused_before_memory_is_taken(how: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    method = {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.get(how, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "w", method) as archive, archive.open("images.npy", "w") as member:
        header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824,), }\n"
        member.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        for _ in range(40 if how == "bomb" else 1):
            member.write(bytes(2**22))
    data = bytearray(path.read_bytes())
    if how == "encrypted":
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
        path.write_bytes(data)
    told = {"encrypted": "images is encrypted", "bomb": "at most 134,217,728 are read"}.get(how, "packed otherwise than numpy does")
    with pytest.raises(CompressError, match=told):
        read_vectors(path)
