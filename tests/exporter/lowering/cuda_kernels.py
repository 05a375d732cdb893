"""The types that ONNX Runtime's CUDA kernels take, of the ops that graphs for it have.

From docs/OperatorKernels.md of microsoft/onnxruntime at 001d12d2623fd411ce0f83d05abb5e82304a3389, section
CUDAExecutionProvider: the row of the newest version of an op up to opset 23; only types that our graphs may
have.
"""

from __future__ import annotations

HALVES = frozenset({"BFLOAT16", "FLOAT16"})
FLOATS = HALVES | {"FLOAT"}
ANY = FLOATS | {"INT64", "INT32", "UINT8"}
INDEX = frozenset({"INT64", "INT32"})
LENGTHS = frozenset({"INT64"})

CUDA_KERNELS: dict[tuple[str, str], tuple[frozenset[str], ...]] = {
    ("", "Add"): (ANY, ANY),
    ("", "Cast"): (ANY,),
    ("", "Concat"): (ANY,),
    ("", "Expand"): (ANY, LENGTHS),
    ("", "Gather"): (ANY, INDEX),
    ("", "GatherElements"): (ANY, INDEX),
    ("", "Gemm"): (FLOATS, FLOATS, FLOATS),
    ("", "Mul"): (ANY, ANY),
    ("", "RMSNormalization"): (FLOATS, FLOATS),
    ("", "Reshape"): (ANY, LENGTHS),
    ("", "Shape"): (ANY,),
    ("", "Sigmoid"): (FLOATS,),
    ("", "Unsqueeze"): (ANY, LENGTHS),
    ("com.microsoft", "GatherBlockQuantized"): (frozenset({"UINT8"}), INDEX, FLOATS, frozenset({"UINT8"})),
    ("com.microsoft", "MatMulNBits"): (FLOATS, frozenset({"UINT8"}), FLOATS, FLOATS | {"UINT8"}),
}
"""Types of each input; of a variadic one, and of all that follow, those of the last."""
