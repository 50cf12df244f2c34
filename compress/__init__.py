"""Take a trained vision network to the smallest, fastest file that still reads as well, and prove it.

A network goes through stages (train, prune, export, quantize); each reads one artifact from disk and writes another, and the
benchmark compares whatever artifacts exist. Command: ``compress run --model k49 --data digits``. From Python::

    import compress

    k49 = compress.open("k49", data="digits")
    trained = k49.train(epochs=12)
    small = k49.remove_channels(trained, max_macs=0.35)
    print(k49.benchmark().verdict)
"""

from .api.files import compare, recipe_schema, verify
from .api.network import Network, open
from .errors import ArtifactError, CompressError, NetworkError

__all__ = ["ArtifactError", "CompressError", "Network", "NetworkError", "compare", "open", "recipe_schema", "verify"]
__version__ = "0.1.0"
