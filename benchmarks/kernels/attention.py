"""Attention and rotary append: the kernels, PyTorch's attention in every form it has, and float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels.case import AttentionShape, Case, Launch, Workload, first_line
from q2export.contracts import opspec
from q2export.plugins.tensorrt.torch_ops import implementation

BACKENDS = {
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""Backends of ``scaled_dot_product_attention``; the mathematical one would only be the reference again."""


@dataclass(frozen=True)
class Inputs:
    """One set: the op's tensors, with the new keys already in the cache as PyTorch's attention wants them."""

    query: Tensor  # [batch, sequence, num_heads, head_dim]
    key: Tensor  # [batch, sequence, num_kv_heads, head_dim]
    value: Tensor
    past_key: Tensor  # [batch, num_kv_heads, capacity, head_dim]
    past_value: Tensor
    past_lengths: Tensor  # int64 [batch]
    query_lengths: Tensor


def make_inputs(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Random tensors, different in every call; the capacity is just what the longest row needs."""
    new = (shape.batch, shape.query)
    query = torch.randn(*new, shape.num_heads, shape.head_dim, dtype=dtype, device=device)
    key, value = (
        torch.randn(*new, shape.num_kv_heads, shape.head_dim, dtype=dtype, device=device) for _ in range(2)
    )
    cache = (shape.batch, shape.num_kv_heads, shape.past + shape.query, shape.head_dim)
    past_key, past_value = (torch.randn(cache, dtype=dtype, device=device) for _ in range(2))
    for row, past in enumerate(shape.pasts):
        past_key[row, :, past : past + shape.query] = key[row].transpose(0, 1)
        past_value[row, :, past : past + shape.query] = value[row].transpose(0, 1)
    past_lengths = torch.tensor(shape.pasts, device=device)
    query_lengths = torch.full((shape.batch,), shape.query, device=device)
    return Inputs(query, key, value, past_key, past_value, past_lengths, query_lengths)


def attention_workload(case: Case, device: torch.device, sets: int, with_peers: bool = True) -> Workload:
    """Append and attend; the peers only attend, over keys and values that are in place already."""
    shape = case.shape
    assert isinstance(shape, AttentionShape)
    inputs = [make_inputs(shape, case.torch_dtype, device) for _ in range(sets)]
    attend = implementation(opspec.ATTENTION, in_place=True)
    attributes = (shape.num_heads, shape.num_kv_heads, shape.head_dim**-0.5, 0)

    def subject(one: Inputs) -> Launch:
        return lambda: attend(*_tensors(one), *attributes)

    workload = Workload(
        subject=[subject(one) for one in inputs],
        peers={},
        reference=_exact(shape, inputs[0]),
        bytes_moved=attention_bytes(shape),
        flops=attention_flops(shape),
    )
    if device.type == "cuda" and with_peers:
        _add_peers(workload, shape, inputs)
    return workload


def _tensors(one: Inputs) -> tuple[Tensor, ...]:
    cache = (one.past_key, one.past_value, one.past_lengths, one.query_lengths)
    return (one.query, one.key, one.value, *cache)


def attention_bytes(shape: AttentionShape) -> int:
    """Query and output once, the cache read once, the new keys and values read and written."""
    rows = shape.batch * shape.query
    cache = sum(past + shape.query for past in shape.pasts) * shape.num_kv_heads
    elements = 2 * rows * shape.num_heads + 2 * cache + 4 * rows * shape.num_kv_heads
    return 2 * elements * shape.head_dim


def attention_flops(shape: AttentionShape) -> int:
    """Two products per visible pair of query and key."""
    pairs = sum(shape.query * past + shape.query * (shape.query + 1) // 2 for past in shape.pasts)
    return 4 * shape.num_heads * shape.head_dim * pairs


def _exact(shape: AttentionShape, one: Inputs) -> Tensor:
    """Float32, one row at a time."""
    rows = [
        _sdpa(q[None].float(), k[None].float(), v[None].float(), mask)
        for q, k, v, mask in zip(
            one.query, one.past_key, one.past_value, _visible(shape, one.query.device), strict=True
        )
    ]
    return torch.cat(rows)


def _visible(shape: AttentionShape, device: torch.device) -> Tensor:
    """Which keys each token sees, ``[batch, 1, query, keys]``."""
    pasts = torch.tensor(shape.pasts, device=device)[:, None, None, None]
    position = pasts + torch.arange(shape.query, device=device)[:, None]
    return torch.arange(shape.past + shape.query, device=device) <= position


def _sdpa(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """``scaled_dot_product_attention`` in the op's layout."""
    heads_first = query.transpose(1, 2)
    output = functional.scaled_dot_product_attention(
        heads_first, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=True
    )
    return output.transpose(1, 2)


def _add_peers(workload: Workload, shape: AttentionShape, inputs: list[Inputs]) -> None:
    causal, mask = shape.past == 0 and shape.query > 1, None
    if (shape.past and shape.query > 1) or shape.other_past is not None:
        causal, mask = False, _visible(shape, inputs[0].query.device)
    for name, backend in BACKENDS.items():

        def launch(one: Inputs, backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return _sdpa(one.query, one.past_key, one.past_value, mask, causal)

        _add(workload, name, launch, inputs)
    _add(workload, "flex_attention", _flex(shape, inputs[0].query.device), inputs)


def _flex(shape: AttentionShape, device: torch.device) -> Callable[[Inputs], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    pasts = torch.tensor(shape.pasts, device=device)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query + (shape.past if shape.other_past is None else pasts[batch])

    total, batch = shape.past + shape.query, None if shape.other_past is None else shape.batch
    block_mask = create_block_mask(visible, batch, None, shape.query, total, device=str(device))
    compiled = torch.compile(flex_attention, dynamic=False)

    def launch(one: Inputs) -> Tensor:
        output = compiled(
            one.query.transpose(1, 2), one.past_key, one.past_value, block_mask=block_mask, enable_gqa=True
        )
        return output.transpose(1, 2)

    return launch


def _add(workload: Workload, name: str, launch: Callable[[Inputs], Tensor], inputs: list[Inputs]) -> None:
    """Add a peer if it runs at all; what a backend does not take is its business to say."""
    try:
        launch(inputs[0])
    except (RuntimeError, NotImplementedError, ValueError) as error:
        workload.skipped[name] = first_line(error)
        return
    workload.peers[name] = [lambda one=one: launch(one) for one in inputs]  # type: ignore[misc]


def rotary_workload(case: Case, device: torch.device, sets: int) -> Workload:
    """The rotation of all heads of queries and keys, each read and written once.

    The kernel that rotates and appends belongs to the attention and has no entry of its own in the C ABI.
    """
    shape = case.shape
    assert isinstance(shape, AttentionShape)
    heads = shape.num_heads + shape.num_kv_heads
    rotate = implementation(opspec.ROTARY, in_place=False)
    inv_freq = 1e6 ** -(torch.arange(0, shape.head_dim, 2, device=device) / shape.head_dim)
    positions = (shape.past + torch.arange(shape.query, device=device)).expand(shape.batch, -1).contiguous()
    inputs = [
        torch.randn(shape.batch, shape.query, heads, shape.head_dim, dtype=case.torch_dtype, device=device)
        for _ in range(sets)
    ]

    def eager(x: Tensor) -> Tensor:
        angle = positions.float()[:, :, None, None] * inv_freq
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    workload = Workload(
        subject=[lambda x=x: rotate(x, positions, inv_freq, 1.0) for x in inputs],  # type: ignore[misc]
        peers={},
        reference=eager(inputs[0].double().float()),
        bytes_moved=4 * inputs[0].numel(),
        flops=0,
    )
    if device.type == "cuda":
        compiled = torch.compile(eager, dynamic=False)
        workload.peers["torch_compile"] = [lambda x=x: compiled(x) for x in inputs]  # type: ignore[misc]
    return workload
