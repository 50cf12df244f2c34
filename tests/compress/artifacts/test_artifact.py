"""Artifacts: all or nothing, verified when read. The truth is what was written, and a kill at every step that touches the disk."""

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stand_ins
from stand_ins import write_artifact

from compress import files
from compress.artifacts.artifact import (
    MANIFEST,
    Artifact,
    InputSpec,
    Manifest,
    digest_of,
    find_artifacts,
    read_artifact,
    sha256_of,
)
from compress.artifacts.parts import Data, Images, Metrics, Model, Step
from compress.artifacts.records import parse_record, plain
from compress.errors import ArtifactError, CompressError
from compress.train.errors import TrainError
from compress.train.resize import Resize

PAYLOAD = b"\x08\x0a" * 500


def manifest(**changes: Any) -> Manifest:
    about: dict[str, Any] = {
        "kind": "graph",
        "stage": "export",
        "key": "0" * 64,
        "model": Model(reference="k49", options={"widths": (8, 16)}, source=None),
        "input": InputSpec(shape=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(0.5,)),
        "classes": ("あ", "い"),
        "config": {"opset": 20},
        "data": Data(
            source="digits", name="digits", fingerprint="f00d", seed=0, validation=0.1, images=Images(train=2, validation=1, test=1)
        ),
        "lineage": (Step(stage="train", hash="1" * 64, key="2" * 64, config={}),),
        "parent": "1" * 64,
        "metrics": Metrics(points_lost=0.875),
    }
    return Manifest(**about | changes)


def writer(payload: bytes = PAYLOAD, extra: bytes = b"epoch\n1\n", **changes: Any) -> Callable[[Path], Manifest]:
    def make(folder: Path) -> Manifest:
        assert list(folder.iterdir()) == []
        (folder / "model.onnx").write_bytes(payload)
        (folder / "history.csv").write_bytes(extra)
        return manifest(**changes)

    return make


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return write_artifact(tmp_path / "runs" / "k49" / "a", writer())


def edit(artifact: Artifact, rehash: bool = False, **changes: Any) -> None:
    """Change entries of artifact.json; with ``rehash`` by somebody who knows how its hash is made."""
    file = artifact.path / MANIFEST
    raw = json.loads(file.read_text(encoding="utf-8")) | changes
    if rehash:
        raw["hash"] = digest_of({name: value for name, value in raw.items() if name != "hash"})
    file.write_text(json.dumps(raw), encoding="utf-8")


def test_what_was_written_is_read_back(artifact: Artifact) -> None:
    found = read_artifact(artifact.path, "graph")
    assert found.payload.read_bytes() == PAYLOAD
    expected, seen = (json.loads(json.dumps(plain(one.manifest))) for one in (artifact, found))
    assert seen == expected
    assert (
        found.manifest.input == manifest().input
        and found.manifest.classes == ("あ", "い")
        and found.manifest.metrics == Metrics(points_lost=0.875)
    )
    assert found.manifest.files == {"model.onnx": sha256_of(found.payload), "history.csv": sha256_of(found.path / "history.csv")}
    assert [step.stage for step in found.steps] == ["train", "export"] and found.steps[-1].hash == found.manifest.hash


def test_the_hash_is_the_sha256_of_the_rest_as_sorted_json(artifact: Artifact) -> None:
    # sha256sum of {"a":null,"b":[1,2.5]}
    assert digest_of({"b": [1, 2.5], "a": None}) == "e57f5d37865437a82e1108bafb4e5213dfe7e9085f5c253341ebbab30cac5faf"
    raw = json.loads((artifact.path / MANIFEST).read_text(encoding="utf-8"))
    assert raw.pop("hash") == artifact.manifest.hash == digest_of(raw)


