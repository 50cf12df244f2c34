"""One thread per test and per program that a test starts: set before torch reads it, and small tests gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
