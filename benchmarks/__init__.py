"""Measures model files and compares them. The ONNX path needs numpy and onnxruntime only, so that it runs on a board."""
