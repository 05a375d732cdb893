"""The configuration of a Qwen2 or Qwen2-MoE model, read strictly from ``config.json``.

Field names, defaults and per-layer rules are those of transformers 5.23 (``configuration_qwen2.py``,
``configuration_qwen2_moe.py``). What transformers would accept and this exporter could not honour is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from q2export.errors import ConfigError
from q2export.exporter.config_fields import (
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
from q2export.exporter.json_fields import MAX_SIZE, Fields
from q2export.exporter.rope import RopeParameters, parse_rope
from q2export.exporter.strict_json import read_object, shown
from q2export.suggest import nearest

FULL, SLIDING = "full_attention", "sliding_attention"
DTYPES = ("float32", "float16", "bfloat16")

_MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class MoeConfig:
    """The mixture-of-experts fields of ``qwen2_moe``.

    Raises:
        ConfigError: if more experts per token are asked for than there are.
    """

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    shared_expert_intermediate_size: int
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_experts_per_tok > self.num_experts:
            raise ConfigError(
                f"num_experts_per_tok: expected at most num_experts ({self.num_experts}), "
                f"found {self.num_experts_per_tok}"
            )


@dataclass(frozen=True)
class ModelConfig:
    """One model, every field resolved; sizes in elements, lengths in tokens.

    ``sliding_window`` is ``None`` unless some layer slides; ``warnings`` are for the user to see, in order.

    Raises:
        ConfigError: if the fields contradict each other.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    max_position_embeddings: int
    rope: RopeParameters
    layer_types: tuple[str, ...]
    sliding_window: int | None = None
    torch_dtype: str | None = None
    moe: MoeConfig | None = None
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.model_type not in ARCHITECTURES or (self.model_type == "qwen2_moe") != (self.moe is not None):
            raise ConfigError(
                f"model_type: expected qwen2, or qwen2_moe with its experts, found {self.model_type!r}"
            )
        if self.hidden_act != "silu":
            raise ConfigError(
                f"hidden_act: expected 'silu' (the only one implemented), found {self.hidden_act!r}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_attention_heads: expected a multiple of num_key_value_heads "
                f"({self.num_key_value_heads}), found {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim: expected an even number (rotary pairs), found {self.head_dim}")
        self._check_layers()

    def _check_layers(self) -> None:
        layers = self.num_hidden_layers
        unknown = sorted(set(self.layer_types) - {FULL, SLIDING})
        if unknown:
            raise ConfigError(
                f"layer_types: {shown(unknown[0])} is not implemented; valid: {FULL}, {SLIDING}"
            )
        if len(self.layer_types) != layers:
            raise ConfigError(
                f"layer_types: expected num_hidden_layers ({layers}) items, found {len(self.layer_types)}"
            )
        if (SLIDING in self.layer_types) != (self.sliding_window is not None):
            raise ConfigError(
                f"sliding_window: expected a number of tokens exactly where layer_types has {SLIDING}, "
                f"found {self.sliding_window}"
            )
        outside = [i for i in self.moe.mlp_only_layers if not 0 <= i < layers] if self.moe else []
        if outside:
            raise ConfigError(f"mlp_only_layers: expected layers 0 to {layers - 1}, found {outside[0]}")

    @property
    def context_length(self) -> int:
        """Tokens the model is made for; with YaRN the extended number, whichever of the two is stated.

        Qwen states the original length beside ``rope_scaling``, others the extended one; as in vLLM, it is
        ``original_max_position_embeddings`` times ``factor``. (For linear scaling vLLM multiplies too;
        configs do not agree on what they state there, and this keeps to what is stated.)
        """
        if self.rope.rope_type == "yarn" and self.rope.original_max_position_embeddings is not None:
            return int(self.rope.original_max_position_embeddings * self.rope.factor)
        return self.max_position_embeddings

    def window(self, layer: int) -> int | None:
        """Keys a query of ``layer`` attends to, itself included, or ``None`` for all before it."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the MLP of ``layer`` is a mixture of experts (``Qwen2MoeDecoderLayer.__init__``)."""
        if self.moe is None or layer in self.moe.mlp_only_layers:
            return False
        return (layer + 1) % self.moe.decoder_sparse_step == 0


def load_config(folder: Path) -> ModelConfig:
    """Read ``folder/config.json``.

    Raises:
        ConfigError: naming the file and the field.
    """
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
        warnings=(
            *_absent_fields(fields, model_type),
            *rope_warnings,
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
            if dtype not in DTYPES:
                raise fields.wrong(name, f"one of {', '.join(DTYPES)}")
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
    known = read | HARMLESS_FIELDS | REFUSED_FIELDS.keys() | FIXED_FIELDS.keys()
    return [
        f"unknown field {shown(name)} is ignored and could change the numbers{_typo(name, read)}"
        for name in sorted(fields.data.keys() - known)
    ]


def _typo(name: str, read: frozenset[str]) -> str:
    hint = nearest(name, read)
    return hint if "did you mean" in hint else ""
