"""What is in packages, ONNX files and checkpoints, and what this machine offers."""
