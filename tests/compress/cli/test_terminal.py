"""What a person sees while a stage works, and what a log gets: a terminal has a bar, anything else has lines, and both say the time."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compress.cli import tables, terminal
from compress.cli.terminal import Terminal


def lines(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], seconds: list[float]) -> list[str]:
    """What is written where nobody watches, when ``progress`` is told at these times."""
    ticks = iter([0.0, *seconds])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(ticks))
    told = Terminal()
    for index, _ in enumerate(seconds):
        told.progress("epoch 1", index, len(seconds) - 1)
    return capfd.readouterr().err.splitlines()


def test_where_nobody_watches_a_line_comes_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Six of ten parts after 12 s: 8 s are left."""
    said = lines(monkeypatch, capfd, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0, 18.0, 30.0])
    assert said == ["   50%  epoch 1  (10 s, 10 s left)"]
    assert lines(monkeypatch, capfd, [0.0, 1.0, 2.0]) == [], "what is short says nothing"


def test_one_of_several_processes_speaks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    told = Terminal()
    told.say("train: here")
    told.progress("epoch", 1, 2)
    told.close()
    assert capfd.readouterr() == ("", "")


PROGRAM = """
import time
from compress.cli.terminal import Terminal
told = Terminal()
told.say("train: begins")
for step in range(5):
    told.progress(f"epoch {step}", step, 5)
    time.sleep(0.15)
told.close()
"""


def seen(program: str, **environment: str) -> str:
    """What a terminal of 80 columns shows of the program, control codes included."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")} | {"TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=env | environment) as process:
        os.close(theirs)
        written = io.BytesIO()
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            written.write(part)
    os.close(ours)
    assert process.returncode == 0
    return written.getvalue().decode()


def test_a_terminal_has_a_bar_with_elapsed_and_remaining_time_and_gets_its_cursor_back() -> None:
    shown = seen(PROGRAM)
    assert "train: begins" in shown and "epoch 4" in shown
    assert re.search(r"\d+%", shown) and re.search(r"0:00:00.*(-:--:--|0:00:0\d)", shown)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor was hidden and is shown again"


TABLE = """
from compress.cli.tables import table
print(table([{"variant": "pruned 80%, static int8 of 3 groups, fine-tuned", "why": "word " * 40, "answer": "a   <- misread"}]))
"""


def test_a_table_fits_80_columns_and_has_colour_on_a_terminal_only() -> None:
    plain = subprocess.run([sys.executable, "-c", TABLE], capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in plain and max(map(len, plain.splitlines())) <= 80
    assert plain.count("word") == 40 and "fine-tuned" in plain, "nothing is cut off"
    assert "\x1b[31m" in seen(TABLE)
    assert "\x1b[31m" not in seen(TABLE, NO_COLOR="1")


def test_a_table_has_the_columns_of_its_rows() -> None:
    assert tables.table([{"name": "a", "size": "1"}, {"name": "long", "size": "22"}]).splitlines() == [
        "name   size",
        "───────────",
        "a      1",
        "long   22",
    ]


def test_ctrl_c_gives_the_terminal_back(tmp_path: Path) -> None:
    program = f"""
import os, signal, sys
os.chdir({str(tmp_path)!r})
from compress.cli import main
from compress.cli.terminal import Terminal
from compress.api.network import Network
def train(self, **options):
    self._context.console.progress("epoch 1", 1, 4)
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
train.options = Network.train.options
Network.train = train
sys.modules.pop("compress.cli.commands", None)
sys.argv = ["compress", "train"]
code = main.main()
print("code", code)
"""
    shown = seen(program)
    assert "compress: stopped; what is finished is kept" in shown and "code 130" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
