"""The ONNX Runtime lowering for CUDA: rotation and attention become one op; every op keeps its function body.

``Q2RotaryAttention``, ``Q2MoE`` and ``Q2QuantizedMoE`` are run by our CUDA kernels, which
``libq2export_kernels.so`` registers as custom ops of the CUDA provider, and by their function bodies where
that is absent. Everything else is run by ONNX Runtime's own CUDA kernels
(tests/exporter/lowering/cuda_kernels.py has their types):

- ``Gemm`` with ``transB`` reads Hugging Face's [out, in] weights, which are copied to the GPU as they lie on
  disk;
- ``RMSNormalization`` and matmuls of float16 are summed in float32;
- the rows of a quantized embedding are ``GatherBlockQuantized``, matmuls with quantized weights
  ``MatMulNBits``.

A decode step can be a CUDA graph: what is computed on the CPU are shapes alone, which nothing copies to the
GPU (``exporter/passes/onnxruntime/select_logits.py``), and no kernel reads memory that a later step may free
(``split_bias.py``).
"""

from __future__ import annotations

import onnx_ir as ir

from q2export.exporter.passes.base import Pass
from q2export.exporter.passes.fuse_rotary_attention import FuseRotaryAttention
from q2export.exporter.passes.lower_quantized_experts import LowerQuantizedExperts
from q2export.exporter.passes.onnxruntime.lower_gather_block_quantized import LowerGatherBlockQuantized
from q2export.exporter.passes.onnxruntime.lower_matmul_nbits import LowerMatMulNBits
from q2export.exporter.passes.onnxruntime.select_logits import SelectLogits
from q2export.exporter.passes.onnxruntime.split_bias import SplitBias
from q2export.exporter.passes.order_inputs import OrderInputs
from q2export.exporter.passes.packed_operands import PackedWeights
from q2export.exporter.passes.remove_unused import RemoveUnused


def passes(packed: PackedWeights, dtype: ir.DataType) -> list[Pass]:
    """Return the passes, in order.

    Args:
        packed: the quantized weights, by Hugging Face name.
        dtype: of weights, activations and scales.
    """
    quantized: list[Pass] = [
        OrderInputs(packed),
        LowerQuantizedExperts(packed, "float32", words=True),
        LowerGatherBlockQuantized(packed),
        LowerMatMulNBits(packed),
    ]
    return [
        FuseRotaryAttention(),
        *(quantized if packed else []),
        SplitBias(),
        SelectLogits(),
        RemoveUnused(),
    ]
