"""The reference networks: ``k49`` (CBAM) and ``emnist`` (two convolutions). Needs torch and nothing else of this project."""
