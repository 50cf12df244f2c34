"""Fine-tuning of a quantized graph."""
