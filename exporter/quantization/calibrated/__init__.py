"""Quantization with text to calibrate on (GPTQ), layer by layer through what is quantized already."""
