"""Passes of the ONNX Runtime lowering."""