def test_the_content_is_what_a_child_sees_and_the_hash_is_everything(tmp_path: Path) -> None:
    first, again, other_history = (
        write_artifact(tmp_path / name, writer(extra=extra)) for name, extra in zip("abc", (b"1", b"1", b"2"), strict=True)
    )
    assert first.content == again.content == other_history.content == read_artifact(tmp_path / "a").content
    assert len({first.manifest.hash, again.manifest.hash, other_history.manifest.hash}) == 3
    others = [
        writer(payload=b"other"),
        writer(classes=("い", "あ")),
        writer(input=InputSpec()),
        writer(model=Model(reference="emnist", options={}, source=None)),
    ]
    contents = [write_artifact(tmp_path / f"other{index}", make).content for index, make in enumerate(others)]
    assert len({first.content, *contents}) == 5


def test_a_failing_make_leaves_nothing(tmp_path: Path) -> None:
    def make(folder: Path) -> Manifest:
        (folder / "model.onnx").write_bytes(PAYLOAD)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_artifact(tmp_path / "runs" / "k49" / "a", make)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_make_leaves_the_older_artifact(artifact: Artifact) -> None:
    def make(folder: Path) -> Manifest:
        raise RuntimeError("at once")

    with pytest.raises(RuntimeError, match="at once"):
        write_artifact(artifact.path, make)
    assert read_artifact(artifact.path).manifest.hash == artifact.manifest.hash
    assert list(artifact.path.parent.iterdir()) == [artifact.path]


def test_an_artifact_is_replaced_whole(artifact: Artifact) -> None:
    new = write_artifact(artifact.path, writer(payload=b"new", stage="quantize", config={"mode": "static"}))
    assert read_artifact(artifact.path).manifest.hash == new.manifest.hash != artifact.manifest.hash
    assert new.payload.read_bytes() == b"new" and list(artifact.path.parent.iterdir()) == [artifact.path]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_something_else_than_an_artifact_is_never_replaced(tmp_path: Path, what: str) -> None:
    target = tmp_path / "thesis"
    if what == "folder":
        target.mkdir()
        (target / "chapter1.md").write_text("years of work", encoding="utf-8")
    else:
        target.write_text("years of work", encoding="utf-8")
    with pytest.raises(ArtifactError, match="thesis exists and is no artifact; name another --out"):
        write_artifact(target, writer())
    assert [path.read_text(encoding="utf-8") for path in (target.iterdir() if what == "folder" else [target])] == ["years of work"]


# Forks once for every step of a write that touches the disk, and dies there by SIGKILL; says how many steps there were.
KILLED = """
import os, signal, sys
from pathlib import Path

sys.path[:0] = {tests!r}
from test_artifact import writer
from stand_ins import write_artifact

def died_at(step, base):
    if os.fork() == 0:
        left = [step]
        def hook(event, args):
            if any(str(base) in str(arg) for arg in args) or event in ("os.remove", "os.rmdir"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        write_artifact(base / "a", writer(payload=b"new"))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL

root, replaces = Path(sys.argv[1]), sys.argv[2] == "True"
step = 0
while True:
    base = root / f"{{step:02}}"
    if replaces:
        write_artifact(base / "a", writer(payload=b"old"))
    if not died_at(step, base):
        break
    step += 1
print(step)
"""


