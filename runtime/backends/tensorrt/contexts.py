"""Execution contexts: one per optimization profile, never two at once, over the same scratch memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from q2export.errors import PackageError
from q2export.runtime.backends.cuda.buffers import aligned
from q2export.runtime.backends.cuda.runtime import Cuda
from q2export.runtime.backends.cuda.steps import StepProfile
from q2export.runtime.backends.tensorrt.runtime_cache import RuntimeCache


@dataclass(frozen=True)
class Contexts:
    """The contexts of an engine.

    Attributes:
        of_profile: ``IExecutionContext`` by the index of its profile.
        scratch: address of the memory they share.
        cache: kernels compiled here; None where the library compiles none.
    """

    of_profile: Mapping[int, Any]
    scratch: int
    cache: RuntimeCache | None


def make_contexts(
    engine: Any,
    trt: ModuleType,
    cuda: Cuda,
    stream: int,
    profiles: Sequence[StepProfile],
    cache_file: Path | None = None,
) -> Contexts:
    """Make the contexts, and allocate their scratch memory.

    TensorRT-RTX compiles kernels for the shapes it meets. Graphs that were captured before do not hold them,
    so the context that decodes, whose shapes are few, waits for them (``EAGER``). The others, which meet
    prompts of any length, go on with general ones meanwhile.

    Args:
        engine: ``ICudaEngine``. trt: its library.
        cuda: the GPU. stream: that all work goes to.
        profiles: of the engine.
        cache_file: of kernels that TensorRT-RTX has compiled; None keeps none.

    Raises:
        PackageError: the engine makes no context. GenerationError: the GPU has too little memory left.
    """
    sizes = [engine.get_device_memory_size_for_profile_v2(one.index) for one in profiles]
    scratch = cuda.allocate(aligned(max(1, *sizes)))
    decodes = min(profiles, key=lambda one: one.sequence.max).index
    strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    cache: RuntimeCache | None = None
    found: dict[int, Any] = {}
    for one, size in zip(profiles, sizes, strict=True):
        settings: Any = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if strategies is not None:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(settings)
            config.dynamic_shapes_kernel_specialization_strategy = (
                strategies.EAGER if one.index == decodes else strategies.LAZY
            )
            if cache is None and cache_file is not None:
                cache = RuntimeCache(config.create_runtime_cache(), cache_file)
            if cache is not None:
                config.set_runtime_cache(cache.cache)
            settings = config
        context = engine.create_execution_context(settings)
        if context is None or not context.set_optimization_profile_async(one.index, stream):
            cuda.free(scratch)
            raise PackageError(
                f"the engine cannot run its optimization profile {one.index}; its log says why"
            )
        context.set_device_memory(scratch, size)
        found[one.index] = context
    return Contexts(found, scratch, cache)


def is_capturable(context: Any, stream: int) -> bool:
    """Whether its next step can be captured; only TensorRT-RTX, which compiles kernels late, may say no."""
    ask = getattr(context, "is_stream_capturable", None)
    return ask is None or bool(ask(stream))
