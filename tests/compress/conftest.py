"""What several tests of commands share."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Running
from stand_ins import Commands


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Commands:
    return Commands(monkeypatch, capfd)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Starts commands in processes of their own, which end with the test."""
    started: list[Running] = []

    def start(*arguments: str, cwd: Path | None = None, limit: tuple[str, int] | None = None) -> Running:
        started.append(Running(tmp_path_factory.mktemp("said"), arguments, cwd or Path.cwd(), limit))
        return started[-1]

    yield start
    for one in started:
        one.signal(signal.SIGKILL)
