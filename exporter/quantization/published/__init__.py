"""Checkpoints that others quantized (GPTQ, AWQ): read, checked and repacked into the packed form."""
