"""What an engine needs: closed forms, and the largest batch and capacity against trying them all."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q2export.contracts.profile import Profile
from q2export.contracts.profile_loading import fit_to_model, load_profile, profile_names
from q2export.contracts.ranges import Range
from q2export.errors import ProfileError
from q2export.exporter.checkpoint.config import ModelConfig, parse_config
from q2export.pipeline.fitting import check_gpu_memory
from q2export.pipeline.memory import RESERVED_BYTES, MemoryBudget, budget, host_bytes_to_build
from tests.helpers.checkpoints import tiny_config

GIB = 1 << 30
GPU_PROFILES = [name for name in profile_names() if load_profile(name).target == "tensorrt"]


def config(**fields: object) -> ModelConfig:
    return parse_config(tiny_config(**fields), "test")


SEVEN_B = config(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, vocab_size=152064, max_position_embeddings=131072,
)  # fmt: skip
SEVEN_B_BYTES = 2 * 7_615_616_512
MOE_57B = config(
    model_type="qwen2_moe", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_experts=64,
    num_attention_heads=28, num_key_value_heads=4, vocab_size=151936, num_experts_per_tok=8,
    moe_intermediate_size=2560, shared_expert_intermediate_size=20480, max_position_embeddings=65536,
)  # fmt: skip
MOE_57B_BYTES = 2 * 57_408_803_840


def test_cache_and_weights_in_closed_form() -> None:
    need = MemoryBudget(SEVEN_B, "bfloat16", SEVEN_B_BYTES, chunk=1024, logits=64).need(8, 32768)
    assert need.weights == SEVEN_B_BYTES
    assert need.kv_cache == 2 * 28 * 4 * 128 * 2 * 8 * 32768
    assert need.total == need.weights + need.kv_cache + need.activations + RESERVED_BYTES


def test_activations_in_closed_form() -> None:
    tokens = 3 * 512
    logits = (1 << 20) + 3 * 152064 * 4  # and what alignment adds
    dense = MemoryBudget(SEVEN_B, "float16", 0, chunk=512, logits=1)
    assert dense.activations(3, 512) == tokens * (6 * 3584 + 3 * 18944) * 2 + logits
    moe = MemoryBudget(MOE_57B, "float16", 0, chunk=512, logits=1)
    # as in plugins/tensorrt/workspace.py
    experts = 8 * tokens * (2 * 2560 + 3584) * 4 + (tokens * 64 + 8 * tokens + 64) * 64 + 4096
    needed = tokens * (9 * 3584 + 3 * 20480 + 64) * 2 + experts
    assert moe.activations(3, 512) == needed + (1 << 20) + 3 * 151936 * 4
    head = MemoryBudget(SEVEN_B, "float16", 0, chunk=512, logits=512)
    assert head.activations(3, 512) == (1 << 20) + tokens * 12 * 3584 * 2 + tokens * 152064 * (2 + 4)


HALF_B = config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
    num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768,
)  # fmt: skip
MOE_A2_7B = config(
    model_type="qwen2_moe", hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_experts=60,
    num_attention_heads=16, num_key_value_heads=16, vocab_size=151936, num_experts_per_tok=4,
    moe_intermediate_size=1408, shared_expert_intermediate_size=5632, max_position_embeddings=32768,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "logits", "scratch"),
    [
        (HALF_B, 64, 324_861_952),
        (HALF_B, 128, 476_643_328),
        (SEVEN_B, 64, 1_251_753_984),
        (MOE_A2_7B, 64, 1_529_000_000 - 512 * 151936 * 4),
        (MOE_A2_7B, 1, 1_250_926_592),
    ],
)
def test_activations_cover_what_tensorrt_takes_and_little_more(
    model: ModelConfig, logits: int, scratch: int
) -> None:
    """Against the "Total Activation Memory" of builds for profile a100: 8 rows of 1,024 tokens."""
    needed = scratch + 8 * logits * model.vocab_size * 4
    planned = MemoryBudget(model, "bfloat16", 0, chunk=1024, logits=logits).activations(8, 1024)
    assert needed <= planned <= 1.04 * needed


def test_a_dense_layer_among_sparse_ones_counts() -> None:
    mixed = config(
        model_type="qwen2_moe", num_hidden_layers=4, decoder_sparse_step=2, intermediate_size=10**6
    )
    assert MemoryBudget(mixed, "float16", 0, chunk=1, logits=1).activations(1, 1) > 3 * 10**6 * 2


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_every_profile_takes_the_models_its_gpu_is_for(name: str) -> None:
    profile = load_profile(name)
    assert profile.memory_mib is not None and profile.compute_capability is not None
    need = check_gpu_memory(budget(SEVEN_B, "bfloat16", SEVEN_B_BYTES, profile), profile)
    assert need.total <= profile.memory_mib << 20
    large = budget(MOE_57B, "bfloat16", MOE_57B_BYTES, profile)
    if name in ("h200", "b200"):
        check_gpu_memory(large, fit_to_model(profile, 32768))
    else:
        with pytest.raises(
            ProfileError, match=rf"{profile.gpu} has .*weights 106\.9 GiB.*not even one sequence"
        ):
            check_gpu_memory(large, profile)


def test_the_gpus_are_there() -> None:
    assert GPU_PROFILES == ["a100", "b200", "h100", "h200", "l4", "l40s", "rtx4090", "rtx5090"]


def profile_of(memory_mib: int | None, batch: int) -> Profile:
    return replace(load_profile("a100"), memory_mib=memory_mib, batch=Range(1, 1, batch), prefill_chunk=16)


@given(st.integers(1, 12), st.integers(1, 100), st.integers(1700, 2300))
def test_the_advice_is_the_largest_that_fits(batch: int, capacity: int, memory_mib: int) -> None:
    """Against trying every batch and capacity."""
    model = config(num_hidden_layers=64, head_dim=64, num_attention_heads=32, num_key_value_heads=16)
    profile = fit_to_model(profile_of(memory_mib, batch), capacity)
    wanted = budget(model, "float16", 700 << 20, profile)

    def fits(rows: int, tokens: int) -> bool:
        return wanted.need(rows, tokens).total <= memory_mib << 20

    if fits(batch, capacity):
        assert check_gpu_memory(wanted, profile) == wanted.need(batch, capacity)
        return
    with pytest.raises(ProfileError) as caught:
        check_gpu_memory(wanted, profile)
    advice = str(caught.value).partition("reserve 1.0 GiB; ")[2]
    if not fits(1, 1):
        assert advice.startswith("not even one sequence fits")
        return
    offered = {
        (int(rows), int(tokens)) for rows, tokens in re.findall(r"batch (\d+) with capacity (\d+)", advice)
    }
    expected = {
        (batch, max((tokens for tokens in range(1, capacity + 1) if fits(batch, tokens)), default=0)),
        (max((rows for rows in range(1, batch + 1) if fits(rows, capacity)), default=0), capacity),
    }
    expected = {(rows, tokens) for rows, tokens in expected if rows and tokens}
    if not fits(1, capacity):
        expected.add((1, max(tokens for tokens in range(1, capacity + 1) if fits(1, tokens))))
    assert offered == expected


def test_streamed_weights_take_what_the_rest_leaves() -> None:
    profile = replace(load_profile("l4"), weight_streaming=True)
    assert profile.memory_mib is not None
    need = check_gpu_memory(budget(MOE_57B, "bfloat16", MOE_57B_BYTES, profile), profile)
    assert need.total == profile.memory_mib << 20
    assert need.weights + need.streamed_weights == MOE_57B_BYTES
    small = check_gpu_memory(budget(MOE_57B, "bfloat16", 5 * GIB, profile), profile)
    assert (small.weights, small.streamed_weights) == (5 * GIB, 0)


def test_streamed_weights_need_room_to_be_staged() -> None:
    """For the head, 2 * 151,936 * 3,584 bytes, and one more of its size."""
    profile = replace(load_profile("l4"), weight_streaming=True, memory_mib=4 * 1024)
    with pytest.raises(
        ProfileError, match=r"weights 2\.0 GiB, .* largest that would fit: batch 4 with capacity"
    ):
        check_gpu_memory(budget(MOE_57B, "bfloat16", MOE_57B_BYTES, profile), profile)


def test_without_a_size_nothing_is_refused() -> None:
    profile = replace(profile_of(None, 64), capacity=Range(1, 1, 65536))
    need = check_gpu_memory(budget(MOE_57B, "bfloat16", MOE_57B_BYTES, profile), profile)
    assert need.total > 300 * GIB


def test_ram_to_build_grows_with_the_weights() -> None:
    assert host_bytes_to_build(0) < GIB
    assert host_bytes_to_build(MOE_57B_BYTES) > 1.6 * MOE_57B_BYTES
