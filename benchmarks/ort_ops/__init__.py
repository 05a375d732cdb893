"""Which ONNX Runtime CPU operator to lower each canonical op to, decided by measurement.

One module per op. Each offers :class:`~benchmarks.ort_ops.case.OpCase` objects: the same computation written
in several ways (contrib op, standard ops, decomposition), and a numpy reference that every variant is
compared with.
"""
