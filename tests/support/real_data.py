"""Real data sets, which lie beside the checkout where they are, and what skips a test where they are not."""

from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data"  # of tests/support: this file does not move with the rooms
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
