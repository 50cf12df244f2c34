"""Sources by name, and limits: what is wrong is said in one line that names it."""

from pathlib import Path
from typing import Any

import pytest

from compress.errors import CompressError
from compress.serve.settings import ServeConfig, sources_of


def test_names_come_from_files_and_folders_or_are_said(tmp_path: Path) -> None:
    for name in ("board/k49/model.onnx", "net 2.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [tmp_path / "board/k49", tmp_path / "net 2.onnx", f"small={tmp_path / 'board/k49/model.onnx'}"]
    assert [one.name for one in sources_of(given)] == ["k49", "net-2", "small"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "name at least one"),
        (["gone.onnx"], r"source \(=.*gone.onnx\) does not exist"),
        (["a b=here.onnx"], r"name \(=a b\) must be of letters"),
        (["here.onnx", "here=here.onnx"], r"name \(=here\) is that of .* and .*; give one another"),
    ],
)
def test_wrong_sources_are_refused(given: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.onnx").touch()
    with pytest.raises(CompressError, match=told):
        sources_of(given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"port": 70000}, r"port \(=70000\) must lie in 0 to 65,535"),
        ({"queue": 0}, r"queue \(=0\) must lie in 1"),
        ({"workers": 0}, r"workers \(=0\)"),
        ({"max_body": "12"}, r"max_body \(=12\) must lie in 1,024"),
        ({"max_pixels": 10**9}, r"max_pixels \(=1000000000\)"),
        ({"timeout": "2h"}, r"timeout \(=7200.0\) must lie in"),
        ({"allow_origin": ("*",)}, r"allow_origin \(=\*\) must be scheme, host and port"),
        ({"host": " "}, "host"),
    ],
)
def test_limits_are_checked(given: dict[str, Any], told: str) -> None:
    with pytest.raises(CompressError, match=told):
        ServeConfig(**given)


def test_a_token_is_read_from_a_file_that_holds_one(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n", encoding="utf-8")
    assert ServeConfig(token_file=file).token == b"0123456789abcdef"
    for content in ("short", "with spaces in it, and long", ""):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(CompressError, match="must hold 16 to"):
            ServeConfig(token_file=file)


def test_a_stamp_tells_a_file_that_was_replaced(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"one")
    [source] = sources_of([file])
    before = source.stamp()
    assert source.stamp() == before
    (tmp_path / "new").write_bytes(b"two")
    (tmp_path / "new").rename(file)
    assert source.stamp() != before
    file.unlink()
    assert source.stamp() == ()
