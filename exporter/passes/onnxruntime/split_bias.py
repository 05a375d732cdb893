"""``Gemm`` with a bias -> ``Gemm``, then ``Add``, for ONNX Runtime on CUDA.

Its ``Gemm`` spreads a bias by a product with a vector of ones. That vector is freed and made anew where a
later step has more rows, and a CUDA graph captured before would go on reading the freed memory. (ONNX
Runtime's ``IConstantBuffer``; later versions have a kernel for it. An ``Add`` is no slower than that
product.)
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.errors import ExportError
from q2export.exporter.passes.base import Inserter, Pass, PassResult, input_of, nodes_of, replace


class SplitBias(Pass):
    """``Gemm(x, W, bias)`` becomes ``Add(Gemm(x, W), bias)``."""

    def rewrite(self, model: ir.Model, result: PassResult) -> None:
        """Rewrite every matmul that has a bias."""
        graph = model.graph
        for gemm in nodes_of(graph, "Gemm"):
            if len(gemm.inputs) < 3:
                continue
            emit, output = Inserter(graph, gemm, gemm.name), gemm.outputs[0]
            attributes = {name: attribute.value for name, attribute in gemm.attributes.items()}
            inputs = [input_of(gemm, 0), input_of(gemm, 1)]
            product = emit.op(
                "Gemm", inputs, "product", attributes=attributes, dtype=output.dtype, shape=output.shape
            )
            replace(graph, gemm, [emit.op("Add", [product, input_of(gemm, 2)], "Bias")])
            result.matched += 1

    def ensures(self, model: ir.Model) -> None:
        """No matmul has a bias."""
        for gemm in nodes_of(model.graph, "Gemm"):
            if len(gemm.inputs) > 2:
                raise ExportError(f"{gemm.name}: a bias that could not be split off")
