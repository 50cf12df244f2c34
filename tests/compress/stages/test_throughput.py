"""Measuring how fast training is: every variant really trains, and the ratios are those of the figures beside them. No time is asserted."""

import dataclasses
import statistics
from pathlib import Path

import numpy as np
import pytest
from stand_ins import recorded

from compress.artifacts.artifact import InputSpec
from compress.artifacts.model_reference import ModelReference
from compress.artifacts.project import Project
from compress.cli.terminal import Terminal
from compress.cli.views import throughput_text
from compress.errors import CompressError
from compress.stages.throughput import PLAIN, VARIANTS, Job, measure_throughput
from compress.train.data_set import Part
from compress.train.settings import AugmentConfig, FitConfig
from compress.train.sources import load_data

CONFIG = FitConfig(batch=16, lr=0.003, augment=AugmentConfig(rotate=5, shift=1, elastic=0.5))
MODEL = ModelReference(reference="emnist", options={"channels": [4, 8], "hidden": 16})


@pytest.fixture(scope="module")
def project() -> Project:
    data = load_data("digits")
    return Project(
        folder=Path("none"), model=MODEL, spec=InputSpec(), data=data, source=recorded("digits"), console=Terminal(), device="cpu"
    )


@pytest.mark.parametrize("name", [name for name in VARIANTS if "compile" not in name and "workers" not in name])
def test_every_variant_trains(name: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the third block is below that of the first; the real loop's is read from the history that fit returns."""
    from compress.stages import throughput

    losses: list[float] = []
    real = throughput.fit

    def fit(*args: object, **options: object) -> object:
        fitted = real(*args, **options)  # type: ignore[arg-type]
        losses.append(fitted.history[0]["train_loss"])
        return fitted

    monkeypatch.setattr(throughput, "fit", fit)
    part = Part(project.data.train.images[:512], project.data.train.labels[:512])
    job = Job(model=MODEL, spec=project.spec, classes=10, part=part, config=dataclasses.replace(CONFIG, epochs=1), device="cpu", threads=1)
    block = VARIANTS[name](job)
    returned = [block() for _ in range(3)]
    found = losses or returned
    assert found[2] < found[0]


def test_ratios_are_those_of_rounds_side_by_side(project: Project) -> None:
    plain, other = measure_throughput(project, dataclasses.replace(CONFIG, batch=4), rounds=2, variants=["in memory"])
    assert (plain.variant, plain.ratio, other.variant) == (PLAIN, None, "in memory")
    ratios = np.array(other.images_per_second) / plain.images_per_second
    assert other.ratio is not None and other.ratio.value == pytest.approx(statistics.geometric_mean(ratios))
    first, second = throughput_text([plain, other]).splitlines()[2:]
    assert first.split()[-1] == "baseline" and f" {other.ratio.value:.2f} (" in second


def test_wrong_settings_are_refused(project: Project) -> None:
    with pytest.raises(CompressError, match=r"rounds \(=1\) must lie in 2 to 30; an interval needs two, 5 are the default"):
        measure_throughput(project, CONFIG, rounds=1)
    with pytest.raises(CompressError, match=r"variant \(=fast\) must be one of plain loop, "):
        measure_throughput(project, CONFIG, variants=["fast"])
