"""Rate of each tile of the prefill attention on the GPU at hand, to choose among them.

python -m tests.gpu.prefill_rates

``benchmarks/kernels`` measures what the plan chooses, against peers; here the tile is given.
"""

from __future__ import annotations

import statistics
from ctypes import byref, c_void_p

import torch

from benchmarks.kernels.timing import GraphTimer
from q2export.plugins.tensorrt.kernels import AttentionDesc, AttentionTensors
from tests.gpu.compiling import probes_for_gpu
from tests.host_cuda.gpus import H200
from tests.plugins.kernels import DTYPES, pointers
from tests.plugins.prefill_probes import HOPPER, NAMES, SHORT, TALL, Prefill

SHAPES = [(28, 4, 128), (14, 2, 64), (64, 8, 128), (16, 16, 128)]
"""num_heads, num_kv_heads and head_dim of 7B, 0.5B, 72B and Qwen1.5-MoE."""
ROUNDS = 20


def teraflops(prefill: Prefill, tile: int, shape: tuple[int, int, int], tokens: int) -> float:
    """Rate of one prompt of ``tokens``, causal, bf16; random inputs."""
    heads, kv_heads, head_dim = shape
    dtype = torch.bfloat16
    query = torch.randn(1, tokens, heads, head_dim, device="cuda", dtype=dtype)
    key, value = (torch.randn(1, kv_heads, tokens, head_dim, device="cuda", dtype=dtype) for _ in range(2))
    lengths = [torch.tensor([length], device="cuda") for length in (0, tokens)]
    output = torch.empty_like(query)
    desc = AttentionDesc(1, tokens, tokens, heads, kv_heads, head_dim, 0, DTYPES[dtype], head_dim**-0.5)
    plan = prefill.plan(desc, H200, tile)
    none = c_void_p(None)
    cache = pointers(key, value)
    struct = AttentionTensors(
        *pointers(query), none, none, *cache, *pointers(*lengths), *pointers(output), *cache
    )

    def launch() -> None:
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        assert prefill.library.probe_prefill(byref(desc), byref(struct), byref(plan), stream) == 0

    timer = GraphTimer([launch] * 4)
    timer.microseconds()
    median = statistics.median(timer.microseconds() for _ in range(ROUNDS))
    return 2 * heads * head_dim * tokens * (tokens + 1) / median / 1e6


def main() -> None:
    prefill = Prefill(probes_for_gpu("prefill"), "cuda")
    tiles = [SHORT, TALL]
    if torch.cuda.get_device_capability() == (9, 0):
        tiles.append(HOPPER)
    for shape in SHAPES:
        for tokens in (1024, 8192, 32768):
            rates = ", ".join(
                f"{NAMES[tile]} {teraflops(prefill, tile, shape, tokens):.0f}" for tile in tiles
            )
            print(f"{shape} {tokens} tokens, TFLOP/s: {rates}")


if __name__ == "__main__":
    main()
