"""Small checkpoints whose bindings are planned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors.torch import save_file

from q2export.exporter.checkpoint.folder import SINGLE_FILE, open_checkpoint
from q2export.exporter.weights.bind import BindingPlan, plan_binding

Tensors = dict[str, torch.Tensor]

IR_TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


def graph_of(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> ir.Model:
    """A graph that has nothing but unbound initializers of one type."""
    graph = ir.Graph((), (), nodes=(), opset_imports={"": 23}, name="g")
    for name, tensor in tensors.items():
        shape = ir.Shape(list(tensor.shape))
        graph.initializers.add(ir.Value(name=name, type=ir.TensorType(IR_TYPES[dtype]), shape=shape))
    return ir.Model(graph, ir_version=11)


def plan_of(folder: Path, tensors: Tensors, dtype: torch.dtype) -> BindingPlan:
    save_file(tensors, folder / SINGLE_FILE)
    checkpoint = open_checkpoint(folder)
    return plan_binding(graph_of(tensors, dtype), checkpoint, tensors)


def mixed_tensors() -> Tensors:
    """Matrices in bfloat16, norms in float32, one tensor in float16; odd sizes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5, 7, generator=generator).bfloat16(),
        "a.norm": torch.randn(13, generator=generator),
        "b.weight": torch.randn(3, 1, generator=generator).half(),
        "b.norm": torch.randn(1, generator=generator),
        "c.weight": torch.randn(11, 3, generator=generator).bfloat16(),
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
