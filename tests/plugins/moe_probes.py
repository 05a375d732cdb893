"""``moe_probes.cu``, for the host or a GPU; and Q2MoE in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, byref, c_bool, c_int32, c_int64, c_void_p
from dataclasses import astuple
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from q2export.plugins.tensorrt.kernels import MoeDesc, QuantizedMoeDesc
from tests.host_cuda.compiling import CSRC
from tests.host_cuda.gpus import Gpu
from tests.plugins.kernels import ALIGNMENT, Kernels

SOURCES = [
    *sorted(CSRC.glob("kernels/moe/*.cu")),
    *sorted(CSRC.glob("kernels/common/*.cu")),
    Path(__file__).with_name("moe_probes.cu"),
]

TILES = range(6)  # kMoeTiles
SMALL, MEDIUM, LARGE, LARGEST_FOR_99_KIB, LARGEST, HOPPER = TILES
BF16 = 2


def moe_in_float64(
    hidden: Tensor, logits: Tensor, weights: Sequence[Sequence[Tensor]], top_k: int, norm: bool
) -> Tensor:
    """Expert by expert; among equal logits the lower index first."""
    probability = logits.to(torch.float64).softmax(dim=-1)
    chosen = logits.to(torch.float64).sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weight = probability.gather(1, chosen)
    if norm:
        weight = weight / weight.sum(dim=-1, keepdim=True)
    output = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
    for e in chosen.unique().tolist():
        gate, up, down = (kind[e].to(torch.float64) for kind in weights)
        token, slot = (chosen == e).nonzero(as_tuple=True)
        x = hidden[token].to(torch.float64)
        activated = functional.silu(x @ gate.T) * (x @ up.T)
        output[token] += weight[token, slot, None] * (activated @ down.T)
    return output


class Tile(Structure):
    """``MoeTile``."""

    _fields_ = (
        *((name, c_int32) for name in ("weight_rows", "tokens", "weight_warps", "token_warps", "stages")),
        ("is_hopper", c_bool),
    )


class CGpu(Structure):
    """``Gpu``."""

    _fields_ = (*((name, c_int32) for name in ("cc", "sms", "per_block", "per_sm")), ("l2", c_int64))


class TokenTile(Structure):
    """``TokenTile``."""

    _fields_ = (
        *((name, c_int32) for name in ("expert", "first_tile", "tiles", "first_position", "slots")),
        ("padding", c_int32 * 3),
    )


class Work(Structure):
    """``Work``."""

    _fields_ = tuple((name, c_int32) for name in ("expert", "weight_tile", "first_position", "tokens"))


class Plan:
    """The plans of ``heuristics.h``, and where things lie in shared memory: ``probe_*``."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.probe_tile.restype = Tile
        self.library.probe_quantized_tile.restype = Tile
        for name in ("grid_blocks", "weight_tiles", "max_token_tiles"):
            getattr(self.library, f"probe_{name}").restype = c_int64

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        return getattr(self.library, f"probe_{name}")

    def tile_of(self, gpu: Gpu, tokens: int, shape: tuple[int, int, int, int]) -> int:
        """The tile for (hidden, intermediate, experts, top_k)."""
        desc = MoeDesc(tokens, *shape, 0, BF16)
        return self.choose(byref(desc), byref(CGpu(*astuple(gpu))))


class TileKernels(Kernels):
    """Q2MoE with a tile that the plan need not choose.

    Args:
        library: compiled from ``SOURCES``.
        tile: one of ``TILES``.
        overlaps: whether kernels may start before the one before them has ended; needs a GPU to matter.
        device: where the library wants its tensors.
    """

    def __init__(self, library: Path, tile: int, overlaps: bool = False, device: str = "cpu") -> None:
        super().__init__(library, device)
        self.tile, self.overlaps = tile, overlaps

    def call(self, op: str, desc: Structure, arguments: Sequence[object]) -> None:
        workspace = self.workspace(op, desc)
        self.queue(desc, arguments, workspace)
        assert bool((workspace[-ALIGNMENT:] == 0xFF).all()), "writes beyond its workspace"

    def queue(self, desc: Structure, arguments: Sequence[object], workspace: Tensor, stream: int = 0) -> None:
        """``probe_moe`` or ``probe_quantized_moe``; ``arguments`` are those of the op, hidden to output."""
        plan = (c_int32(self.tile), c_int32(self.overlaps))
        tail = (c_void_p(workspace.data_ptr()), c_void_p(stream))
        quantized = isinstance(desc, QuantizedMoeDesc)
        probe = self.library.probe_quantized_moe if quantized else self.library.probe_moe
        self.check(probe(byref(desc), *arguments, *plan, *tail))
