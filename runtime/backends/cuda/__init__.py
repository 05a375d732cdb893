"""What runs steps on an NVIDIA GPU, whichever library computes them, without PyTorch.

``backend.CudaBackend`` owns the memory of caches, inputs and logits, cuts steps to what an engine takes and
replays decode steps as CUDA graphs. An ``executor.Executor`` runs the engine. The arithmetic beneath them
(``buffers``, ``steps``, ``graphs``) knows no CUDA.
"""
