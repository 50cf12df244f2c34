"""Data sets, the training loop and metrics. Knows nothing of ``compress``, ``models`` or ``benchmarks``."""
