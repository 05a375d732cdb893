"""Engines for ONNX Runtime on an NVIDIA GPU: ``open.open_backend`` loads one."""
