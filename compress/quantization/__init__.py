"""Int8: what to quantize, how, and what it costs."""
