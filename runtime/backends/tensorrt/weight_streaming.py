"""Weight streaming: how much GPU memory the weights may take, beside all else that a session needs."""

from __future__ import annotations

import logging
from typing import Any

from q2export.errors import PackageError
from q2export.runtime.backends.cuda.runtime import Cuda

RESERVED_BYTES = 512 << 20
"""Of the GPU's memory, for kernels that are loaded late, and for fragmentation."""

_log = logging.getLogger(__name__)


def limit_weights(engine: Any, cuda: Cuda, needed: int) -> bool:
    """Leave the weights the memory that scratch, the largest cache and its logits do not need.

    TensorRT's automatic budget is not used: it is near all memory that is free while none of these exist.

    Args:
        engine: ``ICudaEngine`` without execution contexts; with one, TensorRT takes no other budget.
        cuda: the GPU.
        needed: bytes that the session will allocate besides scratch memory.

    Returns:
        Whether weights stay in host memory, and are copied while steps run.

    Raises:
        PackageError: the engine refuses the budget.
    """
    streamable = int(engine.streamable_weights_size)
    if not streamable:
        return False
    engine.weight_streaming_budget_v2 = 0  # scratch memory now includes the most that staging weights takes
    profiles = range(engine.num_optimization_profiles)
    scratch = max(engine.get_device_memory_size_for_profile_v2(index) for index in profiles)
    room = cuda.free_memory() - scratch - needed - RESERVED_BYTES
    if room < 0:
        _log.warning(
            "the GPU lacks %.2f GB for the largest batch and capacity of the engine, with all weights in "
            "host memory: a smaller cache may fit",
            -room / 1e9,
        )
    budget = min(streamable, max(0, room))
    engine.weight_streaming_budget_v2 = budget
    if engine.weight_streaming_budget_v2 != budget:
        raise PackageError(
            f"the engine refuses a budget of {budget:,} bytes for its weights, of which {streamable:,} can "
            "be streamed; its log says why"
        )
    if budget == streamable:
        return False
    _log.warning(
        "%.2f of %.2f GB of weights stay in host memory and are copied in every step; decode steps run "
        "without a CUDA graph",
        (streamable - budget) / 1e9,
        streamable / 1e9,
    )
    return True
