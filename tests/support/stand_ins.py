"""What several tests put in the place of something else."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from compress.api import network
from compress.artifacts.artifact import Artifact, Manifest, sealed, whole_artifact
from compress.artifacts.parts import Data, Images
from compress.benchmarks import place, turns
from compress.cli import main as cli
from compress.train.data_set import DataSet, Part


def recorded(name: str, fingerprint: str = "f" * 64) -> Data:
    """What an artifact records of a data set."""
    return Data(source=name, name=name, fingerprint=fingerprint, seed=0, validation=0.1, images=Images(train=2, validation=1, test=1))


def with_parts(data: DataSet, **parts: Part) -> DataSet:
    """``data`` with other images in some of its parts."""
    own = dataclasses.replace(data.read()[1], **parts)
    counts = (len(own.train.labels), len(own.validation.labels), len(own.test.labels))
    about = dataclasses.replace(data.about, counts=counts)
    return DataSet(about, lambda: (about, own))


def write_artifact(target: Path, make: Callable[[Path], Manifest]) -> Artifact:
    """An artifact of the files that ``make`` writes into the folder it is given and of the manifest it returns."""
    with whole_artifact(target) as folder:
        about = sealed(make(folder), folder)
    return Artifact(path=target, manifest=about)


class Silent:
    """A console that remembers what was said and checks what it is shown of the progress."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, label: str, done: int, total: int) -> None:
        assert 0 <= done <= total


class Commands:
    """The command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.capfd.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["compress", *arguments])
        code = cli.main()
        return (code, *self.capfd.readouterr())

    def done(self, *arguments: str) -> dict[str, Any]:
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture(scope="module", autouse=True)
def measured_briefly() -> Iterator[None]:
    """For tests that claim nothing of figures: a benchmark in this process has two launches, turns of a search take a tenth of their time,
    and the peak of this machine is measured once. A ``conftest`` that wants it imports it.
    """
    usual = network.measuring

    def measuring(options: Any) -> Mapping[str, Any]:
        return {"launches": 2, **usual(options)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "measuring", measuring)
        patch.setattr(turns, "TURN_SECONDS", turns.TURN_SECONDS / 10)
        patch.setattr(place, "gemm_peak", functools.cache(place.gemm_peak))
        yield
