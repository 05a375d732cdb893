"""Refuse what does not fit a GPU, and say what does: fewer or shorter sequences, fewer bits, a larger GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from q2export.contracts.profile import Profile
from q2export.contracts.profile_loading import fit_to_model, load_profile, profile_names
from q2export.contracts.quantization import BITS, WeightType
from q2export.errors import ProfileError
from q2export.pipeline.memory import RESERVED_BYTES, GpuNeed, MemoryBudget, budget

if TYPE_CHECKING:
    from q2export.exporter.checkpoint.config import ModelConfig
    from q2export.exporter.weights.plan import WeightPlan

_MIB = 1 << 20
LARGEST_TENSOR = (1 << 31) - 1
"""Elements of the largest tensor that TensorRT documents to take, and that ONNX Runtime's kernels on CUDA
count.

Nobody here has tried a larger one.
"""

_NARROWER: tuple[WeightType, ...] = ("int8", "int4")  # the least loss first
_ROUTED_EXPERTS = ("*.experts.*",)  # which the plugin for mixtures of experts takes in 16 bits alone
_OF_ONE_GPU = ("gpu", "compute_capability", "memory_mib")


@dataclass(frozen=True)
class Alternative:
    """Another way to hold the weights.

    Attributes:
        words: how it differs, ``"int4 weights"``.
        overrides: of the profile, that ask for it.
        budget: what an engine then needs.
    """

    words: str
    overrides: Mapping[str, object]
    budget: MemoryBudget


@dataclass(frozen=True)
class _Way:
    """Something that would fit: in words, and as overrides of the profile."""

    words: str
    overrides: Mapping[str, object]


def narrower_weights(plan: WeightPlan, profile: Profile, dtype: str) -> Iterator[Alternative]:
    """Weights of fewer bits than the profile asks for; from headers alone.

    Args:
        plan: of the weights as they are asked for.
        profile: what to build for.
        dtype: of the graph.
    """
    from q2export.exporter.checkpoint.source import Source
    from q2export.exporter.weights.plan import quantized
    from q2export.exporter.weights.sizes import planned_bytes

    source, asked = plan.source, profile.quantization
    if not isinstance(source, Source) or source.quantization is not None:
        return
    keep = asked.keep or (() if plan.config.moe is None else _ROUTED_EXPERTS)
    for weights in _NARROWER:
        if asked.enabled and BITS[weights] >= BITS[asked.weights]:
            continue
        try:
            narrow = quantized(source, replace(asked, weights=weights, keep=keep))
        except ProfileError:  # its blocks do not fit the model
            continue
        overrides: dict[str, object] = {"quantization.weights": weights}
        if keep != asked.keep:
            overrides["quantization.keep"] = list(keep)
        total = planned_bytes(narrow, profile.target, dtype).total
        yield Alternative(f"{weights} weights", overrides, budget(narrow.config, dtype, total, profile))


def check_tensor_sizes(config: ModelConfig, profile: Profile) -> None:
    """Refuse a batch with which the cache of a layer, or the logits of a step, is too large a tensor.

    Raises:
        ProfileError: naming the tensor, and the largest batch and the other size that would be taken.
    """
    batch, logits = profile.batch.max, min(profile.max_logits, profile.prefill_chunk)
    width = config.num_key_value_heads * config.head_dim
    for tensor, key, length, size in (
        ("the keys of a layer", "capacity.max", profile.capacity.max, width),
        ("the logits of a step", "max_logits", logits, config.vocab_size),
    ):
        if batch * length * size <= LARGEST_TENSOR:
            continue
        largest = {"batch.max": LARGEST_TENSOR // (length * size), key: LARGEST_TENSOR // (batch * size)}
        ways = {name: most for name, most in largest.items() if most}
        raise ProfileError(
            f"{tensor} would have {batch * length * size:,} elements with batch.max {batch} and {key} "
            f"{length}, and a tensor on a GPU has at most {LARGEST_TENSOR:,}; the largest that would be "
            f"taken: {' or '.join(f'{name} {most}' for name, most in ways.items())}",
            [{name: most} for name, most in ways.items()],
        )


def check_gpu_memory(wanted: MemoryBudget, profile: Profile, narrower: Iterable[Alternative] = ()) -> GpuNeed:
    """Refuse a batch and capacity that cannot fit the profile's GPU together with the model.

    Args:
        wanted: the model's budget.
        profile: names the GPU, its memory, the largest batch and capacity. Without ``memory_mib`` nothing is
            refused.
        narrower: from :func:`narrower_weights`; looked at only to refuse.

    Returns:
        What is needed.

    Raises:
        ProfileError: naming what is needed, what there is, and what would fit.
    """
    available = None if profile.memory_mib is None else profile.memory_mib * _MIB
    need = wanted.need(profile.batch.max, profile.capacity.max, available)
    if available is None or need.total <= available:
        return need
    words, ways = _ways_out(wanted, profile, available, narrower)
    raise ProfileError(
        f"{profile.gpu or profile.name} has {_gib(available)}, but batch {need.batch} with capacity "
        f"{need.capacity} needs {_gib(need.total)}: weights {_gib(need.weights)}, KV cache "
        f"{_gib(need.kv_cache)}, activations {_gib(need.activations)}, reserve {_gib(RESERVED_BYTES)}; "
        f"{'; '.join(words)}",
        [dict(way.overrides) for way in ways],
    )


def _ways_out(
    wanted: MemoryBudget, profile: Profile, available: int, narrower: Iterable[Alternative]
) -> tuple[list[str], list[_Way]]:
    """What would fit: in words, and one by one."""
    ways = list(_smaller(wanted, profile, available))
    words = [f"the largest that would fit: {_joined(ways)}" if ways else "not even one sequence fits"]

    def fits_whole(other: Alternative) -> bool:
        found = list(_smaller(other.budget, profile, available))
        if found:
            words.append(f"with {other.words}: {_joined(found)}")
            ways.extend(_Way(way.words, {**other.overrides, **way.overrides}) for way in found)
        return bool(found) and not found[0].overrides

    others = list(narrower)
    for other in others:
        if fits_whole(other):
            break
    if not ways and not wanted.streamed and profile.target == "tensorrt":
        streamed = replace(wanted, streamed=True)
        fits_whole(Alternative("weights streamed from the host", {"weight_streaming": True}, streamed))
    as_they_are = Alternative("weights as they are", {}, wanted)
    if larger := _larger_gpu((as_they_are, *others), profile):
        words.append(larger.words)
        ways.append(larger)
    if not ways:
        words.append("use a GPU with more memory")
    return words, ways


def _smaller(wanted: MemoryBudget, profile: Profile, available: int) -> Iterator[_Way]:
    """The profile's own batch and capacity where they fit, else the largest of either beside the other."""
    batch, capacity = profile.batch.max, profile.capacity.max
    if wanted.need(batch, capacity, available).total <= available:
        yield _way(batch, capacity)
        return
    if tokens := wanted.largest_capacity(batch, capacity, available):
        yield _way(batch, tokens, {"capacity.max": tokens})
    if rows := wanted.largest_batch(capacity, batch, available):
        yield _way(rows, capacity, {"batch.max": rows})
    elif batch > 1 and (tokens := wanted.largest_capacity(1, capacity, available)):
        yield _way(1, tokens, {"batch.max": 1, "capacity.max": tokens})


