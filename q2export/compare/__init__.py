"""Engines against PyTorch: parity, quality after quantization, polygraphy."""
