"""The names of element types against the libraries they are names of."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import safetensors.torch
import torch

from q2export.contracts.dtypes import BY_NAME, BY_ONNX, BY_SAFETENSORS, BY_TENSORRT, FLOAT_NAMES, Dtype


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
def test_every_library_knows_the_type_by_its_name(dtype: Dtype) -> None:
    tensor = torch.zeros(3, dtype=getattr(torch, dtype.name))
    assert tensor.element_size() == dtype.itemsize
    assert ir.DataType[dtype.onnx].itemsize == dtype.itemsize
    assert str(tensor.dtype) == f"torch.{dtype.name}"
    header = safetensors.torch.save({"x": tensor})
    assert f'"dtype":"{dtype.safetensors}"'.encode() in header


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
def test_tensorrt_knows_the_type_by_its_name(dtype: Dtype) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="tensorrt_rtx_bindings is not installed")
    assert getattr(trt.DataType, dtype.tensorrt).itemsize == dtype.itemsize


def test_each_mapping_leads_to_the_same_types() -> None:
    for mapping in (BY_SAFETENSORS, BY_ONNX, BY_TENSORRT):
        assert set(mapping.values()) == set(BY_NAME.values())
    assert [BY_NAME[name].kernel_code for name in FLOAT_NAMES] == [0, 1, 2]
