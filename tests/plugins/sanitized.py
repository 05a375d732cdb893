"""The kernels on shapes that leave blocks half full, in a process that may abort: sanitizers, race detector.

python -m tests.plugins.sanitized LIBRARY clean|overflow
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from tests.host_cuda.gpus import A100, H200, L4, pretending
from tests.plugins.kernels import Kernels
from tests.plugins.test_csrc_kernels import experts, frequencies, ragged_batch
from tests.plugins.test_decode_kernels import batch_of


def clean(kernels: Kernels) -> None:
    """Every op, with nothing wrong."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(3, 1, 7, 6).to(dtype)
        kernels.rotary_embedding(x, torch.tensor([[3], [2], [131071]]), frequencies(6), 1.0)
    print("rotary")
    tensors = ragged_batch(7, 1, 64, torch.float16)
    kernels.attention(tensors, 3, scale=0.125, in_place=False)
    kernels.attention(tensors, 0, (frequencies(64), 1.0), scale=0.125)
    wrong = [*(tensor.nan_to_num(0.0) for tensor in tensors[:5]), torch.tensor([-1, 155, 154, 2**40])]
    kernels.attention([*wrong, torch.tensor([5, 5, 5, 99])], 0, (frequencies(64), 1.0), scale=0.125)
    decode(kernels)
    prefill(kernels)
    print("attention")
    moe(kernels)
    quantized_moe(kernels)
    print("moe")


def decode(kernels: Kernels) -> None:
    """Every block: four warps and eight, with keys of their own or shared; split and whole; a window."""
    for gpu, tokens in product((H200, L4, replace(A100, multiprocessors=1)), (1, 3)):
        with pretending(kernels.library, gpu):
            for dtype, head_dim in ((torch.float16, 64), (torch.bfloat16, 128)):
                tensors = batch_of([600, 0, 131], [tokens, 1, 0], 7, 1, head_dim, dtype)
                kernels.attention(tensors, scale=0.125)
                kernels.attention(tensors, 300, (frequencies(head_dim), 1.0), scale=0.125)


def prefill(kernels: Kernels) -> None:
    """Tall tiles, where one multiprocessor is soon busy, and short ones; a window; idle rows."""
    for gpu in (replace(A100, multiprocessors=1), L4):
        with pretending(kernels.library, gpu):
            for dtype, head_dim in ((torch.float16, 64), (torch.bfloat16, 128)):
                tensors = batch_of([70, 0, 131], [20, 17, 0], 7, 1, head_dim, dtype)
                kernels.attention(tensors, scale=0.125)
                kernels.attention(tensors, 30, (frequencies(head_dim), 1.0), scale=0.125)


def moe(kernels: Kernels) -> None:
    """The reference; every tile, with sizes that leave it half full; more experts than pointers by value."""
    kernels.moe(torch.randn(5, 24), torch.randn(5, 130), experts(130, 24, 10, torch.float32), 3, True)
    many, few = experts(130, 16, 8, torch.bfloat16), experts(3, 72, 40, torch.float16)
    for gpu, tokens in ((A100, 1), (A100, 28), (A100, 68), (A100, 100), (L4, 100)):
        with pretending(kernels.library, replace(gpu, multiprocessors=1)):
            logits = torch.randn(tokens, 130)
            kernels.moe(torch.randn(tokens, 72).half(), logits[:, :3].contiguous().half(), few, 2, False)
    kernels.moe(torch.randn(70, 16).bfloat16(), logits[:70].bfloat16(), many, 2, True)


def quantized_moe(kernels: Kernels) -> None:
    """The reference; every tile, half full; blocks of which a step has several, one or a half."""
    for bits, block, tokens, size in ((4, 32, 2, 32), (4, 32, 1, 128), (8, 128, 20, 128), (4, 128, 68, 128)):
        for dtype in (torch.float16, torch.bfloat16):
            packed = []
            for rows in (2 * size, size):
                packed.append(torch.randint(256, (2, rows, size * bits // 8), dtype=torch.uint8))
                packed.append(torch.randn(2, rows, size // block).half())
            inputs = torch.randn(tokens, size).to(dtype), torch.randn(tokens, 2).to(dtype)
            with pretending(kernels.library, replace(A100, multiprocessors=1)):
                kernels.quantized_moe(*inputs, packed, 2, False, bits, block)


def overflow(kernels: Kernels) -> None:
    """One logit fewer than there are experts."""
    kernels.moe(torch.randn(5, 24), torch.randn(5, 6), experts(7, 24, 10, torch.float32), 3, True)


if __name__ == "__main__":
    torch.manual_seed(0)
    {"clean": clean, "overflow": overflow}[sys.argv[2]](Kernels(Path(sys.argv[1])))
