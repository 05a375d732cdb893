"""``quantization_config``: what publishers write, and every variant that is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from q2export.contracts.quantization import PackedQuantization
from q2export.errors import ConfigError
from q2export.exporter.checkpoint.config import parse_config
from q2export.exporter.checkpoint.packed_config import config_section
from q2export.exporter.checkpoint.published_config import PublishedQuantization, parse_published
from tests.exporter.quantization.published.checkpoints import AWQ, GPTQ
from tests.helpers.checkpoints import tiny_config

# What transformers 4 wrote of a GPTQ model, AutoGPTQ 0.7.1 and AutoAWQ 0.2.9: the three forms Qwen publishes.
TRANSFORMERS_GPTQ = {
    "batch_size": 1,
    "bits": 4,
    "block_name_to_quantize": None,
    "cache_block_outputs": True,
    "damp_percent": 0.01,
    "dataset": None,
    "desc_act": False,
    "exllama_config": {"version": 1},
    "group_size": 128,
    "max_input_length": None,
    "model_seqlen": None,
    "module_name_preceding_first_block": None,
    "modules_in_block_to_quantize": None,
    "pad_token_id": None,
    "quant_method": "gptq",
    "sym": True,
    "tokenizer": None,
    "true_sequential": True,
    "use_cuda_fp16": False,
    "use_exllama": True,
}
AUTOGPTQ = {
    "bits": 8,
    "checkpoint_format": "gptq",
    "damp_percent": 0.01,
    "desc_act": False,
    "group_size": 128,
    "model_file_base_name": "model",
    "model_name_or_path": None,
    "quant_method": "gptq",
    "static_groups": False,
    "sym": True,
    "true_sequential": True,
}
AUTOAWQ = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


def parsed(section: dict[str, Any]) -> PublishedQuantization:
    return parse_published(section, "quantization_config.")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (TRANSFORMERS_GPTQ, PublishedQuantization("gptq", 4, 128, 1, True, False)),
        (AUTOGPTQ, PublishedQuantization("gptq", 8, 128, 1, True, False)),
        (AUTOAWQ, PublishedQuantization("awq", 4, 128)),
    ],
)
def test_as_published(section: dict[str, Any], expected: PublishedQuantization) -> None:
    assert parsed(section) == expected
    config = parse_config({**tiny_config(), "quantization_config": section}, "config.json")
    assert config.quantization == expected
    assert config.warnings == ()


@pytest.mark.parametrize("kind", [transformers.GPTQConfig, transformers.AwqConfig])
def test_what_transformers_writes_today(kind: type) -> None:
    section = json.loads(kind(bits=4, group_size=64, desc_act=False).to_json_string(use_diff=False))
    found = parsed(section)
    assert (found.method, found.bits, found.group_size) == (section["quant_method"], 4, 64)
    assert found.zero_point_offset == (kind is transformers.GPTQConfig)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoint_format": "gptq_v2"}, {"zero_point_offset": 0}),
        ({"format": "gptq_v2", "checkpoint_format": "GPTQ_V2"}, {"zero_point_offset": 0}),
        ({"group_size": -1}, {"group_size": None}),
        ({"group_size": 96}, {"group_size": 96}),
        ({"group_size": 1024}, {"group_size": 1024}),
        ({"desc_act": True, "sym": None}, {"act_order": True, "symmetric": None}),
        ({"desc_act": None}, {"act_order": None}),
        ({"lm_head": True, "pack_dtype": "int32", "method": "gptq"}, {}),
        ({"pack_dtype": "torch.int32", "adapter": None, "rotation": None}, {}),
        ({"dynamic": None}, {}),
        ({"dynamic": {"-:.*down_proj": {}}}, {}),
        ({"dynamic": {"lm_head": {"bits": 4, "group_size": 32, "sym": False, "mse": 2.4}}}, {}),
        ({"is_marlin_format": False, "meta": {"quantizer": ["gptqmodel:2.0.0"]}}, {}),
        ({"modules_in_block_to_quantize": [["self_attn.q_proj"]]}, {}),
    ],
)
def test_variants_of_gptq(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    fields = {"bits": 4, "group_size": 32, "zero_point_offset": 1, "symmetric": False, "act_order": False}
    assert parsed(GPTQ | changes) == PublishedQuantization("gptq", **(fields | expected))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "GEMM"},
        {"version": None, "format": "gemm", "checkpoint_format": "gemm", "sym": False, "desc_act": False},
        {"modules_to_not_convert": ["lm_head", "gate"]},
        {"do_fuse": False, "fuse_max_seq_len": None, "modules_to_fuse": None, "backend": "autoawq"},
    ],
)
def test_variants_of_awq(changes: dict[str, Any]) -> None:
    assert parsed(AWQ | changes) == PublishedQuantization("awq", 4, 32)


def test_names_that_older_tools_use() -> None:
    section = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "gemm", "zero_point": True}
    assert parsed(section) == PublishedQuantization("awq", 4, 64)


def test_the_stored_form() -> None:
    packed = PackedQuantization(8, 64, False, "gptq", True, ("a", "b"), True)
    config = parse_config({**tiny_config(), "quantization_config": config_section(packed)}, "config.json")
    assert config.quantization == packed


def test_unknown_fields_are_warned_about() -> None:
    warnings = parsed(GPTQ | {"desc_actt": True, "smooth": 1}).warnings
    assert warnings == (
        "unknown field 'quantization_config.desc_actt' is ignored and could change the numbers; did you mean "
        "'desc_act'?",
        "unknown field 'quantization_config.smooth' is ignored and could change the numbers",
    )
    config = parse_config({**tiny_config(), "quantization_config": GPTQ | {"smooth": 1}}, "config.json")
    assert config.warnings == warnings[1:]


def without(section: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != name}


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        (
            {"quant_method": method},
            f"quant_method: expected gptq, awq or q2export, found '{method}'; use the un",
        )
        for method in (
            "bitsandbytes",
            "fp8",
            "compressed-tensors",
            "marlin",
            "bitblas",
            "aqlm",
            "eetq",
            "gguf",
        )
    ),
    ({"load_in_4bit": True}, "bitsandbytes is not supported"),
    ({"bits": 4}, "quant_method is missing; expected a string"),
    ({"quant_method": 4}, "quant_method: expected a string, found 4"),
    *((GPTQ | {"bits": bits}, f"bits: expected 4 or 8; .*, found {bits}$") for bits in (2, 3, 5, 16)),
    (without(GPTQ, "bits"), "bits is missing"),
    (GPTQ | {"bits": "4"}, "bits: expected an integer"),
    (GPTQ | {"group_size": 16}, "group_size: expected -1 or a multiple of 32; .*, found 16"),
    (GPTQ | {"group_size": 0}, "group_size: expected -1 or a multiple of 32; .*, found 0"),
    (GPTQ | {"group_size": -2}, "group_size: expected an integer of -1"),
    (without(GPTQ, "group_size"), "group_size is missing"),
    (
        GPTQ | {"checkpoint_format": "marlin"},
        "checkpoint_format: expected gptq or gptq_v2; .*, found 'marlin'",
    ),
    (GPTQ | {"format": "bitblas"}, "format: expected gptq or gptq_v2; .*, found 'bitblas'"),
    (
        GPTQ | {"format": "gptq", "checkpoint_format": "gptq_v2"},
        "format: expected the same as checkpoint_format",
    ),
    (GPTQ | {"is_marlin_format": True}, "is_marlin_format: expected false: tensors in Marlin's order"),
    (GPTQ | {"desc_act": 1}, "desc_act: expected true or false, found 1"),
    (GPTQ | {"sym": "yes"}, "sym: expected true or false, found 'yes'"),
    (GPTQ | {"pack_dtype": "int16"}, "pack_dtype: expected 'int32'; .*, found 'int16'"),
    (GPTQ | {"adapter": {"path": "x"}}, "adapter: expected null, .* an adapter on top of quantized weights"),
    (GPTQ | {"rotation": "hadamard"}, "rotation: expected null, found 'hadamard'; a rotation on top"),
    (GPTQ | {"dynamic": ["-:x"]}, "dynamic: expected an object"),
    (GPTQ | {"dynamic": {"+:x": 4}}, r"dynamic: rule '\+:x': expected an object, found 4"),
    (
        GPTQ | {"dynamic": {"lm_head": {"bits": 8}}},
        "dynamic: rule 'lm_head': bits is 8, elsewhere 4; modules",
    ),
    (GPTQ | {"dynamic": {"x": {"desc_act": True}}}, "rule 'x': desc_act is True, elsewhere False"),
    (GPTQ | {"dynamic": {"x": {"format": "gptq_v2"}}}, "rule 'x': format is 'gptq_v2', elsewhere None"),
    (GPTQ | {"w_bit": 8}, "w_bit is 8, yet bits is 4; they mean the same: correct one of them"),
    (AWQ | {"bits": 8}, "bits: expected 4; .*, found 8"),
    *(
        (AWQ | {"version": version}, f"version: expected 'gemm', .*, found '{version}'")
        for version in ("gemv", "gemv_fast", "exllama", "ipex", "marlin", "llm-awq")
    ),
    (AWQ | {"format": "gemv_fast"}, "format: expected 'gemm'"),
    (AWQ | {"backend": "llm-awq"}, "backend: expected no such field: the packing of llm-awq is not read"),
    (AWQ | {"zero_point": False}, "zero_point: expected true: signed codes without zero points"),
    (AWQ | {"desc_act": True}, "desc_act: expected false or no such field: AWQ has no g_idx"),
    (AWQ | {"group_size": 48}, "group_size: expected -1 or a multiple of 32"),
]


@pytest.mark.parametrize(
    ("section", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config({**tiny_config(), "quantization_config": section}, "model/config.json")
    assert str(caught.value).startswith("model/config.json: quantization_config.")
    assert len(str(caught.value)) < 400


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 1 << 40) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)


@given(
    base=st.sampled_from([AUTOGPTQ, AUTOAWQ]),
    name=st.sampled_from(
        sorted({*TRANSFORMERS_GPTQ, *AUTOGPTQ, *AUTOAWQ, "dynamic", "pack_dtype", "w_bit", "x"})
    ),
    value=JSON_VALUES,
)
def test_any_value_is_read_or_refused(base: dict[str, Any], name: str, value: object) -> None:
    try:
        found = parsed(base | {name: value})
    except ConfigError as error:
        assert str(error).startswith("quantization_config.")
    else:
        assert found.bits in (4, 8) and (found.group_size is None or found.group_size % 32 == 0)
