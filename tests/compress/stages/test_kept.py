"""What stages keep between two runs, and what ONNX files say of themselves, damaged: one line, or made anew."""

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stand_ins import Silent

from compress.artifacts.artifact import InputSpec
from compress.artifacts.classifier import opened
from compress.artifacts.context import Context
from compress.artifacts.records import read_kept, write_kept
from compress.errors import CompressError
from compress.stages.cross_validate import _Fold, _read_fold
from compress.stages.removal.trial import taken_up

DAMAGE = ["", "{", "[]", "7", '{"key": 7}', "[" * 100_000, "9" * 5000, '{"key": "\\ud800"}']
ROW = (
    '{"epoch": 1, "train_loss": 1.0, "validation_loss": 1.0, "accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.5, '
    '"macro_precision": 0.5, "images_per_second": 9.0}'
)


def kept(text: str) -> bytes:
    """As a stage keeps it, so that only what it says is wrong."""
    return hashlib.sha256(text.encode()).hexdigest().encode() + b"\n" + text.encode()


@pytest.mark.parametrize(
    "text",
    [
        *DAMAGE,
        f'{{"key": "k", "history": [{ROW}], "predictions": [0]}}',
        f'{{"key": "k", "history": [{ROW}], "predictions": [0, 99]}}',
        f'{{"key": "k", "history": [{ROW}], "predictions": [0, -1]}}',
        '{"key": "k", "history": [], "predictions": [0, 1]}',
        '{"key": "k", "history": [{"epoch": 1}], "predictions": [0, 1]}',
    ],
)
def test_a_damaged_fold_is_trained_again(text: str, tmp_path: Path) -> None:
    file, said = tmp_path / "1.json", list[str]()
    file.write_bytes(kept(f'{{"key": "k", "history": [{ROW}], "predictions": [0, 1]}}'))
    found = _read_fold(file, "k", 2, 10, said.append)
    assert found is not None and found.predictions == (0, 1) and not said
    file.write_bytes(kept(text))
    assert _read_fold(file, "k", 2, 10, said.append) is None
    assert all(re.fullmatch(r".*1\.json is damaged: .+; it is made anew", told) for told in said)


def test_a_flipped_bit_in_what_was_kept_is_told_and_not_believed(tmp_path: Path) -> None:
    """A class of another number is as good a record as the right one: only the digest tells."""
    file, said = tmp_path / "1.json", list[str]()
    whole = kept(f'{{"key": "k", "history": [{ROW}], "predictions": [0, 1]}}')
    for damage in (whole.replace(b"[0, 1]", b"[0, 3]"), b"0" + whole[1:], whole.partition(b"\n")[2]):
        assert damage != whole
        file.write_bytes(damage)
        assert read_kept(file, _Fold, said.append) is None
        assert said.pop() == f"{file} is damaged: its SHA-256 does not fit; it is made anew"
    file.write_bytes(whole)
    write_kept(file, read_kept(file, _Fold, said.append))
    assert read_kept(file, _Fold, said.append) is not None and not said


@pytest.mark.parametrize(
    "text",
    [
        *DAMAGE,
        '{"keep": {"a": [0, 4]}, "rounding": null}',
        '{"keep": {"a": [-1]}, "rounding": null}',
        '{"keep": {"b": [0]}, "rounding": null}',
        '{"keep": {"a": [0]}, "rounding": {"round_to": 0}}',
    ],
)
def test_a_damaged_plan_is_told_and_chosen_anew(text: str, tmp_path: Path) -> None:
    file, project = tmp_path / ".plan.json", SimpleNamespace(fresh=False, console=Silent())
    groups: Any = [SimpleNamespace(name="a", width=4)]
    file.write_bytes(kept('{"keep": {"a": [0, 3]}, "rounding": {"round_to": 1}}'))
    taken = taken_up(project, file, groups)  # type: ignore[arg-type]
    assert taken is not None and taken.keep == {"a": (0, 3)}
    file.write_bytes(kept(text))
    assert taken_up(project, file, groups) is None  # type: ignore[arg-type]
    [told] = project.console.said
    assert re.search(r"\.plan\.json is damaged: .+; (what stays is chosen|it is made) anew$", told) and "\n" not in told


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, text) for name in ("classes", "input") for text in DAMAGE if text != "[]"),
        ("classes", "[]"),
        ("classes", "[1]"),
        ("input", "{}"),
        ("input", '{"shape": ["1", 28, 28], "mean": [0.0], "std": [1.0]}'),
        ("input", '{"shape": [1, 1000000000, 1000000000], "mean": [0.0], "std": [1.0]}'),
        ("input", '{"shape": [1, 28, 28], "mean": [0.0], "std": [1.0], "x": 7}'),
    ],
)
def test_damaged_metadata_of_a_graph_is_one_line(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"compress.classes": '["a"]', "compress.input": '{"shape": [1, 28, 28], "mean": [0.0], "std": [1.0]}'}
    monkeypatch.setattr(opened, "_metadata", lambda path: about)
    monkeypatch.setattr(opened, "open_model", lambda *_, **__: SimpleNamespace(sure=None, predict=None))
    found = opened.open_file(Path("net.onnx"), Context())
    assert (found.classes, found.spec) == (("a",), InputSpec())
    about[f"compress.{name}"] = text
    with pytest.raises(CompressError, match=rf"compress\.{name} in net\.onnx is damaged: .+; export the model again$") as told:
        opened.open_file(Path("net.onnx"), Context())
    assert "\n" not in str(told.value)
