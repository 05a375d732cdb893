"""Triton Inference Server: model repositories for its Python backend, and the model they run."""
