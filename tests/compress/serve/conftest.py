"""Services that end with the test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from served import Service


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    """Starts services that end with the test."""
    started: list[Service] = []

    def start(*arguments: str | Path) -> Service:
        started.append(Service(*arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.stop()
        assert one.process.stderr is not None and one.process.stdout is not None
        one.process.stderr.close()
        one.process.stdout.close()
