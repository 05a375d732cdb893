"""The functions of ``kernels.h``, called on torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_float, c_size_t, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from q2export.plugins.tensorrt.kernels import (
    AttentionDesc,
    AttentionTensors,
    MoeDesc,
    QuantizedMoeDesc,
    RotaryDesc,
)

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ALIGNMENT = 256


class KernelError(Exception):
    """A kernel function refused; the message is that of ``q2export_last_error``."""


class Kernels:
    """The functions of ``kernels.h`` on CPU tensors; each returns new tensors and leaves its arguments alone.

    Args:
        library: compiled for the host, or by nvcc.
        device: where the library wants its tensors: "cpu" and "cuda".
    """

    def __init__(self, library: Path, device: str = "cpu") -> None:
        self.device = device
        self.library = ctypes.CDLL(str(library))
        self.library.q2export_last_error.restype = c_char_p
        self.library.q2export_status_string.restype = c_char_p

    def moved(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies on the device."""
        return [tensor.to(self.device, copy=True) for tensor in tensors]

    def check(self, status: int) -> None:
        if status:
            name = self.library.q2export_status_string(status).decode()
            raise KernelError(f"{name}: {self.library.q2export_last_error().decode()}")

    def workspace(self, op: str, desc: ctypes.Structure) -> Tensor:
        """A workspace full of NaN (0xff), with as many such bytes again behind it."""
        wanted = c_size_t(0)
        self.check(getattr(self.library, f"q2export_{op}_workspace_size")(byref(desc), byref(wanted)))
        storage = torch.full((wanted.value + 2 * ALIGNMENT,), 0xFF, dtype=torch.uint8, device=self.device)
        start = -storage.data_ptr() % ALIGNMENT
        return storage[start : start + wanted.value + ALIGNMENT]

    def call(self, op: str, desc: ctypes.Structure, arguments: Sequence[object]) -> None:
        workspace = self.workspace(op, desc)
        size = len(workspace) - ALIGNMENT
        tail = (c_void_p(workspace.data_ptr()), c_size_t(size), c_void_p(None))
        self.check(getattr(self.library, f"q2export_{op}")(byref(desc), *arguments, *tail))
        assert bool((workspace[size:] == 0xFF).all()), f"{op} writes beyond its workspace"

    def rotary_embedding(
        self,
        x: Tensor,
        position_ids: Tensor,
        inv_freq: Tensor,
        attention_factor: float,
        *,
        in_place: bool = False,
    ) -> Tensor:
        inputs = self.moved([x, position_ids, inv_freq])
        y = inputs[0] if in_place else torch.full_like(inputs[0], float("nan"))
        desc = RotaryDesc(*x.shape, DTYPES[x.dtype], attention_factor)
        self.call("rotary_embedding", desc, pointers(*inputs, y))
        return y.cpu()

    def attention(
        self,
        tensors: Sequence[Tensor],
        sliding_window: int = 0,
        rotation: tuple[Tensor, float] | None = None,
        *,
        scale: float,
        in_place: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Q2GroupQueryAttention, or Q2RotaryAttention where ``rotation`` gives inv_freq and the factor."""
        query, key, value, past_key, past_value, past_lengths, query_lengths = self.moved(tensors)
        batch, sequence, heads, head_dim = query.shape
        kv_heads, capacity = past_key.shape[1:3]
        output = torch.full_like(query, float("nan"))
        past = (past_key, past_value)
        present = past if in_place else (torch.empty_like(past_key), torch.empty_like(past_value))
        desc = AttentionDesc(
            batch, sequence, capacity, heads, kv_heads, head_dim, sliding_window, DTYPES[query.dtype], scale
        )
        addresses = pointers(query, key, value, *past, past_lengths, query_lengths, output, *present)
        struct = byref(AttentionTensors(*addresses))
        if rotation is None:
            self.call("group_query_attention", desc, [struct])
        else:
            inv_freq, factor = rotation[0].to(self.device), rotation[1]
            self.call("rotary_attention", desc, [struct, *pointers(inv_freq), c_float(factor)])
        return output.cpu(), present[0].cpu(), present[1].cpu()

    def moe(
        self,
        hidden: Tensor,
        router_logits: Tensor,
        weights: Sequence[Sequence[Tensor]],
        top_k: int,
        norm_topk_prob: bool,
    ) -> Tensor:
        """``weights``: gate, up and down, one tensor per expert each."""
        experts, intermediate = len(weights[0]), weights[0][0].shape[0]
        inputs = self.moved([hidden, router_logits])
        weights = [self.moved(kind) for kind in weights]
        output = torch.full_like(inputs[0], float("nan"))
        desc = MoeDesc(*hidden.shape, intermediate, experts, top_k, norm_topk_prob, DTYPES[hidden.dtype])
        arrays = [(c_void_p * experts)(*pointers(*kind)) for kind in weights]
        self.call("moe", desc, [*pointers(*inputs), *arrays, *pointers(output)])
        return output.cpu()

    def quantized_moe(
        self,
        hidden: Tensor,
        router_logits: Tensor,
        packed: Sequence[Tensor],
        top_k: int,
        norm_topk_prob: bool,
        bits: int,
        block_size: int,
    ) -> Tensor:
        """``packed``: gate_up, its scales, down and its scales, each of all experts."""
        experts, intermediate = packed[0].shape[0], packed[0].shape[1] // 2
        inputs = self.moved([hidden, router_logits, *packed])
        output = torch.full_like(inputs[0], float("nan"))
        dtype = DTYPES[hidden.dtype]
        desc = QuantizedMoeDesc(
            *hidden.shape, intermediate, experts, top_k, norm_topk_prob, dtype, bits, block_size
        )
        self.call("quantized_moe", desc, pointers(*inputs, output))
        return output.cpu()


def pointers(*tensors: Tensor) -> list[c_void_p]:
    """Addresses of dense tensors."""
    assert all(tensor.is_contiguous() for tensor in tensors)
    return [c_void_p(tensor.data_ptr()) for tensor in tensors]
