"""From tensors on disk to the initializers of a graph: in place or converted."""
