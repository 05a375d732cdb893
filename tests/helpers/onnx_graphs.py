"""Small ONNX graphs: written as text, given weights, run in ONNX Runtime as they are, and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from q2export.contracts import opspec
from q2export.exporter.graph.ops.functions import function_for
from q2export.plugins.kernel_build import CPU_LIBRARY

Array = npt.NDArray[np.generic]


def parse(text: str, functions: Sequence[opspec.OpSpec] = ()) -> ir.Model:
    """A model from the text of its graph, with the function bodies of some custom ops."""
    header = '<ir_version: 11, opset_import: ["" : 23, "q2export" : 1, "com.microsoft" : 1]>\n'
    proto = onnx.parser.parse_model(header + text)
    proto.functions.extend(function_for(spec) for spec in functions)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def fill(model: ir.Model, weights: Mapping[str, Array]) -> ir.Model:
    """Put the weights that have no data yet into the model itself."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            value.const_value = ir.tensor(weights[name], name=name)
    return model


def run(
    model: ir.Model | onnx.ModelProto, feed: Mapping[str, Array], *, with_kernels: bool = False
) -> dict[str, Array]:
    """Outputs by name. ONNX Runtime's own graph optimisations are off: what runs is what is written.

    With ``with_kernels``, our ops are run by our CPU kernels, else by their function bodies.
    """
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if with_kernels:
        if not CPU_LIBRARY.is_file():
            pytest.skip(f"needs {CPU_LIBRARY}, which takes a C++ compiler")
        options.register_custom_ops_library(str(CPU_LIBRARY))
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def op_types(model: ir.Model) -> list[str]:
    """Op types of the graph, in order."""
    return [node.op_type for node in model.graph]


def check_same(before: Mapping[str, Array], after: Mapping[str, Array], bound: float = 1e-6) -> None:
    """Same outputs in the same order, of the same shapes, and close."""
    assert list(before) == list(after)
    for name, expected in before.items():
        assert expected.shape == after[name].shape, name
        assert np.abs(expected - after[name]).max() <= bound, name