def _way(batch: int, capacity: int, overrides: Mapping[str, object] | None = None) -> _Way:
    return _Way(f"batch {batch} with capacity {capacity}", overrides or {})


def _larger_gpu(choices: Iterable[Alternative], profile: Profile) -> _Way | None:
    """The smallest GPU of a packaged profile that takes all that is asked for; the widest weights first."""
    given = profile.overrides()
    if profile.memory_mib is None or any(key in given for key in _OF_ONE_GPU):
        return None
    found = (load_profile(name) for name in profile_names())
    sizes = sorted((one.memory_mib or 0, one.name) for one in found)
    larger = [name for memory_mib, name in sizes if memory_mib > profile.memory_mib]
    for choice in choices:
        for name in larger:
            if _fits_profile(name, {**given, **choice.overrides}, choice.budget):
                with_weights = f" with {choice.words}" if choice.overrides else ""
                return _Way(f"profile {name} has room{with_weights}", {"profile": name, **choice.overrides})
    return None


def _fits_profile(name: str, overrides: Mapping[str, object], wanted: MemoryBudget) -> bool:
    try:
        profile = fit_to_model(load_profile(name, overrides), wanted.config.context_length)
    except ProfileError:  # what is given contradicts that profile
        return False
    needs = budget(wanted.config, wanted.dtype, wanted.weight_bytes, profile)
    available = (profile.memory_mib or 0) * _MIB
    return needs.need(profile.batch.max, profile.capacity.max, available).total <= available


def _joined(ways: Iterable[_Way]) -> str:
    return " or ".join(dict.fromkeys(way.words for way in ways))


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
