"""Names come from outside: class folders, files, the metadata of an ONNX file. What they hold is shown, and does nothing."""

import csv
import os
import sys
from pathlib import Path

import pytest
from stand_ins import Commands

from compress.artifacts.records import write_csv
from compress.cli.terminal import Terminal, tell
from compress.errors import neutral

EVIL = "cat\x1b[31m\r\x07\x9b2J\udcff\u202e"
SHOWN = r"cat\x1b[31m\r\x07\x9b2J\udcff\u202e"


def test_control_characters_are_shown_as_escapes_and_letters_of_all_languages_as_they_are() -> None:
    assert neutral(EVIL) == SHOWN
    assert neutral("か ゐ\u3000é\nnext") == "か ゐ\u3000é\nnext"


def test_nothing_that_is_printed_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"table of {EVIL}")
    terminal = Terminal()
    terminal.say(f"reads {EVIL}")
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"table of {SHOWN}\n", f"reads {SHOWN}\n")


def test_progress_of_a_name_is_neither_markup_nor_control(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    terminal = Terminal()
    terminal.progress(f"{EVIL} [bold]x[/nonsense]", 1, 2)
    [task] = terminal._bar.tasks
    assert task.description == f"{SHOWN} [bold]x[/nonsense]"
    terminal._bar.refresh()  # markup that does not close would raise here
    terminal.close()
    capsys.readouterr()


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\tx", "\rx"])
def test_a_cell_that_a_spreadsheet_would_compute_is_quoted(name: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "table.csv", [{"class": name, "change": -0.5}])
    with (tmp_path / "table.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"class": f"'{name}", "change": "-0.5"}]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_the_name_of_a_file_that_is_no_text_is_told(run: Commands, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff\x1b[31m.onnx"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    code, out, err = run("predict", "--onnx", os.fsdecode(odd), "x.png")
    assert code == 2 and out == "" and "\x1b" not in err and "\udcff" not in err and err.count("\n") == 1
