"""Take a trained vision network to the smallest, fastest file that still reads as well, and prove it.

A network goes through stages (train, prune, export, quantize); each reads one artifact from disk and writes another, and the
benchmark compares whatever artifacts exist. Command: ``compress run --model k49 --data digits``.
"""

__version__ = "0.1.0"
