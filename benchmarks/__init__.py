"""Benchmarks of q2export: one runner, cases in data files, peers measured side by side in the same run."""

import os

# Before any contestant imports ONNX Runtime: nobody is measured while it reports home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
