"""ONNX as a ``.tflite`` file, which LiteRT and phones take: by hand, operator by operator, without another converter."""
