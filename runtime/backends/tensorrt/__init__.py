"""TensorRT and TensorRT-RTX engines on an NVIDIA GPU, through cuda-bindings, without PyTorch.

``session.open_backend`` loads an engine; the arithmetic beneath it (``buffers``, ``profiles``, ``graphs``)
knows neither CUDA nor TensorRT.
"""
