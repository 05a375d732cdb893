"""Reading ``config.json`` of a Qwen2 or Qwen2-MoE model, strictly.

Defaults and the meaning of absent fields are those of transformers 5.23 (``configuration_qwen2.py``,
``configuration_qwen2_moe.py``). What transformers would accept and this exporter could not honour is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from q2export.contracts.dtypes import FLOAT_NAMES
from q2export.contracts.limits import MAX_SIZE
from q2export.contracts.quantization import PackedQuantization
from q2export.errors import ConfigError
from q2export.exporter.checkpoint.config_fields import (
    ARCHITECTURES,
    FIXED_FIELDS,
    HARMLESS_FIELDS,
    MOE_FIELDS,
    READ_FIELDS,
    REFUSED_FIELDS,
    SILENT_FIELDS,
    SIZE_DEFAULTS,
    SIZE_LIMITS,
)
from q2export.exporter.checkpoint.folder import check_folder
from q2export.exporter.checkpoint.json_fields import Fields
from q2export.exporter.checkpoint.model_config import FULL, SLIDING, ModelConfig, MoeConfig
from q2export.exporter.checkpoint.packed_config import UNPADDED_KEY, is_packed, parse_section
from q2export.exporter.checkpoint.published_config import PublishedQuantization, parse_published
from q2export.exporter.checkpoint.rope import RopeParameters
from q2export.exporter.checkpoint.rope_config import parse_rope
from q2export.strict.json import read_object, shown
from q2export.strict.suggest import nearest

__all__ = ["ModelConfig", "MoeConfig", "load_config", "parse_config"]


_MAX_CONFIG_BYTES = 16 << 20


def load_config(folder: Path) -> ModelConfig:
    """Read ``folder/config.json``.

    Raises:
        ConfigError: naming the file and the field.
        CheckpointError: the folder holds no complete model, see
            :func:`~q2export.exporter.checkpoint.folder.check_folder`.
    """
    check_folder(folder)
    path = folder / "config.json"
    return parse_config(read_object(path, _MAX_CONFIG_BYTES, ConfigError), str(path))


def parse_config(data: Mapping[str, object], where: str) -> ModelConfig:
    """Build the configuration from the content of a ``config.json``; ``where`` goes before every message.

    Raises:
        ConfigError: on a wrong type, a value out of range, fields that contradict each other, or a field that
            asks for what is not implemented.
    """
    try:
        return _parse(Fields(data))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _parse(fields: Fields) -> ModelConfig:
    model_type = _model_type(fields)
    _refuse_unimplemented(fields)
    sizes = {
        name: fields.integer(name, default, high=SIZE_LIMITS.get(name, MAX_SIZE))
        for name, default in SIZE_DEFAULTS[model_type].items()
        if name not in ("max_window_layers", "num_key_value_heads")
    }
    rope, rope_warnings = parse_rope(fields.data, sizes["max_position_embeddings"])
    layer_types, sliding_window = _attention_windows(fields, model_type, sizes["num_hidden_layers"])
    quantization = _quantization(fields)
    return ModelConfig(
        model_type=model_type,
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_hidden_layers=sizes["num_hidden_layers"],
        num_attention_heads=sizes["num_attention_heads"],
        num_key_value_heads=_num_key_value_heads(fields, model_type, sizes["num_attention_heads"]),
        head_dim=_head_dim(fields, sizes["hidden_size"], sizes["num_attention_heads"]),
        hidden_act=fields.string("hidden_act", default="silu"),
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
        qkv_bias=_qkv_bias(fields, model_type),
        max_position_embeddings=sizes["max_position_embeddings"],
        rope=rope,
        layer_types=layer_types,
        sliding_window=sliding_window,
        torch_dtype=_dtype(fields),
        moe=_moe(fields, sizes) if model_type == "qwen2_moe" else None,
        quantization=quantization,
        unpadded_sizes=_unpadded_sizes(fields, sizes),
        warnings=(
            *_absent_fields(fields, model_type),
            *rope_warnings,
            *(quantization.warnings if isinstance(quantization, PublishedQuantization) else ()),
            *_unknown_fields(fields, model_type, rope),
        ),
    )


def _model_type(fields: Fields) -> str:
    model_type = fields.string("model_type")
    if model_type not in ARCHITECTURES:
        raise fields.wrong("model_type", f"one of {', '.join(ARCHITECTURES)}")
    architectures = fields.items("architectures", str, "strings")
    if architectures is not None and ARCHITECTURES[model_type] not in architectures:
        raise fields.wrong("architectures", f"{ARCHITECTURES[model_type]} among them")
    return model_type


def _refuse_unimplemented(fields: Fields) -> None:
    for name, reason in REFUSED_FIELDS.items():
        if fields.present(name):
            raise ConfigError(f"{name}: {reason}")
    for name, only in FIXED_FIELDS.items():
        value = fields.data.get(name)
        if value is not None and (type(value) is not type(only) or value != only):
            raise fields.wrong(name, f"{only!r} or no such field; anything else is not implemented")


def _num_key_value_heads(fields: Fields, model_type: str, num_attention_heads: int) -> int:
    if "num_key_value_heads" not in fields.data:
        return SIZE_DEFAULTS[model_type]["num_key_value_heads"]
    given = fields.optional_integer("num_key_value_heads")
    return num_attention_heads if given is None else given


def _head_dim(fields: Fields, hidden_size: int, num_attention_heads: int) -> int:
    given = fields.optional_integer("head_dim")
    if given is not None:
        return given
    if hidden_size % num_attention_heads:
        raise ConfigError(
            f"hidden_size: expected a multiple of num_attention_heads ({num_attention_heads}) "
            f"where no head_dim is given, found {hidden_size}"
        )
    return hidden_size // num_attention_heads


def _qkv_bias(fields: Fields, model_type: str) -> bool:
    bias = fields.boolean("qkv_bias", default=True)
    if model_type == "qwen2" and not bias:
        raise fields.wrong("qkv_bias", "true or no such field; qwen2 always has biases on q, k and v")
    return bias


def _dtype(fields: Fields) -> str | None:
    """The declared dtype; transformers 5 spells it ``dtype`` and prefers that."""
    for name in ("dtype", "torch_dtype"):
        if fields.present(name):
            dtype = fields.string(name).removeprefix("torch.")
            if dtype not in FLOAT_NAMES:
                raise fields.wrong(name, f"one of {', '.join(FLOAT_NAMES)}")
            return dtype
    return None


def _attention_windows(fields: Fields, model_type: str, layers: int) -> tuple[tuple[str, ...], int | None]:
    """``layer_types`` and the window, ``None`` unless a layer slides."""
    enabled = fields.boolean("use_sliding_window", default=False)
    # 0 is what transformers itself writes for a disabled window of qwen2_moe.
    window = fields.optional_integer("sliding_window", low=1 if enabled else 0)
    first = fields.integer("max_window_layers", SIZE_DEFAULTS[model_type]["max_window_layers"], low=0)
    given = fields.items("layer_types", str, "strings")
    if enabled and window is None:
        raise fields.wrong("sliding_window", "a number of tokens, because use_sliding_window is true")
    if given is not None:
        types = tuple(str(item) for item in given)
        if SLIDING in types and not enabled:
            raise ConfigError(f"layer_types has {SLIDING}, yet use_sliding_window is false")
    elif model_type == "qwen2":
        types = tuple(SLIDING if enabled and i >= first else FULL for i in range(layers))
    else:
        types = tuple(SLIDING if enabled and i % 2 == 0 and i < first else FULL for i in range(layers))
    return types, window if SLIDING in types else None


def _moe(fields: Fields, sizes: Mapping[str, int]) -> MoeConfig:
    only = fields.items("mlp_only_layers", int, "integers") or ()
    return MoeConfig(
        num_experts=sizes["num_experts"],
        num_experts_per_tok=sizes["num_experts_per_tok"],
        moe_intermediate_size=sizes["moe_intermediate_size"],
        shared_expert_intermediate_size=sizes["shared_expert_intermediate_size"],
        norm_topk_prob=fields.boolean("norm_topk_prob", default=False),
        decoder_sparse_step=sizes["decoder_sparse_step"],
        mlp_only_layers=tuple(layer for layer in only if isinstance(layer, int)),
    )


def _quantization(fields: Fields) -> PackedQuantization | PublishedQuantization | None:
    section = fields.object("quantization_config")
    if section is None:
        return None
    return parse_section(section) if is_packed(section) else parse_published(section, "quantization_config.")


def _unpadded_sizes(fields: Fields, sizes: Mapping[str, int]) -> dict[str, int]:
    """Intermediate sizes before quantizing rounded them up."""
    group = fields.object(UNPADDED_KEY) or {}
    inside = Fields(group, f"{UNPADDED_KEY}.")
    for name in group:
        if name not in sizes or not name.endswith("intermediate_size"):
            raise ConfigError(f"{UNPADDED_KEY}: expected intermediate sizes, found {shown(name)}")
    return {name: inside.integer(name, high=sizes[name]) for name in group}


def _absent_fields(fields: Fields, model_type: str) -> list[str]:
    return [
        f"{name} is absent: using transformers' default"
        for name in SILENT_FIELDS[model_type]
        if name not in fields.data
    ]


def _unknown_fields(fields: Fields, model_type: str, rope: RopeParameters) -> list[str]:
    read = READ_FIELDS | MOE_FIELDS if model_type == "qwen2_moe" else READ_FIELDS
    if rope.rope_type == "yarn":
        read |= {"original_max_position_embeddings"}
    known = {UNPADDED_KEY} | read | HARMLESS_FIELDS | REFUSED_FIELDS.keys() | FIXED_FIELDS.keys()
    return [
        f"unknown field {shown(name)} is ignored and could change the numbers{_typo(name, read)}"
        for name in sorted(fields.data.keys() - known)
    ]


def _typo(name: str, read: frozenset[str]) -> str:
    hint = nearest(name, read)
    return hint if "did you mean" in hint else ""
