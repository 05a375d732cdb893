from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from q2export.errors import ConfigError, GenerationError
from q2export.runtime.generation_config import parse_generation_config, read_generation_defaults
from q2export.runtime.options import GenerationOptions, OptionKeywords
from q2export.runtime.prompt import new_token_limit

BAD: list[dict[str, Any]] = [
    {"do_sample": 1},
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"temperature": "0.7"},
    {"temperature": True},
    {"top_k": -1},
    {"top_k": 1.5},
    {"top_k": True},
    {"top_p": 0},
    {"top_p": 1.01},
    {"top_p": float("nan")},
    {"min_p": -0.01},
    {"min_p": 1.5},
    {"repetition_penalty": 0},
    {"repetition_penalty": 10**400},
    {"max_new_tokens": 0},
    {"max_new_tokens": 2.0},
    {"min_new_tokens": -1},
    {"min_new_tokens": 5, "max_new_tokens": 4},
    {"stop": ""},
    {"stop": ["a", ""]},
    {"stop": ["a", 3]},
    {"stop": 3},
    {"seed": -1},
    {"seed": "abc"},
    {"seed": [1, 2.5]},
    {"ignore_eos": "yes"},
    {"presence_penalty": 2.1},
    {"frequency_penalty": float("nan")},
    {"logit_bias": {1: 101}},
    {"logit_bias": {"1": 1}},
    {"logit_bias": [1]},
    {"logprobs": 21},
    {"logprobs": True},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_an_option_out_of_range_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match=f"^{next(iter(bad))} must be .*, found "):
        GenerationOptions().updated(bad)


def test_an_unknown_option_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(GenerationError, match="no option 'topk'; did you mean 'top_k'"):
        GenerationOptions().updated({"topk": 3})


def test_keywords_are_the_fields_with_their_types() -> None:
    """``OptionKeywords`` is for type checkers: it must say what the dataclass says."""
    kinds = {field.name: str(field.type).removesuffix(" | None") for field in fields(GenerationOptions)}
    found = {name: str(kind.__forward_arg__) for name, kind in OptionKeywords.__annotations__.items()}
    assert found == {name: f"{kind} | None" for name, kind in kinds.items()}


def test_bounds_themselves_are_accepted() -> None:
    assert GenerationOptions(temperature=0, top_k=0, top_p=1, min_p=1, repetition_penalty=1e-3).greedy
    assert GenerationOptions(min_p=0, top_p=1e-9, temperature=5e-324, do_sample=True).greedy is False


def test_what_is_given_wins_over_the_defaults_and_none_is_not_given() -> None:
    defaults = GenerationOptions(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, min_p=0.1)
    found = defaults.updated({"temperature": 0.5, "top_k": 0, "min_p": 0.0, "top_p": None, "seed": None})
    assert found == GenerationOptions(do_sample=True, temperature=0.5, top_k=0, top_p=0.8, min_p=0.0)
    assert defaults.updated({}) == defaults


def test_a_minimum_widens_a_default_maximum() -> None:
    options = GenerationOptions(max_new_tokens=5).updated({"min_new_tokens": 7})
    assert new_token_limit(options, None, prompt_tokens=3, capacity=20, name="the prompt") == 7


@pytest.mark.parametrize(
    ("given", "default", "greedy"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"temperature": 0.8}, False, False),  # a temperature is not dropped in silence
        ({"top_p": 0.9}, False, False),
        ({"seed": 1}, False, True),
        ({"repetition_penalty": 1.1}, False, True),
        ({"temperature": 0}, True, True),
        ({"temperature": 0, "do_sample": True}, True, True),
        ({"temperature": 0.8, "do_sample": False}, True, True),
    ],
)
def test_when_the_likeliest_token_is_taken(given: dict[str, Any], default: bool, greedy: bool) -> None:
    assert GenerationOptions(do_sample=default).updated(given).greedy is greedy


def test_seeds() -> None:
    assert GenerationOptions(seed=7).seeds(3) == [7, 7, 7]
    assert GenerationOptions(seed=[1, 2]).seeds(2) == [1, 2]
    assert GenerationOptions().seeds(2) == [None, None]
    with pytest.raises(GenerationError, match="one for each of the 3 prompts"):
        GenerationOptions(seed=[1, 2]).seeds(3)


def test_config_of_the_real_qwen2_instruct() -> None:
    config = {
        "bos_token_id": 151643,
        "do_sample": True,
        "eos_token_id": [151645, 151643],
        "pad_token_id": 151643,
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "transformers_version": "4.37.0",
    }
    defaults = parse_generation_config(config, Path("generation_config.json"))
    assert defaults.options == GenerationOptions(
        do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05
    )
    assert defaults.eos_token_ids == (151645, 151643)
    assert defaults.unsupported == ()


def test_null_counts_as_absent_and_idle_fields_are_not_reported() -> None:
    config = {"top_k": None, "eos_token_id": None, "num_beams": 1, "typical_p": 1.0, "max_length": 20}
    defaults = parse_generation_config(config, Path("g"))
    assert defaults.options == GenerationOptions()
    assert defaults.eos_token_ids == ()
    assert defaults.unsupported == ()


def test_fields_that_would_change_the_text_are_reported() -> None:
    defaults = parse_generation_config(
        {"num_beams": 4, "no_repeat_ngram_size": 3, "eos_token_id": 5}, Path("g")
    )
    assert defaults.unsupported == ("no_repeat_ngram_size=3", "num_beams=4")
    assert defaults.eos_token_ids == (5,)


@pytest.mark.parametrize(
    "bad",
    [
        {"eos_token_id": "5"},
        {"eos_token_id": [5, True]},
        {"eos_token_id": -1},
        {"temperature": "hot"},
        {"top_p": 2},
        {"max_new_tokens": 0},
    ],
    ids=str,
)
def test_malformed_config_names_file_and_field(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^some/file\.json: {next(iter(bad))} must be .*found"):
        parse_generation_config(bad, Path("some/file.json"))


def test_files_of_a_folder(tmp_path: Path) -> None:
    assert read_generation_defaults(tmp_path).eos_token_ids == ()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7, "top_k": 3}))
    assert read_generation_defaults(tmp_path).eos_token_ids == (7,)
    assert read_generation_defaults(tmp_path).options == GenerationOptions(top_k=3)  # as in transformers
    (tmp_path / "generation_config.json").write_text(json.dumps({"top_k": 4}))
    assert read_generation_defaults(tmp_path).eos_token_ids == ()  # as in transformers
    assert read_generation_defaults(tmp_path).options.top_k == 4
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json: not valid JSON"):
        read_generation_defaults(tmp_path)
