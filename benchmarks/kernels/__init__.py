"""The CUDA kernels on a GPU against their floors and PyTorch's own: ``python -m benchmarks.kernels``."""
