"""TensorRT plugins of the custom ops; the kernels and their glue come with the TensorRT target."""
