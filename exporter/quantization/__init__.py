"""Weight-only quantization: quantizers, published formats, and the one form in which both are stored."""
