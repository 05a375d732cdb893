"""Which fields of a Qwen2 ``config.json`` are read, which are harmless, and which are refused.

Names and defaults are those of ``Qwen2Config`` and ``Qwen2MoeConfig`` in transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping

from q2export.contracts.limits import MAX_LAYERS

ARCHITECTURES: Mapping[str, str] = {"qwen2": "Qwen2ForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM"}

SIZE_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
    },
    "qwen2_moe": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "decoder_sparse_step": 1,
    },
}

# Every command takes time and memory in these, so a damaged value must not get far.
SIZE_LIMITS: Mapping[str, int] = {"num_hidden_layers": MAX_LAYERS, "num_experts": 4096}

# Absent, these change the numbers and no tensor's shape gives it away: the default is used, with a warning
# that names the field. rope_theta belongs here too and is handled with the rotary embedding.
SILENT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "qwen2": ("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
    "qwen2_moe": (
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "num_experts_per_tok",
        "norm_topk_prob",
    ),
}

READ_FIELDS = frozenset(
    {
        "architectures",
        "dtype",
        "head_dim",
        "hidden_act",
        "layer_types",
        "model_type",
        "partial_rotary_factor",
        "qkv_bias",
        "quantization_config",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "torch_dtype",
        "use_sliding_window",
        *SIZE_DEFAULTS["qwen2"],
    }
)
MOE_FIELDS = frozenset({"mlp_only_layers", "norm_topk_prob", *SIZE_DEFAULTS["qwen2_moe"]}) - READ_FIELDS

# Read by transformers as something other than the plain causal decoder this exporter builds.
REFUSED_FIELDS: Mapping[str, str] = {
    "compression_config": (
        "checkpoints of compressed-tensors are not supported; use the unquantized model and quantize it "
        "here, or a GPTQ or AWQ version of it"
    ),
    "dual_chunk_attention_config": (
        "Dual Chunk Attention is not implemented yet; remove the field to use plain attention up to the "
        "original context length"
    ),
    "per_layer_config": "configurations that differ per layer are not implemented",
}

# May be present with this value only, which is what the exporter builds.
FIXED_FIELDS: Mapping[str, object] = {
    "add_cross_attention": False,
    "is_causal": True,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "use_mrope": False,
}

# Training, bookkeeping and generation settings: no effect on the logits of a forward pass.
HARMLESS_FIELDS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_experts_implementation",
        "_name_or_path",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "attention_dropout",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "eos_token_id",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_p",
        "no_repeat_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "router_aux_loss_coef",
        "sep_token_id",
        "suppress_tokens",
        "target_lookbehind",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torchscript",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)
