"""The exporter: from a checkpoint, strictly read, to a canonical ONNX graph and its lowerings."""
