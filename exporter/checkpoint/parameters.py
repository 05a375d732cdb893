"""Every parameter a configuration calls for, and the check that a checkpoint holds these and no others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from q2export.errors import CheckpointError
from q2export.exporter.checkpoint.config import ModelConfig
from q2export.exporter.checkpoint.folder import Checkpoint, read_blocks
from q2export.exporter.checkpoint.listing import listed, listed_names
from q2export.exporter.checkpoint.safetensors_header import FLOAT_DTYPES
from q2export.strict.json import shown

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"

Parameter = tuple[str, tuple[int, ...]]


def expected_parameters(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by Hugging Face name, in model order; experts one by one, as on disk.

    A tied model has no ``lm_head.weight``. Linear weights are ``[out, in]``.
    """
    parameters: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        parameters.update(_attention(config, f"{prefix}.self_attn"))
        if config.is_moe_layer(layer):
            parameters.update(_mixture(config, f"{prefix}.mlp"))
        else:
            parameters.update(_mlp(f"{prefix}.mlp", config.hidden_size, config.intermediate_size))
        parameters[f"{prefix}.input_layernorm.weight"] = (config.hidden_size,)
        parameters[f"{prefix}.post_attention_layernorm.weight"] = (config.hidden_size,)
    parameters["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        parameters[LM_HEAD] = (config.vocab_size, config.hidden_size)
    return parameters


def count_parameters(config: ModelConfig) -> int:
    """How many the model has; zeros that only fill the blocks of its quantized weights are none of them."""
    model = config.with_sizes(config.unpadded_sizes)
    return sum(math.prod(shape) for shape in expected_parameters(model).values())


def _attention(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield f"{prefix}.{name}.weight", (rows, config.hidden_size)
        if config.qkv_bias:
            yield f"{prefix}.{name}.bias", (rows,)
    yield f"{prefix}.o_proj.weight", (config.hidden_size, queries)


def _mlp(prefix: str, hidden_size: int, intermediate_size: int) -> Iterator[Parameter]:
    yield f"{prefix}.gate_proj.weight", (intermediate_size, hidden_size)
    yield f"{prefix}.up_proj.weight", (intermediate_size, hidden_size)
    yield f"{prefix}.down_proj.weight", (hidden_size, intermediate_size)


def _mixture(config: ModelConfig, prefix: str) -> Iterator[Parameter]:
    moe, hidden_size = config.moe, config.hidden_size
    assert moe is not None  # is_moe_layer
    yield f"{prefix}.gate.weight", (moe.num_experts, hidden_size)
    for expert in range(moe.num_experts):
        yield from _mlp(f"{prefix}.experts.{expert}", hidden_size, moe.moe_intermediate_size)
    yield from _mlp(f"{prefix}.shared_expert", hidden_size, moe.shared_expert_intermediate_size)
    yield f"{prefix}.shared_expert_gate.weight", (1, hidden_size)


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor of a checkpoint has to be: its shape, and one of some dtypes."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOAT_DTYPES


def check_parameters(
    checkpoint: Checkpoint, config: ModelConfig, specs: Mapping[str, TensorSpec] | None = None
) -> None:
    """Check that every parameter is filled and every tensor consumed, exactly once, with the right shape.

    One tensor may be there in vain: a tied model's ``lm_head.weight``, which many trainers save.
    transformers compares it with the embedding and, where they differ, does not tie after all. Here equal
    bits are accepted (the only case in which this function reads values) and different ones are refused.

    Args:
        checkpoint: the tensors there are.
        config: of the model.
        specs: the tensors there have to be, by name; None for one floating-point tensor per parameter.

    Raises:
        CheckpointError: naming the folder, the first few tensors and how many there are.
    """
    expected = specs or {name: TensorSpec(shape) for name, shape in expected_parameters(config).items()}
    found = checkpoint.tensors
    surplus = [name for name in found if name not in expected]
    if config.tie_word_embeddings and LM_HEAD in surplus and EMBEDDING in found:
        check_tied_head(checkpoint)
        surplus.remove(LM_HEAD)
    missing = [name for name in expected if name not in found]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {listed_names(missing)}")
    if surplus:
        problems.append(f"{len(surplus)} surplus: {listed_names(surplus)}")
    present = [(found[name], spec) for name, spec in expected.items() if name in found]
    wrong = [
        f"{shown(ref.name)} is {list(ref.shape)}, expected {list(spec.shape)} ({ref.file.name})"
        for ref, spec in present
        if ref.shape != spec.shape
    ]
    if wrong:
        problems.append(f"{len(wrong)} of the wrong shape: {listed(wrong)}")
    mistyped = [
        f"{shown(ref.name)} is {ref.dtype}, expected {' or '.join(spec.dtypes)} ({ref.file.name})"
        for ref, spec in present
        if ref.dtype not in spec.dtypes
    ]
    if mistyped:
        problems.append(f"{len(mistyped)} of the wrong dtype: {listed(mistyped)}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.folder}: the tensors are not those config.json calls for ({config.model_type}, "
            f"{config.num_hidden_layers} layers): {'; '.join(problems)}; "
            "correct config.json or get the weights again"
        )


def check_tied_head(checkpoint: Checkpoint) -> None:
    """Check that the ``lm_head.weight`` of a tied model has the bits of the embedding.

    Raises:
        CheckpointError: it differs.
    """
    head, embedding = checkpoint.tensors[LM_HEAD], checkpoint.tensors[EMBEDDING]
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape) and all(
        (ours == theirs).all()
        for (_, ours), (_, theirs) in zip(read_blocks(head), read_blocks(embedding), strict=True)
    )
    if not same:
        raise CheckpointError(
            f"{head.file}: {LM_HEAD} differs from {EMBEDDING}, yet tie_word_embeddings is true; set it to "
            "false in config.json if the head was trained on its own, or remove the tensor"
        )
