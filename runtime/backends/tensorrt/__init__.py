"""TensorRT and TensorRT-RTX engines on an NVIDIA GPU: ``executor.open_backend`` loads one."""
