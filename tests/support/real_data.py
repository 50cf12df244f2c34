"""Real data sets, which lie beside the checkout where they are, and what skips a test where they are not; and a few of the digits."""

from pathlib import Path

import numpy as np
import pytest

from compress.train.sources import load_data

DATA = Path(__file__).parents[3] / "shared" / "data"  # of tests/support: this file does not move with the rooms
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


def few_digits(folder: Path, train: int = 200, test: int = 60) -> Path:
    """Some of the digits in the Kuzushiji-49 layout: read in no time, and without scikit-learn, in every process that a test starts."""
    folder.mkdir(parents=True)
    data = load_data("digits")
    for name, part, count in (("train", data.train, train), ("test", data.test, test)):
        np.savez(folder / f"{name}-imgs.npz", part.images[:count, 0])
        np.savez(folder / f"{name}-labels.npz", part.labels[:count])
    return folder
