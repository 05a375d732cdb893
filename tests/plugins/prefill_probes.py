"""``prefill_probes.cu``, for the host or a GPU, called on torch tensors; and a plain reference.

python -m tests.plugins.prefill_probes LIBRARY: every tile, in a process that may abort.
"""

from __future__ import annotations

import ctypes
import math
import sys
from ctypes import Structure, byref, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from q2export.plugins.tensorrt.kernels import AttentionDesc, AttentionTensors
from tests.host_cuda.compiling import CSRC
from tests.host_cuda.gpus import Gpu
from tests.plugins.kernels import DTYPES, KernelError, pointers

SOURCES = [
    *sorted(CSRC.glob("kernels/attention/prefill*.cu")),
    CSRC / "kernels" / "common" / "error.cu",
    Path(__file__).with_name("prefill_probes.cu"),
]

SHORT, TALL, HOPPER = range(3)  # PrefillTile
TILES = [SHORT, TALL, HOPPER]
NAMES = ["short", "tall", "hopper"]
ROWS = {SHORT: 64, TALL: 128, HOPPER: 128}  # of a block
KEYS = 64  # of one tile


class Plan(Structure):
    """``PrefillPlan`` of prefill_heuristics.h."""

    _fields_ = [("tile", c_int32), ("row_tiles", c_int64), ("section", c_int64), ("blocks", c_int64)]


class GpuStruct(Structure):
    """``Gpu`` of common/gpu.h."""

    _fields_ = [
        ("compute_capability", c_int32),
        ("multiprocessors", c_int32),
        ("shared_bytes_per_block", c_int32),
        ("shared_bytes_per_multiprocessor", c_int32),
        ("l2_bytes", c_int64),
    ]


@dataclass(frozen=True)
class Batch:
    """A ragged batch whose new keys and values are in the cache.

    Attributes:
        query: [batch, sequence, num_heads, head_dim]; NaN beyond each row's tokens.
        key, value: [batch, num_kv_heads, capacity, head_dim]; NaN beyond each row's keys.
        past: tokens in the cache before the new ones, for each row.
        fresh: new tokens of each row.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    past: list[int]
    fresh: list[int]

    @classmethod
    def random(
        cls,
        dtype: torch.dtype,
        head_dim: int,
        heads: tuple[int, int],
        past: list[int],
        fresh: list[int],
        spare: int = 3,
    ) -> Batch:
        """``heads``: num_heads and num_kv_heads. ``spare``: places of the cache no row needs."""
        sequence = max(17, *fresh)
        capacity = max(p + f for p, f in zip(past, fresh, strict=True)) + spare
        query = torch.randn(len(past), sequence, heads[0], head_dim).to(dtype)
        key, value = (torch.randn(len(past), heads[1], capacity, head_dim).to(dtype) for _ in range(2))
        for row, (p, f) in enumerate(zip(past, fresh, strict=True)):
            query[row, f:] = math.nan
            key[row, :, p + f :] = math.nan
            value[row, :, p + f :] = math.nan
        return cls(query, key, value, past, fresh)

    def desc(self, window: int = 0, scale: float | None = None) -> AttentionDesc:
        batch, sequence, heads, head_dim = self.query.shape
        kv_heads, capacity = self.key.shape[1:3]
        scale = head_dim**-0.5 if scale is None else scale
        dtype = DTYPES[self.query.dtype]
        return AttentionDesc(batch, sequence, capacity, heads, kv_heads, head_dim, window, dtype, scale)

    def attention(self, dtype: torch.dtype, window: int, scale: float) -> Tensor:
        """Softmax written out, in ``dtype``; [batch, sequence, num_heads, head_dim], zero for padding."""
        device = self.query.device
        output = torch.zeros(self.query.shape, dtype=dtype, device=device)
        group = self.query.shape[2] // self.key.shape[1]
        for row, (past, fresh) in enumerate(zip(self.past, self.fresh, strict=True)):
            query = self.query[row, :fresh].to(dtype).transpose(0, 1)
            key, value = (
                cache[row, :, : past + fresh].to(dtype).repeat_interleave(group, dim=0)
                for cache in (self.key, self.value)
            )
            last = past + torch.arange(fresh, device=device)[:, None]
            position = torch.arange(past + fresh, device=device)
            hidden = position > last
            if window:
                hidden |= position <= last - window
            scores = (query @ key.transpose(1, 2) * scale).masked_fill(hidden, -math.inf)
            output[row, :fresh] = (scores.softmax(dim=-1) @ value).transpose(0, 1)
        return output


class Prefill:
    """The functions of ``prefill_probes.cu``.

    Args:
        library: compiled from ``SOURCES``.
        device: where it wants its tensors.
    """

    def __init__(self, library: Path, device: str = "cpu") -> None:
        self.device = device
        self.library = ctypes.CDLL(str(library))
        self.library.q2export_last_error.restype = c_char_p
        self.library.probe_prefill_shared_bytes.restype = c_int64

    def plan(self, desc: AttentionDesc, gpu: Gpu, tile: int = -1) -> Plan:
        """The plan; ``tile`` in place of the one it would choose."""
        plan = Plan()
        self.library.probe_prefill_plan(byref(desc), byref(GpuStruct(*astuple(gpu))), tile, byref(plan))
        return plan

    def __call__(
        self, batch: Batch, tile: int, window: int = 0, scale: float | None = None, section: int = 0
    ) -> Tensor:
        """The output; ``section`` of the plan is all pairs unless told. Checks that nothing follows it."""
        desc = batch.desc(window, scale)
        pairs = desc.batch * desc.num_kv_heads
        row_tiles = -(-desc.sequence * (desc.num_heads // desc.num_kv_heads) // ROWS[tile])
        plan = Plan(tile, row_tiles, section or pairs, pairs * row_tiles)
        storage = torch.full((batch.query.numel() + 64,), math.nan, dtype=batch.query.dtype).to(self.device)
        output = storage[:-64].view(batch.query.shape)
        lengths = [torch.tensor(x, dtype=torch.int64) for x in (batch.past, batch.fresh)]
        query, key, value, *lengths = (
            x.to(self.device) for x in (batch.query, batch.key, batch.value, *lengths)
        )
        none = c_void_p(None)
        cache = pointers(key, value)
        struct = AttentionTensors(
            *pointers(query), none, none, *cache, *pointers(*lengths), *pointers(output), *cache
        )
        if self.library.probe_prefill(byref(desc), byref(struct), byref(plan), none):
            raise KernelError(self.library.q2export_last_error().decode())
        assert bool(storage[-64:].isnan().all()), "something was written behind the output"
        return output.cpu()


def main(library: Path) -> None:
    """Ragged rows, windows and lengths out of range, with nothing wrong."""
    torch.manual_seed(0)
    prefill = Prefill(library)
    for tile in TILES:
        for head_dim in (64, 128):
            prefill(Batch.random(torch.float16, head_dim, (7, 1), [0, 150, 5], [40, 5, 0], spare=0), tile)
            prefill(Batch.random(torch.bfloat16, head_dim, (2, 2), [200], [65], spare=0), tile, window=9)
        batch = Batch.random(torch.float16, 64, (2, 1), [20], [20], spare=0)
        for past in (-4, 37, 2**40):
            prefill(replace(batch, query=batch.query.nan_to_num(0.0), past=[past], fresh=[99]), tile)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
