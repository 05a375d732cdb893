"""Time of each tile of Q2MoE on the GPU at hand, with and without overlapping launches, to choose among them.

python -m tests.gpu.moe_rates

``benchmarks/kernels`` measures what the plan chooses, against peers; here the tile is given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from ctypes import c_void_p

import torch
from torch import Tensor

from benchmarks.kernels.timing import GraphTimer
from q2export.plugins.tensorrt.kernels import MoeDesc
from tests.gpu.compiling import probes_for_gpu
from tests.plugins.kernels import DTYPES, pointers
from tests.plugins.moe_probes import HOPPER, TILES, Plan, TileKernels

SHAPES = {"57B-A14B": (3584, 2560, 64, 8), "1.5-MoE-A2.7B": (2048, 1408, 60, 4)}
"""hidden, intermediate, experts, top_k."""
TOKENS = [1, 8, 64, 128, 256, 512, 4096]
ROUNDS = 20
COPIES = 4  # of the activations, so that a graph's replays do not route alike


def launcher(kernels: TileKernels, shape: tuple[int, int, int, int], tokens: int) -> list[Callable[[], None]]:
    """Layers of bf16 with random weights and logits."""
    hidden, intermediate, num_experts, _ = shape
    dtype = torch.bfloat16

    def random(*size: int) -> Tensor:
        return torch.randn(*size, device="cuda", dtype=dtype)

    sizes = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    weights = [[random(*size) / size[1] ** 0.5 for _ in range(num_experts)] for size in sizes]
    arrays = [(c_void_p * num_experts)(*pointers(*kind)) for kind in weights]
    desc = MoeDesc(tokens, *shape, 0, DTYPES[dtype])
    workspace = kernels.workspace("moe", desc)
    inputs = [(random(tokens, hidden), random(tokens, num_experts)) for _ in range(COPIES)]
    output = torch.empty(tokens, hidden, device="cuda", dtype=dtype)

    def launch(activations: tuple[Tensor, Tensor]) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        arguments = [*pointers(*activations), *arrays, *pointers(output)]
        kernels.queue(desc, arguments, workspace, stream)
        assert weights  # what the arrays point to lives as long as this function

    return [lambda one=one: launch(one) for one in inputs]


def main() -> None:
    library = probes_for_gpu("moe")
    plan = Plan(library)
    kernels = {
        (tile, overlaps): TileKernels(library, tile, overlaps, "cuda")
        for tile in TILES
        for overlaps in (False, True)
    }
    capability = torch.cuda.get_device_capability()
    available = torch.cuda.get_device_properties(0).shared_memory_per_block_optin
    for name, shape in SHAPES.items():
        for tokens in TOKENS:
            times = []
            for (tile, overlaps), one in kernels.items():
                fits = plan.shared_bytes(tile) <= available
                if (
                    not fits
                    or (tile == HOPPER and capability != (9, 0))
                    or (overlaps and capability < (9, 0))
                ):
                    continue
                timer = GraphTimer(launcher(one, shape, tokens))
                timer.microseconds()
                median = statistics.median(timer.microseconds() for _ in range(ROUNDS))
                times.append(f"{tile}{'+' if overlaps else ''} {median:.0f}")
            print(f"{name} {tokens} tokens, us per tile (+ overlapping): {', '.join(times)}", flush=True)


if __name__ == "__main__":
    main()
