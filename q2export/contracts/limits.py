"""Largest sizes of models, profiles and engines: beyond these, a number is a mistake or an attack."""

MAX_SIZE = (1 << 31) - 1
"""Of a dimension of a model; keeps every product of two within 64 bits."""
MAX_LAYERS = 1 << 12
MAX_BATCH = 1 << 16
MAX_TOKENS = 1 << 24
"""Of one sequence, and of one step."""
MAX_THREADS = 1 << 10
MAX_MIB = 1 << 24
