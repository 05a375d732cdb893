"""Checkpoints on disk, read strictly: configuration, tensors, packed weights."""