@pytest.mark.parametrize("replaces", [False, True])
def test_sigkill_at_any_step_leaves_a_whole_artifact_or_none(tmp_path: Path, replaces: bool) -> None:
    code = KILLED.format(tests=[str(Path(__file__).parent), str(Path(stand_ins.__file__).parent)])
    done = subprocess.run([sys.executable, "-c", code, tmp_path, str(replaces)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8  # mkdir, two files, manifest, four syncs, rename
    outcomes, leftovers = [], 0
    for base in sorted(path for path in tmp_path.iterdir()):
        found = find_artifacts(base)
        outcomes.append(found[0].payload.read_bytes() if found else None)
        assert all(path.name == "a" or path.name.endswith(".partial") for path in base.iterdir())
        leftovers += sum(path.name != "a" for path in base.iterdir())
        write_artifact(base / "b", writer())
        assert {path.name for path in base.iterdir()} <= {"a", "b"}, "the next write removes what the killed one left"
    before = b"old" if replaces else None
    assert outcomes[0] == before and outcomes[-1] == b"new"
    assert set(outcomes) <= {before, b"new", None} and leftovers > 0


@pytest.mark.parametrize("swaps", [True, False])
def test_no_reader_finds_an_artifact_gone_or_mixed_while_it_is_replaced(
    tmp_path: Path, swaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two folders cannot be swapped, it is gone for a moment; it comes back, and is never half of the old and half of the new."""
    if not swaps:
        monkeypatch.setattr(files, "exchanged", lambda one, other: False)
    write_artifact(tmp_path / "a", writer())
    done, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(read_artifact(tmp_path / "a").manifest.key)
            except ArtifactError as error:
                wrong.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(60):
        write_artifact(tmp_path / "a", writer(payload=bytes([number]) * 5000, key=f"{number:064}"))
    done.set()
    for reader in readers:
        reader.join(60)
    assert not [told for told in wrong if swaps or "it has no artifact.json" not in told]
    assert len(seen) > 3 and [path.name for path in tmp_path.iterdir()] == ["a"]


def flip_a_bit(artifact: Artifact) -> None:
    content = bytearray(artifact.payload.read_bytes())
    content[700] ^= 1
    artifact.payload.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Artifact], object], str]] = {
    "payload bit flipped": (flip_a_bit, r"a is damaged: model\.onnx has SHA-256 .*\.\.\. was expected; make the artifact again"),
    "payload truncated": (lambda a: a.payload.write_bytes(PAYLOAD[:-1]), r"model\.onnx has SHA-256"),
    "payload missing": (lambda a: a.payload.unlink(), r"a is damaged: model\.onnx is missing; make the artifact again"),
    "other file changed": (lambda a: (a.path / "history.csv").write_bytes(b""), r"history\.csv has SHA-256"),
    "manifest missing": (lambda a: (a.path / MANIFEST).unlink(), r"a is not an artifact: it has no artifact\.json"),
    "manifest truncated": (
        lambda a: (a.path / MANIFEST).write_bytes((a.path / MANIFEST).read_bytes()[:200]),
        r"artifact\.json is damaged: .*; make",
    ),
    "manifest empty": (lambda a: (a.path / MANIFEST).write_bytes(b""), r"artifact\.json is damaged: "),
    "manifest not text": (lambda a: (a.path / MANIFEST).write_bytes(b"\xff\xfe\x00"), r"artifact\.json is damaged: .*decode"),
    "manifest nested without end": (lambda a: (a.path / MANIFEST).write_bytes(b"[" * 200_000), r"artifact\.json is damaged: "),
    "foreign list": (lambda a: (a.path / MANIFEST).write_text("[1, 2]"), r"artifact\.json is not one of this toolkit's"),
    "foreign object": (
        lambda a: (a.path / MANIFEST).write_text('{"name": "x"}'),
        r"is not one of this toolkit's; it has no kind out of network, graph",
    ),
    "foreign kind": (lambda a: edit(a, kind="docker"), r"is not one of this toolkit's"),
    "kind of another type": (lambda a: edit(a, kind=["graph"]), r"is not one of this toolkit's"),
    "newer schema": (lambda a: edit(a, schema=2), r"has schema 2, this version reads 1; take the version of compress that wrote it"),
    "metric edited by hand": (lambda a: edit(a, metrics={"accuracy": 0.99}), r"was changed after it was written: its hash does not fit"),
    "hash edited by hand": (lambda a: edit(a, hash="0" * 64), r"its hash does not fit"),
    "unknown entry": (lambda a: edit(a, colour="red"), r"missing or unknown entries colour"),
    "entry renamed": (
        lambda a: (a.path / MANIFEST).write_text((a.path / MANIFEST).read_text().replace('"facts"', '"fact"')),
        r"missing or unknown entries fact, facts",
    ),
    "path out of the folder": (
        lambda a: edit(a, rehash=True, files={"model.onnx": sha256_of(a.payload), "../a/model.onnx": sha256_of(a.payload)}),
        r"a is damaged: \.\./a/model\.onnx is missing",
    ),
    "absolute path": (
        lambda a: edit(a, rehash=True, files={"model.onnx": sha256_of(a.payload), str(a.payload): sha256_of(a.payload)}),
        r"a is damaged: /.*model\.onnx is missing",
    ),
    "payload not listed": (lambda a: edit(a, rehash=True, files={}), r"model\.onnx is missing"),
    "another folder's payload": (lambda a: edit(a, rehash=True, kind="network"), r"weights\.safetensors is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name(artifact: Artifact, name: str) -> None:
    damage, told = DAMAGE[name]
    damage(artifact)
    with pytest.raises(ArtifactError, match=told) as refused:
        read_artifact(artifact.path)
    assert "\n" not in str(refused.value)


def test_another_kind_than_needed_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"a holds a graph \(stage export\), but a network is needed here"):
        read_artifact(artifact.path, "network")


def test_a_file_instead_of_its_folder_is_refused(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"model\.onnx is not an artifact.*name the folder that holds it"):
        read_artifact(artifact.payload)


def test_artifacts_are_found_newest_first_and_others_passed_over(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_artifact(tmp_path / name, writer())
    (tmp_path / "notes").mkdir()
    (tmp_path / ".half.1.partial").mkdir()
    (tmp_path / ".half.1.partial" / MANIFEST).write_text("{", encoding="utf-8")
    assert [found.path.name for found in find_artifacts(tmp_path)] == ["c", "a", "b"]
    assert find_artifacts(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"shape": (28, 28)}, r"image shape \(=28x28\) must be CxHxW with 1 to 16 channels"),
        ({"shape": (17, 28, 28)}, r"image shape \(=17x28x28\)"),
        ({"shape": (1, 0, 28)}, r"image shape \(=1x0x28\)"),
        ({"mean": (0.1, 0.2, 0.3)}, r"mean \(=\(0\.1, 0\.2, 0\.3\)\) must have one value or one per channel \(1\)"),
        ({"shape": (3, 8, 8), "std": (1.0, 1.0)}, r"std .* one per channel \(3\)"),
        ({"std": (0.0,)}, r"std \(=\(0\.0,\)\) must be positive"),
        ({"shape": (3, 8, 8), "std": (1.0, -1.0, 1.0)}, r"std .* must be positive"),
        ({"std": (float("nan"),)}, r"std \(=\(nan,\)\) must be positive"),
        ({"std": (float("inf"),)}, r"std \(=\(inf,\)\) must be positive"),
        ({"mean": (float("nan"),)}, r"mean \(=\(nan,\)\) must be finite"),
    ],
)
def test_an_impossible_input_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        InputSpec(**given)


def test_an_input_read_from_json_equals_the_one_written() -> None:
    """And where pictures were stretched, it says no more than before there were other ways: the same artifacts have the same names."""
    spec = InputSpec(shape=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(0.5,))
    assert plain(spec) == {"shape": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (0.5,)}
    for one in (spec, dataclasses.replace(spec, resize=Resize(way="crop", crop=0.875, interpolation="bicubic"))):
        assert parse_record(json.dumps(plain(one)), InputSpec, where="input", again="make it again") == one
    with pytest.raises(CompressError, match=r"input is damaged: .*crop \(=7\.0\) must lie in"):
        parse_record('{"shape": [1, 4, 4], "resize": {"way": "crop", "crop": 7.0}}', InputSpec, where="input", again="make it again")


@pytest.mark.parametrize("span", [(0.0, 0.0), (0.0, float("inf")), (1.0, 2.0, 3.0)])
def test_a_range_of_values_that_is_none_is_refused(span: Any) -> None:
    with pytest.raises(TrainError, match=r"range \(=.*\) must be LOW,HIGH, two finite numbers of which the first is smaller"):
        InputSpec(range=span)
