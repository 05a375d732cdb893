"""The configuration of a Qwen2 or Qwen2-MoE model, every field resolved and checked against the others.

Field names and per-layer rules are those of transformers 5.23 (``models/qwen2``, ``models/qwen2_moe``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from q2export.contracts.quantization import PackedQuantization
from q2export.errors import ConfigError
from q2export.exporter.checkpoint.config_fields import ARCHITECTURES
from q2export.exporter.checkpoint.published_config import PublishedQuantization
from q2export.exporter.checkpoint.rope import RopeParameters
from q2export.strict.json import shown

FULL, SLIDING = "full_attention", "sliding_attention"


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

    ``sliding_window`` is ``None`` unless some layer slides; ``quantization`` is ``None`` unless the weights
    are quantized; ``unpadded_sizes`` are intermediate sizes before quantizing rounded them up with zeros, by
    field; ``warnings`` are for the user to see, in order.

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
    quantization: PackedQuantization | PublishedQuantization | None = None
    unpadded_sizes: Mapping[str, int] = field(default_factory=dict, compare=False)
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
        if self.context_length < 2:
            raise ConfigError(
                "max_position_embeddings: expected room for 2 tokens or more (one of a prompt and one that "
                f"follows), found a context of {self.context_length}"
            )
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

    def with_sizes(self, sizes: Mapping[str, int]) -> ModelConfig:
        """The same model with other intermediate sizes, by the names of their fields in ``config.json``."""
        moe = self.moe
        if moe is not None:
            routed = sizes.get("moe_intermediate_size", moe.moe_intermediate_size)
            shared = sizes.get("shared_expert_intermediate_size", moe.shared_expert_intermediate_size)
            moe = replace(moe, moe_intermediate_size=routed, shared_expert_intermediate_size=shared)
        return replace(
            self, intermediate_size=sizes.get("intermediate_size", self.intermediate_size), moe=moe
        )

    def window(self, layer: int) -> int | None:
        """Keys a query of ``layer`` attends to, itself included, or ``None`` for all before it."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the MLP of ``layer`` is a mixture of experts (``Qwen2MoeDecoderLayer.__init__``)."""
        if self.moe is None or layer in self.moe.mlp_only_layers:
            return False
        return (layer + 1) % self.moe.decoder_sparse_step == 0
