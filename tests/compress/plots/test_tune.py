"""Pictures of a study: drawn without a warning from whatever a study can hold."""

import pytest

from compress.plots.tune import draw_history, draw_importances, draw_slices
from compress.train.space import Choices, Range
from compress.train.tune import Summary, Trial

SPACE = {
    "train.lr": Range(low=1e-4, high=1e-2, log=True),
    "model-options.width": Range(low=8, high=8, whole=True),
    "model-options.widths": Choices(values=([16, 64, 176], [8])),
    "train.optimiser": Choices(values=("adam",)),
}


def trial(number: int, score: float | None, state: str = "complete") -> Trial:
    values = {"train.lr": 1e-3, "model-options.width": 8, "model-options.widths": [8], "train.optimiser": "adam"}
    return Trial(number=number, state=state, score=score, values=values, epochs=1, seconds=1.0)


@pytest.mark.parametrize(
    "trials",
    [
        (trial(0, 0.5),),
        (trial(0, 0.5), trial(1, 0.5)),
        (trial(0, None, "pruned"), trial(1, 0.1, "pruned"), trial(2, 0.9), trial(3, None, "running")),
        tuple(trial(number, 0.9 if number else 0.02) for number in range(30)),
    ],
    ids=["one", "all equal", "given up and running", "one far below"],
)
def test_every_study_can_be_drawn(trials: tuple[Trial, ...]) -> None:
    summary = Summary(trials=trials, importances={"train.lr": 0.7, "model-options.widths": 0.3})
    for picture in (draw_history(summary), draw_slices(summary, SPACE), draw_importances(summary)):
        assert picture.startswith(b"\x89PNG")
