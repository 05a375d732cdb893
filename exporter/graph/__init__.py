"""The canonical graph: traced modules, custom ops, and their emission as ONNX."""
