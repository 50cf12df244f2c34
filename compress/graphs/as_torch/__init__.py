"""An ONNX graph computed by torch."""
