"""Custom ops: torch operators with CPU references, and ONNX function bodies."""
