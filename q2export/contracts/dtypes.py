"""Element types: one name and size for each, and what the formats and libraries around us call it.

Names alone, so that anyone may import this; the objects of a library are looked up by these names where that
library is used (``getattr(torch, name)``, ``ir.DataType[dtype.onnx]``, ``getattr(trt.DataType,
dtype.tensorrt)``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

FloatDtype = Literal["float32", "float16", "bfloat16"]
"""What models are computed in, and their weights and caches kept in."""

FLOAT_NAMES: tuple[FloatDtype, ...] = get_args(FloatDtype)


@dataclass(frozen=True)
class Dtype:
    """One element type.

    Attributes:
        name: in profiles, manifests and messages; NumPy and PyTorch have the same (NumPy has no bfloat16).
        itemsize: bytes of one element.
        safetensors: in the header of a safetensors file.
        onnx: in ``TensorProto.DataType``.
        tensorrt: in ``nvinfer1::DataType``, without its ``k``.
        kernel_code: ``q2export_dtype`` of ``kernels.h``; None where the kernels have no such tensors.
    """

    name: str
    itemsize: int
    safetensors: str
    onnx: str
    tensorrt: str
    kernel_code: int | None = None


_ALL = (
    Dtype("float32", 4, "F32", "FLOAT", "FLOAT", 0),
    Dtype("float16", 2, "F16", "FLOAT16", "HALF", 1),
    Dtype("bfloat16", 2, "BF16", "BFLOAT16", "BF16", 2),
    Dtype("int64", 8, "I64", "INT64", "INT64"),
    Dtype("int32", 4, "I32", "INT32", "INT32"),
    Dtype("uint8", 1, "U8", "UINT8", "UINT8"),
)

BY_NAME: Mapping[str, Dtype] = MappingProxyType({each.name: each for each in _ALL})
BY_SAFETENSORS: Mapping[str, Dtype] = MappingProxyType({each.safetensors: each for each in _ALL})
BY_ONNX: Mapping[str, Dtype] = MappingProxyType({each.onnx: each for each in _ALL})
BY_TENSORRT: Mapping[str, Dtype] = MappingProxyType({each.tensorrt: each for each in _ALL})
