"""``python -m tests.gpu.workload LIBRARY``: every kernel once, at sizes a sanitizer can bear."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.plugins.kernels import Kernels


def main(library: Path) -> None:
    """Run the kernels of all ops in both half-precision types."""
    kernels = Kernels(library, "cuda")
    torch.manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        rotary(kernels, dtype)
        for head_dim in (64, 128):
            for sequence in (1, 9, 70):
                attention(kernels, dtype, head_dim, sequence)
        for tokens in (2, 40):
            moe(kernels, dtype, tokens)
    print("done")


def rotary(kernels: Kernels, dtype: torch.dtype) -> None:
    """Seven heads of 64."""
    x = torch.randn(2, 5, 7, 64).to(dtype)
    kernels.rotary_embedding(x, torch.arange(10).view(2, 5), torch.rand(32), 1.1)


def attention(kernels: Kernels, dtype: torch.dtype, head_dim: int, sequence: int) -> None:
    """A group of seven, one row empty but for its new tokens, and one with a past."""
    new = [torch.randn(2, sequence, heads, head_dim).to(dtype) for heads in (14, 2, 2)]
    caches = [torch.randn(2, 2, 300, head_dim).to(dtype) for _ in range(2)]
    lengths = [torch.tensor([0, 201]), torch.tensor([sequence, (sequence + 1) // 2])]
    rotation = (torch.rand(head_dim // 2), 1.0)
    kernels.attention([*new, *caches, *lengths], 0, rotation, scale=head_dim**-0.5)
    kernels.attention([*new, *caches, *lengths], 50, scale=head_dim**-0.5)


def moe(kernels: Kernels, dtype: torch.dtype, tokens: int) -> None:
    """Sixty experts, four each."""
    shapes = ((96, 128), (96, 128), (128, 96))
    weights = [[torch.randn(*shape).to(dtype) * 0.1 for _ in range(60)] for shape in shapes]
    kernels.moe(torch.randn(tokens, 128).to(dtype), torch.randn(tokens, 60).to(dtype), weights, 4, True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
