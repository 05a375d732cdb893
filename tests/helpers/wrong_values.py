"""Hypothesis strategies for JSON values, and for ``config.json`` fields whose value is wrong for certain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=5,
)
not_null = json_values.filter(lambda value: value is not None)
not_integer = json_values.filter(lambda value: type(value) is not int)
not_number = json_values.filter(lambda value: type(value) not in (int, float))
not_boolean = json_values.filter(lambda value: type(value) is not bool)
not_object = not_null.filter(lambda value: not isinstance(value, dict))
not_positive = not_integer | st.integers(-(2**63), 0) | st.integers(2**31, 2**63)
names = st.text(max_size=20)
unknown_names = names.filter(lambda name: name not in ("default", "linear", "yarn"))
outside = st.lists(st.integers(2, 2**40) | st.integers(-9, -1) | st.text(), min_size=1, max_size=3)


def other_than(*values: object) -> Callable[[object], bool]:
    return lambda value: value not in values


# field -> values that are wrong whatever the rest of the config says
WRONG_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "architectures": not_null,
    "dual_chunk_attention_config": not_null,
    "head_dim": not_positive.filter(other_than(None)) | st.integers(0, 50).map(lambda half: 2 * half + 1),
    "hidden_act": json_values.filter(other_than("silu")),
    "hidden_size": not_positive,
    "intermediate_size": not_positive,
    "is_causal": not_null.filter(lambda value: value is not True),
    "layer_types": not_null | st.lists(st.just("full_attention"), min_size=3, max_size=5),
    "max_position_embeddings": not_positive,
    "max_window_layers": not_integer | st.integers(max_value=-1),
    "model_type": json_values,
    "num_attention_heads": not_positive,
    "num_hidden_layers": not_positive | st.integers(4097, 2**31),
    "quantization_config": not_null,
    "rms_norm_eps": not_number | st.floats(max_value=0),
    "rope_parameters": not_object | unknown_names.map(lambda name: {"rope_type": name}),
    "rope_scaling": not_object | unknown_names.map(lambda name: {"type": name, "factor": 2.0}),
    "rope_theta": not_number | st.floats(max_value=1, allow_nan=False, allow_infinity=False),
    "sliding_window": not_positive.filter(other_than(None, 0)),
    "tie_word_embeddings": not_boolean,
    "torch_dtype": not_null,
    "use_sliding_window": not_boolean,
    "vocab_size": not_positive,
}
WRONG_MOE_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "decoder_sparse_step": not_positive,
    "mlp_only_layers": not_null.filter(lambda value: not isinstance(value, list)) | outside,
    "moe_intermediate_size": not_positive,
    "norm_topk_prob": not_boolean,
    "num_experts": not_positive | st.integers(4097, 2**31),
    "num_experts_per_tok": not_positive | st.integers(4, 99),
    "qkv_bias": not_boolean,
    "shared_expert_intermediate_size": not_positive,
}
wrong_fields = st.sampled_from(sorted(WRONG_VALUES)).flatmap(
    lambda name: st.tuples(st.just(name), WRONG_VALUES[name])
)
wrong_moe_fields = st.sampled_from(sorted(WRONG_MOE_VALUES)).flatmap(
    lambda name: st.tuples(st.just(name), WRONG_MOE_VALUES[name])
)
# fields whose every other valid value asks for tensors of another shape, or for more or fewer of them
SHAPE_FIELDS = (
    "hidden_size intermediate_size num_attention_heads num_hidden_layers num_key_value_heads vocab_size"
)
MOE_SHAPE_FIELDS = f"{SHAPE_FIELDS} moe_intermediate_size num_experts shared_expert_intermediate_size"
