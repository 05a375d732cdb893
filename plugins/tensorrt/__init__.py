"""The Python half of the TensorRT plugins: one generic plugin class, driven by the op specification."""
